"""The group report: one HTML file about all scans, their statistics, classifiers and adapters."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup

from hyps_bids.cohort.image_contrasts import contrasts_of
from hyps_bids.errors import HypsError, MissingInput
from hyps_bids.outputs.columns import (
    ADDED_CHANGE_COLUMNS,
    CHANGE_COLUMNS,
    CONTRAST_COLUMN,
    LINEAR_MODEL_COLUMNS,
    POSTHOC_COLUMNS,
)
from hyps_bids.outputs.labels import SIDE_NAMES, WHOLE
from hyps_bids.outputs.names import T1W_ALONE, group_path, group_space, sidecar_path
from hyps_bids.outputs.reading import (
    CHANGE,
    LINEAR_MODELS,
    POSTHOC,
    WIDE,
    read_json_object,
    read_table,
    read_wide,
)
from hyps_bids.outputs.writing import write_text
from hyps_bids.reports.charts import scan_charts
from hyps_bids.reports.citation import to_html
from hyps_bids.reports.group_facts import (
    CHANGE_METHODS,
    OUTLIER_Z,
    STATES,
    GroupFacts,
    describe_group,
)
from hyps_bids.reports.group_methods import group_methods_file
from hyps_bids.reports.group_norms import read_norm_models, read_scored_groups
from hyps_bids.reports.linear_models import describe_linear_models
from hyps_bids.reports.models import read_adapters, read_classifiers
from hyps_bids.reports.page import packed, render

_LOG = logging.getLogger("hyps_bids")
#: Largest number of rows in tables that are there without JavaScript and in print.
_MOST_ROWS = 500


def write_group_report(output_dir: Path, suffixes: Collection[str] = T1W_ALONE) -> Path:
    """Write ``OUT_DIR/group_report.html`` from the outputs of the group level.

    The report of other contrasts than T1w has another name, such as
    ``group_space-T2w_report.html``.

    Tables of the scans, of linear models and of change, and the folders of ``models/``, are shown
    if they are there; the same files give the same report.

    Parameters
    ----------
    output_dir : Path
        The derivatives dataset.
    suffixes : collection of str
        Suffixes of the images that the report is about.

    Returns
    -------
    Path
        The report.

    Raises
    ------
    MissingInput
        If there is a wide table, but its sidecar or the QC table cannot be read.
    CannotCreateOutput
        If the report cannot be written.
    """
    path = group_path(output_dir, WIDE, suffixes)
    # Tables of earlier versions state neither the contrast nor the method.
    needed = CHANGE_COLUMNS.keys() - CONTRAST_COLUMN.keys() - set(ADDED_CHANGE_COLUMNS)
    change = _read_optional(group_path(output_dir, CHANGE, suffixes), needed)
    if "method" not in change:
        change = change.assign(method="cross-sectional")
    group = _read_group(path, output_dir, suffixes, change)
    linear = describe_linear_models(
        _read_optional(group_path(output_dir, LINEAR_MODELS, suffixes), LINEAR_MODEL_COLUMNS),
        _read_optional(group_path(output_dir, POSTHOC, suffixes), POSTHOC_COLUMNS),
    )
    classifiers, adapters = read_classifiers(output_dir, suffixes), read_adapters(output_dir)
    norms = read_norm_models(output_dir, suffixes)
    scored = read_scored_groups(output_dir, suffixes)
    specs = scan_charts() if group else {}
    if scored is not None:
        specs["norm-groups"] = scored.chart
    # Charts have numbers as names, because folders and coefficients may have any name.
    for m, model in enumerate(linear):
        specs |= {f"forest-{m}-{c}": spec for c, spec in enumerate(model.forests.values())}
    for kind, trained in (("norms", norms), ("classifier", classifiers), ("adapter", adapters)):
        for t, one in enumerate(trained):
            specs |= {f"{kind}-{t}-{c}": chart.spec for c, chart in enumerate(one.charts)}
    html = render(
        "group.html.j2",
        dataset=_dataset_name(output_dir),
        group=group,
        images=list(dict.fromkeys(suffixes)),
        space=group_space(suffixes),
        states=STATES,
        outlier_z=OUTLIER_Z,
        most_rows=_MOST_ROWS,
        linear_models=linear,
        change=_summarize_change(change),
        norms=norms,
        scored=scored,
        classifiers=classifiers,
        adapters=adapters,
        methods=_methods(output_dir / group_methods_file(suffixes)),
        methods_file=group_methods_file(suffixes).as_posix(),
        charts=_packed_json(specs, "charts"),
        data=_packed_json(group.data, "group-data") if group else None,
    )
    path = output_dir / f"group{group_space(suffixes)}_report.html"
    write_text(path, html)
    return path


def _read_group(
    path: Path, output_dir: Path, suffixes: Collection[str], change: pd.DataFrame
) -> GroupFacts | None:
    """Read the tables of all scans; None if the group level has not written them."""
    if not path.is_file():
        return None
    try:
        sidecar = read_json_object(sidecar_path(path))
        wide = read_wide(output_dir, suffixes)
        qc = read_table(group_path(output_dir, "qc", suffixes))
    except (OSError, ValueError, HypsError) as error:
        raise MissingInput(
            f"{path}: the table, its sidecar or the QC table cannot be read ({error}); run the "
            "group level again",
            code="group-tables-unreadable",
        ) from error
    reports = {one.name for one in output_dir.glob("sub-*.html")}
    return describe_group(wide, qc, sidecar, reports, change)


def _read_optional(path: Path, columns: Collection[str]) -> pd.DataFrame:
    """Read a table that may be missing; a damaged one is left out with a warning."""
    nothing = pd.DataFrame(columns=list(columns))
    if not path.is_file():
        return nothing
    try:
        table = read_table(path)
    except (OSError, ValueError) as error:
        _LOG.warning("Group report: %s cannot be read (%s)", path, error)
        return nothing
    lacking = sorted(set(columns) - set(table.columns))
    if lacking:
        _LOG.warning("Group report: %s has no column %s", path, ", ".join(lacking))
        return nothing
    return table


def _summarize_change(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Summarize the change per year of both hippocampi, by contrast if there are several."""
    rows = []
    contrasts = contrasts_of(table)
    several = contrasts.nunique() > 1
    measures = {
        f"{start}_{hemi}_{WHOLE}": (words, side)
        for words, start in CHANGE_METHODS.values()
        for hemi, side in SIDE_NAMES.items()
    }
    whole = table[table["measure"].isin(measures)]
    by = [contrasts[whole.index], whole["measure"].map(list(measures).index)]
    for (contrast, number), one in whole.groupby(by):
        method, side = list(measures.values())[int(number)]
        side += f", {contrast}" if several else ""
        slopes = one["percent_per_year"].dropna()
        low, middle, high = slopes.quantile([0.25, 0.5, 0.75])
        # A row with a slope may have remarks as well.
        remarks = one.loc[one["percent_per_year"].isna(), "remarks"].dropna().value_counts()
        rows.append(
            {
                "method": method,
                "side": side,
                "subjects": len(slopes),
                "median": f"{middle:+.2f} %" if len(slopes) else None,
                "quartiles": f"{low:+.2f} to {high:+.2f} %" if len(slopes) else None,
                "without": "; ".join(f"{n}: {text}" for text, n in remarks.items()) or "none",
            }
        )
    return rows


def _methods(path: Path) -> Markup | None:
    """Show the methods text that the run has written."""
    try:
        return to_html(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _dataset_name(output_dir: Path) -> str | None:
    """Read the name of the dataset, without which the report is still useful."""
    try:
        return str(read_json_object(output_dir / "dataset_description.json")["Name"])
    except (HypsError, KeyError):
        return None


def _packed_json(content: Any, identifier: str) -> Markup:
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return packed(text.encode("utf-8"), identifier)
