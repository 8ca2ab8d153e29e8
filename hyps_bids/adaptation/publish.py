"""The folder of a trained adapter: weights, card, tables, logs and charts."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from hyps_bids import __version__
from hyps_bids.adaptation.assess import PartSummary, summarize_assessment
from hyps_bids.adaptation.charts import bland_altman_chart, dice_chart, learning_curves, save_chart
from hyps_bids.adaptation.fit import FittedAdapter
from hyps_bids.adaptation.folds import splits_table
from hyps_bids.adaptation.labeled_crops import LabeledCrops
from hyps_bids.adaptation.plan import Plan, count_images, describe_images
from hyps_bids.networks.cards import read_card
from hyps_bids.outputs.dataset import read_description
from hyps_bids.outputs.labels import WHOLE
from hyps_bids.outputs.reading import read_table
from hyps_bids.outputs.writing import atomic_path, remove_stale, write_json, write_table
from hyps_bids.training.cards import fill_template, write_model_card

_LOG = logging.getLogger("hyps_bids")
#: Texts of the model card, and descriptions of the columns of the tables.
_TEMPLATES = Path(__file__).with_name("templates")


@dataclass(frozen=True)
class Training:
    """A finished training: the best step of each fold, and the final fit on all crops."""

    plan: Plan
    crops: LabeledCrops
    identity: dict[str, Any]
    steps: list[int]
    final: FittedAdapter
    minutes: float
    hardware: str


def publish(training: Training) -> None:
    """Write the model's folder, which gets its name when it is complete."""
    plan = training.plan
    fits = plan.work / "fits"
    names = [f"fold-{i}" for i in range(1, len(plan.folds) + 1)]
    table = pd.concat([read_table(fits / name / "scans.tsv") for name in names], ignore_index=True)
    summary = summarize_assessment(table)
    hint = f"the fits are kept in {plan.work}; make room and run the same command again"
    remove_stale(plan.target.parent)
    with atomic_path(plan.target, hint=hint) as folder:
        (folder / "logs").mkdir(parents=True)
        shutil.copyfile(training.final.path, folder / training.final.path.name)
        logs = {name: folder / "logs" / f"{name}.csv" for name in (*names, "final")}
        for name, path in logs.items():
            shutil.copyfile(fits / name / "log.csv", path)
        save_chart(learning_curves(logs), folder / "figures" / "learning_curves.png")
        save_chart(dice_chart(table), folder / "figures" / "dice.png")
        save_chart(bland_altman_chart(table), folder / "figures" / "bland_altman.png")
        for name, content in (("splits", splits_table(plan.folds)), ("scans", table)):
            write_table(folder / f"{name}.tsv", content)
            shutil.copyfile(_TEMPLATES / f"{name}.json", folder / f"{name}.json")
        write_json(folder / "summary.json", summary)
        write_json(folder / "config.json", _config(training))
        _write_card(training, summary, folder / training.final.path.name)
    whole = summary[WHOLE]
    _LOG.info(
        "%s: cross-validated Dice %.3f ± %.3f, HD95 mean ± SD (max) %s mm, on %d scans of %d "
        "participants; use it with --adapter %s%s",
        plan.target.name,
        whole["dice"]["mean"],
        whole["dice"]["sd"] or 0,
        _spread(whole["hd95_mm"], "max"),
        whole["scans"],
        whole["participants"],
        plan.target,
        # The participant level would refuse the adapter without its base.
        f" --base-model {plan.recipe.base}" if plan.settings.base_model else "",
    )


def _config(training: Training) -> dict[str, Any]:
    settings = training.plan.settings
    return {
        "name": str(settings.train_adapter),
        "hyps_bids": __version__,
        "labels": [str(path) for path in settings.labels],
        "contrasts": count_images(training.plan.labeled),
        "label_map": settings.label_map,
        "stratify": settings.stratify,
        "steps_of_folds": training.steps,
        "steps_of_final_fit": training.final.step,
        "parameters": training.final.parameters,
        "remarks": list(training.crops.remarks),
        "identity": training.identity,
    }


def _write_card(training: Training, summary: Mapping[str, PartSummary], path: Path) -> None:
    plan, crops, card, whole = training.plan, training.crops, read_card(path), summary[WHOLE]
    best = ", ".join(map(str, training.steps))
    facts = {
        "best steps of the folds, whose median the last fit took": best,
        "minutes of the last run": training.minutes,
    }
    data = {
        "crops": len(crops),
        "scans": describe_images(plan.labeled),
        "contrasts": len(count_images(plan.labeled)),
        "participants": len(set(crops.subjects)),
        "images": _title(plan.settings.bids_dir),
        "labels": [_title(root) for root in sorted({item.dataset for item in plan.labeled})],
        "folds": len(plan.folds),
        "on_crops": whole["on_crops"],
        "hippocampi": whole["hippocampi"],
    }
    write_model_card(
        path,
        title=f"Adapter {plan.settings.train_adapter}: {', '.join(plan.classes)}",
        card=card
        | {"training": card["training"] | facts, "cross-validation": _card_metrics(summary)},
        data=fill_template("hyps_bids.adaptation", "data.md", data),
        license=card["license"],
        hardware=training.hardware,
        notes=fill_template("hyps_bids.adaptation", "notes.md", data),
    )


def _card_metrics(summary: Mapping[str, PartSummary]) -> dict[str, str]:
    metrics: dict[str, str] = {}
    for part, values in summary.items():
        volume, surface = values["volume"], _spread(values["asd_mm"], "max")
        ratio = f"{volume['correlation']}; {volume['mean_ratio']}"
        limits = _limits(volume["bland_altman_mm3"])
        metrics |= {
            f"Dice, {part}: mean ± SD (min)": _spread(values["dice"], "min"),
            f"HD95, {part}, mm: mean ± SD (max)": _spread(values["hd95_mm"], "max"),
            f"average surface distance, {part}, mm: mean ± SD (max)": surface,
            f"volume, {part}: correlation with labels; mean ratio": ratio,
            f"volume, {part}, mm³: mean difference (limits of agreement)": limits,
        }
    whole = summary[WHOLE]
    return metrics | {"hippocampi not found": f"{whole['not_found']} of {whole['hippocampi']}"}


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
    """Word a mean difference and its limits of agreement."""
    mean, low, high = (
        "n/a" if volumes[name] is None else f"{volumes[name]:.0f}"
        for name in ("mean_difference", "lower_limit", "upper_limit")
    )
    return f"{mean} ({low} to {high})"


def _title(root: Path) -> str:
    return f"'{read_description(root).get('Name') or root.absolute().name}'"
