"""The group report: one HTML file of all scans, their statistics, classifiers and adapters."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pandas as pd

from hyps_bids.errors import MissingInput
from hyps_bids.outputs.quality import quality_bounds
from hyps_bids.outputs.reading import read_table
from hyps_bids.outputs.writing import write_text
from hyps_bids.reports import charts
from hyps_bids.reports.cohort import OUTLIER_Z, STATES, Cohort, describe_cohort
from hyps_bids.reports.models import describe_formulas, read_adapters, read_classifiers
from hyps_bids.reports.page import packed, render

__all__ = ["write_group_report"]

_LOG = logging.getLogger("hyps_bids")
_TABLES = "group_seg-hippocampus_{}.tsv"
#: rows of tables that are there without JavaScript and in print
_MOST_ROWS = 500
_CHANGES = ("volume_mm3_L_whole", "volume_mm3_R_whole")
#: columns that the report needs of tables that may be there
_OF_MODELS = (
    *("model", "method", "measure", "side", "part", "coefficient", "reference"),
    *("estimate", "ci_low", "ci_high", "p", "p_fdr", "effect", "effect_low", "effect_high"),
    *("effect_kind", "n_scans", "n_subjects", "warnings"),
)
_OF_CHANGE = ("measure", "percent_per_year", "remarks")


def write_group_report(output_dir: Path) -> Path:
    """Write ``OUT_DIR/group_report.html`` from what the group level has left.

    Tables of the scans, of models and of change, and the folders of ``models/``, are shown if they
    are there; the same files give the same report.

    Parameters
    ----------
    output_dir : Path
        The derivatives dataset.

    Returns
    -------
    Path
        The report.

    Raises
    ------
    MissingInput
        If there is a wide table, but not its sidecar or the QC table.
    CannotCreateOutput
        If it cannot be written.
    """
    cohort = _cohort(output_dir)
    formulas = describe_formulas(_optional(output_dir, "desc-models_morph", _OF_MODELS))
    classifiers, adapters = read_classifiers(output_dir), read_adapters(output_dir)
    specs: dict[str, Any] = {}
    if cohort:
        asymmetry = quality_bounds()["asymmetry"]
        specs |= {
            "distribution": charts.distribution_chart(),
            "asymmetry": charts.distribution_chart(
                [100 * asymmetry["low"], 100 * asymmetry["high"]]
            ),
            "relation": charts.relation_chart(),
            "quality": charts.quality_chart(),
            "change": charts.change_chart(),
        }
    # identifiers are numbers: names of folders and coefficients may be anything
    for m, formula in enumerate(formulas):
        specs |= {f"forest-{m}-{c}": spec for c, spec in enumerate(formula.forests.values())}
    for kind, folders in (("classifier", classifiers), ("adapter", adapters)):
        for f, folder in enumerate(folders):
            specs |= {f"{kind}-{f}-{c}": one["spec"] for c, one in enumerate(folder.charts)}
    html = render(
        "group.html.j2",
        dataset=_dataset_name(output_dir),
        cohort=cohort,
        versions=[[*one.values()] for one in cohort.versions] if cohort else [],
        states=STATES,
        outlier_z=OUTLIER_Z,
        most_rows=_MOST_ROWS,
        formulas=formulas,
        change=_change(_optional(output_dir, "desc-longitudinal_morph", _OF_CHANGE)),
        classifiers=classifiers,
        adapters=adapters,
        charts=_packed_json(specs, "charts"),
        data=_packed_json(cohort.data, "cohort") if cohort else None,
    )
    path = output_dir / "group_report.html"
    write_text(path, html)
    return path


def _cohort(output_dir: Path) -> Cohort | None:
    path = output_dir / _TABLES.format("desc-wide_morph")
    if not path.is_file():
        return None
    try:
        sidecar = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        qc = read_table(output_dir / _TABLES.format("qc"))
    except (OSError, ValueError) as error:
        raise MissingInput(
            f"{path}: its sidecar or the QC table cannot be read; run the group level again"
        ) from error
    reports = {one.name for one in output_dir.glob("sub-*.html")}
    return describe_cohort(_wide(path, sidecar), qc, sidecar, reports)


def _wide(path: Path, sidecar: dict[str, Any]) -> pd.DataFrame:
    """Read the wide table, with the types that its sidecar names."""
    # not group.tables.read_wide: it takes seconds to import what the participant level needs
    text = pd.read_csv(path, sep="\t", dtype="str", na_values=["n/a"], keep_default_na=False)
    columns = {}
    for name, values in text.items():
        described = sidecar.get(str(name), {})
        if described.get("Format") == "number":
            columns[name] = values.astype("float64")
        elif described.get("Levels"):
            columns[name] = values.astype(pd.CategoricalDtype(list(described["Levels"])))
        else:
            columns[name] = values
    return pd.DataFrame(columns)


def _optional(output_dir: Path, kind: str, needed: tuple[str, ...]) -> pd.DataFrame:
    """Read a table that may be missing; one that is damaged is left out, with a warning."""
    path = output_dir / _TABLES.format(kind)
    nothing = pd.DataFrame(columns=list(needed))
    if not path.is_file():
        return nothing
    try:
        table = read_table(path)
    except (OSError, ValueError) as error:
        _LOG.warning("group report: %s cannot be read (%s)", path, error)
        return nothing
    lacking = sorted(set(needed) - set(table.columns))
    if lacking:
        _LOG.warning("group report: %s has no column %s", path, ", ".join(lacking))
        return nothing
    return table


def _change(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Summarize the change per year of both hippocampi."""
    rows = []
    for measure in _CHANGES:
        one = table[table["measure"] == measure]
        if one.empty:
            continue
        slopes = one["percent_per_year"].dropna()
        low, middle, high = slopes.quantile([0.25, 0.5, 0.75]) if len(slopes) else [None] * 3
        remarks = one["remarks"].dropna().value_counts()
        rows.append(
            {
                "side": "left" if "_L_" in measure else "right",
                "subjects": len(slopes),
                "median": None if middle is None else f"{middle:+.2f} %",
                "quartiles": None if low is None else f"{low:+.2f} to {high:+.2f} %",
                "without": "; ".join(f"{n}: {text}" for text, n in remarks.items()) or "none",
            }
        )
    return rows


def _dataset_name(output_dir: Path) -> str | None:
    try:
        content = json.loads((output_dir / "dataset_description.json").read_text(encoding="utf-8"))
        return str(content["Name"])
    except (OSError, ValueError, KeyError, TypeError):
        # only a heading: the report is worth having without it
        return None


def _packed_json(content: Any, identifier: str) -> Any:
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return packed(text.encode("utf-8"), identifier)
