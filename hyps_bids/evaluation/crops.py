"""Dice of each class on labeled crops."""

from __future__ import annotations

import operator
from functools import partial
from pathlib import Path

import pandas as pd

from hyps_bids.adaptation.crops import load_crops
from hyps_bids.adaptation.fit import crop_dice
from hyps_bids.labels.msd import msd_subject, split_every_fifth
from hyps_bids.networks.checkpoints import load_merged
from hyps_bids.segmentation.pipeline import Pipeline


def evaluate_crops(pipeline: Pipeline, images: Path, labels: Path) -> pd.DataFrame:
    """Compute the Dice of each class on the fixed test split of MSD Task04.

    Returns
    -------
    pandas.DataFrame
        One row per crop of the test subjects.
    """
    network, card = load_merged(pipeline.adapter, pipeline.base)
    crops = load_crops(images, labels)
    _, test = split_every_fifth([msd_subject(name) for name in crops.ids])
    rows = []
    for name in crops.ids:
        if msd_subject(name) in test:
            one = crops.select(partial(operator.eq, name))
            rows.append({"id": name} | crop_dice(network, one, card["labels"]))
    return pd.DataFrame(rows)
