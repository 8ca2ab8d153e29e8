"""How well an adapter does on scans that it was not trained on, end to end and in native space.

Each scan is processed as at the participant level: localize, segment, restore. Probabilities are
restored to the grid of the manual labels, so that these are never resampled.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from nibabel.affines import voxel_sizes

from hyps_bids.adaptation.crops import plain_batch
from hyps_bids.adaptation.fit import predict_classes
from hyps_bids.adaptation.labeled_crops import LabeledCrops, is_head
from hyps_bids.imaging.agreement import agreement
from hyps_bids.imaging.conform import conform
from hyps_bids.imaging.resample import resample
from hyps_bids.labels.find import LabeledScan
from hyps_bids.networks.checkpoints import load_merged
from hyps_bids.outputs.labels import WHOLE
from hyps_bids.progress import track
from hyps_bids.segmentation.pipeline import Grid, Pipeline

#: The network of a fold, which assesses many crops before the next one follows.
_load_merged = lru_cache(maxsize=1)(load_merged)

#: Pooled metrics of one part, ready for JSON; a value that cannot be computed is None.
PartSummary = dict[str, Any]


class _Comparison(NamedTuple):
    """Labels of one side and those of reference, on one grid."""

    predicted: np.ndarray
    reference: np.ndarray
    spacing: Sequence[float]
    space: str
    status: str


def reference_on_own_grid(
    labeled: LabeledScan, parts: Sequence[str]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Read the manual labels of each side as they are, on the grid of their file.

    Each hemisphere has labels (0 background, ``1 … len(parts)``, canonical orientation) and their
    voxel-to-world transform. Where several files show one side, the first one's grid is taken.
    """
    found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for image in labeled.labels:
        grid = conform(image.path, is_label=True)
        for structure in image.structures:
            mask = grid.data > 0 if image.is_mask else np.rint(grid.data) == structure.index
            if not mask.any():
                continue
            start = (np.zeros(mask.shape, dtype=np.uint8), grid.affine)
            labels, affine = found.setdefault(structure.hemi, start)
            if mask.shape != labels.shape or not np.allclose(grid.affine, affine, atol=1e-3):
                mask = resample(mask.astype(np.float32), grid.affine, labels.shape, affine) > 0.5
            labels[mask] = parts.index(structure.part) + 1
    return found


def assess_scans(
    pipeline: Pipeline,
    scans: Sequence[LabeledScan],
    crops: LabeledCrops,
    parts: Sequence[str],
    *,
    fold: int = 0,
) -> pd.DataFrame:
    """Segment scans end to end and compare each side and part with the manual labels.

    The adapter of the pipeline was not trained on these scans; `crops` serve for images that are
    no whole heads. There is a row per scan, side and part, with the columns that
    ``templates/scans.json`` describes; of several parts "whole" comes last, a single part is called
    "whole".
    """
    rows: list[dict[str, Any]] = []
    for labeled in track(scans, len(scans), "test scans"):
        scan = labeled.scan
        for hemi, compared in _compare(pipeline, labeled, crops, parts):
            for part, ours, theirs in _by_part(compared, parts):
                metrics = agreement(ours, theirs, compared.spacing)
                if compared.status != "ok":
                    # The volume of a hippocampus that was not found is missing, not 0 mm³.
                    metrics["volume_mm3"] = math.nan
                facts = {
                    "participant_id": f"sub-{scan.subject}",
                    "session_id": f"ses-{scan.session}" if scan.session else None,
                    "scan": scan.stem,
                    "hemi": hemi,
                    "part": part,
                    "fold": fold,
                    "space": compared.space,
                    "status": compared.status,
                }
                rows.append(facts | metrics)
    return pd.DataFrame(rows)


def bland_altman(volumes: pd.Series, references: pd.Series) -> dict[str, float]:
    """Mean difference and 95 % limits of agreement of volumes with those of reference."""
    difference = volumes - references
    mean, sd = float(difference.mean()), float(difference.std())
    return {
        "mean_difference": mean,
        "sd": sd,
        "lower_limit": mean - 1.96 * sd,
        "upper_limit": mean + 1.96 * sd,
    }


def summarize_assessment(table: pd.DataFrame) -> dict[str, PartSummary]:
    """Pool the metrics in a table of :func:`assess_scans` by part."""
    parts = table.groupby("part", sort=False)
    return {str(part): _summarize_part(rows) for part, rows in parts}


def _summarize_part(rows: pd.DataFrame) -> PartSummary:
    measured = rows.dropna(subset=["volume_mm3"])
    volumes, references = measured["volume_mm3"], measured["reference_mm3"]
    varied = len(volumes) > 2 and volumes.nunique() > 1 and references.nunique() > 1
    return {
        "participants": int(rows["participant_id"].nunique()),
        "scans": int(rows["scan"].nunique()),
        "hippocampi": len(rows),
        "not_found": int((rows["status"] != "ok").sum()),
        "on_crops": int((rows["space"] == "crop").sum()),
        "dice": _statistics(rows["dice"]),
        "hd95_mm": _statistics(rows["hd95_mm"]),
        "asd_mm": _statistics(rows["asd_mm"]),
        "volume": {
            "correlation": _rounded(volumes.corr(references)) if varied else None,
            "mean_ratio": _rounded((volumes / references).mean()),
            "bland_altman_mm3": {
                name: _rounded(value) for name, value in bland_altman(volumes, references).items()
            },
        },
        "dice_by_fold": {
            str(fold): _rounded(values.mean()) for fold, values in rows.groupby("fold")["dice"]
        },
    }


def _statistics(values: pd.Series) -> dict[str, float | None]:
    names = {"mean": "mean", "sd": "std", "median": "median", "min": "min", "max": "max"}
    return {name: _rounded(values.agg(function)) for name, function in names.items()}


def _rounded(value: float) -> float | None:
    return round(float(value), 4) if math.isfinite(value) else None


def _compare(
    pipeline: Pipeline, labeled: LabeledScan, crops: LabeledCrops, parts: Sequence[str]
) -> Iterator[tuple[str, _Comparison]]:
    """Segment the labeled sides of a scan; a side that is not found has no predicted voxel."""
    image = conform(labeled.scan.path)
    references = reference_on_own_grid(labeled, parts)
    if not is_head(image):
        for hemi in references:
            yield hemi, _on_crop(pipeline, crops, labeled.scan.stem, hemi)
        return
    grids: dict[str, Grid] = {
        hemi: (labels.shape, affine) for hemi, (labels, affine) in references.items()
    }
    sides = pipeline.segment_sides(image, grids)
    for hemi, (reference, affine) in references.items():
        predicted, status = np.zeros_like(reference), "not found"
        if hemi in sides:
            predicted[sides[hemi].region], status = sides[hemi].labels, "ok"
        spacing = voxel_sizes(affine).tolist()
        yield hemi, _Comparison(predicted, reference, spacing, "native", status)


def _by_part(
    compared: _Comparison, parts: Sequence[str]
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    predicted, reference = compared.predicted, compared.reference
    if len(parts) > 1:
        for i, part in enumerate(parts, start=1):
            if (reference == i).any():
                yield part, predicted == i, reference == i
    yield WHOLE, predicted > 0, reference > 0


@torch.inference_mode()
def _on_crop(pipeline: Pipeline, crops: LabeledCrops, scan: str, hemi: str) -> _Comparison:
    """Segment the crop around the labels; both results on its frame, as the network sees it."""
    index = crops.crops.ids.index(f"{scan}_hemi-{hemi}")
    network, _ = _load_merged(pipeline.adapter, pipeline.base)
    inputs, _ = plain_batch(crops.as_at_inference(), slice(index, index + 1))
    device = torch.device(pipeline.device)
    labels = predict_classes(network.to(device)(inputs.to(device)))[0]
    reference = crops.crops.labels[index, 0].cpu().numpy()
    # Labels outside the network's box count as missed.
    margins = [(have - got) // 2 for have, got in zip(reference.shape, labels.shape, strict=True)]
    return _Comparison(
        np.pad(labels, [(m, m) for m in margins]), reference, (1, 1, 1), "crop", "ok"
    )
