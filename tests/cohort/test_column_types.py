"""Numbers, missing values and levels as people write them."""

from __future__ import annotations

import logging
from typing import Any

import pandas as pd
import pytest

from hyps_bids.cohort.column_types import infer_types, mistyped_numbers, too_many_levels

MALE = {"Levels": {"1": "male", "2": "female"}}


def typed(
    values: list[str | None], described: dict[str, Any] | None = None, name: str = "x"
) -> list[Any]:
    frame = pd.DataFrame({name: pd.Series(values, dtype="str")})
    column = infer_types(frame, {name: described or {}}, "made.tsv")[name]
    return column.astype("object").fillna("?").tolist()


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]


@pytest.mark.parametrize(
    ("values", "described", "expected"),
    [
        (["1", "2.5", None], {}, [1.0, 2.5, "?"]),
        (["-1e3", ".5", "+2", "1.2E+03"], {}, [-1000.0, 0.5, 2.0, 1200.0]),
        ([None, None], {}, ["?", "?"]),
        # What the sidecar says counts.
        (["1", "0", "1.0"], {"Levels": {"0": "no", "1": "yes"}}, ["1", "0", "1"]),
        (["1", "2"], {"Levels": "any number"}, [1.0, 2.0]),
        (["b", "a"], {"Levels": ["b", "a"]}, ["b", "a"]),
        (["1", "2"], {"Format": "string"}, ["1", "2"]),
        (["a", "NA"], {"Levels": {"a": "", "NA": "Native American"}}, ["a", "NA"]),
        (["001", "010"], {"Units": "ml"}, [1.0, 10.0]),
        # Labels, codes, bands and field strengths stay text.
        (["01", "02", None], {}, ["01", "02", "?"]),
        (["1", "x"], {}, ["1", "x"]),
        (["F32.1", "F33"], {}, ["F32.1", "F33"]),
        (["70-75", "75-80"], {}, ["70-75", "75-80"]),
        (["1.5T", "3T"], {}, ["1.5T", "3T"]),
        (["006M", "012M"], {}, ["006M", "012M"]),
        (["7.1.1", "6.0.0"], {}, ["7.1.1", "6.0.0"]),
        (["2001-03-04", "2002-03-04"], {}, ["2001-03-04", "2002-03-04"]),
        (["true", "false"], {}, ["true", "false"]),
        (["+", "-", "++"], {}, ["+", "-", "++"]),
        (["AA", "Aa"], {}, ["AA", "Aa"]),
    ],
)
def test_types(values: list[str | None], described: dict[str, Any], expected: list[Any]) -> None:
    assert typed(values, described) == expected


@pytest.mark.parametrize(
    ("name", "values", "units", "expected"),
    [
        ("x", ["71,5", "68", "1,2e3"], None, [71.5, 68.0, 1200.0]),
        ("x", ["0,123", "0,456"], None, [0.123, 0.456]),
        ("x", ["1,234", "12,5"], None, [1.234, 12.5]),
        ("x", ["1 234,5", "987,6"], None, [1234.5, 987.6]),
        ("x", ["1\u00a0234", "1\u202f410"], None, [1234.0, 1410.0]),
        ("x", ["1,234.5", "987"], None, [1234.5, 987.0]),
        ("x", ["1,234,567", "987"], None, [1234567.0, 987.0]),
        ("x", ["1.234,5", "987"], None, [1234.5, 987.0]),
        ("x", ["1.234.567", "1"], None, [1234567.0, 1.0]),
        ("x", ["1'234", "987"], None, [1234.0, 987.0]),
        ("x", ["\u22121.5", "2"], None, [-1.5, 2.0]),
        ("x", ["'72", "'68"], None, [72.0, 68.0]),
        ("x", ["85%", "90 %"], None, [85.0, 90.0]),
        ("x", ["72,5 kg", "68 kg"], None, [72.5, 68.0]),
        ("x", ["3T", "1.5T"], "T", [3.0, 1.5]),
        ("age", ["072Y", "018M", "026W", "730D"], None, [72, 1.5, 26 * 7 / 365.25, 730 / 365.25]),
        ("age", ["072Y", "018M"], "months", [864.0, 18.0]),
        ("Age_at_scan", ["72 y", "68.5 years", "70yrs"], None, [72.0, 68.5, 70.0]),
        ("PatientAge", ["18 months", "2 years"], None, [1.5, 2.0]),
        ("age", ["072", "068"], None, [72.0, 68.0]),
        ("age", ["89+", "70"], None, [89.0, 70.0]),
        ("age", [">89", "70,5"], None, [89.0, 70.5]),
    ],
)
def test_numbers_that_can_mean_one_thing_are_read(
    caplog: pytest.LogCaptureFixture,
    name: str,
    values: list[str],
    units: str | None,
    expected: list[float],
) -> None:
    assert typed(values, {"Units": units} if units else {}, name) == pytest.approx(expected)
    # BIDS itself writes 89+.
    assert len(warnings_of(caplog)) == (0 if values[0] == "89+" else 1)
    assert all("made.tsv" in text and name in text for text in warnings_of(caplog))


@pytest.mark.parametrize(
    "values",
    [
        # 1.234 or 1234; two conventions in one column; bounds; units of two kinds
        ["1,234", "1,410", "987"],
        ["71,5", "70.5", "68", "67"],
        [">90", "<5", "12"],
        ["72 kg", "71", "70"],
        ["70", "71", "7l"],
    ],
)
def test_other_numbers_stay_text_with_a_warning(
    caplog: pytest.LogCaptureFixture, values: list[str]
) -> None:
    assert typed(values) == values
    odd = [value for value in values if not value.replace(".", "").isdigit()]
    (text,) = warnings_of(caplog)
    for fact in ("made.tsv", "x ", *map(repr, odd)):
        assert fact in text
    assert set(mistyped_numbers(pd.Series(values))) == {*odd}


@pytest.mark.parametrize("spelling", ["NA", "nan", "#N/A", ".", "?", "########", "Missing", "n.a."])
def test_spellings_of_missing(caplog: pytest.LogCaptureFixture, spelling: str) -> None:
    assert typed(["70", spelling, "71"]) == [70.0, "?", 71.0]
    assert typed(["AD", spelling, "CN"]) == ["AD", "?", "CN"]
    for text in warnings_of(caplog):
        assert "made.tsv" in text
        assert f"x ({spelling})" in text
    assert len(caplog.records) == 2


@pytest.mark.parametrize("word", ["unknown", "-", "None", "--"])
def test_words_are_missing_among_numbers_only(word: str) -> None:
    assert typed(["70", word, "71"]) == [70.0, "?", 71.0]
    assert typed(["mild", word, "severe"]) == ["mild", word, "severe"]


@pytest.mark.parametrize(
    ("levels", "values", "expected"),
    [
        ({"-4": "Missing"}, ["29", "-4", "30"], [29.0, "?", 30.0]),
        ({"999": "refused", "888": "Not applicable"}, ["12", "999", "888.0"], [12.0, "?", "?"]),
        ({"0": "lowest", "30": "highest"}, ["12", "30"], [12.0, 30.0]),
        ({"1": "male", "2": "female", "9": "unknown"}, ["1", "9", "2"], ["1", "?", "2"]),
    ],
)
def test_codes_that_the_sidecar_explains(
    levels: dict[str, str], values: list[str], expected: list[Any]
) -> None:
    assert typed(values, {"Levels": levels}) == expected


@pytest.mark.parametrize(
    ("values", "codes"),
    [
        (["29", "-4", "30", "28"], "-4"),
        (["29", "-99", "30", "28", "999"], "-99, 999"),
        (["61", "75", "82", "999.0"], "999"),
        (["0", "1", "0", "1", "9"], "9"),
        (["1450.5", "1333", "1620", "9999"], "9999"),
        (["AD", "CN", "-4"], "-4"),
        (["AD", "CN", "Unknown"], "Unknown"),
        # Real numbers: an old person, a delay of 999 days, a z-score, short scales.
        (["61", "75", "82", "99"], None),
        (["0", "850", "999", "1204"], None),
        (["1", "2", "3", "8", "35"], None),
        (["-1", "-0.3", "0.2", "1.4", "-2"], None),
        (["-1", "0", "1", "0"], None),
        (["1", "2", "3", "4", "5", "7"], None),
        (["AD", "CN", "2", "-1"], None),
    ],
)
def test_codes_that_may_be_real_are_named_and_kept(
    caplog: pytest.LogCaptureFixture, values: list[str], codes: str | None
) -> None:
    kept = typed(values)
    assert [str(value).removesuffix(".0") for value in kept] == [
        v.removesuffix(".0") for v in values
    ]
    assert [f"x ({codes})" in text for text in warnings_of(caplog)] == ([True] if codes else [])


@pytest.mark.parametrize(
    ("name", "values", "levels", "expected", "said"),
    [
        ("dx", ["Control", "control", "Control"], [], ["Control"] * 3, "control as Control"),
        ("dx", ["no  drug", "no drug", "no drug"], [], ["no drug"] * 3, "no  drug as no drug"),
        ("dx", ["ad", "CN", "AD"], ["AD", "CN"], ["AD", "CN", "AD"], "ad as AD"),
        ("sex", ["M", "m", "male", "F", "M"], [], ["M", "M", "M", "F", "M"], "male as M"),
        # These may differ on purpose.
        ("dx", ["ad", "CN", "AD"], [], ["ad", "CN", "AD"], "AD and ad"),
        ("geschlecht", ["M", "male"], [], ["M", "male"], "M and male"),
        ("site", ["site-1", "Site 01"], [], ["site-1", "Site 01"], "Site 01 and site-1"),
        ("x", ["M", "male"], ["M", "male"], ["M", "male"], None),
    ],
)
def test_levels_in_several_spellings(
    caplog: pytest.LogCaptureFixture,
    name: str,
    values: list[str],
    levels: list[str],
    expected: list[str],
    said: str | None,
) -> None:
    assert typed(values, {"Levels": levels} if levels else {}, name) == expected
    texts = warnings_of(caplog)
    assert len(texts) == (said is not None)
    for part in (said or "").split(" and "):
        assert all(part in text for text in texts)


def test_levels_keep_their_order(caplog: pytest.LogCaptureFixture) -> None:
    frame = pd.DataFrame({"group": ["b", "z", "a", "b"]})
    sidecar = {"group": {"Levels": {"b": "B", "a": "A", "c": "C"}}}
    column = infer_types(frame, sidecar, "made.tsv")["group"]
    assert column.cat.categories.tolist() == ["b", "a", "c", "z"]
    (record,) = caplog.records
    for fact in ("made.tsv", "group", ": z"):
        assert fact in record.getMessage()


def test_one_warning_for_each_kind(caplog: pytest.LogCaptureFixture) -> None:
    columns = {"a": ["1,5", "."], "b": ["2,5", "NA"], "c": ["3,5", "4"]}
    infer_types(pd.DataFrame(columns, dtype="str"), {}, "made.tsv")
    missing, numbers = warnings_of(caplog)
    assert "a (.), b (NA)" in missing
    assert "'1,5'" in numbers
    assert "'3,5'" in numbers


def test_a_category_has_fewer_levels_than_people() -> None:
    people = pd.Series([f"sub-{i}" for i in range(40)])
    ages = pd.Series([f"7{i % 39}-1" for i in range(40)])
    text = too_many_levels(ages, people)
    assert text is not None
    for fact in ("39 levels", "40 participants", "70-1"):
        assert fact in text
    assert too_many_levels(pd.Series(range(40)), people) is None
    assert too_many_levels(pd.Series([f"site {i % 20}" for i in range(40)]), people) is None
    # Repeated scans are not more people.
    twice = pd.concat([ages, ages], ignore_index=True)
    assert too_many_levels(twice, pd.concat([people, people], ignore_index=True)) == text
