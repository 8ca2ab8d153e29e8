"""Marginal means, slopes and comparisons, against R's emmeans 1.8."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from statsmodels.stats.multitest import multipletests

from hyps_bids.cohort.posthoc import parse_comparison
from hyps_bids.cohort.statistics import fit_formulas
from hyps_bids.errors import UsageError
from hyps_bids.outputs.columns import POSTHOC_COLUMNS
from tests.cohort.formula_data import table_of_r
from tests.cohort.test_statistics import simulated
from tests.raising import raises

FORMULA = "volume ~ group*sex + age*group + C(code) + apoe"


def compare(
    *posthoc: str, formula: str = FORMULA, frame: pd.DataFrame | None = None
) -> pd.DataFrame:
    frame = table_of_r() if frame is None else frame
    return fit_formulas(frame, [formula], posthoc=posthoc).posthoc


def rows_of(table: pd.DataFrame, kind: str, columns: list[str]) -> dict[str, list[float]]:
    rows = table[table["kind"] == kind]
    values = rows[columns].astype(float).to_numpy().tolist()
    names = [
        f"{by}: {name}" if by else name
        for by, name in zip(rows["by"], rows["contrast"], strict=True)
    ]
    return dict(zip(names, values, strict=True))


def check(found: dict[str, list[float]], expected: dict[str, list[float]]) -> None:
    assert list(found) == list(expected)
    for name, values in expected.items():
        assert found[name] == pytest.approx(values, rel=2e-5), name


# m <- lm(volume ~ group*sex + age*group + factor(code) + apoe, d), with d of formula_data.IN_R
def test_means_and_their_differences() -> None:
    table = compare("group")
    assert list(table.columns) == list(POSTHOC_COLUMNS)
    assert set(table["df"]) == {29.0}
    # emmeans(m, ~group)
    check(
        rows_of(table, "mean", ["estimate", "se", "ci_low", "ci_high"]),
        {
            "CN": [3018.9404, 20.149172, 2977.7307, 3060.1500],
            "MCI": [2972.8985, 19.128648, 2933.7760, 3012.0210],
            "AD": [2809.2507, 20.092900, 2768.1561, 2850.3453],
        },
    )
    # pairs(emmeans(m, ~group), adjust=...) with none, tukey and holm
    check(
        rows_of(
            table,
            "mean_difference",
            ["estimate", "se", "ci_low", "ci_high", "statistic", "p", "p_adjusted", "p_holm"],
        ),
        {
            "CN - MCI": [
                *(46.041838, 28.166019, -11.564138, 103.64781, 1.6346591),
                *(1.1293096e-01, 2.4758421e-01, 1.1293096e-01),
            ],
            "CN - AD": [
                *(209.689645, 28.884453, 150.614306, 268.76498, 7.2596025),
                *(5.3975595e-08, 1.5950470e-07, 1.6192678e-07),
            ],
            "MCI - AD": [
                *(163.647807, 27.494460, 107.415321, 219.88029, 5.9520283),
                *(1.8169860e-06, 5.3269907e-06, 3.6339720e-06),
            ],
        },
    )
    assert set(table["interacts_with"]) == {"sex, age"}


def test_comparisons_within_levels() -> None:
    table = compare("group|sex")
    # pairs(emmeans(m, ~group|sex))
    check(
        rows_of(table, "mean_difference", ["estimate", "se", "p_adjusted"]),
        {
            "sex=F: CN - MCI": [65.080708, 40.855727, 2.6472032e-01],
            "sex=F: CN - AD": [244.081411, 46.252759, 3.4174567e-05],
            "sex=F: MCI - AD": [179.000703, 42.761654, 6.8559000e-04],
            "sex=M: CN - MCI": [27.002969, 46.170095, 8.2925296e-01],
            "sex=M: CN - AD": [175.297879, 47.209541, 2.4238307e-03],
            "sex=M: MCI - AD": [148.294910, 42.531319, 4.3683992e-03],
        },
    )


def test_comparisons_of_cells() -> None:
    table = compare("group:sex")
    rows = table[table["kind"] == "mean_difference"].set_index("contrast")
    assert len(rows) == 15
    # pairs(emmeans(m, ~group:sex))
    for name, estimate, p in (
        ("CN:F - CN:M", -0.85884854, 0.99999999968),
        ("MCI:F - AD:M", 109.35832263, 0.15403324168),
        ("MCI:M - AD:M", 148.29490987, 0.01781927855),
    ):
        assert rows.loc[name, "estimate"] == pytest.approx(estimate, rel=1e-5)
        assert rows.loc[name, "p_adjusted"] == pytest.approx(p, rel=1e-4)
    assert set(rows["n_compared"]) == {6}


def test_slopes_of_groups() -> None:
    table = compare("group:age")
    # emtrends(m, ~group, var="age"), then pairs()
    check(
        rows_of(table, "slope", ["estimate", "se", "ci_low", "ci_high", "p"]),
        {
            "CN": [-7.3046303, 2.4997393, -12.417171, -2.1920894, 6.6716295e-03],
            "MCI": [-9.3863533, 2.0669834, -13.613809, -5.1588977, 9.0631834e-05],
            "AD": [-29.4682330, 2.9119576, -35.423855, -23.5126111, 5.0345675e-11],
        },
    )
    check(
        rows_of(table, "slope_difference", ["estimate", "se", "p_adjusted"]),
        {
            "CN - MCI": [2.081723, 3.2475473, 7.9884668e-01],
            "CN - AD": [22.163603, 3.7842533, 6.9158564e-06],
            "MCI - AD": [20.081880, 3.5824235, 1.3797127e-05],
        },
    )


def test_transforms_keep_what_they_remember() -> None:
    # m2 <- lm(volume ~ poly(age,2)*sex + log(age) + I(apoe^2), d)
    formula = "volume ~ poly(age, 2)*sex + log(age) + I(apoe**2)"
    table = compare("sex", "sex:age", "age", formula=formula)
    # emmeans(m2, ~sex), pairs(), and emtrends(m2, ~sex, var="age", delta.var=1e-4)
    check(
        rows_of(table[table["posthoc"] == "sex"], "mean", ["estimate", "se"]),
        {"F": [2874.5794, 38.228527], "M": [2985.2769, 38.488596]},
    )
    check(
        rows_of(table, "mean_difference", ["estimate", "se", "p", "p_adjusted"]),
        {"F - M": [-110.69742, 54.46876, 0.050234707, 0.050234707]},
    )
    check(
        rows_of(table[table["posthoc"] == "sex:age"], "slope", ["estimate", "se"]),
        {"F": [-7.908573102, 5.478302010], "M": [-17.811117954, 5.416170153]},
    )
    (slope,) = table.loc[table["posthoc"] == "age", "estimate"]
    assert slope == pytest.approx((-7.908573102 - 17.811117954) / 2, rel=1e-5)


def test_mixed_models() -> None:
    """Balanced visits, where the estimates of REML do not depend on its optimizer."""
    i, visit = np.repeat(np.arange(12), 3), np.tile(np.arange(3), 12)
    group = np.array(["CN", "MCI", "AD"])[i % 3]
    is_ill = group == "AD"
    frame = pd.DataFrame(
        {
            "participant_id": [f"sub-{number}" for number in i],
            "scan": [f"{a}-{b}" for a, b in zip(i, visit, strict=True)],
            "status": "done",
            "icv_mm3": 1.5e6,
            "group": pd.Categorical(group, ["CN", "MCI", "AD"]),
            "visit": visit.astype(float),
            "volume_mm3_L_whole": 3000
            - 100 * is_ill
            - 20 * visit * is_ill
            + 150 * np.sin(i * i)
            + 30 * np.sin(7 * i + visit * visit),
        }
    )
    formula = "volume ~ group*visit + (1 | subject)"
    table = compare("group", "group:visit", formula=formula, frame=frame)
    # m <- lmer(volume ~ group*visit + (1|id)); emmeans(m, ~group, lmer.df="satterthwaite")
    check(
        rows_of(table, "mean", ["estimate", "se", "df"]),
        {
            "CN": [2955.0556, 57.887824, 9],
            "MCI": [2967.8160, 57.887824, 9],
            "AD": [2920.9312, 57.887824, 9],
        },
    )
    # pairs(emtrends(m, ~group, var="visit", lmer.df="satterthwaite"))
    check(
        rows_of(table, "slope_difference", ["estimate", "se", "df", "p_adjusted"]),
        {
            "CN - MCI": [3.2078977, 13.317173, 21, 0.96856654],
            "CN - AD": [23.1196574, 13.317173, 21, 0.21560710],
            "MCI - AD": [19.9117598, 13.317173, 21, 0.31334267],
        },
    )


def test_robust_errors_are_adjusted_by_holm() -> None:
    formula = "volume ~ group + age"
    table = fit_formulas(table_of_r(), [formula], posthoc=["group"], robust=True).posthoc
    rows = table[table["kind"] == "mean_difference"]
    assert set(rows["method"]) == {"ols_hc3"}
    assert set(rows["adjustment"]) == {"holm"}
    expected = multipletests(rows["p"].astype(float), method="holm")[1]
    assert rows["p_adjusted"].tolist() == pytest.approx(expected.tolist())


def test_effect_sizes_of_two_groups_are_those_of_the_model() -> None:
    frame = simulated(60)
    frame = frame[frame["group"] != "MCI"]
    tables = fit_formulas(frame, ["volume ~ group + age"], posthoc=["group"])
    ours = tables.posthoc[tables.posthoc["kind"] == "mean_difference"].iloc[0]
    theirs = tables.models[tables.models["coefficient"] == "group[T.AD]"].iloc[0]
    assert ours["contrast"] == "CN - AD"
    for a, b in (
        ("effect", "effect"),
        ("effect_low", "effect_high"),
        ("effect_high", "effect_low"),
    ):
        assert ours[a] == pytest.approx(-theirs[b])
    assert [ours["p"], ours["p_fdr"]] == pytest.approx([theirs["p"], theirs["p_fdr"]])


def test_all_stands_for_groups_and_interactions() -> None:
    found = compare("all", formula="volume ~ group + C(code)*age + sex:group")["posthoc"]
    assert found.unique().tolist() == ["group", "code", "sex", "code:age", "sex:group"]


def test_what_cannot_be_compared(caplog: pytest.LogCaptureFixture) -> None:
    wanted = ["sex", "sexe", "age:apoe", "sex|age", "group::"]
    tables = fit_formulas(table_of_r(), [FORMULA], posthoc=wanted)
    assert set(tables.posthoc["posthoc"]) == {"sex"}
    assert set(tables.failed) == {f"--posthoc {text}" for text in wanted[1:]}
    assert not tables.models.empty
    (hint,) = [text for text in caplog.messages if "sexe is no variable" in text]
    assert "Choose from sex, group" in hint
    with raises(UsageError, "posthoc-syntax", "group::"):
        parse_comparison("group::")


def test_slopes_that_cannot_differ(caplog: pytest.LogCaptureFixture) -> None:
    assert compare("group:age", formula="volume ~ group + age").empty
    assert any("all slopes are the same" in text for text in caplog.messages)


def test_functions_that_depend_on_other_scans_are_not_extrapolated() -> None:
    formula = "volume ~ {age - age.mean()} + group"
    tables = fit_formulas(table_of_r(), [formula], posthoc=["group"])
    assert tables.posthoc.empty
    assert not tables.models.empty
    assert len(compare("group", formula="volume ~ center(age) + group")) == 6


def test_names_with_a_colon_or_a_bar_are_compared() -> None:
    frame = table_of_r().rename(columns={"group": "dx:now", "sex": "m|f"})
    formula = "volume_mm3_L_whole ~ `dx:now` * `m|f`"
    plain = fit_formulas(
        table_of_r(), ["volume_mm3_L_whole ~ group * sex"], posthoc=("all", "group|sex")
    )
    found = fit_formulas(frame, [formula], posthoc=("all", "`dx:now` | `m|f`"))
    assert not found.failed
    assert found.posthoc["estimate"].tolist() == plain.posthoc["estimate"].tolist()
    assert set(found.posthoc["by"].dropna()) == {"m|f=F", "m|f=M"}
    assert fit_formulas(frame, [formula], posthoc=("dx:now",)).failed == ("--posthoc dx:now",)
