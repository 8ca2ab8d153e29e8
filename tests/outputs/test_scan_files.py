"""The files of one scan: on the right grid, in the right place, whole or not at all."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, inv_ornt_aff

from hyps_bids.errors import BadData, CannotCreateOutput
from hyps_bids.imaging.conform import conform
from hyps_bids.imaging.volumes import RestoredSide
from hyps_bids.outputs.columns import MORPH_COLUMNS, qc_columns
from hyps_bids.outputs.completion import is_done
from hyps_bids.outputs.dataset import write_dataset_files
from hyps_bids.outputs.digests import sha256
from hyps_bids.outputs.names import parse_output
from hyps_bids.outputs.reading import read_table
from hyps_bids.outputs.scan import Scan
from hyps_bids.outputs.scan_files import (
    ScanImages,
    ScanMeasures,
    write_failure,
    write_result,
)
from hyps_bids.segmentation.pipeline import native_images
from hyps_bids.settings import Settings
from tests.raising import raises

PROVENANCE = {"SoftwareVersion": "1", "Models": {"Base": {"SHA256": "ab"}}}
ORIENTATIONS = [
    "".join(ends)
    for axes in itertools.permutations(("RL", "AP", "SI"))
    for ends in itertools.product(*axes)
]
#: Voxels and millimeters that differ along all axes and are large enough to be accepted.
SHAPE, ZOOMS = (9, 11, 13), (3.0, 2.5, 2.0)
TRANSFORM = (
    "qform_code",
    "sform_code",
    "quatern_b",
    "quatern_c",
    "quatern_d",
    "qoffset_x",
    "qoffset_y",
    "qoffset_z",
    "srow_x",
    "srow_y",
    "srow_z",
)
#: Label → position of its only voxel in the canonical image.
PLACES = {1: (2, 7, 5), 2: (2, 5, 5), 3: (6, 7, 5), 4: (6, 5, 5)}


def canonical_affine(angle: float = 0.0) -> np.ndarray:
    affine = np.diag([*ZOOMS, 1.0])
    cos, sin = np.cos(angle), np.sin(angle)
    rotation = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
    affine[:3, :3] = rotation @ affine[:3, :3]
    affine[:3, 3] = (-13.1, -9.7, 4.3)
    return affine


def native_image(codes: str, angle: float = 0.0) -> nib.Nifti1Image:
    """An image of the canonical grid's content with its axes in another order."""
    canonical = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)
    there = nib.orientations.ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(codes))
    affine = canonical_affine(angle) @ inv_ornt_aff(there, SHAPE)
    image = nib.Nifti1Image(nib.apply_orientation(canonical, there), affine)
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    return image


def save(image: nib.Nifti1Image, folder: Path) -> Scan:
    path = folder / "raw" / "sub-01" / "anat" / "sub-01_run-02_T1w.nii.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
    return Scan.from_path(path)


def make_result(
    scan: Scan, hemispheres: str = "LR", certain: bool = False
) -> tuple[ScanImages, ScanMeasures]:
    """Segment one voxel per part, at the same place of the world whatever the file's axes."""
    image = conform(scan.path)
    restored = {}
    for hemi in hemispheres:
        first = {"L": 1, "R": 3}[hemi]
        region = tuple(
            slice(min(a, b) - 1, max(a, b) + 2)
            for a, b in zip(PLACES[first], PLACES[first + 1], strict=True)
        )
        origin = [part.start for part in region]
        labels = np.zeros([part.stop - part.start for part in region], np.uint8)
        probabilities = np.full((2, *labels.shape), 0.1, np.float32)
        for part in (0, 1):
            place = tuple(np.subtract(PLACES[first + part], origin))
            labels[place] = part + 1
            probabilities[(part, *place)] = 0.8
        if certain:
            probabilities[0, 0, 0, 0] = 1.0
        restored[hemi] = RestoredSide(region, probabilities, labels, 1.0)  # type: ignore[arg-type]
    intracranial = np.zeros(SHAPE, np.float32)
    intracranial[1:-1, 1:-1, 2:-1] = 1
    measures = ScanMeasures(
        parts=("anterior", "posterior"),
        volumes={hemi: [(1, 15.0, 12.0), (1, 15.0, 12.0), (2, 30.0, 24.0)] for hemi in restored},
        figures={f"border_voxels_{hemi}": 0 for hemi in restored}
        | {"asymmetry": float("nan"), "icv_mm3": 1_400_000.5},
        flags=tuple(f"missing_{hemi}" for hemi in "LR" if hemi not in restored),
        remarks=image.remarks,
        devices={"localize": "cpu", "segment": "cpu"},
        box_centers={"L": (-25.004, -20.0, -15.0)},
    )
    return native_images(image, restored, intracranial, image.affine, 2), measures


def output(folder: Path, kind: str) -> Path:
    label = "label-ICV" if kind.startswith("mask") else "seg-hippocampus"
    extension = "" if "." in kind else ".nii.gz"
    return folder / "out" / "sub-01" / "anat" / f"sub-01_run-02_{label}_{kind}{extension}"


def write(scan: Scan, folder: Path, result: tuple[ScanImages, ScanMeasures] | None = None) -> Path:
    return write_result(
        scan, folder / "out", *(result or make_result(scan)), PROVENANCE, sha256(scan.path)
    )


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_labels_come_back_to_their_place_in_the_world(codes: str, tmp_path: Path) -> None:
    scan = save(native_image(codes), tmp_path)
    source = nib.load(scan.path)
    assert "".join(nib.aff2axcodes(source.affine)) == codes
    write(scan, tmp_path)
    dseg = nib.load(output(tmp_path, "dseg"))
    probseg = nib.load(output(tmp_path, "probseg"))
    mask = nib.load(output(tmp_path, "mask"))
    assert dseg.shape == mask.shape == source.shape
    assert probseg.shape == (*source.shape, 4)
    labels = np.asarray(dseg.dataobj)
    probabilities = probseg.get_fdata()
    for label, place in PLACES.items():
        (voxel,) = np.argwhere(labels == label)
        world = nib.affines.apply_affine(canonical_affine(), place)
        for image in (dseg, probseg, mask):
            np.testing.assert_allclose(
                nib.affines.apply_affine(image.affine, voxel), world, atol=1e-4
            )
        assert (np.argwhere(probabilities[..., label - 1] > 0.5) == voxel).all()
        # The source has the value of the canonical voxel at this place.
        assert np.asarray(source.dataobj)[tuple(voxel)] == np.ravel_multi_index(place, SHAPE)
    # The mask spares one voxel at every side but two below.
    inside = nib.as_closest_canonical(mask).get_fdata() > 0
    expected = np.zeros(SHAPE, bool)
    expected[1:-1, 1:-1, 2:-1] = True
    assert (inside == expected).all()


def variant(kind: str) -> nib.Nifti1Image:
    angle = 0.3 if "oblique" in kind else 0.0
    image = native_image("LPS" if "oblique" in kind else "PIR", angle)
    affine = image.affine
    if kind.startswith("sform only"):
        image.set_sform(affine, code=2)
        image.set_qform(None, code=0)
        # Other programs leave values although the code says that they mean nothing.
        image.header["quatern_b"] = 0.25
        image.header["qoffset_x"] = 7
    elif kind.startswith("qform only"):
        image.set_qform(affine, code=3)
        image.set_sform(None, code=0)
    elif kind.startswith("unlike"):
        moved = affine.copy()
        moved[:3, 3] += 20
        image.set_sform(affine, code=4)
        image.set_qform(moved, code=1)
    elif kind.startswith("shear"):
        image.set_qform(affine, code=1)
        image.set_sform(affine @ np.array([[1, 0.1, 0, 0], *np.eye(4)[1:]]), code=1)
    return image


@pytest.mark.parametrize(
    "kind",
    [
        "both",
        "both oblique",
        "sform only",
        "sform only oblique",
        "qform only",
        "qform only oblique",
        "unlike",
        "unlike oblique",
        "shear",
    ],
)
@pytest.mark.parametrize("order", ["<", ">"])
def test_transforms_are_copied_to_the_last_bit(kind: str, order: str, tmp_path: Path) -> None:
    image = variant(kind)
    header = image.header.as_byteswapped(order)
    native = type(image)(image.dataobj, None, header)
    scan = save(native, tmp_path)
    source = nib.load(scan.path).header
    assert source.endianness == order
    write(scan, tmp_path)
    for name in ("dseg", "probseg", "mask"):
        written = nib.load(output(tmp_path, name)).header
        for field in TRANSFORM:
            assert written[field].astype(">f8").tobytes() == source[field].astype(">f8").tobytes()
        assert (written["pixdim"][:4] == source["pixdim"][:4]).all()
        assert written.get_xyzt_units()[0] == "mm"
        assert (written.get_best_affine() == source.get_best_affine()).all()


def test_transforms_of_wide_header_and_one_volume(tmp_path: Path) -> None:
    image = native_image("RAS", 0.2)
    wide = nib.Nifti2Image(np.asarray(image.dataobj)[..., None], image.affine)
    scan = save(wide, tmp_path)
    write(scan, tmp_path)
    dseg = nib.load(output(tmp_path, "dseg"))
    assert dseg.shape == SHAPE
    np.testing.assert_allclose(dseg.affine, image.affine, atol=1e-5)


def test_probabilities_are_bytes_that_load_as_0_to_1(tmp_path: Path) -> None:
    scan = save(native_image("RAS"), tmp_path)
    result = make_result(scan, certain=True)
    write(scan, tmp_path, result)
    image = nib.load(output(tmp_path, "probseg"))
    assert image.get_data_dtype() == np.uint8
    assert image.dataobj.slope == pytest.approx(1 / 255)
    assert image.dataobj.inter == 0
    data = image.get_fdata()
    assert data.min() == 0
    assert data.max() == pytest.approx(1, abs=1e-6)
    assert data[PLACES[4]] == pytest.approx([0, 0, 0.1, 0.8], abs=0.51 / 255)
    for name in ("dseg", "mask"):
        image = nib.load(output(tmp_path, name))
        assert image.get_data_dtype() == np.uint8
        assert (image.dataobj.slope, image.dataobj.inter) == (1, 0)


def test_sidecars_and_tables(tmp_path: Path) -> None:
    scan = save(native_image("RAS"), tmp_path)
    sidecar = write(scan, tmp_path)
    assert sidecar == output(tmp_path, "qc.json")
    names = {path.name.removeprefix("sub-01_run-02_") for path in sidecar.parent.iterdir()}
    assert names == {
        f"{stem}.{extension}"
        for stem, extensions in {
            "seg-hippocampus_dseg": ("nii.gz", "json"),
            "seg-hippocampus_probseg": ("nii.gz", "json"),
            "label-ICV_mask": ("nii.gz", "json"),
            "seg-hippocampus_morph": ("tsv", "json"),
            "seg-hippocampus_qc": ("tsv", "json"),
        }.items()
        for extension in extensions
    }
    for path in sidecar.parent.glob("*.json"):
        content = json.loads(path.read_text())
        assert content["Sources"] == ["bids:raw:sub-01/anat/sub-01_run-02_T1w.nii.gz"]
        assert content["Models"] == PROVENANCE["Models"]
        assert content["Devices"] == {"localize": "cpu", "segment": "cpu"}
    probseg = json.loads(output(tmp_path, "probseg.json").read_text())
    assert probseg["LabelMap"] == [
        f"{side} {part} hippocampus"
        for side in ("Left", "Right")
        for part in ("anterior", "posterior")
    ]
    morph = read_table(output(tmp_path, "morph.tsv"))
    assert list(morph.columns) == list(MORPH_COLUMNS)
    assert morph["hemi"].tolist() == ["L"] * 3 + ["R"] * 3
    assert morph["part"].tolist() == ["anterior", "posterior", "whole"] * 2
    assert morph["index"].fillna(0).tolist() == [1, 2, 0, 3, 4, 0]
    assert morph["voxels"].tolist() == [1, 1, 2] * 2
    assert morph["icv_mm3"].unique().tolist() == [1_400_000.5]
    qc = read_table(output(tmp_path, "qc.tsv"))
    assert list(qc.columns) == list(qc_columns())
    assert qc["status"].tolist() == ["done"]
    assert {*qc["suffix"], *morph["suffix"]} == {"T1w"}
    assert qc[["reason", "reasons", "flags", "asymmetry"]].isna().all(axis=None)
    assert qc["review"].tolist() == ["no"]
    sidecar = json.loads(output(tmp_path, "qc.json").read_text())
    assert sidecar["BoxCentres"]["L"] == [-25.0, -20.0, -15.0]


def test_missing_side_is_not_zero(tmp_path: Path) -> None:
    scan = save(native_image("RAS"), tmp_path)
    write(scan, tmp_path, make_result(scan, "R"))
    morph = read_table(output(tmp_path, "morph.tsv"))
    left = morph[morph["hemi"] == "L"]
    assert len(left) == 3
    assert left[["voxels", "volume_mm3", "volume_soft_mm3"]].isna().all(axis=None)
    assert morph[morph["hemi"] == "R"]["voxels"].tolist() == [1, 1, 2]
    assert "n/a" in output(tmp_path, "morph.tsv").read_text()
    qc = read_table(output(tmp_path, "qc.tsv"))
    assert qc["flags"].tolist() == ["missing_L"]
    assert qc["review"].tolist() == ["yes"]
    assert qc["reasons"][0].startswith("No left hippocampus was found")
    assert qc["border_voxels_L"].isna().all()
    assert set(np.unique(nib.load(output(tmp_path, "dseg")).dataobj)) == {0, 3, 4}
    assert nib.load(output(tmp_path, "probseg")).shape[-1] == 4


def test_nothing_found_at_all(tmp_path: Path) -> None:
    scan = save(native_image("RAS"), tmp_path)
    write(scan, tmp_path, make_result(scan, ""))
    morph = read_table(output(tmp_path, "morph.tsv"))
    assert len(morph) == 6
    assert morph["voxels"].isna().all()
    assert not np.asarray(nib.load(output(tmp_path, "dseg")).dataobj).any()


def done(scan: Scan, folder: Path, provenance: dict[str, Any] = PROVENANCE) -> bool:
    return is_done(scan, folder / "out", provenance)


def test_image_that_changes_while_it_is_processed_has_no_result(tmp_path: Path) -> None:
    scan = save(native_image("RAS"), tmp_path)
    content, result = sha256(scan.path), make_result(scan)
    save(native_image("LAS"), tmp_path)
    with raises(BadData, "image-changed", str(scan.path)):
        write_result(scan, tmp_path / "out", *result, PROVENANCE, content)
    assert not done(scan, tmp_path)
    assert not (tmp_path / "out").exists()


def test_done_until_content_or_settings_change(tmp_path: Path) -> None:
    scan = save(native_image("RAS"), tmp_path)
    assert not done(scan, tmp_path)
    write(scan, tmp_path)
    assert done(scan, tmp_path)
    # A newer copy of the same content counts as the same.
    os.utime(scan.path, (1e9, 1e9))
    assert done(scan, tmp_path)
    assert not done(scan, tmp_path, {**PROVENANCE, "BiasFieldCorrection": "N4"})
    assert done(scan, tmp_path, dict(reversed(PROVENANCE.items())))
    save(native_image("LAS"), tmp_path)
    assert not done(scan, tmp_path)


@pytest.mark.parametrize(
    "kind", ["dseg.nii.gz", "probseg.nii.gz", "mask.nii.gz", "morph.tsv", "qc.tsv", "qc.json"]
)
def test_not_done_without_one_of_the_outputs(kind: str, tmp_path: Path) -> None:
    scan = save(native_image("RAS"), tmp_path)
    write(scan, tmp_path)
    output(tmp_path, kind).unlink()
    assert not done(scan, tmp_path)


def test_not_done_if_the_mark_is_damaged(tmp_path: Path) -> None:
    scan = save(native_image("RAS"), tmp_path)
    write(scan, tmp_path)
    output(tmp_path, "qc.json").write_text('{"Fingerprint": ')
    assert not done(scan, tmp_path)


def test_half_replaced_outputs_are_not_done(tmp_path: Path) -> None:
    scan = save(native_image("RAS"), tmp_path)
    write(scan, tmp_path)
    # A folder in the place of a file ends the run with other settings after two images.
    output(tmp_path, "mask").unlink()
    output(tmp_path, "mask").mkdir()
    with raises(CannotCreateOutput, "not-writable", "mask"):
        write_result(scan, tmp_path / "out", *make_result(scan), {"other": 1}, sha256(scan.path))
    output(tmp_path, "mask").rmdir()
    output(tmp_path, "mask").touch()
    assert not done(scan, tmp_path)
    assert not done(scan, tmp_path, {"other": 1})


def test_unreadable_image_does_not_end_the_run(tmp_path: Path) -> None:
    scan = save(native_image("RAS"), tmp_path)
    scan.path.unlink()
    assert not done(scan, tmp_path)
    scan.path.mkdir()
    assert not done(scan, tmp_path)


NAMES = {
    "sub-01_T1w": "sub-01_seg-hippocampus",
    "sub-01_acq-x_run-2_part-mag_T1w": "sub-01_acq-x_run-2_part-mag_seg-hippocampus",
    "sub-01_desc-preproc_T1w": "sub-01_seg-hippocampus_desc-preproc",
    "sub-01_res-2_desc-preproc_T1w": "sub-01_seg-hippocampus_res-2_desc-preproc",
    "sub-01_desc-preproc_res-2_run-1_T1w": "sub-01_run-1_seg-hippocampus_res-2_desc-preproc",
    "sub-01_space-T1w_desc-brain_T1w": "sub-01_space-T1w_seg-hippocampus_desc-brain",
    "sub-01_space-T2w_T1w": "sub-01_space-T2wT1w_seg-hippocampus",
    "sub-01_T2w": "sub-01_space-T2w_seg-hippocampus",
    "sub-01_space-T1w_T2w": "sub-01_space-T1wT2w_seg-hippocampus",
    "sub-01_space-orig_desc-preproc_FLAIR": "sub-01_space-origFLAIR_seg-hippocampus_desc-preproc",
    "sub-01_acq-x_run-2_chunk-1_UNIT1": "sub-01_acq-x_run-2_space-UNIT1_chunk-1_seg-hippocampus",
    "sub-01_ce-gd_part-mag_PDw": "sub-01_ce-gd_part-mag_space-PDw_seg-hippocampus",
}


def test_names_of_processed_images_are_valid(tmp_path: Path, validator: str) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"
    image = native_image("RAS")
    made = save(image, tmp_path)
    made.path.unlink()
    for source, expected in NAMES.items():
        scan = Scan.from_path(raw / f"sub-01/anat/{source}.nii.gz")
        nib.save(image, scan.path)
        mark = write(scan, tmp_path)
        assert mark.name == f"{expected}_qc.json"
        # The name of the scan can be read back from the name of any of its files.
        assert parse_output(mark.name) == (scan.stem, "qc.json")
        own_space = json.loads(mark.read_text()).get("SpatialReference")
        uri = f"bids:raw:sub-01/anat/{source}.nii.gz"
        assert own_space == (uri if "_space-" in expected else None)
    settings = Settings(bids_dir=raw, output_dir=out, analysis_level="participant")
    write_dataset_files(settings, labels=["anterior", "posterior"])
    checked = subprocess.run([validator, str(out), "--format", "json"], capture_output=True)
    issues = json.loads(checked.stdout)["issues"]["issues"]
    assert [issue for issue in issues if issue["severity"] == "error"] == []
    assert len(list(out.rglob("*_dseg.nii.gz"))) == len(NAMES)


def test_failure_removes_what_an_earlier_content_gave(tmp_path: Path) -> None:
    scan = save(native_image("RAS"), tmp_path)
    sidecar = write(scan, tmp_path)
    other = sidecar.with_name("sub-01_run-01_seg-hippocampus_dseg.nii.gz")
    other.touch()
    write_failure(scan, tmp_path / "out", "line\none\t and two")
    assert sorted(sidecar.parent.iterdir()) == [other, output(tmp_path, "qc.tsv")]
    qc = read_table(output(tmp_path, "qc.tsv"))
    assert list(qc.columns) == list(qc_columns())
    assert qc.loc[0, "status"] == "failed"
    assert qc.loc[0, "reason"] == "line one and two"
    assert not done(scan, tmp_path)
    # A later success removes the failure.
    write(scan, tmp_path)
    assert read_table(output(tmp_path, "qc.tsv"))["status"].tolist() == ["done"]
    assert done(scan, tmp_path)


def test_failure_without_earlier_outputs(tmp_path: Path) -> None:
    scan = save(native_image("RAS"), tmp_path)
    write_failure(scan, tmp_path / "out", "no brain")
    assert read_table(output(tmp_path, "qc.tsv"))["reason"].tolist() == ["no brain"]


@pytest.mark.parametrize("same", [True, False])
def test_mark_of_another_job_stays_if_it_made_the_same(same: bool, tmp_path: Path) -> None:
    scan = save(native_image("RAS"), tmp_path)
    result = make_result(scan)
    other = write_result(scan, tmp_path / "out", *result, PROVENANCE, sha256(scan.path))
    # This job cannot replace anything.
    path = output(tmp_path, "dseg")
    path.unlink()
    (path / "in the way").mkdir(parents=True)
    now = PROVENANCE if same else PROVENANCE | {"SoftwareVersion": "2"}
    with raises(CannotCreateOutput, "not-writable", path.name):
        write_result(scan, tmp_path / "out", *result, now, sha256(scan.path))
    assert other.exists() == same


def test_failure_is_never_done_whatever_stays(tmp_path: Path) -> None:
    scan = save(native_image("RAS"), tmp_path)
    mark = write(scan, tmp_path)
    path = output(tmp_path, "dseg")
    path.unlink()
    path.mkdir()
    # Removing the first output fails, and the record of the failure is written by then.
    with raises(CannotCreateOutput, "not-writable", "dseg"):
        write_failure(scan, tmp_path / "out", "no memory")
    assert not mark.exists()
    assert not output(tmp_path, "probseg").exists()
    assert read_table(mark.with_suffix(".tsv"))["status"].tolist() == ["failed"]


def test_what_killed_writers_left_goes_with_the_next_result(tmp_path: Path) -> None:
    scan = save(native_image("RAS"), tmp_path)
    folder = write(scan, tmp_path).parent
    old, new = (folder / f".{digits}.sub-01_x.nii.gz" for digits in ("0123abcd", "4567cdef"))
    for path in (old, new):
        path.touch()
    os.utime(old, (0, 0))
    write(scan, tmp_path)
    assert (old.exists(), new.exists()) == (False, True)
    os.utime(new, (0, 0))
    write_failure(scan, tmp_path / "out", "no memory")
    assert not new.exists()
