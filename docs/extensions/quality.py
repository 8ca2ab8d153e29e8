"""The quality measures and their bounds, read from the package, as a table of the documentation."""

from __future__ import annotations

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from hyps_bids.outputs.quality import SCAN_MEASURES, SIDE_MEASURES, quality_bounds


class QualityDirective(SphinxDirective):
    """``hyps-quality``: a row for each measure."""

    def run(self) -> list[nodes.Node]:
        """Make the table."""
        lines = ["| measure | meaning | flagged if |", "|---|---|---|"]
        for name in (*SIDE_MEASURES, *SCAN_MEASURES):
            about = quality_bounds()[name]
            sides = " `_L`, `_R`" if name in SIDE_MEASURES else ""
            bounds = [f"< {about['low']:,}"] if "low" in about else []
            bounds += [f"> {about['high']:,}"] if "high" in about else []
            meaning = about["description"].replace("|", "\\|")
            lines.append(f"| `{name}`{sides} | {meaning} | {' or '.join(bounds)} |")
        return self.parse_text_to_nodes("\n".join(lines))


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("hyps-quality", QualityDirective)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
