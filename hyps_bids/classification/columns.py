"""Choose the columns of a classifier from a table, and refuse what would mislead."""

from __future__ import annotations

import fnmatch
import logging
from collections.abc import Sequence

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from hyps_bids.classification.features import Schema, circular, levels_of
from hyps_bids.errors import BadData, UsageError
from hyps_bids.messages import similar

__all__ = ["choose_columns", "default_features", "feature_sets", "needed", "warn_of_giveaways"]

_LOG = logging.getLogger("hyps_bids")

ICV = "icv_mm3"
_RESIDUAL = "icv_residual"
#: a covariate that tells classes apart as well as this is suspicious
_TOO_GOOD = 0.98


def needed(frame: pd.DataFrame, option: str, names: Sequence[str]) -> None:
    """Check that columns exist.

    Raises
    ------
    UsageError
        If one does not; the message lists those that do.
    """
    missing = [name for name in names if name not in frame]
    if missing:
        raise UsageError(
            f"{option}: no column {', '.join(missing)} in the group table, participants.tsv, "
            f"sessions.tsv or phenotype/; there are: {similar(missing, list(frame.columns))}"
        )


def default_features(columns: Sequence[str]) -> list[str]:
    """Take the volumes of the parts of each side, or of each side if there are no parts.

    Examples
    --------
    >>> default_features(["volume_mm3_L_anterior", "volume_mm3_L_whole", "volume_mm3_R_anterior"])
    ['volume_mm3_L_anterior', 'volume_mm3_R_anterior']
    >>> default_features(["volume_mm3_L_whole", "volume_mm3_R_whole", "icv_mm3"])
    ['volume_mm3_L_whole', 'volume_mm3_R_whole']
    """
    sided = [c for c in columns if c.startswith(("volume_mm3_L_", "volume_mm3_R_"))]
    return [c for c in sided if not c.endswith("_whole")] or sided


def choose_columns(
    frame: pd.DataFrame,
    *,
    features: Sequence[str] = (),
    covariates: Sequence[str] = (),
    site: str | None = None,
    harmonize: bool = False,
    target: str | None = None,
) -> Schema:
    """Decide what each column is to a classifier.

    Parameters
    ----------
    frame : DataFrame
        The scans of a contrast.
    features : sequence of str
        Columns or patterns such as ``volume_mm3_*``; :func:`default_features` if empty.
    covariates : sequence of str
        Columns of participants, sessions or phenotypes.
    site : str or None
        Column of the site.
    harmonize : bool
        Take the site out of the features.
    target : str or None
        What is predicted; not a covariate.

    Returns
    -------
    Schema
        Columns that are empty or constant are left out, with a warning.

    Raises
    ------
    UsageError
        If a column does not exist, or may not be used.
    BadData
        If no feature is left.
    """
    names = _matching(frame, features) if features else default_features(list(frame.columns))
    needed(frame, "--covariates", covariates)
    if site is not None:
        needed(frame, "--site", [site])
    leaking = [name for name in names if name.startswith(_RESIDUAL)]
    if leaking:
        raise UsageError(
            f"--features {leaking[0]}: fitted on all scans, test folds included; name the "
            "volumes instead, classifiers adjust them for ICV within the training folds"
        )
    tests = circular(names)
    if tests:
        raise UsageError(
            f"--features {tests[0]}: diagnoses are made from such tests; name it in --covariates, "
            "where results are shown with and without it"
        )
    if ICV in features:
        raise UsageError(
            f"--features {ICV}: volumes are adjusted for it anyway; to classify with head size "
            "itself name it in --covariates"
        )
    for name in (*names, *covariates):
        if name == target:
            raise UsageError(f"{name} is the --target: it cannot predict itself")
    text = [name for name in names if not pd.api.types.is_numeric_dtype(frame[name])]
    if text:
        raise UsageError(f"--features {text[0]}: not numbers; levels go to --covariates")
    both = [name for name in covariates if name in names]
    if both:
        raise UsageError(f"{both[0]} is a feature and a covariate: name it once")
    names = _useful(frame, dict.fromkeys(n for n in names if n != ICV), "feature")
    if not names:
        raise BadData(
            "no feature is left: all are empty or constant, or there are no volumes in the table"
        )
    kept = _useful(frame, dict.fromkeys(covariates), "covariate")
    numeric = [n for n in kept if pd.api.types.is_numeric_dtype(frame[n])]
    for name in kept:
        if name not in numeric:
            _warn_of_numbers_as_text(frame[name])
    volumes = [n for n in names if "volume" in n]
    has_icv = ICV in frame and frame[ICV].nunique() > 1
    if volumes and not has_icv:
        _LOG.warning("no intracranial volumes: volumes are not adjusted for head size")
    tests = circular(kept)
    return Schema(
        volumes=tuple(volumes),
        ratios=tuple(n for n in names if n not in volumes),
        icv=ICV if has_icv and volumes else None,
        numeric=tuple(numeric),
        categories={n: levels_of(frame[n]) for n in kept if n not in numeric},
        preserve=tuple(n for n in kept if n not in tests),
        site=site if harmonize else None,
        sites=levels_of(frame[site]) if harmonize and site else (),
    )


def feature_sets(schema: Schema) -> dict[str, Schema]:
    """List what to compare: volumes only, metadata only, both; and both without circular tests.

    The last but for the ``…_noncircular`` ones is the full set, of which the final model is made.

    Examples
    --------
    >>> list(feature_sets(Schema(volumes=("volume",), numeric=("age", "MMSE"))))
    ['volumes', 'metadata', 'both', 'metadata_noncircular', 'both_noncircular']
    """
    sets = {"volumes": schema.only(schema.features)}
    if not schema.covariates:
        return sets
    sets["metadata"] = schema.only(schema.covariates)
    sets["both"] = schema.only(schema.features + schema.covariates)
    tests = circular(schema.covariates)
    fair = tuple(n for n in schema.covariates if n not in tests)
    if tests and fair:
        sets["metadata_noncircular"] = schema.only(fair)
        sets["both_noncircular"] = schema.only(schema.features + fair)
    return sets


def warn_of_giveaways(frame: pd.DataFrame, schema: Schema, label: pd.Series) -> list[str]:
    """Warn of covariates from which the diagnosis was made, or that look like it.

    Parameters
    ----------
    frame : DataFrame
        Scans.
    schema : Schema
        With the covariates.
    label : Series
        Classes as numbers, by scan.

    Returns
    -------
    list of str
        The warnings, which were logged too.
    """
    warnings = []
    tests = circular(schema.covariates)
    if tests:
        warnings.append(
            f"circular: {', '.join(tests)} may be what the diagnosis was made from, and then "
            "predicts it whatever the brain looks like; results without are shown beside"
        )
    for name in schema.features + schema.covariates:
        if name not in tests and _tells_apart(frame[name], label):
            warnings.append(
                f"suspicious: {name} alone tells the classes apart almost perfectly; is it made "
                "from the diagnosis, or missing for one class?"
            )
    for text in warnings:
        _LOG.warning(text)
    return warnings


def _matching(frame: pd.DataFrame, patterns: Sequence[str]) -> list[str]:
    names: list[str] = []
    for pattern in patterns:
        found = [str(c) for c in frame.columns if fnmatch.fnmatchcase(str(c), pattern)]
        if not found:
            needed(frame, "--features", [pattern])
        # a pattern never means the leaking columns, only their full name does
        plain = [c for c in found if not c.startswith(_RESIDUAL)]
        names += found if pattern in found else plain
    return list(dict.fromkeys(names))


def _useful(frame: pd.DataFrame, names: Sequence[str] | dict[str, None], kind: str) -> list[str]:
    kept = []
    for name in names:
        different = frame[name].nunique()
        if different > 1:
            kept.append(name)
        else:
            state = "constant" if different else "empty"
            _LOG.warning("%s %s is %s among these subjects: left out", kind, name, state)
    return kept


def _warn_of_numbers_as_text(column: pd.Series) -> None:
    """One odd value makes text of a column of numbers, and then each number a level."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        return
    values = column.dropna()
    odd = values[pd.to_numeric(values, errors="coerce").isna()]
    if len(odd) * 2 < len(values):
        _LOG.warning(
            "covariate %s is taken as levels, not as numbers, because of %d values such as '%s'",
            column.name,
            len(odd),
            odd.iloc[0] if len(odd) else values.iloc[0],
        )


def _tells_apart(column: pd.Series, label: pd.Series) -> bool:
    known = column.notna()
    if label[known].nunique() < 2 or known.sum() < 20:
        return False
    values = label[known].astype(int).to_numpy()
    if not pd.api.types.is_numeric_dtype(column):
        table = pd.crosstab(column[known].astype(str), values)
        return bool(table.max(axis=1).sum() >= _TOO_GOOD * len(values) and len(table) < 20)
    numbers = column[known].to_numpy(dtype=float)
    for k in np.unique(values):
        area = roc_auc_score(values == k, numbers)
        if max(area, 1 - area) < _TOO_GOOD:
            return False
    return True
