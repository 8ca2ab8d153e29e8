"""Dice of each class on labeled crops."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from hyps_bids.adaptation.crops import FRAME, load_crops
from hyps_bids.imaging.agreement import dice
from hyps_bids.labels.msd import msd_subject, split_every_fifth
from hyps_bids.networks.cards import GRID
from hyps_bids.outputs.labels import WHOLE
from hyps_bids.segmentation.inference import cached_adapted
from hyps_bids.segmentation.pipeline import Pipeline
from hyps_bids.segmentation.segment import LATTICE, segment_views


def evaluate_crops(pipeline: Pipeline, images: Path, labels: Path) -> pd.DataFrame:
    """Compute the Dice of each class on the fixed test split of MSD Task04.

    Each crop is segmented in two views, as hippocampi in heads are, and the network sees all of it.

    Returns
    -------
    pandas.DataFrame
        One row per crop of the test subjects.
    """
    network = cached_adapted(pipeline.adapter, pipeline.base, pipeline.device)
    crops = load_crops(images, labels)
    _, test = split_every_fifth([msd_subject(name) for name in crops.ids])
    starts = [(have - want) // 2 for have, want in zip(FRAME, LATTICE, strict=True)]
    window = tuple(slice(a, a + side) for a, side in zip(starts, LATTICE, strict=True))
    rows = []
    for i, name in enumerate(crops.ids):
        if msd_subject(name) not in test:
            continue
        volume, covered, truth = (
            array[i, 0].numpy() for array in (crops.images, crops.inside, crops.labels)
        )
        (found,), _ = segment_views(network, [volume[window]], [covered[window]], [GRID])
        # Labels outside the box count as missed.
        predicted = np.zeros(FRAME, np.intp)
        predicted[window] = found.probabilities.argmax(axis=0)
        parts = {part: dice(predicted == k, truth == k) for k, part in enumerate(network.labels, 1)}
        parts[WHOLE] = dice(predicted > 0, truth > 0)
        rows.append({"id": name} | {f"dice_{part}": value for part, value in parts.items()})
    return pd.DataFrame(rows)
