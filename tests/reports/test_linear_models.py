"""What the group report says about linear models."""

from __future__ import annotations

from pathlib import Path

import pytest

from hyps_bids.cohort.statistics import fit_formulas
from hyps_bids.outputs.names import group_path
from hyps_bids.outputs.reading import LINEAR_MODELS, POSTHOC
from hyps_bids.outputs.writing import write_table
from hyps_bids.reports.group import write_group_report
from hyps_bids.reports.group_methods import group_methods_file, group_methods_markdown
from hyps_bids.reports.linear_models import LinearModel, describe_linear_models
from tests.cohorts import simulate

FORMULA = "volume ~ age + sex + icv + diagnosis"


@pytest.fixture(scope="module")
def described() -> list[LinearModel]:
    frame = simulate({"AD": 20, "CN": 20, "MCI": 20}, {"AD": -1.5}, sites=("A", "B"))
    frame.loc[:55, "volume_mm3_R_posterior"] = None
    formulas = [FORMULA, "asymmetry ~ age", "volume_mm3_L_whole ~ diagnosis * sex"]
    found = fit_formulas(frame, formulas, ("diagnosis", "CN"), "site", ["diagnosis"])
    return describe_linear_models(found.models, found.posthoc)


def test_the_question_comes_before_nuisance_terms(described: list[LinearModel]) -> None:
    assert list(described[0].forests) == [
        *("diagnosis: AD against CN", "diagnosis: MCI against CN"),
        *("age", "sex: M against F", "icv"),
    ]
    interaction = list(described[1].forests)
    assert interaction[-1] == "sex: M against F"
    assert interaction[2].startswith("diagnosis: AD × sex: M against ")


def test_facts_and_reasons_are_told(described: list[LinearModel]) -> None:
    model, _, refused = described
    assert "60 scans of 60 participants" in model.facts
    assert "harmonized by site" in model.facts
    assert {row["coefficient"] for row in model.rows} >= {"diagnosis (all)", "age"}
    (reason,) = model.problems
    assert "right posterior" in reason
    assert not refused.rows
    assert refused.formula == "asymmetry ~ age"
    assert "asymmetry" in refused.problems[0]


def test_notes_are_told_apart_from_warnings() -> None:
    frame = simulate({"AD": 20, "CN": 20}, scans=2)
    frame["years"] = frame["scan"].str[-1].astype(float)
    found = fit_formulas(frame, ["volume_mm3_L_whole ~ diagnosis*years"])
    (model,) = describe_linear_models(found.models, found.posthoc)
    assert not model.warnings
    assert "CR2" in model.notes[0]


def test_means_and_differences_are_tables(described: list[LinearModel]) -> None:
    means, differences = described[0].tables
    assert means.head == ["region", "CN", "AD", "MCI"]
    assert [row[0] for row in means.rows][:2] == ["left anterior", "left posterior"]
    left = [row[1] for row in differences.rows if row[0] == "left whole"]
    assert left == ["CN − AD", "CN − MCI", "AD − MCI"]


def test_the_report_has_reasons_comparisons_and_methods(tmp_path: Path) -> None:
    frame = simulate({"AD": 15, "CN": 15})
    found = fit_formulas(frame, [FORMULA, "volume ~ nothing"], None, None, ["diagnosis"])
    write_table(group_path(tmp_path, LINEAR_MODELS), found.models)
    write_table(group_path(tmp_path, POSTHOC), found.posthoc)
    (tmp_path / group_methods_file()).parent.mkdir()
    (tmp_path / group_methods_file()).write_text(group_methods_markdown(tmp_path))
    text = write_group_report(tmp_path).read_text()
    assert "not fitted</span> there is no column nothing" in text
    assert "diagnosis: marginal means" in text
    assert 'id="methods"' in text
    assert "Benjamini et al. 1995" in text


def test_tukey_is_not_claimed_where_errors_are_robust() -> None:
    frame = simulate({"AD": 20, "CN": 20, "MCI": 20})
    formula = "volume_mm3_L_whole ~ diagnosis"
    for robust in (False, True):
        found = fit_formulas(frame, [formula], posthoc=["diagnosis"], robust=robust)
        (model,) = describe_linear_models(found.models, found.posthoc)
        differences = model.tables[1]
        assert ("p (Tukey)" in differences.head) is not robust
        assert ("Tukey" in differences.caption) is not robust
        assert all(len(row) == len(differences.head) for row in differences.rows)
