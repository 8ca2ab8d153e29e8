"""Change that is found where the true change is known: made scans of heads on other days."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import ndimage

from hyps_bids.evaluation.atrophy import Atrophy, scan_again, shrink_smoothly
from hyps_bids.evaluation.heads import Head, head_from_result
from hyps_bids.evaluation.tables import head_name
from hyps_bids.imaging.conform import conform
from hyps_bids.imaging.volumes import measure
from hyps_bids.longitudinal.pipeline import FollowedSide, TimePoint, follow
from hyps_bids.outputs.labels import WHOLE
from hyps_bids.segmentation.inference import Network, cached_adapted
from hyps_bids.segmentation.pipeline import Pipeline, Result

#: Shares of their volume that hippocampi lose; the first is no change.
LEVELS = (0.0, 0.01, 0.02, 0.05)


def evaluate_longitudinal(
    pipeline: Pipeline,
    paths: Sequence[Path],
    *,
    levels: Sequence[float] = LEVELS,
    repeats: int = 4,
    seed: int = 0,
) -> pd.DataFrame:
    """Make pairs of scans between which hippocampi have shrunk, and compare found with true change.

    Both scans of a pair are made of the same head, each with a movement, noise, bias field and
    contrast of its own.

    Parameters
    ----------
    pipeline : Pipeline
        The networks.
    paths : sequence of Path
        T1w images.
    levels : sequence of float
        Shares that all hippocampi lose, 0 for none.
    repeats : int
        Number of first scans of each head; each is followed by one scan at every level.
    seed : int
        Of all that is random.

    Returns
    -------
    pandas.DataFrame
        One row per pair, side, part and method (``alone``: each scan on its own; ``volume`` and
        ``bsi``: the longitudinal stream): true_percent, change_percent, and reversed_percent, the
        change from the second to the first scan, for pairs without change.
    """
    network = cached_adapted(pipeline.adapter, pipeline.base, pipeline.device)
    rows = [
        {"id": head_name(path), **row}
        for number, path in enumerate(paths)
        for row in _rows_of_head(pipeline, network, path, levels, repeats, (seed, number))
    ]
    table = pd.DataFrame(rows)
    table.attrs["summary"] = summarize_longitudinal(table)
    return table


def summarize_longitudinal(table: pd.DataFrame) -> dict[str, float]:
    """Summarize by method and by whole hippocampi or parts.

    For pairs without true change these are the standard deviation and the mean of the change
    (percent), and the mean absolute difference between the change and the negative of that found
    in the opposite order of time. For all pairs they are the slope of the regression of the found
    on the true change, and the standard deviation around it.
    """
    summary: dict[str, float] = {}
    kinds = table["part"].where(table["part"] == WHOLE, "parts")
    for (method, kind), rows in table.groupby(["method", kinds], sort=False):
        name = f"{method}_{kind}"
        still = rows[rows["true_percent"] == 0]
        summary[f"{name}_sd"] = still["change_percent"].std()
        summary[f"{name}_mean"] = still["change_percent"].mean()
        if still["reversed_percent"].notna().any():
            both = still["change_percent"] + still["reversed_percent"]
            summary[f"{name}_order"] = both.abs().mean()
        known = rows.dropna(subset=["change_percent"])
        if known["true_percent"].nunique() > 1:
            slope, start = np.polyfit(known["true_percent"], known["change_percent"], 1)
            left = known["change_percent"] - slope * known["true_percent"] - start
            summary |= {f"{name}_slope": slope, f"{name}_residual_sd": left.std()}
        summary[f"{name}_missing"] = float(rows["change_percent"].isna().mean())
    return {name: round(float(value), 4) for name, value in summary.items()}


def time_point(result: Result) -> TimePoint:
    """Take from the results of a scan what the longitudinal stream needs."""
    found = result.localization
    centers = {hemi: place.center for hemi, place in found.hippocampi.items() if place}
    return TimePoint(result.image, found.intracranial, found.affine, centers)


def _rows_of_head(
    pipeline: Pipeline,
    network: Network,
    path: Path,
    levels: Sequence[float],
    repeats: int,
    seed: tuple[int, int],
) -> Iterator[dict]:
    result = pipeline.run(conform(path))
    head = head_from_result(result)
    coefficients = ndimage.spline_filter(head.data, 3, np.float32)
    atrophies = {level: _shrink(head, result, level) for level in levels}
    for repeat in range(repeats):
        rng = np.random.default_rng([*seed, repeat])
        first = pipeline.run(scan_again(head, {}, rng, coefficients))
        for level in levels:
            second = pipeline.run(scan_again(head, atrophies[level], rng, coefficients))
            for row in _changes(network, first, second, is_same=level == 0):
                atrophy = atrophies[level].get(row["hemi"])
                parts = [*second.segmentation.parts, WHOLE]
                label = (parts.index(row["part"]) + 1) % len(parts)
                true = 100 * atrophy.change.get(label, np.nan) if atrophy else np.nan
                yield {"repeat": repeat, "level": level, "true_percent": true, **row}


def _shrink(head: Head, result: Result, share: float) -> dict[str, Atrophy]:
    """Shrink both hippocampi, one after the other, in the undeformed head."""
    shrunk = {}
    for hemi, side in result.restored.items():
        labels = np.zeros(head.data.shape, np.uint8)
        labels[side.region] = side.labels
        shrunk[hemi] = shrink_smoothly(head, labels, share)
    return shrunk


def _changes(network: Network, first: Result, second: Result, *, is_same: bool) -> Iterator[dict]:
    """Yield the change of each side and part by each method."""
    points = [time_point(first), time_point(second)]
    followed = follow(points, network)
    reverse = follow(points[::-1], network) if is_same else None
    parts = [*first.segmentation.parts, WHOLE]
    alone = [_volumes(first), _volumes(second)]
    for hemi in sorted(alone[0].keys() & alone[1].keys()):
        found: Mapping[str, np.ndarray | None] = {
            "alone": 100 * (alone[1][hemi] / alone[0][hemi] - 1),
            **_percent(followed.sides.get(hemi)),
        }
        back = _percent(reverse.sides.get(hemi)) if reverse else {}
        for method, change in found.items():
            for k, part in enumerate(parts):
                row = {"hemi": hemi, "part": part, "method": method}
                value = np.nan if change is None else change[k]
                other = back.get(method)
                reversed_value = np.nan if other is None else other[k]
                yield row | {"change_percent": value, "reversed_percent": reversed_value}


def _percent(side: FollowedSide | None) -> dict[str, np.ndarray | None]:
    """Return the change from the first to the second time point of each method, percent."""
    if side is None:
        return {"volume": None, "bsi": None}
    return {
        "volume": 100 * (side.volumes[1] / side.volumes[0] - 1),
        "bsi": 100 * side.boundary_shift[1] / side.volumes[0],
    }


def _volumes(result: Result) -> dict[str, np.ndarray]:
    return {
        hemi: np.array([row.volume_mm3 for row in measure(side, result.image.affine)])
        for hemi, side in result.restored.items()
    }
