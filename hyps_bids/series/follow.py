"""What the node of a series does: find its scans, follow them, and write what was found."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hyps_bids.cohort.scan_times import ScanTime, Visit, order_visits
from hyps_bids.errors import BadData
from hyps_bids.imaging.conform import ConformedImage, conform
from hyps_bids.longitudinal.change import error_model
from hyps_bids.longitudinal.images import (
    midway_grid,
    read_mask,
    time_point,
    time_point_images,
)
from hyps_bids.longitudinal.pipeline import Followed, TimePoint, follow
from hyps_bids.longitudinal.quality import ScanState, quality_table
from hyps_bids.longitudinal.tables import Course, change_table, used_scans, volume_table
from hyps_bids.outputs.completion import content_of, fingerprint_of, provenance_of
from hyps_bids.outputs.labels import WHOLE
from hyps_bids.outputs.names import scan_paths, sidecar_path
from hyps_bids.outputs.provenance import Provenance
from hyps_bids.outputs.reading import load_json, read_table
from hyps_bids.outputs.scan import Scan
from hyps_bids.outputs.series import Series, find_series_of
from hyps_bids.outputs.series_files import (
    SeriesResult,
    TimePointImages,
    remove_series,
    write_series,
)
from hyps_bids.outputs.series_state import (
    Member,
    are_several,
    find_failed,
    find_members,
    is_series_done,
    recorded_scans,
    series_fingerprint,
)
from hyps_bids.reports.scan_facts import find_scans_of
from hyps_bids.resources import read_many
from hyps_bids.segmentation.pipeline import Pipeline, correct_bias

#: How often to begin again because another job has finished a scan meanwhile.
_ATTEMPTS = 3


@dataclass(frozen=True)
class SeriesPlan:
    """How to follow series.

    Attributes
    ----------
    bids_dir, output_dir : Path
        The raw dataset and the derivatives dataset.
    pipeline : Pipeline
        The networks, and whether to correct the bias field.
    provenance : Provenance
        Facts for the sidecars.
    longitudinal : bool or None
        The option.
    times : mapping of str to ScanTime
        When each scan was taken, by its stem.
    """

    bids_dir: Path
    output_dir: Path
    pipeline: Pipeline
    provenance: Provenance
    longitudinal: bool | None
    times: Mapping[str, ScanTime]


@dataclass(frozen=True)
class SeriesState:
    """A series as its scans are now.

    Attributes
    ----------
    scans : sequence of Scan
        All scans that have or had outputs, by name only.
    members : sequence of Member
        Those to follow, in the order of time; empty if they are not to be followed.
    visits : mapping of str to Visit
        Place of each in time, by its stem.
    failed : mapping of Scan to str
        Those that failed by themselves, by name only, and why.
    fingerprint : str
        Digest of what decides the results.
    """

    scans: Sequence[Scan]
    members: Sequence[Member]
    visits: Mapping[str, Visit]
    failed: Mapping[Scan, str]
    fingerprint: str


def look_at_series(wanted: Sequence[Series], plan: SeriesPlan) -> dict[Series, SeriesState]:
    """Find out which scans each series has now, and their order."""

    def look(series: Series) -> tuple[list[Scan], list[Member]]:
        found = find_scans_of(plan.output_dir, series.subject)
        # Scans that another job has begun after this one are left to it.
        scans = [s for s in found if Series.of(s) == series and s.stem in plan.times]
        members = find_members(scans, plan.bids_dir, plan.output_dir)
        own = [member.scan for member in members]
        made = series in find_series_of(plan.output_dir, series.subject)
        several = are_several(own, plan.longitudinal, made=made)
        return scans, members if several else []

    found = dict(zip(wanted, read_many(look, wanted), strict=True))
    stems = [member.scan.stem for _, members in found.values() for member in members]
    # One table of all scans, as to sort one takes nearly as long as to sort thousands.
    visits = order_visits({stem: plan.times[stem] for stem in stems}) if stems else {}
    states = {}
    for series, (scans, members) in found.items():
        own = {member.scan.stem: visits[member.scan.stem] for member in members}
        members.sort(key=lambda member: visits[member.scan.stem].number)
        places = {
            stem: (each.number, each.source, None if math.isnan(each.years) else each.years)
            for stem, each in own.items()
        }
        others = [scan for scan in scans if scan.stem not in own]
        failed = find_failed(others, plan.bids_dir, plan.output_dir) if members else {}
        mark = series_fingerprint(members, places, plan.provenance, failed)
        states[series] = SeriesState(scans, members, own, failed, mark)
    return states


def follow_series(series: Series, plan: SeriesPlan, threads: int = 1) -> None:
    """Bring the results of a series up to date with those of its scans.

    Raises
    ------
    BadData
        If an image or a result of a scan cannot be read, or has changed since.
    CannotCreateOutput
        If a file cannot be written.
    """
    for _ in range(_ATTEMPTS):
        state = _look(series, plan)
        if not state.members:
            remove_series(series, _known(series, state, plan), plan.output_dir)
            return
        # Another job may have done it meanwhile, or may finish a scan while this one is at work.
        if is_series_done(series, plan.output_dir, state.fingerprint):
            return
        if _follow_once(series, state, plan, threads):
            return


def _follow_once(series: Series, state: SeriesState, plan: SeriesPlan, threads: int) -> bool:
    """Follow the scans that are there now; tell whether they were still the same at the end."""
    from hyps_bids.segmentation.inference import cached_adapted

    points, shapes, states = [], [], []
    for member in state.members:
        point, shape, known = _read(member, plan, threads)
        points.append(point)
        shapes.append(shape)
        states.append(known)
    # The CPU does it also where a GPU segments the scans, which only one process can use.
    network = cached_adapted(plan.pipeline.adapter, plan.pipeline.base, "cpu")
    followed = follow(points, network, threads)
    result = _result(_course(state, plan), followed, states, points, shapes, plan)
    return write_series(
        series,
        state.members,
        result,
        state.fingerprint,
        plan.provenance,
        plan.output_dir,
        known=_known(series, state, plan),
        is_current=lambda: _look(series, plan).fingerprint == state.fingerprint,
    )


def _known(series: Series, state: SeriesState, plan: SeriesPlan) -> list[Scan]:
    """Name all scans that may have files of the series, by names only."""
    present = {scan.stem for scan in find_scans_of(plan.output_dir, series.subject)}
    recorded = recorded_scans(series, plan.output_dir)
    # A user may have removed all outputs of a scan but those of the series.
    return [*state.scans, *(scan for scan in recorded if scan.stem not in present)]


def _look(series: Series, plan: SeriesPlan) -> SeriesState:
    with _quiet():
        return look_at_series([series], plan)[series]


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out warnings about the dataset's tables, which the run has given for all scans."""
    logger = logging.getLogger("hyps_bids")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _read(
    member: Member, plan: SeriesPlan, threads: int
) -> tuple[TimePoint, tuple[int, ...], ScanState]:
    """Read the image of a scan and its results, and check that they belong together."""
    scan = member.scan
    paths = scan_paths(scan, plan.output_dir)
    content = content_of(scan)
    image = conform(scan.path)
    try:
        record = load_json(sidecar_path(paths["qc"]))
        made_by = provenance_of(record)
        volumes = _whole_volumes(paths["morph"])
        # What was not found in the scan by itself has no volume over time either.
        centers = {hemi: record["BoxCentres"][hemi] for hemi in volumes}
        mask = read_mask(paths["mask"])
        flagged = read_table(paths["qc"])["review"].iloc[0] == "yes"
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise BadData(
            f"{paths['qc'].parent}: the results of {scan.stem} cannot be read ({error}). Remove "
            f"{paths['qc'].name} and run the command again.",
            code="scan-results-damaged",
        ) from error
    if fingerprint_of(content, made_by) != member.fingerprint:
        raise BadData(
            f"{scan.path}: the image is not the one that was segmented. Run the participant level "
            "for this scan first.",
            code="image-changed",
        )
    if mask.shape != image.native_shape:
        raise BadData(
            f"{paths['mask']}: the shape is not that of {scan.path}. Remove {paths['qc'].name} "
            "and run the command again.",
            code="scan-results-damaged",
        )
    shape = image.data.shape
    if plan.pipeline.n4:
        image = correct_bias(image, threads=threads)
    edited = "EditedLabels" in made_by
    known = ScanState(image.affine, flagged, _protocol(scan), volumes, edited)
    return time_point(image, mask, centers), shape, known


def _whole_volumes(path: Path) -> dict[str, float]:
    """Read the soft volumes of the hippocampi that were found in a scan."""
    table = read_table(path)
    whole = table[table["part"] == WHOLE].dropna(subset="volume_soft_mm3")
    return dict(zip(whole["hemi"], whole["volume_soft_mm3"], strict=True))


def _protocol(scan: Scan) -> Mapping[str, Any]:
    """Read what the JSON sidecar of an image says, if it has one."""
    with suppress(OSError, ValueError):
        content = load_json(sidecar_path(scan.path))
        if isinstance(content, dict):
            return content
    return {}


def _course(state: SeriesState, plan: SeriesPlan) -> Course:
    scans = [member.scan for member in state.members]
    visits = [state.visits[scan.stem] for scan in scans]
    times = [plan.times[scan.stem] for scan in scans]
    in_years = not times[0].age_unit or times[0].age_unit.casefold().startswith("y")
    whole = visits[0].source == "age" and in_years and all(t.age == round(t.age) for t in times)
    years = np.array([visit.years for visit in visits])
    return Course(scans, years, visits[0].source, whole, state.failed)


def _result(
    course: Course,
    followed: Followed,
    states: Sequence[ScanState],
    points: Sequence[TimePoint],
    shapes: Sequence[tuple[int, ...]],
    plan: SeriesPlan,
) -> SeriesResult:
    used = used_scans(followed)
    coarsest = max((followed.figures[i]["voxel_mm"] for i in used), default=0.0)
    model = error_model(plan.provenance["Models"]["Adapter"]["SHA256"], coarsest)
    several = len(used) > 1
    qc = quality_table(course, followed, states)
    flags = qc.loc[qc["status"] == "used", "flags"].dropna().str.split().explode().unique()
    used = used if followed.sides else []
    grid = midway_grid(followed) if used else ((), np.eye(4))

    def images() -> Iterator[TimePointImages]:
        for i in used:
            image: ConformedImage = replace(points[i].image, affine=states[i].affine)
            yield time_point_images(i, followed, image, shapes[i], grid)

    changes = change_table(course, followed, model, flags)
    edited = [scan.stem for scan, s in zip(course.scans, states, strict=True) if s.edited]
    if edited:
        text = f"the labels of {', '.join(edited)} were edited, but this is from the networks"
        known = changes["remarks"]
        changes["remarks"] = [f"{old}; {text}" if isinstance(old, str) else text for old in known]
    return SeriesResult(
        morph=volume_table(course, followed, model) if several else changes[:0],
        annual=changes if several else changes[:0],
        qc=qc,
        grid=grid[1],
        used=[course.scans[i] for i in used],
        images=images(),
    )
