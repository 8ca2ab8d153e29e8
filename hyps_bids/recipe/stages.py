"""The stages of a recipe, each in a folder of its own, and each resumable at any second.

A stage is done when its ``result.json`` is there, which is written last. Before that, the training
loop's checkpoint says how far it is. A lock, which the system releases however a process ends,
lets several processes share the stages of one folder.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from hyps_bids.adaptation.crops import Crops, load_crops
from hyps_bids.adaptation.fit import Recipe, fit_adapter, starting_points
from hyps_bids.errors import NotFinished, UsageError
from hyps_bids.labels.msd import msd_subject, split_every_fifth, validation_subjects
from hyps_bids.networks.cards import ADAPTER, BASE, LOCALIZER, read_card
from hyps_bids.outputs.digests import sha256
from hyps_bids.outputs.reading import read_json_object
from hyps_bids.outputs.writing import remove_file, write_json, write_with
from hyps_bids.pretraining.pretrain import (
    PretrainingTask,
    base_task,
    localizer_task,
    pretrain,
    split_labelmaps,
)
from hyps_bids.recipe.judge import network_metrics
from hyps_bids.recipe.plan import RecipePlan
from hyps_bids.system import lock_file
from hyps_bids.training.cards import describe_parts, hardware, write_model_card
from hyps_bids.training.checkpoint import differences
from hyps_bids.training.loop import Session

#: Stage → name of its weights among those that are shipped
SHIPPED = {"localizer": LOCALIZER, "base": BASE, "adapter": ADAPTER}
#: File that a stage writes last.
RESULT = "result.json"


@dataclass(frozen=True)
class Workshop:
    """Where, from what and on which device the stages run."""

    plan: RecipePlan
    #: Folder of the data, of the results, and of the weights that are there now.
    data: Path
    output: Path
    weights: Path
    device: torch.device
    #: Value of :func:`time.monotonic` at which the process must have ended.
    deadline: float | None = None
    compiled: bool = False
    #: Receives one line about each stage.
    tell: Callable[[str], None] = print

    def session(self, batch_size: int) -> Session:
        """Describe this process for the training loop."""
        return Session(hardware(self.device), batch_size, self.deadline, self.compiled)

    def check_time(self, stage: str) -> None:
        """Raise an error if there is no time to begin something."""
        if self.deadline is not None and time.monotonic() > self.deadline:
            raise NotFinished(
                f"{stage}: the time is over; the same command goes on from there",
                code="time-over",
            )

    def shipped(self, stage: str) -> Path | None:
        """Return the weights that were there when the first stage needed them, if any.

        They are copied, because a later step may replace them.
        """
        name = f"{SHIPPED[stage]}.safetensors"
        copy = self.output / "before" / name
        if not copy.is_file() and (self.weights / name).is_file():
            copy_file(self.weights / name, copy)
        return copy if copy.is_file() else None

    def start(self, stage: str, name: str) -> Path | None:
        """Return the weights that a recipe's ``start`` names; None for random ones."""
        if name in ("random", "base"):
            return None
        return self.shipped(stage) if name == "shipped" else self.data / name

    @cached_property
    def crops(self) -> tuple[Crops, Crops]:
        """The labeled crops to train on, and those to validate on."""
        folders = self.plan.data
        crops = load_crops(self.data / folders.images, self.data / folders.labels)
        subjects = [msd_subject(name) for name in crops.ids]
        _, test = split_every_fifth(subjects)
        held = validation_subjects(subjects, folders.validation)
        return (
            crops.select(lambda name: msd_subject(name) not in test | held),
            crops.select(lambda name: msd_subject(name) in held),
        )

    def base(self) -> Path:
        """Return the base for adapters: the trained one if it is better, or the one before."""
        path = self.output / "base" / "base.safetensors"
        result = read_result(path.parent)
        if result is None or not result["better"]:
            before = self.shipped("base")
            if before is not None:
                return before
            if result is None:
                raise UsageError(
                    f"{self.weights}: there is no {BASE}.safetensors, and the stage 'base' has "
                    "not been run",
                    code="no-base",
                )
        # Adapters name their base, and so it must have its final name.
        named = path.with_name(f"{BASE}.safetensors")
        if not named.is_file():
            copy_file(path, named)
        return named


def network_task(stage: str) -> PretrainingTask:
    """Return the task of a stage that pre-trains a network."""
    return localizer_task() if stage == "localizer" else base_task()


def train_network(
    workshop: Workshop, stage: str, task: Callable[[str], PretrainingTask] = network_task
) -> bool:
    """Train the localizer or the base, and compare it with the one before.

    Parameters
    ----------
    workshop : Workshop
        Where to train.
    stage : str
        ``localizer`` or ``base``.
    task : callable
        Makes the task.

    Returns
    -------
    bool
        Whether the stage is done; another process may have it.

    Raises
    ------
    NotFinished
        If the time is over.
    """
    plan, folder = workshop.plan.networks[stage], workshop.output / stage
    workshop.check_time(stage)
    with claim(folder) as is_free:
        if not is_free:
            workshop.tell(f"{stage}: another process trains it")
            return False
        start = workshop.start(stage, plan.start)
        identity = {"loop": asdict(plan.loop), "start": sha256(start) if start else None}
        result = read_result(folder, identity)
        if result is None:
            size = plan.batch_size[workshop.device.type]
            own = replace(task(stage), batch_size=size)
            maps, device = workshop.data / workshop.plan.data.labelmaps, workshop.device
            session = workshop.session(size)
            path = pretrain(own, maps, folder, plan.loop, device, start, half=True, session=session)
            workshop.check_time(f"{stage}, comparison")
            _, held_out = split_labelmaps(maps, device)
            before = workshop.shipped(stage)
            old = network_metrics(before, own, held_out, device) if before else None
            new = network_metrics(path, own, held_out, device)
            result = {
                "identity": identity,
                "metrics": new,
                "before": old,
                "better": old is None or new["dice_mean"] > old["dice_mean"],
            }
            finish(folder, result)
    workshop.tell(f"{stage}: done; {_compare(result)}")
    return True


def train_adapters(workshop: Workshop, seeds: Sequence[int]) -> bool:
    """Train an adapter for each seed; say whether all are done.

    Raises
    ------
    NotFinished
        If the time is over.
    """
    return all([_train_adapter(workshop, seed) for seed in seeds])


def adapter_folder(workshop: Workshop, seed: int) -> Path:
    """Return the folder of the adapter of a seed."""
    return workshop.output / f"adapter-{seed}"


def adapter_recipe(workshop: Workshop, seed: int) -> Recipe:
    """Return what the adapter of a seed depends on."""
    plan, base = workshop.plan.adapter, workshop.base()
    start = workshop.start("adapter", plan.start)
    loop = plan.loop
    if plan.start == "base" or start is None or not is_adapter_of(start, base):
        start, loop = None, plan.loop_of_new_base
    size = plan.batch_size[workshop.device.type]
    return Recipe(
        base,
        starting_points(plan.classes, plan.start_from, read_card(base)["labels"]),
        plan.config,
        replace(loop, seed=seed),
        batch_size=size,
        contrasts=plan.contrasts,
        start=start,
        start_seed=plan.seeds[0] if start is None else None,
        half=True,
        card={"license": plan.license},
    )


def write_adapter_card(workshop: Workshop, path: Path, hardware: str) -> None:
    """Write the model card of an adapter of the recipe."""
    plan, (training, validation) = workshop.plan.adapter, workshop.crops
    people = [len({msd_subject(name) for name in part.ids}) for part in (training, validation)]
    write_model_card(
        path,
        title=plan.title,
        card=read_card(path),
        data=f"{plan.data}: {len(training)} crops of {people[0]} subjects for training, "
        f"{len(validation)} crops of {people[1]} subjects (every {workshop.plan.data.validation}th "
        "of those that are not in the test set) for validation. The crops of every fifth subject "
        "are the test set and were used for neither.",
        license=plan.license,
        hardware=hardware,
        notes=plan.notes,
    )


def is_adapter_of(adapter: Path, base: Path) -> bool:
    """Tell whether an adapter was trained on this base."""
    card = read_card(adapter)
    return card["kind"] == "adapter" and card["base"]["sha256"] == sha256(base)


@contextmanager
def claim(folder: Path) -> Iterator[bool]:
    """Hold the lock of a stage's folder; yields whether this process has got it."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w", encoding="utf-8") as stream:
        yield lock_file(stream)


def read_result(folder: Path, identity: dict[str, Any] | None = None) -> dict[str, Any] | None:
    """Read the result of a stage; None if it is not done.

    Raises
    ------
    UsageError
        If it is that of another recipe than `identity` says.
    """
    path = folder / RESULT
    if not path.is_file():
        return None
    result = read_json_object(path)
    if identity is not None and result["identity"] != identity:
        raise UsageError(
            f"{folder}: this stage was run with other "
            f"{differences(result['identity'], identity)}; give another output folder, or remove "
            "this one to repeat the stage",
            code="stage-differs",
        )
    return result


def finish(folder: Path, result: dict[str, Any]) -> None:
    """Mark a stage as done, and remove its checkpoint, which is larger than all the rest."""
    write_json(folder / RESULT, result)
    remove_file(folder / "checkpoint.pt")


def copy_file(source: Path, target: Path) -> None:
    """Copy a file; the target is never half there."""
    write_with(target, lambda partial: shutil.copyfile(source, partial))


def _train_adapter(workshop: Workshop, seed: int) -> bool:
    folder, stage = adapter_folder(workshop, seed), f"adapter-{seed}"
    workshop.check_time(stage)
    with claim(folder) as is_free:
        if not is_free:
            workshop.tell(f"{stage}: another process trains it")
            return False
        recipe = adapter_recipe(workshop, seed)
        training, validation = workshop.crops
        identity = recipe.identity(recipe.config, training, validation)
        # The size of the batches may differ between devices.
        del identity["batch size"]
        # Through JSON, so that it compares equal to what the result holds.
        identity = json.loads(json.dumps({"loop": asdict(recipe.loop), **identity}))
        result = read_result(folder, identity)
        if result is None:
            fitted = fit_adapter(
                recipe,
                training,
                validation,
                folder,
                workshop.device,
                session=workshop.session(recipe.batch_size),
                title=stage,
            )
            write_adapter_card(workshop, fitted.path, describe_parts(fitted.parts))
            result = {
                "identity": identity,
                "metrics": fitted.metrics,
                "parts": fitted.parts,
                "steps": fitted.steps,
            }
            finish(folder, result)
    figures = ", ".join(f"{name} {value:.4f}" for name, value in result["metrics"].items())
    workshop.tell(f"{stage}: done; {result['steps']:,} steps; {figures}")
    return True


def _compare(result: dict[str, Any]) -> str:
    words = f"dice_mean {result['metrics']['dice_mean']:.4f}"
    if result["before"] is None:
        return f"{words}, no weights before"
    verdict = "better" if result["better"] else "not better, so that those are kept"
    return f"{words}, before {result['before']['dice_mean']:.4f}: {verdict}"
