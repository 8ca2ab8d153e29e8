"""The two levels of the app, from settings to an exit code."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from hyps_bids.bids.index import find_images, find_scans
from hyps_bids.errors import HypsError, MissingInput, NotEnoughMemory
from hyps_bids.messages import format_count, join_names
from hyps_bids.outputs.dataset import write_dataset_files
from hyps_bids.outputs.edits import Edit, recorded_edits
from hyps_bids.outputs.location import check_output
from hyps_bids.outputs.names import SEG_PREFIX, group_space
from hyps_bids.outputs.scan import Scan
from hyps_bids.outputs.series import Series, group_scans
from hyps_bids.outputs.series_state import are_several
from hyps_bids.outputs.writing import write_text
from hyps_bids.reports.citation import bibtex, write_methods
from hyps_bids.resources import available_memory_gb, read_many
from hyps_bids.settings import SUFFIXES, Settings, check_combinations, unused_options
from hyps_bids.workers import Workers
from hyps_bids.workspace import Run, name_run, start_log_file, work_folder

if TYPE_CHECKING:
    from hyps_bids.norms.folder import StoredNorms
    from hyps_bids.outputs.space_files import TemplateRecord
    from hyps_bids.segmentation.setup import Setup
    from hyps_bids.series.follow import SeriesPlan
    from hyps_bids.spaces.place import SpacePlan

_LOG = logging.getLogger("hyps_bids")
#: Memory in GB that a run needs for one scan of 256³ voxels at a time.
_LEAST_MEMORY_GB = 1.2


def run(settings: Settings) -> int:
    """Run one analysis level.

    Parameters
    ----------
    settings : Settings
        What the user asked for.

    Returns
    -------
    int
        1 if a scan, a model, a classifier or a report failed or a folder could not be read, else 0.

    Raises
    ------
    HypsError
        If nothing can be done at all; it carries the exit code.
    """
    if unused := unused_options(settings):
        _LOG.warning(
            "These options have no effect at the %s level: %s",
            settings.analysis_level,
            ", ".join(unused),
        )
    if settings.analysis_level == "participant":
        return _run_participant_level(settings)
    return _run_group_level(settings)


def _run_participant_level(settings: Settings) -> int:
    """Segment the scans that are not done yet, and build the reports that are out of date."""
    check_output(settings)
    if settings.use_plugin is not None:
        from hyps_bids.workflows.engines import check_paths, read_plugin

        # Validate the plugin file first, so that a bad one fails before any output is written.
        plugin = read_plugin(settings.use_plugin)["plugin"]
        check_paths(plugin, settings.output_dir, settings.work_dir or settings.output_dir)
    templates = _find_templates(settings)
    found = find_images(settings, need_content=not settings.reports_only)
    scans = found.scans
    if settings.dry_run:
        _count_series(settings, scans)
        return _print_paths(scans) or int(bool(found.unreadable))
    if settings.reports_only:
        scans = _scans_with_results(settings, scans)
    else:
        _check_memory(settings)
    norms = None if settings.reports_only else _load_norms(settings)
    run_name = name_run()
    log_dir = settings.output_dir / "logs" / run_name
    with work_folder(settings, run_name) as work_dir, Workers() as workers:
        this_run = Run(settings, log_dir, work_dir, workers)
        failed: Collection[object] = []
        unreported: list[str] = []
        if settings.reports_only:
            start_log_file(log_dir, settings)
        else:
            failed, unreported = _segment(this_run, scans, norms, templates)
            if norms is not None:
                from hyps_bids.norms.apply import apply_to_scans

                failed = {*failed, *apply_to_scans(settings, norms, scans)}
            if settings.surfaces:
                from hyps_bids.segmentation.surfaces import add_missing_surfaces

                failed = {*failed, *add_missing_surfaces(settings, scans)}
        # Most reports were built, or could not be, as soon as their scans were done.
        subjects = _subjects_to_report(settings, scans, besides=unreported)
        if subjects:
            # Import nipype only here: a run with nothing to do needs not wait for it, and it reads
            # from the environment where to keep its files.
            from hyps_bids.workflows.execution import build_reports

            unreported += build_reports(this_run, subjects)
        _LOG.info("The reports are in %s", settings.output_dir / "sub-*.html")
    return 1 if failed or unreported or found.unreadable else 0


def _load_norms(settings: Settings) -> StoredNorms | None:
    """Read the norms of --apply-norms, so that bad ones end the run before anything is done."""
    if settings.apply_norms is None:
        return None
    from hyps_bids.norms.folder import load_folder

    return load_folder(settings.apply_norms)


def _find_templates(settings: Settings) -> Sequence[TemplateRecord]:
    """Find the templates of --output-spaces, so that missing ones end the run at once."""
    if not settings.output_spaces or settings.reports_only:
        return ()
    from hyps_bids.outputs.spaces import parse_spaces
    from hyps_bids.spaces.template import find_templates

    return find_templates(parse_spaces(settings.output_spaces))


def _segment(
    run: Run,
    scans: Sequence[Scan],
    norms: StoredNorms | None,
    templates: Sequence[TemplateRecord],
) -> tuple[Collection[object], list[str]]:
    """Segment the scans that are not done yet, and follow series that are out of date.

    Returns
    -------
    failed : collection of Scan and Series
        What failed.
    unreported : list of str
        Subjects whose report could not be built.
    """
    from hyps_bids.segmentation.setup import choose_networks
    from hyps_bids.series.choose import plan_series

    settings = run.settings
    setup = choose_networks(settings)
    setup = replace(setup, edits=_find_edits(settings, scans))
    if norms is not None:
        from hyps_bids.norms.checks import check_run

        check_run(norms, setup.provenance)
    _warn_of_unseen_contrasts(setup.adapter, scans)
    to_do = setup.find_undone(scans, settings)
    if to_do:
        from hyps_bids.workflows.execution import load_networks, process_scans

        # Networks that cannot be loaded end the run before anything is written.
        pipeline = load_networks(run, setup, len(to_do))
    places = _plan_spaces(settings, setup, scans, to_do, templates)
    _warn_of_lost_spaces(settings, to_do, templates)
    write_dataset_files(settings, labels=setup.labels)
    start_log_file(run.log_dir, settings)
    known = _scans_in_outputs(settings, scans)
    series = plan_series(settings, setup, scans, known)
    write_methods(
        *(settings.output_dir, setup.provenance, settings.suffix),
        followed=bool(series),
        surfaces=settings.surfaces,
    )
    _LOG.info(
        "%s: %d done before, %d to do%s",
        format_count(len(scans), "scan"),
        len(scans) - len(to_do),
        len(to_do),
        f", on {pipeline.device}" if to_do else "",
    )
    _name_other_contrasts(settings, known)
    failed: list[object] = []
    unreported: list[str] = []
    if to_do:
        outcome = process_scans(run, setup, pipeline, to_do, series)
        failed, unreported = [*outcome.failed, *outcome.lost], outcome.unreported
    if not (failed and settings.stop_on_first_crash):
        now = _scans_in_outputs(settings, scans) if to_do else known
        if {scan.stem for scan in now} - {scan.stem for scan in (*known, *scans)}:
            # Other jobs have finished further scans of the same participants.
            series = plan_series(settings, setup, scans, now)
        failed += _follow(run, series, to_do, failed)
        failed += _place(run, scans, places)
    return failed, unreported


def _plan_spaces(
    settings: Settings,
    setup: Setup,
    scans: Sequence[Scan],
    to_do: Sequence[Scan],
    templates: Sequence[TemplateRecord],
) -> SpacePlan | None:
    """Load the templates if there is a scan to bring to one; bad ones end the run here."""
    if not templates:
        return None
    from hyps_bids.spaces.place import SpacePlan, unplaced
    from hyps_bids.spaces.template import load_templates

    output = settings.output_dir.absolute()
    plan = SpacePlan(output, tuple(templates), setup.localizer, tuple(setup.labels))
    if to_do or unplaced(scans, plan)[0]:
        load_templates(templates, setup.localizer)
    return plan


def _warn_of_lost_spaces(
    settings: Settings, to_do: Sequence[Scan], templates: Sequence[TemplateRecord]
) -> None:
    """Name the spaces in which scans lose their results, as they are segmented again."""
    from hyps_bids.outputs.spaces import spaces_of

    asked = {template.space for template in templates}
    found = [set(spaces_of(scan, settings.output_dir)) - asked for scan in to_do]
    if lost := sorted(set().union(*found)):
        _LOG.warning(
            "%s will be processed again and lose the results in %s, which are those of earlier "
            "results. To make them again, run the command with --output-spaces.",
            format_count(sum(map(bool, found)), "scan"),
            join_names(space.label for space in lost),
        )


def _place(run: Run, scans: Sequence[Scan], plan: SpacePlan | None) -> list[Scan]:
    """Bring the scans that are done to the spaces of templates; return those that failed."""
    if plan is None:
        return []
    from hyps_bids.spaces.place import count_refused, describe_placed, unplaced

    left, done = unplaced(scans, plan)
    failed: list[Scan] = []
    if left:
        from hyps_bids.workflows.execution import place_scans

        failed = place_scans(run, left, plan)
    for text in describe_placed(left, plan):
        _LOG.warning("%s", text)
    _LOG.info(
        "In the space of %s: %d of %s done before, %d now, %d not done; %d of all refused",
        join_names(template.space.label for template in plan.templates),
        done - len(left),
        format_count(len(scans), "scan"),
        len(left) - len(failed),
        len(scans) - done + len(failed),
        count_refused(scans, plan),
    )
    return failed


def _find_edits(settings: Settings, scans: Sequence[Scan]) -> Mapping[str, Edit]:
    """Find the edited labels of --edits or, without the option, those of earlier runs."""
    if settings.edits is None:
        return recorded_edits(scans, settings.output_dir)
    from hyps_bids.labels.edits import find_edits

    return find_edits(settings, scans)


def _follow(
    run: Run,
    plans: Mapping[Series, SeriesPlan],
    processed: Sequence[Scan],
    failed: Collection[object],
) -> list[Series]:
    """Follow the series that were not reached with their scans; return those that failed."""
    from hyps_bids.series.choose import (
        find_outdated,
        warn_of_refusals,
        warn_of_reviews,
        warn_of_stale,
    )

    settings = run.settings
    if settings.longitudinal is False:
        warn_of_stale(processed, settings.output_dir)
        return []
    left = [series for series in find_outdated(plans) if series not in failed]
    lost: list[Series] = []
    if left:
        from hyps_bids.workflows.execution import follow_series

        lost = follow_series(run, {series: plans[series] for series in left})
    begun = {Series.of(scan) for scan in processed}
    tried = [series for series in plans if series in left or series in begun]
    warn_of_refusals(tried, settings.output_dir)
    warn_of_reviews(tried, settings.output_dir)
    if tried:
        done = {series.subject for series in tried if series not in {*lost, *failed}}
        _LOG.info("Change over time: %s up to date", format_count(len(done), "participant"))
    return lost


def _count_series(settings: Settings, scans: Sequence[Scan]) -> None:
    """Say how many participants would be followed over time."""
    every = {scan.stem: scan for scan in (*_scans_in_outputs(settings, scans), *scans)}
    wanted = [scan for scan in every.values() if scan.suffix in settings.suffix]
    series = group_scans(wanted).items()
    subjects = {each.subject for each, own in series if are_several(own, settings.longitudinal)}
    if subjects:
        _LOG.info("Change over time: %s", format_count(len(subjects), "participant"))


def _warn_of_unseen_contrasts(adapter: Path, scans: Sequence[Scan]) -> None:
    """Warn of images of contrasts on which an adapter of the user's own was not trained."""
    from hyps_bids.networks.cards import read_card

    # Only the cards of adapters made by --train-adapter count the images of each contrast.
    card = cast(Mapping[str, Any], read_card(adapter))
    trained = {name.rpartition("_")[2] for name in card.get("contrasts", ())}
    unseen = {scan.suffix for scan in scans} - trained
    if trained and unseen:
        _LOG.warning(
            "%s was trained on %s images only, so its results for %s images may be wrong. Look at "
            "them before you use their volumes.",
            *(adapter, join_names(sorted(trained)), join_names(sorted(unseen))),
        )


def _scans_in_outputs(settings: Settings, scans: Sequence[Scan]) -> list[Scan]:
    """Find the scans of the selected participants that have outputs, whatever selected them."""
    from hyps_bids.reports.scan_facts import find_scans_of

    subjects = sorted({scan.subject for scan in scans})
    found = read_many(lambda subject: find_scans_of(settings.output_dir, subject), subjects)
    return [scan for each in found for scan in each]


def _name_other_contrasts(settings: Settings, known: Sequence[Scan]) -> None:
    """Say which results of earlier runs are of contrasts that this run leaves alone."""
    counts = Counter(scan.suffix for scan in known)
    others = {s: counts[s] for s in SUFFIXES if counts[s] and s not in settings.suffix}
    if others:
        _LOG.info(
            "Results of other contrasts (%s) stay as they are, and the reports show them. They "
            "were not checked; --suffix %s does so.",
            join_names(f"{suffix} {count:,}" for suffix, count in others.items()),
            " ".join(others),
        )


def _check_memory(settings: Settings) -> None:
    """Refuse to start with too little memory: a process that the kernel kills cannot say why."""
    available = available_memory_gb()
    for limit, where in (
        (available, "This machine, job or container has"),
        (settings.mem_gb or available, "--mem-gb gives"),
    ):
        if limit < _LEAST_MEMORY_GB:
            raise NotEnoughMemory(
                f"{where} {limit:.1f} GB of memory, but a scan needs {_LEAST_MEMORY_GB} GB.",
                code="memory-too-small",
            )


def _scans_with_results(settings: Settings, scans: Sequence[Scan]) -> list[Scan]:
    """Leave out the scans of participants without results; refuse if nobody has any."""
    from hyps_bids.reports.scan_facts import find_scans_of

    subjects = sorted({scan.subject for scan in scans})
    without = [s for s in subjects if not find_scans_of(settings.output_dir, s)]
    if len(without) == len(subjects):
        raise MissingInput(
            f"{settings.output_dir}: there are no outputs of participant {join_names(subjects)}; "
            "run the participant level without --reports-only first.",
            code="nothing-to-report",
        )
    if without:
        _LOG.warning(
            "No report is built for participant %s, because there are no outputs yet.",
            join_names(without),
        )
    return [scan for scan in scans if scan.subject not in without]


def _subjects_to_report(
    settings: Settings, scans: Sequence[Scan], besides: Collection[str]
) -> list[str]:
    """Return the subjects whose report is out of date, or all subjects with --reports-only."""
    from hyps_bids.reports.state import is_current

    subjects = sorted({scan.subject for scan in scans}.difference(besides))
    if settings.reports_only:
        return subjects
    folders = settings.bids_dir, settings.output_dir
    current = read_many(lambda subject: is_current(*folders, subject), subjects)
    return [s for s, is_so in zip(subjects, current, strict=True) if not is_so]


def _run_group_level(settings: Settings) -> int:
    """Make tables, statistics, classifiers or an adapter, and then the report of the group."""
    check_combinations(settings)
    check_output(settings)
    if settings.dry_run and settings.train_adapter is None:
        return _print_paths(find_scans(settings, need_content=False))
    if settings.dry_run:
        return _analyze(settings)
    run_name = name_run()
    # torchrun starts several processes, of which only the first one writes.
    is_main_process = os.environ.get("RANK", "0") == "0"
    with work_folder(settings, run_name):
        if is_main_process:
            write_dataset_files(settings)
            start_log_file(settings.output_dir / "logs" / run_name, settings)
        code, failure = 0, None
        if not settings.reports_only:
            try:
                code = _analyze(settings)
            except HypsError as error:
                # Report what was done before the failure.
                failure = error
        if is_main_process:
            if not settings.reports_only:
                _write_methods(settings)
            _report_group(settings, failure)
    if failure is not None:
        raise failure
    return code


def _analyze(settings: Settings) -> int:
    """Do what the options of the group level ask for; return 1 if a part of it failed."""
    if settings.train_adapter is not None:
        from hyps_bids.adaptation.run import train_adapter

        train_adapter(settings)
        return 0
    from hyps_bids.cohort.tables import write_group_tables

    tables = write_group_tables(settings)
    failed: Sequence[str] = []
    if settings.target is not None:
        from hyps_bids.classification.train import train_classifiers

        failed = train_classifiers(settings, tables.wide)
    if settings.apply_classifier is not None:
        from hyps_bids.classification.apply import apply_classifier

        apply_classifier(
            settings.apply_classifier, tables.wide, settings.output_dir, settings.suffix
        )
    if settings.norms is not None:
        from hyps_bids.norms.fitting import fit_norms

        fit_norms(settings, tables.wide, tables.metadata)
    if settings.apply_norms is not None:
        from hyps_bids.norms.apply import apply_to_group

        apply_to_group(settings, tables.wide, tables.metadata)
    return 1 if failed or tables.failed_models or not tables.complete else 0


def _write_methods(settings: Settings) -> None:
    """Write the methods text of the group level beside that of the participant level."""
    from hyps_bids.reports.group_methods import group_methods_file, group_methods_markdown

    path = settings.output_dir / group_methods_file(settings.suffix)
    text = group_methods_markdown(settings.output_dir, settings.suffix)
    if text:
        write_text(path, text)
        write_text(settings.output_dir / "logs" / "CITATION.bib", bibtex())
    else:
        path.unlink(missing_ok=True)


def _report_group(settings: Settings, failure: HypsError | None) -> None:
    """Write the group report if there is anything to show."""
    output = settings.output_dir
    tables = f"group{group_space(settings.suffix)}_{SEG_PREFIX}_*"
    made = any(output.glob(tables)) or any(output.glob("models/*"))
    if not (made or settings.reports_only):
        return
    from hyps_bids.reports.group import write_group_report

    try:
        _LOG.info("The report is %s", write_group_report(output, settings.suffix))
    except HypsError as error:
        if failure is None:
            raise
        # The failure of the analysis is the one that ends the run.
        _LOG.error("%s: no report: %s", output, error)


def _print_paths(scans: Sequence[Scan]) -> int:
    for scan in scans:
        print(scan.path)
    return 0
