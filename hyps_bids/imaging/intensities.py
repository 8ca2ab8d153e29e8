"""Make gray values fit for statistics: finite, of ordinary size, and all of them signal.

A few voxels of 100,000, or a background of -1024, change minimum, mean and variance of a whole
image. They are recognized by a gap in the distribution of values, which anatomy does not have, and
replaced. Images without such values are returned as they are, bit by bit.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from scipy import ndimage

from hyps_bids.errors import BadData

#: Largest fraction of voxels that are not finite; a masked background has fewer.
NONFINITE_LIMIT = 0.9
#: Sizes of the largest value that are left alone, and the exponent of two that others get.
_ORDINARY = (0.5, 2.0**24)
_EXPONENT = 10
#: Values above this are divided by it, so that differences do not overflow.
_HUGE = 2.0**1000
#: Smallest range of values, as a share of the largest, that single precision represents well.
_CONTRAST = 1e-3
#: Relative gaps above and below which values are not signal. In 230 real images, the largest gap
#: among bright values is 0.7, in a small crop; 0.2 in whole heads.
_BRIGHT_GAP, _DARK_GAP = 1.0, 0.5
#: Values above this multiple of the 99th percentile are no signal either; 4.4 in real images.
_BRIGHTEST = 12.0
#: Largest whole number that is taken for padding where it is not far below the signal.
_PADDING = -100
#: Largest share of bright (of voxels above the background) and of dark voxels that are replaced.
_BRIGHT_SHARE, _DARK_SHARE = 0.5, 0.02
#: Smallest share of the voxels above the background that a frame or burned-in text has.
_PAINTED_SHARE = 0.001
#: Smallest share of voxels that a masked background has, and of the others that are darker than it
#: where it is no air.
_MASKED_SHARE, _DARKER_SHARE = 0.05, 0.02
#: Number of voxels up to which replaced voxels get a median of their neighbors, not the nearest.
_FEW = 50_000
#: Number of voxels on which percentiles are computed, about.
_SAMPLE = 2_000_000
#: Largest share of voxels that overflow.
_OVERFLOW_SHARE = 0.1
#: Integers of 16 bits.
_WRAP = 2.0**16


def make_finite(data: np.ndarray, path: Path) -> tuple[np.ndarray, list[str]]:
    """Take values that are not finite as background, and say how many there are.

    Raises
    ------
    BadData
        If hardly any voxel is finite.
    """
    # Minimum and maximum show NaN and infinity, and need no memory.
    if np.isfinite((data.min(), data.max())).all():
        return data, []
    finite = np.isfinite(data)
    fraction = 1 - finite.mean()
    if fraction > NONFINITE_LIMIT:
        raise BadData(
            f"{path}: {fraction:.0%} of the voxels are NaN or infinite; convert it again",
            code="mostly-nonfinite",
        )
    background = np.clip(0, data[finite].min(), data[finite].max())
    remark = f"{fraction:.2%} of voxels not finite, taken as background"
    return np.where(finite, data, background), [remark]


def mend(data: np.ndarray, step: float | None = None) -> tuple[np.ndarray, list[str]]:
    """Replace values that are not signal, and scale values that are extremely large or small.

    Parameters
    ----------
    data : numpy.ndarray
        Finite gray values, float32 or float64, shape ``(x, y, z)``.
    step : float, optional
        The value of the integer 1, if the file holds signed integers of 16 bits.

    Returns
    -------
    data : numpy.ndarray
        float32.
    remarks : list of str
        What was replaced.
    """
    remarks: list[str] = []
    low, high = float(data.min()), float(data.max())
    if max(-low, high) > _HUGE:
        data = data / _HUGE
    if low < 0 < high:
        for repair in (_unwrap, _raise_padding):
            data, about = repair(data, step)
            remarks += about
    if low < high:
        # The minimum of a whole image takes time, and only a repair or the division changes it.
        unchanged = not remarks and max(-low, high) <= _HUGE
        data, about = _darken_background(data, low if unchanged else float(data.min()))
        remarks += about
        data, about = _replace_outliers(data)
        remarks += about
    return scale(data), remarks


def scale(data: np.ndarray) -> np.ndarray:
    """Bring values to a size that statistics in single precision can handle.

    Values of ordinary size are kept. Others are multiplied by a power of two, which is exact, or
    freed from an offset that is far larger than their range.

    Examples
    --------
    >>> scale(np.array([0.0, 2.0**-61, 2.0**-60])).tolist()
    [0.0, 256.0, 512.0]
    >>> scale(np.array([0.0, 100.0])).tolist()
    [0.0, 100.0]
    """
    low, high = float(data.min()), float(data.max())
    largest = max(abs(low), abs(high))
    if low == high:
        return data.astype(np.float32, copy=False)
    if high / largest - low / largest < _CONTRAST:
        data = data.astype(np.float64) / largest
        data = (data - data.min()) / np.ptp(data)
    elif not _ORDINARY[0] <= largest <= _ORDINARY[1]:
        exponent = int(np.frexp(largest)[1])
        data = np.ldexp(data.astype(np.float64), _EXPONENT - exponent)
    return data.astype(np.float32, copy=False)


def _unwrap(data: np.ndarray, step: float | None) -> tuple[np.ndarray, list[str]]:
    """Undo the overflow of 16-bit integers, by which the brightest voxels became negative."""
    low, high = float(data.min()), float(data.max())
    if low >= 0 or high < (period := _period(data, low, high, step)) / 4:
        return data, []
    negative = data < 0
    # Only the brightest voxels overflow.
    if negative.mean() > _OVERFLOW_SHARE:
        return data, []
    # If these voxels were bright, they lie among bright ones.
    before = after = 0.0
    for axis in range(3):
        edge = np.diff(negative, axis=axis)
        jumps = np.abs(np.diff(data, axis=axis)[edge]).astype(np.float64)
        before += jumps.sum()
        after += np.abs(period - jumps).sum()
    if after > before / 2:
        return data, []
    words = f"{negative.mean():.2%} of voxels exceeded 16 bits and had become negative; restored"
    return np.where(negative, data + data.dtype.type(period), data), [words]


def _period(data: np.ndarray, low: float, high: float, step: float | None) -> float:
    """Find by how much an overflow of 16 bits changes values."""
    if step is not None:
        return _WRAP * step
    if low >= -_WRAP / 2 and high < _WRAP / 2 and not (data[data < 0] % 1).any():
        return _WRAP
    # Scaled afterwards, the values still fill the range of 16 bits.
    return high - low if 0.9 < high / max(-low, 1e-6 * high) < 1.1 else math.inf


def _raise_padding(data: np.ndarray, step: float | None) -> tuple[np.ndarray, list[str]]:
    """Set a background far below zero to zero.

    Real negative values spread from zero downwards, as in noise and in standardized images; those
    of padding leave the values just below zero empty.
    """
    if not data.min() < 0:
        return data, []
    negative = data[data < 0]
    level = float(np.median(negative))
    deep = data < level / 2
    count = int(deep.sum())
    shallow = len(negative) - count
    positive = data[data > 0]
    if (
        not positive.size
        or count < _DARK_SHARE * data.size
        or shallow > min(0.1 * count, 0.05 * positive.size)
    ):
        return data, []
    if -level <= _DARK_GAP * float(np.percentile(positive, 99)):
        # A small distance may be that of standardized values; those are no round numbers.
        whole = level / (step or 1.0)
        constant = np.mean(negative == level) > 0.99
        if not constant or abs(whole - round(whole)) > 1e-3 or whole > _PADDING:
            return data, []
    return np.maximum(data, 0), [f"background of {level:.6g} ({count / data.size:.0%}) taken as 0"]


def _darken_background(data: np.ndarray, low: float) -> tuple[np.ndarray, list[str]]:
    """Make a constant background as dark as the darkest tissue.

    The background is 0 where masked images were standardized, or have values around 0 as the ratio
    images of MP2RAGE. The networks know air as dark as fluid is in T1w images, or darker.
    """
    corners = data[:: data.shape[0] - 1, :: data.shape[1] - 1, :: data.shape[2] - 1]
    level = corners.flat[0]
    if (corners != level).any() or not low < level:
        return data, []
    background = data == level
    tissue = data[~background]
    if background.mean() < _MASKED_SHARE or np.mean(tissue < level) < _DARKER_SHARE:
        return data, []
    dark = np.percentile(tissue, 1).astype(data.dtype)
    words = f"background of {level:.6g} ({background.mean():.0%}) taken as {dark:.6g}"
    return np.where(background, dark, data), [words]


def _replace_outliers(data: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Replace voxels that are far brighter or far darker than all others by their neighbors."""
    remarks = []
    # Another order than that of the memory would take a copy. Percentiles of a sorted sample are
    # cheap.
    flat = data.ravel(order="K")
    step = max(1, data.size // _SAMPLE)
    # A step that divides the length of a row would always meet the same planes, and miss a frame.
    while math.gcd(step, data.size) > 1:
        step += 1
    sample = np.sort(flat[::step])
    low = float(np.percentile(sample, 1))
    bad = np.zeros(data.shape, dtype=bool)
    if (painted := _painted(flat, sample, low)) is not None:
        bad = data == painted
        remarks.append(f"{int(bad.sum())} voxels of the value {painted:.6g}, as of a frame or text")
        flat, sample = flat[flat != painted], sample[sample != painted]
    high = float(np.percentile(sample, 99))
    for name, found in (("brighter", _bright(flat, sample, low)), ("darker", _dark(flat, high))):
        if found is not None:
            mask = ((data > found) if name == "brighter" else (data < found)) & ~bad
            extreme = data[mask].max() if name == "brighter" else data[mask].min()
            remarks.append(f"{int(mask.sum())} voxels far {name} than others (up to {extreme:.4g})")
            bad |= mask
    remarks = [f"{words} replaced by their neighbors" for words in remarks]
    return (_fill(data, bad) if remarks else data), remarks


def _painted(flat: np.ndarray, sample: np.ndarray, low: float) -> float | None:
    """Find a bright value that many voxels have, although hardly any have one a little lower."""
    foreground = sample[sample > low]
    if foreground.size < 100:
        return None
    values, counts = np.unique(
        foreground[foreground >= np.percentile(foreground, 98)], return_counts=True
    )
    value = values[counts.argmax()]
    others = foreground[foreground < value]
    usual = float(np.percentile(others, 90)) if others.size else low
    if usual <= low or value - low <= 1.5 * (usual - low):
        return None
    count = int((flat == value).sum())
    lower = int(((flat > low + 0.7 * (value - low)) & (flat < value)).sum())
    share = count / (foreground.size * (flat.size / sample.size))
    return float(value) if share >= _PAINTED_SHARE and lower <= 0.1 * count else None


def _bright(flat: np.ndarray, sample: np.ndarray, low: float) -> float | None:
    """Find the largest value that is signal; None if all values are."""
    foreground = sample[sample > low]
    if foreground.size < 100:
        return None
    start, high = np.percentile(foreground, (100 * (1 - _BRIGHT_SHARE), 99))
    top = np.sort(np.concatenate((foreground[foreground >= start], flat[flat > high])))
    steps = np.flatnonzero(np.diff(top) > _BRIGHT_GAP * (top[:-1] - low))
    limits = [float(top[steps[0]])] if steps.size else []
    # Without frames that raise the percentile, values may also trail off without a gap.
    usual = np.percentile(foreground[foreground <= (limits[0] if limits else np.inf)], 99)
    cutoff = low + _BRIGHTEST * (float(usual) - low)
    if top[-1] > cutoff and not limits:
        limits.append(cutoff)
    return min(limits, default=None)


def _dark(flat: np.ndarray, high: float) -> float | None:
    """Find the smallest value that is signal; None if all values are."""
    count = int(_DARK_SHARE * flat.size)
    if not flat.min() < 0 or count < 1:
        return None
    bottom = np.sort(np.partition(flat, count)[: count + 1])
    steps = np.flatnonzero(np.diff(bottom) > _DARK_GAP * (high - bottom[1:]))
    return float(bottom[steps[-1] + 1]) if steps.size else None


def _fill(data: np.ndarray, bad: np.ndarray) -> np.ndarray:
    """Replace voxels by the median of their neighbors that are not replaced, inwards."""
    if bad.sum() > _FEW:
        nearest = ndimage.distance_transform_edt(bad, return_distances=False, return_indices=True)
        filled: np.ndarray = data[tuple(nearest)]
        return filled
    padded = np.pad(data, 1, mode="edge")
    holes = np.pad(bad, 1, constant_values=True)
    padded[holes] = np.nan
    inner = np.pad(bad, 1)
    around = np.array(np.meshgrid(*[(-1, 0, 1)] * 3)).reshape(3, -1)
    while (index := np.argwhere(inner)).size:
        places = tuple((index[:, axis, None] + around[axis]) for axis in range(3))
        values = padded[places]
        known = np.isfinite(values).any(axis=1)
        if not known.any():
            break
        new = np.nanmedian(values[known], axis=1)
        done = tuple(index[known].T)
        padded[done] = new
        inner[done] = False
    return padded[1:-1, 1:-1, 1:-1]
