"""Train, validate and store classifiers: one folder per contrast."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hyps_bids.classification.card import (
    CROSS_VALIDATION,
    HELD_OUT,
    Card,
    headlines,
    sizes,
    uncertainty,
    write_card,
)
from hyps_bids.classification.charts import draw_charts
from hyps_bids.classification.columns import require_columns
from hyps_bids.classification.contrast import Contrast, LabeledSubjects
from hyps_bids.classification.cross_validation import SELECTED
from hyps_bids.classification.estimators import ESTIMATORS
from hyps_bids.classification.features import text_levels
from hyps_bids.classification.harmonize import FEWEST_CONTROLS
from hyps_bids.classification.plan import Plan, done_scans, list_contrasts, make_plan
from hyps_bids.classification.store import CARD, save_classifier
from hyps_bids.classification.tables import result_tables, write_tables
from hyps_bids.classification.training_set import value_ranges
from hyps_bids.classification.validate import Results, validate
from hyps_bids.cohort.combat import FEWEST_AT_A_SITE
from hyps_bids.cohort.image_contrasts import contrasts_of
from hyps_bids.cohort.visits import count_sources, first_scans
from hyps_bids.errors import BadData, HypsError, UsageError
from hyps_bids.outputs.names import group_space
from hyps_bids.outputs.ownership import refuse_foreign_file
from hyps_bids.outputs.reading import read_units
from hyps_bids.settings import Settings

_LOG = logging.getLogger("hyps_bids")


def train_classifiers(settings: Settings, wide: pd.DataFrame) -> list[str]:
    """Train, validate and store one classifier per contrast.

    `wide` is the wide table of the group level. Returns one line per contrast that failed.

    Raises
    ------
    UsageError
        If an option names something that does not exist; nothing has been fitted then.
    BadData
        If no contrast can be done.
    """
    _check_options(settings, wide)
    frame = done_scans(wide)
    if frame.empty:
        raise BadData(
            f"{settings.output_dir}: no scan is done, so there is nothing to classify",
            code="no-scan-done",
        )
    plans, failures = [], []
    for contrast in list_contrasts(settings, frame):
        try:
            plans.append(make_plan(settings, frame, contrast))
        except BadData as error:
            failures.append(_failure(settings, contrast, error))
    if not plans:
        raise BadData("; ".join(failures), code="no-contrast-possible")
    for text in failures:
        _LOG.error(text)
    for plan in plans:
        try:
            refuse_foreign_file(_folder(settings, plan.contrast) / "README.md", b"# Classifier ")
            _write(settings, plan, validate(settings, plan))
        except HypsError as error:
            failures.append(_failure(settings, plan.contrast, error))
            _LOG.error(failures[-1])
    return failures


def _check_options(settings: Settings, wide: pd.DataFrame) -> None:
    require_columns(wide, "--target", [settings.target] if settings.target else [])
    require_columns(wide, "--site", [settings.site] if settings.site else [])
    require_columns(wide, "--covariates", settings.covariates)
    for name in settings.estimators:
        if name not in ESTIMATORS:
            raise UsageError(
                f"--estimators {name}: there are {', '.join(ESTIMATORS)}", code="estimator-unknown"
            )
    if set(settings.estimators) == {"dummy"}:
        raise UsageError(
            "--estimators dummy: name another estimator to compare it with", code="only-dummy"
        )


def _folder(settings: Settings, contrast: Contrast) -> Path:
    return settings.output_dir / "models" / f"classifier-{_name(settings, contrast)}"


def _name(settings: Settings, contrast: Contrast) -> str:
    """Name a classifier, for T1w images as the classes and for others with their contrast."""
    return f"{contrast.name}{group_space(settings.suffix)}"


def _failure(settings: Settings, contrast: Contrast, error: HypsError) -> str:
    """Say why a contrast failed, and whether an older classifier stands in its place."""
    text = str(error)
    text = text if contrast.text in text else f"contrast {contrast.text}: {text}"
    folder = _folder(settings, contrast)
    return f"{text} ({folder} is from an earlier run)" if folder.exists() else text


def _write(settings: Settings, plan: Plan, results: Results) -> None:
    """Write tables, charts, model and card, and report the metrics."""
    folder = _folder(settings, plan.contrast)
    classes = plan.subjects.classes
    metrics = results.metrics
    selected = metrics[
        (metrics["validation"] == CROSS_VALIDATION) & (metrics["estimator"] == SELECTED)
    ]
    doubts = _doubts(plan, results, selected)
    card = _card(settings, plan, results, doubts)
    # The card is written after all that it describes: a folder without it is no classifier.
    (folder / CARD).unlink(missing_ok=True)
    tables = result_tables(plan, results)
    write_tables(folder, tables, classes)
    subjects = sizes(plan.subjects.counts)
    title = f"{plan.contrast.text}, {plan.full_set}: cross-validation of {subjects}"
    draw_charts(folder, title, tables)
    save_classifier(folder, results.final.model, card, plan.subjects.ids)
    write_card(folder / "README.md", card, tables, plan.full_set)
    name = plan.contrast.text
    for text in (*results.warnings, *doubts):
        _LOG.warning("%s: %s", name, text)
    for validation, features, text in headlines(metrics):
        _LOG.info("%s: %s: %s: %s", name, validation, features, text)
    _LOG.info(
        "%s: the final model is %s on %s, in %s",
        *(name, results.final.estimator, plan.full_set, folder),
    )


def _doubts(plan: Plan, results: Results, selected: pd.DataFrame) -> list[str]:
    """Warn of uncertain AUCs of the full set, and of the largest without doubtful covariates."""
    areas = selected[selected["figure"] == "auc"].set_index("features")
    texts = []
    undoubted = "both_reduced" if "both_reduced" in plan.sets else "volumes"
    for name in dict.fromkeys([plan.full_set, undoubted] if plan.doubtful else [plan.full_set]):
        low, high = areas.loc[name, ["low", "high"]].astype(float)
        test = results.permutation_tests.get((CROSS_VALIDATION, name))
        texts += uncertainty(name, plan.subjects.counts, low, high, test.p if test else None)
    return texts


def _card(settings: Settings, plan: Plan, results: Results, doubts: Sequence[str]) -> Card:
    schema = plan.sets[plan.full_set]
    units = read_units(settings.output_dir, settings.suffix)
    controls = (
        f"the training subjects with {settings.controls}, or on all if these are fewer than "
        f"{FEWEST_CONTROLS}"
    )
    fitted_on = controls if settings.controls else "all training subjects"
    adjustment = f"volumes - slope * (ICV - mean), fitted on {fitted_on}"
    kept = ", ".join(schema.preserve) or "nothing"
    harmonization = (
        f"ComBat-style by {schema.site}; kept: {kept}; sites with fewer than {FEWEST_AT_A_SITE} "
        "training subjects stay as they are"
    )
    without_inner = _folds_without_inner(results)
    subjects = plan.subjects.counts
    return {
        "Name": _name(settings, plan.contrast),
        "Contrast": plan.contrast.text,
        "Target": plan.target,
        "Classes": {name: list(levels) for name, levels in plan.contrast.classes.items()},
        "Estimator": results.final.estimator,
        "Settings": results.final.params,
        "Selection": _selection(plan, results),
        "Features": {
            name: {"Units": units.get(name, "n/a")}
            for name in schema.features
            if name in schema.used
        },
        "Covariates": {
            name: {
                "Units": units.get(name, "n/a"),
                "Levels": list((schema.categories or {}).get(name, ())) or None,
            }
            for name in schema.covariates
        },
        "DoubtfulCovariates": list(plan.doubtful),
        "IcvAdjustment": adjustment if schema.icv else "none",
        "Harmonization": harmonization if schema.site else "none",
        "Schema": asdict(schema),
        "Ranges": value_ranges(plan.subjects, schema),
        "Threshold": {
            "Rule": _rule(settings, plan, results),
            "Cuts": dict(
                zip(plan.subjects.classes, np.asarray(results.final.cuts).tolist(), strict=True)
            ),
        },
        "ImageContrast": str(contrasts_of(plan.rows).iloc[0]),
        "Adapter": str(plan.rows["adapter"].iloc[0]),
        "SoftwareVersion": str(plan.rows["software_version"].iloc[0]),
        "Models": str(plan.rows["models"].iloc[0]),
        "Cohort": _cohort_facts(plan),
        "Validation": {
            "Folds": min(settings.folds, *subjects.values()),
            "Repeats": settings.repeats,
            "Seed": settings.seed,
            "Unit": "subject: mean of the probabilities of its scans",
            "FoldsWithoutInner": without_inner,
        },
        "AUCWithinSites": results.auc_within_sites,
        "PairsWithinSites": results.pairs_within_sites,
        "PermutationTest": {
            _test_name(validation, features): {
                "Validation": validation,
                "Features": features,
                "Statistic": _statistic(validation, features, without_inner),
                "Estimator": SELECTED,
                "AUC": test.auc,
                "P": test.p,
                "Permutations": len(test.null),
                "Planned": test.planned,
                "StoppedEarly": test.stopped_early,
                "AsGood": test.as_good,
                "EndsAt": test.enough,
                "WithinSites": test.within_sites,
                "NullMean": float(test.null.mean()),
                "NullAUC": [round(float(value), 4) for value in test.null],
            }
            for (validation, features), test in results.permutation_tests.items()
        },
        "Warnings": [*plan.warnings, *results.warnings, *doubts],
    }


def _folds_without_inner(results: Results) -> dict[str, list[int]]:
    """Count the folds of each validation that were too small for choices, and all folds."""
    out = {}
    for validation, sets in results.predictions.items():
        scores = [one.score for each in sets.values() for one in each.selections.values()]
        folds = len(scores) // len(sets)
        out[validation] = [int(np.isnan(scores).sum()) // len(sets), folds]
    return out


def _selection(plan: Plan, results: Results) -> str:
    """Say how the estimator and its settings came about."""
    if np.isnan(results.final.score):
        return "the first to try, because there are too few subjects for an inner cross-validation"
    tried = [name for name in plan.estimators if name != "dummy"]
    if len(tried) > 1:
        return f"estimator and settings chosen by inner cross-validation among {', '.join(tried)}"
    return "settings chosen by inner cross-validation; no other estimator was tried"


def _rule(settings: Settings, plan: Plan, results: Results) -> str:
    """Name the rule of the cuts, which is not Youden's where that is not possible."""
    impossible = len(plan.subjects.classes) > 2 or np.isnan(results.final.score)
    return "prevalence" if settings.threshold == "youden" and impossible else settings.threshold


def _test_name(validation: str, features: str) -> str:
    return features if validation == CROSS_VALIDATION else f"{features}, {validation}"


def _statistic(validation: str, features: str, without_inner: Mapping[str, list[int]]) -> str:
    """Say what is tested, and which steps see the shuffled labels."""
    if validation == HELD_OUT:
        return "AUC of the held-out subjects; their labels are shuffled against fixed predictions"
    folds = "one repeat of the cross-validation" if validation == CROSS_VALIDATION else validation
    without, total = without_inner[validation]
    choices = "no choice was made" if without == total else "every choice is made anew"
    if features.endswith("_reduced"):
        choices += ", except that doubtful covariates were left out by the true labels"
    return f"AUC in {folds}; {choices}"


def _cohort_facts(plan: Plan) -> dict[str, Any]:
    """Describe the subjects of each class by the covariates at their first scan."""
    facts: dict[str, Any] = {
        "Subjects": plan.subjects.counts,
        "Scans": len(plan.rows),
        "ScansByClass": _scans_by_class(plan.subjects),
        "Converters": _count_classes(plan.subjects, plan.converters),
        "FirstScanBy": count_sources(plan.rows),
        "HeldOutSubjects": len(plan.held_out.ids) if plan.held_out else 0,
        "HeldOutByClass": plan.held_out.counts if plan.held_out else {},
    }
    first = first_scans(plan.rows)
    classes = pd.Series(
        np.array(plan.subjects.classes)[plan.subjects.label], index=plan.subjects.ids
    )
    # A covariate may have any name, such as Scans.
    covariates: dict[str, Any] = {name: {} for name in plan.schema.covariates}
    facts["Covariates"] = covariates
    for name in plan.schema.covariates:
        for value, ids in classes.groupby(classes, sort=False):
            values = first.loc[ids.index, name]
            summary: dict[str, float] = (
                {"Mean": float(values.mean()), "SD": float(values.std())}
                if name in plan.schema.numeric
                else {str(k): int(v) for k, v in text_levels(values).value_counts().items()}
            )
            covariates[name][value] = summary | {"Missing": int(values.isna().sum())}
    return facts


def _scans_by_class(data: LabeledSubjects) -> dict[str, int]:
    counts = np.bincount(data.label[data.subject], minlength=len(data.classes)).tolist()
    return dict(zip(data.classes, counts, strict=True))


def _count_classes(data: LabeledSubjects, ids: Collection[str]) -> dict[str, int]:
    """Count some subjects in each class; classes without any are left out."""
    found = Counter(data.classes[k] for k, i in zip(data.label, data.ids, strict=True) if i in ids)
    return {name: found[name] for name in data.classes if found[name]}
