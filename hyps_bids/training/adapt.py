"""Transfer of a pre-trained segmentation network to a labelled protocol."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from monai.losses import DiceCELoss
from monai.metrics import DiceHelper
from torch import nn

from hyps_bids.errors import UsageError
from hyps_bids.networks.adapters import AdapterConfig, add_adapters, parameter_counts
from hyps_bids.networks.checkpoints import (
    GRID,
    load_adapted,
    load_network,
    replace_head,
    save_adapter,
)
from hyps_bids.segmentation.normalise import standardize
from hyps_bids.training.datasets import Crops, augmented_batch
from hyps_bids.training.loop import LoopSettings, fit

__all__ = ["adapt", "crop_dice", "decide", "plain_batch"]


def adapt(
    training: Crops,
    validation: Crops,
    labels: dict[str, list[str]],
    base: Path,
    config: AdapterConfig,
    settings: LoopSettings,
    folder: Path,
    device: torch.device,
    *,
    batch_size: int = 2,
    augmentation: float = 1.0,
    start: Path | None = None,
    card: dict[str, Any] | None = None,
) -> Path:
    """Train an adapter and write it.

    Parameters
    ----------
    training, validation : Crops
        Labelled crops; classes ``1 … len(labels)``.
    labels : dict of str to list of str
        Name of each class in order → names of the base's classes it starts from.
    base : Path
        The pre-trained network.
    config : AdapterConfig
        The adapter.
    settings : LoopSettings
        How to train.
    folder : Path
        Receives the log, the checkpoint and ``adapter.safetensors``.
    device : torch.device
        Where to train.
    batch_size : int
        Crops per step.
    augmentation : float
        Strength of the augmentation, in [0, 1].
    start : Path, optional
        Adapter of the same base and classes to go on from; its settings replace `config`.
    card : dict, optional
        More facts to record with the weights.

    Returns
    -------
    Path
        The adapter's file.

    Raises
    ------
    UsageError
        If `start` has other classes or another base.
    """
    torch.manual_seed(settings.seed)
    if start is None:
        model, base_card = load_network(base)
        replace_head(model, base_card["labels"], labels)
        add_adapters(model, config)
    else:
        model, earlier = load_adapted(start, base)
        if earlier["labels"] != list(labels):
            raise UsageError(f"{start}: has the classes {earlier['labels']}, not {list(labels)}")
        adapter = earlier["adapter"]
        config = AdapterConfig(**adapter | {"trainable": tuple(adapter["trainable"])})
    trainable, total = parameter_counts(model)
    print(f"{config.method}: {trainable:,} of {total:,} parameters train")
    model = model.to(device)
    # torch's types know no memory_format, which Module.to takes
    model = model.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    training, validation = training.to(device), validation.to(device)
    classes = len(labels) + 1
    figures = fit(
        model,
        lambda generator: augmented_batch(
            training, batch_size, classes, generator, strength=augmentation
        ),
        DiceCELoss(include_background=False, to_onehot_y=True, softmax=True),
        lambda network: crop_dice(network, validation, list(labels)),
        settings,
        folder,
        device,
    )
    path = folder / "adapter.safetensors"
    facts = {
        "labels": list(labels),
        "grid": list(GRID),
        "training": {
            "crops": len(training),
            "steps": settings.steps,
            "batch_size": batch_size,
            "augmentation": augmentation,
            "started from": start.name if start else "base",
            "seed": settings.seed,
            "validation": figures,
        },
    }
    save_adapter(path, model, config, base, facts | (card or {}))
    return path


def plain_batch(crops: Crops, index: slice) -> tuple[torch.Tensor, torch.Tensor]:
    """Return crops as at inference: centred, standardised, not augmented.

    Returns
    -------
    inputs, targets : torch.Tensor
        Shapes ``(n, 1, *GRID)``.
    """
    cut = tuple(
        slice((have - want) // 2, (have - want) // 2 + want)
        for have, want in zip(crops.images.shape[2:], GRID, strict=True)
    )
    part = (index, slice(None), *cut)
    return standardize(crops.images[part], crops.inside[part]), crops.labels[part]


@torch.inference_mode()
def crop_dice(
    model: Callable[[torch.Tensor], torch.Tensor] | nn.Module, crops: Crops, names: list[str]
) -> dict[str, float]:
    """Mean Dice per class and of all classes together ("whole") over crops.

    Labels that lie outside the network's box count as missed.
    """
    helper = DiceHelper(
        include_background=False, softmax=False, num_classes=len(names) + 1, get_not_nans=False
    )
    whole = DiceHelper(include_background=False, softmax=False, num_classes=2, get_not_nans=False)
    parts, wholes = [], []
    for start in range(0, len(crops), 4):
        inputs, targets = plain_batch(crops, slice(start, start + 4))
        predicted = decide(model(inputs))
        for p, t in zip(predicted, targets, strict=True):
            parts.append(_dice(helper, p, t))
            wholes.append(_dice(whole, (p > 0).long(), (t > 0).long()))
    mean = torch.stack(parts).mean(0)
    figures = {f"dice_{name}": float(v) for name, v in zip(names, mean, strict=True)}
    figures["dice_whole"] = float(torch.stack(wholes).mean())
    return figures


def decide(logits: torch.Tensor) -> torch.Tensor:
    """Label voxels as :func:`hyps_bids.imaging.volumes.decide` does.

    Parameters
    ----------
    logits : torch.Tensor
        Shape ``(n, classes, x, y, z)``, background first.

    Returns
    -------
    torch.Tensor
        Classes, shape ``(n, 1, x, y, z)``.
    """
    probabilities = logits.softmax(dim=1)
    part = probabilities[:, 1:].argmax(dim=1, keepdim=True) + 1
    return torch.where(probabilities[:, :1] <= 0.5, part, 0)


def _dice(helper: DiceHelper, predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Dice per foreground class of one volume, shape ``(classes,)``."""
    result = helper(predicted[None], target[None])
    # a pair only if the helper was asked for the counts too
    assert isinstance(result, torch.Tensor)
    return result.flatten()
