"""Labels that somebody has corrected: found, refused, measured, kept and given back."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from hyps_bids.cli import main, parse_settings
from hyps_bids.errors import BadData, MissingInput, UsageError
from hyps_bids.imaging.conform import conform
from hyps_bids.imaging.volumes import RestoredSide
from hyps_bids.labels.edits import apply_edit, find_edits
from hyps_bids.outputs.edits import Edit, make_edit
from hyps_bids.outputs.reading import read_table
from hyps_bids.outputs.scan import Scan
from tests.raising import raises

PARTS = ("anterior", "posterior")
AFFINE = np.array([[-1.0, 0, 0, 20], [0, 2, 0, -25], [0, 0, 1.5, -20], [0, 0, 0, 1]])
SHAPE = (40, 24, 30)


def labels() -> np.ndarray:
    """Left and right blocks; the first axis points left, so that right is at its start."""
    data = np.zeros(SHAPE, np.uint8)
    data[26:32, 10:14, 10:14], data[26:32, 6:10, 10:14] = 1, 2
    data[8:14, 10:14, 10:14], data[8:14, 6:10, 10:14] = 3, 4
    return data


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    path = tmp_path / "sub-01_T1w.nii.gz"
    gray = np.random.default_rng(0).normal(100, 20, SHAPE).astype(np.float32)
    nib.save(nib.Nifti1Image(gray, AFFINE), path)
    return path


def restored(shape: tuple[int, ...]) -> dict[str, RestoredSide]:
    """What the networks found, on the canonical grid: the labels above."""
    whole = labels()[::-1]
    region = tuple(slice(0, n) for n in shape)
    sides = {}
    for number, hemi in enumerate("LR"):
        own = np.where((whole + 1) // 2 == number + 1, whole - 2 * number, 0).astype(np.uint8)
        sides[hemi] = RestoredSide(region, np.zeros((2, *shape), np.float32), own, 1.0)
    return sides


def apply(scan: Path, image: nib.Nifti1Image, parts: tuple[str, ...] = PARTS) -> dict[str, int]:
    """Apply labels as an edit, and count the voxels of each side and part."""
    path = scan.parent / "edits/sub-01/anat/sub-01_dseg.nii.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
    conformed = conform(scan)
    edit = make_edit([path], scan.parent / "edits")
    found = apply_edit(edit, conformed, restored(conformed.data.shape), parts)
    return {
        f"{hemi}{part + 1}": int((side.labels == part + 1).sum())
        for hemi, side in found.items()
        for part in range(len(parts))
    }


def image_of(data: np.ndarray, affine: np.ndarray = AFFINE) -> nib.Nifti1Image:
    return nib.Nifti1Image(data, affine)


COUNTS = {"L1": 96, "L2": 96, "R1": 96, "R2": 96}


def test_edited_voxels_are_counted_by_side_and_part(scan: Path) -> None:
    data = labels()
    assert apply(scan, image_of(data)) == COUNTS
    # Far outside the box of the networks, and one part changed into the other.
    data[36, 20, 25], data[26, 10, 10] = 1, 2
    assert apply(scan, image_of(data)) == {"L1": 96, "L2": 97, "R1": 96, "R2": 96}
    data[data > 2] = 0
    assert apply(scan, image_of(data)) == {"L1": 96, "L2": 97}


@pytest.mark.parametrize("axes", ["RAS", "PSL", "IRA"])
def test_the_order_of_axes_does_not_matter(scan: Path, axes: str) -> None:
    plain = image_of(labels().astype(np.float32))
    turn = nib.orientations.ornt_transform(
        nib.io_orientation(AFFINE), nib.orientations.axcodes2ornt(axes)
    )
    assert apply(scan, plain.as_reoriented(turn)) == COUNTS


def moved(millimeters: float) -> np.ndarray:
    affine = AFFINE.copy()
    affine[2, 3] += millimeters
    return affine


@pytest.mark.parametrize(
    ("make", "code", "facts"),
    [
        (lambda d: image_of(d[:-1]), "edit-other-grid", ("39 × 24 × 30", "40 × 24 × 30")),
        (lambda d: image_of(d, moved(0.75)), "edit-other-grid", ("0.5 voxels",)),
        (lambda d: image_of(d * np.float32(0.5)), "edit-not-whole", ("0.5", "1.5")),
        (lambda d: image_of(np.where(d == 4, 9, d)), "edit-label-unknown", ("9", "1 to 4")),
        (
            lambda d: image_of(np.where(d == 1, -1, d.astype(np.int16))),
            "edit-label-unknown",
            ("-1",),
        ),
        (lambda d: image_of(np.roll(d, 12, axis=2)), "edit-other-scan", ()),
        (lambda d: image_of(d[::-1]), "edit-sides-exchanged", ("left",)),
        # 1 and 2 are left and right in another protocol.
        (lambda d: image_of((d + 1) // 2), "edit-sides-exchanged", ("left",)),
        (lambda d: image_of(d * 0), "empty-image", ()),
    ],
)
def test_bad_edits_are_refused(
    scan: Path,
    make: Callable[[np.ndarray], nib.Nifti1Image],
    code: str,
    facts: tuple[str, ...],
) -> None:
    with raises(BadData, code, "sub-01_dseg.nii.gz", *facts):
        apply(scan, make(labels()))


def test_tables_that_call_labels_otherwise_are_heeded(scan: Path) -> None:
    folder = scan.parent / "edits"
    folder.mkdir()
    rows = ["index\tname\themi\tpart", "1\tx hippocampus\tL\tposterior"]
    (folder / "dseg.tsv").write_text("\n".join(rows) + "\n")
    with raises(BadData, "edit-other-protocol", "L-posterior", "L-anterior"):
        apply(scan, image_of(labels()))


def test_several_edits_are_refused(scan: Path) -> None:
    paths = [scan.parent / f"sub-01_desc-{name}_dseg.nii.gz" for name in "ab"]
    for path in paths:
        nib.save(image_of(labels()), path)
    with raises(BadData, "several-edits", "desc-a", "desc-b"):
        apply_edit(make_edit(paths, scan.parent), conform(scan), {}, PARTS)


def find(tmp_path: Path, names: list[str], stems: list[str]) -> dict[str, Edit]:
    for name in names:
        path = tmp_path / "edits" / Scan.from_path(Path(name)).folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    (tmp_path / "raw/sub-03").mkdir(parents=True, exist_ok=True)
    arguments = [str(tmp_path / "raw"), str(tmp_path / "out"), "participant"]
    settings = parse_settings([*arguments, "--edits", str(tmp_path / "edits")])
    return find_edits(settings, [Scan.from_stem(stem) for stem in stems])


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("sub-01_seg-hippocampus_dseg.nii.gz", "sub-01"),
        ("sub-01_seg-hippocampus_desc-edited_dseg.nii.gz", "sub-01"),
        ("sub-01_desc-edited_dseg.nii", "sub-01"),
        ("sub-01_space-T1w_dseg.nii.gz", "sub-01"),
        ("sub-01_ses-A_run-2_dseg.nii.gz", "sub-01_ses-A_run-02"),
        ("sub-01_space-T2w_seg-hippocampus_dseg.nii.gz", "sub-01_space-T2w"),
        ("sub-01_ses-B_seg-hippocampus_desc-preproc_dseg.nii.gz", "sub-01_ses-B_desc-preproc"),
        ("sub-01_ses-B_seg-hippocampus_desc-mine_dseg.nii.gz", "sub-01_ses-B"),
        ("sub-01_ses-C_desc-mine_dseg.nii.gz", "sub-01_ses-C_desc-preproc"),
    ],
)
def test_edits_are_those_of_the_scan_that_they_name(tmp_path: Path, name: str, stem: str) -> None:
    stems = ["sub-01", "sub-01_ses-A_run-01", "sub-01_ses-A_run-02", "sub-01_space-T2w"]
    stems += ["sub-01_ses-B", "sub-01_ses-B_desc-preproc", "sub-01_ses-C_desc-preproc"]
    assert list(find(tmp_path, [name], stems)) == [stem]


def test_edits_of_no_scan_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = ["sub-01_ses-B_dseg.nii.gz", "sub-02_dseg.nii.gz", "sub-03_dseg.nii.gz"]
    assert find(tmp_path, names, ["sub-01_ses-A", "sub-04"]) == {}
    told = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    # sub-03 is a participant that was not selected.
    assert len(told) == 2
    assert "sub-01_ses-B_dseg" in told[0]
    assert "sub-01_ses-A" in told[0]
    assert "sub-02_dseg" in told[1]


def test_folders_that_cannot_hold_edits(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for folder, kind, code in (
        (tmp_path / "none", MissingInput, "edits-missing"),
        (out, UsageError, "edits-are-outputs"),
    ):
        settings = parse_settings([str(tmp_path), str(out), "participant", "--edits", str(folder)])
        with raises(kind, code, str(folder)):
            find_edits(settings, [])


@pytest.mark.slow
@pytest.mark.usefixtures("networks_once")
def test_a_run_uses_keeps_and_gives_back(
    tmp_path: Path, coarse_head: nib.Nifti1Image, capsys: pytest.CaptureFixture[str]
) -> None:
    raw, out, edits = tmp_path / "raw", tmp_path / "out", tmp_path / "edits"
    for subject in ("01", "02"):
        (raw / f"sub-{subject}/anat").mkdir(parents=True)
        nib.save(coarse_head, raw / f"sub-{subject}/anat/sub-{subject}_T1w.nii.gz")
    (raw / "dataset_description.json").write_text('{"Name": "test", "BIDSVersion": "1.9.0"}')
    run = [str(raw), str(out), "participant", "--nprocs", "1"]
    assert main(run) == 0

    prefix = "sub-01/anat/sub-01_seg-hippocampus_"
    networks = nib.load(out / f"{prefix}dseg.nii.gz")
    before = np.asarray(networks.dataobj)
    mine = edits / f"{prefix}desc-edited_dseg.nii.gz"
    mine.parent.mkdir(parents=True)
    after = before.copy()
    # Half of the left anterior part is gone; it is not the networks' to say so.
    gone = np.argwhere(before == 1)[::2]
    after[tuple(gone.T)] = 0
    nib.save(nib.Nifti1Image(after.astype(np.float32), networks.affine), mine)
    other = edits / "sub-02/anat/sub-02_dseg.nii.gz"
    other.parent.mkdir(parents=True)
    nib.save(nib.Nifti1Image(after + np.uint8(50), networks.affine), other)

    probabilities = (out / f"{prefix}probseg.nii.gz").read_bytes()
    soft = read_table(out / f"{prefix}morph.tsv")["volume_soft_mm3"]
    # The bad edit fails alone, and costs no earlier result.
    old = {path: path.read_bytes() for path in (out / "sub-02").rglob("*.*")}
    assert main([*run, "--edits", str(edits)]) == 1
    log = capsys.readouterr().err
    assert "sub-02_dseg.nii.gz" in log
    assert "kept: sub-02" in log
    assert {path: path.read_bytes() for path in (out / "sub-02").rglob("*.*")} == old
    other.unlink()

    def check_edited() -> None:
        assert (np.asarray(nib.load(out / f"{prefix}dseg.nii.gz").dataobj) == after).all()
        qc = read_table(out / f"{prefix}qc.tsv").iloc[0]
        left, kept = np.isin(before, (1, 2)).sum(), np.isin(after, (1, 2)).sum()
        assert qc["edited"] == "yes"
        assert qc["edit_dice_L"] == pytest.approx(2 * kept / (left + kept), abs=1e-4)
        assert qc["edit_dice_R"] == 1
        voxel = abs(np.linalg.det(networks.affine[:3, :3]))
        assert qc["edit_difference_mm3_L"] == pytest.approx(-len(gone) * voxel, abs=0.1)
        morph = read_table(out / f"{prefix}morph.tsv")
        assert morph["voxels"].tolist()[0] == (after == 1).sum()
        assert morph["volume_mm3"].tolist()[0] == pytest.approx((after == 1).sum() * voxel, abs=0.1)
        assert morph["volume_soft_mm3"].tolist() == soft.tolist()

    check_edited()
    assert (out / f"{prefix}probseg.nii.gz").read_bytes() == probabilities
    record = json.loads((out / f"{prefix}morph.json").read_text())["EditedLabels"]
    assert record["File"] == f"{prefix}desc-edited_dseg.nii.gz"
    assert json.loads((out / f"{prefix}dseg.json").read_text())["Manual"] is True
    report = (out / "sub-01.html").read_text()
    assert "the labels were edited" in report.lower()
    assert "itksnap -g ../raw/sub-01/anat/sub-01_T1w.nii.gz -s" in report
    assert main([str(raw), str(out), "group"]) == 0
    wide = read_table(out / "group_seg-hippocampus_desc-wide_morph.tsv").set_index("scan")
    assert wide.loc["sub-01", "edited"] == "yes"

    # Runs without the option keep edits, even when everything is computed anew.
    mark = out / f"{prefix}qc.json"
    written = mark.stat().st_mtime_ns
    assert main(run) == 0
    assert mark.stat().st_mtime_ns == written
    assert main([*run, "--n4"]) == 0
    assert mark.stat().st_mtime_ns > written
    assert (np.asarray(nib.load(out / f"{prefix}dseg.nii.gz").dataobj) == after).all()

    # Without its file, the scan has the networks' labels again.
    shutil.rmtree(edits / "sub-01")
    assert main([*run, "--edits", str(edits)]) == 0
    assert (np.asarray(nib.load(out / f"{prefix}dseg.nii.gz").dataobj) == before).all()
    assert "EditedLabels" not in json.loads(mark.read_text())
