"""Read numbers that are not written as BIDS wants, where they can mean one thing only."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

#: A number without leading zeros, because 01 is a label.
NUMBER = r"[+-]?(?:(?:0|[1-9]\d*)(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?"
#: What may stand around a number that was mistyped: bounds, separators, units.
LOOSE_NUMBER = (
    r"(?:[<>≤≥~]=?)?\s*[+-]?(?:0|[1-9]\d*)(?:[.,'’ ]\d{3})*(?:[.,]\d+)?\s*"
    r"(?:[%+]|y|yrs?|years?|mo|months?|kg|mg|ml|cm|mm)?"
)
_YEAR_DAYS = 365.25
#: Spelling of a unit of time → days
_DAYS = (
    dict.fromkeys(("y", "yr", "yrs", "year", "years", "yo", "y.o.", "a"), _YEAR_DAYS)
    | dict.fromkeys(("mo", "mos", "month", "months"), _YEAR_DAYS / 12)
    | dict.fromkeys(("w", "wk", "wks", "week", "weeks"), 7.0)
    | dict.fromkeys(("d", "day", "days"), 1.0)
)
#: Ages in DICOM headers, such as 072Y
_DICOM_AGE = re.compile(r"(\d{3})([YMWD])")
_WITH_UNIT = re.compile(r"(.*\d)\s*([^\d\s].*)")
_UNITS = {"%", "kg", "g", "mg", "cm", "mm", "ml", "mm3", "cm3", "mm³", "cm³"}
#: Names of columns of ages, such as age, Age_at_scan and PatientAge
_AGE = re.compile(r"(?:^|[^A-Za-z])(?:age|AGE|Age)(?![a-z])|(?<=[a-z])Age(?![a-z])")
#: Separator of thousands and decimal sign, as patterns; the first two need no further proof.
_GROUPINGS = ((r"[ '’]", r"\."), (r"[ '’]", ","), (",", r"\."), (r"\.", ","))


@dataclass(frozen=True)
class WrittenColumn:
    """What is known about a column of text beside its values."""

    name: str
    units: str = ""
    #: Whether the sidecar says that it has numbers.
    is_number: bool = False

    @property
    def is_age(self) -> bool:
        """Whether it is a column of ages."""
        return _AGE.search(self.name) is not None


def read_numbers(values: pd.Series, about: WrittenColumn) -> tuple[pd.Series, str] | None:
    """Read a column of text as numbers if all of its values can be read in the same way.

    These are decimal commas, separators of thousands, units (which are left out), times with
    units (which become the unit of the sidecar, or years), other characters for minus and space,
    quotes, and ages such as >89. Zeros in front are removed from ages, and from columns with units,
    only: elsewhere 01 is a label. ``1,234`` may be 1.234 or 1234, so a column in which all commas
    look like that is not read.

    Parameters
    ----------
    values : pandas.Series
        Texts, without missing values.
    about : WrittenColumn
        The name of the column, and what its sidecar says.

    Returns
    -------
    tuple of pandas.Series and str, or None
        The numbers, and what is unusual about their texts (empty if nothing is).

    Examples
    --------
    >>> numbers, what = read_numbers(pd.Series(["71,5", "68"]), WrittenColumn("weight"))
    >>> numbers.tolist(), what
    ([71.5, 68.0], "decimal commas such as '71,5'")
    >>> read_numbers(pd.Series(["072Y", "018M"]), WrittenColumn("age"))[0].tolist()
    [72.0, 1.5]
    >>> read_numbers(pd.Series(["1,234", "1,410"]), WrittenColumn("eTIV")) is None
    True
    """
    if values.str.fullmatch(NUMBER).all():
        return values.astype("float64"), ""
    texts = values.map(_cleaned)
    if about.is_age:
        texts = texts.str.replace(
            rf"^(?:>=?|≥)\s*({NUMBER})$|^({NUMBER})\s*\+$", r"\1\2", regex=True
        )
    for read in (_plain, _with_zeros, _decimal_commas, _grouped, _dicom_ages, _times, _with_unit):
        if found := read(texts, about):
            numbers, what = found
            # BIDS itself hides the exact age of very old participants as 89+.
            usual = about.is_age & values.str.fullmatch(rf"{NUMBER}\+")
            odd = values[(values != numbers.astype("str")) & ~values.str.fullmatch(NUMBER) & ~usual]
            return numbers, f"{what} such as '{odd.iloc[0]}'" if len(odd) else ""
    return None


_Read = Callable[[pd.Series, WrittenColumn], tuple[pd.Series, str] | None]


def _cleaned(text: str) -> str:
    """Replace the characters that look like a minus, a space or a quote."""
    text = re.sub("[\u2212\u2010-\u2013\ufe63\uff0d]", "-", text)
    text = re.sub("[\u00a0\u2007\u2009\u202f]", " ", text)
    return text.strip(" '\"’")


def _plain(texts: pd.Series, about: WrittenColumn) -> tuple[pd.Series, str] | None:
    return _floats(texts, NUMBER, "unusual characters")


def _with_zeros(texts: pd.Series, about: WrittenColumn) -> tuple[pd.Series, str] | None:
    if not (about.is_age or about.is_number):
        return None
    return _floats(
        texts.str.replace(r"^([+-]?)0+(?=\d)", r"\1", regex=True), NUMBER, "zeros in front"
    )


def _decimal_commas(texts: pd.Series, about: WrittenColumn) -> tuple[pd.Series, str] | None:
    commas = texts[texts.str.contains(",")]
    # All of them could be separators of thousands.
    if commas.empty or commas.str.fullmatch(r"[+-]?[1-9]\d{0,2},\d{3}").all():
        return None
    if texts.str.contains(".", regex=False).any():
        return None
    return _floats(texts.str.replace(",", "."), NUMBER, "decimal commas")


def _grouped(texts: pd.Series, about: WrittenColumn) -> tuple[pd.Series, str] | None:
    for separator, point in _GROUPINGS:
        groups = rf"[1-9]\d{{0,2}}(?:{separator}\d{{3}})"
        proof = (
            rf"{groups}+.*" if "[" in separator else rf"{groups}(?:{separator}\d{{3}}|{point}).*"
        )
        pattern = rf"[+-]?(?:{groups}+|0|[1-9]\d*)(?:{point}\d+)?"
        if texts.str.fullmatch(pattern).all() and texts.str.contains(rf"^[+-]?{proof}").any():
            plain = texts.str.replace(separator, "", regex=True).str.replace(",", ".")
            return _floats(plain, NUMBER, "separators of thousands")
    return None


def _dicom_ages(texts: pd.Series, about: WrittenColumn) -> tuple[pd.Series, str] | None:
    if not texts.str.fullmatch(_DICOM_AGE).all():
        return None
    parts = texts.str.extract(_DICOM_AGE)
    per_unit = _DAYS.get(about.units.strip().casefold())
    # Visits have names such as 006M too.
    if not (about.is_age or per_unit or (parts[1] == "Y").any()):
        return None
    units = parts[1].str.lower().replace("m", "mo")
    return _in_unit(parts[0].astype("float64"), units, per_unit, "ages with their unit")


def _times(texts: pd.Series, about: WrittenColumn) -> tuple[pd.Series, str] | None:
    parts = texts.str.extract(_WITH_UNIT)
    units = parts[1].str.casefold()
    if not units.isin(_DAYS).all():
        return None
    if (found := read_numbers(parts[0], about)) is None:
        return None
    return _in_unit(
        found[0], units, _DAYS.get(about.units.strip().casefold()), "times with their unit"
    )


def _in_unit(
    numbers: pd.Series, units: pd.Series, days: float | None, what: str
) -> tuple[pd.Series, str]:
    """Convert times to the unit of so many days, or to years."""
    to = "the unit of the sidecar" if days else "years"
    values = numbers * units.map(_DAYS) / (days or _YEAR_DAYS)
    # The same unit is not multiplied and divided.
    return values.where(units.map(_DAYS) != (days or _YEAR_DAYS), numbers), f"{what}, now in {to},"


def _with_unit(texts: pd.Series, about: WrittenColumn) -> tuple[pd.Series, str] | None:
    parts = texts.str.extract(_WITH_UNIT)
    units = set(parts[1].dropna().str.casefold())
    known = _UNITS | ({about.units.strip().casefold()} - {""})
    if parts[1].isna().any() or len(units) != 1 or not units <= known:
        return None
    found = read_numbers(parts[0], about)
    return found and (found[0], f"the unit {units.pop()}")


def _floats(texts: pd.Series, pattern: str, what: str) -> tuple[pd.Series, str] | None:
    return (texts.astype("float64"), what) if texts.str.fullmatch(pattern).all() else None
