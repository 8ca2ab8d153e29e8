"""The subject reports as a nipype workflow: one node per subject, all independent."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    SimpleInterface,
    TraitedSpec,
    traits,
)
from nipype.pipeline import engine as pe

#: Memory that a node needs beyond its interpreter, measured on 256³ voxels, GB.
_MEM = 0.5


def init_reports_wf(
    *,
    subjects: Sequence[str],
    bids_dir: Path,
    output_dir: Path,
    work_dir: Path,
    settings_text: str,
) -> pe.Workflow:
    """Make one node per subject.

    Parameters
    ----------
    subjects : sequence of str
        Labels without ``sub-``.
    bids_dir, output_dir, work_dir : Path
        The raw dataset, the derivatives dataset, and the folder of intermediate files.
    settings_text : str
        The settings of the run, to be shown in the reports.
    """
    workflow = pe.Workflow(name="reports_wf", base_dir=str(work_dir))
    inner = []
    for subject in subjects:
        # Each node has its own workflow, so that crash files name it as they name scans.
        inner.append(pe.Workflow(name=report_name(subject)))
        report = SubjectReport(
            subject=subject,
            bids_dir=str(bids_dir),
            output_dir=str(output_dir),
            settings_text=settings_text,
        )
        inner[-1].add_nodes([pe.Node(report, name="report", mem_gb=_MEM)])
    # nipype compares the nodes of each call with all earlier ones, so all are added at once.
    workflow.add_nodes(inner)
    return workflow


def report_name(subject: str) -> str:
    """Name a subject's workflow.

    Examples
    --------
    >>> report_name("01")
    'report_of_sub_01'
    """
    return re.sub(r"\W", "_", f"report_of_sub_{subject}")


class _ReportInput(BaseInterfaceInputSpec):
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
