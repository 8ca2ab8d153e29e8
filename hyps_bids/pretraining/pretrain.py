"""Pre-training of the localizer and of the base network on synthetic images."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from monai.losses.dice import DiceLoss
from monai.metrics.meandice import DiceHelper
from torch import nn

from hyps_bids.errors import UsageError
from hyps_bids.networks.cards import (
    LOCALIZER,
    Architecture,
    NetworkCard,
    read_card,
    shipped_weights,
)
from hyps_bids.networks.checkpoints import build_network, load_network, save_network
from hyps_bids.outputs.digests import sha256
from hyps_bids.pretraining.label_maps import BASE_CLASSES, HEAD_CLASSES, LabelMaps, load_labelmaps
from hyps_bids.pretraining.synthesis import BOX, HEAD, SynthesisSettings, box_batch, head_batch
from hyps_bids.training.cards import describe_parts, hardware, write_model_card
from hyps_bids.training.loop import Batch, LoopSettings, Objective, Session, run

#: Number of label maps, the last in order of name, that are never trained on.
HELD_OUT = 2

#: Weight of the hippocampi in the localizer's cross-entropy; they are 1 voxel in 2,000.
_HIPPOCAMPUS_WEIGHT = 6.0
_VALIDATION_SEED = 20_240

_DATA = (
    "Synthetic images only, made on the fly from {training} whole-head label maps; {held_out} more "
    "({names}) are held out for validation. No real image was seen. The maps that this project "
    "uses are SynthSeg's (Billot et al. 2023, Medical Image Analysis 86:102789, Apache-2.0)."
)
_NOTES = (
    "Research use. The metrics are Dice coefficients on synthetic images of the held-out heads, "
    "many of them far worse than real ones: they compare training runs, and do not say how well "
    "real scans are segmented."
)


@dataclass(frozen=True)
class PretrainingTask:
    """A network to pre-train, and the synthetic images to train it on."""

    #: Stem of the weights file.
    name: str
    architecture: Architecture
    #: Classes in the order of the network's outputs, background first.
    labels: tuple[str, ...]
    #: Draws a batch: :func:`head_batch` or :func:`box_batch`
    draw: Callable[[LabelMaps, SynthesisSettings, int, torch.Generator], Batch]
    #: Ranges of the images, whose sides are divisible by 16 (localizer) or 8 (base)
    synthesis: SynthesisSettings
    #: Images per step.
    batch_size: int
    #: Number of batches of two held-out images for the metrics.
    validation_batches: int = 8
    #: Weights of classes in the cross-entropy, where they are not 1.
    class_weights: dict[str, float] = field(default_factory=dict)
    #: Layout of the weights; channels-last slows instance norm down.
    memory_format: torch.memory_format = torch.contiguous_format


def localizer_task() -> PretrainingTask:
    """Return the task of finding the brain and both hippocampi in a whole head."""
    return PretrainingTask(
        "localizer",
        cast(NetworkCard, read_card(shipped_weights(LOCALIZER)))["architecture"],
        HEAD_CLASSES,
        head_batch,
        HEAD,
        batch_size=12,
        class_weights=dict.fromkeys(HEAD_CLASSES[2:], _HIPPOCAMPUS_WEIGHT),
    )


def base_task(feature_size: int = 24) -> PretrainingTask:
    """Return the task of distinguishing brain structures in a box around a hippocampus.

    `feature_size` is the width of the SwinUNETR, a multiple of 12.
    """
    size = {"in_channels": 1, "out_channels": len(BASE_CLASSES), "feature_size": feature_size}
    architecture: Architecture = {"name": "HippocampusSwinUNETR", "kwargs": size}
    return PretrainingTask(
        "base",
        architecture,
        BASE_CLASSES,
        box_batch,
        BOX,
        batch_size=16,
        memory_format=torch.channels_last_3d,
    )


def pretrain(
    task: PretrainingTask,
    labelmaps: Path,
    folder: Path,
    settings: LoopSettings,
    device: torch.device,
    start: Path | None = None,
    *,
    half: bool = False,
    session: Session | None = None,
) -> Path:
    """Train a network on synthetic images and write it with its model card.

    Parameters
    ----------
    task : PretrainingTask
        The network and its images.
    labelmaps : Path
        Folder of label maps; the last two in order of name are held out.
    folder : Path
        Receives the log, the checkpoint (from which an interrupted run resumes),
        ``<name>.safetensors`` and its model card.
    settings : LoopSettings
        How to train.
    device : torch.device
        Where to train.
    start : Path, optional
        Weights to start from; random ones if None.
    half : bool
        Write the weights in float16.
    session : Session, optional
        Where this process trains, and for how long.

    Raises
    ------
    UsageError
        If there are too few label maps, `start` holds another network, or the folder holds the
        training of another network or from another start.
    NotFinished
        If the session's time is over.
    """
    training, held_out = split_labelmaps(labelmaps, device)
    torch.manual_seed(settings.seed)
    model = _start(task, start)
    # The stubs of torch lack the memory format.
    model = model.to(device=device, memory_format=task.memory_format)  # type: ignore[call-overload]
    began = time.monotonic()
    session = session or Session(hardware(device), task.batch_size)
    identity = {
        "label maps": list(training.names),
        "held out": list(held_out.names),
        "architecture": task.architecture,
        "start": sha256(start) if start else None,
        "batch size": task.batch_size,
    }
    objective = _objective(task, training, held_out, device)
    outcome = run(model, objective, settings, folder, device, identity=identity, session=session)
    shape = " × ".join(map(str, task.synthesis.shape))
    held_out_names = ", ".join(held_out.names)
    card = {
        "architecture": task.architecture,
        "labels": list(task.labels),
        "license": "Apache-2.0",
        "training": {
            "start": f"{start.name} (sha256 {sha256(start)})" if start else "random weights",
            "label maps": len(training),
            "held out": held_out_names,
            "steps": settings.steps,
            "batch size": task.batch_size,
            "steps were taken": describe_parts(outcome.parts),
            "learning rate": settings.learning_rate,
            "seed": settings.seed,
            "image": f"{shape} voxels of {task.synthesis.voxel:g} mm",
            "minutes of the last run": round((time.monotonic() - began) / 60, 1),
            "validation": outcome.metrics,
        },
    }
    path = folder / f"{task.name}.safetensors"
    save_network(path, model, card, dtype=torch.float16 if half else torch.float32)
    write_model_card(
        path,
        title=f"{task.architecture['name']} {task.name}, pre-trained on synthetic brain MRI",
        card=card,
        data=_DATA.format(training=len(training), held_out=len(held_out), names=held_out_names),
        license="Apache-2.0",
        hardware=hardware(device),
        notes=_NOTES,
    )
    return path


def split_labelmaps(labelmaps: Path, device: torch.device) -> tuple[LabelMaps, LabelMaps]:
    """Read label maps onto a device: those to train on, and those that are held out."""
    maps = load_labelmaps(labelmaps)
    if len(maps) <= HELD_OUT:
        message = f"{labelmaps}: needs more than {HELD_OUT} label maps, but holds {len(maps)}"
        raise UsageError(message, code="label-maps-too-few")
    maps = maps.to(device)
    return maps[:-HELD_OUT], maps[-HELD_OUT:]


def segmentation_loss(
    weights: torch.Tensor,
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Make the sum of a class-weighted cross-entropy and a Dice loss over whole batches.

    Dice is taken over the batch, because many images lack some class. The loss takes logits
    of shape ``(batch, classes, x, y, z)`` and targets of shape ``(batch, 1, x, y, z)``.
    """
    dice = DiceLoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)

    def loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits, targets[:, 0], weight=weights) + dice(logits, targets)

    return loss


@torch.inference_mode()
def synthetic_dice(
    model: nn.Module,
    draw: Callable[[torch.Generator], Batch],
    labels: tuple[str, ...],
    batches: int,
    device: torch.device,
) -> dict[str, float]:
    """Compute the mean Dice per class, each time on the same random batches.

    The result has ``dice_<label>`` of all classes but the background, and their mean. Images
    without a class do not count for it; a class that no image has is left out.
    """
    helper = DiceHelper(
        include_background=False,
        apply_argmax=False,
        num_classes=len(labels),
        get_not_nans=False,
        # Other reductions count a class that an image lacks as 0.
        reduction="none",
    )
    scores = []
    for i in range(batches):
        inputs, targets = draw(torch.Generator(device).manual_seed(_VALIDATION_SEED + i))
        # Use autocast wherever training does.
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
            predicted = model(inputs).argmax(dim=1, keepdim=True)
        pairs = zip(predicted, targets, strict=True)
        scores += [torch.as_tensor(helper(p[None], t[None])).flatten() for p, t in pairs]
    mean = torch.stack(scores).nanmean(dim=0)
    metrics = {
        f"dice_{label}": float(value)
        for label, value in zip(labels[1:], mean, strict=True)
        if not torch.isnan(value)
    }
    return metrics | {"dice_mean": float(mean.nanmean())}


def _objective(
    task: PretrainingTask, training: LabelMaps, held_out: LabelMaps, device: torch.device
) -> Objective:
    weights = [task.class_weights.get(label, 1.0) for label in task.labels]
    return Objective(
        lambda generator: task.draw(training, task.synthesis, task.batch_size, generator),
        segmentation_loss(torch.tensor(weights, device=device)),
        lambda network: synthetic_dice(
            network,
            lambda generator: task.draw(held_out, task.synthesis, 2, generator),
            task.labels,
            task.validation_batches,
            device,
        ),
    )


def _start(task: PretrainingTask, start: Path | None) -> nn.Module:
    """Build the network, with the weights of a file if there is one."""
    if start is None:
        return build_network(task.architecture)
    model, card = load_network(start)
    if card["architecture"] != task.architecture or card["labels"] != list(task.labels):
        raise UsageError(
            f"{start}: has another architecture or other classes than the {task.name}: "
            f"{card['architecture']}, {card['labels']}",
            code="start-other-network",
        )
    return model
