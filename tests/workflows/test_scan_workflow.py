"""The graph of one scan, without running it."""

from __future__ import annotations

from pathlib import Path

import pytest

from hyps_bids.bids.index import Scan
from hyps_bids.networks.checkpoints import BASE, LOCALIZER, shipped_weights
from hyps_bids.workflows.participant import Models, init_scan_wf


def test_relative_names_reach_the_nodes_as_absolute_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # nodes run in other folders; links keep the dataset's names
    path = tmp_path / "raw" / "sub-01" / "anat" / "sub-01_T1w.nii.gz"
    path.parent.mkdir(parents=True)
    (tmp_path / "content").touch()
    path.symlink_to(tmp_path / "content")
    monkeypatch.chdir(tmp_path)
    models = Models(
        localizer=shipped_weights(LOCALIZER),
        base=shipped_weights(BASE),
        adapter=shipped_weights("adapter-anteriorposterior"),
    )
    workflow = init_scan_wf(
        scan=Scan.from_path(path.relative_to(tmp_path)),
        models=models,
        output_dir=tmp_path / "out",
        provenance={},
        device="cpu",
        n4=False,
        omp_nthreads=1,
    )
    assert workflow.get_node("conform").inputs.in_file == str(path)
    assert workflow.get_node("write").inputs.scan == Scan.from_path(path)
