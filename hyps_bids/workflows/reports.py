"""The subject reports as nipype nodes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    DynamicTraitedSpec,
    File,
    SimpleInterface,
    TraitedSpec,
    traits,
)
from nipype.interfaces.io import add_traits
from nipype.pipeline import engine as pe

#: Memory of a process that does a scan, and of one that only reads, writes or reports, measured on
#: 256³ voxels, GB.
SCAN_GB, SMALL_GB = 0.9, 0.5


@dataclass(frozen=True)
class ReportPlan:
    """How to build reports.

    Attributes
    ----------
    bids_dir, output_dir : Path
        The raw dataset and the derivatives dataset.
    settings_text : str
        The settings of the run, to be shown in the reports.
    """

    bids_dir: Path
    output_dir: Path
    settings_text: str


def init_reports_wf(subjects: Sequence[str], plan: ReportPlan, work_dir: Path) -> pe.Workflow:
    """Make one node per subject.

    Parameters
    ----------
    subjects : sequence of str
        Labels without ``sub-``.
    plan : ReportPlan
        How to build reports.
    work_dir : Path
        Folder of intermediate files.
    """
    workflow = pe.Workflow(name="reports_wf", base_dir=str(work_dir))
    inner = []
    for subject in subjects:
        # Each node has its own workflow, so that crash files name it as they name scans.
        inner.append(pe.Workflow(name=subject_name(subject)))
        inner[-1].add_nodes([make_report_node(subject, plan)])
    # nipype compares the nodes of each call with all earlier ones, so all are added at once.
    workflow.add_nodes(inner)
    return workflow


def make_report_node(subject: str, plan: ReportPlan, scans: int = 0) -> pe.Node:
    """Make the node that builds the report of a subject.

    Parameters
    ----------
    subject : str
        Label without ``sub-``.
    plan : ReportPlan
        How to build reports.
    scans : int
        Number of scans to wait for, by its inputs ``scan0``, ``scan1``, ….
    """
    report = SubjectReport(
        scans,
        subject=subject,
        bids_dir=str(plan.bids_dir),
        output_dir=str(plan.output_dir),
        settings_text=plan.settings_text,
    )
    return pe.Node(report, name="report", mem_gb=SMALL_GB)


def subject_name(subject: str) -> str:
    """Name a subject's workflow.

    Examples
    --------
    >>> subject_name("01")
    'subject_01'
    """
    return re.sub(r"\W", "_", f"subject_{subject}")


class _ReportInput(DynamicTraitedSpec, BaseInterfaceInputSpec):
    subject = traits.Str(mandatory=True, desc="label without sub-")
    bids_dir = traits.Str(mandatory=True, desc="raw dataset")
    output_dir = traits.Str(mandatory=True, desc="derivatives dataset")
    settings_text = traits.Str("", usedefault=True, desc="settings of the run")


class _ReportOutput(TraitedSpec):
    out_file = File(exists=True, desc="the report")


class SubjectReport(SimpleInterface):
    """Write a report (:func:`hyps_bids.reports.subject.write_subject_report`)."""

    input_spec = _ReportInput
    output_spec = _ReportOutput
    # Its real inputs are the outputs of other nodes, which nipype does not see.
    _always_run = True

    def __init__(self, scans: int = 0, **inputs: Any) -> None:
        super().__init__(**inputs)
        add_traits(self.inputs, [f"scan{i}" for i in range(scans)])

    def _run_interface(self, runtime: Any) -> Any:
        from hyps_bids.reports.subject import write_subject_report

        path = write_subject_report(
            Path(self.inputs.bids_dir),
            Path(self.inputs.output_dir),
            self.inputs.subject,
            settings_text=self.inputs.settings_text,
        )
        self._results["out_file"] = str(path)
        return runtime
