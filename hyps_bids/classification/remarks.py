"""What to know about single subjects before their predictions are relied on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from sklearn.pipeline import Pipeline

from hyps_bids.classification.features import Schema, text_levels
from hyps_bids.messages import format_count, join_names

#: Kinds of remarks whose subjects are counted in one warning.
NOT_HARMONIZED, UNKNOWN, IMPUTED = "not harmonized", "unknown levels", "imputed"
_COUNTED = (NOT_HARMONIZED, UNKNOWN, IMPUTED)


class Remark(NamedTuple):
    """A remark on a subject: its kind, what it is about, and its text in the table."""

    subject: str
    kind: str
    about: str
    text: str


def find_remarks(model: Pipeline, schema: Schema, frame: pd.DataFrame) -> Iterator[Remark]:
    """Yield what the preparation of a fitted classifier does to the scans of new subjects.

    These are missing values and unknown levels, which are imputed, and sites for which no
    harmonization was fitted, so that the volumes stay as they are. A subject with several scans
    may have the same remark several times.

    Parameters
    ----------
    model : sklearn.pipeline.Pipeline
        The fitted classifier, whose first step ``prepare`` may have a step ``harmonize``.
    schema : Schema
        Its columns.
    frame : pandas.DataFrame
        The scans.
    """
    owner = frame["participant_id"].astype(str).to_numpy()
    matrix = schema.matrix(frame)
    for name in [*schema.used, *([schema.icv] if schema.icv else [])]:
        lost = np.isnan(matrix[:, schema.columns.index(name)])
        levels = text_levels(frame[name])
        for subject, level in zip(owner[lost], levels[lost], strict=True):
            if name in (schema.categories or {}) and pd.notna(level):
                yield Remark(
                    subject, UNKNOWN, f"{name} {level}", f"imputed: unknown {name} {level}"
                )
            else:
                yield Remark(subject, IMPUTED, name, f"{name} imputed")
    fitted = _harmonized_sites(model, schema)
    if schema.site is None or fitted is None:
        return
    for subject, level in zip(owner, text_levels(frame[schema.site]), strict=True):
        if why := _why_not_harmonized(level, schema, fitted):
            yield Remark(subject, NOT_HARMONIZED, why, f"not harmonized: {why}")


def count_remarks(remarks: Iterable[Remark], subjects: int) -> list[str]:
    """Say for each kind of remark how many subjects have it, and what it is about.

    Examples
    --------
    >>> count_remarks([Remark("sub-1", NOT_HARMONIZED, "no site", "not harmonized: no site")], 12)
    ['1 of 12 subjects not harmonized (no site)']
    """
    found: dict[str, dict[str, set[str]]] = {kind: {} for kind in _COUNTED}
    for remark in remarks:
        found[remark.kind].setdefault(remark.about, set()).add(remark.subject)
    return [
        f"{len(set().union(*about.values()))} of {format_count(subjects, 'subject')} {kind} "
        f"({join_names(about)})"
        for kind, about in found.items()
        if about
    ]


def join_remarks(
    ids: Sequence[str],
    remarks: Iterable[Remark],
    outside: Mapping[str, pd.DataFrame],
    trained: Iterable[str],
) -> list[str | None]:
    """Join all remarks on each subject; `outside` has, by column, the values far outside."""
    texts: dict[str, set[str]] = {i: set() for i in ids}
    for remark in remarks:
        texts[remark.subject].add(remark.text)
    for name, rows in outside.items():
        for i, value in rows.itertuples(index=False):
            texts[i].add(f"{name} {value:g} is far outside the range of training")
    for i in trained:
        texts[i].add("a participant of this name was in the training set")
    return ["; ".join(sorted(texts[i])) or None for i in ids]


def _harmonized_sites(model: Pipeline, schema: Schema) -> set[str] | None:
    """Return the sites for which a harmonization was fitted; None if there is no such step."""
    steps = model.named_steps["prepare"].named_steps
    if "harmonize" not in steps:
        return None
    return {schema.sites[int(k)] for k in steps["harmonize"].sites_}


def _why_not_harmonized(level: str | None, schema: Schema, fitted: set[str]) -> str:
    if pd.isna(level):
        return f"no {schema.site}"
    if level in fitted:
        return ""
    if level not in schema.sites:
        return f"unknown {schema.site} {level}"
    if not fitted:
        return f"fewer than two levels of {schema.site} had enough subjects in training"
    return f"too few subjects of {schema.site} {level} in training"
