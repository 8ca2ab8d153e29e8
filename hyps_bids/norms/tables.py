"""The table of z-scores and centiles, one row per scan and measure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from hyps_bids.cohort.derived import split_column
from hyps_bids.norms.measures import flagged_rows, is_change, scored_rows
from hyps_bids.norms.norm import Norm
from hyps_bids.norms.sample import NO_ICV, NormSample, NormScores
from hyps_bids.norms.words import ICV_FLAGGED, REVIEW, REVIEW_CHANGE, WAS_CONTROL, in_words
from hyps_bids.outputs.columns import CONTRAST_COLUMN, KEYS, NORM_COLUMNS

#: Column → the rows of the controls themselves, and their scores from folds that did not see them.
OwnScores = dict[str, tuple[np.ndarray, NormScores]]
_SCORES = ("z", "centile", "centile_low", "centile_high")


@dataclass(frozen=True)
class Scored:
    """Scans to score: their rows of the wide table, and the people in them.

    Attributes
    ----------
    frame, people : pandas.DataFrame
        Wide table, and the table of :class:`hyps_bids.norms.people.People`, with the same index.
    invalid : pandas.Series
        Code of the reason why no norm is valid for a scan, or an empty text.
    icv_flagged : pandas.Series of bool
        Whether the intracranial volume is missing because it is flagged.
    """

    frame: pd.DataFrame
    people: pd.DataFrame
    invalid: pd.Series
    icv_flagged: pd.Series


def make_sample(people: pd.DataFrame) -> NormSample:
    """Turn a table of people into arrays."""
    texts = (people[name].to_numpy(dtype=object) for name in ("participant_id", "sex", "site"))
    participant, sex, site = texts
    age, icv = (people[name].to_numpy(dtype=float) for name in ("age", "icv"))
    return NormSample(participant=participant, age=age, sex=sex, icv=icv, site=site)


def score_table(
    scored: Scored,
    norms: Mapping[str, Norm],
    name: str,
    own: OwnScores,
    known: frozenset[str] = frozenset(),
) -> pd.DataFrame:
    """Score scans by norms.

    Parameters
    ----------
    scored : Scored
        The scans.
    norms : mapping of str to Norm
        Column of the wide table → its model.
    name : str
        Name of the norms.
    own : dict of str to (ndarray of bool, NormScores)
        Scores of the controls themselves.
    known : set of str
        Labels that participants among the controls of stored norms have.

    Returns
    -------
    pandas.DataFrame
        The keys of scans and the columns :data:`~hyps_bids.outputs.columns.NORM_COLUMNS`, with the
        measures of each scan together.
    """
    tables = [_of_measure(scored, m, norm, name, own.get(m), known) for m, norm in norms.items()]
    columns = [*KEYS, *CONTRAST_COLUMN, *NORM_COLUMNS]
    if not tables:
        return pd.DataFrame(columns=columns)
    table = pd.concat(tables).sort_index(kind="stable")
    return table[columns].reset_index(drop=True)


def _of_measure(
    scored: Scored,
    measure: str,
    norm: Norm,
    name: str,
    own: tuple[np.ndarray, NormScores] | None,
    known: frozenset[str],
) -> pd.DataFrame:
    rows = scored_rows(scored.frame, measure) if measure in scored.frame else None
    take = np.ones(len(scored.frame), dtype=bool) if rows is None else rows
    frame, people = scored.frame[take], scored.people[take]
    values = np.full(len(frame), np.nan) if rows is None else frame[measure].to_numpy(dtype=float)
    scores = norm.score(make_sample(people), values)
    control = np.zeros(len(frame), dtype=bool)
    if own is not None:
        control = own[0][take]
        scores = _with_own(scores, control, own[1])
    invalid = scored.invalid[take].to_numpy(dtype=object)
    flagged = (scores.reason == NO_ICV) & scored.icv_flagged[take].to_numpy()
    reason = np.where(invalid != "", invalid, np.where(flagged, ICV_FLAGGED, scores.reason))
    columns = {each: np.where(reason == "", getattr(scores, each), np.nan) for each in _SCORES}
    code = REVIEW_CHANGE if is_change(measure) else REVIEW
    review = np.where(flagged_rows(scored.frame, measure)[take], code, "")
    _, side, part = split_column(measure)
    keys = frame[[*KEYS, *(c for c in CONTRAST_COLUMN if c in frame)]]
    return keys.assign(
        norms=name,
        measure=measure,
        side=side or None,
        part=part or None,
        value=values,
        age=people["age"],
        sex=people["sex"].replace("", None),
        icv_mm3=people["icv"],
        site=people["site"].replace("", None),
        control=np.where(control, "yes", "no"),
        **columns,
        reason=[in_words(code) for code in reason],
        remarks=list(_remarks(review, people, scores, reason, control, known)),
    )


def _with_own(scores: NormScores, control: np.ndarray, own: NormScores) -> NormScores:
    """Replace the scores of controls by those of models that did not see them."""
    changed = {}
    for each in (*_SCORES, "reason", "remark"):
        values = getattr(scores, each).copy()
        values[control] = getattr(own, each)
        changed[each] = values
    return replace(scores, **changed)


def _remarks(
    review: np.ndarray,
    people: pd.DataFrame,
    scores: NormScores,
    reason: np.ndarray,
    control: np.ndarray,
    known: frozenset[str],
) -> Iterator[str | None]:
    """Yield what to know about the centile of each scan, in words."""
    was_control = people["participant_id"].isin(known).to_numpy() & ~control
    before = np.where(was_control, WAS_CONTROL, "")
    doubts = people["doubt"].fillna("").to_numpy(dtype=object)
    for row, remark in enumerate(scores.remark):
        codes = (remark, review[row], before[row])
        texts = [in_words(",".join(codes)), doubts[row]]
        yield None if reason[row] else "; ".join(filter(None, texts)) or None
