"""What formulas mean: values from R, refusals that help, and warnings of other meanings."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from hyps_bids.cohort.design import CannotFit, Design, build_design
from hyps_bids.cohort.formulas import formula_variables
from hyps_bids.cohort.levels import looks_like_codes
from hyps_bids.cohort.statistics import fit_formulas, fit_models
from hyps_bids.errors import UsageError
from tests.cohort.formula_data import table_of_r
from tests.raising import raises


def design_of(formula: str, frame: pd.DataFrame, controls: tuple[str, str] | None = None) -> Design:
    frame = frame.assign(volume=frame["volume_mm3_L_whole"])
    text = f"volume ~ {formula}"
    used = frame[["participant_id", *formula_variables(text, frame.columns)]].dropna()
    return build_design(text, used, "volume", controls)


def coefficients(
    formula: str, frame: pd.DataFrame, controls: tuple[str, str] | None = None
) -> dict[str, float]:
    design = design_of(formula, frame, controls)
    solution = np.linalg.lstsq(design.matrix / design.scales, design.outcome, rcond=None)[0]
    return dict(zip(design.names, solution / design.scales, strict=True))


def references(
    formula: str, frame: pd.DataFrame, controls: tuple[str, str] | None = None
) -> dict[str, str]:
    design = design_of(formula, frame, controls)
    found = zip(design.names, design.references, strict=True)
    return {name: reference for name, reference in found if reference}


def warnings_of(formula: str, frame: pd.DataFrame, controls: Any = None) -> str:
    try:
        return "; ".join(design_of(formula, frame, controls).warnings)
    except CannotFit as why:
        return f"not fitted: {why}"


SPLINE = "bs(age, df=4)"
# coef(lm(volume ~ ..., d)) in R 4.2 with splines::bs, and d of formula_data.IN_R.
IN_R = {
    f"{SPLINE} + C(group, contr.sum)": {
        "Intercept": 3013.715643,
        f"{SPLINE}[1]": 272.041115,
        f"{SPLINE}[2]": -374.474513,
        f"{SPLINE}[3]": -88.947778,
        f"{SPLINE}[4]": -347.269203,
        "C(group, contr.sum)[S.CN]": 83.175126,
        "C(group, contr.sum)[S.MCI]": 58.354763,
    },
    "poly(age, 2)*sex": {
        "Intercept": 2948.892987,
        "poly(age, 2)[1]": -686.863347,
        "poly(age, 2)[2]": 419.637891,
        "sex[T.M]": -55.332786,
        "poly(age, 2)[1]:sex[T.M]": -604.917603,
        "poly(age, 2)[2]:sex[T.M]": -916.351541,
    },
    "C(group, contr.helmert) + scale(age)": {
        "Intercept": 2921.966356,
        "C(group, contr.helmert)[H.MCI]": -14.040879,
        "C(group, contr.helmert)[H.AD]": -65.451621,
        "scale(age)": -125.9935,
    },
    "C(group, contr.poly)": {
        "Intercept": 2921.474771,
        "C(group, contr.poly)[.L]": -182.562654,
        "C(group, contr.poly)[.Q]": -53.807806,
    },
    # Nested: one effect of group in each sex.
    "sex/group": {
        "Intercept": 2990.802673,
        "sex[T.M]": 75.592889,
        "sex[F]:group[T.MCI]": -72.616462,
        "sex[M]:group[T.MCI]": -53.764451,
        "sex[F]:group[T.AD]": -104.542071,
        "sex[M]:group[T.AD]": -395.27394,
    },
    "0 + group:sex": {
        "group[CN]:sex[F]": 2990.8027,
        "group[MCI]:sex[F]": 2918.1862,
        "group[AD]:sex[F]": 2886.2606,
        "group[CN]:sex[M]": 3066.3956,
        "group[MCI]:sex[M]": 3012.6311,
        "group[AD]:sex[M]": 2671.1216,
    },
    "(age+sex+group)**2 - age:sex": {
        "Intercept": 3504.1350023,
        "age": -7.1014354,
        "sex[T.M]": 7.6220072,
        "group[T.MCI]": 77.7729173,
        "group[T.AD]": 1289.7088396,
        "age:group[T.MCI]": -1.9906428,
        "age:group[T.AD]": -21.801341,
        "sex[T.M]:group[T.MCI]": 33.5692918,
        "sex[T.M]:group[T.AD]": 45.6219355,
    },
    "log10(age) + exp(age/50) + I(age**2) + {age > 70}": {
        "Intercept": 12746.39756863,
        "log10(age)": -4977.56729501,
        "exp(age / 50)": -1101.53517086,
        "I(age ** 2)": 0.78507987,
        "age > 70": -70.23899509,
    },
    "group:age": {
        "Intercept": 3876.816675,
        "group[CN]:age": -12.475203,
        "group[MCI]:age": -12.946957,
        "group[AD]:age": -15.739901,
    },
    # lm(volume ~ ns(age, knots=quantile(unique(age), c(1/3, 2/3))) + sex) has the same fit.
    "cr(age, df=3, constraints='center') + sex": {"sex[T.M]": -53.031628},
}


@pytest.mark.parametrize("formula", IN_R)
def test_values_are_those_of_r(formula: str) -> None:
    found = coefficients(formula, table_of_r())
    if len(IN_R[formula]) > 1:
        assert list(found) == list(IN_R[formula])
    for name, value in IN_R[formula].items():
        assert found[name] == pytest.approx(value, rel=1e-6)


def test_transforms_agree_with_numpy() -> None:
    frame = table_of_r()
    age, volume = frame["age"].to_numpy(), frame["volume_mm3_L_whole"].to_numpy()
    slope = np.polyfit(age, volume, 1)[0]
    for formula, column in {
        "center(age)": age - age.mean(),
        "standardize(age)": (age - age.mean()) / age.std(),
        "log2(age)": np.log2(age),
        # formulaic 1.2 computes age**10.
        "exp10(age/100)": 10 ** (age / 100),
        "exp2(age/10)": 2 ** (age / 10),
        "np.sqrt(age)": np.sqrt(age),
        "{age/10}": age / 10,
        "{np.log(age).clip(4.2)}": np.log(age).clip(4.2),
        "{np.pi*Q('age') + 1}": np.pi * age + 1,
    }.items():
        name, value = list(coefficients(formula, frame).items())[1]
        assert value == pytest.approx(np.polyfit(column, volume, 1)[0]), name
    for outcome, expected in {
        "log(volume)": np.polyfit(age, np.log(volume), 1)[0],
        "{volume / icv}": slope / 1.5e6,
        "scale(volume)": slope / volume.std(ddof=1),
    }.items():
        table = fit_models(frame, [f"{outcome} ~ age"])
        assert table["estimate"].iloc[1] == pytest.approx(expected)


NAMES = [
    "log",
    "np",
    "C",
    "scale",
    "my age",
    "T1-w",
    "1st",
    "a.b",
    "class",
    "Größe",
]


@pytest.mark.parametrize("name", NAMES)
def test_columns_of_any_name(name: str) -> None:
    frame = table_of_r()
    expected = coefficients("np.log(age) + scale(code)", frame)
    renamed = frame.rename(columns={"age": name})
    found = coefficients(f"np.log(`{name}`) + scale(code)", renamed)
    assert list(found.values()) == pytest.approx(list(expected.values()))
    shown = name if name.isidentifier() else f"`{name}`"
    assert list(found) == ["Intercept", f"np.log({shown})", "scale(code)"]
    assert list(coefficients(f"`{name}`", renamed)) == ["Intercept", name]
    assert list(coefficients(f"Q('{name}')", renamed)) == ["Intercept", name]
    assert formula_variables(f"volume ~ bs(`{name}`, df=4)") == {"volume", name}


@pytest.mark.parametrize(
    ("formula", "code", "fact"),
    [
        ("volume ~ age | sex", "formula-bar", "(time | subject)"),
        ("volume ~ .", "formula-point", "columns"),
        ("volume ~ [age ~ sex]", "formula-stages", "~"),
        ("volume ~ 0", "formula-no-terms", "1"),
        ("volume ~ lag(age)", "formula-function-unknown", "previous row"),
        ("volume ~ hashed(sex, levels=3)", "formula-function-unknown", "C(NAME)"),
        ("volume ~ factor(sex)", "formula-function-unknown", "C(NAME)"),
        ("volume ~ sqrt(age)", "formula-function-unknown", "np.sqrt"),
        ("volume ~ np.random.normal(age)", "formula-function-unknown", "another result"),
        ("volume ~ open('x')", "formula-function-unknown", "open()"),
        ("volume ~ 2*age", "formula-arithmetic", "2"),
        ("volume ~ age/10", "formula-arithmetic", "{age / 10}"),
        ("volume ~ 1/age", "formula-arithmetic", "1"),
        ("volume ~ 2:age", "formula-arithmetic", "2"),
        ("volume ~ age + 5", "formula-arithmetic", "5"),
        ("volume ~ age > 70", "formula-syntax", "{age > 70}"),
        ("volume ~ age**0.5", "formula-syntax", "{age > 70}"),
        ("", "formula-outcome-count", "~"),
        ("volume ~ 'age'", "formula-syntax", "backquotes"),
        ("volume - 1 ~ age", "formula-outcome-count", "{volume / icv}"),
        ("volume/icv ~ age", "formula-outcome-count", "{volume / icv}"),
        ("-volume ~ age", "formula-outcome-count", "~"),
        ("volume**2 ~ age", "formula-outcome-count", "~"),
        ("volume ~ volume + age", "formula-outcome-repeated", "volume"),
        ("poly(volume, 2) ~ age", "formula-outcome-text", "volume"),
        ("volume ~ C(group, levels=['CN', 'AD'])", "formula-not-computable", "MCI"),
        ("volume ~ C(code, contr.treatment(base=7))", "formula-not-computable", "7"),
        ("volume ~ bs(age, df=1)", "formula-not-computable", "bs(age, df=1)"),
    ],
)
def test_formulas_that_are_refused(formula: str, code: str, fact: str) -> None:
    with raises(UsageError, code, fact, formula):
        fit_models(table_of_r(), [formula])


@pytest.mark.parametrize(
    ("formula", "same", "facts"),
    [
        ("age**2", "age", ("age**2 means age", "I(age**2)", "poly(age, 2)")),
        ("age^2", "age", ("age^2 means age", "I(age**2)")),
        ("sex + age**3", "sex + age", ("I(age**3)",)),
        ("log(age)**2", "log(age)", ("I(log(age)**2)",)),
        ("age*age", "age", ("age*age means age", "I(age**2)")),
        ("age:age", "age", ("I(age**2)",)),
        ("-age", "1", ("without the term age", "{-age}")),
        ("age - code", "age", ("without the term code",)),
        ("age/code", "age + age:code", ("age + age:code", "{age/code}")),
        ("age - 1", "age + 0", ("no intercept", "{age - 1}")),
    ],
)
def test_what_looks_like_arithmetic_is_explained(
    formula: str, same: str, facts: tuple[str, ...]
) -> None:
    frame = table_of_r()
    found = coefficients(formula, frame)
    assert list(found.values()) == pytest.approx(list(coefficients(same, frame).values()))
    for fact in facts:
        assert fact in warnings_of(formula, frame)


@pytest.mark.parametrize(
    "formula", ["(age + sex)**2", "age*sex - age:sex", "sex/group", "0 + sex", "sex - 1", "age:sex"]
)
def test_what_means_what_it_says_has_no_warning(formula: str) -> None:
    assert warnings_of(formula, table_of_r()) == ""


def test_values_that_are_not_finite() -> None:
    frame = table_of_r()
    frame["change"] = frame["age"] - 60
    table = fit_models(frame, ["volume ~ log(change) + center(age) + C(code)"])
    kept = frame[frame["change"] > 0]
    assert set(table["n_scans"]) == {len(kept)}
    assert set(table["n_left_out"]) == {len(frame) - len(kept)}
    assert f"{len(frame) - len(kept)} scans" in table["warnings"].iloc[0]
    assert "log(change)" in table["warnings"].iloc[0]
    # Means are those of the scans that are used.
    again = coefficients("log(change) + center(age) + C(code)", kept)
    found = table.loc[table["coefficient"] != "(all)", "estimate"]
    assert found.tolist() == pytest.approx(list(again.values()))
    assert "no scan has a finite value" in warnings_of("log(age - 100)", frame)


def test_terms_that_follow_from_others_are_named() -> None:
    frame = table_of_r().assign(months=lambda d: 12 * d["age"])
    assert "months can be computed" in warnings_of("age + sex + months", frame)
    assert "constraints='center'" in warnings_of("cr(age, df=3)", frame)


# Level named on the command line → coefficient with that level as reference, from R:
# coef(lm(volume ~ factor(code), transform(d, code=relevel(factor(code), "2")))).
CODES = {"1": -6.5167182, "3": -39.5678743}


@pytest.mark.parametrize("level", ["2", "2.0"])
@pytest.mark.parametrize("kind", ["number", "text", "categories"])
def test_controls_are_the_reference_of_every_coding(kind: str, level: str) -> None:
    frame = table_of_r()
    if kind != "number":
        level = "2"
        frame["code"] = frame["code"].astype("int").astype("str")
    if kind == "categories":
        frame["code"] = frame["code"].astype("category")
    found = coefficients("C(code)", frame, ("code", level))
    for name, value in CODES.items():
        assert found[f"C(code)[T.{name}]"] == pytest.approx(value, rel=1e-6)
    assert set(references("C(code)", frame, ("code", level)).values()) == {"2"}


def test_booleans_are_levels() -> None:
    frame = table_of_r().assign(ill=lambda d: d["group"] == "AD")
    well = coefficients("ill", frame)
    ill = coefficients("ill", frame, ("ill", "true"))
    assert ill["ill[T.False]"] == pytest.approx(-well["ill[T.True]"])
    assert references("ill", frame, ("ill", "True")) == {"ill[T.False]": "True"}


@pytest.mark.parametrize(
    ("formula", "expected"),
    [
        ("C(group, contr.treatment(base='MCI'))", {"[T.CN]": "MCI", "[T.AD]": "MCI"}),
        ("C(group, Treatment('MCI'))", {"[T.CN]": "MCI", "[T.AD]": "MCI"}),
        ("C(group, contr.SAS)", {"[T.CN]": "AD", "[T.MCI]": "AD"}),
        (
            "C(group, contr.sum)",
            {"[S.CN]": "mean of CN, MCI, AD", "[S.MCI]": "mean of CN, MCI, AD"},
        ),
        ("C(group, contr.helmert)", {"[H.MCI]": "CN", "[H.AD]": "mean of CN, MCI"}),
        ("C(group, contr.diff)", {"[D.MCI]": "CN", "[D.AD]": "MCI"}),
        ("C(group)", {"[T.MCI]": "CN", "[T.AD]": "CN"}),
    ],
)
def test_references_are_those_of_the_coding(formula: str, expected: dict[str, str]) -> None:
    frame = table_of_r()
    assert references(formula, frame) == {formula + name: ref for name, ref in expected.items()}
    if "base" in formula:
        # What the formula says explicitly wins over --controls.
        assert references(formula, frame, ("group", "AD")) == references(formula, frame)


def test_references_of_interactions() -> None:
    found = references("group*sex + age:sex", table_of_r(), ("group", "AD"))
    assert found["group[T.CN]"] == "AD"
    assert found["group[T.CN]:sex[T.M]"] == "group=AD, sex=F"
    # Each sex has a slope of its own, which is compared with nothing.
    assert "sex[F]:age" not in found
    assert references("sex/group", table_of_r())["sex[M]:group[T.AD]"] == "group=CN"
    assert references("age*sex", table_of_r())["age:sex[T.M]"] == "sex=F"
    assert references("0 + sex", table_of_r()) == {}
    name = "bs(age, df=4)[2]:C(group, contr.sum)[S.CN]"
    found = references("bs(age, df=4)*C(group, contr.sum)", table_of_r())
    assert found[name] == "group=mean of CN, MCI, AD"
    odd = table_of_r()
    odd["group"] = odd["group"].cat.rename_categories({"CN": "a:b", "MCI": "sex[T.M]"})
    assert references("group*sex", odd)["group[T.sex[T.M]]:sex[T.M]"] == "group=a:b, sex=F"


def test_controls_without_effect_are_named() -> None:
    frame = table_of_r()
    assert "code=2" in warnings_of("code", frame, ("code", "2"))
    assert "C(code)" in warnings_of("poly(code, 2)", frame, ("code", "2"))
    assert warnings_of("C(code)", frame, ("code", "2")) == ""
    assert warnings_of("age", frame, ("code", "2")) == ""
    frame.loc[frame["code"] == 2, "age"] = np.nan
    assert "no scan of the controls (code=2)" in warnings_of("C(code) + age", frame, ("code", "2"))


def test_numbers_that_look_like_codes() -> None:
    subjects = pd.Series([f"sub-{i % 30}" for i in range(60)])
    rng = np.random.default_rng(10_000)

    def is_code(name: str, values: Any) -> bool:
        return looks_like_codes(pd.Series(values, name=name, dtype=float), subjects)

    of_subject = rng.integers(0, 3, 30)
    assert is_code("DX", np.tile(of_subject + 1, 2))
    assert is_code("status", np.tile(of_subject, 2))
    assert is_code("site_id", np.tile(10 * of_subject + 7, 2))
    assert not is_code("sex", np.tile(of_subject // 2, 2))
    assert not is_code("education", np.tile(rng.integers(8, 20, 30), 2))
    assert not is_code("cdr", np.tile(of_subject / 2, 2))
    assert not is_code("age", np.tile(rng.integers(60, 66, 30), 2))
    assert not is_code("visit", np.repeat([1, 2], 30) + np.tile(of_subject, 2))


def test_codes_are_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    fit_formulas(table_of_r(), ["volume ~ code", "volume ~ code + age", "volume ~ C(code)"])
    warnings = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    hints = [text for text in warnings if "C(code)" in text]
    assert len(hints) == 1
    assert "code (1, 2, 3)" in hints[0]


def test_one_failing_formula_does_not_stop_the_others(caplog: pytest.LogCaptureFixture) -> None:
    frame = table_of_r().assign(empty=np.nan)
    wrong = ["volume ~ aged", "volume ~ (", "volume ~ np.log(sex)", "volume ~ empty"]
    tables = fit_formulas(frame, ["volume ~ age", *wrong])
    assert set(tables.failed) == {*wrong}
    assert tables.models.dropna(subset="p")["model"].unique().tolist() == ["volume ~ age"]
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(errors) == 4
    (unknown,) = [text for text in errors if "aged" in text]
    assert unknown.index("age, ") < unknown.index("participant_id")


def test_a_design_gives_its_own_rows_again() -> None:
    frame = table_of_r().assign(volume=1.0 + np.arange(41))
    formula = "volume ~ bs(age, df=4)*sex + scale(log(age)) + C(code, contr.sum) + code:apoe"
    design = build_design(formula, frame, "volume", None)
    assert design.matrix_at(design.variables) == pytest.approx(design.matrix)
    assert design.matrix_at(design.variables.iloc[[3]]) == pytest.approx(design.matrix[[3]])


@pytest.mark.parametrize(
    ("values", "fact"),
    [
        (lambda age: age * 1e155, "x is as large as 8e+156"),
        (lambda age: age * 1e-160, "x is as large as 8e-159"),
        # R's lm leaves out the second of these columns too.
        (lambda age: age + 1e-9 * np.sin(age), "x can be computed from the others"),
    ],
)
def test_numbers_that_arithmetic_cannot_tell_apart_are_refused(values: Any, fact: str) -> None:
    frame = table_of_r()
    frame["x"] = values(frame["age"])
    table = fit_models(frame, ["volume ~ age + x"])
    assert table["p"].isna().all()
    assert fact in table["warnings"].iloc[0]


def test_numbers_with_nearly_as_many_levels_as_people_are_no_categories() -> None:
    frame = table_of_r()
    with raises(UsageError, "formula-levels-too-many", "age", "31 levels among 41", "C()"):
        fit_models(frame, ["volume ~ C(age)"])
    assert fit_models(frame, ["volume ~ C(code)"])["p"].notna().all()
