"""A real label map at 2 mm, on its own and as training data."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from hyps_bids.pretraining.label_maps import LabelMaps, load_labelmaps


@pytest.fixture(scope="session")
def labelmap() -> Path:
    return Path(__file__).parents[1] / "data" / "labelmap_2mm.nii.gz"


@pytest.fixture(scope="session")
def labelmaps(labelmap: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one map to train on and two to hold out."""
    folder = tmp_path_factory.mktemp("labelmaps")
    for name in ("01", "02", "03"):
        shutil.copy(labelmap, folder / f"{name}.nii.gz")
    return folder


@pytest.fixture(scope="session")
def maps(labelmaps: Path) -> LabelMaps:
    return load_labelmaps(labelmaps)[:1]
