"""The methods text of the group level says what the results in OUT_DIR are."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pandas as pd
import pytest

from hyps_bids.cohort.statistics import fit_models
from hyps_bids.outputs.names import group_path
from hyps_bids.outputs.reading import LINEAR_MODELS, load_json, read_table, read_wide
from hyps_bids.outputs.writing import write_json, write_table
from hyps_bids.reports.citation import references, to_html
from hyps_bids.reports.group_methods import group_methods_markdown


def test_everything_that_was_done_is_told_and_cited(everything: Path) -> None:
    text = group_methods_markdown(everything.parent)
    for fact in (
        "78 T1w scans of 39 participants",
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


def _test(validation: str, features: str, area: float, p: float, done: int) -> dict[str, object]:
    return {
        "Validation": validation,
        "Features": features,
        "AUC": area,
        "P": p,
        "Permutations": done,
        "Planned": 1999 if validation == "held-out" else 99,
        "StoppedEarly": done < 99,
        "WithinSites": True,
    }


def test_every_validation_and_every_permutation_test_is_told(
    everything: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "models" / "classifier-AD-vs-CN"
    shutil.copytree(everything.parent / "models" / "classifier-AD-vs-CN", folder)
    card = load_json(folder / "classifier.json")
    card["Validation"]["Repeats"] = 1
    card["Cohort"]["HeldOutSubjects"] = 1
    card["Harmonization"] = "ComBat-style by site"
    card["DoubtfulCovariates"] = ["MMSE"]
    tests = [
        _test("cross-validation", "volumes", 0.51, 0.5, 20),
        _test("cross-validation", "both", 0.83, 0.01, 99),
        _test("held-out", "both", 0.8, 0.0005, 1999),
    ]
    card["PermutationTest"] = {str(number): test for number, test in enumerate(tests)}
    write_json(folder / "classifier.json", card)
    figures = read_table(folder / "figures.tsv")
    others = [figures.assign(validation=name) for name in ("leave-one-site-out", "held-out")]
    write_table(folder / "figures.tsv", pd.concat([figures, *others]))
    text = group_methods_markdown(tmp_path)
    for fact in (
        "2 folds and 1 repeat,",
        "1 participant was held out",
        "models of the other sites, whose own volumes were not harmonized",
        "MMSE, which may tell the diagnosis",
        "99 shuffles of the labels within sites, or fewer",
        "[@sequential_p]: volumes, AUC 0.51, p = 0.5 after 20 shuffles; both, AUC 0.83, p = 0.01.",
        "1,999 shuffles of the labels within sites: both, AUC 0.80, p = 0.0005.",
    ):
        assert fact in text
    assert "tested once" not in text


def test_a_card_of_version_0_1_is_told(everything: Path, tmp_path: Path) -> None:
    folder = tmp_path / "models" / "classifier-AD-vs-CN"
    shutil.copytree(everything.parent / "models" / "classifier-AD-vs-CN", folder)
    stored = Path(__file__).parent.parent / "classification" / "stored" / "classifier.json"
    card = load_json(stored)
    test = {"Estimator": "linear_svm", "AUC": 0.9, "P": 0.01, "Permutations": 99}
    write_json(folder / "classifier.json", card | {"PermutationTest": {"both": test}})
    text = group_methods_markdown(tmp_path)
    assert "AUC of linear_svm was tested by 99 shuffles of the labels: both, AUC 0.90" in text


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
