"""Harmonization by site before formulas are fitted."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from hyps_bids.cohort.statistics import fit_formulas, fit_models
from hyps_bids.errors import UsageError
from tests.cohort.study import MadeStudy
from tests.cohorts import simulate
from tests.raising import raises

LEFT = "volume_mm3_L_whole"


def cohort(sites: int = 3, each: int = 24, *, seed: int = 0, scans: int = 1) -> pd.DataFrame:
    """Sites that measure volumes and heads differently; AD is more frequent at every other one."""
    frames = []
    for s in range(sites):
        patients = each * (2 if s % 2 else 1) // 3
        groups = {"AD": patients, "CN": each - patients}
        one = simulate(groups, {"AD": -1.0}, seed=100 * seed + s, scans=scans)
        one["participant_id"] = one["participant_id"].str.replace("sub-", f"sub-{s}")
        one["scan"] = one["scan"].str.replace("sub-", f"sub-{s}")
        volumes = [name for name in one if name.startswith("volume")]
        one[volumes] = one[volumes] * (1 + 0.05 * s) + 100 * s
        one["icv_mm3"] = one["icv_mm3"] * (1 + 0.04 * s)
        frames.append(one.assign(site="ABCDEF"[s]))
    return pd.concat(frames, ignore_index=True)


def row(table: pd.DataFrame, coefficient: str, measure: str = LEFT) -> pd.Series:
    (found,) = table[(table["coefficient"] == coefficient) & (table["measure"] == measure)].iloc
    return found


@pytest.mark.parametrize("scans", [1, 2])
def test_groups_are_compared_within_sites_with_honest_degrees_of_freedom(scans: int) -> None:
    frame = cohort(each=24 // scans, scans=scans)
    formula = f"{LEFT} ~ diagnosis + age + icv"
    table = fit_models(frame, [formula], ("diagnosis", "CN"), "site")
    within = fit_models(frame, [f"{formula} + site"], ("diagnosis", "CN"))
    assert set(table["harmonized"]) == {"site"}
    assert set(table["term"]) == {"Intercept", "diagnosis", "age", "icv"}
    assert within["harmonized"].isna().all()
    ours, theirs = row(table, "diagnosis[T.AD]"), row(within, "diagnosis[T.AD]")
    assert float(ours["df"]) == pytest.approx(float(theirs["df"]), rel=1e-4)
    # Variances differ by a tenth, so equal variances change little beside the sites as a term.
    assert ours["estimate"] == pytest.approx(theirs["estimate"], rel=0.1)
    assert ours["se"] == pytest.approx(theirs["se"], rel=0.1)


def test_volumes_and_icv_of_all_sites_are_alike_and_effects_stay() -> None:
    frame = cohort(each=60)
    found = fit_formulas(frame, ["volume ~ diagnosis + age + icv"], None, "site").harmonized
    assert list(found["harmonized"]) == list(frame["site"])
    frame["icv"] = frame["icv_mm3"]
    for name in (LEFT, "icv"):
        before, after = (f.groupby(frame["site"])[name].mean() for f in (frame, found))
        assert np.ptp(after) < 0.25 * np.ptp(before)
    gap = found.groupby(frame["diagnosis"])[LEFT].mean()
    assert gap["CN"] - gap["AD"] == pytest.approx(253, abs=100)


def test_one_region_is_harmonized_with_the_others() -> None:
    frame = cohort()
    alone = fit_formulas(frame, [f"{LEFT} ~ diagnosis"], None, "site").harmonized
    family = fit_formulas(frame, ["volume ~ diagnosis"], None, "site").harmonized
    assert alone[LEFT].to_numpy() == pytest.approx(family[LEFT].to_numpy())


@pytest.mark.parametrize(
    "formula",
    [
        "{volume / icv} ~ diagnosis + age",
        "np.log(volume) ~ diagnosis * np.log(icv)",
        "volume ~ 0 + diagnosis + bs(age, df=4)",
        "icv ~ diagnosis + sex",
        "volume_mm3_L_whole ~ volume_mm3_R_whole + age",
    ],
)
def test_every_formula_can_be_harmonized(formula: str) -> None:
    table = fit_models(cohort(), [formula], None, "site")
    assert table["estimate"].notna().any()
    assert not table["term"].str.contains("site").any()
    assert set(table["harmonized"]) == {"site"}


def test_columns_of_sites_may_have_any_name_and_be_numbers() -> None:
    frame = cohort().assign(**{"scanner (new)": lambda f: f["site"].map({"A": 1, "B": 2, "C": 7})})
    named = fit_models(frame, ["volume ~ diagnosis"], None, "scanner (new)")
    plain = fit_models(frame, ["volume ~ diagnosis"], None, "site")
    assert named["estimate"].to_numpy() == pytest.approx(plain["estimate"].to_numpy())
    assert not named["term"].str.contains("scanner").any()


def test_what_cannot_be_harmonized_is_refused() -> None:
    frame = cohort()
    with raises(UsageError, "site-unknown", "centre"):
        fit_models(frame, ["volume ~ age"], None, "centre")
    with raises(UsageError, "formula-has-site", "site", "volume ~ age + C(site)"):
        fit_models(frame, ["volume ~ age + C(site)"], None, "site")
    frame["one"] = "A"
    frame["group"] = np.where(frame["site"] == "A", "AD", "CN")
    frame["field"] = frame["site"].map({"A": 1.5, "B": 3.0, "C": 7.0})
    for site, formula, fact in (
        ("one", "volume ~ age", "one has fewer than two sites"),
        ("site", "volume ~ age + group", "cannot be told apart from group"),
        ("site", "volume ~ age + field", "cannot be told apart from field"),
    ):
        table = fit_models(frame, [formula], None, site)
        assert table["estimate"].isna().all()
        assert table["warnings"].str.contains(fact, na=False).all()
        assert len(table) == 6


def test_scans_of_small_sites_are_left_out_and_counted() -> None:
    frame = cohort()
    frame.loc[frame.index[:2], "site"] = "tiny"
    table = fit_models(frame, ["volume ~ age"], None, "site")
    assert table["warnings"].str.contains("2 scans left out.*tiny", na=False).all()
    assert set(table["n_left_out"]) == {2}


def test_an_outcome_that_is_no_measure_stays_as_it_is() -> None:
    table = fit_models(cohort(), ["MMSE ~ age"], None, "site")
    plain = fit_models(cohort(), ["MMSE ~ age"])
    assert table["harmonized"].isna().all()
    assert table["warnings"].str.contains("MMSE is not measured in the images", na=False).all()
    assert table["estimate"].to_numpy() == pytest.approx(plain["estimate"].to_numpy())


def test_harmonized_volumes_are_written_and_removed_when_stale(study: MadeStudy) -> None:
    rows = ["participant_id age scanner"]
    for i in range(12):
        study.scan(f"sub-{i:02d}", left=3000 + 37 * (i % 5), right=2900 + 23 * (i % 7))
        rows.append(f"sub-{i:02d} {60 + (i * 7) % 11} {'AB'[i % 2]}")
    study.table("participants.tsv", "\n".join(rows))
    study.write_tables(model=("volume ~ age",), site="scanner", harmonize=True)
    table = study.group_table("desc-harmonized_morph")
    assert list(table["harmonized"]) == ["A", "B"] * 6
    assert table[LEFT].notna().all()
    sidecar = study.group_sidecar("desc-harmonized_morph")
    assert set(sidecar) == set(table)
    study.write_tables(model=("volume ~ age",))
    assert not list(study.output.glob("*harmonized*"))


def test_an_icv_of_the_dataset_is_no_measure_of_the_images() -> None:
    frame = cohort()
    frame["icv"] = frame["icv_mm3"] / 1000 + 1
    found = fit_formulas(frame, [f"{LEFT} ~ diagnosis + icv"], None, "site").harmonized
    assert "icv" not in found
    frame["icv"] = frame["icv_mm3"]
    assert "icv" in fit_formulas(frame, [f"{LEFT} ~ diagnosis + icv"], None, "site").harmonized


def test_sites_are_not_compared_after_harmonization() -> None:
    formula = f"{LEFT} ~ diagnosis"
    found = fit_formulas(cohort(), [formula], None, "site", ("diagnosis", "site", "diagnosis|site"))
    assert set(found.posthoc["posthoc"]) == {"diagnosis"}
    assert found.failed == ("--posthoc site", "--posthoc diagnosis|site")
