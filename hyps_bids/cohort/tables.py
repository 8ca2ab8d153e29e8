"""Write the tables of the group level."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

import pandas as pd

from hyps_bids.cohort import statistics
from hyps_bids.cohort.annual_change import annual_change
from hyps_bids.cohort.formulas import formula_variables
from hyps_bids.cohort.gather import find_outputs, gather
from hyps_bids.cohort.gather_series import find_strangers, gather_series, with_present_times
from hyps_bids.cohort.gather_spaces import gather_spaces
from hyps_bids.cohort.icv import parse_controls
from hyps_bids.cohort.image_contrasts import count_contrasts
from hyps_bids.cohort.metadata import Metadata, read_metadata
from hyps_bids.cohort.selection import (
    Selection,
    add_missing_scans,
    label_filter,
    report_gone,
    report_others,
    select_scans,
)
from hyps_bids.cohort.stats_models import write_stats_models
from hyps_bids.cohort.wide import STATUS, add_series, build_wide_table, change_columns
from hyps_bids.errors import MissingInput, UsageError
from hyps_bids.messages import format_count, join_names
from hyps_bids.outputs.columns import (
    CHANGE_COLUMNS,
    CONTRAST_COLUMN,
    HARMONIZED_COLUMNS,
    KEYS,
    LINEAR_MODEL_COLUMNS,
    POSTHOC_COLUMNS,
    SERIES_MORPH_COLUMNS,
    SERIES_QC_COLUMNS,
    SPACE_QC_COLUMNS,
    SURFACE_COLUMNS,
    ColumnDescription,
    described,
    table_columns,
)
from hyps_bids.outputs.names import group_path, sidecar_path
from hyps_bids.outputs.reading import (
    CHANGE,
    HARMONIZED,
    LINEAR_MODELS,
    NORMS,
    POSTHOC,
    SERIES_QC,
    SPACE_QC,
    WIDE,
    read_wide,
)
from hyps_bids.outputs.scan import Scan
from hyps_bids.outputs.writing import write_json, write_table
from hyps_bids.settings import Settings

_LOG = logging.getLogger("hyps_bids")


@dataclass(frozen=True)
class GroupTables:
    """What the group level has made of the outputs.

    Attributes
    ----------
    wide : pandas.DataFrame
        The wide table.
    metadata : Metadata
        What the dataset says about the participants, all their sessions and scans.
    complete : bool
        Whether all folders and files of the participant level could be read.
    failed_models : tuple of str
        Formulas that could not be fitted, and values of ``--posthoc`` that no formula allows.
    """

    wide: pd.DataFrame
    metadata: Metadata
    complete: bool
    failed_models: tuple[str, ...] = ()


def write_group_tables(settings: Settings) -> GroupTables:
    """Write the tables of all selected scans into OUT_DIR.

    Tables of T1w images and those of other contrasts are different files, so that neither replace
    the others.

    These are long tables of volumes and of quality; the wide table, one row per scan, with derived
    measures and the metadata of participants and sessions; the change over time of subjects
    scanned at several times; and the models of ``settings.model``. Columns that options name are
    also looked for in phenotype/.

    Raises
    ------
    MissingInput
        If there are no outputs of the participant level.
    UsageError
        If ``settings.controls`` names something that does not exist.
    HypsError
        Any error of :func:`hyps_bids.cohort.selection.select_scans`.
    """
    output = settings.output_dir
    selection = select_scans(settings)
    found = find_outputs(output, label_filter(settings))
    scans = {stem: Scan.from_stem(stem) for stem in found.stems}
    others = [stem for stem, scan in scans.items() if scan.suffix not in settings.suffix]
    left_out = report_others(others, settings)
    found = found.without([s for s, scan in scans.items() if not selection.is_wanted(scan)])
    gone = [stem for stem in found.stems if selection.is_gone(stem)]
    report_gone(gone, settings)
    gathered = gather(found if settings.keep_missing_images else found.without(gone))
    for path, reason in gathered.unreadable.items():
        _LOG.error("%s: cannot be read (%s), so the scans in it are not used.", path, reason)
    if gathered.qc.empty:
        if left_out:
            raise MissingInput(f"{output}: {left_out}.", code="scan-tables-missing")
        raise selection.failure or MissingInput(
            f"{output} has no tables of the selected scans. Run the participant level first.",
            code="scan-tables-missing",
        )
    series = gather_series(found, gathered, output, _is_unusable(settings, selection))
    if series is not None:
        keys = ["scan", "hemi", "part"]
        gathered = replace(
            gathered, morph=gathered.morph.merge(series.volumes, on=keys, how="left")
        )
    qc = add_missing_scans(gathered.qc, selection.scans, output, gathered.unreadable)
    morph_columns = table_columns("morph") | SERIES_MORPH_COLUMNS | SURFACE_COLUMNS
    _write(settings, "morph", gathered.morph, described(morph_columns))
    _write(settings, "qc", qc, described(table_columns("qc") | {"status": STATUS}))
    series_qc = pd.DataFrame() if series is None else series.qc
    qc_columns = described(KEYS | CONTRAST_COLUMN | SERIES_QC_COLUMNS)
    _write(settings, SERIES_QC, series_qc, qc_columns, optional=True)
    placed = gather_spaces(gathered.fingerprints, output)
    _write(settings, SPACE_QC, placed, described(KEYS | SPACE_QC_COLUMNS), optional=True)
    _warn_of_mixture(gathered.provenance)
    metadata = read_metadata(settings.bids_dir, qc[[*KEYS]], _named_columns(settings))
    wide, columns = build_wide_table(gathered, qc, metadata, settings)
    if series is not None:
        series = with_present_times(series, wide)
        wide, columns = add_series(wide, columns, series)
    # Models of an earlier table must not stay beside this one, whatever happens to the new ones.
    for kind in (LINEAR_MODELS, POSTHOC, HARMONIZED, NORMS):
        _write(settings, kind, pd.DataFrame(), {}, optional=True)
    write_stats_models(output, pd.DataFrame(), pd.DataFrame(), settings.suffix)
    _write(settings, WIDE, wide, columns)
    change = annual_change(
        wide[wide["status"] == "done"],
        None if series is None else series.change,
        () if series is None else find_strangers(series),
    )
    _write(settings, CHANGE, change, described(CHANGE_COLUMNS), optional=True)
    counts = ", ".join(f"{n} {status}" for status, n in qc["status"].value_counts().items())
    _LOG.info("The group tables have %s: %s", format_count(len(qc), "scan"), counts)
    _name_contrasts(wide)
    # The models come last, so that a wrong formula does not prevent the other tables.
    failed: tuple[str, ...] = ()
    if settings.model:
        errors = None if series is None else change_columns(wide, series.change)[1]
        failed = _write_models(settings, wide, columns, errors)
    table = read_wide(output, settings.suffix)
    return GroupTables(table, metadata, not gathered.unreadable, failed)


def _is_unusable(settings: Settings, selection: Selection) -> Callable[[str], bool]:
    """Return a function that tells whether the image of a scan, selected or not, is gone."""

    def is_gone(stem: str) -> bool:
        scan = Scan.from_stem(stem)
        paths = (settings.bids_dir / scan.folder / name for name in scan.image_names)
        return selection.is_gone(stem) and not any(map(os.path.lexists, paths))

    return (lambda stem: False) if settings.keep_missing_images else is_gone


def _write_models(
    settings: Settings,
    wide: pd.DataFrame,
    columns: Mapping[str, ColumnDescription],
    errors: pd.DataFrame | None,
) -> tuple[str, ...]:
    """Fit the formulas and write their tables; return what failed."""
    fitted = statistics.fit_formulas(
        wide,
        settings.model,
        parse_controls(settings.controls) if settings.controls else None,
        settings.site if settings.harmonize else None,
        settings.posthoc,
        robust=settings.robust_errors,
        errors=errors,
    )
    harmonized = {**columns, **described(HARMONIZED_COLUMNS)}
    _write(settings, LINEAR_MODELS, fitted.models, described(LINEAR_MODEL_COLUMNS), optional=True)
    _write(settings, POSTHOC, fitted.posthoc, described(POSTHOC_COLUMNS), optional=True)
    _write(settings, HARMONIZED, fitted.harmonized, harmonized, optional=True)
    write_stats_models(settings.output_dir, fitted.models, fitted.harmonized, settings.suffix)
    return fitted.failed


def _named_columns(settings: Settings) -> list[str]:
    """List the columns that options name; they may be in phenotype/."""
    names = [*settings.covariates, settings.target, settings.site, settings.stratify]
    for text in (settings.controls, settings.held_out):
        if text and "=" in text:
            names.append(text.partition("=")[0])
    for formula in settings.model:
        # A formula that cannot be understood is reported when the others are fitted.
        with suppress(UsageError):
            names += sorted(formula_variables(formula))
    return [name for name in names if name]


def _name_contrasts(wide: pd.DataFrame) -> None:
    """Say that scans are of several contrasts, which a contrast agent makes of T1w images alone."""
    found = count_contrasts(wide[wide["status"] == "done"])
    if len(found) > 1:
        _LOG.info(
            "Scans of different contrasts are neither averaged nor put in one order: %s",
            join_names(f"{name} {n:,}" for name, n in found.items()),
        )


def _warn_of_mixture(provenance: pd.DataFrame) -> None:
    """Warn of volumes that may not be comparable."""
    groups = provenance.groupby(["software_version", "models"], sort=True)["scan"]
    if groups.ngroups > 1:
        made_by = [
            f"{version} with {models} ({format_count(len(scans), 'scan')}, such as {scans.iloc[0]})"
            for (version, models), scans in groups
        ]
        _LOG.warning(
            "The volumes were made by different versions or models and should not be mixed; run "
            "the participant level again for all scans: %s",
            "; ".join(made_by),
        )
    unknown = provenance.loc[provenance["models"].isna(), "scan"]
    if len(unknown):
        _LOG.warning(
            "The QC sidecar of these scans is damaged, so it is not known which models made their "
            "volumes; run the participant level again for: %s",
            join_names(unknown),
        )


def _write(
    settings: Settings,
    kind: str,
    table: pd.DataFrame,
    columns: Mapping[str, ColumnDescription],
    *,
    optional: bool = False,
) -> None:
    """Write a table and its sidecar; remove an earlier optional table if this one has no rows."""
    path = group_path(settings.output_dir, kind, settings.suffix)
    if optional and table.empty:
        for old in (path, sidecar_path(path)):
            old.unlink(missing_ok=True)
        return
    other: ColumnDescription = {"Description": "From another version of HyPS-BIDS."}
    write_table(path, table)
    write_json(sidecar_path(path), {name: columns.get(name, other) for name in table})
