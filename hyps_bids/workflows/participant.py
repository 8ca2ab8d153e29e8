"""The participant level as nipype workflows: one per scan, all independent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nipype.pipeline import engine as pe

from hyps_bids.outputs.provenance import Provenance
from hyps_bids.outputs.scan import Scan
from hyps_bids.outputs.scan_files import fingerprint
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

__all__ = ["Models", "init_participant_wf", "init_scan_wf"]

#: GB that a node needs beyond its interpreter, seen on 256³ voxels
_MEM_SMALL, _MEM_NETWORK = 0.6, 1.2


@dataclass(frozen=True)
class Models:
    """Weights files of a run."""

    localizer: Path
    base: Path
    adapter: Path


def init_participant_wf(
    *,
    scans: Sequence[Scan],
    models: Models,
    output_dir: Path,
    work_dir: Path,
    provenance: Provenance,
    device: str,
    n4: bool,
    omp_nthreads: int,
    keep_intermediates: bool,
    name: str = "participant_wf",
) -> pe.Workflow:
    """Join the workflows of all scans.

    Parameters
    ----------
    scans : sequence of Scan
        The scans to process.
    models : Models
        Weights files.
    output_dir, work_dir : Path
        The derivatives dataset, and the folder of intermediate files.
    provenance : Provenance
        Facts for the sidecars.
    device : str
        ``cpu`` or ``cuda[:N]``.
    n4 : bool
        Correct the bias field.
    omp_nthreads : int
        Threads per node.
    keep_intermediates : bool
        Whether a later run is to find what this one computed; tens of MB per scan.

    Returns
    -------
    nipype.pipeline.engine.Workflow
        To be run with any plugin.
    """
    workflow = pe.Workflow(name=name, base_dir=str(work_dir))
    # all at once: nipype compares each call's nodes with those that are there
    workflow.add_nodes(
        [
            init_scan_wf(
                scan=scan,
                models=models,
                output_dir=output_dir,
                provenance=provenance,
                device=device,
                n4=n4,
                omp_nthreads=omp_nthreads,
                keep_intermediates=keep_intermediates,
            )
            for scan in scans
        ]
    )
    return workflow


def init_scan_wf(
    *,
    scan: Scan,
    models: Models,
    output_dir: Path,
    provenance: Provenance,
    device: str,
    n4: bool,
    omp_nthreads: int,
    keep_intermediates: bool,
) -> pe.Workflow:
    """Conform, correct, localize, segment, restore, measure and write one scan; tidy up.

    The parameters are those of :func:`init_participant_wf`.
    """
    # nodes run in their own folders, where a relative name leads nowhere
    scan = replace(scan, path=scan.path.absolute())
    compute = {"device": device, "use_gpu": device != "cpu", "num_threads": omp_nthreads}
    conform = pe.Node(
        Conform(in_file=str(scan.path), fingerprint=fingerprint(scan, provenance)),
        name="conform",
        mem_gb=_MEM_SMALL,
    )
    localize = pe.Node(
        Localize(weights=models.localizer, **compute),
        name="localize",
        n_procs=omp_nthreads,
        mem_gb=_MEM_NETWORK,
    )
    segment = pe.Node(
        Segment(adapter=models.adapter, base=models.base, **compute),
        name="segment",
        n_procs=omp_nthreads,
        mem_gb=_MEM_NETWORK,
    )
    restore = pe.Node(Restore(), name="restore", mem_gb=_MEM_SMALL)
    measure = pe.Node(Measure(), name="measure", mem_gb=_MEM_SMALL)
    write = pe.Node(
        Write(scan=scan, output_dir=str(output_dir), provenance=provenance),
        name="write",
        mem_gb=_MEM_SMALL,
    )
    image = conform
    workflow = pe.Workflow(name=scan.workflow_name)
    if n4:
        image = pe.Node(
            BiasCorrect(num_threads=omp_nthreads),
            name="bias",
            n_procs=omp_nthreads,
            mem_gb=_MEM_SMALL,
        )
        workflow.connect(conform, "out_file", image, "image")
    for node in (localize, segment, restore, measure, write):
        workflow.connect(image, "out_file", node, "image")
    for node in (segment, measure, write):
        workflow.connect(localize, "out_file", node, "localization")
    for node in (restore, measure):
        workflow.connect(segment, "out_file", node, "segmentation")
    for node in (measure, write):
        workflow.connect(restore, "out_file", node, "restored")
    workflow.connect(measure, "out_file", write, "measures")
    if not keep_intermediates:
        discard = pe.Node(Discard(), name="discard", run_without_submitting=True)
        for node, name in (
            (conform, "conformed"),
            (image, "image"),
            (localize, "localization"),
            (segment, "segmentation"),
            (restore, "restored"),
            (write, "written"),
        ):
            workflow.connect(node, "out_file", discard, name)
    return workflow
