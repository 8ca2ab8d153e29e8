"""Linear models of the measures, given as formulas."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from hyps_bids.cohort.derived import CROSS_SECTIONAL, is_change, split_column, volume_columns
from hyps_bids.cohort.design import CannotFit, Design, build_design
from hyps_bids.cohort.effects import Row, coefficient_rows
from hyps_bids.cohort.formulas import FAMILIES, find_measures, formula_variables, parse_formula
from hyps_bids.cohort.harmonize import (
    Harmonized,
    check_site,
    harmonize_measures,
    harmonized_table,
)
from hyps_bids.cohort.image_contrasts import CONTRAST, refuse_several
from hyps_bids.cohort.levels import looks_like_codes
from hyps_bids.cohort.models import Fit, fit_design
from hyps_bids.cohort.posthoc import ALL, comparison_rows, find_comparisons, parse_comparison
from hyps_bids.cohort.random_effects import split_random_effects
from hyps_bids.cohort.visits import baseline_ages, scan_order
from hyps_bids.errors import HypsError, UsageError
from hyps_bids.messages import format_count, join_names
from hyps_bids.outputs.columns import LINEAR_MODEL_COLUMNS, POSTHOC_COLUMNS
from hyps_bids.progress import track

_LOG = logging.getLogger("hyps_bids")

#: Short names of columns of the wide table.
_ALIASES = {"icv": "icv_mm3", "time": "years_since_first_scan"}
#: Name in formulas for the age at the first scan, which does not change with time.
_BASELINE_AGE = "baseline_age"


@dataclass(frozen=True)
class ModelTables:
    """The tables of linear models.

    Attributes
    ----------
    models : pandas.DataFrame
        One row per model, measure and coefficient, with the columns
        :data:`~hyps_bids.outputs.columns.LINEAR_MODEL_COLUMNS`.
    posthoc : pandas.DataFrame
        One row per mean, slope or difference of them, with the columns
        :data:`~hyps_bids.outputs.columns.POSTHOC_COLUMNS`.
    harmonized : pandas.DataFrame
        The harmonized measures, one row per model and scan; empty without harmonization.
    failed : tuple of str
        Formulas that were refused or could not be fitted to any measure, and values of
        ``--posthoc`` that no formula allows.
    """

    models: pd.DataFrame
    posthoc: pd.DataFrame
    harmonized: pd.DataFrame
    failed: tuple[str, ...] = ()


def fit_formulas(
    frame: pd.DataFrame,
    formulas: Sequence[str],
    controls: tuple[str, str] | None = None,
    site: str | None = None,
    posthoc: Sequence[str] = (),
    *,
    robust: bool = False,
    errors: pd.DataFrame | None = None,
) -> ModelTables:
    """Fit each formula to each region; one that fails is logged and does not stop the others.

    A change per year is one value of a participant, so its models use the row of the first scan.

    Parameters
    ----------
    frame : pandas.DataFrame
        The wide table; only scans that are done are used.
    formulas : sequence of str
        For example ``volume ~ diagnosis + age + sex + icv``. The name before ``~`` is a column, or
        one of :data:`~hyps_bids.cohort.formulas.FAMILIES`, which stands for several in turn.
    controls : tuple of str, optional
        A column and its reference level, instead of the first level.
    site : str, optional
        Column of the sites by which the measures are harmonized before each formula is fitted.
    posthoc : sequence of str
        What to compare after each model, see :func:`~hyps_bids.cohort.posthoc.find_comparisons`.
    robust : bool
        Whether standard errors are robust, see :func:`hyps_bids.cohort.models.fit_design`.
    errors : pandas.DataFrame, optional
        Standard errors of measures that have one, with the index of `frame`.
    """
    data = _with_aliases(frame)
    failed = list[str]()
    sound = list[str]()
    refused = list[ModelTables]()
    told = set[str]()

    def refuse(formula: str, error: HypsError) -> None:
        # An unknown --site is wrong for all formulas, and one line about it is enough.
        if str(error) not in told:
            _LOG.error("%s [%s]", error, error.code)
        told.add(str(error))
        failed.append(formula)
        refused.append(_refused(formula, error))

    # All formulas are checked first, because mixed models of thousands of scans take minutes.
    for formula in dict.fromkeys(formulas):
        try:
            find_measures(formula, data)
            if site is not None:
                check_site(formula, data, site)
            _check_contrasts(formula, data, site)
            sound.append(formula)
        except HypsError as error:
            refuse(formula, error)
    wanted, wrong = _well_formed(dict.fromkeys(posthoc) if sound else ())
    failed += wrong
    _warn_of_codes(data, sound)
    _tell_whose_columns(frame, sound)
    _tell_of_longitudinal(data, sound)
    fitted = list[ModelTables]()
    for formula in sound:
        try:
            fitted.append(
                fit_model(frame, formula, controls, site, wanted, robust=robust, errors=errors)
            )
        except HypsError as error:
            refuse(formula, error)
            continue
        if not fitted[-1].models["estimate"].notna().any():
            failed.append(formula)
    every = [*fitted, *refused]
    result = ModelTables(*(_joined(every, name) for name in ("models", "posthoc", "harmonized")))
    for text in wanted if fitted else ():
        if result.posthoc.empty or (text != ALL and not (result.posthoc["posthoc"] == text).any()):
            _LOG.error("--posthoc %s: there is nothing to compare after any of the models.", text)
            failed.append(f"--posthoc {text}")
    return replace(result, failed=tuple(failed))


def _well_formed(posthoc: Iterable[str]) -> tuple[list[str], list[str]]:
    """Return the values of ``--posthoc`` that can be read, and log and name the others."""
    wanted, wrong = list[str](), list[str]()
    for text in posthoc:
        try:
            parse_comparison(text)
            wanted.append(text)
        except UsageError as error:
            _LOG.error("%s [%s]", error, error.code)
            wrong.append(f"--posthoc {text}")
    return wanted, wrong


def _refused(formula: str, error: HypsError) -> ModelTables:
    """Keep the reason why a formula was refused, for the table and the report."""
    why = str(error).removeprefix(f"--model '{formula}': ")
    row = {"model": formula, "converged": False, "warnings": f"not fitted: {why}"}
    models = pd.DataFrame([row], columns=list(LINEAR_MODEL_COLUMNS))
    return ModelTables(models, pd.DataFrame(columns=list(POSTHOC_COLUMNS)), pd.DataFrame())


def _joined(fitted: Sequence[ModelTables], name: str) -> pd.DataFrame:
    tables = [getattr(tables, name) for tables in fitted]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def fit_models(
    frame: pd.DataFrame,
    formulas: Sequence[str],
    controls: tuple[str, str] | None = None,
    site: str | None = None,
    *,
    robust: bool = False,
) -> pd.DataFrame:
    """Fit each formula to each region, and stop at the first that is refused.

    See :func:`fit_formulas` for the parameters.

    Returns
    -------
    pandas.DataFrame
        :attr:`ModelTables.models`. A model that cannot be fitted has one row per measure that says
        why.

    Raises
    ------
    UsageError
        If a formula cannot be understood, or names columns that do not exist or that have mistyped
        numbers.
    """
    tables = [
        fit_model(frame, formula, controls, site, robust=robust).models for formula in formulas
    ]
    return pd.concat(tables, ignore_index=True)


def fit_model(
    frame: pd.DataFrame,
    formula: str,
    controls: tuple[str, str] | None = None,
    site: str | None = None,
    posthoc: Sequence[str] = (),
    *,
    robust: bool = False,
    errors: pd.DataFrame | None = None,
) -> ModelTables:
    """Fit one formula to each region; :func:`fit_formulas` describes the parameters.

    Raises
    ------
    UsageError
        If the formula or a value of `posthoc` cannot be understood, or names columns that do not
        exist or that have mistyped numbers.
    """
    data = _with_aliases(frame)
    name, measures = find_measures(formula, data)
    if is_change(measures[0]):
        data = data[scan_order(data)["scan_number"] == 1]
    _LOG.info("Model '%s': fitting %s", formula, format_count(len(measures), "measure"))
    ready = Harmonized(data, formula)
    _check_contrasts(formula, data, site)
    if site is not None:
        check_site(formula, data, site)
        ready = harmonize_measures(formula, data, name, measures, site, controls)
    rows, compared, reasons = list[Row](), list[Row](), dict[str, None]()
    found = list[_Measure]()
    for measure in track(measures, len(measures), "measures", f"Model '{formula}'"):
        known = errors[measure] if errors is not None and measure in errors else None
        found.append(_fit_measure(ready, name, measure, controls, robust=robust, errors=known))
        design, fit = found[-1].design, found[-1].fit
        about = found[-1].row | {
            "model": formula,
            "harmonized": site if ready.columns else None,
            "warnings": "; ".join(found[-1].warnings) or None,
            "notes": "; ".join(found[-1].notes) or None,
        }
        if design is None or fit is None:
            rows.append(about)
            continue
        rows += [about | r for r in coefficient_rows(design, fit) if r["term"] != ready.term]
        comparisons, impossible = find_comparisons(design, posthoc, exclude=site)
        reasons |= dict.fromkeys(impossible)
        for comparison in comparisons:
            try:
                compared += [about | row for row in comparison_rows(design, fit, comparison)]
            except CannotFit as why:
                reasons[str(why)] = None
    for reason in reasons:
        _LOG.warning("Model '%s', %s", formula, reason)
    models = pd.DataFrame(rows, columns=list(LINEAR_MODEL_COLUMNS))
    models["p_fdr"] = _adjusted(models[models["term"] != "Intercept"], ["term", "coefficient"])
    table = pd.DataFrame(compared, columns=list(POSTHOC_COLUMNS))
    if compared:
        table["p_fdr"] = _adjusted(table, ["posthoc", "by", "kind", "contrast"])
    _log_result(formula, found)
    harmonized = pd.DataFrame() if site is None else harmonized_table(formula, ready, site)
    return ModelTables(models, table, harmonized)


def _check_contrasts(formula: str, data: pd.DataFrame, site: str | None) -> None:
    """Refuse scans of several contrasts, unless the formula has the contrast as a variable."""
    done = data[data["status"] == "done"]
    if site is not None:
        refuse_several(done, f"--model '{formula}': --harmonize")
    refuse_several(
        done,
        f"--model '{formula}': the formula",
        formula_variables(formula, data.columns),
        f"add {CONTRAST} to the formula, whose scans of a subject are then repeated measurements",
    )


def _with_aliases(frame: pd.DataFrame) -> pd.DataFrame:
    aliases = {
        short: frame[name]
        for short, name in _ALIASES.items()
        if short not in frame and name in frame
    }
    if _BASELINE_AGE not in frame and (ages := baseline_ages(frame)).notna().any():
        aliases[_BASELINE_AGE] = ages
    return frame.assign(**aliases)


@dataclass(frozen=True)
class _Measure:
    """What was found for one measure."""

    row: Row  # what all rows of its coefficients say
    design: Design | None  # None, like the fit, if the measure cannot be modeled
    fit: Fit | None
    lacking: Counter[str]  # scans without a value of each variable
    warnings: tuple[str, ...]
    notes: tuple[str, ...] = ()


def _fit_measure(
    ready: Harmonized,
    name: str,
    measure: str,
    controls: tuple[str, str] | None,
    *,
    robust: bool,
    errors: pd.Series | None,
) -> _Measure:
    try:
        _, side, part = split_column(measure)
    except ValueError:
        side = part = ""
    data = ready.data
    variables = sorted(formula_variables(ready.formula, data.columns) - {"participant_id"})
    done = data[data["status"] == "done"].assign(**{name: data[measure]})
    used = done[["participant_id", *variables]].dropna()
    subjects = used["participant_id"].to_numpy()
    design = fit = None
    unweighted = ""
    try:
        if ready.problem:
            raise CannotFit(ready.problem)
        design = build_design(ready.formula, used, name, controls)
        subjects = design.subjects
        known, unweighted = _known_errors(design, name, errors)
        random = split_random_effects(ready.formula).random
        fit = fit_design(design, random, robust=robust, errors=known)
        warnings = (*ready.warnings, *design.warnings, *fit.warnings)
    except CannotFit as why:
        warnings = (f"not fitted: {why}",)
    row: Row = {
        "measure": measure,
        "side": side or None,
        "part": part or None,
        "n_scans": len(subjects),
        "n_subjects": len(np.unique(subjects)),
        "n_left_out": int(data["scan"].notna().sum()) - len(subjects),
        "converged": fit is not None and fit.converged,
    }
    lacking = Counter({str(k): int(n) for k, n in done[variables].isna().sum().items() if n})
    if fit is None:
        return _Measure(row, None, None, lacking, warnings)
    row |= {"method": fit.method, "random": fit.random}
    notes = (*fit.notes, unweighted) if unweighted else fit.notes
    return _Measure(row, design, fit, lacking, warnings, notes)


def _known_errors(
    design: Design, name: str, errors: pd.Series | None
) -> tuple[np.ndarray | None, str]:
    """Return the standard errors of an outcome, or why it is not weighted by them."""
    if errors is None:
        return None, ""
    known = errors.loc[design.data.index].to_numpy(dtype=np.float64)
    if design.parsed is not None and name not in design.parsed.plain:
        return None, f"not weighted by standard errors, which are those of {name} itself"
    if lacking := int((~(known > 0)).sum()):
        return None, f"not weighted, because {lacking} participants have no standard error"
    return known, ""


def _warn_of_codes(data: pd.DataFrame, formulas: Sequence[str]) -> None:
    """Name the columns of numbers that are fitted as straight lines, but look like groups."""
    parsed = [parse_formula(formula, frozenset(data)) for formula in formulas]
    names = {name for one in parsed for name in one.plain - {*one.outcome}}
    done = data[data["status"] == "done"]
    codes = [
        name
        for name in sorted(names & set(data))
        if pd.api.types.is_numeric_dtype(data[name])
        and looks_like_codes(done[name], done["participant_id"])
    ]
    if codes:
        _LOG.warning(
            "The models fit a straight line through the numbers of these columns: %s. If they are "
            "codes of groups, write C(%s) in the formula.",
            "; ".join(f"{name} ({_codes(done[name])})" for name in codes),
            codes[0],
        )


def _tell_whose_columns(frame: pd.DataFrame, formulas: Sequence[str]) -> None:
    """Name the columns of the dataset that formulas mean by a name which we give to ours."""
    parsed = [parse_formula(formula, frozenset(frame)) for formula in formulas]
    outcomes = {name for one in parsed for name in one.outcome if name in frame}
    if taken := sorted(outcomes & set(FAMILIES)):
        _LOG.warning(
            "The models are of the dataset's own columns: %s. To model the measures of the images, "
            "rename these columns in the dataset, or write the name of one measure, such as %s.",
            join_names(taken),
            next(iter(volume_columns(frame, FAMILIES[taken[0]])), "volume_mm3_L_whole"),
        )
    used = {name for one in parsed for name in (*one.columns.values(), *one.slopes)}
    for short in sorted(used & set(frame) & set(_ALIASES)):
        _LOG.info("The models use the dataset's own column %s; ours is %s.", short, _ALIASES[short])


def _tell_of_longitudinal(data: pd.DataFrame, formulas: Sequence[str]) -> None:
    """Name the better measure of formulas that model time with volumes of each scan alone."""
    for formula in formulas:
        parsed = parse_formula(formula, frozenset(data))
        name = next((n for n in parsed.outcome if FAMILIES.get(n) in CROSS_SECTIONAL), None)
        better = volume_columns(data, "volume_longitudinal_mm3")
        times = {*parsed.columns.values(), *parsed.slopes} & {"time", _ALIASES["time"]}
        if name and name not in data and better and times:
            _LOG.warning(
                "Model '%s': %s has the volumes of each scan alone. volume_longitudinal has those "
                "of all scans of a participant together, in which change is known better.",
                *(formula, name),
            )


def _codes(values: pd.Series) -> str:
    return join_names(f"{code:g}" for code in sorted(values.dropna().unique()))


def _adjusted(table: pd.DataFrame, columns: list[str]) -> pd.Series:
    """Adjust p-values over measures, separately for each value of the columns."""
    from scipy.stats import false_discovery_control

    tests = table.dropna(subset="p").astype({"p": "float64"})
    groups = tests.groupby(columns, dropna=False)["p"]
    return groups.transform(false_discovery_control)


def _log_result(formula: str, measures: Sequence[_Measure]) -> None:
    """Say how many scans were used, and each warning and note once."""
    failed = all(measure.fit is None for measure in measures)
    if not failed:
        lacking = Counter[str]()
        for measure in measures:
            lacking |= measure.lacking  # The larger of both counts.
        names = join_names(f"without {name}: {n}" for name, n in lacking.most_common())
        _LOG.info(
            "Model '%s': scans used: %s; left out: %s%s",
            formula,
            _range(measure.row["n_scans"] for measure in measures),
            _range(measure.row["n_left_out"] for measure in measures),
            f" ({names})" if names else "",
        )
    warnings = Counter(text for measure in measures for text in measure.warnings)
    notes = Counter(text for measure in measures for text in measure.notes)
    for level, texts in (
        (logging.ERROR if failed else logging.WARNING, warnings),
        (logging.INFO, notes),
    ):
        for text, count in texts.items():
            _LOG.log(
                level, "Model '%s', %d of %d measures: %s", formula, count, len(measures), text
            )


def _range(numbers: Iterable[int]) -> str:
    values = sorted(numbers)
    low, high = values[0], values[-1]
    return str(low) if low == high else f"{low} to {high}"
