from __future__ import annotations

from pathlib import Path

import pytest

from hyps_bids.errors import BadData, UsageError
from hyps_bids.outputs.completion import content_of
from hyps_bids.outputs.names import parse_output, scan_paths, sidecar_path
from hyps_bids.outputs.scan import Scan
from hyps_bids.outputs.space_files import TemplateRecord, recorded_space, write_space
from hyps_bids.outputs.spaces import (
    Space,
    parse_spaces,
    remove_spaces,
    space_files,
    space_paths,
    spaces_of,
)
from tests.raising import raises

_STEMS = (
    "sub-01",
    "sub-01_desc-preproc",
    "sub-01_space-T2w",
    "sub-01_space-T1wT2w_desc-preproc",
    "sub-01_run-1_res-1_desc-preproc",
    "sub-01_ce-gd_run-1",
    "sub-01_space-MNI152Lin",
)


@pytest.mark.parametrize(
    ("requests", "code"),
    [
        (["MNI152NLin2009cAsym:res-x"], "space-unknown"),
        (["MNIPediatricAsym:cohort-2"], "space-unknown"),
        (["../MNI152"], "space-unknown"),
        (["MNI152Lin:res-1", "MNI152Lin:res-02"], "space-twice"),
    ],
)
def test_what_is_no_template_is_refused(requests: list[str], code: str) -> None:
    with raises(UsageError, code, requests[0].partition(":")[0]):
        parse_spaces(requests)


def test_own_spaces_ask_for_nothing() -> None:
    assert parse_spaces(["T1w", "native", "individual"]) == []


def test_scans_and_spaces_have_files_of_their_own() -> None:
    spaces = [Space("MNI152NLin2009cAsym"), Space("MNI152NLin6Asym"), Space("MNI152Lin", "2")]
    names = [
        path.name
        for stem in _STEMS
        for space in spaces
        for path in space_paths(Scan.from_stem(stem), space, Path()).values()
    ]
    assert len(set(names)) == len(names) == len(_STEMS) * len(spaces) * 6
    # None is taken for an output of a scan on its own grid.
    assert not [name for name in names if parse_output(name)]


def test_an_image_whose_name_ends_so_keeps_its_own_outputs() -> None:
    scan = Scan.from_path(Path("sub-01_desc-affine_T1w.nii.gz"))
    assert scan.stem == "sub-01_desc-affine0"
    assert Scan.from_stem(scan.stem).path == scan.path


def test_spaces_of_a_scan_are_found_and_removed(tmp_path: Path) -> None:
    spaces = [Space("MNI152Lin", "2"), Space("MNI152NLin2009cAsym")]
    for stem in _STEMS[:4]:
        scan = Scan.from_stem(stem)
        for space in spaces:
            for path in space_files(scan, space, tmp_path):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
    one, other = Scan.from_stem(_STEMS[0]), Scan.from_stem(_STEMS[1])
    assert spaces_of(one, tmp_path) == spaces
    # A table that was not written yet has a sidecar of an earlier run.
    space_paths(one, spaces[0], tmp_path)["qc"].unlink()
    assert sidecar_path(space_paths(one, spaces[0], tmp_path)["qc"]).exists()
    assert spaces_of(one, tmp_path) == spaces
    remove_spaces(one, tmp_path)
    assert spaces_of(one, tmp_path) == []
    assert spaces_of(other, tmp_path) == spaces
    left = [path for stem in _STEMS[1:4] for s in spaces
            for path in space_files(Scan.from_stem(stem), s, tmp_path)]  # fmt: skip
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(left)


def test_results_that_are_empty_are_not_complete(tmp_path: Path) -> None:
    scan, space = Scan.from_stem("sub-01"), Space("Demo")
    files = space_files(scan, space, tmp_path)
    for path in files:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('{"Status": "done"}')
    assert recorded_space(scan, space, tmp_path) == {"Status": "done"}
    for path in files[1:]:
        path.write_text("")
        assert recorded_space(scan, space, tmp_path) == {}
        path.write_text("content")


@pytest.mark.parametrize("changed", ["image", "results"])
def test_nothing_is_written_for_a_scan_that_has_changed(tmp_path: Path, changed: str) -> None:
    image = tmp_path / "raw/sub-01/anat/sub-01_T1w.nii.gz"
    image.parent.mkdir(parents=True)
    image.write_text("before")
    scan, out, space = Scan.from_path(image), tmp_path / "out", Space("Demo")
    content = content_of(scan)
    mark = sidecar_path(scan_paths(scan, out)["qc"])
    mark.parent.mkdir(parents=True)
    mark.write_text('{"Fingerprint": "one"}')
    template = TemplateRecord(space, tmp_path / "tpl-Demo_T1w.nii.gz", "url", "sum")
    row = {"refusal": "not-aligned", "flags": (), "figures": {}}
    facts = {"ScanFingerprint": "one", "Fingerprint": "two"}
    write_space(scan, out, template, None, row, facts, content)
    assert recorded_space(scan, space, out)["Status"] == "refused"
    remove_spaces(scan, out)
    if changed == "image":
        image.write_text("after")
    else:
        mark.write_text('{"Fingerprint": "other"}')
    with raises(BadData, "image-changed", str(image)):
        write_space(scan, out, template, None, row, facts, content)
    assert recorded_space(scan, space, out) == {}
