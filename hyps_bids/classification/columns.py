"""Choose the columns of a classifier from a table, and refuse those that would mislead."""

from __future__ import annotations

import fnmatch
import logging
from collections.abc import Iterable, Sequence

import pandas as pd

from hyps_bids.classification.features import Schema, circular, levels_of
from hyps_bids.cohort.column_types import too_many_levels
from hyps_bids.cohort.derived import is_longitudinal, is_measure
from hyps_bids.cohort.own_columns import users_first
from hyps_bids.errors import BadData, UsageError
from hyps_bids.messages import format_count, suggest_names
from hyps_bids.settings import Settings

_LOG = logging.getLogger("hyps_bids")

_ICV = "icv_mm3"
_RESIDUAL = "icv_residual"


def require_columns(frame: pd.DataFrame, option: str, names: Sequence[str]) -> None:
    """Raise a :class:`UsageError` that lists the existing columns if one of `names` is missing."""
    missing = [name for name in names if name not in frame]
    if missing:
        raise UsageError(
            f"{option}: no column {', '.join(missing)} in the group table, participants.tsv, "
            f"sessions.tsv or phenotype/; there are: {suggest_names(missing, users_first(frame))}",
            code="column-unknown",
        )


def default_features(columns: Sequence[str]) -> list[str]:
    """List the volumes of the parts on each side, or of each side if there are no parts.

    Examples
    --------
    >>> default_features(["volume_mm3_L_whole", "volume_mm3_R_whole", "icv_mm3"])
    ['volume_mm3_L_whole', 'volume_mm3_R_whole']
    """
    sided = [c for c in columns if c.startswith(("volume_mm3_L_", "volume_mm3_R_"))]
    return [c for c in sided if not c.endswith("_whole")] or sided


def choose_columns(settings: Settings, frame: pd.DataFrame) -> Schema:
    """Decide what each column of the scans of a contrast is used for.

    Features are columns or patterns such as ``volume_mm3_*``; without any, they are
    :func:`default_features`. Columns that are empty or constant are left out, with a warning.
    """
    requested, covariates, site = settings.features, settings.covariates, settings.site
    names = _matching(frame, requested) if requested else default_features(list(frame.columns))
    _refuse_overlap(names, covariates, settings.target)
    _refuse_features(names, requested)
    names = _informative(frame, (n for n in names if n != _ICV), "feature")
    _warn_of_one_scan(frame, names)
    if not names:
        raise BadData(
            "no feature is left: all are empty or constant, or the table has no volumes",
            code="no-feature-left",
        )
    kept = _informative(frame, covariates, "covariate")
    categories = [n for n in kept if not pd.api.types.is_numeric_dtype(frame[n])]
    for name in categories:
        if why := too_many_levels(frame[name], frame["participant_id"]):
            raise UsageError(
                f"--covariates {name}: {why}, so it can hardly be a category. Correct the column "
                "if it should have numbers, or leave it out.",
                code="covariate-levels-too-many",
            )
        _warn_of_numbers_as_text(frame[name])
    volumes = tuple(n for n in names if "volume" in n)
    has_icv = _ICV in frame and frame[_ICV].nunique() > 1
    if volumes and not has_icv:
        _LOG.warning("there are no intracranial volumes: volumes are not adjusted for head size")
    tests = circular(kept)
    return Schema(
        volumes=volumes,
        ratios=tuple(n for n in names if n not in volumes),
        icv=_ICV if has_icv and volumes else None,
        numeric=tuple(n for n in kept if n not in categories),
        categories={n: levels_of(frame[n]) for n in categories},
        preserve=tuple(n for n in kept if n not in tests),
        site=site if settings.harmonize else None,
        sites=levels_of(frame[site]) if settings.harmonize and site else (),
    )


def feature_sets(schema: Schema, doubtful: Sequence[str] = ()) -> dict[str, Schema]:
    """List the sets of features to compare.

    They are the volumes, the metadata, and both; and the last two without doubtful covariates, as
    ``…_reduced``. The final model is made from ``both``, or from ``volumes`` if there are no
    covariates.
    """
    sets = {"volumes": schema.only(schema.features)}
    if not schema.covariates:
        return sets
    sets["metadata"] = schema.only(schema.covariates)
    sets["both"] = schema.only(schema.features + schema.covariates)
    others = tuple(n for n in schema.covariates if n not in doubtful)
    if doubtful and others:
        sets["metadata_reduced"] = schema.only(others)
        sets["both_reduced"] = schema.only(schema.features + others)
    return sets


def _matching(frame: pd.DataFrame, patterns: Sequence[str]) -> list[str]:
    names: list[str] = []
    for pattern in patterns:
        found = [str(c) for c in frame.columns if fnmatch.fnmatchcase(str(c), pattern)]
        if not found:
            require_columns(frame, "--features", [pattern])
        # Residuals and metadata are selected by their full name only, and are then refused.
        plain = [c for c in found if is_measure(c) and not c.startswith(_RESIDUAL)]
        names += plain if plain and pattern not in found else found
    return list(dict.fromkeys(names))


def _refuse_features(names: Sequence[str], requested: Sequence[str]) -> None:
    for name in names:
        if name.startswith(_RESIDUAL):
            raise UsageError(
                f"--features {name}: it was fitted on all scans, test folds included; name the "
                "volumes instead, which are adjusted for ICV within the training folds",
                code="feature-leaks",
            )
    if _ICV in requested:
        raise UsageError(
            f"--features {_ICV}: volumes are adjusted for it anyway; name it in --covariates to "
            "classify with head size itself",
            code="feature-is-icv",
        )
    for name in names:
        if name != _ICV and not is_measure(name):
            raise UsageError(
                f"--features {name}: it is not a measure that HyPS-BIDS makes; name it in "
                "--covariates, where it is shown as metadata, and results with and without it",
                code="feature-is-metadata",
            )


def _refuse_overlap(features: Sequence[str], covariates: Sequence[str], target: str | None) -> None:
    if target in (*features, *covariates):
        raise UsageError(
            f"{target} is the --target: it cannot predict itself", code="target-as-predictor"
        )
    both = [name for name in covariates if name in features]
    if both:
        raise UsageError(
            f"{both[0]} is a feature and a covariate: name it once", code="feature-and-covariate"
        )


def _informative(frame: pd.DataFrame, names: Iterable[str], kind: str) -> list[str]:
    """Take the columns that have more than one value, each once."""
    kept = []
    for name in dict.fromkeys(names):
        different = frame[name].nunique()
        if different > 1:
            kept.append(name)
        else:
            state = "constant" if different else "empty"
            _LOG.warning("%s %s is %s among these subjects and is left out", kind, name, state)
    return kept


def _warn_of_one_scan(frame: pd.DataFrame, names: Iterable[str]) -> None:
    """Warn of features that participants with a single scan lack, who may differ from others."""
    lacking = {name: int(frame[name].isna().sum()) for name in names if is_longitudinal(name)}
    if any(lacking.values()):
        _LOG.warning(
            "Longitudinal features are missing in up to %s of %d, whose participants have no "
            "longitudinal results; they are imputed. Whoever was scanned several times may differ "
            "from the others, so choose participants with results if the groups differ in this.",
            *(format_count(max(lacking.values()), "scan"), len(frame)),
        )


def _warn_of_numbers_as_text(column: pd.Series) -> None:
    """Warn if a few odd values turn a column of numbers into text, and each number into a level."""
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
