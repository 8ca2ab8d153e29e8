"""Scans in the space of a template, end to end: a real head is the template of itself, moved."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from nibabel.affines import apply_affine
from scipy.spatial.transform import Rotation

from hyps_bids.cli import main
from hyps_bids.imaging.agreement import dice
from hyps_bids.outputs.reading import read_table
from hyps_bids.outputs.scan import Scan
from hyps_bids.outputs.spaces import Space, space_files, space_paths, spaces_of

pytestmark = pytest.mark.slow

SPACE = Space("Demo", "2")
ASKED = ("--output-spaces", "T1w", SPACE.label)
#: From the world of the template to that of the scan.
MOVE = np.eye(4)
MOVE[:3, :3] = Rotation.from_euler("xyz", (8, -6, 10), degrees=True).as_matrix()
MOVE[:3, :3] @= np.diag([0.9, 1.05, 0.95])
MOVE[:3, 3] = (12, -30, 18)


def save(data: np.ndarray, affine: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data, affine), path)


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory, coarse_head: nib.Nifti1Image) -> Path:
    """A head, moved and stretched, and stored in another order of axes; and the half of a head."""
    root = tmp_path_factory.mktemp("data") / "raw"
    data = np.asarray(coarse_head.dataobj)
    head = nib.Nifti1Image(data, MOVE @ coarse_head.affine)
    orientation = nib.orientations.axcodes2ornt("PSL")
    turned = head.as_reoriented(
        nib.orientations.ornt_transform(nib.io_orientation(head.affine), orientation)
    )
    save(np.asarray(turned.dataobj), turned.affine, root / "sub-01/anat/sub-01_T1w.nii.gz")
    shutil.copy(root / "sub-01/anat/sub-01_T1w.nii.gz", root / "sub-01/anat/sub-01_T2w.nii.gz")
    (root / "dataset_description.json").write_text('{"Name": "test", "BIDSVersion": "1.9.0"}')
    (root / "README").write_text("test")
    return root


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, coarse_head: nib.Nifti1Image) -> Iterator[Path]:
    """TemplateFlow's folder with one template, whose axes point left."""
    folder = tmp_path_factory.mktemp("flow")
    left = coarse_head.as_reoriented(np.array([[0, -1], [1, 1], [2, 1]]))
    path = folder / "tpl-Demo" / "tpl-Demo_res-02_T1w.nii.gz"
    save(np.asarray(left.dataobj), left.affine, path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TEMPLATEFLOW_HOME", str(folder))
        yield folder


@pytest.fixture(scope="module")
def output(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Outputs of a run without templates, and of one that adds them."""
    out = tmp_path_factory.mktemp("out") / "derivatives"
    run = [str(raw), str(out), "participant", "--suffix", "T1w", "T2w", "--nprocs", "2"]
    assert main(run) == 0
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*seg-hippocampus_*")}
    assert main([*run, *ASKED]) == 0
    kept = {path: path.stat().st_mtime_ns for path in before}
    assert len(before) > 8
    assert {p.name for p in before if kept[p] != before[p]} <= {
        "seg-hippocampus_dseg.tsv",
        "seg-hippocampus_dseg.json",
    }
    return out


def scan_of(raw: Path, suffix: str = "T1w") -> Scan:
    return Scan.from_path(raw / f"sub-01/anat/sub-01_{suffix}.nii.gz")


def test_labels_lie_where_the_template_has_them(raw: Path, output: Path, home: Path) -> None:
    template = nib.load(next(home.glob("tpl-Demo/*")))
    for suffix in ("T1w", "T2w"):
        scan = scan_of(raw, suffix)
        paths = space_paths(scan, SPACE, output)
        placed = nib.load(paths["dseg"])
        assert placed.shape == template.shape
        np.testing.assert_allclose(placed.affine, template.affine)
        space = "" if suffix == "T1w" else "_space-T2w"
        own = nib.load(output / f"sub-01/anat/sub-01{space}_seg-hippocampus_dseg.nii.gz")
        labels, there = np.asarray(own.dataobj), np.asarray(placed.dataobj)
        for label in (1, 2, 3, 4):
            true = apply_affine(np.linalg.inv(MOVE) @ own.affine, np.argwhere(labels == label))
            found = apply_affine(placed.affine, np.argwhere(there == label))
            assert np.linalg.norm(true.mean(axis=0) - found.mean(axis=0)) < 0.7
            ratio = len(found) * 8 / (len(true) * abs(np.linalg.det(own.affine[:3, :3])))
            assert ratio == pytest.approx(1 / np.linalg.det(MOVE), rel=0.08)
        probabilities = nib.load(paths["probseg"]).get_fdata()
        assert dice(probabilities.sum(axis=3) > 0.5, there > 0) > 0.93
        assert probabilities.max() <= 1


def test_itk_resamples_the_labels_to_the_same_place(raw: Path, output: Path) -> None:
    paths = space_paths(scan_of(raw), SPACE, output)
    own = output / "sub-01/anat/sub-01_seg-hippocampus_dseg.nii.gz"
    placed = sitk.ReadImage(str(paths["dseg"]))
    to = sitk.ReadTransform(str(paths["to"]))
    moved = sitk.Resample(sitk.ReadImage(str(own)), placed, to, sitk.sitkNearestNeighbor)
    a, b = sitk.GetArrayFromImage(moved), sitk.GetArrayFromImage(placed)
    assert min(dice(a == label, b == label) for label in (1, 2, 3, 4)) > 0.85
    back = sitk.ReadTransform(str(paths["back"]))
    point = (10.0, -20.0, 30.0)
    np.testing.assert_allclose(back.TransformPoint(to.TransformPoint(point)), point, atol=1e-6)


def test_quality_sidecars_and_report(raw: Path, output: Path) -> None:
    scan = scan_of(raw)
    paths = space_paths(scan, SPACE, output)
    row = read_table(paths["qc"]).iloc[0]
    assert (row["status"], row["review"], row["space"]) == ("done", "no", "Demo:res-2")
    assert row["overlap"] > 0.95
    assert row["volume_factor"] == pytest.approx(1 / np.linalg.det(MOVE), rel=0.05)
    for path in space_files(scan, SPACE, output)[:5]:
        sidecar = json.loads(path.read_text())
        assert sidecar["Sources"][0] == "bids:raw:sub-01/anat/sub-01_T1w.nii.gz"
        assert "not for volumes" in sidecar["Limitations"].casefold()
    page = (output / "sub-01.html").read_text()
    assert page.count("In the space of Demo:res-2") == page.count('<img class="placed"') == 2
    drawn = paths["picture"].read_text()
    assert 10_000 < len(drawn) < 200_000
    # Four parts in the colors of the table of labels, and the intracranial space.
    assert {"#F0E442", *read_table(output / "seg-hippocampus_dseg.tsv")["color"]} <= set(
        re.findall('stroke="(#[0-9A-F]{6})"', drawn)
    )
    assert main([str(raw), str(output), "group"]) == 0
    group = read_table(output / "group_seg-hippocampus_desc-affine_qc.tsv")
    assert group["scan"].tolist() == ["sub-01"]
    assert group["status"].tolist() == ["done"]


def test_outputs_are_valid_bids(output: Path, validator: str) -> None:
    result = subprocess.run(
        [validator, str(output), "--format", "json"], capture_output=True, text=True, check=False
    )
    issues = json.loads(result.stdout)["issues"]["issues"]
    assert [i for i in issues if i["severity"] == "error"] == []


def test_nothing_is_done_twice_and_changes_are_followed(
    raw: Path, output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = shutil.copytree(output, tmp_path / "out")
    run = [str(raw), str(out), "participant"]
    marks = [out / p.relative_to(output) for p in space_files(scan_of(raw), SPACE, output)]
    before = [path.stat().st_mtime_ns for path in marks]
    assert main([*run, *ASKED]) == 0
    assert [path.stat().st_mtime_ns for path in marks] == before
    # A file that is gone is made again.
    marks[-3].unlink()
    assert main([*run, *ASKED]) == 0
    assert all(path.is_file() for path in marks)
    # A scan that is processed again leaves nothing of its earlier results.
    capsys.readouterr()
    assert main([*run, "--n4"]) == 0
    assert "lose the results in Demo:res-2" in capsys.readouterr().err
    assert spaces_of(scan_of(raw), out) == []
    assert not any(path.exists() for path in marks)


def test_a_scan_that_does_not_fit_is_refused_and_stays_done(
    coarse_head: nib.Nifti1Image, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"
    data = np.asarray(coarse_head.dataobj)
    # The voxel sizes of both headers are wrong, the other way round.
    large, small = (np.diag([f, f, f, 1.0]) @ coarse_head.affine for f in (1.25, 0.75))
    save(data, large, raw / "sub-01/anat/sub-01_T1w.nii.gz")
    save(data, small, home / "tpl-Small" / "tpl-Small_res-01_T1w.nii.gz")
    (raw / "dataset_description.json").write_text('{"Name": "test", "BIDSVersion": "1.9.0"}')
    run = [str(raw), str(out), "participant", "--output-spaces", "Small"]
    assert main(run) == 0
    paths = space_paths(scan_of(raw), Space("Small"), out)
    row = read_table(paths["qc"]).iloc[0]
    assert (row["status"], row["review"], row["flags"]) == ("refused", "yes", "absurd-size")
    assert row["volume_factor"] == pytest.approx((0.75 / 1.25) ** 3, rel=0.05)
    assert [kind for kind, path in paths.items() if path.exists()] == ["qc"]
    assert "sub-01: no images in Small" in capsys.readouterr().err
    assert read_table(out / "sub-01/anat/sub-01_seg-hippocampus_qc.tsv")["status"].iloc[0] == "done"
    assert "Refused." in (out / "sub-01.html").read_text()
    # It is not tried again.
    before = paths["qc"].stat().st_mtime_ns
    assert main(run) == 0
    assert "1 of 1 scan done before, 0 now, 0 not done; 1 of all refused" in capsys.readouterr().err
    assert paths["qc"].stat().st_mtime_ns == before
