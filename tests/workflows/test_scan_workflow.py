"""The graph of one scan."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import pytest
import torch
from nipype.pipeline import engine as pe

from hyps_bids.networks.checkpoints import ADAPTER, BASE, LOCALIZER, shipped_weights
from hyps_bids.outputs.scan import Scan
from hyps_bids.segmentation.pipeline import Pipeline
from hyps_bids.workflows.participant import ParticipantPlan, init_scan_wf


def scan_wf(scan: Scan, output: Path, *, n4: bool = False, keep: bool = True) -> pe.Workflow:
    weights = [shipped_weights(name) for name in (LOCALIZER, BASE, ADAPTER)]
    plan = ParticipantPlan(
        pipeline=Pipeline(*weights, torch.device("cpu"), n4),
        output_dir=output,
        provenance={"SoftwareVersion": "0", "Models": {}, "BiasFieldCorrection": "none"},
        omp_nthreads=1,
        keep_intermediates=keep,
    )
    return init_scan_wf(scan, plan)


def test_relative_names_reach_the_nodes_as_absolute_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nodes run in other folders; links keep the dataset's names
    path = tmp_path / "raw" / "sub-01" / "anat" / "sub-01_T1w.nii.gz"
    path.parent.mkdir(parents=True)
    (tmp_path / "content").touch()
    path.symlink_to(tmp_path / "content")
    monkeypatch.chdir(tmp_path)
    workflow = scan_wf(Scan.from_path(path.relative_to(tmp_path)), tmp_path / "out")
    assert workflow.get_node("conform").inputs.in_file == str(path)
    assert workflow.get_node("write").inputs.scan == Scan.from_path(path)


@pytest.mark.slow
@pytest.mark.parametrize("keep", [True, False])
def test_intermediate_files_go_unless_they_are_to_be_kept(
    tmp_path: Path, coarse_head: nib.Nifti1Image, keep: bool
) -> None:
    path = tmp_path / "raw/sub-01/anat/sub-01_T1w.nii.gz"
    path.parent.mkdir(parents=True)
    nib.save(coarse_head, path)
    workflow = scan_wf(Scan.from_path(path), tmp_path / "out", n4=not keep, keep=keep)
    workflow.base_dir = str(tmp_path / "work")
    workflow.run(plugin="Linear")
    assert (tmp_path / "out/sub-01/anat/sub-01_seg-hippocampus_qc.json").is_file()
    left = {path.name for path in (tmp_path / "work").rglob("*.npz")}
    everything = {f"{name}.npz" for name in ("conform", "localize", "segment", "restore")}
    # What is measured are a few numbers
    assert left - {"measure.npz"} == (everything if keep else set())
