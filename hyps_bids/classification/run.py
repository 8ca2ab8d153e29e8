"""Classifiers of the group level: contrasts in, folders of figures and a model out."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hyps_bids.classification.card import card_text, headline, uncertainty
from hyps_bids.classification.charts import (
    FIGURES,
    bootstrap_weights,
    compare,
    confusion,
    figures,
    interval,
    repeats_interval,
    score_interval,
)
from hyps_bids.classification.columns import (
    choose_columns,
    feature_sets,
    needed,
    warn_of_giveaways,
)
from hyps_bids.classification.contrast import Cohort, Contrast, label_scans, site_association
from hyps_bids.classification.cross_validation import (
    SELECTED,
    Predictions,
    Search,
    choose,
    group_folds,
    importance,
    make_folds,
    nested_cv,
    permutation_test,
    predict_subjects,
    search_all,
)
from hyps_bids.classification.curves import calibration_table, draw, roc_table
from hyps_bids.classification.estimators import ESTIMATORS
from hyps_bids.classification.features import Schema, levels_of, text_levels
from hyps_bids.classification.store import CARD, load_classifier, save_classifier
from hyps_bids.errors import BadData, HypsError, MissingInput, UsageError
from hyps_bids.messages import listed
from hyps_bids.outputs.writing import write_json, write_table, write_text
from hyps_bids.resources import available_cpus
from hyps_bids.settings import Settings

__all__ = ["apply_classifier", "classify"]

_LOG = logging.getLogger("hyps_bids")

_WIDE_SIDECAR = "group_seg-hippocampus_desc-wide_morph.json"
_SAMPLES = 1000
#: more levels than this are hardly diagnoses
_MANY_LEVELS = 10
#: names that say a column is a site, to warn of confounding even if --site was not given
_SITE_LIKE = ("site", "center", "center", "scanner", "manufacturer", "institution")
_CV, _LOSO, _HELD_OUT = "cross-validation", "leave-one-site-out", "held-out"
_PAIRS = (
    ("both", "metadata"),
    ("both", "volumes"),
    ("volumes", "metadata"),
    ("both_noncircular", "metadata_noncircular"),
    ("both", "both_noncircular"),
)
_COLUMNS = {
    "validation": "cross-validation (nested, repeated), leave-one-site-out, or held-out.",
    "features": "Set of features: volumes, metadata, both; noncircular: without tests by which "
    "diagnoses are made.",
    "estimator": "Classifier; 'selected' is chosen by inner cross-validation in each fold.",
    "figure": "; ".join(f"{name}: {text}" for name, text in FIGURES.items()),
    "value": "Mean over repeats.",
    "low": "Lower end of the 95 % interval, bootstrap over subjects.",
    "high": "Upper end of it.",
    "score_low": "Lower end of the 95 % score interval (Wilson; AUC: Newcombe); in small groups "
    "read the wider of the two intervals.",
    "score_high": "Upper end of it.",
    "repeats_low": "Lower end of the 95 % t interval over repeats: how much the folds matter, "
    "not the subjects.",
    "repeats_high": "Upper end of it.",
    "subjects": "Number of subjects predicted.",
}
#: columns of the other tables
_OTHER_COLUMNS = {
    "participant_id": "Subject.",
    "first": "Set of features.",
    "second": "Set of features that it is compared with.",
    "difference": "Figure of the first minus that of the second, mean over repeats.",
    "p": "Corrected resampled t test on the differences per fold (Nadeau and Bengio 2003).",
    "folds": "Folds in which the figure is defined for both.",
    "repeat": "Which repeat of the cross-validation.",
    "fold": "Fold in which the subject was tested; 0: never.",
    "true": "Class of the subject.",
    "predicted": "Most probable class.",
    "inner_auc": "AUC of the inner cross-validation that the choice rests on.",
    "settings": "Settings that the inner cross-validation chose.",
    "class": "Class that counts as positive.",
    "threshold": "Subjects of at least this probability are called positive.",
    "false_positive_rate": "Share of the others that are called positive.",
    "sensitivity": "Share of the class that is called positive.",
    "observed": "Share of the bin's subjects that are of the class.",
    "n": "Subjects in the bin.",
    "column": "Feature or covariate.",
    "auc_fall": "Fall of the AUC when the column is shuffled among the tested scans.",
    "sd": "Its standard deviation over folds.",
}
#: columns that mean something else in one table
_OWN_COLUMNS = {
    "comparisons": {"figure": "auc, balanced_accuracy or brier, as in figures.tsv."},
    "calibration": {"predicted": "Mean probability of the bin's subjects."},
    "chosen": {"estimator": "Classifier that was selected in the fold."},
}


@dataclass(frozen=True)
class _Plan:
    """Everything about one contrast that is known before anything is fitted."""

    contrast: Contrast
    target: str
    rows: pd.DataFrame
    cohort: Cohort
    held_out: Cohort | None
    schema: Schema
    sets: dict[str, Schema]
    estimators: tuple[str, ...]
    sites: tuple[str, ...] | None
    warnings: list[str]
    control: NDArray[np.bool_] | None

    @property
    def full(self) -> str:
        """The set of features that the final model is made of."""
        return "both" if "both" in self.sets else "volumes"


def classify(settings: Settings, wide: pd.DataFrame) -> list[str]:
    """Train, validate and store one classifier per contrast.

    Parameters
    ----------
    settings : Settings
        ``target``, ``contrast`` and the other options of classifiers.
    wide : DataFrame
        The wide table of the group level.

    Returns
    -------
    list of str
        One line per contrast that could not be done; the others are.

    Raises
    ------
    UsageError
        If an option names what does not exist; nothing has been fitted then.
    BadData
        If no contrast can be done: a level without scans, scans listed twice, mixed weights.
    """
    frame = _usable(settings, wide)
    contrasts = _contrasts(settings, frame)
    plans, failures = [], []
    for contrast in contrasts:
        try:
            plans.append(_plan(settings, frame, contrast))
        except BadData as error:
            failures.append(_failure(settings, contrast, error))
    if not plans:
        raise BadData("; ".join(failures))
    for text in failures:
        _LOG.error(text)
    for plan in plans:
        try:
            _run(settings, plan)
        except HypsError as error:
            failures.append(_failure(settings, plan.contrast, error))
            _LOG.error(failures[-1])
    return failures


def apply_classifier(settings: Settings, wide: pd.DataFrame) -> Path:
    """Predict new subjects with a stored classifier.

    Parameters
    ----------
    settings : Settings
        ``apply_classifier`` is the folder of the classifier.
    wide : DataFrame
        The wide table of the new subjects.

    Returns
    -------
    Path
        ``OUT_DIR/group_classifier-NAME_predictions.tsv``: one row per subject.

    Raises
    ------
    MissingInput, BadData
        If the classifier cannot be read; if columns are missing, or have other units, or volumes
        were made with other weights than those it was trained with.
    """
    if settings.apply_classifier is None:
        raise UsageError("--apply-classifier PATH names the folder of a classifier")
    model, card = load_classifier(settings.apply_classifier)
    where = str(settings.apply_classifier)
    schema = Schema.from_json(card["Schema"])
    frame = wide[wide["status"] == "done"].reset_index(drop=True)
    if frame.empty:
        raise MissingInput(f"{settings.output_dir}: no scan is done: nothing to predict")
    _check_unique(frame)
    _check_matches(settings, frame, card, schema, where)
    ids, subject = np.unique(frame["participant_id"].astype(str), return_inverse=True)
    classes = tuple(card["Classes"])
    # labels are not known: a cohort needs some, and none is read
    nobody = np.zeros(len(ids), dtype=np.int64)
    cohort = Cohort(schema.matrix(frame), subject, nobody, tuple(ids), classes)
    probability = predict_subjects(cohort, model, np.arange(len(ids)))
    table = pd.DataFrame(
        {
            "participant_id": ids,
            "predicted": [classes[k] for k in probability.argmax(axis=1)],
            **{f"p_{name}": probability[:, k] for k, name in enumerate(classes)},
            "scans": np.bincount(subject),
            "remarks": _remarks(frame, schema, ids),
        }
    )
    path = settings.output_dir / f"group_classifier-{card['Name']}_predictions.tsv"
    write_table(path, table)
    write_json(
        path.with_suffix(".json"),
        {
            "predicted": {"Description": "Most probable class."},
            **{f"p_{n}": {"Description": f"Probability of {n}."} for n in classes},
            "scans": {"Description": "Scans whose probabilities were averaged."},
            "remarks": {"Description": "What was imputed or unknown."},
            "Classifier": {"Name": card["Name"], "SHA256": card["Model"]["SHA256"]},
        },
    )
    _LOG.warning("%d subjects predicted with %s: %s", len(ids), where, path)
    return path


def _folder(settings: Settings, contrast: Contrast) -> Path:
    return settings.output_dir / "models" / f"classifier-{contrast.name}"


def _failure(settings: Settings, contrast: Contrast, error: HypsError) -> str:
    """Say why there is no classifier, and that one in its place is an older one."""
    text = str(error)
    text = text if contrast.text in text else f"contrast {contrast.text}: {text}"
    folder = _folder(settings, contrast)
    return f"{text} ({folder} is of an earlier run)" if folder.exists() else text


def _usable(settings: Settings, wide: pd.DataFrame) -> pd.DataFrame:
    if settings.target is None:
        raise UsageError("--contrast needs --target COLUMN: the column of the diagnosis")
    needed(wide, "--target", [settings.target])
    unknown = [name for name in settings.estimators if name not in ESTIMATORS]
    if unknown:
        raise UsageError(f"--estimators {unknown[0]}: there are {', '.join(ESTIMATORS)}")
    if set(settings.estimators) == {"dummy"}:
        raise UsageError("--estimators dummy: it is what others are compared with; name another")
    if settings.site is None and (settings.harmonize or settings.leave_one_site_out):
        raise UsageError("--harmonize and --leave-one-site-out need --site COLUMN")
    needed(wide, "--site", [settings.site] if settings.site else [])
    needed(wide, "--covariates", settings.covariates)
    frame = wide[wide["status"] == "done"].reset_index(drop=True)
    if frame.empty:
        raise BadData(f"{settings.output_dir}: no scan is done: nothing to classify")
    _check_unique(frame)
    return frame


def _check_unique(frame: pd.DataFrame) -> None:
    twice = frame.loc[frame["scan"].duplicated(), "scan"]
    if len(twice):
        raise BadData(f"scan {twice.iloc[0]} is in the group table more than once")


def _check_one_kind(rows: pd.DataFrame) -> None:
    """Volumes of different weights or versions are not comparable."""
    kinds = rows.groupby(["software_version", "models"], dropna=False).size()
    if len(kinds) > 1:
        texts = [f"{n} scans by {version} with {models}" for (version, models), n in kinds.items()]
        raise BadData(
            "volumes were made by different versions or weights and cannot be mixed: "
            f"{'; '.join(texts)}; process them again, or leave participants out with "
            "--exclude-participant-label"
        )


def _contrasts(settings: Settings, frame: pd.DataFrame) -> list[Contrast]:
    if settings.contrast:
        contrasts = [Contrast.parse(text) for text in settings.contrast]
        names = [contrast.name for contrast in contrasts]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise UsageError(f"--contrast: two have the same name {twice[0]}")
        return contrasts
    levels = levels_of(frame[settings.target])
    if len(levels) < 2:
        there = ", ".join(levels) or "none"
        raise BadData(f"--target {settings.target}: fewer than 2 levels: {there}")
    if len(levels) > _MANY_LEVELS:
        raise UsageError(
            f"--target {settings.target} has {len(levels)} levels, such as {levels[0]}: name those "
            "to tell apart with --contrast"
        )
    _LOG.warning("no --contrast: %s, the first one positive", ":".join(levels))
    return [Contrast({level: (level,) for level in levels})]


def _plan(settings: Settings, frame: pd.DataFrame, contrast: Contrast) -> _Plan:
    assert settings.target is not None
    target, warnings = settings.target, []

    def warn(text: str) -> None:
        warnings.append(text)
        _LOG.warning("%s: %s", contrast.text, text)

    used = [settings.site] if settings.harmonize or settings.leave_one_site_out else []
    no_site = frame[used].isna().any(axis=1)
    label = label_scans(frame[~no_site], target, contrast)
    if no_site.any():
        warn(f"{int(no_site.sum())} scans without {settings.site} are left out")
    rows = frame.loc[label.index[label.notna()]].reset_index(drop=True)
    label = label.dropna().reset_index(drop=True)
    _check_one_kind(rows)
    dropped = int(text_levels(frame[target]).isin(_levels(contrast)).sum()) - len(rows)
    if dropped:
        warn(f"{dropped} scans are left out: no site, or another class than at the first scan")
    if rows["flags"].notna().any():
        warn(f"{int(rows['flags'].notna().sum())} of {len(rows)} scans have a quality flag")
    schema = choose_columns(
        rows,
        features=settings.features,
        covariates=settings.covariates,
        site=settings.site,
        harmonize=settings.harmonize,
        target=target,
    )
    warnings += warn_of_giveaways(rows, schema, label)
    controls = _controls(settings, rows)
    if controls is not None and schema.icv and controls.sum() < 3:
        warn(f"fewer than 3 scans are --controls {settings.controls}: ICV is adjusted on all")
    matrix = schema.matrix(rows, controls)
    out = _held_out(settings, rows)
    development = _cohort(matrix, rows, label, contrast, ~out)
    held_out = _cohort(matrix, rows, label, contrast, out) if out.any() else None
    smallest = min(development.counts)
    if smallest < 2:
        raise BadData(
            f"contrast {contrast.text}: with the held-out subjects away, a class has {smallest} "
            "subjects; 2 are the least"
        )
    folds = min(settings.folds, smallest)
    if folds < settings.folds:
        warn(f"{folds} folds instead of {settings.folds}: the smallest class has {smallest}")
    names = settings.estimators or tuple(ESTIMATORS)
    if smallest - -(-smallest // folds) < 2:
        # what is left for training cannot be split again
        left_out = [name for name in names if ESTIMATORS[name].calibrated]
        names = tuple(name for name in names if name not in left_out)
        warn(f"too few subjects for an inner cross-validation; left out: {', '.join(left_out)}")
    if not [name for name in names if name != "dummy"]:
        raise BadData(f"contrast {contrast.text}: no estimator is left that can be used")
    sites = _sites(settings, rows, development, warn)
    flags = None
    if controls is not None and str(settings.controls).split("=", 1)[0] == target:
        flags = np.isin(development.ids, rows.loc[controls, "participant_id"].astype(str))
    return _Plan(
        contrast=contrast,
        target=target,
        rows=rows[~out].reset_index(drop=True),
        cohort=development,
        held_out=held_out,
        schema=schema,
        sets=feature_sets(schema),
        estimators=names,
        sites=sites,
        warnings=warnings,
        control=flags,
    )


def _run(settings: Settings, plan: _Plan) -> None:
    cohort, name = plan.cohort, plan.contrast.text
    nprocs = settings.nprocs or available_cpus()
    subjects = dict(zip(cohort.classes, cohort.counts, strict=True))
    _LOG.warning("%s: classifiers of %s subjects, %d scans", name, subjects, len(cohort.subject))

    def progress(text: str) -> None:
        _LOG.warning("%s: %s", name, text)

    common: dict[str, Any] = {"seed": settings.seed, "nprocs": nprocs, "progress": progress}
    folds = make_folds(cohort.label, settings.folds, settings.repeats, settings.seed)
    found = {
        _CV: nested_cv(cohort, plan.sets, folds, estimators=plan.estimators, **common),
    }
    if plan.sites is not None and settings.leave_one_site_out:
        by_site = group_folds(cohort.label, plan.sites)
        if by_site.max() < 0 or (by_site < 0).all():
            plan.warnings.append("leave-one-site-out: no site can be left out")
        else:
            found[_LOSO] = nested_cv(
                cohort, plan.sets, by_site, estimators=plan.estimators, **common
            )
    weights = bootstrap_weights(cohort.label, _SAMPLES, np.random.default_rng(settings.seed))
    rows = [
        row
        for validation, sets in found.items()
        for features, predictions in sets.items()
        for row in _figure_rows(cohort, predictions, weights, validation, features)
    ]
    finals = search_all(cohort, plan.sets, estimators=plan.estimators, **common)
    final = choose(finals[plan.full].values())
    held_out_rows, held_out_predictions = _test_held_out(settings, plan, finals)
    table = pd.DataFrame([*rows, *held_out_rows])
    main = found[_CV][plan.full]
    selected = table[(table["validation"] == _CV) & (table["estimator"] == SELECTED)]
    lines = dict(list(selected.groupby("features", sort=False)))
    area = lines[plan.full].set_index("figure").loc["auc"]
    low, high = np.nanmin(area[["low", "score_low"]]), np.nanmax(area[["high", "score_high"]])
    doubts = uncertainty(subjects, float(low), float(high))
    comparisons = pd.DataFrame(
        [
            {"validation": validation, "first": a, "second": b, **row}
            for validation, sets in found.items()
            for a, b in _PAIRS
            if a in sets and b in sets
            for row in compare(
                cohort.label,
                sets[a].probability[SELECTED],
                sets[b].probability[SELECTED],
                sets[a].folds,
                weights,
            )
        ]
    )
    tests = _permutation_tests(settings, plan, common)
    falls = importance(
        cohort,
        plan.sets[plan.full],
        folds[0],
        [c for c in main.chosen if c["repeat"] == 0],
        **common,
    )
    card = _card(settings, plan, final, subjects, tests, doubts)
    folder = _folder(settings, plan.contrast)
    # written last: without its card, what is left of an interrupted run is no classifier
    (folder / CARD).unlink(missing_ok=True)
    _write(folder, plan, found, table, comparisons, held_out_predictions, falls, card)
    save_classifier(folder, final.model, card)
    write_text(folder / "README.md", card_text(card, table, comparisons))
    for text in doubts:
        progress(text)
    for features, one in lines.items():
        progress(f"{features}: {headline(one)}")
    progress(f"final model: {final.estimator} of {plan.full}, in {folder}")


def _figure_rows(
    cohort: Cohort,
    predictions: Predictions,
    weights: NDArray[np.float64],
    validation: str,
    features: str,
) -> list[dict[str, Any]]:
    rows = []
    for estimator, probability in predictions.probability.items():
        repeats = range(len(probability))
        known = np.isfinite(probability).all(axis=(0, 2))
        counts = np.bincount(cohort.label[known], minlength=len(cohort.classes)).tolist()
        once = [figures(cohort.label, probability[r], predictions.folds[r]) for r in repeats]
        drawn = [
            figures(cohort.label, probability[r], predictions.folds[r], weights) for r in repeats
        ]
        for figure in FIGURES:
            values = np.array([one[figure][0] for one in once])
            low, high = interval(np.mean([one[figure] for one in drawn], axis=0))
            value = float(values.mean())
            score_low, score_high = score_interval(figure, value, counts)
            repeats_low, repeats_high = repeats_interval(values)
            rows.append(
                {
                    "validation": validation,
                    "features": features,
                    "estimator": estimator,
                    "figure": figure,
                    "value": value,
                    "low": low,
                    "high": high,
                    "score_low": score_low,
                    "score_high": score_high,
                    "repeats_low": repeats_low,
                    "repeats_high": repeats_high,
                    "subjects": int(known.sum()),
                }
            )
    return rows


def _test_held_out(
    settings: Settings, plan: _Plan, finals: Mapping[str, Mapping[str, Search]]
) -> tuple[list[dict[str, Any]], pd.DataFrame | None]:
    """Evaluate the final models on the held-out set, which nothing was chosen or fitted on."""
    cohort = plan.held_out
    if cohort is None:
        return [], None
    everybody = np.arange(len(cohort.ids))
    weights = bootstrap_weights(cohort.label, _SAMPLES, np.random.default_rng(settings.seed))
    fold = np.zeros((1, len(everybody)), dtype=np.int64)
    rows = []
    for features, searches in finals.items():
        probability = {
            name: predict_subjects(cohort, one.model, everybody)[None]
            for name, one in searches.items()
        }
        probability = {SELECTED: probability[choose(searches.values()).estimator], **probability}
        predictions = Predictions(probability, fold, [])
        rows += _figure_rows(cohort, predictions, weights, _HELD_OUT, features)
        if features == plan.full:
            table = _prediction_table(cohort, predictions, _HELD_OUT, features)
    return rows, table


def _permutation_tests(
    settings: Settings, plan: _Plan, common: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Test the full set of features and the volumes alone, with the first estimator."""
    if settings.permutations < 1:
        return {}
    estimator = next(name for name in plan.estimators if name != "dummy")
    out = {}
    for features in dict.fromkeys((plan.full, "volumes")):
        p, observed, null = permutation_test(
            plan.cohort,
            plan.sets[features],
            estimator=estimator,
            permutations=settings.permutations,
            folds=settings.folds,
            control=plan.control,
            **common,
        )
        out[features] = {
            "Estimator": estimator,
            "AUC": observed,
            "P": p,
            "Permutations": settings.permutations,
            "NullMean": float(null.mean()),
            "NullAUC": [round(float(value), 4) for value in null],
        }
    return out


def _card(
    settings: Settings,
    plan: _Plan,
    final: Search,
    subjects: Mapping[str, int],
    tests: Mapping[str, Any],
    doubts: Sequence[str],
) -> dict[str, Any]:
    schema = plan.sets[plan.full]
    used = [n for n in schema.features if n in schema.used]
    sidecar = _sidecar(settings)
    adjusted = "none"
    if schema.icv:
        adjusted = f"volumes - slope * (ICV - mean), fitted on {settings.controls or 'all'}"
    return {
        "Name": plan.contrast.name,
        "Contrast": plan.contrast.text,
        "Target": plan.target,
        "Classes": {name: list(levels) for name, levels in plan.contrast.classes.items()},
        "Estimator": final.estimator,
        "Settings": final.params,
        "Features": {name: {"Units": _units(name, sidecar)} for name in used},
        "Covariates": {
            name: {
                "Units": _units(name, sidecar),
                "Levels": list((schema.categories or {}).get(name, ())) or None,
            }
            for name in schema.covariates
        },
        "IcvAdjustment": adjusted,
        "Harmonization": f"ComBat-style by {schema.site}; kept: {', '.join(schema.preserve)}"
        if schema.site
        else "none",
        "Schema": schema.to_json(),
        "Adapter": _only(plan.rows["adapter"]),
        "SoftwareVersion": _only(plan.rows["software_version"]),
        "Models": _only(plan.rows["models"]),
        "Cohort": _cohort_summary(plan, subjects),
        "Validation": {
            "Folds": min(settings.folds, *subjects.values()),
            "Repeats": settings.repeats,
            "Seed": settings.seed,
            "Unit": "subject: mean of the probabilities of its scans",
        },
        "PermutationTest": dict(tests),
        "Warnings": [*plan.warnings, *doubts],
    }


def _cohort_summary(plan: _Plan, subjects: Mapping[str, int]) -> dict[str, Any]:
    """Describe the subjects by class, with the first scan of each."""
    label = np.array(plan.cohort.classes)[plan.cohort.label]
    first = plan.rows.drop_duplicates("participant_id").set_index("participant_id")
    classes = pd.Series(label, index=plan.cohort.ids)
    summary: dict[str, Any] = {
        "Subjects": dict(subjects),
        "Scans": len(plan.rows),
        "HeldOutSubjects": len(plan.held_out.ids) if plan.held_out else 0,
    }
    for name in plan.schema.covariates:
        column = first[name]
        by_class = {}
        for value, ids in classes.groupby(classes, sort=False):
            values = column.loc[ids.index]
            by_class[value] = (
                {"Mean": float(values.mean()), "SD": float(values.std())}
                if name in plan.schema.numeric
                else {str(k): int(v) for k, v in text_levels(values).value_counts().items()}
            ) | {"Missing": int(values.isna().sum())}
        summary[name] = by_class
    return summary


def _write(
    folder: Path,
    plan: _Plan,
    found: Mapping[str, Mapping[str, Predictions]],
    table: pd.DataFrame,
    comparisons: pd.DataFrame,
    held_out: pd.DataFrame | None,
    falls: Mapping[str, tuple[float, float]],
    card: Mapping[str, Any],
) -> None:
    cohort, main = plan.cohort, found[_CV][plan.full]
    probability = main.probability[SELECTED]
    predictions = [
        _prediction_table(cohort, one, validation, features)
        for validation, sets in found.items()
        for features, one in sets.items()
    ]
    if held_out is not None:
        predictions.append(held_out)
    chosen = pd.DataFrame(
        [
            {
                "validation": validation,
                "features": features,
                "repeat": one["repeat"] + 1,
                "fold": one["fold"] + 1,
                "estimator": one["estimator"],
                "inner_auc": one["inner_auc"],
                "settings": ", ".join(f"{k} {v}" for k, v in one["settings"].items()) or None,
            }
            for validation, sets in found.items()
            for features, predictions_of in sets.items()
            for one in predictions_of.chosen
        ]
    )
    counts = pd.DataFrame(
        confusion(cohort.label, probability), index=cohort.classes, columns=cohort.classes
    )
    roc = roc_table(cohort.label, probability, cohort.classes)
    calibration = calibration_table(cohort.label, probability, cohort.classes)
    fallen = pd.DataFrame(
        [{"column": name, "auc_fall": mean, "sd": sd} for name, (mean, sd) in falls.items()]
    )
    tables = {
        "figures": table,
        "comparisons": comparisons,
        "predictions": pd.concat(predictions, ignore_index=True),
        "chosen": chosen,
        "confusion": counts.rename_axis("true").reset_index(),
        "roc": roc,
        "calibration": calibration,
        "importance": fallen,
    }
    of_class = {name: f"Subjects called {name}, mean over repeats." for name in cohort.classes}
    of_class |= {f"p_{name}": f"Probability of {name}." for name in cohort.classes}
    for name, one in tables.items():
        write_table(folder / f"{name}.tsv", one)
        texts = of_class | _COLUMNS | _OTHER_COLUMNS | _OWN_COLUMNS.get(name, {})
        described = {column: {"Description": texts[column]} for column in one}
        write_json(folder / f"{name}.json", described)
    sizes = ", ".join(f"{n} {name}" for name, n in card["Cohort"]["Subjects"].items())
    draw(
        folder,
        title=f"{plan.contrast.text}, {plan.full}: nested cross-validation of {sizes}",
        roc=roc,
        calibration=calibration,
        confusion=counts,
        importance=fallen,
    )


def _prediction_table(
    cohort: Cohort, predictions: Predictions, validation: str, features: str
) -> pd.DataFrame:
    """One row per subject and repeat, with the probabilities of the selected estimator."""
    probability = predictions.probability[SELECTED]
    classes = np.array(cohort.classes)
    tables = []
    for repeat, one in enumerate(probability):
        known = np.isfinite(one).all(axis=1)
        called = np.where(known, classes[np.nan_to_num(one).argmax(axis=1)], None)
        tables.append(
            pd.DataFrame(
                {
                    "participant_id": cohort.ids,
                    "validation": validation,
                    "features": features,
                    "repeat": repeat + 1,
                    "fold": np.where(known, predictions.folds[repeat] + 1, 0),
                    "true": classes[cohort.label],
                    "predicted": called,
                    **{f"p_{name}": one[:, k] for k, name in enumerate(classes)},
                }
            )
        )
    return pd.concat(tables, ignore_index=True)


def _cohort(
    matrix: NDArray[np.float64],
    rows: pd.DataFrame,
    label: pd.Series,
    contrast: Contrast,
    take: NDArray[np.bool_],
) -> Cohort:
    ids, subject = np.unique(rows.loc[take, "participant_id"].astype(str), return_inverse=True)
    of_subject = np.zeros(len(ids), dtype=np.int64)
    of_subject[subject] = label[take].astype(int)
    return Cohort(matrix[take], subject, of_subject, tuple(ids), tuple(contrast.classes))


def _controls(settings: Settings, rows: pd.DataFrame) -> NDArray[np.bool_] | None:
    if settings.controls is None:
        return None
    column, _, level = settings.controls.partition("=")
    if not level:
        raise UsageError(f"--controls {settings.controls}: write COLUMN=LEVEL")
    needed(rows, "--controls", [column])
    return np.asarray(text_levels(rows[column]) == level, dtype=bool)


def _held_out(settings: Settings, rows: pd.DataFrame) -> NDArray[np.bool_]:
    """Mark the scans of held-out subjects: COLUMN=LEVEL, or a file with one id per line."""
    text = settings.held_out
    if text is None:
        return np.zeros(len(rows), dtype=bool)
    ids = rows["participant_id"].astype(str)
    column, equals, level = text.partition("=")
    if equals and column in rows:
        subjects = set(ids[text_levels(rows[column]) == level])
    elif Path(text).is_file():
        named = _listed_subjects(Path(text))
        subjects = named & set(ids)
        if others := sorted(named - subjects):
            _LOG.warning(
                "--held-out %s: %d of %d are not in this contrast: %s",
                *(text, len(others), len(named), listed(others)),
            )
    else:
        raise UsageError(
            f"--held-out {text}: neither COLUMN=LEVEL with a column of the group table, nor a file"
        )
    if not subjects:
        raise BadData(f"--held-out {text}: no subject of this contrast")
    return ids.isin(subjects).to_numpy()


def _listed_subjects(path: Path) -> set[str]:
    """Read the first field of every line: a list, or a table such as participants.tsv."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadData(f"--held-out {path}: cannot be read as UTF-8 text ({error})") from error
    names = [re.split(r"[\t,; ]", line.strip())[0] for line in lines if line.strip()]
    return {f"sub-{name.removeprefix('sub-')}" for name in names if name != "participant_id"}


def _sites(
    settings: Settings, rows: pd.DataFrame, cohort: Cohort, warn: Callable[[str], None]
) -> tuple[str, ...] | None:
    """Find the site of each subject, and warn if it gives the diagnosis away."""
    columns = [settings.site] if settings.site else []
    columns += [str(c) for c in rows if str(c).lower() in _SITE_LIKE and str(c) not in columns]
    first = rows.drop_duplicates("participant_id").set_index("participant_id")
    for column in columns:
        site = text_levels(first.loc[list(cohort.ids), column]).fillna("n/a")
        strength, confounded = site_association(cohort.label, list(site))
        if confounded:
            warn(
                f"{column} and diagnosis are fully confounded: every level of {column} has one "
                "class only, so the classifier may see the scanner instead of the disease, and "
                "harmonization would take out both. These figures say nothing about the disease"
            )
        elif strength > 0.5:
            warn(f"{column} and diagnosis are strongly associated (Cramér's V {strength:.2f})")
    if settings.site is None:
        return None
    return tuple(text_levels(first.loc[list(cohort.ids), settings.site]).fillna("n/a"))


def _check_matches(
    settings: Settings, frame: pd.DataFrame, card: Mapping[str, Any], schema: Schema, where: str
) -> None:
    wanted = [*schema.features, *schema.covariates]
    wanted += [name for name in (schema.icv, schema.site) if name]
    missing = [name for name in wanted if name not in frame]
    if missing:
        raise BadData(f"{where}: needs columns that the group table lacks: {', '.join(missing)}")
    for name in (*schema.features, *schema.numeric, *([schema.icv] if schema.icv else [])):
        if not pd.api.types.is_numeric_dtype(frame[name]) and frame[name].notna().any():
            odd = frame[name].dropna().iloc[0]
            raise BadData(f"{where}: {name} was a number, here it is text such as '{odd}'")
    for name, levels in (schema.categories or {}).items():
        here = levels_of(frame[name])
        if here and not set(here) & set(levels):
            raise BadData(
                f"{where}: {name} was one of {', '.join(levels)}; here it is {', '.join(here[:10])}"
            )
    sidecar = _sidecar(settings)
    for name, facts in (card["Features"] | card["Covariates"]).items():
        units = _units(name, sidecar)
        if "n/a" not in (units, facts["Units"]) and units != facts["Units"]:
            raise BadData(f"{where}: {name} was in {facts['Units']}, here it is in {units}")
    others = sorted(set(frame["models"].fillna("n/a")) - {card["Models"]})
    if others:
        raise BadData(
            f"{where}: trained on volumes of other weights: {card['Models']}; here: {others[0]}"
        )
    versions = sorted(set(frame["software_version"].fillna("n/a")) - {card["SoftwareVersion"]})
    if versions:
        _LOG.warning(
            "%s: trained on volumes of HyPS-BIDS %s, here: %s",
            where,
            card["SoftwareVersion"],
            ", ".join(versions),
        )


def _remarks(frame: pd.DataFrame, schema: Schema, ids: Iterable[str]) -> list[str | None]:
    """Say per subject which values were missing or unknown."""
    texts: dict[str, set[str]] = {i: set() for i in ids}
    owner = frame["participant_id"].astype(str)
    for name in [*schema.used, *([schema.icv] if schema.icv else [])]:
        for i in owner[frame[name].isna()]:
            texts[i].add(f"{name} imputed")
    known = dict(schema.categories or {}) | ({schema.site: schema.sites} if schema.site else {})
    for name, levels in known.items():
        text = text_levels(frame[name])
        what = "not harmonized: unknown" if name == schema.site else "imputed: unknown"
        for i, level in zip(owner[text.notna()], text.dropna(), strict=True):
            if level not in levels:
                texts[i].add(f"{what} {name} {level}")
    return ["; ".join(sorted(texts[i])) or None for i in ids]


def _sidecar(settings: Settings) -> dict[str, Any]:
    path = settings.output_dir / _WIDE_SIDECAR
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _units(name: str, sidecar: Mapping[str, Any]) -> str:
    return str(sidecar.get(name, {}).get("Units", "n/a"))


def _only(column: pd.Series) -> str:
    return str(column.iloc[0])


def _levels(contrast: Contrast) -> list[str]:
    return [level for levels in contrast.classes.values() for level in levels]
