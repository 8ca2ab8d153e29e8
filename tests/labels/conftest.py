"""Made images: boxes of noise with two boxes for hippocampi, clearly no anatomy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

SHAPE = (12, 10, 8)


@pytest.fixture
def values() -> Callable[..., np.ndarray]:
    """Make a label array: `low` in the lower half of the first axis, `high` in the upper."""

    def make(low: int, high: int, other: int = 0) -> np.ndarray:
        labels = np.zeros(SHAPE, dtype=np.int16)
        labels[2:4, 4:7, 3:5] = low
        labels[8:10, 4:7, 3:5] = high
        labels[0, 0, 0] = other
        return labels

    return make


@pytest.fixture
def save() -> Callable[..., Path]:
    """Write an array as NIfTI or Analyze, by the extension; Analyze pairs are 4-D, as in HFH."""

    def write(path: Path, data: np.ndarray | None = None, affine: np.ndarray | None = None) -> Path:
        if data is None:
            data = np.random.default_rng(0).integers(0, 900, SHAPE).astype(np.int16)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".img":
            image = nib.AnalyzeImage(data[..., None], None)
            image.header.set_zooms((1.0, 1.5, 2.0, 1.0))
        else:
            image = nib.Nifti1Image(
                data, np.diag([1.0, 1.5, 2.0, 1.0]) if affine is None else affine
            )
        nib.save(image, path)
        return path

    return write
