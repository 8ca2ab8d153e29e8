"""Harmonize the measures of a formula by site before the formula is fitted."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from hyps_bids.cohort.combat import FEWEST_AT_A_SITE, harmonize
from hyps_bids.cohort.derived import ICV_OF, is_measure, split_column, volume_columns
from hyps_bids.cohort.design import CannotFit, Design, build_design
from hyps_bids.cohort.formulas import formula_variables, parse_formula
from hyps_bids.cohort.own_columns import users_first
from hyps_bids.errors import UsageError
from hyps_bids.messages import format_count, join_names, suggest_names


@dataclass(frozen=True)
class Harmonized:
    """The table of a formula, harmonized by site.

    Attributes
    ----------
    data : pandas.DataFrame
        The wide table with harmonized measures, which are missing in scans that are not used.
    formula : str
        The formula with a term of sites, which has the degrees of freedom that harmonization cost.
    term : str
        Name of this term, whose coefficients mean nothing.
    columns : tuple of str
        Columns that were harmonized; empty if the outcome is no measure of the images.
    warnings : tuple of str
        What the user should know.
    problem : str
        Why the measures cannot be harmonized, and so the formula cannot be fitted.
    """

    data: pd.DataFrame
    formula: str
    term: str = ""
    columns: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    problem: str = ""


def check_site(formula: str, data: pd.DataFrame, site: str) -> None:
    """Refuse a site column that does not exist, or that the formula has as a term.

    Raises
    ------
    UsageError
        With the code ``site-unknown`` or ``formula-has-site``.
    """
    if site not in data:
        raise UsageError(
            f"--site {site}: there is no column {site} in the group table. Choose one of these: "
            f"{suggest_names([site], users_first(data))}",
            code="site-unknown",
        )
    if site in formula_variables(formula, data.columns):
        raise UsageError(
            f"--model '{formula}': --harmonize takes the differences between sites out of the "
            f"measures, so the formula cannot estimate them. Remove {site} from the formula, or "
            "leave out --harmonize.",
            code="formula-has-site",
        )


def harmonize_measures(
    formula: str,
    data: pd.DataFrame,
    name: str,
    measures: Sequence[str],
    site: str,
    controls: tuple[str, str] | None = None,
) -> Harmonized:
    """Harmonize the measures that a formula stands for, keeping the effects of its terms.

    All columns of the measure, such as the volumes of all regions, are harmonized together, even if
    the formula names one of them. The intracranial volume, and other measures of the images among
    the terms, have site effects of their own: they are harmonized first, keeping the effects of
    the terms without them.

    The volumes alone would be fitted with too many degrees of freedom, because differences between
    groups that are in part differences between sites look more certain than they are (Nygaard et
    al. 2016). The returned formula has the sites as a term, so that standard errors are those of
    comparisons within sites.

    Parameters
    ----------
    formula : str
        The user's formula.
    data : pandas.DataFrame
        The wide table.
    name : str
        The name before ``~``, which stands for each of `measures` in turn.
    measures : sequence of str
        Columns to model.
    site : str
        Column of the sites.
    controls : tuple of str, optional
        Column and reference level.

    Returns
    -------
    Harmonized
        With a problem if there are too few sites, or if they cannot be told apart from the terms.
    """
    try:
        return _harmonize(formula, data, name, measures, site, controls)
    except CannotFit as why:
        return Harmonized(data, formula, problem=str(why))


def _harmonize(
    formula: str,
    data: pd.DataFrame,
    name: str,
    measures: Sequence[str],
    site: str,
    controls: tuple[str, str] | None,
) -> Harmonized:
    if not _is_measure(measures[0], data):
        text = f"{name} is not measured in the images, so nothing was harmonized by {site}"
        return Harmonized(data, formula, warnings=(text,))
    variables = sorted(formula_variables(formula, data.columns) - {name, "participant_id"})
    others = [column for column in variables if _is_measure(column, data)]
    family = [column for column in _family(measures, data) if column not in others]
    done = data["status"] == "done"
    known = done & data[[*variables, site]].notna().all(axis=1) & data[family].notna().any(axis=1)
    used, warnings = _usable_sites(data[known], site)
    codes = pd.factorize(used[site], sort=True)[0]
    repeated = used["participant_id"].duplicated().any()
    subjects = used["participant_id"].to_numpy() if repeated else None
    # Any numbers do: what is wanted is the design, and the logarithm of an outcome must exist.
    used = used.assign(**{name: np.arange(1.0, len(used) + 1)})
    result = data.copy()
    for columns, excluded in ((others, others), (family, [])):
        if not columns:
            continue
        design = build_design(formula, used, name, controls)
        rows = used.index.isin(design.data.index)
        kept = np.hstack(list(_columns_without(design, {name, *excluded})))
        if not excluded:
            _refuse_confounding(design, codes[rows], site)
        values = data.loc[design.data.index, columns].to_numpy(dtype=np.float64)
        try:
            values = harmonize(
                values,
                codes[rows],
                kept,
                None if subjects is None else subjects[rows],
                keep_variance=True,
            )
        except np.linalg.LinAlgError as why:
            raise CannotFit(f"the model for harmonization cannot be solved ({why})") from why
        result[columns] = np.nan
        result.loc[design.data.index, columns] = values
        used = used.assign(**{c: result.loc[used.index, c] for c in columns if c in others})
    term = f"C(`{site}`, contr.sum)"
    return Harmonized(
        data=result,
        formula=f"{formula} + {term}",
        term=_name_of(term, site),
        columns=(*others, *family),
        warnings=warnings,
    )


def harmonized_table(formula: str, found: Harmonized, site: str) -> pd.DataFrame:
    """Return the scans that were harmonized, with their site and their harmonized measures.

    The table has no rows if nothing was harmonized.
    """
    if not found.columns:
        return pd.DataFrame()
    data, columns = found.data, list(found.columns)
    rows = data[data[columns].notna().any(axis=1)]
    keys = ["participant_id", "session_id", "scan"]
    table = rows[[*(key for key in keys if key in rows), *columns]].copy()
    table.insert(0, "model", formula)
    table.insert(table.columns.get_loc(columns[0]), "harmonized", rows[site])
    return table


def _family(measures: Sequence[str], data: pd.DataFrame) -> list[str]:
    """Name all columns of the same measure, from which the priors come."""
    try:
        return volume_columns(data, split_column(measures[0])[0])
    except ValueError:
        return list(measures)


def _is_measure(column: str, data: pd.DataFrame) -> bool:
    if column == "icv":
        # The dataset may have a column of this name that was not measured in the images.
        return "icv_mm3" in data and data["icv"].equals(data["icv_mm3"])
    return column in ICV_OF.values() or is_measure(column)


def _usable_sites(known: pd.DataFrame, site: str) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Leave out the scans of sites with so few that their variance cannot be known."""
    counts = known[site].value_counts()
    few = counts[counts < FEWEST_AT_A_SITE]
    few = few[few > 0]
    used = known[~known[site].isin(few.index)]
    if used[site].nunique() < 2:
        raise CannotFit(
            f"there is nothing to harmonize: {site} has fewer than two sites with at least "
            f"{FEWEST_AT_A_SITE} scans that have all values"
        )
    if few.empty:
        return used, ()
    text = (
        f"{format_count(int(few.sum()), 'scan')} left out, because their sites have fewer than "
        f"{FEWEST_AT_A_SITE} scans: {join_names(sorted(map(str, few.index)))}"
    )
    return used, (text,)


def _columns_without(design: Design, excluded: Collection[str]) -> Iterator[np.ndarray]:
    """Yield the columns of the terms that have none of the excluded variables."""
    assert design.parsed is not None
    safe = {safe for safe, name in design.parsed.columns.items() if name in excluded}
    yield np.empty((len(design.matrix), 0))
    for term, where in design.spec.term_slices.items():
        if not safe & set(map(str, design.spec.term_variables[term])):
            yield design.matrix[:, where]


def _refuse_confounding(design: Design, codes: np.ndarray, site: str) -> None:
    """Refuse terms that cannot be told apart from the sites."""
    member = (codes[:, None] == np.arange(codes.max() + 1)).astype(float)
    ones, scaled = np.ones((len(codes), 1)), design.matrix / design.scales

    def added_by(where: slice, base: np.ndarray) -> int:
        """Count the columns of a term that do not follow from the base and the other terms."""
        whole = np.hstack([base, scaled])
        others = np.hstack([base, np.delete(scaled, where, axis=1)])
        return int(np.linalg.matrix_rank(whole) - np.linalg.matrix_rank(others))

    lost = [
        term
        for term, where in design.terms.items()
        if added_by(where, member) < added_by(where, ones)
    ]
    if lost:
        raise CannotFit(
            f"the sites ({site}) cannot be told apart from {join_names(lost)}, so harmonization "
            "would remove both"
        )


def _name_of(term: str, site: str) -> str:
    """Return a term as the design names it."""
    parsed = parse_formula(f"volume ~ 0 + {term}", frozenset([site, "volume"]))
    (only,) = parsed.formula.rhs
    return parsed.restored(str(only))
