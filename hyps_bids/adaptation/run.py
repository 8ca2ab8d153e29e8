"""Train an adapter on labeled scans of a dataset: the group level's ``--train-adapter``.

Cross-validation by subject says how good such an adapter is and how long to train; a last fit on
all subjects is what is kept. What is done is never done again: a run that was killed goes on where
it was when the same command is given.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from hyps_bids import __version__
from hyps_bids.adaptation.assess import COLUMNS, WHOLE, assess_scans, summarize_assessment
from hyps_bids.adaptation.charts import (
    bland_altman_figure,
    dice_figure,
    learning_curves,
    save_figure,
)
from hyps_bids.adaptation.crops import Crops
from hyps_bids.adaptation.fit import (
    FittedAdapter,
    crops_digest,
    default_learning_rate,
    fit_adapter,
)
from hyps_bids.adaptation.folds import Fold, levels, make_folds, splits_table
from hyps_bids.adaptation.labeled_crops import LabeledCrops, labeled_crops, parts
from hyps_bids.errors import BadData, CannotCreateOutput, HypsError, MissingInput, UsageError
from hyps_bids.labels.find import LabeledScan, find_labeled
from hyps_bids.networks.adapters import AdapterConfig
from hyps_bids.networks.checkpoints import BASE, LOCALIZER, read_card, shipped_weights
from hyps_bids.outputs.digests import sha256
from hyps_bids.outputs.reading import read_table
from hyps_bids.outputs.writing import write_json, write_table
from hyps_bids.resources import available_cpus
from hyps_bids.segmentation.devices import choose_device, prepare_process
from hyps_bids.segmentation.inference import cached_adapted
from hyps_bids.segmentation.pipeline import Pipeline
from hyps_bids.settings import Settings
from hyps_bids.training.cards import hardware, write_model_card
from hyps_bids.training.checkpoint import differences
from hyps_bids.training.distributed import Processes, join_processes
from hyps_bids.training.loop import LoopSettings

__all__ = ["loop_settings", "train_adapter"]

_LOG = logging.getLogger("hyps_bids")

#: class of the base that every new class starts from
_START = "hippocampus"
#: of the new output head, whatever the method
_HEAD_LEARNING_RATE = 1e-2
#: validations in one fit, and after how many without progress it ends
_VALIDATIONS, _PATIENCE = 6, 3

_SPLITS = {
    "participant_id": "Participant.",
    "fold": "Fold, from 1.",
    "part": "training, validation (tells when to stop) or test (what figures are computed on).",
}


@dataclass(frozen=True)
class _Recipe:
    """All that the weights follow from, beside the crops and the folds."""

    base: Path
    #: class → classes of the base it starts from
    labels: dict[str, list[str]]
    config: AdapterConfig
    loss: str
    #: of the weights, in words; goes with them into every output
    license: str
    settings: Settings

    def loop(self, crops: int, *, validated: bool, stop_at: int | None = None) -> LoopSettings:
        """Return the settings of a fit on so many crops."""
        return loop_settings(self.settings, crops, validated=validated, stop_at=stop_at)


def train_adapter(settings: Settings) -> Path:
    """Train an adapter on the labeled scans of a dataset, with cross-validated figures.

    ``OUT_DIR/models/adapter-NAME/`` receives the weights (``adapter.safetensors``), their card
    (``adapter.md``), ``config.json``, ``splits.tsv``, ``scans.tsv`` and ``summary.json`` (figures
    of cross-validation), ``logs/`` and ``figures/``. Under torchrun all processes call this
    function and share each batch.

    Parameters
    ----------
    settings : Settings
        ``train_adapter`` (the name), ``labels``, ``label_map`` and how to train.

    Returns
    -------
    Path
        The model's folder.

    Raises
    ------
    HypsError
        If the name, the labels or the options cannot be used, a model of that name with other
        settings is there, the loss is not finite, or a file cannot be written. What was done is
        kept in the work folder.
    """
    target = _target(settings)
    device = choose_device(settings.device)
    neighbors = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    prepare_process(settings.omp_nthreads or max(1, available_cpus() // neighbors))
    with join_processes(device) as (processes, own_device):
        if not processes.is_main_process:
            # what process 0 says is enough
            _LOG.setLevel(logging.ERROR)
        try:
            _run(settings, target, processes, own_device)
        except torch.cuda.OutOfMemoryError as error:
            raise HypsError(
                f"the memory of {own_device} is exhausted: lower --batch-size, share each batch "
                "between GPUs with torchrun, or use --device cpu"
            ) from error
    return target


def loop_settings(
    settings: Settings, crops: int, *, validated: bool, stop_at: int | None = None
) -> LoopSettings:
    """Choose how to train on some crops.

    A checkpoint is written after every pass over the crops; the preset ``paper`` takes the
    optimizer of arXiv:2409.00884.

    Parameters
    ----------
    settings : Settings
        Steps, batch size, learning rate, seed, preset.
    crops : int
        Number of training crops.
    validated : bool
        Whether there are crops that tell when to stop.
    stop_at : int, optional
        Last step of a fit that nothing else stops.
    """
    paper = settings.preset == "paper"
    return LoopSettings(
        steps=settings.steps,
        learning_rate=settings.learning_rate or default_learning_rate(settings.peft),
        head_learning_rate=None if paper else _HEAD_LEARNING_RATE,
        warmup=0 if paper else min(50, settings.steps // 6),
        weight_decay=0.0 if paper else 1e-4,
        optimizer="adam" if paper else "adamw",
        evaluate_every=max(1, settings.steps // _VALIDATIONS),
        checkpoint_every=math.ceil(crops / settings.batch_size),
        seed=settings.seed,
        patience=_PATIENCE if validated else None,
        stop_at=stop_at,
    )


def _target(settings: Settings) -> Path:
    """Return the model's folder, if the name can be one."""
    name = settings.train_adapter or ""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise UsageError(
            f"--train-adapter '{name}': a name of letters, digits, '-', '_' and '.' is needed"
        )
    if shipped_weights(f"adapter-{name}").is_file():
        raise UsageError(
            f"--train-adapter {name}: is the name of a shipped adapter; choose another"
        )
    return settings.output_dir / "models" / f"adapter-{name}"


def _run(settings: Settings, target: Path, processes: Processes, device: torch.device) -> None:
    config = _config(settings)
    base = (settings.base_model or shipped_weights(BASE)).absolute()
    base_labels = read_card(base)["labels"]
    work = (settings.work_dir or settings.output_dir / "work") / target.name
    labeled = find_labeled(settings)
    names = parts(labeled)
    starts = _starts(names, base_labels)
    license = _license_of(labeled, settings.bids_dir, base)
    recipe = _Recipe(base, starts, config, _loss(settings), license, settings)
    strata = _strata(settings, labeled)
    # before the crops are cut: too few subjects are known without them
    folds = make_folds(
        (item.scan.subject for item in labeled),
        settings.folds,
        strata=strata,
        seed=settings.seed,
    )
    if settings.dry_run:
        if processes.is_main_process:
            print(*(item.scan.path for item in labeled), sep="\n")
        return
    if settings.clean_workdir and processes.is_main_process:
        shutil.rmtree(work, ignore_errors=True)
    with processes.first_alone():
        crops = labeled_crops(
            labeled,
            names,
            shipped_weights(LOCALIZER),
            device,
            n4=settings.n4,
            cache=work / "crops",
        )
    identity = _identity(recipe, crops, folds)
    if _is_trained(target, identity):
        _LOG.warning("%s: trained before with these data and settings; nothing to do", target)
        return
    if processes.is_main_process:
        _claim(work, identity)
    _LOG.warning(
        "training %s: %d crops of %d scans of %d participants, classes %s, %d folds, on %s",
        target.name,
        len(crops),
        len(labeled),
        len(set(crops.subjects)),
        ", ".join(names),
        len(folds),
        hardware(device) + (f" × {processes.size} processes" if processes.size > 1 else ""),
    )
    began = time.monotonic()
    steps = [
        _cross_validate(recipe, fold, i, len(folds), labeled, crops, work, processes, device)
        for i, fold in enumerate(folds, start=1)
    ]
    stop_at = max(1, round(float(np.median(steps))))
    _LOG.warning("final fit on all participants, %d steps", stop_at)
    final = _fit(
        recipe,
        crops.crops,
        None,
        work / "fits" / "final",
        processes,
        device,
        title="final fit",
        stop_at=stop_at,
    )
    if processes.is_main_process:
        facts = {
            "best steps of the folds, whose median the last fit took": ", ".join(map(str, steps)),
            "minutes of the last run": round((time.monotonic() - began) / 60, 1),
        }
        _publish(recipe, final, facts, identity, folds, labeled, crops, work, target, device)
        if settings.work_dir is None:
            shutil.rmtree(work, ignore_errors=True)
            if not any(work.parent.iterdir()):
                work.parent.rmdir()
    # no process ends before the files are there
    processes.from_first(None)


def _config(settings: Settings) -> AdapterConfig:
    names = ("rank", "bottleneck", "scale", "dropout", "layers", "trainable")
    changes = {name: getattr(settings, name) for name in names}
    given = {name: value for name, value in changes.items() if value not in (None, ())}
    try:
        return AdapterConfig.preset(settings.preset or "default", settings.peft, **given)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _loss(settings: Settings) -> str:
    return "dice" if settings.preset == "paper" else "dice+ce"


def _starts(names: Sequence[str], base_labels: Sequence[str]) -> dict[str, list[str]]:
    if _START in base_labels:
        return {name: [_START] for name in names}
    _LOG.warning("the base has no class '%s': the head starts at zero", _START)
    return {name: [] for name in names}


def _strata(settings: Settings, labeled: Sequence[LabeledScan]) -> dict[str, str] | None:
    """Read the levels of ``--stratify`` of all labeled participants."""
    if settings.stratify is None:
        return None
    path = settings.bids_dir / "participants.tsv"
    if not path.is_file():
        raise MissingInput(f"{path}: no such table, but --stratify needs it")
    table = read_table(path)
    if "participant_id" not in table or settings.stratify not in table:
        raise UsageError(
            f"--stratify {settings.stratify}: {path} has the columns {', '.join(table.columns)}"
        )
    ids = table["participant_id"].str.removeprefix("sub-")
    if ids.duplicated().any():
        raise BadData(f"{path}: {ids[ids.duplicated()].iloc[0]} is there more than once")
    column = table.set_index(ids)[settings.stratify]
    return levels(column.reindex(sorted({item.scan.subject for item in labeled})))


def _identity(recipe: _Recipe, crops: LabeledCrops, folds: Sequence[Fold]) -> dict[str, Any]:
    """Collect what the result depends on; runs with another one are other runs."""
    settings = recipe.settings
    return json.loads(
        json.dumps(
            {
                "crops": crops_digest(crops.crops),
                "participants": list(crops.subjects),
                "folds": [asdict(fold) for fold in folds],
                "classes": recipe.labels,
                "base": {"name": recipe.base.stem, "sha256": sha256(recipe.base)},
                "localiser": sha256(shipped_weights(LOCALIZER)),
                "adapter": asdict(recipe.config),
                "training": asdict(recipe.loop(1, validated=True))
                | {
                    "batch_size": settings.batch_size,
                    "loss": recipe.loss,
                    "preset": settings.preset or "default",
                    "n4": settings.n4,
                },
            }
        )
    )


def _is_trained(target: Path, identity: Mapping[str, Any]) -> bool:
    """Tell whether this very model is there; refuse to replace another one."""
    if not target.exists():
        return False
    try:
        before = json.loads((target / "config.json").read_text())["identity"]
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(
            f"{target}: is there, but without a config.json that says what it is; remove it, or "
            "choose another name"
        ) from error
    if before != identity:
        raise UsageError(
            f"{target}: is there, with other {differences(before, identity)}; choose another name, "
            "or remove it to train anew"
        )
    return True


def _claim(work: Path, identity: Mapping[str, Any]) -> None:
    """Go on with the fits in the work folder if they are of this run; else start anew."""
    path, fits = work / "run.json", work / "fits"
    if path.is_file():
        before = json.loads(path.read_text())
        if before == identity:
            _LOG.warning("%s: going on with the run that was stopped", work)
            return
        _LOG.warning(
            "%s: holds a run with other %s: started anew", work, differences(before, identity)
        )
    shutil.rmtree(fits, ignore_errors=True)
    write_json(path, identity)


def _cross_validate(
    recipe: _Recipe,
    fold: Fold,
    number: int,
    count: int,
    labeled: Sequence[LabeledScan],
    crops: LabeledCrops,
    work: Path,
    processes: Processes,
    device: torch.device,
) -> int:
    """Train on a fold and assess its test scans, if not done before; return the best step."""
    folder = work / "fits" / f"fold-{number}"
    table = folder / "scans.tsv"
    began = time.monotonic()
    validation = crops.of_subjects(set(fold.validation))
    fitted = _fit(
        recipe,
        crops.of_subjects(set(fold.training)),
        crops.as_at_inference(validation) if len(validation) else None,
        folder,
        processes,
        device,
        title=f"fold {number} of {count}",
    )
    if processes.is_main_process and not table.is_file():
        # folds share nothing: let go of the one before
        cached_adapted.cache_clear()
        pipeline = Pipeline(
            shipped_weights(LOCALIZER), recipe.base, fitted.path, device, n4=recipe.settings.n4
        )
        scans = [item for item in labeled if item.scan.subject in fold.test]
        write_table(table, assess_scans(pipeline, scans, crops, list(recipe.labels), fold=number))
    if processes.is_main_process:
        rows = read_table(table)
        seconds = time.monotonic() - began
        _LOG.warning(
            "fold %d of %d: Dice %.3f on %d scans (best step %d of %d); %.0f s%s",
            number,
            count,
            rows.loc[rows["part"] == WHOLE, "dice"].mean(),
            rows["scan"].nunique(),
            fitted.step,
            fitted.steps,
            seconds,
            # the last fit counts as a fold; one that was read back says nothing
            f", about {seconds * (count - number + 1) / 60:.0f} min left" if seconds > 5 else "",
        )
    return fitted.step


def _fit(
    recipe: _Recipe,
    training: Crops,
    validation: Crops | None,
    folder: Path,
    processes: Processes,
    device: torch.device,
    *,
    title: str,
    stop_at: int | None = None,
) -> FittedAdapter:
    """Train once; a fit that was finished before is read back."""
    result = folder / "result.json"
    done = (
        json.loads(result.read_text()) if result.is_file() and processes.is_main_process else None
    )
    done = processes.from_first(done)
    if done is not None:
        return FittedAdapter(folder / "adapter.safetensors", **done)
    fitted = fit_adapter(
        training,
        validation,
        recipe.labels,
        recipe.base,
        recipe.config,
        recipe.loop(len(training), validated=validation is not None, stop_at=stop_at),
        folder,
        device,
        batch_size=recipe.settings.batch_size,
        loss=recipe.loss,
        half=True,
        processes=processes,
        title=title,
        card={"name": str(recipe.settings.train_adapter), "license": recipe.license},
    )
    if processes.is_main_process:
        content = asdict(fitted)
        del content["path"]
        write_json(result, content)
        # larger than all the rest, and not needed any more
        (folder / "checkpoint.pt").unlink()
    return fitted


def _publish(
    recipe: _Recipe,
    final: FittedAdapter,
    facts: Mapping[str, Any],
    identity: Mapping[str, Any],
    folds: Sequence[Fold],
    labeled: Sequence[LabeledScan],
    crops: LabeledCrops,
    work: Path,
    target: Path,
    device: torch.device,
) -> None:
    """Put everything together in a hidden folder, and give it its name when it is whole."""
    fits = work / "fits"
    names = [f"fold-{i}" for i in range(1, len(folds) + 1)]
    table = pd.concat([read_table(fits / name / "scans.tsv") for name in names], ignore_index=True)
    summary = summarize_assessment(table)
    partial = target.with_name(f".{target.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        (partial / "logs").mkdir(parents=True)
        shutil.copyfile(final.path, partial / final.path.name)
        logs = {}
        for name in (*names, "final"):
            logs[name] = partial / "logs" / f"{name}.csv"
            shutil.copyfile(fits / name / "log.csv", logs[name])
        save_figure(learning_curves(logs), partial / "figures" / "learning_curves.png")
        save_figure(dice_figure(table), partial / "figures" / "dice.png")
        save_figure(bland_altman_figure(table), partial / "figures" / "bland_altman.png")
        _write_described(partial / "splits.tsv", splits_table(folds), _SPLITS)
        _write_described(partial / "scans.tsv", table, COLUMNS)
        write_json(partial / "summary.json", summary)
        write_json(
            partial / "config.json",
            {
                "name": str(recipe.settings.train_adapter),
                "hyps_bids": __version__,
                "labels": [str(path) for path in recipe.settings.labels],
                "label_map": recipe.settings.label_map,
                "stratify": recipe.settings.stratify,
                "steps_of_folds": [
                    json.loads((fits / name / "result.json").read_text())["step"] for name in names
                ],
                "steps_of_final_fit": final.step,
                "parameters": final.parameters,
                "remarks": list(crops.remarks),
                "identity": dict(identity),
            },
        )
        _write_card(recipe, facts, folds, labeled, crops, summary, partial, device)
        partial.replace(target)
    except OSError as error:
        raise CannotCreateOutput(
            f"{target}: cannot be written ({error.strerror}); what was trained is kept in {work}: "
            "make room and run the same command again"
        ) from error
    whole = summary[WHOLE]
    _LOG.warning(
        "%s: cross-validated Dice %.3f ± %.3f, HD95 mean ± SD (max) %s mm, on %d scans of %d "
        "participants; use it with --adapter %s%s",
        target.name,
        whole["dice"]["mean"],
        whole["dice"]["sd"] or 0,
        _spread(whole["hd95_mm"], "max"),
        whole["scans"],
        whole["participants"],
        target,
        # without it the participant level would refuse the adapter
        f" --base-model {recipe.base}" if recipe.settings.base_model else "",
    )


def _write_card(
    recipe: _Recipe,
    facts: Mapping[str, Any],
    folds: Sequence[Fold],
    labeled: Sequence[LabeledScan],
    crops: LabeledCrops,
    summary: Mapping[str, Any],
    folder: Path,
    device: torch.device,
) -> None:
    path = folder / "adapter.safetensors"
    card = read_card(path)
    figures: dict[str, str] = {}
    for part, values in summary.items():
        figures |= {
            f"Dice, {part}: mean ± SD (min)": _spread(values["dice"], "min"),
            f"HD95, {part}, mm: mean ± SD (max)": _spread(values["hd95_mm"], "max"),
            f"average surface distance, {part}, mm: mean ± SD (max)": _spread(
                values["asd_mm"], "max"
            ),
            f"volume, {part}: correlation with labels; mean ratio": (
                f"{values['volume']['correlation']}; {values['volume']['mean_ratio']}"
            ),
            f"volume, {part}, mm³: mean difference (limits of agreement)": (
                _limits(values["volume"]["bland_altman_mm3"])
            ),
        }
    whole = summary[WHOLE]
    figures["hippocampi not found"] = f"{whole['not_found']} of {whole['hippocampi']}"
    datasets = sorted({item.dataset for item in labeled})
    participants = len(set(crops.subjects))
    end_to_end = ", end to end" if whole["on_crops"] < whole["hippocampi"] else ""
    data = [
        f"{len(crops)} manually labeled hippocampi in {len(set(crops.scans))} T1w images of "
        f"{participants} participants of {_dataset(recipe.settings.bids_dir)}.",
        "Labels: " + "; ".join(_dataset(root) for root in datasets) + ".",
        f"Figures are of {len(folds)}-fold cross-validation by participant{end_to_end}, on scans "
        "that the fold's adapter was not trained on. The weights here come from a last fit on all "
        "participants, which no scan is left to check: they should do about as well, on images "
        "like these.",
    ]
    if whole["on_crops"]:
        data.append(
            f"{whole['on_crops']} of {whole['hippocampi']} hippocampi are in images that are no "
            "whole heads; they were segmented in a box around their labels, which is easier than "
            "to find them."
        )
    notes = [
        "Research use. Works with the base named above only. Segmentations follow the protocol of "
        "the labels; expect less on other scanners, sequences, ages and diseases than those of "
        "these participants.",
    ]
    if participants < 10:
        notes.append(
            f"{participants} participants are few: the figures are uncertain, and the adapter is "
            "fitted to them."
        )
    write_model_card(
        path,
        title=f"Adapter {recipe.settings.train_adapter}: {', '.join(recipe.labels)}",
        card=card | {"training": card["training"] | dict(facts), "cross-validation": figures},
        data="\n\n".join(data),
        license=recipe.license,
        hardware=hardware(device),
        notes=" ".join(notes),
    )


def _spread(statistics: Mapping[str, float | None], extreme: str) -> str:
    """Word mean, SD and one extreme.

    Examples
    --------
    >>> _spread({"mean": 0.8767, "sd": None, "min": 0.8}, "min")
    '0.877 (0.800)'
    """
    mean, sd, far = (statistics[name] for name in ("mean", "sd", extreme))
    if mean is None or far is None:
        return "n/a"
    return f"{mean:.3f}" + (f" ± {sd:.3f}" if sd is not None else "") + f" ({far:.3f})"


def _limits(volumes: Mapping[str, float | None]) -> str:
    """Word a mean difference and its limits of agreement.

    Examples
    --------
    >>> _limits({"mean_difference": -12.3, "lower_limit": -20.1, "upper_limit": None})
    '-12 (-20 to n/a)'
    """
    mean, low, high = (
        "n/a" if volumes[name] is None else f"{volumes[name]:.0f}"
        for name in ("mean_difference", "lower_limit", "upper_limit")
    )
    return f"{mean} ({low} to {high})"


def _description(root: Path) -> dict[str, Any]:
    path = root / "dataset_description.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        # allowed with --skip-bids-validation
        _LOG.info("%s: cannot be read (%s)", path, error)
        return {}
    return content if isinstance(content, dict) else {}


def _dataset(root: Path) -> str:
    """Name a dataset.

    Examples
    --------
    >>> _dataset(Path("study/derivatives/manual"))
    "'manual'"
    """
    return f"'{_description(root).get('Name') or root.absolute().name}'"


def _license_of(labeled: Sequence[LabeledScan], images: Path, base: Path) -> str:
    """Word the license of what is trained on these labels and images, from this base."""
    labels = sorted({_license(item.dataset) for item in labeled})
    return (
        "follows from the labels, the images and the base, whichever is strictest: labels "
        f"{', '.join(labels)}; images {_license(images)}; base "
        f"{read_card(base).get('license', 'not stated')}"
    )


def _license(root: Path) -> str:
    return str(_description(root).get("License") or "not stated")


def _write_described(path: Path, table: pd.DataFrame, columns: Mapping[str, str]) -> None:
    write_table(path, table)
    write_json(
        path.with_suffix(".json"), {name: {"Description": text} for name, text in columns.items()}
    )
