"""The participant level as a nipype workflow, with one inside for each subject and each scan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from nipype.pipeline import engine as pe

from hyps_bids.outputs.edits import Edit, with_edit
from hyps_bids.outputs.provenance import Provenance
from hyps_bids.outputs.scan import Scan
from hyps_bids.outputs.series import Series, group_scans
from hyps_bids.segmentation.pipeline import Pipeline
from hyps_bids.workflows.interfaces import (
    FollowSeries,
    PlaceScan,
    ProcessScan,
    ReadScan,
    RunNetworks,
    WriteScan,
)
from hyps_bids.workflows.reports import (
    SCAN_GB,
    SMALL_GB,
    ReportPlan,
    make_report_node,
    subject_name,
)

if TYPE_CHECKING:
    from hyps_bids.series.follow import SeriesPlan
    from hyps_bids.spaces.place import SpacePlan

#: Memory that each scan adds to a series, GB.
SERIES_SCAN_GB = 0.08


@dataclass(frozen=True)
class ParticipantPlan:
    """How to process scans.

    Attributes
    ----------
    pipeline : Pipeline
        Networks, device, and whether to correct the bias field.
    output_dir : Path
        The derivatives dataset.
    provenance : Provenance
        Facts for the sidecars.
    omp_nthreads : int
        Threads per node.
    networks_here : bool
        Run the networks of all scans in this process, because it alone uses the GPU.
    edits : mapping of str to Edit
        Stem of a scan → labels that replace the networks'.
    series_threads : int
        Threads that follow a series.
    surfaces : bool
        Make surfaces of the hippocampi.
    """

    pipeline: Pipeline
    output_dir: Path
    provenance: Provenance
    omp_nthreads: int
    networks_here: bool = False
    edits: Mapping[str, Edit] = field(default_factory=dict)
    series_threads: int = 1
    surfaces: bool = False


def init_participant_wf(
    scans: Sequence[Scan],
    plan: ParticipantPlan,
    work_dir: Path,
    report_plan: ReportPlan | None = None,
    series: Mapping[Series, SeriesPlan] = MappingProxyType({}),
) -> pe.Workflow:
    """Join the workflows of all scans by subject, each with its series and its report.

    Parameters
    ----------
    scans : sequence of Scan
        The scans to process.
    plan : ParticipantPlan
        How to process them.
    work_dir : Path
        Folder of intermediate files.
    report_plan : ReportPlan, optional
        How to build the report of each subject when all its scans among `scans` are done.
    series : mapping of Series to SeriesPlan
        Series to follow when their scans among `scans` are done.
    """
    of_subject: dict[str, list[Scan]] = {}
    for scan in scans:
        of_subject.setdefault(scan.subject, []).append(scan)
    inner = []
    for subject, own in of_subject.items():
        # Connections within small workflows cost nipype less than in the large one.
        inner.append(pe.Workflow(name=subject_name(subject)))
        before = {scan: init_scan_wf(scan, plan) for scan in own}
        inner[-1].add_nodes(list(before.values()))
        ends = [(wf, "write.out_file") for wf in before.values()]
        for each in [one for one in group_scans(own) if one in series]:
            awaited = [wf for scan, wf in before.items() if Series.of(scan) == each]
            following = init_series_wf(each, series[each], plan.series_threads, awaited)
            for i, wf in enumerate(awaited):
                inner[-1].connect(wf, "write.out_file", following, f"follow.scan{i}")
            ends.append((following, "follow.out_file"))
        if report_plan is not None:
            report = make_report_node(subject, report_plan, scans=len(ends))
            inner[-1].connect(
                [(wf, report, [(end, f"scan{i}")]) for i, (wf, end) in enumerate(ends)]
            )
    workflow = pe.Workflow(name="participant_wf", base_dir=str(work_dir))
    # nipype compares the nodes of each call with all earlier ones, so all are added at once.
    workflow.add_nodes(inner)
    return workflow


def init_series_wf(
    series: Series, plan: SeriesPlan, threads: int, awaited: Sequence[pe.Workflow] = ()
) -> pe.Workflow:
    """Make the node of one series, ``follow``, with an input for each scan that it waits for."""
    count = sum(Series.of(Scan.from_stem(stem)) == series for stem in plan.times)
    node = pe.Node(
        FollowSeries(scans=len(awaited), series=series, plan=plan, num_threads=threads),
        name="follow",
        n_procs=threads,
        mem_gb=SCAN_GB + SERIES_SCAN_GB * count,
    )
    # A workflow of its own, so that crash files name the series.
    workflow = pe.Workflow(name=series.workflow_name)
    workflow.add_nodes([node])
    return workflow


def init_place_wf(scan: Scan, plan: SpacePlan) -> pe.Workflow:
    """Make the node, ``place``, that brings a scan to the spaces of templates."""
    # Nodes run in their own folders, where a relative name leads nowhere.
    scan = replace(scan, path=scan.path.absolute())
    workflow = pe.Workflow(name=f"place_{scan.workflow_name}")
    node = pe.Node(PlaceScan(scan=scan, plan=plan), name="place", mem_gb=SCAN_GB)
    workflow.add_nodes([node])
    return workflow


def init_scan_wf(scan: Scan, plan: ParticipantPlan) -> pe.Workflow:
    """Make the nodes of one scan, from the image to its derivatives; the last is ``write``."""
    # Nodes run in their own folders, where a relative name leads nowhere.
    scan = replace(scan, path=scan.path.absolute())
    reading = {"scan": scan, "pipeline": plan.pipeline}
    edit = plan.edits.get(scan.stem)
    writing = {
        "output_dir": str(plan.output_dir),
        "provenance": with_edit(plan.provenance, edit),
        "edit": edit,
        "surfaces": plan.surfaces,
    }
    large = {"n_procs": plan.omp_nthreads, "mem_gb": SCAN_GB}
    small = {"n_procs": plan.omp_nthreads if plan.pipeline.n4 else 1, "mem_gb": SMALL_GB}
    workflow = pe.Workflow(name=scan.workflow_name)
    if not plan.networks_here:
        workflow.add_nodes([pe.Node(ProcessScan(**reading, **writing), name="write", **large)])
        return workflow
    read = pe.Node(ReadScan(**reading), name="read", **small)
    networks = pe.Node(
        RunNetworks(pipeline=plan.pipeline, num_threads=plan.omp_nthreads),
        name="networks",
        run_without_submitting=True,
    )
    write = pe.Node(WriteScan(**reading, **writing), name="write", mem_gb=SMALL_GB)
    workflow.connect(
        [
            (read, networks, [("out_file", "image")]),
            (read, write, [("out_file", "image")]),
            (networks, write, [("out_file", "networks")]),
        ]
    )
    return workflow
