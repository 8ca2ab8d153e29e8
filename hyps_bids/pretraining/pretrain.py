"""Pre-training of the localizer and of the base network on synthetic images."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from monai.losses.dice import DiceLoss
from monai.metrics.meandice import DiceHelper
from torch import nn

from hyps_bids.errors import UsageError
from hyps_bids.networks.checkpoints import (
    LOCALIZER,
    build_network,
    load_network,
    read_card,
    save_network,
    shipped_weights,
)
from hyps_bids.outputs.digests import sha256
from hyps_bids.pretraining.synthesis import (
    BASE_CLASSES,
    BOX,
    HEAD,
    HEAD_CLASSES,
    LabelMaps,
    SynthesisSettings,
    box_batch,
    head_batch,
    load_labelmaps,
)
from hyps_bids.training.cards import hardware, write_model_card
from hyps_bids.training.loop import Batch, LoopSettings, fit

__all__ = ["pretrain_base", "pretrain_localizer", "segmentation_loss", "synthetic_dice"]

#: label maps, last in order of name, that are never trained on
HELD_OUT = 2

#: weight of the localizer's hippocampi in the cross-entropy: they are 1 voxel in 2,000
_HIPPOCAMPUS_WEIGHT = 6.0
_VALIDATION_SEED = 20_240

_DATA = (
    "Synthetic images only, made on the fly from {training} whole-head label maps; {held_out} more "
    "({names}) are held out for validation. No real image was seen. The maps that this project "
    "uses are SynthSeg's (Billot et al. 2023, Medical Image Analysis 86:102789, Apache-2.0)."
)
_NOTES = (
    "Research use. The figures are Dice coefficients on synthetic images of the held-out heads, "
    "many of them far worse than real ones: they compare training runs, and do not say how well "
    "real scans are segmented."
)


@dataclass(frozen=True)
class _Task:
    """What distinguishes the training of one network from that of another."""

    name: str
    architecture: dict[str, Any]
    labels: tuple[str, ...]
    #: classes → weights in the cross-entropy, where not 1
    weights: dict[str, float]
    maker: Callable[[LabelMaps, SynthesisSettings, int, torch.Generator], Batch]
    memory_format: torch.memory_format


def pretrain_localizer(
    labelmaps: Path,
    folder: Path,
    settings: LoopSettings,
    device: torch.device,
    resume_from: Path | None = None,
    *,
    synthesis: SynthesisSettings = HEAD,
    batch_size: int = 12,
    validation_batches: int = 8,
    half: bool = False,
) -> Path:
    """Train the network that finds the brain and both hippocampi in a whole head.

    Parameters
    ----------
    labelmaps : Path
        Folder of label maps; the last two in order of name are held out.
    folder : Path
        Receives the log, the checkpoint (continued from when it is there),
        ``localizer.safetensors`` and its model card.
    settings : LoopSettings
        How to train.
    device : torch.device
        Where to train.
    resume_from : Path or None
        Weights to start from; random ones if None.
    synthesis : SynthesisSettings
        What images to draw; sides divisible by 16.
    batch_size : int
        Heads per step.
    validation_batches : int
        Batches of two held-out heads that figures are computed on.
    half : bool
        Write the weights in float16.

    Returns
    -------
    Path
        The weights.
    """
    task = _Task(
        "localizer",
        read_card(shipped_weights(LOCALIZER))["architecture"],
        HEAD_CLASSES,
        dict.fromkeys(HEAD_CLASSES[2:], _HIPPOCAMPUS_WEIGHT),
        head_batch,
        # channels last slows instance norm down
        torch.contiguous_format,
    )
    return _pretrain(
        task,
        labelmaps,
        folder,
        settings,
        device,
        resume_from,
        synthesis=synthesis,
        batch_size=batch_size,
        validation_batches=validation_batches,
        half=half,
    )


def pretrain_base(
    labelmaps: Path,
    folder: Path,
    settings: LoopSettings,
    device: torch.device,
    resume_from: Path | None = None,
    *,
    synthesis: SynthesisSettings = BOX,
    batch_size: int = 16,
    validation_batches: int = 8,
    feature_size: int = 24,
    half: bool = False,
) -> Path:
    """Train the network that tells brain structures apart in a box around a hippocampus.

    Parameters
    ----------
    labelmaps : Path
        Folder of label maps; the last two in order of name are held out.
    folder : Path
        Receives the log, the checkpoint (continued from when it is there), ``base.safetensors``
        and its model card.
    settings : LoopSettings
        How to train.
    device : torch.device
        Where to train.
    resume_from : Path or None
        Weights to start from; random ones if None.
    synthesis : SynthesisSettings
        What images to draw; sides divisible by 8.
    batch_size : int
        Boxes per step.
    validation_batches : int
        Batches of two held-out boxes that figures are computed on.
    feature_size : int
        Width of the SwinUNETR, a multiple of 12.
    half : bool
        Write the weights in float16.

    Returns
    -------
    Path
        The weights.
    """
    architecture = {
        "name": "HippocampusSwinUNETR",
        "kwargs": {
            "in_channels": 1,
            "out_channels": len(BASE_CLASSES),
            "feature_size": feature_size,
        },
    }
    task = _Task("base", architecture, BASE_CLASSES, {}, box_batch, torch.channels_last_3d)
    return _pretrain(
        task,
        labelmaps,
        folder,
        settings,
        device,
        resume_from,
        synthesis=synthesis,
        batch_size=batch_size,
        validation_batches=validation_batches,
        half=half,
    )


def segmentation_loss(
    weights: torch.Tensor,
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Make the sum of a class-weighted cross-entropy and a Dice loss over whole batches.

    Dice is taken over the batch, because many images lack some class.

    Parameters
    ----------
    weights : torch.Tensor
        Weight of each class in the cross-entropy, shape ``(classes,)``.

    Returns
    -------
    callable
        ``loss(logits, targets)`` of shapes ``(batch, classes, x, y, z)`` and
        ``(batch, 1, x, y, z)``.
    """
    dice = DiceLoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)

    def loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits, targets[:, 0], weight=weights) + dice(logits, targets)

    return loss


@torch.inference_mode()
def synthetic_dice(
    model: nn.Module,
    make: Callable[[torch.Generator], Batch],
    labels: tuple[str, ...],
    batches: int,
    device: torch.device,
) -> dict[str, float]:
    """Mean Dice per class over the same random batches each time.

    Parameters
    ----------
    model : torch.nn.Module
        Network on `device`, in evaluation mode.
    make : callable
        Makes a batch from a generator.
    labels : tuple of str
        Names of the classes, background first.
    batches : int
        How many batches.
    device : torch.device
        Where to compute.

    Returns
    -------
    dict of str to float
        ``dice_<label>`` of all classes but the background, and their mean as ``dice_mean``.
        Images without a class do not count for it; a class that no image has is left out.
    """
    helper = DiceHelper(
        include_background=False,
        apply_argmax=False,
        num_classes=len(labels),
        get_not_nans=False,
        # else a class that an image lacks counts as 0
        reduction="none",
    )
    scores = []
    for i in range(batches):
        inputs, targets = make(torch.Generator(device).manual_seed(_VALIDATION_SEED + i))
        # autocast as in training, where it is on
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
            predicted = model(inputs).argmax(dim=1, keepdim=True)
        pairs = zip(predicted, targets, strict=True)
        scores += [torch.as_tensor(helper(p[None], t[None])).flatten() for p, t in pairs]
    mean = torch.stack(scores).nanmean(dim=0)
    figures = {
        f"dice_{label}": float(value)
        for label, value in zip(labels[1:], mean, strict=True)
        if not torch.isnan(value)
    }
    return figures | {"dice_mean": float(mean.nanmean())}


def _pretrain(
    task: _Task,
    labelmaps: Path,
    folder: Path,
    settings: LoopSettings,
    device: torch.device,
    resume_from: Path | None,
    *,
    synthesis: SynthesisSettings,
    batch_size: int,
    validation_batches: int,
    half: bool,
) -> Path:
    maps = load_labelmaps(labelmaps)
    if len(maps) <= HELD_OUT:
        raise UsageError(f"{labelmaps}: needs more than {HELD_OUT} label maps, has {len(maps)}")
    maps = maps.to(device)
    training, held_out = maps[:-HELD_OUT], maps[-HELD_OUT:]
    torch.manual_seed(settings.seed)
    model = _start(task, resume_from)
    # torch's own stubs forget the memory format
    model = model.to(device=device, memory_format=task.memory_format)  # type: ignore[call-overload]
    weights = torch.tensor([task.weights.get(label, 1.0) for label in task.labels], device=device)
    began = time.monotonic()
    figures = fit(
        model,
        lambda generator: task.maker(training, synthesis, batch_size, generator),
        segmentation_loss(weights),
        lambda network: synthetic_dice(
            network,
            lambda generator: task.maker(held_out, synthesis, 2, generator),
            task.labels,
            validation_batches,
            device,
        ),
        settings,
        folder,
        device,
    )
    start = "random weights"
    if resume_from:
        start = f"{resume_from.name} (sha256 {sha256(resume_from)})"
    card = {
        "architecture": task.architecture,
        "labels": list(task.labels),
        "license": "Apache-2.0",
        "training": {
            "start": start,
            "label maps": len(training),
            "held out": ", ".join(held_out.names),
            "steps": settings.steps,
            "batch size": batch_size,
            "learning rate": settings.learning_rate,
            "seed": settings.seed,
            "image": f"{' × '.join(map(str, synthesis.shape))} voxels of {synthesis.voxel:g} mm",
            "minutes of the last run": round((time.monotonic() - began) / 60, 1),
            "validation": figures,
        },
    }
    path = folder / f"{task.name}.safetensors"
    save_network(path, model, card, dtype=torch.float16 if half else torch.float32)
    write_model_card(
        path,
        title=f"{task.architecture['name']} {task.name}, pre-trained on synthetic brain MRI",
        card=card,
        data=_DATA.format(
            training=len(training), held_out=len(held_out), names=", ".join(held_out.names)
        ),
        license="Apache-2.0",
        hardware=hardware(device),
        notes=_NOTES,
    )
    return path


def _start(task: _Task, resume_from: Path | None) -> nn.Module:
    """Build a network, with weights of the same architecture and classes if there are any."""
    if resume_from is None:
        return build_network(task.architecture)
    model, card = load_network(resume_from)
    if card["architecture"] != task.architecture or card["labels"] != list(task.labels):
        raise UsageError(
            f"{resume_from}: has another architecture or other classes than the {task.name}: "
            f"{card['architecture']}, {card['labels']}"
        )
    return model
