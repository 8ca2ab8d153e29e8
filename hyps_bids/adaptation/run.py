"""Train an adapter on labeled scans of a dataset: the group level's ``--train-adapter``.

Cross-validation by subject measures how good such an adapter is and how long to train; a last fit
on all subjects is what is kept. No finished step is repeated: a run that was killed continues where
it was when the same command is given.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from hyps_bids.adaptation.assess import assess_scans
from hyps_bids.adaptation.crops import Crops
from hyps_bids.adaptation.fit import FittedAdapter, Recipe, fit_adapter
from hyps_bids.adaptation.folds import Fold
from hyps_bids.adaptation.labeled_crops import LabeledCrops, labeled_crops
from hyps_bids.adaptation.plan import Plan, describe_images, make_plan, model_folder
from hyps_bids.adaptation.publish import Training, publish
from hyps_bids.errors import BadData, HypsError, UsageError
from hyps_bids.networks.cards import LOCALIZER, shipped_weights
from hyps_bids.outputs.labels import WHOLE
from hyps_bids.outputs.reading import load_json, read_json_object, read_table
from hyps_bids.outputs.writing import write_json, write_table
from hyps_bids.resources import available_cpus
from hyps_bids.segmentation.devices import choose_device, prepare_process
from hyps_bids.segmentation.inference import cached_adapted
from hyps_bids.segmentation.pipeline import Pipeline
from hyps_bids.settings import Settings
from hyps_bids.training.cards import hardware
from hyps_bids.training.checkpoint import differences
from hyps_bids.training.distributed import Processes, join_processes

_LOG = logging.getLogger("hyps_bids")
#: Key of the metrics in result.json; as in version 0.1, so that its unfinished runs continue.
_METRICS = "figures"


def train_adapter(settings: Settings) -> Path:
    """Train an adapter on the labeled scans of a dataset, with cross-validated metrics.

    ``OUT_DIR/models/adapter-NAME/`` receives the weights (``adapter.safetensors``), their card
    (``adapter.md``), ``config.json``, ``splits.tsv``, ``scans.tsv`` and ``summary.json`` (metrics
    of cross-validation), ``logs/`` and ``figures/``. Under torchrun all processes call this
    function and share each batch.

    Raises
    ------
    HypsError
        If the name, the labels or the options cannot be used, a model of that name with other
        settings is there, the loss is not finite, or a file cannot be written. Finished steps are
        kept in the work folder.
    """
    target = model_folder(settings)
    device = torch.device(choose_device(settings.device))
    neighbors = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    prepare_process(settings.omp_nthreads or max(1, available_cpus() // neighbors))
    with join_processes(device) as (processes, own_device):
        if not processes.is_main_process:
            # The main process reports for all.
            _LOG.setLevel(logging.ERROR)
        try:
            _train(make_plan(settings, target), processes, own_device)
        except torch.cuda.OutOfMemoryError as error:
            raise HypsError(
                f"The memory of {own_device} is exhausted. Lower --batch-size, share each batch "
                "between GPUs with torchrun, or use --device cpu",
                code="gpu-memory-exhausted",
            ) from error
    return target


@dataclass(frozen=True)
class _Trainer:
    """Carries out the plan on crops, in one or several processes."""

    plan: Plan
    crops: LabeledCrops
    processes: Processes
    device: torch.device

    def cross_validate(self, number: int, fold: Fold) -> int:
        """Train on a fold and assess its test scans, if not done before; return the best step."""
        folder = self.plan.work / "fits" / f"fold-{number}"
        count = len(self.plan.folds)
        began = time.monotonic()
        training = self.crops.of_subjects(fold.training)
        validation = None
        if fold.validation:
            validation = self.crops.as_at_inference(self.crops.of_subjects(fold.validation))
        recipe = self.plan.recipe_for(len(training), validated=validation is not None)
        title = f"fold {number} of {count}"
        fitted = self._fit_once(recipe, training, validation, folder, title)
        if self.processes.is_main_process:
            rows = self._assess_once(folder / "scans.tsv", fitted, number, fold)
            dice = rows.loc[rows["part"] == WHOLE, "dice"].mean()
            scans, step = rows["scan"].nunique(), f"best step {fitted.step} of {fitted.steps}"
            seconds = time.monotonic() - began
            left = f"{seconds:.0f} s"
            # The final fit takes about as long as a fold. A fold that was read back tells nothing.
            if seconds > 5:
                left += f", about {seconds * (count - number + 1) / 60:.0f} min left"
            _LOG.info("%s: Dice %.3f on %d scans (%s); %s", title, dice, scans, step, left)
        return fitted.step

    def fit_all(self, steps: int) -> FittedAdapter:
        """Train on all participants for so many steps."""
        _LOG.info("final fit on all participants, %d steps", steps)
        recipe = self.plan.recipe_for(len(self.crops), validated=False, stop_at=steps)
        folder = self.plan.work / "fits" / "final"
        return self._fit_once(recipe, self.crops.crops, None, folder, "final fit")

    def _assess_once(
        self, path: Path, fitted: FittedAdapter, number: int, fold: Fold
    ) -> pd.DataFrame:
        """Segment the test scans of a fold, or read the table of an earlier run."""
        if not path.is_file():
            # Each fold has networks of its own, so that those of the last one are not needed.
            cached_adapted.cache_clear()
            plan, localizer = self.plan, shipped_weights(LOCALIZER)
            networks = localizer, plan.recipe.base, fitted.path
            pipeline = Pipeline(*networks, str(self.device), n4=plan.settings.n4)
            scans = [item for item in plan.labeled if item.scan.subject in fold.test]
            write_table(path, assess_scans(pipeline, scans, self.crops, plan.classes, fold=number))
        return read_table(path)

    def _fit_once(
        self, recipe: Recipe, training: Crops, validation: Crops | None, folder: Path, title: str
    ) -> FittedAdapter:
        """Train, or read the result of an earlier run."""
        result = folder / "result.json"
        stored = None
        if result.is_file() and self.processes.is_main_process:
            stored = read_json_object(result)
        stored = self.processes.from_first(stored)
        if stored is not None:
            metrics = stored.pop(_METRICS)
            return FittedAdapter(folder / "adapter.safetensors", metrics, **stored)
        fitted = fit_adapter(
            recipe, training, validation, folder, self.device, processes=self.processes, title=title
        )
        if self.processes.is_main_process:
            content = asdict(fitted)
            del content["path"]
            write_json(result, {_METRICS: content.pop("metrics")} | content)
            # The checkpoint is larger than everything else, and no longer needed.
            (folder / "checkpoint.pt").unlink()
        return fitted


def _train(plan: Plan, processes: Processes, device: torch.device) -> None:
    settings, work = plan.settings, plan.work
    if settings.dry_run:
        if processes.is_main_process:
            print(*(item.scan.path for item in plan.labeled), sep="\n")
        return
    if settings.clean_workdir and processes.is_main_process:
        shutil.rmtree(work, ignore_errors=True)
    with processes.first_alone():
        crops = labeled_crops(
            plan.labeled,
            plan.classes,
            shipped_weights(LOCALIZER),
            str(device),
            n4=settings.n4,
            cache=work / "crops",
        )
    identity = plan.identity(crops)
    if _is_trained(plan.target, identity):
        _LOG.info("%s: was trained before with these data and settings; nothing to do", plan.target)
        return
    if processes.is_main_process:
        _claim(work, identity)
    data = (
        f"{len(crops)} crops of {describe_images(plan.labeled)} of {len(set(crops.subjects))} "
        f"participants, classes {', '.join(plan.classes)}, {len(plan.folds)} folds"
    )
    where = hardware(device) + (f" × {processes.size} processes" if processes.size > 1 else "")
    _LOG.info("training %s: %s, on %s", plan.target.name, data, where)
    began = time.monotonic()
    trainer = _Trainer(plan, crops, processes, device)
    steps = [trainer.cross_validate(i, fold) for i, fold in enumerate(plan.folds, start=1)]
    final = trainer.fit_all(max(1, round(float(np.median(steps)))))
    if processes.is_main_process:
        minutes = round((time.monotonic() - began) / 60, 1)
        publish(Training(plan, crops, identity, steps, final, minutes, hardware(device)))
        if settings.work_dir is None:
            shutil.rmtree(work, ignore_errors=True)
            if not any(work.parent.iterdir()):
                work.parent.rmdir()
    # No process ends before the files are written.
    processes.from_first(None)


def _is_trained(target: Path, identity: Mapping[str, Any]) -> bool:
    """Tell whether this very model is there; refuse to replace another one."""
    if not target.exists():
        return False
    try:
        before = read_json_object(target / "config.json")["identity"]
    except (BadData, KeyError) as error:
        raise UsageError(
            f"{target}: this folder exists, but has no config.json that says what it is; remove "
            "it, or choose another name",
            code="model-unknown",
        ) from error
    if before != identity:
        raise UsageError(
            f"{target}: this model was trained with other {differences(before, identity)}; choose "
            "another name, or remove it to train it again",
            code="model-differs",
        )
    return True


def _claim(work: Path, identity: Mapping[str, Any]) -> None:
    """Continue the fits in the work folder if they belong to this run; otherwise remove them."""
    path = work / "run.json"
    if path.is_file():
        before = load_json(path)
        if before == identity:
            _LOG.info("%s: continuing the run that was stopped", work)
            return
        _LOG.warning(
            "%s: holds a run with other %s, which is discarded", work, differences(before, identity)
        )
    shutil.rmtree(work / "fits", ignore_errors=True)
    write_json(path, identity)
