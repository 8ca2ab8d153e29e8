"""Linear models by formula, against statsmodels' own and against what was simulated."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from scipy import stats
from scipy.stats import false_discovery_control

from hyps_bids.cohort.formulas import find_measures, formula_variables
from hyps_bids.cohort.statistics import fit_formulas, fit_models
from hyps_bids.errors import UsageError
from hyps_bids.outputs.columns import LINEAR_MODEL_COLUMNS
from tests.raising import raises

FORMULA = "volume ~ group + age + sex + icv"


def simulated(n: int = 90, scans: int = 1, effect: float = -400.0, seed: int = 0) -> pd.DataFrame:
    """Make a cohort in which group AD differs on the left by `effect` mm³, not on the right."""
    rng = np.random.default_rng(seed)
    subject = pd.DataFrame(
        {
            "participant_id": [f"sub-{i:03d}" for i in range(n)],
            "group": np.array(["CN", "MCI", "AD"])[np.arange(n) % 3],
            "sex": np.array(["M", "F"])[np.arange(n) // 3 % 2],
            "age": rng.uniform(55, 85, n),
            "icv_mm3": rng.normal(1.5e6, 1.2e5, n),
            "of_subject": rng.normal(0, 250, n),
        }
    )
    frame = subject.loc[subject.index.repeat(scans)].reset_index(drop=True)
    visit = np.tile(np.arange(scans), n)
    noise = rng.normal(0, 150, (2, len(frame)))
    base = 3300 - 20 * (frame["age"] - 70) + 0.001 * (frame["icv_mm3"] - 1.5e6)
    frame["volume_mm3_L_whole"] = (
        base + frame.pop("of_subject") + effect * (frame["group"] == "AD") + noise[0] - 50 * visit
    )
    frame["volume_mm3_R_whole"] = base + noise[1]
    frame["group"] = frame["group"].astype(pd.CategoricalDtype(["CN", "MCI", "AD"]))
    frame["visit"] = visit.astype(float)
    return frame.assign(scan=frame["participant_id"] + visit.astype(str), status="done")


LEFT = "volume_mm3_L_whole"


def one(table: pd.DataFrame, coefficient: str, measure: str = LEFT) -> pd.Series:
    rows = table[(table["measure"] == measure) & (table["coefficient"] == coefficient)]
    assert len(rows) == 1
    return rows.iloc[0]


def test_least_squares_agree_with_statsmodels() -> None:
    frame = simulated()
    table = fit_models(frame, [FORMULA])
    expected = smf.ols("volume_mm3_L_whole ~ group + age + sex + icv_mm3", frame).fit()
    assert list(table.columns) == list(LINEAR_MODEL_COLUMNS)
    assert set(table["method"]) == {"ols"}
    for ours, theirs in (("group[T.AD]", "group[T.AD]"), ("age", "age"), ("icv", "icv_mm3")):
        row = one(table, ours)
        assert row["estimate"] == pytest.approx(expected.params[theirs])
        assert row["se"] == pytest.approx(expected.bse[theirs])
        assert row["p"] == pytest.approx(expected.pvalues[theirs])
        assert [row["ci_low"], row["ci_high"]] == pytest.approx(expected.conf_int().loc[theirs])
    joint = one(table, "(all)")
    test = expected.f_test("group[T.AD] = 0, group[T.MCI] = 0")
    assert joint["statistic"] == pytest.approx(float(test.fvalue))
    assert joint["p"] == pytest.approx(float(test.pvalue))
    assert one(table, "group[T.AD]")["reference"] == "CN"


def test_mixed_models_agree_with_statsmodels() -> None:
    frame = simulated(scans=3)
    table = fit_models(frame, ["volume ~ group + age + visit + (1 | subject)"])
    assert set(table["method"]) == {"mixed"}
    assert set(table["n_subjects"]) == {90}
    assert set(table["n_scans"]) == {270}
    left = frame.assign(v=frame["volume_mm3_L_whole"] / 100)
    expected = smf.mixedlm("v ~ group + age + visit", left, groups=left["participant_id"]).fit()
    for name in ("group[T.AD]", "age", "visit"):
        row = one(table, name)
        assert row["estimate"] == pytest.approx(100 * expected.params[name], rel=1e-3)
        assert row["se"] == pytest.approx(100 * expected.bse[name], rel=1e-2)
        assert row["p"] == pytest.approx(2 * stats.t.sf(abs(row["statistic"]), float(row["df"])))
    # What differs between subjects is known from subjects, and what changes in them from scans.
    assert float(one(table, "age")["df"]) == pytest.approx(90 - 4, abs=0.5)
    assert float(one(table, "visit")["df"]) == pytest.approx(90 * 2 - 1, abs=0.5)
    assert one(table, "visit")["estimate"] == pytest.approx(-50, abs=30)
    # D is in units of the SD between and within subjects.
    d = one(table, "group[T.AD]")
    assert d["effect"] == pytest.approx(d["estimate"] / np.hypot(250, 150), rel=0.2)


@pytest.mark.parametrize("seed", range(6))
def test_mixed_models_of_balanced_visits_are_least_squares_of_means(seed: int) -> None:
    """Exact for what does not change with time; volumes of the right vary less between subjects."""
    frame = simulated(n=30, scans=2, seed=seed)
    table = fit_models(frame, ["volume ~ group + age + visit + (1 | subject)"])
    assert set(table["method"]) == {"mixed"}
    assert table["converged"].all()
    means = frame.groupby("participant_id", as_index=False).agg(
        group=("group", "first"),
        age=("age", "first"),
        L=("volume_mm3_L_whole", "mean"),
        R=("volume_mm3_R_whole", "mean"),
    )
    for side in "LR":
        expected = smf.ols(f"{side} ~ group + age", means).fit()
        for name in ("group[T.MCI]", "group[T.AD]", "age"):
            row = one(table, name, f"volume_mm3_{side}_whole")
            assert row["estimate"] == pytest.approx(expected.params[name], rel=1e-4)
            assert row["se"] == pytest.approx(expected.bse[name], rel=1e-3)


def test_subjects_that_do_not_differ() -> None:
    frame = simulated(n=20, scans=2)
    frame["volume_mm3_L_whole"] = 3000.0 + 100 * (frame["visit"] - 0.5)
    frame["volume_mm3_L_whole"] += np.where(np.arange(40) % 4 < 2, 1, -1) * (frame["visit"] - 0.5)
    table = fit_models(frame, ["volume_mm3_L_whole ~ age + visit"])
    row = one(table, "visit")
    assert row["estimate"] == pytest.approx(100)
    assert "boundary" in row["notes"]


def test_few_subjects_are_warned_of() -> None:
    for scans in (1, 2):
        table = fit_models(simulated(n=4, scans=scans), ["volume ~ age"])
        assert (
            table["warnings"].str.contains(r"few subjects \(4\) for 2 coefficients", na=False).all()
        )
        enough = fit_models(simulated(n=12, scans=scans), ["volume_mm3_L_whole ~ age"])
        assert enough["warnings"].isna().all()


@pytest.mark.slow
def test_p_values_of_few_subjects_hold_under_the_null() -> None:
    found = []
    for seed in range(30):
        frame = simulated(n=6, scans=2, seed=seed)
        frame["noise"] = np.repeat(np.random.default_rng(1000 + seed).normal(size=6), 2)
        row = one(fit_models(frame, ["volume_mm3_L_whole ~ noise"]), "noise")
        found.append(row["p"] < 0.05)
    # Binomial: 1.5 of 30 are expected, and more than 5 in one of 300 studies.
    assert sum(found) <= 5


def test_notes_of_a_mixed_model_are_in_the_table() -> None:
    # On the right, subjects vary less (mean square 16,462) than their scans do (25,493).
    frame = simulated(n=60, scans=2, seed=0)
    table = fit_models(frame, ["volume ~ age + icv"])
    right = table[table["measure"] == "volume_mm3_R_whole"]
    assert right["notes"].str.contains("boundary|singular|no variance between", na=False).all()
    expected = smf.ols("volume_mm3_R_whole ~ age + icv_mm3", frame).fit()
    assert right["estimate"].tolist() == pytest.approx(expected.params.tolist(), rel=1e-3)
    assert table.loc[table["measure"] == "volume_mm3_L_whole", "notes"].isna().all()


@pytest.mark.slow
def test_effect_size_intervals_cover() -> None:
    true, hits, runs = -400 / np.hypot(250, 150), 0, 100
    for seed in range(runs):
        frame = simulated(n=30, seed=seed)
        table = fit_models(frame, ["volume_mm3_L_whole ~ group + age + icv"])
        row = one(table, "group[T.AD]")
        hits += row["effect_low"] <= true <= row["effect_high"]
    # Binomial: 95 % of 100 is 95 ± 2.2.
    assert hits / runs == pytest.approx(0.95, abs=0.065)


def test_effect_size_of_two_groups_is_cohens_d() -> None:
    frame = simulated(60)
    frame = frame[frame["group"] != "MCI"]
    row = one(fit_models(frame, ["volume ~ group"]), "group[T.AD]")
    sick, well = (frame.loc[frame["group"] == g, "volume_mm3_L_whole"] for g in ("AD", "CN"))
    pooled = np.sqrt((sick.var() + well.var()) / 2)
    assert row["effect"] == pytest.approx((sick.mean() - well.mean()) / pooled)
    assert row["effect_kind"] == "d"
    assert row["effect_low"] < row["effect"] < row["effect_high"]


def test_false_discovery_rate_over_regions() -> None:
    table = fit_models(simulated(), [FORMULA])
    for name in ("age", "group[T.AD]", "(all)"):
        rows = table[table["coefficient"] == name]
        assert rows["p_fdr"].tolist() == pytest.approx(false_discovery_control(rows["p"]))
    assert table.loc[table["term"] == "Intercept", "p_fdr"].isna().all()


def test_scans_that_are_left_out() -> None:
    frame = simulated(30)
    frame.loc[0, "age"] = np.nan
    frame.loc[1, "volume_mm3_L_whole"] = np.nan
    frame.loc[2, "status"] = "failed"
    table = fit_models(frame, ["volume ~ age"])
    counts = table.groupby("measure")[["n_scans", "n_left_out"]].first()
    assert counts.loc["volume_mm3_L_whole"].tolist() == [27, 3]
    assert counts.loc["volume_mm3_R_whole"].tolist() == [28, 2]


def test_reference_level() -> None:
    table = fit_models(simulated(), ["volume ~ group"], ("group", "AD"))
    names = set(table["coefficient"])
    assert {"group[T.CN]", "group[T.MCI]"} < names
    assert one(table, "group[T.CN]")["estimate"] > 0


@pytest.mark.parametrize(
    ("change", "formula", "message"),
    [
        ({"sex": "F"}, "volume ~ sex + age", "sex is F in all 30 scans"),
        ({"age": np.nan}, "volume ~ age", "no scan has all values"),
        ({"months": "age"}, "volume ~ age + months", "cannot be told apart"),
        ({"volume_mm3_L_whole": 3000.0}, "volume_mm3_L_whole ~ age", "the same in all scans"),
        ({}, "volume ~ C(participant_id)", "30 scans for 30 coefficients"),
    ],
)
def test_the_table_says_why_there_is_no_fit(
    change: dict[str, Any], formula: str, message: str
) -> None:
    frame = simulated(30)
    for name, value in change.items():
        frame[name] = 12 * frame["age"] if value == "age" else value
    table = fit_models(frame, [formula, "volume ~ icv"])
    bad = table[table["model"] == formula]
    assert bad["warnings"].str.contains(message, na=False).all()
    assert not bad["converged"].any()
    assert bad["estimate"].isna().all()
    # The other model is fitted all the same.
    other = table[(table["model"] == "volume ~ icv") & (table["measure"] == "volume_mm3_R_whole")]
    assert len(other) == 2
    assert other["p"].notna().all()


@pytest.mark.parametrize(
    ("formula", "code", "fact"),
    [
        ("volume ~ diagnosis + age", "formula-column-unknown", "group, sex, age, visit"),
        ("volume ~ volume_soft", "formula-column-unknown", "volume_soft"),
        ("size ~ age", "formula-column-unknown", "size"),
        ("volume ~ age +", "formula-syntax", "--model 'volume ~ age +'"),
        ("volume ~ age + (1|site)", "formula-random-effect", "'+ site'"),
        ("volume ~ age + (1|site/subject)", "formula-random-effect", "site/subject"),
        ("volume ~ age * (1|subject)", "formula-random-effect", "(1|subject)"),
        ("volume ~ age + (C(sex)|subject)", "formula-random-effect", "C(sex)"),
        ("volume ~ age + (age:icv|subject)", "formula-random-effect", ":"),
        ("volume ~ age + (0|subject)", "formula-random-effect", "(0|subject)"),
        ("volume ~ age + (1|subject) + (age|subject)", "formula-random-effect", "1 is"),
        ("volume ~ age + (nothing|subject)", "formula-column-unknown", "nothing"),
        ("volume ~ age | participant_id", "formula-bar", "(time | subject)"),
        ("age + sex", "formula-outcome-count", "~"),
        ("volume + age ~ sex", "formula-outcome-count", "~"),
        ("asymmetry ~ age", "formula-measure-missing", "asymmetry"),
        ("sex ~ age", "formula-outcome-text", "sex"),
        ("C(visit) ~ age", "formula-outcome-text", "visit"),
        ("volume ~ nothing(age)", "formula-function-unknown", "nothing()"),
        ("volume ~ np.log(sex)", "formula-not-computable", "np.log(sex)"),
    ],
)
def test_wrong_formulas(formula: str, code: str, fact: str) -> None:
    frame = simulated(30, scans=3)
    with raises(UsageError, code, fact) as caught:
        fit_models(frame, [formula])
    assert "\x1b" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_formulas_see_the_table_only() -> None:
    formula = "np.log(volume) ~ np.log(age) + `Odd name`:sex"
    frame = simulated(30).assign(**{"Odd name": np.arange(30.0)})
    assert formula_variables(formula) == {"volume", "age", "Odd name", "sex"}
    assert fit_models(frame, [formula])["p"].notna().all()
    with raises(UsageError, "formula-column-unknown", "used"):
        fit_models(frame, ["volume ~ age + used"])


def test_a_perfect_fit_ends_and_says_so() -> None:
    frame = simulated(30)
    frame["volume_mm3_L_whole"] = 1000 + 20 * frame["age"]
    row = one(fit_models(frame, ["volume ~ age"]), "age")
    assert row["estimate"] == pytest.approx(20)
    assert row["warnings"] == "the fit is perfect"
    assert np.isnan(row["effect_low"])


def test_mistyped_number_does_not_make_levels_of_a_covariate() -> None:
    frame = simulated(30)
    ages = frame["age"].astype("str")
    ages.iloc[3] = "71,5"
    frame["age"] = ages
    with raises(UsageError, "formula-number-mistyped", "age", "'71,5'", "C(age)"):
        fit_models(frame, ["volume ~ age + sex"])
    # C() says that the numbers are categories, if that is possible.
    with raises(UsageError, "formula-levels-too-many", "age", "30 levels", "30 participants"):
        find_measures("volume ~ C(age)", frame)
    frame["age"] = pd.Series(["60", "70", "71,5"]).iloc[np.arange(30) % 3].to_numpy()
    assert find_measures("volume ~ C(age)", frame)[0] == "volume"


def test_columns_of_the_dataset_that_are_named_like_ours_are_announced(
    caplog: pytest.LogCaptureFixture,
) -> None:
    frame = simulated(n=20)
    with caplog.at_level("INFO", "hyps_bids"):
        fit_formulas(frame, ["volume ~ age + icv"])
        assert not any("own column" in text for text in caplog.messages)
        mine = frame.assign(volume=frame["age"] + 1, icv=frame["icv_mm3"] / 1000)
        tables = fit_formulas(mine, ["volume ~ sex + icv"])
    assert set(tables.models["measure"]) == {"volume"}
    told = {r.levelname: r.getMessage() for r in caplog.records if "own column" in r.getMessage()}
    assert set(told) == {"WARNING", "INFO"}
    assert "volume_mm3_L_whole" in told["WARNING"]
    assert "icv_mm3" in told["INFO"]


def test_a_clean_study_gives_no_warning_and_a_failure_is_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level("INFO", "hyps_bids"):
        # The right side has a variance of zero between subjects.
        fit_formulas(simulated(n=60, scans=2, seed=0), ["volume ~ age + icv"])
        assert {record.levelname for record in caplog.records} == {"INFO"}
        assert sum("boundary" in text for text in caplog.messages) == 1
        caplog.clear()
        some = simulated(n=20)
        some.loc[:2, "age"] = np.nan
        fit_formulas(some, ["volume ~ age + sex"])
        assert "scans used: 17; left out: 3 (without age: 3)" in caplog.text
        caplog.clear()
        frame = simulated(n=20).assign(constant=1.0)
        assert fit_formulas(frame, ["volume ~ constant"]).failed == ("volume ~ constant",)
    assert [record.levelname for record in caplog.records] == ["INFO", "ERROR"]
    assert "constant is 1.0 in all 20 scans" in caplog.messages[1]
