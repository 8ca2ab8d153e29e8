"""Dice of each class on labeled crops."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from hyps_bids.adaptation.crops import Crops, load_crops
from hyps_bids.adaptation.views import dice_of_crops
from hyps_bids.labels.msd import msd_subject, split_every_fifth, validation_subjects
from hyps_bids.segmentation.inference import cached_adapted
from hyps_bids.segmentation.pipeline import Pipeline


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
    rows = zip(crops.ids, dice_of_crops(network, crops), strict=True)
    return pd.DataFrame([{"id": name} | found for name, found in rows])


def _part_of(crops: Crops, split: str) -> Crops:
    subjects = [msd_subject(name) for name in crops.ids]
    _, test = split_every_fifth(subjects)
    part = test if split == "test" else validation_subjects(subjects)
    return crops.select(lambda name: msd_subject(name) in part)
