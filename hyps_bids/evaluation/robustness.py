"""Whether wrong results are noticed: spoiled and damaged images, and healthy heads."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd

from hyps_bids.errors import BadData
from hyps_bids.evaluation.calibration import networks_of
from hyps_bids.evaluation.damage import LOSSES
from hyps_bids.evaluation.heads import Head, Spoiled, segment_head
from hyps_bids.evaluation.tables import head_name
from hyps_bids.evaluation.variants import spoil, variants
from hyps_bids.imaging.conform import ConformedImage, conform
from hyps_bids.imaging.roi import shifted
from hyps_bids.imaging.volumes import RestoredSide
from hyps_bids.outputs.scan_files import ScanMeasures
from hyps_bids.segmentation.measures import measure_scan
from hyps_bids.segmentation.pipeline import Pipeline, Result, restore_sides

#: Results with a lower Dice are wrong, and must be flagged.
WRONG = 0.75

_log = logging.getLogger("hyps_bids")


def evaluate_robustness(
    pipeline: Pipeline, paths: Sequence[Path], kinds: Iterable[str] | None = None, *, seed: int = 0
) -> pd.DataFrame:
    """Spoil heads in known ways, and compare what is found with what was found in the good image.

    Parameters
    ----------
    pipeline : Pipeline
        The networks.
    paths : sequence of Path
        Good T1w images.
    kinds : iterable of str, optional
        As for :func:`hyps_bids.evaluation.variants.variants`; all by default.
    seed : int
        Seed of what is random in the variants.

    Returns
    -------
    pandas.DataFrame
        One row per head, kind, strength and side; see :func:`variant_rows`. Rows of the kind
        ``none`` are those of the good image.
    """
    chosen = variants(None if kinds is None else list(kinds))
    rows: list[dict[str, object]] = []
    for path in paths:
        head, result = segment_head(pipeline, conform(path))
        good = Spoiled(head.data, head.affine)
        about = {"id": head_name(path), "kind": "none", "strength": ""}
        rows += _rows(pipeline, head, good, result, about)
        for number, (kind, strength) in enumerate(chosen, 1):
            spoiled = spoil(head, kind, strength, seed)
            about = {"id": head_name(path), "kind": kind, "strength": strength}
            rows += variant_rows(pipeline, head, spoiled, about)
            _log.info("%s: %s %s (%d of %d)", path, kind, strength, number, len(chosen))
    table = pd.DataFrame(rows)
    table.attrs["summary"] = summarize_robustness(table)
    return table


def variant_rows(
    pipeline: Pipeline, head: Head, spoiled: Spoiled, about: dict[str, str]
) -> list[dict[str, object]]:
    """Segment a spoiled image as if it came from a file, and compare each side with the truth.

    Returns
    -------
    list of dict
        One per side that is known in the head, beginning with `about`: hemi; refused (code of the
        error); visible (share of the true hippocampus in the field of view); remains (true
        voxels, as a share of those in the good image); found; dice (of all true voxels); flags;
        review; silent (wrong, but not flagged); and all quality measures.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "spoiled_T1w.nii"
        nib.save(nib.Nifti1Image(spoiled.data, spoiled.affine), path)
        try:
            result = pipeline.run(conform(path))
        except BadData as error:
            return list(_rows(pipeline, head, spoiled, error.code, about))
    return list(_rows(pipeline, head, spoiled, result, about))


def evaluate_healthy(pipeline: Pipeline, paths: Iterable[Path]) -> pd.DataFrame:
    """Segment good images of healthy people, whose flags are false alarms.

    Returns
    -------
    pandas.DataFrame
        One row per image: id, review, flags, and all quality measures.
    """
    rows = []
    for path in paths:
        measures = _measure(pipeline, pipeline.run(conform(path)))
        row = {"id": head_name(path), "review": bool(measures.flags)}
        rows.append(row | {"flags": ",".join(measures.flags)} | dict(measures.figures))
    table = pd.DataFrame(rows)
    flags = table["flags"].str.split(",").explode()
    table.attrs["summary"] = {
        "heads": len(table),
        "heads_flagged": round(float(table["review"].mean()), 4),
        **{name: int(count) for name, count in flags[flags != ""].value_counts().items()},
    }
    return table


def summarize_robustness(table: pd.DataFrame) -> dict[str, float]:
    """Count the variants, and those that are wrong without a flag."""
    spoiled = table[table["kind"] != "none"]
    silent = spoiled[spoiled["silent"]]
    lost = silent["kind"].isin(LOSSES)
    each = ["id", "kind", "strength"]
    wrong = spoiled[spoiled["dice"] < WRONG]
    good = table[table["kind"] == "none"].drop_duplicates("id")
    return {
        "variants": len(spoiled.drop_duplicates(each)),
        "variants_wrong": len(wrong.drop_duplicates(each)),
        "variants_flagged": len(spoiled[spoiled["review"]].drop_duplicates(each)),
        "variants_refused": len(spoiled[spoiled["refused"] != ""].drop_duplicates(each)),
        "variants_silently_wrong": len(silent.drop_duplicates(each)),
        "lost_sides_segmented_silently": int(lost.sum()),
        "heads_flagged": round(float(good["review"].mean()), 4),
    } | {
        f"silently_wrong_{kind}": len(rows.drop_duplicates(each))
        for kind, rows in silent.groupby("kind")
    }


def _measure(pipeline: Pipeline, result: Result) -> ScanMeasures:
    return measure_scan(
        result.image,
        result.localization,
        result.segmentation,
        result.restored,
        networks_of(pipeline),
    )


def _rows(
    pipeline: Pipeline, head: Head, spoiled: Spoiled, result: Result | str, about: dict[str, str]
) -> Iterator[dict[str, object]]:
    truth, visible = spoiled.hippocampi(head), spoiled.visible(head)
    refused, flags = "", tuple[str, ...]()
    scores: dict[str, float] = {}
    figures: dict[str, float] = {}
    if isinstance(result, str):
        refused = result
    else:
        measures = _measure(pipeline, result)
        flags, figures = measures.flags, measures.figures
        scores = _scores(result, measures, head, spoiled)
    for hemi, mask in truth.items():
        score = scores.get(hemi, np.nan)
        row: dict[str, object] = {
            **about,
            "hemi": hemi,
            "refused": refused,
            "visible": visible[hemi],
            "remains": mask.sum() / head.sides[hemi].sum(),
            "found": hemi in scores,
            "dice": score,
            "silent": score < WRONG and not flags,
            "review": bool(flags),
            "flags": ",".join(flags),
        }
        yield row | {_plain(n, hemi): v for n, v in figures.items() if _concerns(n, hemi)}


def _concerns(name: str, hemisphere: str) -> bool:
    return name[-2:] not in ("_L", "_R") or name.endswith(f"_{hemisphere}")


def _plain(name: str, hemisphere: str) -> str:
    return name.removesuffix(f"_{hemisphere}")


def _scores(
    result: Result, measures: ScanMeasures, head: Head, spoiled: Spoiled
) -> dict[str, float]:
    """Compute the Dice of each side that was found and is known."""
    grid, truth = spoiled.grid(head), spoiled.hippocampi(head)
    grids = dict.fromkeys(truth, (head.data.shape, grid))
    restored = restore_sides(
        result.image,
        replace(
            result.segmentation,
            sides={h: s for h, s in result.segmentation.sides.items() if h in truth},
        ),
        grids,
    )
    return {
        hemi: _dice(side, truth[hemi], grid, result)
        for hemi, side in restored.items()
        if hemi in measures.volumes
    }


def _dice(side: RestoredSide, truth: np.ndarray, grid: np.ndarray, result: Result) -> float:
    """Compare a side with all true voxels; what is outside the image does not count as found."""
    ours = (side.labels > 0) & _inside_image(side, grid, result.image)
    total = int(ours.sum()) + int(truth.sum())
    return 2 * int((ours & truth[side.region]).sum()) / total if total else 1.0


def _inside_image(side: RestoredSide, grid: np.ndarray, image: ConformedImage) -> np.ndarray:
    start = [part.start for part in side.region]
    to_voxel = np.linalg.inv(image.affine) @ shifted(grid, start)
    places = np.moveaxis(np.indices(side.labels.shape), 0, -1) @ to_voxel[:3, :3].T
    places += to_voxel[:3, 3]
    last = np.array(image.data.shape) - 0.5
    inside: np.ndarray = ((places >= -0.5) & (places <= last)).all(axis=-1)
    return inside
