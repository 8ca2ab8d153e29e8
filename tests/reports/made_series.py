"""A series of scans over time, written as the participant level does, with chosen figures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from scipy import ndimage

from hyps_bids.outputs.columns import ANNUAL_CHANGE_COLUMNS, LONGITUDINAL_COLUMNS, SERIES_QC_COLUMNS
from hyps_bids.outputs.labels import label_rows, label_table
from hyps_bids.outputs.names import SEG_PREFIX, sidecar_path
from hyps_bids.outputs.scan import Scan
from hyps_bids.outputs.series import Series, time_point_paths
from hyps_bids.outputs.writing import write_table
from hyps_bids.reports.scan_images import Voxels

#: Volume of each structure at the first scan, mm³; the sides shrink by 2 and 4 % per year.
VOLUMES = {"anterior": 1000.0, "posterior": 1500.0, "whole": 2500.0}
RATES = {"L": -0.02, "R": 0.0}
WHY_REFUSED = "These do not look like the same head: the <masks> overlap by 0.71."
WHY_REVIEWED = "The volumes and the boundary shift disagree at this scan."


@dataclass(frozen=True)
class Point:
    """One scan of a made series."""

    stem: str
    years: float | None
    status: str = "used"
    missing: str = ""
    reasons: str = ""


def write_series(
    output: Path, points: Sequence[Point], head: tuple[Voxels, Voxels] | None = None
) -> Series:
    """Write the tables of a series, and its images if there is a head to make them of."""
    scans = [Scan.from_stem(point.stem) for point in points]
    series = Series.of(scans[0])
    paths = series.paths(output)
    paths["qc"].parent.mkdir(parents=True, exist_ok=True)
    used = [point for point in points if point.status == "used"]
    write_table(output / f"{SEG_PREFIX}_dseg.tsv", label_table(("anterior", "posterior")))
    morph = pd.DataFrame([row for k, p in enumerate(used) for row in _morph(p, k + 1, series)])
    _write(paths["morph"], morph, LONGITUDINAL_COLUMNS)
    _write(paths["annual"], _annual(used, series), ANNUAL_CHANGE_COLUMNS)
    _write(paths["qc"], _qc(points, series), SERIES_QC_COLUMNS)
    described = {"mask_overlap": {"Description": "Dice of the masks."}, "Fingerprint": "made"}
    sidecar_path(paths["qc"]).write_text(json.dumps(described))
    if head is not None:
        for k, point in enumerate(used):
            _write_images(output, point, *_made(*head, k))
    return series


def _write(path: Path, table: pd.DataFrame, columns: dict[str, str]) -> None:
    write_table(path, table.reindex(columns=[*columns]))


def _morph(point: Point, visit: int, series: Series) -> list[dict[str, object]]:
    rows = []
    years = (visit - 1) if point.years is None else point.years
    for index, name, hemi, part in _structures():
        first = VOLUMES[part]
        volume = first * (1 + RATES[hemi] * years) if hemi not in point.missing else np.nan
        rows.append(
            {
                "suffix": series.suffix,
                "scan": point.stem,
                "session_id": Scan.from_stem(point.stem).session,
                "visit": visit,
                "years": point.years,
                "index": index,
                "name": name,
                "hemi": hemi,
                "part": part,
                "volume_mm3": volume,
                "volume_mm3_se": 0.005 * first,
                "change_mm3": volume - first,
                "change_percent": 100 * (volume / first - 1),
                "bsi_mm3": 0.9 * (volume - first),
                "bsi_percent": 90 * (volume / first - 1),
            }
        )
    return rows


def _structures() -> list[tuple[int | None, str, str, str]]:
    rows: list[tuple[int | None, str, str, str]] = []
    for hemi in "LR":
        parts = [row[:4] for row in label_rows(("anterior", "posterior")) if row[2] == hemi]
        rows += [*parts, (None, f"{hemi} hippocampus", hemi, "whole")]
    return rows


def _annual(used: Sequence[Point], series: Series) -> pd.DataFrame:
    rows = []
    timed = all(point.years is not None for point in used)
    span = max((point.years or 0 for point in used), default=0) if timed else np.nan
    for _, _, hemi, part in _structures():
        for method, factor in (("volume", 1.0), ("bsi", 0.9)):
            rate = 100 * factor * RATES[hemi]
            total = rate * (span if timed else len(used) - 1)
            start = next((p.years or 0 for p in used if hemi not in p.missing), 0)
            rows.append(
                {
                    "suffix": series.suffix,
                    "hemi": hemi,
                    "part": part,
                    "method": method,
                    "n_scans": len(used),
                    "span_years": span,
                    "time_source": "acq_time" if timed else "name",
                    "baseline_mm3": VOLUMES[part] * (1 + rate / 100 * start),
                    "change_percent": total,
                    "change_percent_low": total - 1,
                    "change_percent_high": total + 1,
                    "mm3_per_year": rate / 100 * VOLUMES[part] if timed else np.nan,
                    "percent_per_year": rate if timed else np.nan,
                    "percent_per_year_low": rate - 0.5 if timed else np.nan,
                    "percent_per_year_high": rate + 0.5 if timed else np.nan,
                    "remarks": None if timed else "The times of the scans are not known",
                }
            )
    return pd.DataFrame(rows)


def _qc(points: Sequence[Point], series: Series) -> pd.DataFrame:
    rows = []
    for k, point in enumerate(points):
        good = point.status == "used"
        rows.append(
            {
                "suffix": series.suffix,
                "scan": point.stem,
                "session_id": Scan.from_stem(point.stem).session,
                "status": point.status,
                "reason": None if good else WHY_REFUSED,
                "review": "yes" if point.reasons or not good else "no",
                "reasons": point.reasons or None,
                "flags": None if good else "different-head",
                "mask_overlap": 0.971 if good else 0.712,
                "residual": 0.31,
                "rotation_deg": 1.25 * k,
                "translation_mm": 2.5,
            }
        )
    return pd.DataFrame(rows)


def _made(anatomy: Voxels, labels: Voxels, k: int) -> tuple[Voxels, Voxels]:
    """Make time point `k` on a grid of 1 mm: the left hippocampus loses its border."""
    content = labels.content()
    assert content is not None
    low, high = labels.part(content).extent(0.5)
    grid = np.eye(4)
    grid[:3, 3] = np.floor(low) - 8
    shape = tuple(int(n) for n in np.ceil(high) - np.floor(low) + 17)
    sampled = []
    for voxels, order in ((anatomy, 1), (labels, 0)):
        matrix = np.linalg.inv(voxels.affine) @ grid
        data = np.asarray(voxels.data, np.float32)
        sampled.append(
            ndimage.affine_transform(data, matrix[:3, :3], matrix[:3, 3], shape, order=order)
        )
    image, found = sampled
    rng = np.random.default_rng(k)
    image = image + rng.normal(0, 0.01 * image.max(), image.shape)
    left = (found == 1) | (found == 2)
    lost = left & ~ndimage.binary_erosion(left, iterations=k) if k else np.zeros_like(left)
    image[lost] *= 0.5
    found[lost] = 0
    return Voxels(image.astype(np.float32), grid), Voxels(found.astype(np.uint8), grid)


def _write_images(output: Path, point: Point, anatomy: Voxels, labels: Voxels) -> None:
    paths = time_point_paths(Scan.from_stem(point.stem), output)
    if point.missing:
        gone = (1, 2) if point.missing == "L" else (3, 4)
        labels.data[np.isin(labels.data, gone)] = 0
    for kind, voxels in (("midway_image", anatomy), ("midway_dseg", labels)):
        paths[kind].parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(voxels.data, voxels.affine), paths[kind])
