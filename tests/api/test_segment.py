"""Single images give what the app gives for the scans of a dataset."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

import hyps_bids
from hyps_bids import cli
from hyps_bids.api.saving import check_folder
from hyps_bids.errors import BadData, MissingInput, UsageError
from hyps_bids.imaging.sources import read_source
from hyps_bids.outputs.reading import read_table
from hyps_bids.tools import main
from tests.dicom_files import write_color, write_series
from tests.raising import raises

CPU = {"device": "cpu", "threads": 1}


@pytest.fixture(scope="module")
def head(coarse_head: nib.Nifti1Image, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "Some head.nii.gz"
    nib.save(coarse_head, path)
    return path


@pytest.fixture(scope="module")
def result(head: Path) -> hyps_bids.SegmentationResult:
    return hyps_bids.segment(head, **CPU)


def arrays(result: hyps_bids.SegmentationResult) -> list[np.ndarray]:
    images = (result.labels, result.probabilities, result.intracranial)
    return [np.asarray(image.dataobj) for image in images]


def same(a: hyps_bids.SegmentationResult, b: hyps_bids.SegmentationResult) -> bool:
    pd.testing.assert_frame_equal(a.volumes, b.volumes)
    pd.testing.assert_frame_equal(a.qc, b.qc)
    return all((x == y).all() for x, y in zip(arrays(a), arrays(b), strict=True))


@pytest.mark.slow
def test_outputs_are_those_of_the_app(
    head: Path, result: hyps_bids.SegmentationResult, tmp_path: Path
) -> None:
    raw = tmp_path / "raw"
    (raw / "sub-Somehead" / "anat").mkdir(parents=True)
    shutil.copy(head, raw / "sub-Somehead/anat/sub-Somehead_T1w.nii.gz")
    (raw / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.10.0"}')
    app, ours = tmp_path / "app", tmp_path / "ours"
    # In this process, whose libraries have computed in threads, and which is forked nevertheless.
    assert cli.main([str(raw), str(app), "participant", "--device", "cpu"]) == 0

    assert result.save(ours) == ours / "sub-Somehead.html"

    files = sorted(path.relative_to(app) for path in (app / "sub-Somehead").rglob("*.*"))
    assert len(files) == 10
    for file in files:
        assert (app / file).read_bytes() == (ours / file).read_bytes(), file
    folder, name = ours / "sub-Somehead" / "anat", "sub-Somehead_seg-hippocampus"
    for image, end in (
        (result.labels, f"{name}_dseg"),
        (result.probabilities, f"{name}_probseg"),
        (result.intracranial, "sub-Somehead_label-ICV_mask"),
    ):
        stored = nib.load(folder / f"{end}.nii.gz")
        assert (np.asarray(stored.dataobj) == np.asarray(image.dataobj)).all()
        assert stored.header == image.header
    volumes = read_table(folder / f"{name}_morph.tsv")["volume_mm3"]
    np.testing.assert_allclose(volumes, result.volumes["volume_mm3"], rtol=1e-5)
    raw = ours / "sourcedata" / "raw"
    assert (raw / "sub-Somehead/anat/sub-Somehead_T1w.nii.gz").resolve() == head.resolve()


@pytest.mark.slow
def test_surfaces_enclose_the_labels(result: hyps_bids.SegmentationResult, tmp_path: Path) -> None:
    volumes = result.volumes[result.volumes["part"] == "whole"].set_index("hemi")["volume_mm3"]
    places = nib.affines.apply_affine(
        result.labels.affine, np.argwhere(np.asarray(result.labels.dataobj) > 2)
    )
    for hemi, surface in result.surfaces.items():
        points, triangles = surface.agg_data(("pointset", "triangle"))
        a, b, c = (points[triangles[:, corner]].astype(float) for corner in range(3))
        volume = float((a * np.cross(b, c)).sum()) / 6
        assert volume == pytest.approx(volumes[hemi], rel=0.03)
    right = result.surfaces["R"].agg_data("pointset")
    np.testing.assert_allclose(right.mean(axis=0), places.mean(axis=0), atol=1.5)
    result.save(tmp_path / "out", surfaces=True, report=False)
    for hemi, surface in result.surfaces.items():
        name = f"sub-Somehead_hemi-{hemi}_seg-hippocampus_mesh.surf.gii"
        stored = (tmp_path / "out" / "sub-Somehead" / "anat" / name).read_bytes()
        assert stored == surface.to_bytes()


@pytest.mark.slow
def test_results_of_files_and_of_images_in_memory_are_the_same(
    head: Path, result: hyps_bids.SegmentationResult
) -> None:
    loaded = nib.load(head)
    made = nib.Nifti1Image(np.asarray(loaded.dataobj), loaded.affine, loaded.header)
    first, second = hyps_bids.segment([loaded, made], **CPU)
    assert isinstance(first, hyps_bids.SegmentationResult)
    assert isinstance(second, hyps_bids.SegmentationResult)
    assert same(first, result)
    assert same(second, result)
    assert (result.labels.affine == loaded.affine).all()
    assert result.labels.shape == loaded.shape


@pytest.mark.slow
def test_a_bad_image_does_not_stop_others(
    head: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bad = tmp_path / "bad.nii.gz"
    bad.write_bytes(b"no image")
    found = hyps_bids.segment([bad, tmp_path / "none.nii", head], **CPU)
    kinds = [type(each) for each in found]
    assert kinds == [BadData, MissingInput, hyps_bids.SegmentationResult]
    assert str(bad) in caplog.text
    with raises(BadData, "not-readable-nifti", bad):
        hyps_bids.segment(bad, **CPU)


@pytest.mark.slow
def test_four_dimensions(coarse_head: nib.Nifti1Image) -> None:
    several = nib.Nifti1Image(np.stack([coarse_head.dataobj] * 2, axis=3), coarse_head.affine)
    with raises(BadData, "not-one-volume", "2)"):
        hyps_bids.segment(several, **CPU)


def test_what_is_no_image(head: Path) -> None:
    with pytest.raises(TypeError, match="ndarray"):
        hyps_bids.segment([np.zeros((20, 20, 20))], **CPU)  # type: ignore[list-item]
    with raises(UsageError, "suffix-unknown", "bold"):
        hyps_bids.segment(head, suffix="bold", **CPU)  # type: ignore[call-overload]
    with raises(UsageError, "adapter-unknown", "mine"):
        hyps_bids.segment(head, adapter="mine", **CPU)
    with raises(UsageError, "threads-too-few"):
        hyps_bids.segment(head, device="cpu", threads=0)


def test_mgz_keeps_places(coarse_head: nib.Nifti1Image, tmp_path: Path) -> None:
    data = np.asarray(coarse_head.dataobj)
    nib.save(nib.MGHImage(data.astype(np.float32), coarse_head.affine), tmp_path / "a.mgz")
    image = read_source(tmp_path / "a.mgz").image
    np.testing.assert_allclose(image.affine, coarse_head.affine, atol=1e-3)
    assert (np.asarray(image.dataobj) == data).all()


def test_an_image_whose_header_was_changed_is_not_its_file(head: Path) -> None:
    image = nib.load(head)
    assert read_source(image).path == head
    image.set_sform(np.diag([2, 2, 2, 1]), code=1)
    assert read_source(image).path is None


@pytest.mark.slow
def test_threads_of_the_caller_stay_as_they_are(head: Path) -> None:
    import torch
    from threadpoolctl import threadpool_info

    torch.set_num_threads(2)
    before = threadpool_info()
    results: list[hyps_bids.SegmentationResult] = []
    callers = [
        threading.Thread(target=lambda: results.append(hyps_bids.segment(head, **CPU)))
        for _ in range(2)
    ]
    for each in callers:
        each.start()
    for each in callers:
        each.join()
    assert torch.get_num_threads() == 2
    assert threadpool_info() == before
    assert same(*results)


def test_folders_that_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with raises(UsageError, "output-is-file"):
        check_folder(tmp_path / "file")
    other = tmp_path / "other"
    other.mkdir()
    description = other / "dataset_description.json"
    description.write_text('{"Name": "raw", "BIDSVersion": "1.10.0"}')
    with raises(UsageError, "output-not-ours", other):
        check_folder(other)
    description.write_text(
        '{"Name": "x", "DatasetType": "derivative", "GeneratedBy": [{"Name": "hyps-bids"}],'
        ' "DatasetLinks": {"raw": "../raw"}}'
    )
    with raises(UsageError, "output-of-dataset", other):
        check_folder(other)


@pytest.mark.slow
def test_names_are_not_taken_from_other_images(
    head: Path, result: hyps_bids.SegmentationResult, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    result.save(out, report=False)
    result.save(out, report=False)
    image = nib.load(head)
    changed = np.asarray(image.dataobj).copy()
    changed[0, 0, 0] += 1
    other = hyps_bids.segment(nib.Nifti1Image(changed, image.affine), **CPU)
    assert other.save(out, name="sub-9_ses-1", report=False) == out.absolute()
    assert (out / "sub-9/ses-1/anat/sub-9_ses-1_seg-hippocampus_dseg.nii.gz").is_file()
    with raises(UsageError, "name-taken", "sub-Somehead", head):
        other.save(out, name="Some head", report=False)
    assert (out / "notes.txt").read_text() == "mine"


@pytest.mark.slow
def test_a_changed_file_is_not_saved(head: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    shutil.copy(head, path)
    result = hyps_bids.segment(path, **CPU)
    path.write_bytes(path.read_bytes() + b" ")
    with raises(BadData, "image-changed", "a"):
        result.save(tmp_path / "out")


@pytest.mark.slow
def test_tool_reads_dicom_as_nifti(
    coarse_head: nib.Nifti1Image, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # An oblique head, the axes of its slices in the order of a sagittal acquisition.
    turn = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.1, 0.05, 0.15), [3, -4, 5])
    oblique = coarse_head.as_reoriented(nib.orientations.axcodes2ornt("PIR"))
    oblique = nib.Nifti1Image(np.asarray(oblique.dataobj), turn @ oblique.affine)
    nifti, dicom, out = tmp_path / "head.nii", tmp_path / "study", tmp_path / "out"
    nib.save(oblique, nifti)
    write_series(oblique, dicom / "series", number=5)
    write_color(dicom / "shots", number=6)
    bad = tmp_path / "bad"
    bad.mkdir()

    code = main(["segment", *map(str, (nifti, bad, dicom, nifti)), str(out), "--device", "cpu"])

    assert code == 1
    labels = [
        nib.load(out / f"sub-{name}/anat/sub-{name}_seg-hippocampus_dseg.nii.gz")
        for name in ("head", "study")
    ]
    flat = [np.asarray(nib.as_closest_canonical(image).dataobj) for image in labels]
    assert np.count_nonzero(flat[0]) > 300
    overlap = 2 * np.count_nonzero((flat[0] == flat[1]) & (flat[0] > 0))
    assert overlap / sum(map(np.count_nonzero, flat)) > 0.995
    assert (out / "sub-study.html").is_file()
    assert not (out / "sub-bad.html").exists()
    assert {path.name for path in out.glob("sub-*")} == {
        *("sub-head", "sub-head.html", "sub-study", "sub-study.html")
    }
    # Nothing that was written names a folder, which may have the name of a patient.
    for sidecar in (out / "sourcedata").rglob("*.json"):
        assert tmp_path.name not in sidecar.read_text()

    times = {path: path.stat().st_mtime_ns for path in out.rglob("*.*")}
    assert main(["segment", *map(str, (nifti, bad, dicom)), str(out), "--device", "cpu"]) == 1
    assert "3 images: 2 done before, 1 to do" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.*")} == times
    (out / "sub-head.html").unlink()
    arguments = ["segment", str(nifti), str(out), "--device", "cpu", "--surfaces"]
    assert main(arguments) == 0
    assert len(list(out.rglob("*_mesh.surf.gii"))) == 2
    assert (out / "sub-head.html").is_file()

    # The group level works on these outputs, with their images where `segment` has put them.
    command = [sys.executable, "-m", "hyps_bids", str(out / "sourcedata" / "raw"), str(out)]
    subprocess.run([*command, "group"], check=True)
    wide = read_table(out / "group_seg-hippocampus_desc-wide_morph.tsv")
    assert wide["status"].tolist() == ["done", "done"]
    shown = subprocess.run([*command, "participant"], check=True, capture_output=True, text=True)
    assert "2 done before, 0 to do" in shown.stderr + shown.stdout
    # And `segment` still knows its folder, and keeps labels that were edited there.
    edit = tmp_path / "edits" / "sub-head" / "anat" / "sub-head_dseg.nii.gz"
    edit.parent.mkdir(parents=True)
    mine = np.asarray(labels[0].dataobj) * (np.asarray(labels[0].dataobj) != 1)
    nib.save(nib.Nifti1Image(mine, labels[0].affine), edit)
    subprocess.run([*command, "participant", "--edits", str(tmp_path / "edits")], check=True)
    path = out / "sub-head/anat/sub-head_seg-hippocampus_dseg.nii.gz"
    assert main(["segment", str(nifti), str(out), "--device", "cpu"]) == 0
    np.testing.assert_array_equal(nib.load(path).dataobj, mine)
    with raises(BadData, "labels-were-edited", "sub-head"):
        hyps_bids.segment(nifti, device="cpu").save(out)
    np.testing.assert_array_equal(nib.load(path).dataobj, mine)


def test_tool_fails_with_the_code_of_its_only_image(tmp_path: Path) -> None:
    code = main(["segment", str(tmp_path / "no.nii"), str(tmp_path / "out"), "--device", "cpu"])
    assert code == MissingInput.exit_code
    assert not (tmp_path / "out").exists()
