"""Dice of an adapter on labeled crops, segmented as hippocampi in heads are."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from hyps_bids.adaptation.crops import FRAME, Crops
from hyps_bids.imaging.agreement import dice
from hyps_bids.imaging.volumes import decide
from hyps_bids.networks.cards import GRID
from hyps_bids.outputs.labels import WHOLE
from hyps_bids.segmentation.inference import Network
from hyps_bids.segmentation.segment import LATTICE, segment_views


def dice_of_crops(network: Network, crops: Crops) -> Iterator[dict[str, float]]:
    """Segment crops in two views, as hippocampi in heads are, and compare them with their labels.

    The network sees all of a crop. Labels outside its box count as missed.

    Parameters
    ----------
    network : Network
        A merged adapter.
    crops : Crops
        Labeled crops on the CPU.

    Yields
    ------
    dict of str to float
        ``dice_<class>`` and ``dice_whole`` of each crop; NaN for a class that neither has.
    """
    starts = [(have - want) // 2 for have, want in zip(FRAME, LATTICE, strict=True)]
    window = tuple(slice(a, a + side) for a, side in zip(starts, LATTICE, strict=True))
    for i in range(len(crops)):
        volume, covered, truth = (
            array[i, 0].numpy() for array in (crops.images, crops.inside, crops.labels)
        )
        (found,), _ = segment_views(network, [volume[window]], [covered[window]], GRID)
        predicted = np.zeros(FRAME, np.uint8)
        predicted[window] = decide(found.probabilities[1:])
        masks = {part: (predicted == k, truth == k) for k, part in enumerate(network.labels, 1)}
        masks[WHOLE] = (predicted > 0, truth > 0)
        yield {f"dice_{part}": dice(*pair) for part, pair in masks.items()}
