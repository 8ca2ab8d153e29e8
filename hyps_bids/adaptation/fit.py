"""Transfer of a pre-trained segmentation network to a labeled protocol."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.losses import DiceCELoss, DiceLoss
from torch import nn

from hyps_bids.adaptation.crops import Crops, augmented_batch, find_tissues, plain_batch
from hyps_bids.errors import UsageError
from hyps_bids.imaging.agreement import dice
from hyps_bids.imaging.volumes import decide
from hyps_bids.networks.adapters.config import AdapterConfig
from hyps_bids.networks.adapters.network import add_adapters, parameter_counts
from hyps_bids.networks.cards import GRID, read_card
from hyps_bids.networks.checkpoints import load_adapted, load_network, replace_head, save_adapter
from hyps_bids.outputs.digests import sha256
from hyps_bids.outputs.labels import WHOLE
from hyps_bids.pretraining.label_maps import BASE_CLASSES
from hyps_bids.training.cards import describe_parts
from hyps_bids.training.checkpoint import Part
from hyps_bids.training.contrasts import ContrastSettings
from hyps_bids.training.distributed import Processes
from hyps_bids.training.loop import LoopSettings, Objective, Session, run

_LOG = logging.getLogger("hyps_bids")

#: name → loss; each a mean over samples, so that several processes can share a batch
LOSSES: dict[str, Callable[[], nn.Module]] = {
    "dice+ce": lambda: DiceCELoss(include_background=False, to_onehot_y=True, softmax=True),
    "dice": lambda: DiceLoss(include_background=False, to_onehot_y=True, softmax=True),
}


@dataclass(frozen=True)
class Recipe:
    """Everything besides the crops that decides the weights of an adapter."""

    #: The pre-trained network.
    base: Path
    #: Name of each class in order → names of the base's classes it starts from
    labels: dict[str, list[str]]
    config: AdapterConfig
    loop: LoopSettings
    #: Crops per step.
    batch_size: int = 2
    #: Strength of the augmentation, in [0, 1]
    augmentation: float = 1.0
    #: Random contrasts to train on, besides the crops' own; needs a base with our classes.
    contrasts: ContrastSettings | None = None
    #: A name in :data:`LOSSES`
    loss: str = "dice+ce"
    #: Adapter of the same base and classes to go on from; its settings replace `config`
    start: Path | None = None
    #: Seed of the parts that start at random, if not that of the loop: adapters of several seeds
    #: can be averaged only if they start from the same weights.
    start_seed: int | None = None
    #: Whether to write the weights in half precision.
    half: bool = False
    #: More facts to record with the weights.
    card: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 <= self.augmentation <= 1:
            raise UsageError(
                f"The strength of the augmentation must lie between 0 and 1, not be "
                f"{self.augmentation}",
                code="augmentation-range",
            )

    def build(self) -> tuple[nn.Module, AdapterConfig]:
        """Make the network to train, on the CPU, and say how it is adapted."""
        if self.start is None:
            model, base_card = load_network(self.base)
            replace_head(model, base_card["labels"], self.labels)
            add_adapters(model, self.config)
            return model, self.config
        model, earlier = load_adapted(self.start, self.base)
        if earlier["labels"] != list(self.labels):
            raise UsageError(
                f"{self.start}: this adapter has the classes {earlier['labels']}, not "
                f"{list(self.labels)}",
                code="adapter-classes-differ",
            )
        return model, AdapterConfig.from_card(earlier["adapter"])

    def identity(
        self, config: AdapterConfig, training: Crops, validation: Crops | None
    ) -> dict[str, Any]:
        """Collect what a fit depends on; the keys are compared with those of old checkpoints."""
        return {
            "training data": training.digest(),
            "validation data": validation.digest() if validation is not None else None,
            "classes": list(self.labels),
            "adapter": asdict(config),
            "base": sha256(self.base),
            "start": sha256(self.start) if self.start else None,
            "batch size": self.batch_size,
            "augmentation": self.augmentation,
            "loss": self.loss,
        } | self._options()

    def _options(self) -> dict[str, Any]:
        """Collect what older fits did not have."""
        options: dict[str, Any] = {}
        if self.contrasts is not None:
            options["contrasts"] = asdict(self.contrasts)
        if self.start_seed is not None:
            options["start seed"] = self.start_seed
        return options


@dataclass(frozen=True)
class FittedAdapter:
    """An adapter that was trained and written."""

    path: Path
    #: Dice of these weights on the validation crops; empty without any.
    metrics: dict[str, float]
    #: Step after which the weights were these, and number of steps taken.
    step: int
    steps: int
    #: Numbers of parameters: ``adapters``, ``trainable`` and ``total``
    parameters: dict[str, int]
    #: Where the steps were taken.
    parts: list[Part] = field(default_factory=list)


def fit_adapter(
    recipe: Recipe,
    training: Crops,
    validation: Crops | None,
    folder: Path,
    device: torch.device,
    *,
    processes: Processes | None = None,
    session: Session | None = None,
    title: str | None = None,
) -> FittedAdapter:
    """Train an adapter and write it.

    Parameters
    ----------
    recipe : Recipe
        What to train, and how.
    training : Crops
        Labeled crops; classes ``1 … len(recipe.labels)``.
    validation : Crops or None
        Crops of other subjects, for the metrics and for stopping early.
    folder : Path
        Receives the log, the checkpoint and ``adapter.safetensors``.
    device, processes, session, title : torch.device, Processes, Session, str
        As in :func:`hyps_bids.training.loop.run`, whose errors it also raises.
    """
    processes = processes or Processes()
    torch.manual_seed(recipe.loop.seed if recipe.start_seed is None else recipe.start_seed)
    model, config = recipe.build()
    counts = parameter_counts(model)
    if processes.is_main_process:
        trained = f"{counts.trainable:,} of {counts.total:,}"
        percent = 100 * counts.trainable / counts.total
        _LOG.info("%s: %s parameters are trained (%.1f %%)", config.method, trained, percent)
    identity = recipe.identity(config, training, validation)
    if recipe.contrasts is not None:
        training = find_tissues(training.to(device), tissue_network(recipe.base).to(device))
    # The type stubs of Module.to do not know memory_format.
    model = model.to(device).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    on_device = training.to(device)
    held_out = validation.to(device) if validation is not None and len(validation) else None
    names = list(recipe.labels)
    objective = Objective(
        lambda generator: augmented_batch(
            on_device,
            recipe.batch_size,
            len(names) + 1,
            generator,
            strength=recipe.augmentation,
            contrasts=recipe.contrasts,
        ),
        LOSSES[recipe.loss](),
        lambda network: crop_dice(network, held_out, names) if held_out else {},
    )
    outcome = run(
        model,
        objective,
        recipe.loop,
        folder,
        device,
        identity=identity,
        processes=processes,
        session=session,
        title=title,
    )
    fitted = FittedAdapter(
        folder / "adapter.safetensors",
        outcome.metrics,
        outcome.step,
        outcome.steps,
        asdict(counts),
        outcome.parts,
    )
    if processes.is_main_process:
        card = _card(recipe, fitted, len(training))
        dtype = torch.float16 if recipe.half else torch.float32
        save_adapter(fitted.path, model, config, recipe.base, card, dtype=dtype)
    return fitted


def tissue_network(base: Path) -> nn.Module:
    """Load a base that names tissues, as random contrasts need them.

    Raises
    ------
    MissingInput, BadData, UsageError
        If there is no such base, or it has other classes than the shipped one.
    """
    network, card = load_network(base)
    if card["labels"] != list(BASE_CLASSES):
        raise UsageError(
            f"{base}: random contrasts need a base with the tissue classes of the shipped one",
            code="base-without-tissues",
        )
    return network.eval()


def starting_points(
    classes: Sequence[str], start_from: Sequence[str], base_labels: Sequence[str]
) -> dict[str, list[str]]:
    """Map each new class to the class of the base that it starts from.

    `start_from` names one class of the base for all new ones, or one for each; without any, the
    classes start at zero. An error is raised if the base lacks a class or the numbers do not fit.

    Examples
    --------
    >>> starting_points(["anterior", "posterior"], ["hippocampus"], ["background", "hippocampus"])
    {'anterior': ['hippocampus'], 'posterior': ['hippocampus']}
    """
    unknown = [name for name in start_from if name not in base_labels]
    if unknown:
        raise UsageError(
            f"--start-from {', '.join(unknown)}: the base has the classes "
            f"{', '.join(base_labels)} only",
            code="base-class-unknown",
        )
    sources = [[name] for name in start_from] or [[]]
    if len(sources) == 1:
        sources = sources * len(classes)
    if len(sources) != len(classes) or len(set(classes)) != len(classes):
        raise UsageError(
            "The classes must be distinct, and --start-from needs one name for all or one for each",
            code="classes-do-not-fit",
        )
    return dict(zip(classes, sources, strict=True))


@torch.inference_mode()
def crop_dice(
    model: Callable[[torch.Tensor], torch.Tensor] | nn.Module, crops: Crops, names: Sequence[str]
) -> dict[str, float]:
    """Mean Dice per class and of all classes together ("whole") over crops.

    Labels that lie outside the network's box count as missed. A crop without a class does not
    count for it; a class that no crop has is left out.
    """
    found: dict[str, list[float]] = {f"dice_{name}": [] for name in (*names, WHOLE)}
    for start in range(0, len(crops), 4):
        inputs, targets = plain_batch(crops, slice(start, start + 4))
        pairs = zip(predict_classes(model(inputs)), targets[:, 0].cpu().numpy(), strict=True)
        for predicted, target in pairs:
            masks = [(predicted == i, target == i) for i in range(1, len(names) + 1)]
            masks.append((predicted > 0, target > 0))
            for values, (ours, theirs) in zip(found.values(), masks, strict=True):
                if theirs.any():
                    values.append(dice(ours, theirs))
    return {name: math.fsum(values) / len(values) for name, values in found.items() if values}


def predict_classes(logits: torch.Tensor) -> np.ndarray:
    """Label voxels as :func:`hyps_bids.imaging.volumes.decide` does.

    Logits of shape ``(n, classes, x, y, z)``, background first, become classes ``(n, x, y, z)``.
    """
    return decide(logits.softmax(dim=1)[:, 1:].movedim(1, 0).cpu().numpy())


def _describe_contrasts(contrasts: ContrastSettings | None) -> str:
    if contrasts is None:
        return "that of the crops"
    return (
        f"that of the crops, {contrasts.mapped:.0%} with a random intensity map and "
        f"{contrasts.recolored:.0%} with random intensities of tissues"
    )


def _describe_start(start: Path | None) -> str:
    """Name what a training started from, and how that was trained itself."""
    if start is None:
        return "base"
    earlier = dict(read_card(start).get("training", {}))
    earlier.pop("validation", None)
    facts = ", ".join(f"{name} {value}" for name, value in earlier.items())
    name = f"{start.name}, sha256 {sha256(start)}"
    return f"{name} (its training: {facts})" if facts else name


def _card(recipe: Recipe, fitted: FittedAdapter, crops: int) -> dict[str, Any]:
    """Collect the facts that go with the weights."""
    return {
        "labels": list(recipe.labels),
        "grid": list(GRID),
        "training": {
            "crops": crops,
            "steps": fitted.step,
            "batch_size": recipe.batch_size,
            "augmentation": recipe.augmentation,
            "loss": recipe.loss,
            "contrasts": _describe_contrasts(recipe.contrasts),
            "optimizer": recipe.loop.optimizer,
            "learning_rate": recipe.loop.learning_rate,
            "started from": _describe_start(recipe.start),
            "seed": recipe.loop.seed,
            "trainable parameters": "{trainable:,} of {total:,}".format(**fitted.parameters),
            "validation": fitted.metrics,
        }
        | ({"steps were taken": describe_parts(fitted.parts)} if len(fitted.parts) > 1 else {}),
    } | dict(recipe.card)
