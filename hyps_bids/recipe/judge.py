"""Which weights are better, by validation data that no stage trains on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import torch

from hyps_bids.adaptation.crops import TISSUE_KINDS, Crops, find_tissues
from hyps_bids.adaptation.fit import tissue_network
from hyps_bids.adaptation.views import dice_of_crops
from hyps_bids.networks.checkpoints import load_network
from hyps_bids.pretraining.label_maps import LabelMaps
from hyps_bids.pretraining.pretrain import PretrainingTask, synthetic_dice
from hyps_bids.segmentation.inference import cached_adapted
from hyps_bids.training.contrasts import ContrastSettings, random_contrasts

#: Every validation crop is seen in so many contrasts besides its own.
_CONTRASTS = 2
_SEED = 20_241
#: Prefix of the metrics of crops in other contrasts.
OTHER = "other contrasts: "


@dataclass(frozen=True)
class AdapterJudge:
    """Validation crops, as they are and in other contrasts, and the device to compute on."""

    crops: Crops
    recolored: Crops | None
    device: torch.device

    def metrics(self, adapter: Path, base: Path) -> dict[str, float]:
        """Compute the mean Dice of each class and of all together."""
        network = cached_adapted(adapter, base, str(self.device))
        found = pd.DataFrame(dice_of_crops(network, self.crops)).mean()
        if self.recolored is not None:
            other = pd.DataFrame(dice_of_crops(network, self.recolored)).mean()
            found = pd.concat([found, other.add_prefix(OTHER)])
        # Each network is needed once, and its file may have another content next time.
        cached_adapted.cache_clear()
        return {str(name): float(value) for name, value in found.dropna().items()}


def make_judge(
    crops: Crops, base: Path, contrasts: ContrastSettings | None, device: torch.device
) -> AdapterJudge:
    """Make a judge; the same crops and base give the same contrasts on every device."""
    if contrasts is None:
        return AdapterJudge(crops, None, device)
    known = find_tissues(crops.to(device), tissue_network(base).to(device)).to(torch.device("cpu"))
    images = []
    # Every crop changes, by the recipe's shares of both ways.
    share = contrasts.mapped / (contrasts.mapped + contrasts.recolored)
    every = replace(contrasts, mapped=share, recolored=1 - share)
    generator = torch.Generator().manual_seed(_SEED)
    assert known.tissues is not None
    for _ in range(_CONTRASTS):
        kinds, tissues = torch.tensor(TISSUE_KINDS), known.tissues.long()
        images.append(random_contrasts(known.images, tissues, kinds, every, generator)[0])
    copies = Crops(
        crops.ids * _CONTRASTS,
        torch.cat(images),
        torch.cat([crops.inside] * _CONTRASTS),
        torch.cat([crops.labels] * _CONTRASTS),
    )
    return AdapterJudge(crops, copies, device)


def network_metrics(
    path: Path, task: PretrainingTask, held_out: LabelMaps, device: torch.device
) -> dict[str, float]:
    """Compute the Dice of a pre-trained network on synthetic images of held-out label maps."""
    network = load_network(path)[0].to(device)
    return synthetic_dice(
        network,
        lambda generator: task.draw(held_out, task.synthesis, 2, generator),
        task.labels,
        2 * task.validation_batches,
        device,
    )


def score(metrics: Mapping[str, float]) -> float:
    """Return the mean of the metrics."""
    return math.fsum(metrics.values()) / len(metrics)


def is_better(new: Mapping[str, float], old: Mapping[str, float], largest_loss: float) -> bool:
    """Tell whether an adapter may replace another one.

    Parameters
    ----------
    new, old : mapping of str to float
        Metrics of both.
    largest_loss : float
        How much lower the mean on crops in their own contrast may be.

    Examples
    --------
    >>> old = {"dice": 0.9, "other contrasts: dice": 0.3}
    >>> is_better({"dice": 0.8995, "other contrasts: dice": 0.8}, old, 0.001)
    True
    >>> is_better({"dice": 0.898, "other contrasts: dice": 0.8}, old, 0.001)
    False
    """
    own = [{k: v for k, v in m.items() if not k.startswith(OTHER)} for m in (new, old)]
    return score(new) > score(old) and score(own[0]) >= score(own[1]) - largest_loss
