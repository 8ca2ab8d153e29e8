"""Distillation: teach a smaller localizer to give the answers of a trained one.

The student is a BasicUNet with fewer features at full and half resolution, where nearly all of the
time goes, and with as many as the teacher below, where it takes over the teacher's weights. First
its encoder learns the features that the teacher has at a quarter of the resolution. Then all layers
that were not taken over learn the teacher's probabilities.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from monai.losses.dice import DiceLoss
from torch import nn

from hyps_bids.errors import UsageError
from hyps_bids.networks.cards import Architecture, read_network_card
from hyps_bids.networks.checkpoints import build_network, load_network, save_network
from hyps_bids.outputs.digests import sha256
from hyps_bids.pretraining.examples import (
    SYNTHESIS,
    Example,
    Sources,
    make_examples,
    read_example,
    read_heads,
)
from hyps_bids.pretraining.label_maps import HEAD_CLASSES, load_labelmaps
from hyps_bids.pretraining.pretrain import HELD_OUT
from hyps_bids.pretraining.synthesis import SynthesisSettings
from hyps_bids.segmentation.localize import SPACING
from hyps_bids.training.cards import hardware, write_model_card
from hyps_bids.training.loop import Batch, LoopSettings, Objective, run

#: Features of a student of the shipped localizer, which has 24, 32, 64, 128, 256 and 24.
FEATURES = (4, 16, 64, 128, 256, 4)

#: Layers of the first stage.
_ENCODER = ("conv_0", "down_1", "down_2")
#: Layers below the encoder; where they are the teacher's, they stay as they are.
_DEEP = ("down_3", "down_4", "upcat_4", "upcat_3")
#: Weight of hippocampus voxels, which are 1 in 1,000, against all others.
_HIPPOCAMPUS_WEIGHT = 20.0
#: The last layer has a few weights that must become large, and so it learns faster than the rest.
_HEAD_FACTOR = 5.0

_DATA = (
    "The probabilities that {teacher} gives for {examples} images, which were made from "
    "{label maps} whole-head label maps and from real images of heads ({real images}), deformed "
    "and degraded at random. More label maps ({held out}) are held out for validation. The maps "
    "that this project uses are SynthSeg's (Billot et al. 2023, Medical Image Analysis 86:102789, "
    "Apache-2.0)."
)
_NOTES = (
    "Research use. The loss is measured against the teacher on synthetic images of the held-out "
    "heads: it compares training runs, and does not say how well real heads are localized."
)


@dataclass(frozen=True)
class DistillationPlan:
    """What a localizer is distilled from, and into what.

    Attributes
    ----------
    teacher : Path
        Weights of a trained localizer, a BasicUNet.
    labelmaps : Path
        Folder of label maps; the last two in order of name are held out.
    images : sequence of Path
        Real T1w images of heads; half of the examples are made from them if there are any.
    features : tuple of int
        The student's features, as MONAI's BasicUNet takes them.
    examples, held_out : int
        Number of examples to train on, and to validate on.
    encoder_steps : int
        Steps of the first stage.
    synthesis : SynthesisSettings
        Ranges of the images.
    bfloat16 : bool
        Compute in this precision, which halves the time of a step where the processor knows it.
    """

    teacher: Path
    labelmaps: Path
    images: Sequence[Path] = ()
    features: tuple[int, ...] = FEATURES
    examples: int = 600
    held_out: int = 8
    encoder_steps: int = 500
    synthesis: SynthesisSettings = SYNTHESIS
    bfloat16: bool = False


class FastNetwork(nn.Module):
    """A network with the layout and the precision in which a training step takes least time."""

    def __init__(self, network: nn.Module, *, bfloat16: bool) -> None:
        super().__init__()
        self.is_low_precision = bfloat16
        # The stubs of torch lack the memory format.
        self.network = network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute what the network computes, in float32."""
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.is_low_precision):
            out: torch.Tensor = self.network(x.contiguous(memory_format=torch.channels_last_3d))
        return out.float()


def distill(
    plan: DistillationPlan,
    folder: Path,
    settings: LoopSettings,
    device: torch.device,
    *,
    half: bool = False,
) -> Path:
    """Train a smaller localizer and write it with its model card.

    Parameters
    ----------
    plan : DistillationPlan
        What to learn from.
    folder : Path
        Receives the examples, logs and checkpoints (from which an interrupted run resumes),
        ``localizer.safetensors`` and its model card.
    settings : LoopSettings
        How to train the second stage, and with how many steps.
    device : torch.device
        Where to compute.
    half : bool
        Write the weights in float16.

    Raises
    ------
    UsageError
        If the teacher is no localizer, there are too few label maps, or the folder holds the
        training of another plan.
    """
    card = read_network_card(plan.teacher)
    if card["architecture"]["name"] != "BasicUNet" or card["labels"] != list(HEAD_CLASSES):
        raise UsageError(
            f"{plan.teacher}: is no localizer; give a BasicUNet with the classes "
            f"{', '.join(HEAD_CLASSES)}",
            code="teacher-no-localizer",
        )
    teacher, _ = load_network(plan.teacher)
    training, checks, facts = _examples(plan, teacher, folder, device)
    kwargs = card["architecture"]["kwargs"] | {"features": [*plan.features]}
    architecture: Architecture = {"name": "BasicUNet", "kwargs": kwargs}
    torch.manual_seed(settings.seed)
    student = build_network(architecture)
    take_over(student, teacher)
    student.to(device)
    for part, steps, draw, loss, place in (
        (encoder(student), plan.encoder_steps, draw_features, feature_loss, folder / "encoder"),
        (student, settings.steps, draw_probabilities, distillation_loss, folder),
    ):
        outcome = run(
            FastNetwork(part, bfloat16=plan.bfloat16),
            _objective(training, checks, draw, loss, device),
            replace(
                settings,
                steps=steps,
                head_learning_rate=_HEAD_FACTOR * settings.learning_rate,
            ),
            place,
            device,
            identity={**facts, "features": [*plan.features]},
            title=place.name,
        )
    trained = {
        **facts,
        "steps": settings.steps,
        "steps of the encoder": plan.encoder_steps,
        "learning rate": settings.learning_rate,
        "seed": settings.seed,
        "validation": outcome.metrics,
    }
    path = folder / "localizer.safetensors"
    new_card = {**card, "architecture": architecture, "training": trained}
    save_network(path, student, new_card, dtype=torch.float16 if half else torch.float32)
    write_model_card(
        path,
        title="BasicUNet localizer, distilled from a larger one",
        card=new_card,
        data=_DATA.format(**facts),
        license=card.get("license", "that of the teacher"),
        hardware=hardware(device),
        notes=_NOTES,
    )
    return path


def take_over(student: nn.Module, teacher: nn.Module) -> None:
    """Give the student every tensor of the teacher that fits, and freeze its deep layers, in place.

    A deep layer is frozen if all of its tensors fit.
    """
    own = student.state_dict()
    same = {n: t for n, t in teacher.state_dict().items() if own[n].shape == t.shape}
    student.load_state_dict(own | same)
    for layer in _DEEP:
        if all(name in same for name in own if name.startswith(f"{layer}.")):
            student.get_submodule(layer).requires_grad_(False)


def encoder(network: nn.Module) -> nn.Sequential:
    """Return the layers of a BasicUNet down to a quarter of the resolution; weights are shared."""
    return nn.Sequential(*(network.get_submodule(name) for name in _ENCODER))


def feature_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Compute the fraction of the variance of the teacher's features that is not explained."""
    return F.mse_loss(output, target) / target.var()


def distillation_loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Compare the student's logits with the teacher's probabilities; the least value is 0.

    The sum of the Kullback-Leibler divergence, in which voxels of the hippocampi weigh more, and a
    Dice loss over the batch. Both tensors have shape ``(batch, classes, x, y, z)``.
    """
    divergence = F.kl_div(logits.log_softmax(dim=1), target, reduction="none").sum(dim=1)
    weight = 1 + (_HIPPOCAMPUS_WEIGHT - 1) * target[:, 2:].sum(dim=1)
    # With squares in the denominator the loss is least at the target itself, not at its arg-max.
    dice = DiceLoss(include_background=False, softmax=True, squared_pred=True, batch=True)
    value: torch.Tensor = (weight * divergence).sum() / weight.sum() + dice(logits, target)
    return value


def draw_features(paths: Sequence[Path], generator: torch.Generator) -> Batch:
    """Draw an example's image and the teacher's features."""
    example = _draw(paths, generator)
    return example.image, example.features


def draw_probabilities(paths: Sequence[Path], generator: torch.Generator) -> Batch:
    """Draw an example's image and the teacher's probabilities, half of the time mirrored."""
    example = _draw(paths, generator)
    image, target = example.image, example.probabilities
    if torch.rand(1, generator=generator, device=generator.device) < 0.5:
        # The classes of the hippocampi change places, too.
        image, target = image.flip(2), target.flip(2)[:, [0, 1, 3, 2]]
    return image, target


def _draw(paths: Sequence[Path], generator: torch.Generator) -> Example:
    which = torch.randint(len(paths), (1,), generator=generator, device=generator.device)
    return read_example(paths[int(which)], generator.device)


def _examples(
    plan: DistillationPlan, teacher: nn.Module, folder: Path, device: torch.device
) -> tuple[list[Path], list[Path], dict[str, Any]]:
    """Make the examples to train on and those to validate on, and say what they come from."""
    maps = load_labelmaps(plan.labelmaps).to(device)
    if len(maps) <= HELD_OUT:
        message = f"{plan.labelmaps}: needs more than {HELD_OUT} label maps, but holds {len(maps)}"
        raise UsageError(message, code="label-maps-too-few")
    fast = FastNetwork(teacher.requires_grad_(False).to(device), bfloat16=plan.bfloat16)
    sources = Sources(maps[:-HELD_OUT], read_heads(plan.images), plan.synthesis)
    training = make_examples(fast, sources, folder / "examples", plan.examples)
    unseen = Sources(maps[-HELD_OUT:], (), plan.synthesis)
    checks = make_examples(fast, unseen, folder / "held_out", plan.held_out)
    facts = {
        "teacher": f"{plan.teacher.name} (sha256 {sha256(plan.teacher)})",
        "examples": plan.examples,
        "label maps": len(sources.maps),
        "held out": ", ".join(unseen.maps.names),
        "real images": ", ".join(path.name for path in plan.images) or "none",
        "image": f"about {SPACING:g} mm, in the localizer's window",
    }
    return training, checks, facts


def _objective(
    training: Sequence[Path],
    checks: Sequence[Path],
    draw: Callable[[Sequence[Path], torch.Generator], Batch],
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    device: torch.device,
) -> Objective:
    @torch.inference_mode()
    def validate(network: nn.Module) -> dict[str, float]:
        generator = torch.Generator(device)
        pairs = (draw([path], generator.manual_seed(0)) for path in checks)
        losses = [float(loss(network(image), target)) for image, target in pairs]
        return {"loss": sum(losses) / len(losses)}

    return Objective(lambda generator: draw(training, generator), loss, validate)
