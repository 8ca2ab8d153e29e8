"""Fit norms to the controls of a dataset, say how well they are calibrated, and store them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hyps_bids import __version__
from hyps_bids.cohort.all_sessions import all_sessions
from hyps_bids.cohort.comparable import refuse_mixed_weights
from hyps_bids.cohort.icv import parse_controls
from hyps_bids.cohort.image_contrasts import contrasts_of, refuse_several
from hyps_bids.cohort.levels import equals_level
from hyps_bids.cohort.metadata import Metadata
from hyps_bids.errors import BadData
from hyps_bids.messages import format_count, join_names
from hyps_bids.norms.calibration import calibration_table, pit_histogram
from hyps_bids.norms.card import write_card
from hyps_bids.norms.charts import draw_charts
from hyps_bids.norms.checks import read_labels
from hyps_bids.norms.fit import fit_norm
from hyps_bids.norms.folder import CARD, FORMAT, README, Card, StoredNorms, save_folder
from hyps_bids.norms.folds import score_out_of_fold
from hyps_bids.norms.measures import (
    flagged_rows,
    is_positive,
    needs_icv,
    norm_measures,
    scored_rows,
)
from hyps_bids.norms.norm import Norm
from hyps_bids.norms.people import People, describe_people, icv_is_flagged, require_site
from hyps_bids.norms.sample import FEWEST, NOT_FITTED, NormScores, NormSettings
from hyps_bids.norms.tables import OwnScores, Scored, make_sample, score_table
from hyps_bids.outputs.columns import CONTRAST_COLUMN, KEYS, NORM_COLUMNS, described
from hyps_bids.outputs.dataset import dataset_name
from hyps_bids.outputs.names import group_path, group_space, sidecar_path
from hyps_bids.outputs.ownership import refuse_foreign_file
from hyps_bids.outputs.reading import NORMS, WIDE, load_json, read_units
from hyps_bids.outputs.writing import remove_file, write_json, write_table
from hyps_bids.progress import track
from hyps_bids.settings import Settings

_LOG = logging.getLogger("hyps_bids")
#: Number of folds, by participant, of the scores of the controls themselves.
_FOLDS = 10
_CALIBRATION_COLUMNS = {
    "measure": "Column of the wide table.",
    "group": "all controls, thirds of age, or sites.",
    "level": "Which of them.",
    "n": "Number of scans.",
    "z_mean": "Mean of z; 0 is expected.",
    "z_sd": "Standard deviation of z; 1 is expected.",
    "z_skew": "Skewness of z; 0 is expected.",
    "z_kurtosis": "Excess kurtosis of z; 0 is expected.",
    "below_5": "Percent of scans below the 5th centile; 5 is expected.",
    "above_95": "Percent of scans above the 95th centile; 5 is expected.",
}
_HISTOGRAM_COLUMNS = {
    "measure": "Column of the wide table.",
    "low": "Lower end of the centiles of a bin.",
    "high": "Upper end.",
    "n": "Number of controls' scans in the bin, by folds that did not see the participant.",
    "expected": "Number that is expected.",
}


@dataclass
class _Fitted:
    """Norms of all measures, scores of the controls themselves, and what was left out."""

    norms: dict[str, Norm] = field(default_factory=dict)
    own: OwnScores = field(default_factory=dict)
    calibration: dict[str, pd.DataFrame] = field(default_factory=dict)
    histograms: dict[str, pd.DataFrame] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


def fit_norms(settings: Settings, wide: pd.DataFrame, metadata: Metadata) -> StoredNorms:
    """Fit norms to the controls, store them, and compare each scan with them.

    Parameters
    ----------
    settings : Settings
        With ``norms``, ``controls`` and perhaps ``site``.
    wide : pandas.DataFrame
        The wide table of the group level.
    metadata : Metadata
        What the dataset says about the participants.

    Returns
    -------
    StoredNorms
        The content of ``models/norms-NAME``, which is there now.

    Raises
    ------
    UsageError
        If the column of sites does not exist, the images are of several contrasts, or the folder
        holds files of others.
    BadData
        ``volumes-not-comparable``, ``norms-without-age``, or ``norm-too-few`` if fewer than 20
        controls can be used.
    """
    folder = settings.output_dir / "models" / f"norms-{norms_name(settings)}"
    refuse_foreign_file(folder / README, b"# Norms ")
    require_site(wide, settings.site)
    frame = wide[wide["status"] == "done"].reset_index(drop=True)
    refuse_several(frame, "--norms")
    columns = load_json(sidecar_path(group_path(settings.output_dir, WIDE, settings.suffix)))
    sessions = all_sessions(settings.bids_dir, metadata, frame)
    people = describe_people(frame, columns, settings.site, sessions)
    people = name_site(people, settings)
    controls, left_out = _choose_controls(settings, frame, people)
    refuse_mixed_weights(frame[controls])
    units = read_units(settings.output_dir, settings.suffix)
    fitted = _fit(frame, people.table, controls, settings, units)
    card = _card(settings, frame, people, controls, left_out, fitted, units)
    # The card in JSON is written after all that it describes: a folder without it has no norms.
    remove_file(folder / CARD)
    _write_tables(folder, fitted)
    draw_charts(folder, fitted.norms, fitted.histograms, card)
    participants = people.table.loc[controls, "participant_id"].unique().tolist()
    write_card(folder / README, card)
    stored = save_folder(folder, fitted.norms, card, participants)
    for text in card["Warnings"]:
        _LOG.warning("Norms %s: %s", settings.norms, text)
    weights = frame["models"].fillna("n/a") != card["Models"]
    scored = Scored(
        frame=frame,
        people=people.table,
        invalid=pd.Series(np.where(weights, "other-weights", ""), index=frame.index),
        icv_flagged=icv_is_flagged(frame),
    )
    # Other scans of the controls, such as flagged ones, are not held out by any fold.
    known = frozenset(participants)
    table = score_table(scored, fitted.norms, card["Name"], fitted.own, known)
    write_group_scores(settings, stored, table)
    return stored


def norms_name(settings: Settings) -> str:
    """Name norms, those of other contrasts than T1w with the contrast."""
    return f"{settings.norms}{group_space(settings.suffix)}"


def name_site(people: People, settings: Settings) -> People:
    """Give scans of datasets without a column of sites the name of the dataset as their site.

    Scans of datasets with other names, which come from other scanners, are thus of another site.
    A warning says so, because the name may not tell datasets apart.
    """
    if "site" in people.columns:
        return people
    name = dataset_name(settings.bids_dir)
    _LOG.warning(
        "%s: there is no column of sites, so all scans count as of one scanner, which is called %s "
        "after the dataset. Datasets of this name are taken for scans of the same scanner, and "
        "their participants for the same people. If this is not so, give --site COLUMN or "
        "change the Name in dataset_description.json.",
        *(settings.bids_dir, name),
    )
    table = people.table.assign(site=name)
    return People(table, people.columns)


def write_group_scores(settings: Settings, stored: StoredNorms, table: pd.DataFrame) -> None:
    """Write the group's table of norms, and log how many scans have centiles, and why not."""
    path = group_path(settings.output_dir, NORMS, settings.suffix)
    write_table(path, table)
    write_json(
        sidecar_path(path),
        {
            **described(KEYS | CONTRAST_COLUMN | NORM_COLUMNS),
            "Norms": {
                "Name": stored.card["Name"],
                "SHA256": stored.digest,
                # The report compares the levels of this column.
                "GroupColumn": (settings.controls or stored.card["Controls"]).partition("=")[0],
            },
        },
    )
    with_centile = table[table["centile"].notna()]
    _LOG.info(
        "Norms %s: %d of %s with centiles, in %s",
        *(stored.card["Name"], with_centile["scan"].nunique()),
        *(format_count(table["scan"].nunique(), "scan"), path),
    )
    warn_of_missing(stored, table)


def warn_of_missing(stored: StoredNorms, table: pd.DataFrame) -> None:
    """Log how many scans have no centile of some measure, by the reason."""
    without = table[table["centile"].isna()].groupby("reason")["scan"].nunique()
    for reason, n in without.items():
        _LOG.warning(
            "Norms %s: %s without a centile of some measures, because %s",
            *(stored.card["Name"], format_count(n, "scan"), reason),
        )


def _choose_controls(
    settings: Settings, frame: pd.DataFrame, people: People
) -> tuple[np.ndarray, dict[str, int]]:
    """Mark the scans of controls that can be used, and count the others by the reason."""
    column, level = parse_controls(str(settings.controls))
    chosen = equals_level(frame[column], level).to_numpy(dtype=bool, na_value=False)
    if "age" not in people.columns:
        raise BadData(
            f"{settings.bids_dir}: norms need the age of the participants, and there is no column "
            "age in participants.tsv or sessions.tsv.",
            code="norms-without-age",
        )
    reasons = {
        "flagged for review": frame["flags"].notna(),
        "the age is not known": people.table["age"].isna(),
        "the sex is not known": people.table["sex"] == "",
        "the site is not known": people.table["site"] == "",
        "the intracranial volume is not known": people.table["icv"].isna(),
    }
    left_out, use = {}, chosen.copy()
    for reason, bad in reasons.items():
        if n := int((use & bad.to_numpy()).sum()):
            left_out[reason] = n
        use &= ~bad.to_numpy()
    n = people.table.loc[use, "participant_id"].nunique()
    texts = join_names(f"{count} because {why}" for why, count in left_out.items())
    if texts:
        _LOG.info("Norms %s: scans of controls that are not used: %s", settings.norms, texts)
    if n < FEWEST:
        raise BadData(
            f"--norms {settings.norms}: {format_count(n, 'participant')} with "
            f"{settings.controls} can be used, and at least {FEWEST} are needed"
            + (f"; scans that cannot be used: {texts}" if texts else "")
            + ".",
            code="norm-too-few",
        )
    return use, left_out


def _fit(
    frame: pd.DataFrame,
    people: pd.DataFrame,
    controls: np.ndarray,
    settings: Settings,
    units: Mapping[str, str],
) -> _Fitted:
    fitted = _Fitted()
    measures = norm_measures(frame)
    for name in track(measures, len(measures), "measures", f"Norms {settings.norms}"):
        use = controls & scored_rows(frame, name) & frame[name].notna().to_numpy()
        use &= ~flagged_rows(frame, name)
        sample = make_sample(people[use])
        values = frame.loc[use, name].to_numpy(dtype=float)
        unit = units.get(name, "n/a")
        how = NormSettings(name, unit, icv=needs_icv(name), positive=is_positive(name))
        try:
            norm = fit_norm(sample, values, how)
            scores = score_out_of_fold(norm, sample, values, folds=_FOLDS)
            _require_folds(name, scores)
        except BadData as error:
            fitted.failures[name] = str(error)
            continue
        fitted.norms[name] = norm
        fitted.own[name] = use, scores
        fitted.calibration[name] = calibration_table(sample, scores)
        fitted.histograms[name] = pit_histogram(scores)
    if not fitted.norms:
        raise BadData(
            f"--norms {settings.norms}: no measure has norms: "
            f"{join_names(dict.fromkeys(fitted.failures.values()))}",
            code="norms-impossible",
        )
    return fitted


def _require_folds(name: str, scores: NormScores) -> None:
    """Refuse a model that most folds do not support: nothing would tell whether it is right."""
    lost = int((scores.reason == NOT_FITTED).sum())
    if 2 * lost > len(scores):
        raise BadData(
            f"{name}: the fit fails without some of the controls, so there is no norm.",
            code="norm-not-converged",
        )


def _write_tables(folder: Path, fitted: _Fitted) -> None:
    for name, tables, columns in (
        ("calibration", fitted.calibration, _CALIBRATION_COLUMNS),
        ("histogram", fitted.histograms, _HISTOGRAM_COLUMNS),
    ):
        table = pd.concat([t.assign(measure=m) for m, t in tables.items()], ignore_index=True)
        write_table(folder / f"{name}.tsv", table[list(columns)])
        write_json(folder / f"{name}.json", described(columns))


def _card(
    settings: Settings,
    frame: pd.DataFrame,
    people: People,
    controls: np.ndarray,
    left_out: Mapping[str, int],
    fitted: _Fitted,
    units: Mapping[str, str],
) -> Card:
    rows, mine = frame[controls], people.table[controls]
    first = mine.drop_duplicates("participant_id")
    cohort: dict[str, Any] = {
        "Participants": len(first),
        "Scans": len(mine),
        "LeftOut": dict(left_out),
        "Age": {
            "Min": float(mine["age"].min()),
            "Max": float(mine["age"].max()),
            "Mean": float(first["age"].mean()),
            "SD": float(first["age"].std()),
        },
        "Sexes": {str(k): int(v) for k, v in first["sex"].value_counts().items()},
        "Sites": {str(k): int(v) for k, v in first["site"].value_counts().items()},
        "ICV": [float(mine["icv"].min()), float(mine["icv"].max())],
    }
    measures = {}
    for name, norm in fitted.norms.items():
        all_ = fitted.calibration[name].query("group == 'all'").iloc[0]
        figures = ("n", "z_mean", "z_sd", "z_skew", "z_kurtosis", "below_5", "above_95")
        measures[name] = {
            "Units": units.get(name, "n/a"),
            **norm.facts,
            "Calibration": {figure: float(all_[figure]) for figure in figures},
            "Remarks": list(norm.remarks),
        }
    return {
        "Name": norms_name(settings),
        "Format": FORMAT,
        "Version": __version__,
        "Dataset": dataset_name(settings.bids_dir),
        "Controls": str(settings.controls),
        "ImageContrast": str(contrasts_of(rows).iloc[0]),
        "Adapter": str(rows["adapter"].iloc[0]),
        "Labels": read_labels(settings.output_dir),
        "Models": str(rows["models"].iloc[0]),
        "SoftwareVersion": str(rows["software_version"].iloc[0]),
        "Columns": people.columns,
        "Measures": measures,
        "Cohort": cohort,
        "Validation": {
            "Folds": _FOLDS,
            "Unit": "participant",
            "NotFitted": fitted.failures,
        },
        "Warnings": _warnings(people.columns.get("site"), fitted),
    }


def _warnings(site: str | None, fitted: _Fitted) -> list[str]:
    texts = []
    if site is None:
        texts.append(
            "no --site was given, so all controls count as of one scanner; scans of other datasets "
            "are marked as uncalibrated"
        )
    for name, reason in fitted.failures.items():
        texts.append(f"{name} has no norms: {reason}")
    remarks: dict[str, list[str]] = {}
    for name, norm in fitted.norms.items():
        for remark in norm.remarks:
            remarks.setdefault(remark, []).append(name)
    for remark, names in remarks.items():
        of = "" if len(names) == len(fitted.norms) else f" ({join_names(names)})"
        texts.append(f"{remark.rstrip('.')}{of}")
    return texts
