"""Mixed models and robust errors, against R and statsmodels.

The expected values were printed by R 4.2 with lme4 1.1-31, lmerTest 3.1-3, nlme and clubSandwich
0.5.8, on ``repeated(…).to_csv("d.csv")`` and after ``d <- read.csv("d.csv"); names(d)[8] <- "v"``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from scipy import stats

from hyps_bids.cohort.statistics import fit_models

V = "volume_mm3_L_whole"


def repeated(
    n: int = 24, visits: tuple[int, int] = (2, 5), slope_sd: float = 40.0, seed: int = 0
) -> pd.DataFrame:
    """Make a cohort with three groups, whose volumes change differently in each subject."""
    rng = np.random.default_rng(seed)
    count = rng.integers(visits[0], visits[1] + 1, n)
    of, visit = np.repeat(np.arange(n), count), np.concatenate([np.arange(k) for k in count])
    time = visit + np.round(rng.uniform(-0.2, 0.2, len(of)), 2) * (visit > 0)
    level, slope = rng.normal(3500, 350, n)[of], rng.normal(-40, slope_sd, n)[of]
    frame = pd.DataFrame({"participant_id": [f"sub-{i:02d}" for i in of], "time": time})
    frame["age"] = np.round(rng.uniform(55, 85, n), 1)[of] + time
    frame["dx"] = np.array(["CN", "AD"])[of % 2]
    frame["group"] = np.array(["CN", "MCI", "AD"])[of % 3]
    frame["visit"] = "M" + pd.Series(visit).astype(str)
    frame[V] = np.round(level + slope * time + rng.normal(0, 50, len(of)), 1)
    return frame.assign(scan=[f"s{i}" for i in range(len(of))], status="done")


def fitted(frame: pd.DataFrame, formula: str, *, robust: bool = False) -> pd.DataFrame:
    table = fit_models(frame, [f"{V} ~ {formula}"], robust=robust)
    return table.set_index(
        table["coefficient"].where(table["coefficient"] != "(all)", table["term"])
    )


#: Rows of R: coefficient, estimate, standard error, degrees of freedom
TIME, INTERACTION, AGE = "time", "dx[T.CN]:time", "dx[T.CN]:age"


@pytest.mark.parametrize(
    ("made", "formula", "coefficient", "expected", "random"),
    [
        # coef(summary(lmer(v ~ dx * time + (time | participant_id), d)))
        (
            {"visits": (4, 4)},
            "dx*time",
            INTERACTION,
            (-1.24141989, 21.7089048, 21.957181),
            "(1 + time | subject)",
        ),
        ({}, "dx*time", TIME, (-35.7880043, 17.4383027, 20.520545), "(1 + time | subject)"),
        ({}, "dx*time", "dx[T.CN]", (-17.4899771, 135.8845397, 22.0397757), "(1 + time | subject)"),
        # The same, as it is when the slopes do not differ; lmer says that it is singular.
        (
            {"slope_sd": 0, "visits": (3, 5), "seed": 2},
            "dx*time",
            INTERACTION,
            (-22.2847601, 10.5086572, 65.169993),
            "(1 + time | subject)",
        ),
        # coef(summary(lmer(v ~ dx * time + (time || participant_id), d)))
        (
            {},
            "dx*time + (time || subject)",
            INTERACTION,
            (8.31615573, 24.3677405, 20.6207593),
            "(1 | subject) + (0 + time | subject)",
        ),
        # coef(summary(lmer(v ~ dx * time + (1 | participant_id), d)))
        (
            {},
            "dx*time + (1 | participant_id)",
            INTERACTION,
            (4.69960392, 14.9978135, 63.5105335),
            "(1 | subject)",
        ),
        # d$a <- d$age - mean(d$age); coef(summary(lmer(v ~ dx * age + (a | participant_id), d)))
        # With age itself, lmer does not converge.
        ({}, "dx*age", AGE, (8.0429504, 21.0961872, 19.8156303), "(1 + age | subject)"),
        # age is time and a constant within subjects, so it has no slope beside that of time.
        # coef(summary(lmer(v ~ dx * time + age + (time | participant_id), d)))
        (
            {},
            "dx*time + age",
            INTERACTION,
            (9.506970594, 24.19602359, 20.8191826),
            "(1 + time | subject)",
        ),
    ],
)
def test_random_slopes_are_those_of_lmer(
    made: dict[str, Any],
    formula: str,
    coefficient: str,
    expected: tuple[float, float, float],
    random: str,
) -> None:
    row = fitted(repeated(**made), formula).loc[coefficient]
    estimate, se, df = expected
    assert [row["method"], row["random"]] == ["mixed", random]
    assert row["estimate"] == pytest.approx(estimate, rel=1e-4, abs=1e-4 * se)
    assert row["se"] == pytest.approx(se, rel=1e-3)
    assert float(row["df"]) == pytest.approx(df, rel=3e-3)
    assert row["p"] == pytest.approx(2 * stats.t.sf(abs(estimate / se), df), rel=1e-3)


def test_joint_tests_are_those_of_lmertest() -> None:
    table = fitted(repeated(), "group*time")
    # contest(lmer(v ~ group * time + (time | participant_id), d), L, joint = TRUE)
    for term, f, df, p in (
        ("group", 1.91514579, 21.0415423, 0.172136861),
        ("group:time", 1.561811, 20.1732537, 0.234081244),
    ):
        row = table.loc[term]
        assert row["statistic"] == pytest.approx(f, rel=1e-3)
        assert float(row["df"].split(",")[1]) == pytest.approx(df, rel=3e-3)
        assert row["p"] == pytest.approx(p, rel=1e-3)


def test_a_singular_fit_says_so() -> None:
    table = fitted(repeated(slope_sd=0, visits=(3, 5), seed=2), "dx*time")
    assert table["notes"].str.contains("singular.*effect of time", na=False).all()
    assert table["converged"].all()


@pytest.mark.parametrize(
    ("visits", "formula", "expected"),
    [
        # m <- lme(v ~ dx * time, d, random = ~ 1 | participant_id)
        # coef_test(m, vcov = "CR2", test = "Satterthwaite")
        (
            (2, 2),
            "dx*time",
            {"dx[T.CN]": (152.7, 22.0), TIME: (22.7, 10.4), INTERACTION: (28.7, 20.7)},
        ),
        # The same of v ~ dx * visit
        (
            (2, 5),
            "dx*visit",
            {"visit[T.M2]": (38.4, 8.90), "dx[T.CN]:visit[T.M2]": (45.5, 18.47)},
        ),
    ],
)
def test_without_random_slopes_errors_are_those_of_clubsandwich(
    visits: tuple[int, int], formula: str, expected: dict[str, tuple[float, float]]
) -> None:
    table = fitted(repeated(visits=visits), formula)
    assert set(table["method"]) == {"mixed_cr2"}
    assert table["notes"].str.contains("CR2.*no random slope", na=False).all()
    for name, (se, df) in expected.items():
        assert table.loc[name, "se"] == pytest.approx(se, abs=0.051)
        assert float(table.loc[name, "df"]) == pytest.approx(df, abs=0.051)


@pytest.mark.parametrize(
    ("formula", "method", "warning"),
    [
        (
            "dx*time + (time | subject)",
            "mixed_cr2",
            r"\(1 \+ time \| subject\) cannot be estimated",
        ),
        ("dx*time + (1 | subject)", "mixed", "terms with time may have errors that are too small"),
        ("dx + (1 | subject)", "mixed", None),
        (
            "dx*time + sex + (sex | subject)",
            None,
            "sex has a random slope, but is no column of num",
        ),
    ],
)
def test_what_was_asked_for_is_fitted_or_said_to_be_impossible(
    formula: str, method: str | None, warning: str | None
) -> None:
    frame = repeated(visits=(2, 2))
    frame["sex"] = np.where(np.arange(len(frame)) % 6 < 2, "F", "M")
    table = fitted(frame, formula)
    assert set(table["method"].dropna()) == ({method} if method else set())
    if warning is None:
        assert table["warnings"].isna().all()
    else:
        assert table["warnings"].str.contains(warning, na=False).all()


def test_random_effects_without_an_intercept_are_warned_of() -> None:
    frame = repeated(visits=(3, 5))
    usual, alone = (fitted(frame, f"dx*time + ({e} + time | subject)") for e in "10")
    assert usual["warnings"].isna().all()
    assert alone["warnings"].str.contains("no random intercept").all()
    # The subjects of a group count as so many as they have scans.
    assert alone.loc["dx[T.CN]", "se"] < 0.7 * usual.loc["dx[T.CN]", "se"]
    robust = fitted(frame, "dx*time + (0 + time | subject)", robust=True)
    assert robust["warnings"].isna().all()


def test_random_effects_of_single_scans_are_left_out_with_a_warning() -> None:
    table = fitted(repeated(visits=(1, 1)), "dx + age + (age | subject)")
    assert set(table["method"]) == {"ols"}
    assert table["warnings"].str.contains("no random effects", na=False).all()


def test_measured_icv_gets_no_random_slope() -> None:
    """The volume of the head does not change; its measurement does."""
    frame = repeated(visits=(4, 4))
    frame["icv_mm3"] = 1.5e6 + np.random.default_rng(1).normal(0, 1e4, len(frame))
    table = fitted(frame, "dx*time + icv")
    assert set(table["method"]) == {"mixed"}
    assert set(table["random"]) == {"(1 + time | subject)"}


def test_another_changing_number_gets_a_slope_or_robust_errors() -> None:
    rng = np.random.default_rng(1)
    for visits, method, random in (
        ((5, 5), "mixed", "(1 + time + dose | subject)"),
        ((3, 3), "mixed_cr2", "(1 + time | subject)"),
    ):
        frame = repeated(visits=visits)
        frame["dose"] = rng.normal(size=len(frame)) + np.repeat(rng.normal(size=24), visits[0])
        table = fitted(frame, "dx*time + dose")
        assert set(table["method"]) == {method}
        assert set(table["random"]) == {random}


def test_robust_errors() -> None:
    one = repeated(visits=(1, 1), n=40)
    table = fitted(one, "dx + age", robust=True)
    expected = smf.ols(f"{V} ~ C(dx, Treatment('AD')) + age", one).fit(cov_type="HC3")
    assert set(table["method"]) == {"ols_hc3"}
    assert table["se"].tolist() == pytest.approx(expected.bse.tolist())
    assert table.loc["age", "p"] == pytest.approx(
        2 * stats.t.sf(abs(expected.tvalues["age"]), expected.df_resid)
    )
    several = fitted(repeated(), "dx*time", robust=True)
    assert set(several["method"]) == {"mixed_cr2"}
    assert set(several["random"]) == {"(1 + time | subject)"}
    assert several["warnings"].isna().all()


def test_ages_and_volumes_of_any_size_give_the_same_tests() -> None:
    """A model of ages in days and liters is that of years and mm³."""
    frame = repeated()
    small = frame.assign(age=365.25 * frame["age"] + 1e4, **{V: frame[V] * 1e-6})
    ours, theirs = fitted(frame, "dx*age"), fitted(small, "dx*age")
    assert theirs.loc[AGE, "p"] == pytest.approx(ours.loc[AGE, "p"], rel=1e-3)
    assert theirs.loc[AGE, "se"] * 365.25e6 == pytest.approx(ours.loc[AGE, "se"], rel=1e-3)


@pytest.mark.parametrize("visits", [(1, 1), (2, 4)])
def test_a_site_of_one_subject_has_no_robust_error(visits: tuple[int, int]) -> None:
    """Without this subject, the errors of the other coefficients are the same."""
    frame = repeated(visits=visits, n=30).assign(site="one")
    frame["site"] = np.where(frame["participant_id"] < "sub-10", "two", frame["site"])
    alone = frame["participant_id"] == "sub-29"
    table = fitted(
        frame.assign(site=frame["site"].where(~alone, "three")), "dx + site", robust=True
    )
    without = fitted(frame[~alone], "dx + site", robust=True)
    assert np.isnan(table.loc["site[T.three]", "p"])
    assert (
        table["warnings"]
        .str.contains(r"robust errors of site\[T.three\]: one subject", na=False)
        .all()
    )
    tolerance = 1e-6 if visits == (1, 1) else 0.05  # The scans of the subject are not one number.
    for name in ("dx[T.CN]", "site[T.two]"):
        assert table.loc[name, "se"] == pytest.approx(without.loc[name, "se"], rel=tolerance)


@pytest.mark.slow
def test_group_by_time_is_not_found_without_an_effect() -> None:
    """A random intercept alone finds one in about a third of such cohorts."""
    found = 0
    for seed in range(60):
        frame = repeated(n=40, visits=(6, 6), slope_sd=60, seed=seed)
        found += fitted(frame, "dx*time").loc[INTERACTION, "p"] < 0.05
    # Binomial: 3 of 60 are expected, and more than 8 in less than one of 200 studies.
    assert found <= 8


@pytest.mark.parametrize(
    ("visits", "f", "df", "p"),
    [
        # m <- lme(v ~ dx * visit, d, random = ~ 1 | participant_id)
        # Wald_test(m, constrain_zero("dxCN:", reg_ex = TRUE), vcov = "CR2", test = "HTZ")
        ((4, 4), 1.56569577, 20, 0.228866894),
        ((2, 5), 0.339302795, 7.197833, 0.843663905),
    ],
)
def test_joint_tests_with_robust_errors_are_those_of_clubsandwich(
    visits: tuple[int, int], f: float, df: float, p: float
) -> None:
    row = fitted(repeated(visits=visits), "dx*visit").loc["dx:visit"]
    assert row["statistic"] == pytest.approx(f, rel=5e-3)
    assert float(row["df"].split(",")[1]) == pytest.approx(df, rel=5e-3)
    assert row["p"] == pytest.approx(p, rel=5e-3)
