"""Tests of :mod:`hyps_bids.imaging.content`: what is no magnetic resonance image is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from hyps_bids.errors import BadData
from hyps_bids.imaging.content import refuse_other_content
from tests.raising import raises

PATH = Path("sub-01_T1w.nii.gz")


@pytest.fixture(scope="module")
def head(coarse_head: nib.Nifti1Image) -> np.ndarray:
    """A real whole head, 0 to 255, 4 mm."""
    return np.asarray(coarse_head.dataobj, np.float32)[::2, ::2, ::2]


def tomography(head: np.ndarray, noise: float, soft: float = 40) -> np.ndarray:
    """A head in Hounsfield units: air, a skin of fat, a shell of bone, and soft tissue."""
    body = ndimage.binary_fill_holes(ndimage.binary_closing(head > 30, iterations=2))
    depth = ndimage.distance_transform_edt(body)
    units = np.select([depth == 0, depth <= 1, depth <= 3], [-1000, -90, 1000], soft)
    units = ndimage.gaussian_filter(units.astype(np.float32), 0.4)
    return np.round(units + np.random.default_rng(0).normal(0, noise, head.shape))


def padded(units: np.ndarray, value: float) -> np.ndarray:
    """Surround a circular field of view by padding, as many scanners do."""
    x, y = (np.linspace(-1, 1, side) for side in units.shape[:2])
    return np.where(np.hypot(x[:, None], y)[..., None] < 0.95, units, value)


@pytest.mark.parametrize("padding", [None, -3024])
@pytest.mark.parametrize("noise", [3, 50])
def test_computed_tomography_is_refused(
    noise: float, padding: float | None, head: np.ndarray
) -> None:
    units = tomography(head, noise)
    if padding is not None:
        units = padded(units, padding)
    with raises(BadData, "computed-tomography", PATH):
        refuse_other_content(units, PATH)


def test_label_maps_are_refused(coarse_head: nib.Nifti1Image) -> None:
    smooth = ndimage.uniform_filter(np.asarray(coarse_head.dataobj, np.float32), 3)
    labels = np.digitize(smooth, [25, 60, 110])
    patches = np.indices(labels.shape) // 16
    parcels = np.where(labels == 0, 0, 1000 + patches[0] + 8 * patches[1] + 64 * patches[2])
    for case in (labels > 0, labels, parcels):
        with raises(BadData, "label-map-as-image", PATH, len(np.unique(case))):
            refuse_other_content(case.astype(np.float32), PATH)


IMAGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "real": lambda x: x,
    "dark: 20 levels": lambda x: np.round(x / 255 * 19),
    "darker: 8 levels": lambda x: np.round(x / 255 * 8),
    "saturated": lambda x: np.minimum(x, 120),
    "voxels repeated": lambda x: x[::2, ::2, ::2].repeat(2, 0).repeat(2, 1).repeat(2, 2),
    "slices repeated": lambda x: x[:, :, ::4].repeat(4, 2),
    "tiny field of view": lambda x: x[20:30, 25:35, 20:30],
    "background of -1000": lambda x: np.where(x < 20, -1000, 8 * x),
    "background of -1000, dark": lambda x: np.where(x < 20, -1000, x),
    "padding of -1024 around air": lambda x: padded(8 * x, -1024),
    "offset": lambda x: 8 * x - 1000,
    "standardized, in large units": lambda x: 1000 * (x - x.mean()) / x.std(),
    "standardized in a mask": lambda x: np.where(x > 60, np.round(x) - 110, 0),
    "one voxel darker than air": lambda x: np.where(
        np.arange(x.size).reshape(x.shape) == x.size // 2, -1, np.where(x > 60, x, 0)
    ),
    "air and padding": lambda x: padded(np.where(x > 60, x, 0), 100),
    "nothing on some slices": lambda x: x * (np.arange(x.shape[2]) > 0.8 * x.shape[2]),
}


@pytest.mark.parametrize("kind", IMAGES)
def test_gray_values_are_accepted(kind: str, head: np.ndarray) -> None:
    refuse_other_content(IMAGES[kind](head).astype(np.float32), PATH)


@pytest.mark.slow
@pytest.mark.shared
def test_real_images_are_accepted_and_real_label_maps_refused(shared_data: Path) -> None:
    for path in sorted(shared_data.glob("**/*.nii.gz")):
        # Labels of the hippocampi alone are not on every slice.
        if path.parent.name in ("labelsTr", "malf") and "T1w" not in path.name:
            continue
        data = np.asarray(nib.load(path).dataobj, np.float32)
        if "dseg" in path.name or path.parent.name == "labelmaps":
            with raises(BadData, "label-map-as-image", path):
                refuse_other_content(data, path)
        else:
            refuse_other_content(data, path)
