"""Transfer of a pre-trained segmentation network to a labeled protocol."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from monai.losses import DiceCELoss, DiceLoss
from monai.metrics import DiceHelper
from torch import nn

from hyps_bids.adaptation.crops import Crops, augmented_batch
from hyps_bids.errors import UsageError
from hyps_bids.networks.adapters import AdapterConfig, add_adapters, parameter_counts
from hyps_bids.networks.checkpoints import (
    GRID,
    load_adapted,
    load_network,
    replace_head,
    save_adapter,
)
from hyps_bids.outputs.digests import sha256
from hyps_bids.segmentation.normalize import standardize
from hyps_bids.training.distributed import Processes
from hyps_bids.training.loop import LoopSettings, Objective, run

__all__ = [
    "LOSSES",
    "FittedAdapter",
    "adapt",
    "crop_dice",
    "crops_digest",
    "decide",
    "default_learning_rate",
    "fit_adapter",
    "plain_batch",
]

_LOG = logging.getLogger("hyps_bids")

#: name → loss; each a mean over samples, so that several processes can share a batch
LOSSES: dict[str, Callable[[], nn.Module]] = {
    "dice+ce": lambda: DiceCELoss(include_background=False, to_onehot_y=True, softmax=True),
    "dice": lambda: DiceLoss(include_background=False, to_onehot_y=True, softmax=True),
}


@dataclass(frozen=True)
class FittedAdapter:
    """An adapter that was trained and written.

    Attributes
    ----------
    path : Path
        The weights.
    figures : dict of str to float
        Dice of these weights on the validation crops; empty without any.
    step : int
        Step after which the weights were these.
    steps : int
        Steps taken.
    parameters : dict of str to int
        How many train, and how many there are.
    """

    path: Path
    figures: dict[str, float]
    step: int
    steps: int
    parameters: dict[str, int]


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
    """As :func:`fit_adapter`, but return only the file."""
    return fit_adapter(
        training,
        validation,
        labels,
        base,
        config,
        settings,
        folder,
        device,
        batch_size=batch_size,
        augmentation=augmentation,
        start=start,
        card=card,
    ).path


def fit_adapter(
    training: Crops,
    validation: Crops | None,
    labels: dict[str, list[str]],
    base: Path,
    config: AdapterConfig,
    settings: LoopSettings,
    folder: Path,
    device: torch.device,
    *,
    batch_size: int = 2,
    augmentation: float = 1.0,
    loss: str = "dice+ce",
    start: Path | None = None,
    card: dict[str, Any] | None = None,
    half: bool = False,
    processes: Processes | None = None,
    title: str | None = None,
) -> FittedAdapter:
    """Train an adapter and write it.

    Parameters
    ----------
    training : Crops
        Labeled crops; classes ``1 … len(labels)``.
    validation : Crops or None
        Crops of other subjects, for the figures and for stopping early.
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
    loss : str
        A name in :data:`LOSSES`.
    start : Path, optional
        Adapter of the same base and classes to go on from; its settings replace `config`.
    card : dict, optional
        More facts to record with the weights.
    half : bool
        Write the weights in half precision.
    processes : Processes, optional
        Those that share each batch; process 0 writes.
    title : str, optional
        Name on the progress bar.

    Returns
    -------
    FittedAdapter
        The adapter's file and figures.

    Raises
    ------
    UsageError
        If `start` has other classes or another base, or the folder holds a checkpoint of other
        data or settings.
    HypsError
        If the loss is not finite.
    """
    processes = processes or Processes()
    torch.manual_seed(settings.seed)
    if start is None:
        model, base_card = load_network(base)
        replace_head(model, base_card["labels"], labels)
        add_adapters(model, config)
    else:
        model, earlier = load_adapted(start, base)
        if earlier["labels"] != list(labels):
            raise UsageError(f"{start}: has the classes {earlier['labels']}, not {list(labels)}")
        config = AdapterConfig.from_card(earlier["adapter"])
    counts = parameter_counts(model)
    if processes.is_main_process:
        _LOG.warning(
            "%s: %s of %s parameters train (%.1f %%)",
            config.method,
            f"{counts.trainable:,}",
            f"{counts.total:,}",
            100 * counts.trainable / counts.total,
        )
    identity = {
        "training data": crops_digest(training),
        "validation data": crops_digest(validation) if validation is not None else None,
        "classes": list(labels),
        "adapter": asdict(config),
        "base": sha256(base),
        "start": sha256(start) if start else None,
        "batch size": batch_size,
        "augmentation": augmentation,
        "loss": loss,
    }
    model = model.to(device)
    # torch's types know no memory_format, which Module.to takes
    model = model.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    training = training.to(device)
    held_out = validation.to(device) if validation is not None and len(validation) else None
    classes = len(labels) + 1
    objective = Objective(
        lambda generator: augmented_batch(
            training, batch_size, classes, generator, strength=augmentation
        ),
        LOSSES[loss](),
        lambda network: crop_dice(network, held_out, list(labels)) if held_out else {},
    )
    outcome = run(
        model,
        objective,
        settings,
        folder,
        device,
        identity=identity,
        processes=processes,
        title=title,
    )
    path = folder / "adapter.safetensors"
    facts = {
        "labels": list(labels),
        "grid": list(GRID),
        "training": {
            "crops": len(training),
            "steps": outcome.step,
            "batch_size": batch_size,
            "augmentation": augmentation,
            "loss": loss,
            "optimizer": settings.optimizer,
            "learning_rate": settings.learning_rate,
            "started from": start.name if start else "base",
            "seed": settings.seed,
            "trainable parameters": f"{counts.trainable:,} of {counts.total:,}",
            "validation": outcome.metrics,
        },
    }
    if processes.is_main_process:
        dtype = torch.float16 if half else torch.float32
        save_adapter(path, model, config, base, facts | (card or {}), dtype=dtype)
    return FittedAdapter(
        path,
        outcome.metrics,
        outcome.step,
        outcome.steps,
        {"adapters": counts.adapters, "trainable": counts.trainable, "total": counts.total},
    )


def default_learning_rate(method: str) -> float:
    """Learning rate to start from when none is given.

    A whole network that trains forgets at the rate that suits an adapter, and biases alone
    need more.

    Examples
    --------
    >>> default_learning_rate("hyps"), default_learning_rate("full")
    (0.001, 0.0003)
    """
    return {"full": 3e-4, "bitfit": 1e-2}.get(method, 1e-3)


def crops_digest(crops: Crops) -> str:
    """Name labeled crops by a sha256 of their names and content."""
    digest = hashlib.sha256("\n".join(crops.ids).encode())
    for tensor in (crops.images, crops.inside, crops.labels):
        digest.update(str(tuple(tensor.shape)).encode())
        digest.update(tensor.cpu().contiguous().numpy().data)
    return digest.hexdigest()


def plain_batch(crops: Crops, index: slice) -> tuple[torch.Tensor, torch.Tensor]:
    """Return crops as at inference: centerd, standardized, not augmented.

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

    Labels that lie outside the network's box count as missed. A crop without a class does not
    count for it; a class that no crop has is left out.
    """
    classes, whole = _helper(len(names) + 1), _helper(2)
    parts, wholes = [], []
    for start in range(0, len(crops), 4):
        inputs, targets = plain_batch(crops, slice(start, start + 4))
        predicted = decide(model(inputs))
        for p, t in zip(predicted, targets, strict=True):
            parts.append(_dice(classes, p, t))
            wholes.append(_dice(whole, (p > 0).long(), (t > 0).long()))
    mean = torch.stack(parts).nanmean(0)
    figures = {f"dice_{name}": float(v) for name, v in zip(names, mean, strict=True)}
    figures["dice_whole"] = float(torch.stack(wholes).nanmean())
    return {name: value for name, value in figures.items() if math.isfinite(value)}


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


def _helper(classes: int) -> DiceHelper:
    return DiceHelper(
        include_background=False,
        apply_argmax=False,
        num_classes=classes,
        get_not_nans=False,
        # else a class that a crop lacks counts as 0
        reduction="none",
    )


def _dice(helper: DiceHelper, predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Dice per foreground class of one volume, shape ``(classes,)``; nan where there is none."""
    result = helper(predicted[None], target[None])
    # a pair only if the helper was asked for the counts too
    assert isinstance(result, torch.Tensor)
    return result.flatten()
