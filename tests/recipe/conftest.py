"""A small workshop: six crops of three subjects, three label maps, a small base, a short recipe."""

from __future__ import annotations

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from hyps_bids.networks.checkpoints import build_network, save_network
from hyps_bids.pretraining.label_maps import BASE_CLASSES

LABELMAP = Path(__file__).parents[1] / "data" / "labelmap_2mm.nii.gz"
RECIPE = """
[data]
labelmaps = "labelmaps"
images = "imagesTr"
labels = "labelsTr"
validation = 2

[localizer]
start = "random"
steps = 1
batch_size = { cpu = 1 }

[base]
start = "shipped"
steps = 2
warmup = 1
checkpoint_every = 1
batch_size = { cpu = 1 }

[adapter]
start = "shipped"
seeds = [1, 2]
steps = 3
warmup = 1
evaluate_every = 3
checkpoint_every = 1
batch_size = { cpu = 1 }
method = "hyps"
rank = 2
bottleneck = 2
scale = 1.0
classes = ["anterior", "posterior"]
start_from = ["hippocampus"]
contrasts = { mapped = 0.5, recolored = 0.5 }
title = "A made adapter"
license = "CC BY-SA 4.0"
data = "Made crops"
notes = "For tests."

[soup]
mixtures = [0.5]
largest_loss = 0.001
"""


def save_base(path: Path, seed: int = 0) -> Path:
    kwargs = {"in_channels": 1, "out_channels": len(BASE_CLASSES), "feature_size": 12}
    architecture = {"name": "HippocampusSwinUNETR", "kwargs": kwargs}
    torch.manual_seed(seed)
    card = {"architecture": architecture, "labels": list(BASE_CLASSES), "license": "Apache-2.0"}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_network(path, build_network(architecture), card)
    return path


@pytest.fixture(scope="session")
def small_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("weights") / "base-synthetic.safetensors")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    values = np.asarray(nib.load(LABELMAP).dataobj)
    i, j, k = np.argwhere(values == 17).mean(axis=0).astype(int)
    crop = values[i - 9 : i + 9, j - 14 : j + 14, k - 9 : k + 9].astype(np.float32)
    labels = np.where(crop == 17, 1, 0).astype(np.uint8)
    labels[:, 14:][labels[:, 14:] == 1] = 2
    for name, array in (("imagesTr", crop), ("labelsTr", labels)):
        (folder / name).mkdir()
        for n in range(1, 7):
            nib.save(
                nib.Nifti1Image(array, np.eye(4)), folder / name / f"hippocampus_{n:03d}.nii.gz"
            )
    (folder / "labelmaps").mkdir()
    for name in ("01", "02", "03"):
        shutil.copy(LABELMAP, folder / "labelmaps" / f"{name}.nii.gz")
    (folder / "recipe.toml").write_text(RECIPE, encoding="utf-8")
    return folder
