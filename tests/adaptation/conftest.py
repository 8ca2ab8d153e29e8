"""A small untrained base, and a real head with its hippocampi."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hyps_bids.networks.checkpoints import build_network, save_network


@pytest.fixture(scope="session")
def small_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    kwargs = {"in_channels": 1, "out_channels": 2, "feature_size": 12}
    architecture = {"name": "HippocampusSwinUNETR", "kwargs": kwargs}
    path = tmp_path_factory.mktemp("base") / "base-made.safetensors"
    card = {"labels": ["background", "hippocampus"], "license": "CC0-1.0"}
    save_network(path, build_network(architecture), card | {"architecture": architecture})
    return path


@pytest.fixture(scope="session")
def head(demo_bids: Path, root: Path) -> tuple[Path, Path]:
    """A real head at 1 mm, and FreeSurfer's hippocampi of it: 1 left, 2 right."""
    image = demo_bids / "sub-0001/anat/sub-0001_T1w.nii.gz"
    return image, root / "tests/data/sub-0001_desc-hippocampus_dseg.nii.gz"
