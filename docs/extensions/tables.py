"""Columns, measures and flags, read from the package, as tables of the documentation."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from hyps_bids.cohort.derived import MEASURES
from hyps_bids.norms import words
from hyps_bids.outputs import columns, flags
from hyps_bids.outputs.quality import SCAN_MEASURES, SIDE_MEASURES, quality_bounds

Rows = list[tuple[str, ...]]


def _described(header: str, content: Mapping[str, str]) -> Rows:
    return [(header, "meaning"), *((f"`{name}`", text) for name, text in content.items())]


def _quality() -> Rows:
    rows: Rows = [("measure", "meaning", "flagged if")]
    for name in (*SIDE_MEASURES, *SCAN_MEASURES):
        about = quality_bounds()[name]
        sides = " `_L`, `_R`" if name in SIDE_MEASURES else ""
        bounds = [f"< {about['low']:,}"] if "low" in about else []
        bounds += [f"> {about['high']:,}"] if "high" in about else []
        rows.append((f"`{name}`{sides}", about["description"], " or ".join(bounds)))
    return rows


def _series_flags() -> Rows:
    notes = flags._SERIES_NOTES.items()
    # The codes of a side end with _L or _R.
    texts = {f"{code}_L" if "{side}" in note.text else code: note.text for code, note in notes}
    return _described(
        "flag", {c: t.format(others="other scans", side="left") for c, t in texts.items()}
    )


def _measures() -> Rows:
    head = ("measure", "meaning", "unit")
    return [head, *((f"`{name}_…`", text, unit) for name, (text, unit) in MEASURES.items())]


#: What can be shown.
TABLES: dict[str, Callable[[], Rows]] = {
    "quality": _quality,
    "series-flags": _series_flags,
    "norm-codes": lambda: _described("code", words._WORDS),
    "measures": _measures,
    "keys": lambda: _described("column", columns.KEYS),
    "morph": lambda: _described("column", columns.MORPH_COLUMNS),
    "qc": lambda: _described("column", columns.qc_columns()),
    "longitudinal": lambda: _described("column", columns.LONGITUDINAL_COLUMNS),
    "annual-change": lambda: _described("column", columns.ANNUAL_CHANGE_COLUMNS),
    "series-qc": lambda: _described("column", columns.SERIES_QC_COLUMNS),
    "visits": lambda: _described("column", columns.VISIT_COLUMNS | columns.SERIES_COLUMNS),
    "change": lambda: _described("column", columns.CHANGE_COLUMNS),
    "surfaces": lambda: _described("column", columns.SURFACE_COLUMNS),
    "space-qc": lambda: _described("column", columns.SPACE_QC_COLUMNS),
    "models": lambda: _described("column", columns.LINEAR_MODEL_COLUMNS),
    "posthoc": lambda: _described("column", columns.POSTHOC_COLUMNS),
    "harmonized": lambda: _described("column", columns.HARMONIZED_COLUMNS),
    "norms": lambda: _described("column", columns.NORM_COLUMNS),
}


class TableDirective(SphinxDirective):
    """``hyps-table NAME``: one of :data:`TABLES`."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Make the table."""
        head, *rows = TABLES[self.arguments[0]]()
        lines = [_line(each) for each in (head, ("---",) * len(head), *rows)]
        return self.parse_text_to_nodes("\n".join(lines))


def _line(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("hyps-table", TableDirective)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
