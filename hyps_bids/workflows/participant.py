"""The participant level as nipype workflows: one per scan, all independent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nipype.pipeline import engine as pe

from hyps_bids.outputs.provenance import Provenance
from hyps_bids.outputs.scan import Scan
from hyps_bids.outputs.scan_files import fingerprint
from hyps_bids.segmentation.pipeline import Pipeline
from hyps_bids.workflows.interfaces import (
    BiasCorrect,
    Conform,
    Discard,
    Localize,
    Measure,
    Restore,
    Segment,
    Write,
)

#: Memory that a node needs beyond its interpreter, measured on 256³ voxels, GB.
_MEM_SMALL, _MEM_NETWORK = 0.6, 1.2


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
    keep_intermediates : bool
        Keep the intermediate files, tens of MB per scan, so that a later run can go on from them.
    """

    pipeline: Pipeline
    output_dir: Path
    provenance: Provenance
    omp_nthreads: int
    keep_intermediates: bool


def init_participant_wf(
    scans: Sequence[Scan], plan: ParticipantPlan, work_dir: Path
) -> pe.Workflow:
    """Join the workflows of all scans.

    Parameters
    ----------
    scans : sequence of Scan
        The scans to process.
    plan : ParticipantPlan
        How to process them.
    work_dir : Path
        Folder of intermediate files.
    """
    workflow = pe.Workflow(name="participant_wf", base_dir=str(work_dir))
    # nipype compares the nodes of each call with all earlier ones, so all are added at once.
    workflow.add_nodes([init_scan_wf(scan, plan) for scan in scans])
    return workflow


def init_scan_wf(scan: Scan, plan: ParticipantPlan) -> pe.Workflow:
    """Chain the nodes of one scan, from the image to its derivatives."""
    # Nodes run in their own folders, where a relative name leads nowhere.
    scan = replace(scan, path=scan.path.absolute())
    pipeline, threads = plan.pipeline, plan.omp_nthreads
    network = {
        "device": str(pipeline.device),
        "use_gpu": pipeline.device.type != "cpu",
        "num_threads": threads,
    }

    large = {"n_procs": threads, "mem_gb": _MEM_NETWORK}

    def node(name: str, interface: object, **options: object) -> pe.Node:
        return pe.Node(interface, name=name, **({"mem_gb": _MEM_SMALL} | options))

    conform = node(
        "conform", Conform(in_file=str(scan.path), fingerprint=fingerprint(scan, plan.provenance))
    )
    localize = node("localize", Localize(weights=pipeline.localizer, **network), **large)
    segment = node(
        "segment", Segment(adapter=pipeline.adapter, base=pipeline.base, **network), **large
    )
    restore = node("restore", Restore())
    measure = node("measure", Measure())
    write = node(
        "write", Write(scan=scan, output_dir=str(plan.output_dir), provenance=plan.provenance)
    )
    image = conform
    workflow = pe.Workflow(name=scan.workflow_name)
    if pipeline.n4:
        image = node("bias", BiasCorrect(num_threads=threads), n_procs=threads)
        workflow.connect(conform, "out_file", image, "image")
    # Output of the first node → input of this name of the others.
    results = {
        "image": (image, [localize, segment, restore, measure, write]),
        "localization": (localize, [segment, measure, write]),
        "segmentation": (segment, [restore, measure]),
        "restored": (restore, [measure, write]),
        "measures": (measure, [write]),
    }
    if not plan.keep_intermediates:
        discard = pe.Node(Discard(), name="discard", run_without_submitting=True)
        results |= {"conformed": (conform, [discard]), "written": (write, [discard])}
        for name in ("image", "localization", "segmentation", "restored"):
            results[name][1].append(discard)
    for name, (source, targets) in results.items():
        for target in targets:
            workflow.connect(source, "out_file", target, name)
    return workflow
