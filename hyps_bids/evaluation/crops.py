"""Dice of each class on labeled crops."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from hyps_bids.adaptation.crops import FRAME, Crops, load_crops
from hyps_bids.imaging.agreement import dice
from hyps_bids.imaging.volumes import decide
from hyps_bids.labels.msd import msd_subject, split_every_fifth, validation_subjects
from hyps_bids.networks.cards import GRID
from hyps_bids.outputs.labels import WHOLE
from hyps_bids.segmentation.inference import cached_adapted
from hyps_bids.segmentation.pipeline import Pipeline
from hyps_bids.segmentation.segment import LATTICE, segment_views


def evaluate_crops(
    pipeline: Pipeline, images: Path, labels: Path, *, split: str = "test"
) -> pd.DataFrame:
    """Compute the Dice of each class on a fixed part of MSD Task04.

    Each crop is segmented in two views, as hippocampi in heads are, and the network sees all of it.

    Parameters
    ----------
    pipeline : Pipeline
        The networks.
    images, labels : Path
        Folders of the crops and of their labels.
    split : str
        ``test``, which is every fifth subject, or ``validation``; see :mod:`hyps_bids.labels.msd`.

    Returns
    -------
    pandas.DataFrame
        One row per crop.
    """
    network = cached_adapted(pipeline.adapter, pipeline.base, pipeline.device)
    crops = _part_of(load_crops(images, labels), split)
    starts = [(have - want) // 2 for have, want in zip(FRAME, LATTICE, strict=True)]
    window = tuple(slice(a, a + side) for a, side in zip(starts, LATTICE, strict=True))
    rows = []
    for i, name in enumerate(crops.ids):
        volume, covered, truth = (
            array[i, 0].numpy() for array in (crops.images, crops.inside, crops.labels)
        )
        (found,), _ = segment_views(network, [volume[window]], [covered[window]], GRID)
        # Labels outside the box count as missed.
        predicted = np.zeros(FRAME, np.uint8)
        predicted[window] = decide(found.probabilities[1:])
        parts = {part: dice(predicted == k, truth == k) for k, part in enumerate(network.labels, 1)}
        parts[WHOLE] = dice(predicted > 0, truth > 0)
        rows.append({"id": name} | {f"dice_{part}": value for part, value in parts.items()})
    return pd.DataFrame(rows)


def _part_of(crops: Crops, split: str) -> Crops:
    subjects = [msd_subject(name) for name in crops.ids]
    _, test = split_every_fifth(subjects)
    part = test if split == "test" else validation_subjects(subjects)
    return crops.select(lambda name: msd_subject(name) in part)
