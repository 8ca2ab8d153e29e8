"""The methods text of the group level says what the results in OUT_DIR are."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from hyps_bids.cohort.statistics import fit_models
from hyps_bids.outputs.names import group_path
from hyps_bids.outputs.reading import LINEAR_MODELS, read_wide
from hyps_bids.outputs.writing import write_table
from hyps_bids.reports.citation import references, to_html
from hyps_bids.reports.group_methods import group_methods_markdown


def test_everything_that_was_done_is_told_and_cited(everything: Path) -> None:
    text = group_methods_markdown(everything.parent)
    for fact in (
        "78 scans of 39 participants",
        "2 further scans had no result",
        "`volume ~ diagnosis + age + sex`",
        "9 measures of 39 participants (78 scans)",
        "2 folds",
        "AD:CN",
        "12 hippocampi of 6 participants",
    ):
        assert fact in text
    keys = set(re.findall(r"@(\w+)", text))
    assert keys <= set(references())
    assert {"fdr", "nested_cv", "hyps"} <= keys
    assert "combat" not in keys
    html = str(to_html(text))
    assert html.count("<p>") == len(text.split("\n\n"))
    assert "<code>volume ~ diagnosis + age + sex</code>" in html


@pytest.mark.parametrize("several", [True, False])
def test_harmonization_is_told_as_it_was_done(
    everything: Path, tmp_path: Path, several: bool
) -> None:
    shutil.copytree(everything.parent, tmp_path, dirs_exist_ok=True)
    wide = read_wide(tmp_path)
    wide = wide if several else wide[wide["session_id"] == "ses-1"]
    table = fit_models(wide, ["volume_mm3_L_whole ~ age*diagnosis"], None, "site")
    write_table(group_path(tmp_path, LINEAR_MODELS), table)
    text = group_methods_markdown(tmp_path)
    assert "between the sites (site)" in text
    assert ("[@longitudinal_combat]" in text) == several
    assert ("[@combat; @combat_imaging]" in text) == (not several)


def test_without_results_there_is_no_text(tmp_path: Path) -> None:
    assert group_methods_markdown(tmp_path) == ""
