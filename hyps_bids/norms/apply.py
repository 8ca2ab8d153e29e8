"""Compare scans with stored norms, at either level."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd

from hyps_bids.cohort.all_sessions import all_sessions
from hyps_bids.cohort.derived import describe
from hyps_bids.cohort.gather import FoundOutputs, gather
from hyps_bids.cohort.gather_series import gather_series, with_present_times
from hyps_bids.cohort.icv import parse_controls
from hyps_bids.cohort.levels import equals_level
from hyps_bids.cohort.metadata import Metadata, read_metadata
from hyps_bids.cohort.wide import build_scan_table, change_columns, series_states
from hyps_bids.errors import BadData, CannotCreateOutput, MissingInput, WriteFailed
from hyps_bids.messages import format_count, join_names
from hyps_bids.norms.calibrate import calibrate_site, score_held_out
from hyps_bids.norms.card import write_card
from hyps_bids.norms.charts import CENTILES, age_grid
from hyps_bids.norms.checks import check_scans, read_labels
from hyps_bids.norms.fit import FEW_AT_SITE
from hyps_bids.norms.fitting import name_site, warn_of_missing, write_group_scores
from hyps_bids.norms.folder import (
    CARD,
    README,
    Card,
    StoredNorms,
    load_folder,
    save_calibrated,
)
from hyps_bids.norms.measures import (
    flagged_rows,
    is_change,
    is_shown,
    needs_icv,
    norm_measures,
    scored_rows,
    title,
)
from hyps_bids.norms.norm import Norm
from hyps_bids.norms.people import People, describe_people, icv_is_flagged, require_site
from hyps_bids.norms.sample import FEWEST_AT_SITE
from hyps_bids.norms.tables import OwnScores, Scored, make_sample, score_table
from hyps_bids.outputs.columns import NORM_COLUMNS, SUFFIX_COLUMN, described
from hyps_bids.outputs.completion import recorded_fingerprint
from hyps_bids.outputs.dataset import dataset_name
from hyps_bids.outputs.names import group_path, norms_path, scan_paths, sidecar_path
from hyps_bids.outputs.ownership import refuse_foreign_file
from hyps_bids.outputs.reading import WIDE, load_json, read_units
from hyps_bids.outputs.scan import Scan
from hyps_bids.outputs.scan_files import remove_norms
from hyps_bids.outputs.series import Series, find_series_of
from hyps_bids.outputs.series_state import current_series_fingerprint
from hyps_bids.outputs.writing import remove_file, write_bytes, write_json, write_table
from hyps_bids.progress import track
from hyps_bids.settings import Settings

_LOG = logging.getLogger("hyps_bids")
#: Significant digits of the curves in sidecars.
_DIGITS = 5
#: End of the name of norms to which sites were added.
_CALIBRATED = "-calibrated"


def apply_to_group(settings: Settings, wide: pd.DataFrame, metadata: Metadata) -> None:
    """Compare the scans of the group table with the norms of ``--apply-norms``.

    With ``--controls``, the offsets of sites that the norms do not know are measured first, from
    the controls there.

    Raises
    ------
    UsageError
        If the column of sites does not exist.
    MissingInput, BadData
        If the norms cannot be read, or are valid for no scan.
    """
    stored = load_folder(_path(settings))
    require_site(wide, settings.site)
    frame = wide[wide["status"] == "done"].reset_index(drop=True)
    if frame.empty:
        raise MissingInput(
            f"{settings.output_dir}: no scan is done, so there is nothing to compare.",
            code="no-scan-done",
        )
    columns = load_json(sidecar_path(group_path(settings.output_dir, WIDE, settings.suffix)))
    units = read_units(settings.output_dir, settings.suffix)
    scored = _prepare(settings, stored, frame, (columns, metadata), units)
    known = _known(settings, stored, scored)
    own: OwnScores = {}
    if settings.controls is not None:
        norms, own, counts = _calibrate(settings, stored, scored)
        if own:
            stored = _store_calibrated(settings, stored, norms, scored, own, counts)
    table = score_table(scored, stored.norms, stored.card["Name"], own, known)
    write_group_scores(settings, stored, table)


def apply_to_scans(settings: Settings, stored: StoredNorms, scans: Sequence[Scan]) -> list[Scan]:
    """Write the table of the norms of each scan that is done, and remove those of other scans.

    A table is written again only if it changes: with the scan, the norms, or what the dataset says
    about the participant. Its sidecar has the curves that the report shows.

    Returns
    -------
    list of Scan
        Scans whose table cannot be written.

    Raises
    ------
    BadData
        If the norms are valid for no scan.
    WriteFailed
        If the disk is full or broken.
    """
    output = settings.output_dir
    paths = {scan.stem: scan_paths(scan, output) for scan in scans}
    there = {
        kind: {stem: p[kind] for stem, p in sorted(paths.items()) if p[kind].is_file()}
        for kind in ("morph", "qc")
    }
    subjects = sorted({scan.subject for scan in scans})
    over_time = {one for subject in subjects for one in find_series_of(output, subject)}
    found = FoundOutputs(there, {}, frozenset(over_time))
    gathered = gather(found)
    done = set(gathered.provenance["scan"])
    failed = _each(
        [scan for scan in scans if scan.stem not in done], lambda s: remove_norms(s, output)
    )
    if not done:
        return failed
    keys = gathered.qc[["participant_id", "session_id", "scan"]]
    site = stored.card["Columns"].get("site")
    metadata = read_metadata(settings.bids_dir, keys, [site] if site else [])
    frame, columns = build_scan_table(gathered, metadata, str(settings.bids_dir))
    series = gather_series(found, gathered, output, lambda stem: False)
    if series is not None:
        change = with_present_times(series, frame).change
        frame = pd.concat(
            [frame, change_columns(frame, change)[0], series_states(frame, series.qc)], axis=1
        )
    frame = frame[frame["scan"].isin(done)].reset_index(drop=True)
    units = {name: describe(name)["Units"] for name in norm_measures(frame)}
    scored = _prepare(settings, stored, frame, (columns, metadata), units)
    table = score_table(
        scored, stored.norms, stored.card["Name"], {}, _known(settings, stored, scored)
    )
    by_scan = dict(tuple(table.groupby("scan")))
    people = scored.people.set_index(frame["scan"])

    def write(scan: Scan) -> None:
        mine = by_scan[scan.stem]
        facts = _facts(settings, stored, scan, mine, people.loc[scan.stem])
        path = norms_path(scan, output)
        write_table(path, mine[[*SUFFIX_COLUMN, *NORM_COLUMNS]])
        write_json(sidecar_path(path), described(SUFFIX_COLUMN | NORM_COLUMNS) | facts)

    failed += _each([scan for scan in scans if scan.stem in done], write)
    warn_of_missing(stored, table)
    _LOG.info(
        "Norms %s: %s compared with the controls",
        *(stored.card["Name"], format_count(len(done), "scan")),
    )
    return failed


def _each(scans: Sequence[Scan], do: Callable[[Scan], None]) -> list[Scan]:
    """Do something with each scan; those whose folder cannot be written fail alone."""
    failed = []
    for scan in track(scans, len(scans), "scans", "Norms"):
        try:
            do(scan)
        except WriteFailed:
            raise
        except CannotCreateOutput as error:
            _LOG.error("%s: no norms: %s", scan.stem, error)
            failed.append(scan)
    return failed


def _path(settings: Settings) -> Path:
    assert settings.apply_norms is not None
    return settings.apply_norms


def _prepare(
    settings: Settings,
    stored: StoredNorms,
    frame: pd.DataFrame,
    described_by: tuple[Mapping[str, Any], Metadata],
    units: Mapping[str, str],
) -> Scored:
    """Find out who is in the scans, and for which of them the norms are valid."""
    invalid = check_scans(stored, frame, units, read_labels(settings.output_dir))
    site = settings.site or stored.card["Columns"].get("site")
    columns, metadata = described_by
    sessions = all_sessions(settings.bids_dir, metadata, frame)
    people = name_site(describe_people(frame, columns, site, sessions), settings)
    _say_sites(settings, stored, people)
    return Scored(frame, people.table, invalid, icv_is_flagged(frame))


def _say_sites(settings: Settings, stored: StoredNorms, people: People) -> None:
    """Name the sites that the norms do not know, and those that only have a known name."""
    here = people.table.loc[people.table["site"] != "", "site"].unique().tolist()
    known = [name for name in here if name in stored.card["Cohort"]["Sites"]]
    new = [n for n in here if not all(n in norm.known_sites for norm in stored.norms.values())]
    dataset = dataset_name(settings.bids_dir)
    if known and dataset != stored.card["Dataset"]:
        _LOG.warning(
            "%s: these sites of %s are taken for the same scanners as sites of the norms, which "
            "come from %s, because they have the same names: %s. Rename them if they are others.",
            *(stored.folder, dataset, stored.card["Dataset"], join_names(sorted(known))),
        )
    if new and settings.controls is None:
        _LOG.warning(
            "%s: the norms have too few controls of these sites, at least for some measures, so "
            "centiles there are marked as uncalibrated: %s. At the group level, --controls "
            "COLUMN=LEVEL measures the offset of a site from %d or more controls, and stores norms "
            "with it.",
            *(stored.folder, join_names(sorted(new)), FEWEST_AT_SITE),
        )


def _known(settings: Settings, stored: StoredNorms, scored: Scored) -> frozenset[str]:
    """Return the participants who were controls."""
    labels = scored.people["participant_id"].unique().tolist()
    return frozenset(stored.known(labels, dataset_name(settings.bids_dir)))


def _calibrate(
    settings: Settings, stored: StoredNorms, scored: Scored
) -> tuple[Mapping[str, Norm], OwnScores, pd.DataFrame]:
    """Add the sites that the norms do not know, by the controls there, and score these held out.

    The number of controls is returned, too, by site and measure.
    """
    column, level = parse_controls(str(settings.controls))
    chosen = equals_level(scored.frame[column], level).to_numpy(dtype=bool, na_value=False)
    sites = scored.people["site"]
    usable = chosen & (scored.invalid == "") & (sites != "")
    norms: dict[str, Norm] = dict(stored.norms)
    own: OwnScores = {}
    here = sorted(sites[sites != ""].unique())
    counts = pd.DataFrame(np.nan, index=here, columns=list(norms))
    for name in filter(scored.frame.columns.__contains__, stored.norms):
        take = usable.to_numpy() & scored_rows(scored.frame, name)
        new = [site for site in here if site not in stored.norms[name].known_sites]
        counts.loc[new, name] = 0
        take &= ~flagged_rows(scored.frame, name) & sites.isin(new).to_numpy()
        values = scored.frame.loc[take, name].to_numpy(dtype=float)
        sample, norm = make_sample(scored.people[take]), norms[name]
        valid = norm.reasons(sample, values) == ""
        people = pd.Series(sample.participant[valid]).groupby(sample.site[valid]).nunique()
        counts.loc[people.index, name] = people
        valid &= np.isin(sample.site, people.index[people >= FEWEST_AT_SITE])
        if not valid.any():
            continue
        sample, values = sample.take(valid), values[valid]
        try:
            norms[name] = calibrate_site(norm, sample, values)
            take[take] = valid
            own[name] = take, score_held_out(norm, sample, values)
        except BadData as error:
            _LOG.warning("%s: %s is not calibrated: %s", stored.folder, name, error)
    counts = counts.dropna(how="all")
    if counts.empty:
        _LOG.info("%s: the norms know all sites, so none is calibrated.", stored.folder)
    for site in counts.index:
        _say_calibrated(stored, site, counts.loc[site].dropna())
    return norms, own, counts


def _store_calibrated(
    settings: Settings,
    stored: StoredNorms,
    norms: Mapping[str, Norm],
    scored: Scored,
    own: OwnScores,
    counts: pd.DataFrame,
) -> StoredNorms:
    """Write the norms with their new sites beside the others of this dataset, for either level."""
    name = stored.card["Name"].removesuffix(_CALIBRATED) + _CALIBRATED
    folder = settings.output_dir / "models" / f"norms-{name}"
    refuse_foreign_file(folder / README, b"# Norms ")
    most = counts.max(axis=1)
    sites = {str(site): int(n) for site, n in most[most >= FEWEST_AT_SITE].items()}
    dataset, controls = dataset_name(settings.bids_dir), str(settings.controls)
    added = {"Dataset": dataset, "Controls": controls, "Sites": sites}
    card = cast(Card, {**stored.card, "Name": name})
    if settings.site is not None:
        card["Columns"] = {**card["Columns"], "site": settings.site}
    card["Warnings"] = [*card["Warnings"], *_remarks_of(sites, norms)]
    # Plots and tables are about the first controls, whose norms have not changed.
    kept = {
        each.name: each.read_bytes()
        for each in sorted(stored.folder.iterdir())
        if each.suffix in (".tsv", ".json", ".svg", ".png") and each.name != CARD
    }
    remove_file(folder / CARD)
    for file_name, content in kept.items():
        write_bytes(folder / file_name, content)
    people = scored.people["participant_id"]
    participants = {label for take, _ in own.values() for label in people[take]}
    new = save_calibrated(folder, stored, norms, card, added, participants)
    write_card(folder / README, new.card)
    _LOG.info(
        "The norms with %s are in %s; give this folder to --apply-norms at the participant level.",
        *(join_names(sites), folder),
    )
    return new


def _remarks_of(sites: Collection[str], norms: Mapping[str, Norm]) -> list[str]:
    """Return what the norms say about sites that were added with few controls, each once."""
    found = [text for norm in norms.values() for text in norm.remarks]
    return [t for t in dict.fromkeys(found) if any(f"The site {s} was added" in t for s in sites)]


def _say_calibrated(stored: StoredNorms, site: str, counts: pd.Series) -> None:
    """Log from how many controls the offset of a site was measured, and for which measures not."""
    most, few = int(counts.max()), counts[counts < FEWEST_AT_SITE]
    if most >= FEWEST_AT_SITE:
        _LOG.log(
            logging.WARNING if most < FEW_AT_SITE else logging.INFO,
            "%s: the offset of %s was measured from %s%s",
            *(stored.folder, site, format_count(most, "control")),
            ", which is little" if most < FEW_AT_SITE else "",
        )
    if len(few):
        of = "" if len(few) == len(counts) else f" for {join_names(few.index)}"
        _LOG.warning(
            "%s: not calibrated%s, because fewer than %d controls can be used: %s (%d)",
            *(stored.folder, of, FEWEST_AT_SITE, site, few.max()),
        )


def _facts(
    settings: Settings, stored: StoredNorms, scan: Scan, table: pd.DataFrame, person: pd.Series
) -> dict[str, Any]:
    """Return what the sidecar says about the norms, and the curves of this person."""
    folder = stored.folder.absolute()
    inside = folder.is_relative_to(settings.output_dir.absolute())
    card = stored.card
    return {
        "Norms": {
            "Name": card["Name"],
            "SHA256": stored.digest,
            "Controls": card["Cohort"]["Participants"],
            "Dataset": card["Dataset"],
            "Card": (folder.relative_to(settings.output_dir.absolute()) / README).as_posix()
            if inside
            else None,
        },
        # The centiles are those of these outputs of the scan, and of no later ones.
        "ScanFingerprint": recorded_fingerprint(scan, settings.output_dir),
        # Those of change are of these results of the series, too.
        "SeriesFingerprint": current_series_fingerprint(Series.of(scan), settings.output_dir),
        "Measures": {
            name: {
                "Title": title(name),
                "Units": stored.card["Measures"][name]["Units"],
                "HeadSize": needs_icv(name),
                "Change": is_change(name),
            }
            for name in table["measure"]
        },
        "Curves": _curves(stored, table, person),
    }


def _curves(stored: StoredNorms, table: pd.DataFrame, person: pd.Series) -> dict[str, Any]:
    """Return centile curves for the sex, head size and site of a person, by measure."""
    curves = {}
    for name in filter(is_shown, table.loc[table["centile"].notna(), "measure"]):
        norm = stored.norms[name]
        ages = age_grid(norm.facts["Ages"], points=25)
        icv = float(person["icv"]) if needs_icv(name) else math.nan
        values = norm.curves(ages, person["sex"], icv, person["site"], CENTILES)
        curves[name] = {
            "Age": [_short(age) for age in ages],
            **{f"Centile{c:g}": [_short(v) for v in values[:, k]] for k, c in enumerate(CENTILES)},
        }
    return curves


def _short(value: float) -> float | None:
    return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
