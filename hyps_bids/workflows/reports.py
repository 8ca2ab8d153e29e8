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

__all__ = ["SubjectReport", "init_reports_wf", "report_name"]

#: GB that a node needs beyond its interpreter, seen on 256³ voxels
_MEM = 0.5


def init_reports_wf(
    *,
    subjects: Sequence[str],
    bids_dir: Path,
    output_dir: Path,
    work_dir: Path,
    settings_text: str,
    name: str = "reports_wf",
) -> pe.Workflow:
    """Make one node per subject.

    Parameters
    ----------
    subjects : sequence of str
        Labels without ``sub-``.
    bids_dir, output_dir, work_dir : Path
        The raw dataset, the derivatives dataset, and the folder of intermediate files.
    settings_text : str
        The settings of the run, for the reports.

    Returns
    -------
    nipype.pipeline.engine.Workflow
        To be run with any plugin.
    """
    workflow = pe.Workflow(name=name, base_dir=str(work_dir))
    of_subjects = []
    for subject in subjects:
        # of its own, so that crash files name it like those of scans
        of_subject = pe.Workflow(name=report_name(subject))
        report = SubjectReport(
            subject=subject,
            bids_dir=str(bids_dir),
            output_dir=str(output_dir),
            settings_text=settings_text,
        )
        of_subject.add_nodes([pe.Node(report, name="report", mem_gb=_MEM)])
        of_subjects.append(of_subject)
    # all at once: nipype compares each call's nodes with those that are there
    workflow.add_nodes(of_subjects)
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
    subject = traits.Str(mandatory=True, desc="label")
    bids_dir = traits.Str(mandatory=True, desc="raw dataset")
    output_dir = traits.Str(mandatory=True, desc="derivatives dataset")
    settings_text = traits.Str("", usedefault=True, desc="settings of the run")


class _ReportOutput(TraitedSpec):
    out_file = File(exists=True, desc="the report")


class SubjectReport(SimpleInterface):
    """Write a report (:func:`hyps_bids.reports.subject.write_subject_report`)."""

    input_spec = _ReportInput
    output_spec = _ReportOutput
    # its inputs are the outputs of others
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
