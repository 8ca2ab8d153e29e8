"""The graph of one scan."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nibabel as nib
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


#: Runs the participant level with PyTorch on a stand-in for a GPU (or, as "cpu", with the usual
#: one node per scan), and notes which processes read and write, and whether these load PyTorch.
_RUN = """
import os, signal, sys
from pathlib import Path
from hyps_bids import cli
from hyps_bids.segmentation import devices, inference
from hyps_bids.workflows import interfaces

mode, bids, out = sys.argv[1:4]
ours, tried = os.getpid(), Path(out + ".tried")
inference.openvino_problem = lambda: "a GPU would use PyTorch as well"
devices.choose_device = lambda name: name.replace("cuda", "cpu:0")
write, run_networks = interfaces.write_result, interfaces.run_networks

def write_elsewhere(*arguments):
    assert os.getpid() != ours
    assert ("torch" in sys.modules) == (mode == "cpu")
    if mode == "cuda" and not tried.exists():
        tried.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return write(*arguments)

def run_networks_here(*arguments):
    assert (os.getpid() == ours) == (mode == "cuda")
    return run_networks(*arguments)

interfaces.write_result, interfaces.run_networks = write_elsewhere, run_networks_here
options = ["--skip-bids-validation", "--device", mode, "--nprocs", "2"]
sys.exit(cli.main([bids, out, "participant", *options]))
"""


@pytest.mark.slow
def test_networks_in_one_process_give_the_same_as_one_process_per_scan(
    tmp_path: Path, coarse_head: nib.Nifti1Image
) -> None:
    """As with a GPU: workers read, write and report without PyTorch, also after one was killed."""
    for subject in ("01", "02"):
        path = tmp_path / f"raw/sub-{subject}/anat/sub-{subject}_T1w.nii.gz"
        path.parent.mkdir(parents=True)
        nib.save(coarse_head, path)
    path.write_bytes(path.read_bytes()[:5000])
    outputs = {}
    for mode in ("cpu", "cuda"):
        out = tmp_path / mode
        done = subprocess.run(
            [sys.executable, "-c", _RUN, mode, tmp_path / "raw", out],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1, done.stderr
        assert "1 of 2 scans done now" in done.stderr
        assert ("A process was killed" in done.stderr) == (mode == "cuda")
        assert not list(out.glob("work*"))
        outputs[mode] = {
            path.relative_to(out): path.read_bytes().replace(b'"cpu:0"', b'"cpu"')
            for path in sorted(out.glob("sub-01/**/*.*"))
        }
        assert len(list(out.glob("sub-*.html"))) == 2
    assert len(outputs["cpu"]) == 10
    assert outputs["cuda"] == outputs["cpu"]
