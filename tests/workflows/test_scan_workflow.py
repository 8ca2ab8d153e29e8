"""The graph of one scan."""

from __future__ import annotations

from pathlib import Path

import pytest
from nipype.pipeline import engine as pe

from hyps_bids.networks.cards import ADAPTER, BASE, LOCALIZER, shipped_weights
from hyps_bids.outputs.scan import Scan
from hyps_bids.segmentation.pipeline import Pipeline
from hyps_bids.workflows.participant import ParticipantPlan, init_scan_wf


def scan_wf(scan: Scan, output: Path, *, networks_here: bool = False) -> pe.Workflow:
    weights = [shipped_weights(name) for name in (LOCALIZER, BASE, ADAPTER)]
    plan = ParticipantPlan(
        pipeline=Pipeline(*weights, "cpu"),
        output_dir=output,
        provenance={"SoftwareVersion": "0", "Models": {}, "BiasFieldCorrection": "none"},
        omp_nthreads=1,
        networks_here=networks_here,
    )
    return init_scan_wf(scan, plan)


@pytest.mark.parametrize("networks_here", [False, True])
def test_relative_names_reach_the_nodes_as_absolute_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, networks_here: bool
) -> None:
    # Nodes run in other folders; links keep the dataset's names
    path = tmp_path / "raw" / "sub-01" / "anat" / "sub-01_T1w.nii.gz"
    path.parent.mkdir(parents=True)
    (tmp_path / "content").touch()
    path.symlink_to(tmp_path / "content")
    monkeypatch.chdir(tmp_path)
    scan = Scan.from_path(path.relative_to(tmp_path))
    workflow = scan_wf(scan, tmp_path / "out", networks_here=networks_here)
    assert workflow.get_node("write").inputs.scan == Scan.from_path(path)
    if networks_here:
        assert workflow.get_node("read").inputs.scan == Scan.from_path(path)
