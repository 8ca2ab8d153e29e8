"""Which scans are done: decided without reading what need not be read."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from hyps_bids.outputs.completion import find_undone, fingerprint, is_complete, is_done
from hyps_bids.outputs.digests import Digests
from hyps_bids.outputs.names import scan_paths, sidecar_path
from hyps_bids.outputs.provenance import Provenance
from hyps_bids.outputs.scan import Scan

PROVENANCE: Provenance = {"SoftwareVersion": "1", "Models": {}, "BiasFieldCorrection": "none"}


def add_scan(folder: Path, subject: str) -> Scan:
    path = folder / "raw" / f"sub-{subject}" / "anat" / f"sub-{subject}_T1w.nii.gz"
    path.parent.mkdir(parents=True)
    path.write_text(subject)
    return Scan.from_path(path)


def add_outputs(scan: Scan, folder: Path, mark: object) -> None:
    paths = scan_paths(scan, folder / "out")
    paths["qc"].parent.mkdir(parents=True)
    for path in paths.values():
        path.touch()
        sidecar_path(path).touch()
    sidecar_path(paths["qc"]).write_text(json.dumps(mark))


def test_undone_scans_keep_their_order_and_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scans = [add_scan(tmp_path, f"{number:03d}") for number in range(250)]
    for scan in scans[::2]:
        add_outputs(scan, tmp_path, {"Fingerprint": fingerprint(scan, PROVENANCE)})
    add_outputs(scans[1], tmp_path, {"Fingerprint": "of other content"})
    digests = Digests()
    read: list[Path] = []
    real = digests.sha256
    monkeypatch.setattr(digests, "sha256", lambda path: read.append(path) or real(path))
    assert find_undone(scans, tmp_path / "out", lambda scan: PROVENANCE, digests) == scans[1::2]
    assert sorted(read) == sorted(scan.path for scan in [*scans[::2], scans[1]])


@pytest.mark.parametrize("mark", [[], "text", None, {}, {"Fingerprint": None}])
def test_damaged_mark_means_not_done(mark: object, tmp_path: Path) -> None:
    scan = add_scan(tmp_path, "01")
    add_outputs(scan, tmp_path, mark)
    assert not is_done(scan, tmp_path / "out", PROVENANCE)
    assert not is_complete(scan, tmp_path / "out")


@pytest.mark.parametrize("kind", ["folder", "link to nowhere"])
def test_what_is_no_file_is_no_output(kind: str, tmp_path: Path) -> None:
    scan = add_scan(tmp_path, "01")
    add_outputs(scan, tmp_path, {"Fingerprint": fingerprint(scan, PROVENANCE)})
    assert is_done(scan, tmp_path / "out", PROVENANCE)
    path = scan_paths(scan, tmp_path / "out")["dseg"]
    content = path.rename(tmp_path / "annex")
    path.symlink_to(content)
    assert is_done(scan, tmp_path / "out", PROVENANCE)
    if kind == "folder":
        path.unlink()
        path.mkdir()
    else:
        content.unlink()
        assert os.path.islink(path)
    assert not is_complete(scan, tmp_path / "out")
