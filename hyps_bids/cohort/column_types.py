"""Turn columns that were read as text into numbers and categories."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

import pandas as pd

from hyps_bids.cohort.level_spellings import join_spellings
from hyps_bids.cohort.missing_values import doubtful_numbers, doubtful_words, missing_values
from hyps_bids.cohort.written_numbers import LOOSE_NUMBER, NUMBER, WrittenColumn, read_numbers
from hyps_bids.messages import join_names
from hyps_bids.outputs.columns import ColumnDescription

_LOG = logging.getLogger("hyps_bids")
#: Number of levels up to which a column can be a category whatever the number of participants.
_FEW_LEVELS = 4
#: Finding → what the warning says about the columns and values that follow
_TEXTS = {
    "missing": "these values were taken as missing, which BIDS spells n/a",
    "numbers": "these columns are not written as BIDS wants and were read as numbers",
    "codes": "these values look like codes of missing values, but are used as they are; write n/a, "
    "or list them among the Levels in the JSON sidecar with the meaning 'missing'",
    "joined": "these spellings were taken for one level",
    "alike": "these levels may be the same, but count as different ones; please write them alike",
}


def mistyped_numbers(column: pd.Series) -> list[str]:
    """List the values of a column of text that are no numbers, if most of its values are.

    One mistyped value turns such a column into text, and each of its numbers into a category.
    Values such as ``>90`` and ``1,234`` count as numbers that are mistyped.

    Examples
    --------
    >>> mistyped_numbers(pd.Series(["70", "71,5 ?", "68", None]))
    ['71,5 ?']
    >>> mistyped_numbers(pd.Series([">90", "<5", "12"]))
    ['<5', '>90']
    >>> mistyped_numbers(pd.Series(["F", "M", "1"]))
    []
    >>> mistyped_numbers(pd.Series(["01", "12", "13"]))
    []
    """
    if pd.api.types.is_numeric_dtype(column) or isinstance(column.dtype, pd.CategoricalDtype):
        return []
    values = column.dropna().astype("str")
    if values.str.fullmatch(r"\d+").all() and values.str.len().nunique() == 1:
        # Zeros in front make labels such as 01 and 10 equally long.
        return []
    is_number = values.str.fullmatch(NUMBER)
    is_near = is_number | values.str.fullmatch(LOOSE_NUMBER)
    return sorted(set(values[~is_number])) if is_near.sum() > len(values) / 2 else []


def too_many_levels(column: pd.Series, participants: pd.Series) -> str | None:
    """Say why a column of text can hardly be a category: it has nearly as many levels as people.

    Such columns are numbers that could not be read, dates, comments or labels of participants; as
    a category, each of their values would have a coefficient of its own.

    Parameters
    ----------
    column, participants : pandas.Series
        The column and participant_id of the same scans.

    Returns
    -------
    str or None
        For example ``it has 39 levels among 40 participants, such as '071-5'``, or None for
        numbers, and for categories with four or fewer levels or two participants per level.

    Examples
    --------
    >>> people = pd.Series([f"sub-{i}" for i in range(6)])
    >>> too_many_levels(pd.Series(["7o", "71 5", "72;5", "73;5", "7I", "7o"]), people)
    "it has 5 levels among 6 participants, such as '7o', '71 5' and '72;5'"
    >>> too_many_levels(pd.Series(["A", "B", "C", "A", "B", "C"]), people) is None
    True
    """
    if pd.api.types.is_numeric_dtype(column):
        return None
    known = column.dropna().astype("str")
    levels, people = known.drop_duplicates().tolist(), participants[column.notna()].nunique()
    if len(levels) <= max(_FEW_LEVELS, people / 2):
        return None
    some = "', '".join(levels[:2])
    return (
        f"it has {len(levels)} levels among {people} participants, such as '{some}' and "
        f"'{levels[2]}'"
    )


def infer_types(
    frame: pd.DataFrame, columns: Mapping[str, ColumnDescription], source: str
) -> pd.DataFrame:
    """Turn columns of text into floats and categories where their values or sidecar say so.

    ``Levels`` in the sidecar make a column categorical, in their order, with unlisted values last.
    A column with the ``Format`` ``string``, and acq_time, stay text. Other spellings of n/a, such
    as NA, are missing unless they are levels. Numbers that are not written as BIDS wants, missing
    values that are not, and levels that are written in several ways are understood where they can
    mean one thing only. Each kind of finding gives one warning, which names the `source`.

    Examples
    --------
    >>> frame = pd.DataFrame({"age": ["70", "89+", "NA"], "sex": ["2", "1", "2.0"],
    ...     "site": ["01", "02", None]})
    >>> sex = {"Levels": {"1": "male", "2": "female"}}
    >>> infer_types(frame, {"sex": sex}, "x.tsv").to_dict("list")
    {'age': [70.0, 89.0, nan], 'sex': ['2', '1', '2'], 'site': ['01', '02', nan]}
    """
    findings = _Findings(source)
    result = {
        name: _infer_type(column.astype("str"), columns.get(name, {}), str(name), findings)
        for name, column in frame.items()
    }
    findings.warn()
    return pd.DataFrame(result, index=frame.index)


@dataclass
class _Findings:
    """What was noticed in the columns of one source."""

    source: str
    noted: dict[str, list[str]] = field(default_factory=lambda: {kind: [] for kind in _TEXTS})

    def note(self, kind: str, name: str, values: list[str]) -> None:
        """Remember values of a column, if there are any."""
        if values:
            self.noted[kind].append(f"{name} ({join_names(values)})")

    def warn(self) -> None:
        """Log one warning for each kind of finding."""
        for kind, columns in self.noted.items():
            if columns:
                _LOG.warning("%s: %s: %s", self.source, _TEXTS[kind], join_names(columns))


def _infer_type(
    values: pd.Series, description: ColumnDescription, name: str, findings: _Findings
) -> pd.Series:
    missing = missing_values(values.dropna().unique().tolist(), description)
    findings.note("missing", name, sorted(missing))
    listed = [level for level in _listed_levels(description) if level not in missing]
    values = values.mask(values.isin(missing)) if missing else values
    if listed:
        # pandas writes the integers of a column with missing values as 1.0.
        plain = values.str.removesuffix(".0")
        values = values.mask(plain.isin(listed), plain)
    known = values.dropna().drop_duplicates()
    unlisted = set(known) - set(listed)
    # A numeric scale may list only its special values, such as 999 for "refused".
    if listed and not (unlisted and known.str.fullmatch(NUMBER).all()):
        return _categories(values, name, listed, findings)
    format_ = description.get("Format")
    if format_ == "string" or name == "acq_time" or known.empty:
        return values
    units = description.get("Units")
    about = WrittenColumn(
        name, str(units or ""), bool(units) or format_ in ("number", "integer", "float")
    )
    if found := read_numbers(known, about):
        numbers, unusual = found
        findings.note("numbers", name, [unusual] if unusual else [])
        result = values.map(dict(zip(known, numbers, strict=True))).astype("float64")
        findings.note("codes", name, [f"{code:g}" for code in doubtful_numbers(result)])
        return result
    if wrong := mistyped_numbers(values):
        _LOG.warning(
            "%s: %s is taken as text, because these of its values are not numbers: %s; correct "
            "them, or write n/a",
            findings.source,
            name,
            join_names(map(repr, wrong)),
        )
        return values
    findings.note("codes", name, doubtful_words(known.tolist()))
    return _joined(values, name, [], findings)


def _categories(values: pd.Series, name: str, listed: list[str], findings: _Findings) -> pd.Series:
    values = _joined(values, name, listed, findings)
    unlisted = sorted(set(values.dropna()) - set(listed))
    if unlisted:
        _LOG.warning(
            "%s: %s has values that the JSON sidecar does not list among its Levels: %s; they were "
            "added as further levels, so please check their spelling",
            findings.source,
            name,
            join_names(unlisted),
        )
    return values.astype(pd.CategoricalDtype([*listed, *unlisted]))


def _joined(values: pd.Series, name: str, listed: list[str], findings: _Findings) -> pd.Series:
    values, joined, alike = join_spellings(values, name, listed)
    findings.note("joined", name, [f"{level} as {taken}" for level, taken in joined.items()])
    findings.note("alike", name, [" and ".join(group) for group in alike])
    return values


def _listed_levels(description: ColumnDescription) -> list[str]:
    levels = description.get("Levels")
    return [str(level) for level in levels] if isinstance(levels, dict | list) else []
