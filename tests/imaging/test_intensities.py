"""Tests of :mod:`hyps_bids.imaging.intensities`: values that are not signal are replaced."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from hyps_bids.imaging import intensities
from hyps_bids.imaging.intensities import _unwrap, mend, scale

SIDE = 48


@pytest.fixture(scope="module")
def head() -> np.ndarray:
    """A bright ball with a long tail of values, in noisy air."""
    rng = np.random.default_rng(0)
    place = np.indices((SIDE,) * 3) - SIDE / 2
    inside = np.linalg.norm(place, axis=0) < SIDE / 3
    tissue = ndimage.gaussian_filter(rng.normal(0, 400, inside.shape), 1.5) + 600
    signal = ndimage.gaussian_filter(np.where(inside, tissue, 0), 0.7)
    vessel = np.linalg.norm(place - 5, axis=0)
    signal *= 1 + 2 * np.exp(-(vessel**2) / 18)
    noise = np.abs(rng.normal(0, 8, signal.shape))
    return np.round(np.maximum(signal, 0) + noise).astype(np.float32)


def spots(head: np.ndarray, value: float, count: int = 20) -> tuple[np.ndarray, np.ndarray]:
    index = tuple(np.random.default_rng(1).integers(4, SIDE - 4, (3, count)))
    mask = np.zeros(head.shape, bool)
    mask[index] = True
    return np.where(mask, np.float32(value), head), mask


UNCHANGED: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "magnitude": lambda x: x,
    "air set to 0": lambda x: np.where(x < 60, 0, x),
    "skull-stripped": lambda x: np.where(x < 300, 0, x),
    "standardized": lambda x: (x - x.mean()) / x.std(),
    "standardized, air set to 0 before": lambda x: (np.where(x < 60, 0, x) - x.mean()) / x.std(),
    "standardized inside, surrounded by air": lambda x: np.pad(
        (np.where(x < 300, 0, x) - 600) / 100, 20, constant_values=-6
    ),
    "real values with noise around zero": lambda x: x - 8,
    "offset": lambda x: x - 1024,
    "inverted": lambda x: x.max() - x,
    "few gray values": lambda x: np.round(x / 200),
    "two gray values": lambda x: (x > 300).astype(np.float32),
    "saturated": lambda x: np.minimum(x, 700),
    "small in the field of view": lambda x: np.pad(np.where(x < 300, 0, x), 40),
}


@pytest.mark.parametrize("kind", UNCHANGED)
def test_ordinary_images_are_unchanged(kind: str, head: np.ndarray) -> None:
    data = UNCHANGED[kind](head).astype(np.float32)
    result, remarks = mend(data)
    assert result.tobytes() == data.tobytes()
    assert not remarks


@pytest.mark.parametrize("unit", [1e-20, 1, 1e20])
@pytest.mark.parametrize("value", [1e5, 4000, -32768, -4096])
def test_few_extreme_voxels_get_the_value_of_their_neighbors(
    value: float, unit: float, head: np.ndarray
) -> None:
    data, mask = spots(head, value)
    result, remarks = mend((data * np.float64(unit)).astype(np.float64))
    expected = scale(head * np.float64(unit))
    np.testing.assert_allclose(result[~mask], expected[~mask], rtol=1e-6)
    ratio = result[mask].mean() / expected[mask].mean()
    assert ratio == pytest.approx(1, abs=0.1)
    assert len(remarks) == 1
    assert str(int(mask.sum())) in remarks[0]


def test_spikes_without_a_gap_are_found_by_their_size(head: np.ndarray) -> None:
    data, mask = spots(head, 0, 400)
    data[mask] = np.geomspace(1000, 1e6, int(mask.sum()))
    result, remarks = mend(data)
    assert result.max() < 20_000
    assert remarks


@pytest.mark.parametrize("value", [1.01, 1.7, 3.0, 30.0])
@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("air", [True, False])
def test_bright_frame_is_removed(air: bool, width: int, value: float, head: np.ndarray) -> None:
    clean = head if air else np.where(head < 60, 0, head)
    data = clean.copy()
    data[:width], data[-width:] = value * head.max(), value * head.max()
    result, remarks = mend(data)
    np.testing.assert_array_equal(result[width:-width], clean[width:-width])
    assert result[:width].max() < 100
    assert len(remarks) == 1


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_frame_is_seen_in_a_sample_of_voxels(
    axis: int, order: Literal["C", "F"], head: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Every eighth voxel would lie in every eighth plane, as of 256³ voxels in real images
    monkeypatch.setattr(intensities, "_SAMPLE", head.size // 8)
    data = head.copy()
    np.moveaxis(data, axis, 0)[1:3] = 1.7 * head.max()
    result, remarks = mend(data.copy(order=order))
    assert result.max() <= head.max()
    assert len(remarks) == 1


@pytest.mark.parametrize("value", [-1024, -4096, -1e6])
@pytest.mark.parametrize("noise", [0, 1])
def test_background_below_zero_is_raised_to_zero(
    value: float, noise: int, head: np.ndarray
) -> None:
    air = head < 60
    below = value + (np.minimum(head, -value / 4) if noise else 0)
    result, remarks = mend(np.where(air, below, head).astype(np.float32))
    np.testing.assert_array_equal(result, np.where(air, 0, head))
    assert len(remarks) == 1


def test_small_padding_is_recognized_by_its_round_value(head: np.ndarray) -> None:
    air = head < 60
    bright = 10 * head
    for slope, step in ((1, None), (1e-3, 1e-3)):
        data = np.where(air, -1000, bright) * np.float32(slope)
        result, remarks = mend(data, step=step)
        np.testing.assert_allclose(result, np.where(air, 0, bright) * slope, rtol=1e-6)
        assert len(remarks) == 1


@pytest.mark.parametrize("sign", [1, -1])
def test_masked_background_within_the_range_is_made_dark(sign: int, head: np.ndarray) -> None:
    # Standardized within a mask, so that the background of 0 is as bright as gray matter.
    inside = head > 300
    values = (sign * (head - head[inside].mean()) / head[inside].std()).astype(np.float32)
    result, remarks = mend(np.where(inside, values, 0))
    assert (result[inside] == values[inside]).all()
    assert len(np.unique(result[~inside])) == 1
    assert np.mean(values[inside] < result[0, 0, 0]) == pytest.approx(0.01, abs=0.001)
    assert len(remarks) == 1
    assert "background of 0 " in remarks[0]


def test_background_and_hot_voxels_together(head: np.ndarray) -> None:
    data, mask = spots(head, 1e5)
    air = (head < 60) & ~mask
    result, remarks = mend(np.where(air, -1024, data).astype(np.float32))
    assert result[air].max() == result.min() == 0
    assert result.max() == head.max()
    assert len(remarks) == 2


@pytest.mark.parametrize("share", [0.001, 0.01, 0.1])
@pytest.mark.parametrize("stored", [True, False])
def test_overflow_of_16_bits_is_undone(share: float, stored: bool, head: np.ndarray) -> None:
    full = np.round(head * (32767 / np.quantile(head, 1 - share)))
    wrapped = full.astype(np.int64).astype(np.int16).astype(np.float32)
    assert wrapped.min() < 0
    slope = 0.25 if stored else 1.0
    result, remarks = mend(wrapped * slope, step=slope if stored else None)
    inside = full < 2**16
    np.testing.assert_array_equal(result[inside], full[inside] * slope)
    assert "16 bits" in remarks[0]


def test_overflow_is_undone_after_scaling(head: np.ndarray) -> None:
    full = np.round(head * (32767 / np.quantile(head, 0.97)))
    wrapped = full.astype(np.int64).astype(np.int16) * np.float32(1e-3)
    result, remarks = mend(wrapped.astype(np.float32))
    inside = full < 2**16
    np.testing.assert_allclose(result[inside], full[inside] * 1e-3, atol=0.5)
    assert "16 bits" in remarks[0]


def test_negative_values_of_16_bits_that_are_no_overflow(head: np.ndarray) -> None:
    # As nibabel stores standardized values in integers
    data = np.round((head - head.min()) / np.ptp(head) * 65535 - 32768).astype(np.float32)
    result, remarks = mend(data, step=1.0)
    assert result.tobytes() == data.tobytes()
    assert not remarks


def test_scaling_is_exact(head: np.ndarray) -> None:
    for exponent in (-60, -20, 40):
        result = scale(np.ldexp(head, exponent))
        factor = result.max() / head.max()
        assert np.log2(factor) % 1 == 0
        assert (result / factor).tobytes() == head.tobytes()


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize("pattern", ["**/sub-*_T1w.nii.gz", "heads/*_T1w*", "m*/**/*0.nii.gz"])
def test_real_images_are_unchanged(pattern: str, shared_data: Path) -> None:
    paths = [p for p in sorted(shared_data.glob(pattern)) if "labels" not in str(p)]
    assert paths
    for path in paths:
        data = np.asarray(nib.load(path).dataobj, dtype=np.float32)
        result, remarks = mend(data)
        assert result.tobytes() == data.tobytes(), path
        assert not remarks, path


@pytest.mark.parametrize("offset", [-32768, -3000])
def test_images_without_positive_values_are_kept(offset: int, head: np.ndarray) -> None:
    data = (np.round(head) + offset).astype(np.float32)
    assert data.max() < 0
    result, _ = mend(data, step=1.0)
    assert np.corrcoef(result.ravel(), head.ravel())[0, 1] > 0.999


def test_symmetric_range_is_no_overflow() -> None:
    # Most voxels are negative, edges are sharp, and values fill the range from -1 to 1.
    data = -np.ones((40, 40, 40), np.float32)
    data[10:30, 10:30, 10:30] = 1
    result, remarks = _unwrap(data, None)
    assert result is data
    assert not remarks
