"""Volumes, quality and metadata of all scans in tables ready for analysis."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from hyps_bids.bids.index import find_scans
from hyps_bids.cohort import longitudinal, statistics
from hyps_bids.cohort.derived import Adjustment, derive, describe, icv_residuals, volumes
from hyps_bids.cohort.gather import Gathered, gather
from hyps_bids.cohort.metadata import Metadata, join, read_metadata, typed
from hyps_bids.errors import MissingInput, UsageError
from hyps_bids.messages import counted, listed, similar
from hyps_bids.outputs.columns import table_columns
from hyps_bids.outputs.names import group_path
from hyps_bids.outputs.reading import WIDE, read_wide
from hyps_bids.outputs.scan import Scan
from hyps_bids.outputs.writing import write_json, write_table
from hyps_bids.settings import Settings

__all__ = ["write_group_tables"]

_LOG = logging.getLogger("hyps_bids")

_LONGITUDINAL, _MODELS = "desc-longitudinal_morph", "desc-models_morph"
_MADE_BY = {
    "software_version": "Version of HyPS-BIDS that made the volumes.",
    "adapter": "Adapter that made the volumes.",
    "models": "All weights with the first digits of their SHA-256, and the bias field correction. "
    "Volumes are comparable where software_version and models are the same.",
}
_STATUS = "done, failed (reason says why), or missing: there are no outputs."
#: entities that the keys have already
_KEY_ENTITIES = ("sub", "ses")
#: subjects below which the adjustment for ICV is doubtful
_FEW = 20
#: what columns of the dataset get in front if their name is taken
_RENAMED = r"^(participants|sessions|phenotype)_"


def write_group_tables(settings: Settings) -> pd.DataFrame:
    """Write the tables of all scans that were asked for into OUT_DIR.

    Long tables of volumes and of quality; the wide table, one row per scan, with derived measures
    and what the dataset says of participants and sessions; the change over time of subjects
    scanned at several times; and the models of ``settings.model``.

    Parameters
    ----------
    settings : Settings
        Labels and filters select scans; ``controls`` is whom the adjustment for intracranial
        volume is fitted on; columns named in other options are looked for in phenotype/ too.

    Returns
    -------
    pandas.DataFrame
        The wide table, as :func:`read_wide` reads it.

    Raises
    ------
    MissingInput
        If the participant level has left nothing to gather.
    UsageError
        If ``controls`` or a model names what does not exist.
    HypsError
        What :func:`hyps_bids.bids.index.find_scans` raises.
    """
    output = settings.output_dir
    scans = find_scans(settings, need_content=False)
    gathered = gather(output, _selector(settings, scans))
    if gathered.qc.empty:
        raise MissingInput(f"{output}: no scan's tables; run the participant level first")
    qc = _with_missing(gathered.qc, scans)
    for kind, table in (("morph", gathered.morph), ("qc", qc)):
        _write(output, kind, table, _described(table, table_columns(kind) | {"status": _STATUS}))
    _warn_of_mixture(gathered.provenance)
    metadata = read_metadata(
        settings.bids_dir,
        sorted({f"sub-{scan.subject}" for scan in scans} | {*qc["participant_id"]}),
        _wanted(settings),
    )
    wide, columns = _wide(gathered, qc, metadata, settings)
    # a formula may be wrong: models of an older table must not stay beside this one
    _write_or_remove(output, _MODELS, pd.DataFrame(), statistics.COLUMNS)
    _write(output, WIDE, wide, columns)
    done = wide[wide["status"] == "done"]
    change = longitudinal.annual_change(done)
    _write_or_remove(output, _LONGITUDINAL, change, longitudinal.COLUMNS)
    counts = qc["status"].value_counts().to_dict()
    _LOG.warning("group tables of %s: %s", counted(len(qc), "scan"), counts)
    # last, because a formula may be wrong: the tables are there all the same
    if settings.model:
        reference = _controls(settings.controls) if settings.controls else None
        models = statistics.fit_models(wide, settings.model, reference)
        _write_or_remove(output, _MODELS, models, statistics.COLUMNS)
    return read_wide(output)


def _selector(settings: Settings, scans: Sequence[Scan]) -> Callable[[Scan], bool]:
    """Say of which scans the outputs are wanted; without a selection, also of images now gone."""
    if settings.bids_filter_file:
        stems = {scan.stem for scan in scans}
        return lambda scan: scan.stem in stems
    asked, excluded = set(settings.participant_label), set(settings.exclude_participant_label)
    sessions = set(settings.session_label)
    return lambda scan: (
        (not asked or scan.subject in asked)
        and scan.subject not in excluded
        and (not sessions or scan.session in sessions)
    )


def _with_missing(qc: pd.DataFrame, scans: Iterable[Scan]) -> pd.DataFrame:
    """Add the scans that have no outputs."""
    known = set(qc["scan"])
    rows = [
        {
            "participant_id": f"sub-{scan.subject}",
            "session_id": f"ses-{scan.session}" if scan.session else None,
            "scan": scan.stem,
            "status": "missing",
            "reason": "no outputs yet",
        }
        for scan in scans
        if scan.stem not in known
    ]
    failed = qc.loc[qc["status"] != "done", "scan"]
    if len(failed):
        _LOG.warning("%s failed: %s", counted(len(failed), "scan"), listed(failed))
    if not rows:
        return qc
    missing = pd.DataFrame(rows, columns=qc.columns)
    _LOG.warning("no outputs yet of %s: %s", counted(len(rows), "scan"), listed(missing["scan"]))
    return pd.concat([qc, missing]).sort_values("scan", kind="stable", ignore_index=True)


def _wide(
    gathered: Gathered, qc: pd.DataFrame, metadata: Metadata, settings: Settings
) -> tuple[pd.DataFrame, dict[str, dict[str, Any]]]:
    """Build the wide table and its sidecar."""
    base = qc[["participant_id", "session_id", "scan"]]
    base = pd.concat([base, _entities(base["scan"])], axis=1)
    entities = list(base.columns[3:])
    base = pd.concat([base, qc[["status", "reason", "flags", "remarks"]]], axis=1)
    _warn_of_withdrawn(base["participant_id"], settings.bids_dir)
    base = _compare_participants(base, metadata, settings)
    measured = volumes(gathered.morph)
    measured = pd.concat([measured, derive(measured)], axis=1)
    base = base.merge(gathered.provenance, on="scan", how="left")
    base = base.merge(measured, left_on="scan", right_index=True, how="left")
    joined = join(base, metadata)
    added = joined[joined.columns.difference(base.columns, sort=False)]
    raw = {name: metadata.columns.get(re.sub(_RENAMED, "", name), {}) for name in added}
    added = typed(added, raw, str(settings.bids_dir))
    reference, words = _reference(pd.concat([base, added], axis=1), settings.controls)
    residuals, adjustments = icv_residuals(base, reference, words)
    _warn_of_few(adjustments, words)
    columns: dict[str, dict[str, Any]] = {
        name: {"Description": text}
        for name, text in (table_columns("qc") | {"status": _STATUS} | _MADE_BY).items()
    }
    columns |= {name: {"Description": f"Entity {name} of the scan's name."} for name in entities}
    icv = table_columns("morph")["icv_mm3"]
    columns["icv_mm3"] = {"Description": icv, "Units": "mm3"}
    columns |= _describe_measures([*measured.columns, *residuals.columns], adjustments)
    columns |= {name: _describe_added(added[name], raw[name]) for name in added}
    wide = pd.concat([base, residuals, added], axis=1)
    numbers = set(wide.select_dtypes("number").columns)
    return wide, {
        name: columns[name] | {"Format": "number" if name in numbers else "string"} for name in wide
    }


def _warn_of_few(adjustments: Mapping[str, Adjustment], words: str) -> None:
    fewest = min((adjustment.n for adjustment in adjustments.values()), default=0)
    if not adjustments:
        _LOG.warning("no volumes adjusted for ICV: too few subjects, or all of one ICV (%s)", words)
    elif fewest < _FEW:
        _LOG.warning(
            "the adjustment for ICV rests on %d subjects (%s): take icv_residual with care",
            fewest,
            words,
        )


def _entities(stems: pd.Series) -> pd.DataFrame:
    """Entities of the scans beyond subject and session, as text."""
    rows = [dict(Scan.from_path(Path(f"{stem}_T1w.nii.gz")).entities) for stem in stems]
    frame = pd.DataFrame(rows, index=stems.index, dtype="str")
    return frame.drop(columns=[key for key in _KEY_ENTITIES if key in frame])


def _warn_of_withdrawn(participants: pd.Series, bids_dir: Path) -> None:
    """Name who has outputs but no data any more: perhaps they took back their consent."""
    gone = [name for name in participants.unique() if not (bids_dir / name).is_dir()]
    # a dataset of tables only tells nothing
    if gone and len(gone) < participants.nunique():
        _LOG.warning(
            "used, although no longer in %s: %s; remove their outputs, or leave them out with "
            "--exclude-participant-label",
            bids_dir,
            listed(gone),
        )


def _compare_participants(
    base: pd.DataFrame, metadata: Metadata, settings: Settings
) -> pd.DataFrame:
    """Say who is in participants.tsv only, with a row of their own, and who is not in it."""
    if not metadata.has_participants:
        return base
    described = set(metadata.participants["participant_id"])
    unknown = ~base["participant_id"].isin(described)
    if unknown.any():
        _LOG.warning(
            "not in participants.tsv: %s", listed(base.loc[unknown, "participant_id"].unique())
        )
        text = "not in participants.tsv"
        remarks = (base["remarks"] + f"; {text}").fillna(text)
        base = base.assign(remarks=base["remarks"].mask(unknown, remarks))
    if settings.session_label or settings.bids_filter_file:
        # who has no such scan is not missing
        return base
    asked = _selector(settings, ())
    without = [
        name
        for name in sorted(described - set(base["participant_id"]))
        if asked(Scan(Path(), (("sub", name.removeprefix("sub-")),)))
    ]
    if not without:
        return base
    _LOG.warning("in participants.tsv, but without a T1w image: %s", listed(without))
    rows = pd.DataFrame(
        {"participant_id": without, "status": "missing", "reason": "no T1w image in the dataset"},
        columns=base.columns,
    )
    return pd.concat([base, rows], ignore_index=True)


def _reference(frame: pd.DataFrame, controls: str | None) -> tuple[pd.Series, str]:
    """Select the scans to fit the adjustment for intracranial volume on."""
    done = frame["status"] == "done"
    odd = done & frame["flags"].str.contains("_icv_mm3", na=False)
    if odd.any():
        _LOG.warning(
            "left out when the adjustment for ICV is fitted, because their ICV is flagged: %s",
            listed(frame.loc[odd, "scan"]),
        )
        done &= ~odd
    if controls is None:
        return done, "all"
    column, level = _controls(controls)
    if column not in frame:
        columns = similar([column], list(frame.columns))
        raise UsageError(f"--controls {controls}: no column {column}; there are {columns}")
    values = frame[column]
    if pd.api.types.is_numeric_dtype(values):
        chosen = values == pd.to_numeric(level, errors="coerce")
    else:
        chosen = values == level
    if not (done & chosen).any():
        there = sorted(map(str, values[done].dropna().unique()))
        raise UsageError(
            f"--controls {controls}: no scan with volumes has that; {column} is {listed(there)}"
        )
    return done & chosen, f"{column}={level}"


def _controls(text: str) -> tuple[str, str]:
    column, _, level = text.partition("=")
    if not column or not level:
        raise UsageError(f"--controls {text}: must be COLUMN=LEVEL")
    return column, level


def _wanted(settings: Settings) -> list[str]:
    """Columns that other options name; they may be in phenotype/."""
    names = [*settings.covariates, settings.target, settings.site, settings.stratify]
    for pair in (settings.controls, settings.held_out):
        if pair and "=" in pair:
            names.append(pair.partition("=")[0])
    for formula in settings.model:
        names += sorted(statistics.formula_variables(formula))
    return [name for name in names if name]


def _describe_measures(
    names: Iterable[str], adjustments: Mapping[str, Adjustment]
) -> dict[str, dict[str, Any]]:
    return {name: describe(name, adjustments.get(name)) for name in names if name != "icv_mm3"}


def _describe_added(values: pd.Series, described: Mapping[str, Any]) -> dict[str, Any]:
    """Take over what the dataset's sidecar says, with all levels that occur."""
    result = dict(described)
    if isinstance(values.dtype, pd.CategoricalDtype):
        given = described["Levels"]
        texts = {str(k): v for k, v in given.items()} if isinstance(given, dict) else {}
        result["Levels"] = {level: texts.get(level, level) for level in values.cat.categories}
    return result


def _warn_of_mixture(provenance: pd.DataFrame) -> None:
    groups = provenance.groupby(["software_version", "models"], sort=True)["scan"]
    if groups.ngroups > 1:
        sets = [
            f"{version} with {models} ({len(scans)} scans, such as {scans.iloc[0]})"
            for (version, models), scans in groups
        ]
        _LOG.warning(
            "volumes of different models or versions should not be mixed: %s", "; ".join(sets)
        )
    unknown = provenance.loc[provenance["models"].isna(), "scan"]
    if len(unknown):
        _LOG.warning(
            "what made the volumes is not known, because the QC sidecar is damaged "
            "(run the participant level again): %s",
            listed(unknown),
        )


def _write(output: Path, kind: str, table: pd.DataFrame, columns: Mapping[str, Any]) -> None:
    path = group_path(output, kind)
    write_table(path, table)
    write_json(path.with_suffix(".json"), columns)


def _write_or_remove(
    output: Path, kind: str, table: pd.DataFrame, columns: Mapping[str, str]
) -> None:
    """Write a table, or take away the one of an earlier run that there is nothing for now."""
    if len(table):
        _write(output, kind, table, _described(table, columns))
        return
    path = group_path(output, kind)
    for old in (path, path.with_suffix(".json")):
        old.unlink(missing_ok=True)


def _described(table: pd.DataFrame, columns: Mapping[str, str]) -> dict[str, dict[str, str]]:
    return {
        name: {"Description": columns.get(name, "From another version of HyPS-BIDS.")}
        for name in table
    }
