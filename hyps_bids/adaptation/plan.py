"""Everything of ``--train-adapter`` that is decided before the labels are read."""

from __future__ import annotations

import json
import logging
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from hyps_bids.adaptation.fit import Recipe, starting_points
from hyps_bids.adaptation.folds import Fold, levels, split_by_subject
from hyps_bids.adaptation.labeled_crops import LabeledCrops, class_names
from hyps_bids.cohort.keys import KeyMatcher
from hyps_bids.errors import BadData, MissingInput, UsageError
from hyps_bids.labels.find import LabeledScan, find_labeled
from hyps_bids.messages import format_count, join_names
from hyps_bids.networks.adapters.config import AdapterConfig
from hyps_bids.networks.cards import BASE, LOCALIZER, read_card, shipped_weights
from hyps_bids.outputs.dataset import read_description
from hyps_bids.outputs.digests import sha256
from hyps_bids.outputs.reading import read_table
from hyps_bids.settings import Settings
from hyps_bids.training.loop import LoopSettings

_LOG = logging.getLogger("hyps_bids")

#: Class of the base that every new class starts from.
_START = "hippocampus"
#: Learning rate of a method, if it is not 0.001: a whole network would forget at that rate, and
#: biases alone need more.
_LEARNING_RATES = {"full": 3e-4, "bitfit": 1e-2}
#: Learning rate of the new output head, whatever the method.
_HEAD_LEARNING_RATE = 1e-2
#: Validations in one fit, and after how many without progress it ends.
_VALIDATIONS, _PATIENCE = 6, 3


@dataclass(frozen=True)
class Plan:
    """A training that was asked for.

    `target` is the model's folder, `work` that of intermediate files. The loop settings of the
    `recipe` depend on the crops of each fit, see :meth:`recipe_for`.
    """

    settings: Settings
    target: Path
    work: Path
    recipe: Recipe
    labeled: tuple[LabeledScan, ...]
    folds: tuple[Fold, ...]

    @property
    def classes(self) -> list[str]:
        """Names of the adapter's classes, background left out."""
        return list(self.recipe.labels)

    def recipe_for(self, crops: int, *, validated: bool, stop_at: int | None = None) -> Recipe:
        """Return the recipe of a fit on so many crops.

        A checkpoint is written after every pass over the crops. `validated` says whether there
        are crops that tell when to stop; otherwise the fit ends after the step `stop_at`.
        """
        loop = replace(
            self.recipe.loop,
            checkpoint_every=math.ceil(crops / self.recipe.batch_size),
            patience=_PATIENCE if validated else None,
            stop_at=stop_at,
        )
        return replace(self.recipe, loop=loop)

    def identity(self, crops: LabeledCrops) -> dict[str, Any]:
        """Collect what the result depends on, as JSON.

        It is stored with models and compared with those of earlier versions, so that the keys
        must stay as they were in version 0.1.
        """
        content = {
            "crops": crops.crops.digest(),
            "participants": list(crops.subjects),
            "folds": [asdict(fold) for fold in self.folds],
            "classes": self.recipe.labels,
            "base": {"name": self.recipe.base.stem, "sha256": sha256(self.recipe.base)},
            "localiser": sha256(shipped_weights(LOCALIZER)),
            "adapter": asdict(self.recipe.config),
            "training": asdict(self.recipe_for(1, validated=True).loop)
            | {
                "batch_size": self.settings.batch_size,
                "loss": self.recipe.loss,
                "preset": self.settings.preset or "default",
                "n4": self.settings.n4,
            },
        }
        return json.loads(json.dumps(content))


def make_plan(settings: Settings, target: Path) -> Plan:
    """Check the options, find the labeled scans and divide their participants into folds."""
    config = _adapter_config(settings)
    base = (settings.base_model or shipped_weights(BASE)).absolute()
    base_labels = read_card(base)["labels"]
    labeled = find_labeled(settings)
    names = class_names(labeled)
    if _START not in base_labels:
        _LOG.warning("the base has no class '%s': the new output head starts at zero", _START)
    folds = split_by_subject(
        (item.scan.subject for item in labeled),
        settings.folds,
        strata=_strata(settings, labeled),
        seed=settings.seed,
    )
    recipe = Recipe(
        base,
        starting_points(names, [_START] if _START in base_labels else [], base_labels),
        config,
        _loop_settings(settings),
        batch_size=settings.batch_size,
        loss="dice" if settings.preset == "paper" else "dice+ce",
        half=True,
        card={
            "name": str(settings.train_adapter),
            "license": _license_of(labeled, settings.bids_dir, base),
            "contrasts": count_images(labeled),
        },
    )
    work = (settings.work_dir or settings.output_dir / "work") / target.name
    return Plan(settings, target, work, recipe, tuple(labeled), tuple(folds))


def count_images(labeled: Sequence[LabeledScan]) -> dict[str, int]:
    """Count the labeled images of each contrast."""
    return dict(sorted(Counter(item.scan.contrast for item in labeled).items()))


def describe_images(labeled: Sequence[LabeledScan]) -> str:
    """Write the counts of :func:`count_images`, such as ``10 T1w images, 1 T2w image``."""
    return join_names(format_count(n, f"{name} image") for name, n in count_images(labeled).items())


def model_folder(settings: Settings) -> Path:
    """Return the folder of the model to train; a name that cannot be one is an error."""
    name = settings.train_adapter or ""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise UsageError(
            f"--train-adapter '{name}': give a name of letters, digits, '-', '_' and '.'",
            code="adapter-name-invalid",
        )
    if shipped_weights(f"adapter-{name}").is_file():
        raise UsageError(
            f"--train-adapter {name}: a shipped adapter has this name; choose another one",
            code="adapter-name-taken",
        )
    return settings.output_dir / "models" / f"adapter-{name}"


def _loop_settings(settings: Settings) -> LoopSettings:
    """Choose how to train; the preset ``paper`` takes the optimizer of arXiv:2409.00884."""
    paper = settings.preset == "paper"
    return LoopSettings(
        steps=settings.steps,
        learning_rate=settings.learning_rate or _LEARNING_RATES.get(settings.peft, 1e-3),
        head_learning_rate=None if paper else _HEAD_LEARNING_RATE,
        warmup=0 if paper else min(50, settings.steps // 6),
        weight_decay=0.0 if paper else 1e-4,
        optimizer="adam" if paper else "adamw",
        evaluate_every=max(1, settings.steps // _VALIDATIONS),
        seed=settings.seed,
    )


def _adapter_config(settings: Settings) -> AdapterConfig:
    names = ("rank", "bottleneck", "scale", "dropout", "layers", "trainable")
    changes = {name: getattr(settings, name) for name in names}
    given = {name: value for name, value in changes.items() if value not in (None, ())}
    try:
        return AdapterConfig.preset(settings.preset or "default", settings.peft, **given)
    except ValueError as error:
        raise UsageError(str(error), code="adapter-settings-invalid") from error


def _strata(settings: Settings, labeled: Sequence[LabeledScan]) -> dict[str, str] | None:
    """Read the levels of ``--stratify`` of all labeled participants."""
    if settings.stratify is None:
        return None
    path = settings.bids_dir / "participants.tsv"
    if not path.is_file():
        raise MissingInput(
            f"{path}: --stratify needs this table, but it is missing", code="no-participants-table"
        )
    table = read_table(path)
    if "participant_id" not in table or settings.stratify not in table:
        raise UsageError(
            f"--stratify {settings.stratify}: {path} has the columns {', '.join(table.columns)}",
            code="stratify-column-unknown",
        )
    subjects = sorted({item.scan.subject for item in labeled})
    scans = pd.DataFrame({"participant_id": [f"sub-{s}" for s in subjects], "session_id": None})
    names = list(dict.fromkeys(["participant_id", settings.stratify]))
    table = table[names].dropna(subset="participant_id")
    table["participant_id"] = "sub-" + table["participant_id"].str.removeprefix("sub-")
    ids = KeyMatcher(settings.bids_dir, scans).match(table, path)["participant_id"].str[4:]
    if without := [f"sub-{subject}" for subject in subjects if subject not in set(ids)]:
        _LOG.warning(
            "%s has no row of these participants, so their level of --stratify is n/a: %s",
            *(path, join_names(without)),
        )
    if ids.duplicated().any():
        raise BadData(
            f"{path}: {ids[ids.duplicated()].iloc[0]} is listed more than once",
            code="participant-repeated",
        )
    column = table.set_index(ids)[settings.stratify]
    return levels(column.reindex(subjects))


def _license_of(labeled: Sequence[LabeledScan], images: Path, base: Path) -> str:
    """Word the license of an adapter that is trained on these labels and images, on this base."""
    unknown = "not stated"
    roots = [images, *(item.dataset for item in labeled)]
    license, *labels = (str(read_description(root).get("License") or unknown) for root in roots)
    return (
        "follows from the labels, the images and the base, whichever is strictest: labels "
        f"{', '.join(sorted(set(labels)))}; images {license}; "
        f"base {read_card(base).get('license', unknown)}"
    )
