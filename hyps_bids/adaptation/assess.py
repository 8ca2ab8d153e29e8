"""How well an adapter does on scans that it was not trained on, end to end and in native space.

Each scan goes the way of the participant level: localize, segment, restore. Probabilities are
restored to the grid of the manual labels, so that those are never resampled.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from hyps_bids.adaptation.fit import decide, plain_batch
from hyps_bids.adaptation.labeled_crops import SMALLEST_HEAD, LabeledCrops
from hyps_bids.imaging.agreement import agreement
from hyps_bids.imaging.conform import ConformedImage, conform
from hyps_bids.imaging.resample import resample
from hyps_bids.imaging.volumes import RestoredSide
from hyps_bids.labels.find import LabeledScan
from hyps_bids.segmentation.inference import cached_adapted
from hyps_bids.segmentation.pipeline import Grid, Pipeline

__all__ = [
    "COLUMNS",
    "WHOLE",
    "assess_scans",
    "bland_altman",
    "reference_on_own_grid",
    "summarize_assessment",
]

#: the part that is all parts together
WHOLE = "whole"

#: columns of the table of scans, and what they mean
COLUMNS = {
    "participant_id": "Participant.",
    "session_id": "Session.",
    "scan": "Name of the T1w image without suffix.",
    "hemi": "Hemisphere: L left, R right.",
    "part": "Part of the hippocampus; whole is all parts together.",
    "fold": "Fold whose adapter, not trained on this participant, segmented the scan.",
    "space": "native: end to end, on the grid of the manual labels. crop: the image is no whole "
    "head (under 100 mm along some axis); segmented at 1 mm in a box around the labels, whose "
    "place the network is thus told.",
    "status": "ok, or not found: the localizer found no hippocampus of this side in a whole head.",
    "dice": "Dice coefficient with the manual labels; 0 if not found.",
    "hd95_mm": "95th percentile of the Hausdorff distance, mm.",
    "asd_mm": "Average symmetric surface distance, mm.",
    "volume_mm3": "Volume of the segmentation, mm³.",
    "reference_mm3": "Volume of the manual labels, mm³.",
}


def reference_on_own_grid(
    labeled: LabeledScan, parts: Sequence[str]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Read the manual labels of each side as they are, on the grid of their file.

    Parameters
    ----------
    labeled : LabeledScan
        The scan and its label images.
    parts : sequence of str
        Names of the classes, background left out.

    Returns
    -------
    dict of str to (numpy.ndarray, numpy.ndarray)
        Hemisphere → labels (0 background, ``1 … len(parts)``, canonical orientation) and their
        voxel-to-world transform. Where several files show one side, the first one's grid is taken.
    """
    found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for image in labeled.labels:
        grid = conform(image.path)
        for structure in image.structures:
            mask = grid.data > 0 if image.is_mask else np.rint(grid.data) == structure.index
            if not mask.any():
                continue
            start = (np.zeros(mask.shape, dtype=np.uint8), grid.affine)
            labels, affine = found.setdefault(structure.hemi, start)
            if mask.shape != labels.shape or not np.allclose(grid.affine, affine, atol=1e-3):
                mask = resample(mask.astype(np.float32), grid.affine, labels.shape, affine) > 0.5
            labels[mask] = list(parts).index(structure.part) + 1
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

    Parameters
    ----------
    pipeline : Pipeline
        Networks, with the adapter to assess.
    scans : sequence of LabeledScan
        Scans of participants that the adapter was not trained on.
    crops : LabeledCrops
        Labeled crops of these scans, for images that are no whole heads.
    parts : sequence of str
        Names of the classes, background left out.
    fold : int
        What to write into the column ``fold``.

    Returns
    -------
    pandas.DataFrame
        One row per scan, side and part, with the columns of :data:`COLUMNS`. With several parts
        the part "whole" comes last; a single part is called "whole".
    """
    rows: list[dict[str, Any]] = []
    for labeled in scans:
        image = conform(labeled.scan.path)
        references = reference_on_own_grid(labeled, parts)
        grids: dict[str, Grid] = {
            hemi: (labels.shape, affine) for hemi, (labels, affine) in references.items()
        }
        is_head = _is_head(image)
        sides = pipeline.segment_sides(image, grids) if is_head else {}
        for hemi, (reference, affine) in references.items():
            spacing = np.sqrt((affine[:3, :3] ** 2).sum(axis=0)).tolist()
            space, status = "native", "ok"
            if hemi in sides:
                predicted = _whole_grid(sides[hemi], reference.shape)
            elif is_head:
                predicted, status = np.zeros_like(reference), "not found"
            else:
                predicted, reference = _on_crop(pipeline, crops, labeled.scan.stem, hemi)
                space, spacing = "crop", [1.0, 1.0, 1.0]
            head = {
                "participant_id": f"sub-{labeled.scan.subject}",
                "session_id": f"ses-{labeled.scan.session}" if labeled.scan.session else None,
                "scan": labeled.scan.stem,
                "hemi": hemi,
            }
            tail = {"fold": fold, "space": space, "status": status}
            for part, ours, theirs in _by_part(predicted, reference, parts):
                figures = agreement(ours, theirs, spacing)
                if status != "ok":
                    # outside the segmentation's reach is missing, never 0 mm³
                    figures["volume_mm3"] = math.nan
                rows.append(head | {"part": part} | tail | figures)
    return pd.DataFrame(rows, columns=list(COLUMNS))


def bland_altman(volumes: pd.Series, references: pd.Series) -> dict[str, float]:
    """Mean difference and 95 % limits of agreement of volumes with those of reference.

    Examples
    --------
    >>> bland_altman(pd.Series([11.0, 13.0]), pd.Series([10.0, 10.0]))["mean_difference"]
    2.0
    """
    difference = volumes - references
    mean, sd = float(difference.mean()), float(difference.std())
    return {
        "mean_difference": mean,
        "sd": sd,
        "lower_limit": mean - 1.96 * sd,
        "upper_limit": mean + 1.96 * sd,
    }


def summarize_assessment(table: pd.DataFrame) -> dict[str, Any]:
    """Pool the figures of a table of scans, and give the Dice of each fold.

    Parameters
    ----------
    table : pandas.DataFrame
        From :func:`assess_scans`.

    Returns
    -------
    dict
        Ready for JSON: part → figures; what cannot be computed is None.
    """
    out: dict[str, Any] = {}
    for part, rows in table.groupby("part", sort=False):
        measured = rows.dropna(subset=["volume_mm3"])
        volumes, references = measured["volume_mm3"], measured["reference_mm3"]
        limits = bland_altman(volumes, references)
        out[str(part)] = {
            "participants": int(rows["participant_id"].nunique()),
            "scans": int(rows["scan"].nunique()),
            "hippocampi": len(rows),
            "not_found": int((rows["status"] != "ok").sum()),
            "on_crops": int((rows["space"] == "crop").sum()),
            "dice": _statistics(rows["dice"]),
            "hd95_mm": _statistics(rows["hd95_mm"]),
            "asd_mm": _statistics(rows["asd_mm"]),
            "volume": {
                "correlation": _correlation(volumes, references),
                "mean_ratio": _number((volumes / references).mean()),
                "bland_altman_mm3": {name: _number(value) for name, value in limits.items()},
            },
            "dice_by_fold": {
                str(fold): _number(values.mean()) for fold, values in rows.groupby("fold")["dice"]
            },
        }
    return out


def _statistics(values: pd.Series) -> dict[str, float | None]:
    return {
        "mean": _number(values.mean()),
        "sd": _number(values.std()),
        "median": _number(values.median()),
        "min": _number(values.min()),
        "max": _number(values.max()),
    }


def _correlation(volumes: pd.Series, references: pd.Series) -> float | None:
    if len(volumes) < 3 or volumes.nunique() < 2 or references.nunique() < 2:
        return None
    return _number(volumes.corr(references))


def _number(value: float) -> float | None:
    return round(float(value), 4) if math.isfinite(value) else None


def _by_part(
    predicted: np.ndarray, reference: np.ndarray, parts: Sequence[str]
) -> list[tuple[str, np.ndarray, np.ndarray]]:
    present = [
        (part, predicted == i, reference == i)
        for i, part in enumerate(parts, start=1)
        if len(parts) > 1 and (reference == i).any()
    ]
    return [*present, (WHOLE, predicted > 0, reference > 0)]


def _whole_grid(side: RestoredSide, shape: Sequence[int]) -> np.ndarray:
    out = np.zeros(shape, dtype=np.uint8)
    out[side.region] = side.labels
    return out


def _is_head(image: ConformedImage) -> bool:
    zooms = np.sqrt((image.affine[:3, :3] ** 2).sum(axis=0))
    return bool((zooms * image.data.shape).min() >= SMALLEST_HEAD)


@torch.inference_mode()
def _on_crop(
    pipeline: Pipeline, crops: LabeledCrops, scan: str, hemi: str
) -> tuple[np.ndarray, np.ndarray]:
    """Segment the crop around the labels; both results on its frame, as the network sees it."""
    index = list(zip(crops.scans, crops.hemis, strict=True)).index((scan, hemi))
    network, _ = cached_adapted(pipeline.adapter, pipeline.base)
    inputs, _ = plain_batch(crops.as_at_inference(), slice(index, index + 1))
    device = pipeline.device
    labels = decide(network.to(device)(inputs.to(device)))[0, 0].cpu().numpy()
    reference = crops.crops.labels[index, 0].cpu().numpy()
    # what lies outside the network's box is missed
    margins = [(have - got) // 2 for have, got in zip(reference.shape, labels.shape, strict=True)]
    predicted = np.zeros_like(reference)
    predicted[tuple(slice(m, m + side) for m, side in zip(margins, labels.shape, strict=True))] = (
        labels
    )
    return predicted, reference
