"""Facts of the group report about linear models, from the tables that the group level has left."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from hyps_bids.outputs.labels import SIDE_NAMES
from hyps_bids.reports import charts
from hyps_bids.reports.charts import Spec
from hyps_bids.reports.models import ModelTable

#: Estimator, as the table of models names it → words.
METHODS = {
    "ols": "ordinary least squares",
    "ols_hc3": "ordinary least squares with standard errors that are consistent under "
    "heteroscedasticity (HC3)",
    "wls": "least squares weighted by the standard error of each participant's change and the "
    "variance between participants",
    "wls_hc3": "least squares weighted by the standard error of each participant's change and the "
    "variance between participants, with standard errors that are consistent under "
    "heteroscedasticity (HC3)",
    "mixed": "a linear mixed model (restricted maximum likelihood, degrees of freedom by "
    "Satterthwaite's method",
    "mixed_cr2": "a linear mixed model (restricted maximum likelihood, cluster-robust standard "
    "errors CR2, degrees of freedom by Satterthwaite's method",
}
_EFFECT_UNITS = {"d": "d", "d_per_sd": "d per SD", "partial_eta2": "partial η²"}
_NOT_FITTED = "not fitted: "
#: Names of variables that are seldom the question, and of those that usually are.
_NUISANCE = re.compile(
    r"(?i)age|sex|gender|icv|icv_mm3|e?tiv|education|site|scanner|C|np|log|bs|cr"
)
_QUESTION = re.compile(r"(?i)(diagnos|dx|group|condition|cohort|patient|arm|status)")


@dataclass(frozen=True)
class LinearModel:
    """A linear model as the report shows it.

    Attributes
    ----------
    formula : str
        As the user wrote it.
    facts : str
        Sentences about how and on how many scans it was fitted.
    problems : list of str
        Why measures, or the whole formula, could not be fitted.
    warnings : list of str
        Warnings of the fits, with the regions that they concern.
    notes : list of str
        What else is special about the fits, in the same way.
    rows : list of dict
        The formatted coefficients.
    forests : dict of str to Spec
        A chart of effect sizes for each coefficient; the question of the study comes first.
    tables : list of ModelTable
        Marginal means and their comparisons.
    """

    formula: str
    facts: str
    problems: list[str]
    warnings: list[str]
    notes: list[str]
    rows: list[dict[str, str]]
    forests: dict[str, Spec]
    tables: list[ModelTable]


def describe_linear_models(table: pd.DataFrame, posthoc: pd.DataFrame) -> list[LinearModel]:
    """Make the tables of linear models and of the comparisons after them readable."""
    return [
        _describe(str(formula), rows, posthoc[posthoc["model"] == formula])
        for formula, rows in table.groupby("model", sort=False)
    ]


def _describe(formula: str, rows: pd.DataFrame, posthoc: pd.DataFrame) -> LinearModel:
    fitted = rows[rows["estimate"].notna() | rows["statistic"].notna()]
    shown = fitted[fitted["coefficient"] != "Intercept"]
    sized = shown[shown["effect_kind"].isin(["d", "d_per_sd"])]
    records = sized.to_dict("records")
    sized = sized.assign(
        label=[_region(row) for row in records], title=[_coefficient(row) for row in records]
    )
    terms = dict(zip(sized["title"], sized["term"], strict=True))
    by_title = dict(list(sized.groupby("title", sort=False)))
    texts = _texts(rows, "warnings")
    return LinearModel(
        formula=formula,
        facts=_facts(fitted) if len(fitted) else "",
        problems=[t.removeprefix(_NOT_FITTED) for t in texts if t.startswith(_NOT_FITTED)],
        warnings=[text for text in texts if not text.startswith(_NOT_FITTED)],
        notes=_texts(rows, "notes") if "notes" in rows else [],
        rows=[_row(row) for row in shown.to_dict("records")],
        forests={
            title: charts.forest_chart(by_title[title])
            for title in sorted(terms, key=lambda title: _order(str(terms[title])))
        },
        tables=_comparisons(posthoc),
    )


def method_words(rows: pd.DataFrame) -> str:
    """Name the estimators of the rows of a model, with their random effects."""
    found = rows.assign(random=rows.get("random"))
    found = found[["method", "random"]].drop_duplicates().to_dict("records")
    words = []
    for one in found:
        text = METHODS.get(one["method"], str(one["method"]))
        if str(one["method"]).startswith("mixed"):
            random = one["random"]
            text += f", random effects {random})" if pd.notna(random) else ")"
        words.append(text)
    return " or ".join(dict.fromkeys(words))


def _facts(rows: pd.DataFrame) -> str:
    words = method_words(rows)
    text = (
        f"{words[0].upper()}{words[1:]}, fitted to {_range(rows['n_scans'])} scans of "
        f"{_range(rows['n_subjects'])} participants; {_range(rows['n_left_out'])} scans were left "
        "out."
    )
    sites = rows["harmonized"].dropna().unique() if "harmonized" in rows else []
    if len(sites):
        text += (
            f" The measures were harmonized by {sites[0]} (ComBat), and effects are those within "
            "its sites."
        )
    return text


def _texts(rows: pd.DataFrame, column: str) -> list[str]:
    """List the different texts of a column and the regions that they concern."""
    regions = rows.drop_duplicates("measure")
    texts = []
    for text, some in regions.groupby(column, sort=False):
        names = [_region(row) for row in some.to_dict("records") if pd.notna(row["measure"])]
        whom = f" ({', '.join(names)})" if names and len(some) < len(regions) else ""
        texts.append(f"{text}{whom}")
    return texts


def _order(term: str) -> tuple[bool, bool]:
    """Sort the question of the study before other terms, and nuisance terms last."""
    names = re.findall(r"[^\W\d]\w*", term)
    asked = any(_QUESTION.match(name) for name in names)
    return not asked, not asked and all(_NUISANCE.fullmatch(name) for name in names)


def _row(row: Mapping[str, Any]) -> dict[str, str]:
    effect = _interval(row, "effect", "effect_low", "effect_high")
    return {
        "measure": _region(row),
        "coefficient": _coefficient(row),
        "estimate": _interval(row, "estimate", "ci_low", "ci_high"),
        "df": "" if pd.isna(row["df"]) else re.sub(r"\.\d+", lambda d: d[0][:2], str(row["df"])),
        "p": _p(row["p"]),
        "p_fdr": _p(row["p_fdr"]),
        "effect": f"{effect} {_EFFECT_UNITS.get(row['effect_kind'], '')}".strip(),
        "sure": "yes" if row["p_fdr"] < 0.05 else "",
    }


def _comparisons(posthoc: pd.DataFrame) -> list[ModelTable]:
    """Make a table of means or slopes, and one of their differences, for each comparison."""
    tables = []
    for text, rows in posthoc.groupby("posthoc", sort=False):
        compared = rows["kind"].str.endswith("_difference")
        for kind, some in rows[~compared].groupby("kind", sort=False):
            values = {"mean": "marginal means", "slope": "slopes"}.get(str(kind), str(kind))
            tables.append(_means(f"{text}: {values} with 95 % intervals.", some))
        if compared.any():
            tables.append(_differences(str(text), rows[compared]))
    return tables


def _means(caption: str, rows: pd.DataFrame) -> ModelTable:
    cells: dict[str, dict[str, str]] = {}
    for row in rows.to_dict("records"):
        interval = _interval(row, "estimate", "ci_low", "ci_high")
        cells.setdefault(_region(row), {})[_contrast(row)] = interval
    levels = list(dict.fromkeys(level for one in cells.values() for level in one))
    body = [[region, *(one.get(level, "") for level in levels)] for region, one in cells.items()]
    return ModelTable(caption, ["region", *levels], body)


def _differences(text: str, rows: pd.DataFrame) -> ModelTable:
    # Tukey's method does not hold with robust errors, where p_adjusted is by Holm's.
    tukey = rows["p_adjusted"].where(rows["adjustment"] == "tukey")
    columns = {"p_holm": "p (Holm)", "p_fdr": "FDR p"}
    if tukey.notna().any():
        columns = {"p_tukey": "p (Tukey)"} | columns
    caption = (
        f"{text}: differences with 95 % intervals. p by {adjustments(rows)} for the comparisons "
        "within a region, and FDR p over the regions."
    )
    head = ["region", "comparison", "difference", "effect size", *columns.values()]
    body = [
        [
            _region(row),
            _contrast(row).replace(" - ", " − "),
            _interval(row, "estimate", "ci_low", "ci_high"),
            _interval(row, "effect", "effect_low", "effect_high"),
            *(_p(row[name]) for name in columns),
        ]
        for row in rows.assign(p_tukey=tukey).to_dict("records")
    ]
    return ModelTable(caption, head, body)


def adjustments(posthoc: pd.DataFrame) -> str:
    """Name the methods that corrected the p-values of comparisons."""
    by_tukey = (posthoc["adjustment"] == "tukey").any()
    return "Tukey's and Holm's methods" if by_tukey else "Holm's method"


def _contrast(row: Mapping[str, Any]) -> str:
    return f"{row['contrast']} ({row['by']})" if pd.notna(row["by"]) else str(row["contrast"])


def _coefficient(row: Mapping[str, Any]) -> str:
    """Name a coefficient: ``group[T.AD]`` with the reference CN is ``group: AD against CN``."""
    name = str(row["coefficient"])
    if name == "(all)":
        return f"{row['term']} (all)"
    level = " × ".join(re.sub(r"^(.*)\[T\.(.*)\]$", r"\1: \2", part) for part in _factors(name))
    return f"{level} against {row['reference']}" if pd.notna(row["reference"]) else level


def _factors(coefficient: str) -> list[str]:
    """Split an interaction at its colons, which are not inside of brackets or parentheses."""
    return re.split(r":(?![^\[]*\])(?![^(]*\))", coefficient)


def _region(row: Mapping[str, Any]) -> str:
    sides = SIDE_NAMES | {"bilateral": "both sides"}
    names = [sides.get(row["side"], row["side"]), row["part"]]
    words = " ".join(str(name) for name in names if pd.notna(name) and name)
    return words or str(row["measure"])


def _interval(row: Mapping[str, Any], value: str, low: str, high: str) -> str:
    if pd.isna(row[value]):
        return ""
    digits = ",.0f" if abs(row[value]) >= 100 else ".3g"
    text = format(row[value], digits)
    if pd.isna(row[low]):
        return text
    return f"{text} [{row[low]:{digits}}, {row[high]:{digits}}]"


def _p(value: float) -> str:
    return "" if pd.isna(value) else f"{value:.2g}"


def _range(values: pd.Series) -> str:
    low, high = int(values.min()), int(values.max())
    return str(low) if low == high else f"{low} to {high}"
