"""Judge the registration of a scan with a template."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from hyps_bids.imaging.agreement import dice
from hyps_bids.imaging.registration import Head, Level, sample, sample_on
from hyps_bids.outputs.labels import HEMISPHERES

#: Voxel size of the comparison, mm.
_SPACING = 2.5
_BINS = 32
#: Figure → its smallest and largest value; scans beyond are refused, or flagged. In the 30 images
#: of docs/standard-space.md, all of which were right, the overlap was 0.94 to 0.97, that of the
#: hippocampi 0.59 to 0.84, scales were 0.98 to 1.33 and volume factors 1.03 to 1.86.
_REFUSED = {"overlap": (0.8, 1.0), "scale": (0.6, 1.8), "volume_factor": (0.4, 3.0)}
_FLAGGED = {
    "overlap": (0.9, 1.0),
    "scale": (0.8, 1.5),
    "volume_factor": (0.8, 2.2),
    "hippocampus": (0.35, 1.0),
    "covered": (0.9, 1.0),
}
#: Scans are refused if neither hippocampus has this Dice; heads that lay wrong had at most 0.12.
_LEAST_DICE = 0.2
#: T1w scans below this similarity are flagged.
_LEAST_SIMILARITY = 0.2


@dataclass(frozen=True)
class Verdict:
    """How good a registration is.

    Attributes
    ----------
    figures : dict of str to float
        As in :data:`hyps_bids.outputs.columns.SPACE_FIGURES`.
    refusal : str
        Code of the reason for which it is refused; empty if it is not.
    flags : tuple of str
        Codes of reasons to look at it.
    """

    figures: dict[str, float]
    refusal: str = ""
    flags: tuple[str, ...] = ()

    @property
    def is_clean(self) -> bool:
        """Whether nothing is conspicuous."""
        return not self.refusal and not self.flags


def judge(template: Head, head: Head, move: np.ndarray, *, same_contrast: bool = False) -> Verdict:
    """Measure how well a scan fits a template, and decide whether it does.

    Parameters
    ----------
    template, head : Head
        What was registered.
    move : numpy.ndarray
        From the template's world to that of the scan, shape (4, 4).
    same_contrast : bool
        Whether both are T1w, so that intensities that have little in common deserve a flag.
    """
    fixed = sample(template, _SPACING, 0)
    moved = sample_on(head, fixed.covered.shape, move @ fixed.affine)
    figures = _sizes(np.linalg.inv(move)) | _overlaps(fixed, moved)
    refusal = _refuse(figures, fixed, moved)
    return Verdict(figures, refusal, () if refusal else tuple(_flag(figures, same_contrast)))


def _sizes(matrix: np.ndarray) -> dict[str, float]:
    """Describe a transform from a scan to a template."""
    linear = matrix[:3, :3]
    left, scales, right = np.linalg.svd(linear)
    turn = left @ right
    turn *= np.sign(np.linalg.det(turn))
    return {
        "scale_least": float(scales.min()),
        "scale_most": float(scales.max()),
        "volume_factor": float(np.linalg.det(linear)),
        "rotation_deg": float(np.degrees(Rotation.from_matrix(turn).magnitude())),
    }


def _overlaps(fixed: Level, moved: Level) -> dict[str, float]:
    """Compare a scan with a template, where the field of view of the scan has voxels."""
    seen, inside = moved.covered, fixed.inside > 0.5
    figures = {
        "covered": float((inside & seen).sum() / inside.sum()),
        "overlap": dice(inside & seen, (moved.inside > 0.5) & seen),
        "similarity": correlation_ratio(fixed.image[inside & seen], moved.image[inside & seen]),
    }
    for i, hemi in enumerate(HEMISPHERES):
        pair = fixed.hippocampi[i] > 0.5, moved.hippocampi[i] > 0.5
        if pair[1].any():
            figures[f"hippocampus_{hemi}"] = dice(*pair)
    return figures


def correlation_ratio(reference: np.ndarray, values: np.ndarray) -> float:
    """Return the share of the variance of values that a function of the reference explains.

    It is 1 for images that differ in contrast only, and 0 for images that have nothing in common.

    Examples
    --------
    >>> ramp = np.linspace(0, 1, 3200)
    >>> round(correlation_ratio(ramp, (ramp - 0.5) ** 2), 2)
    1.0
    """
    if reference.size < _BINS or np.ptp(reference) == 0 or np.ptp(values) == 0:
        return 0.0
    edges = np.quantile(reference, np.linspace(0, 1, _BINS + 1)[1:-1])
    place = np.searchsorted(edges, reference)
    count = np.maximum(np.bincount(place, minlength=_BINS), 1)
    values = values.astype(np.float64)
    means = np.bincount(place, values, _BINS) / count
    return float(1 - np.mean((values - means[place]) ** 2) / values.var())


def _refuse(figures: dict[str, float], fixed: Level, moved: Level) -> str:
    """Return the code of the reason for which a registration is refused, or nothing."""
    own = [figures.get(f"hippocampus_{hemi}", 0.0) for hemi in HEMISPHERES]
    crossed = [
        dice(fixed.hippocampi[1 - i] > 0.5, moved.hippocampi[i] > 0.5)
        for i in range(2)
        if f"hippocampus_{HEMISPHERES[i]}" in figures
    ]
    if max(crossed, default=0.0) > max(own):
        return "sides-swapped"
    if any(
        _is_beyond(name, value, _REFUSED) for name, value in figures.items() if name != "overlap"
    ):
        return "absurd-size"
    if _is_beyond("overlap", figures["overlap"], _REFUSED) or max(own) < _LEAST_DICE:
        return "not-aligned"
    return ""


def _flag(figures: dict[str, float], same_contrast: bool) -> list[str]:
    flags = []
    if same_contrast and figures["similarity"] < _LEAST_SIMILARITY:
        flags.append("dissimilar")
    if _is_beyond("overlap", figures["overlap"], _FLAGGED):
        flags.append("little-overlap")
    if any(_is_beyond(n, v, _FLAGGED) for n, v in figures.items() if n[:5] in ("scale", "volum")):
        flags.append("unusual-size")
    if _is_beyond("covered", figures["covered"], _FLAGGED):
        flags.append("cut-off")
    flags += [
        f"unlike_{hemi}"
        for hemi in HEMISPHERES
        if _is_beyond("hippocampus", figures.get(f"hippocampus_{hemi}", 1.0), _FLAGGED)
    ]
    flags += [f"missing_{hemi}" for hemi in HEMISPHERES if f"hippocampus_{hemi}" not in figures]
    return flags


def _is_beyond(name: str, value: float, bounds: Any) -> bool:
    kind = "scale" if name.startswith("scale") else name
    low, high = bounds.get(kind, (-np.inf, np.inf))
    return not low <= value <= high
