"""Surfaces of scans that are done: their files, what others say about them, and when they go."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from hyps_bids.errors import BadData
from hyps_bids.outputs.completion import recorded_fingerprint
from hyps_bids.outputs.dataset import write_dataset_files
from hyps_bids.outputs.images import opened
from hyps_bids.outputs.names import scan_paths, sidecar_path, surface_path
from hyps_bids.outputs.reading import load_json, read_table
from hyps_bids.outputs.scan import Scan
from hyps_bids.outputs.scan_files import write_failure
from hyps_bids.outputs.surface_files import lacks_surfaces
from hyps_bids.segmentation.surfaces import add_missing_surfaces, add_surfaces
from hyps_bids.settings import Settings
from tests.outputs.test_scan_files import NAMES, make_result, native_image, save, write
from tests.raising import raises


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "out").rglob("*.*")}


def test_surfaces_are_in_the_world_of_the_scan(tmp_path: Path) -> None:
    scan = save(native_image("PIL"), tmp_path)
    write(scan, tmp_path)
    out = tmp_path / "out"
    mark = recorded_fingerprint(scan, out)
    before = contents(tmp_path)
    assert lacks_surfaces(scan, out)
    add_surfaces(scan, out)
    assert not lacks_surfaces(scan, out)
    assert recorded_fingerprint(scan, out) == mark
    for hemi, first in (("L", 1), ("R", 3)):
        path = surface_path(scan, out, hemi)
        assert path.name == f"sub-01_run-02_hemi-{hemi}_seg-hippocampus_mesh.surf.gii"
        surface = nib.load(path)
        points, triangles = surface.agg_data(("pointset", "triangle"))
        labels = nib.load(scan_paths(scan, out)["dseg"])
        voxels = np.argwhere(np.isin(np.asarray(labels.dataobj), (first, first + 1)))
        centers = nib.affines.apply_affine(labels.affine, voxels)
        middle = (points.min(axis=0) + points.max(axis=0)) / 2
        np.testing.assert_allclose(middle, centers.mean(axis=0), atol=1)
        for array, kind in zip(surface.darrays, ("pointset", "triangle"), strict=True):
            assert array.intent == nib.nifti1.intent_codes[f"NIFTI_INTENT_{kind.upper()}"]
        assert (points.dtype, triangles.dtype) == (np.float32, np.int32)
        space = surface.darrays[0].coordsys
        assert space.dataspace == space.xformspace == nib.nifti1.xform_codes["scanner"]
        assert (space.xform == np.eye(4)).all()
        side = {"L": "Left", "R": "Right"}[hemi]
        assert surface.darrays[0].meta["AnatomicalStructurePrimary"] == f"Hippocampus{side}"
        assert surface.darrays[0].meta["GeometricType"] == "Anatomical"
        facts = load_json(sidecar_path(path))
        assert facts["Sources"] == ["bids:raw:sub-01/anat/sub-01_run-02_T1w.nii.gz"]
        assert facts["EnclosedVolume"] == pytest.approx(2 * 15, rel=0.03)
    # All else stays as it was, but for the measures.
    after = contents(tmp_path)
    changed = {name.partition("hippocampus_")[2] for name in before if after[name] != before[name]}
    assert changed == {"morph.tsv", "morph.json", "qc.json"}
    table = read_table(scan_paths(scan, out)["morph"])
    whole = table["part"] == "whole"
    np.testing.assert_allclose(table.loc[whole, "surface_volume_mm3"], 30, rtol=0.03)
    assert table.loc[whole, "surface_area_mm2"].between(45, 80).all()
    assert table.loc[~whole, ["surface_volume_mm3", "surface_area_mm2"]].isna().all(axis=None)
    assert set(table) <= set(load_json(sidecar_path(scan_paths(scan, out)["morph"])))
    first = before["sub-01_run-02_seg-hippocampus_morph.tsv"].decode().splitlines()
    second = after["sub-01_run-02_seg-hippocampus_morph.tsv"].decode().splitlines()
    assert all(new.startswith(old + "\t") for old, new in zip(first, second, strict=True))
    # A second time gives the same.
    add_surfaces(scan, out)
    assert contents(tmp_path) == after


def test_a_side_that_was_not_found_has_no_surface(tmp_path: Path) -> None:
    scan, out = save(native_image("RAS"), tmp_path), tmp_path / "out"
    write(scan, tmp_path)
    add_surfaces(scan, out)
    for sides in ("R", ""):
        write(scan, tmp_path, make_result(scan, sides))
        add_surfaces(scan, out)
        there = [hemi for hemi in "LR" if surface_path(scan, out, hemi).is_file()]
        assert there == list(sides)
        assert len(list(out.rglob("*_mesh.*"))) == 2 * len(sides)
        assert load_json(sidecar_path(scan_paths(scan, out)["qc"]))["Surfaces"] == list(sides)
        assert not lacks_surfaces(scan, out)
        area = read_table(scan_paths(scan, out)["morph"])["surface_area_mm2"]
        assert area.notna().sum() == len(sides)


def test_surfaces_of_an_earlier_content_do_not_stay(tmp_path: Path) -> None:
    scan, out = save(native_image("RAS"), tmp_path), tmp_path / "out"
    write(scan, tmp_path)
    add_surfaces(scan, out)
    image = native_image("RAS")
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj) + 1, image.affine), scan.path)
    write(scan, tmp_path)
    assert not list(out.rglob("*_mesh.*"))
    assert lacks_surfaces(scan, out)
    add_surfaces(scan, out)
    write_failure(scan, out, "gone")
    assert not list(out.rglob("*_mesh.*"))
    assert not lacks_surfaces(scan, out)


def test_surfaces_that_are_lost_are_made_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scan, out = save(native_image("RAS"), tmp_path), tmp_path / "out"
    settings = Settings(bids_dir=tmp_path / "raw", output_dir=out, analysis_level="participant")
    never = Scan.from_path(scan.path.with_name("sub-01_run-03_T1w.nii.gz"))
    write(scan, tmp_path)
    with caplog.at_level(logging.INFO, "hyps_bids"):
        assert add_missing_surfaces(settings, [scan, never]) == []
        surface_path(scan, out, "R").unlink()
        assert add_missing_surfaces(settings, [scan, never]) == []
        assert caplog.text.count("1 scan") == 2
        assert add_missing_surfaces(settings, [scan, never]) == []
    assert caplog.text.count("1 scan") == 2
    assert surface_path(scan, out, "R").is_file()


def test_damaged_outputs_fail_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scan, out = save(native_image("RAS"), tmp_path), tmp_path / "out"
    settings = Settings(bids_dir=tmp_path / "raw", output_dir=out, analysis_level="participant")
    write(scan, tmp_path)
    probseg = scan_paths(scan, out)["probseg"]
    probseg.write_bytes(probseg.read_bytes()[:100])
    with raises(BadData, "derivative-damaged", probseg):
        add_surfaces(scan, out)
    assert add_missing_surfaces(settings, [scan]) == [scan]
    assert str(probseg) in caplog.text
    assert lacks_surfaces(scan, out)


def test_edited_sides_follow_the_labels(tmp_path: Path) -> None:
    scan, out = save(native_image("RAS"), tmp_path), tmp_path / "out"
    write(scan, tmp_path)
    paths = scan_paths(scan, out)
    # A second voxel, where the probabilities are low.
    with opened(paths["dseg"]) as image:
        labels = np.asarray(image.dataobj).copy()
    x, y, z = np.argwhere(labels == 1)[0]
    labels[x, y + 1, z] = 1
    nib.save(nib.Nifti1Image(labels, image.affine, image.header), paths["dseg"])
    for dice, kind in (("n/a", "unknown"), ("0.8", "edited")):
        table = read_table(paths["qc"]).astype({"edit_dice_L": "str"})
        table["edit_dice_L"] = dice
        table.to_csv(paths["qc"], sep="\t", index=False, na_rep="n/a")
        add_surfaces(scan, out)
        morph = read_table(paths["morph"]).set_index(["hemi", "part"])
        assert morph.loc[("L", "whole"), "surface_volume_mm3"] == pytest.approx(45, rel=0.03), kind


@pytest.mark.slow
def test_names_are_valid(tmp_path: Path, validator: str) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"
    image = native_image("RAS")
    save(image, tmp_path).path.unlink()
    names = dict(list(NAMES.items())[::4])
    for source, expected in names.items():
        scan = Scan.from_path(raw / f"sub-01/anat/{source}.nii.gz")
        nib.save(image, scan.path)
        write(scan, tmp_path)
        add_surfaces(scan, out)
        name = surface_path(scan, out, "L").name.removesuffix("_mesh.surf.gii")
        assert name.replace("_hemi-L", "") == expected
    order = surface_path(Scan.from_stem("sub-01_acq-x_space-UNIT1_chunk-1"), out, "R").name
    assert order.startswith("sub-01_acq-x_hemi-R_space-UNIT1_chunk-1_seg-hippocampus")
    settings = Settings(bids_dir=raw, output_dir=out, analysis_level="participant")
    write_dataset_files(settings, labels=["anterior", "posterior"])
    checked = subprocess.run([validator, str(out), "--format", "json"], capture_output=True)
    issues = json.loads(checked.stdout)["issues"]["issues"]
    assert [issue for issue in issues if issue["severity"] == "error"] == []
    assert len(list(out.rglob("*_mesh.surf.gii"))) == 2 * len(names)


def run(raw: Path, out: Path, level: str, *options: str) -> None:
    # A process of its own, as other tests have started threads in this one.
    command = [sys.executable, "-m", "hyps_bids", str(raw), str(out), level, *options]
    subprocess.run(command, check=True, capture_output=True)


@pytest.mark.slow
def test_runs_make_keep_and_renew_surfaces(tmp_path: Path, coarse_head: nib.Nifti1Image) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"
    (raw / "sub-01" / "anat").mkdir(parents=True)
    (raw / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.10.0"}')
    image = raw / "sub-01/anat/sub-01_T1w.nii.gz"
    nib.save(coarse_head, image)
    folder = out / "sub-01" / "anat"
    cpu = ("--device", "cpu", "--nprocs", "1")

    def there() -> dict[str, tuple[bytes, int]]:
        files = folder.glob("*")
        return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}

    run(raw, out, "participant", *cpu)
    first = there()
    assert not any("_mesh" in name for name in first)
    run(raw, out, "participant", *cpu, "--surfaces")
    second = there()
    added = {name for name in second if name not in first}
    assert len(added) == 4
    assert all("_mesh" in name for name in added)
    # The segmentation was not computed again.
    changed = {name.partition("hippocampus_")[2] for name in first if first[name] != second[name]}
    assert changed == {"morph.tsv", "morph.json", "qc.json"}
    run(raw, out, "participant", *cpu)
    assert there() == second
    volumes = read_table(folder / "sub-01_seg-hippocampus_morph.tsv")
    whole = volumes[volumes["part"] == "whole"]
    np.testing.assert_allclose(whole["surface_volume_mm3"], whole["volume_mm3"], rtol=0.03)
    # Done at once, the same; and an image that has changed gets new ones.
    run(raw, tmp_path / "at once", "participant", *cpu, "--surfaces")
    once = {p.name: p.read_bytes() for p in (tmp_path / "at once/sub-01/anat").glob("*")}
    assert once == {name: content for name, (content, _) in second.items()}
    moved = coarse_head.affine.copy()
    moved[:3, 3] += (1, 2, 3)
    nib.save(nib.Nifti1Image(np.asarray(coarse_head.dataobj), moved), image)
    run(raw, out, "participant", *cpu)
    name = "sub-01_hemi-L_seg-hippocampus_mesh.surf.gii"
    before = nib.GiftiImage.from_bytes(second[name][0]).agg_data("pointset")
    after = nib.load(folder / name).agg_data("pointset")
    assert after.mean(axis=0) - before.mean(axis=0) == pytest.approx((1, 2, 3), abs=0.2)
    run(raw, out, "group")
    morph = read_table(out / "group_seg-hippocampus_morph.tsv")
    assert morph["surface_area_mm2"].notna().sum() == 2
    described = load_json(out / "group_seg-hippocampus_morph.json")
    assert "mm2" in described["surface_area_mm2"]["Description"]
