"""Made and real source trees become valid BIDS datasets, and problems are reported."""

from __future__ import annotations

import json
import logging
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from hyps_bids.errors import CannotCreateOutput
from hyps_bids.imaging.conform import conform
from hyps_bids.labels.import_dataset import Outcome, import_rows
from hyps_bids.labels.import_descriptions import LABELS
from hyps_bids.labels.import_table import Row
from hyps_bids.labels.meanings import LabelMap, parse_label_map
from hyps_bids.labels.presets import Preset, find_rows, load_presets
from hyps_bids.outputs.reading import read_table
from tests.raising import raises

Save = Callable[..., Path]
Values = Callable[..., np.ndarray]
MADE = Preset("Made images", "CC0")


def labels(*written: tuple[str, str]) -> tuple[tuple[Path, LabelMap], ...]:
    return tuple((Path(path), parse_label_map(label_map)) for path, label_map in written)


def row(label_map: str = "1:L,2:R", **changes: object) -> Row:
    made = Row("01", Path("image.nii.gz"), labels(("labels.nii.gz", label_map)))
    return replace(made, **changes)


@pytest.fixture
def source(tmp_path: Path, save: Save, values: Values) -> Path:
    """Make one NIfTI image with RAS axes, and its labels: 1 is left, 2 is right."""
    save(tmp_path / "source/image.nii.gz")
    save(tmp_path / "source/labels.nii.gz", values(1, 2))
    return tmp_path / "source"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def run(source: Path, *rows: Row, orientation: str = "LAS", output: str = "out") -> Outcome:
    return import_rows(rows, source, source.parent / output, MADE, orientation=orientation)


def load_labels(output: Path, stem: str = "sub-01") -> nib.Nifti1Image:
    return nib.load(next((output / LABELS).rglob(f"{stem}_seg-hippocampus_dseg.nii.gz")))


def read_sidecar(dataset: Path, stem: str) -> dict[str, Any]:
    return json.loads((dataset / f"sub-01/anat/{stem}.json").read_text())


def errors(validator: str, dataset: Path) -> list[str]:
    done = subprocess.run(
        [validator, str(dataset), "--format", "json"], capture_output=True, text=True, check=False
    )
    issues = json.loads(done.stdout)["issues"]["issues"]
    return [f"{i['code']} {i.get('location')}" for i in issues if i["severity"] == "error"]


def test_nifti_is_copied_and_labels_get_our_numbers(
    source: Path, out: Path, values: Values
) -> None:
    assert run(source, row("1:L:anterior,2:R:anterior")) == Outcome(1, 0, ())
    assert not list(out.rglob(".*"))
    image = out / "sub-01/anat/sub-01_T1w.nii.gz"
    assert image.read_bytes() == (source / "image.nii.gz").read_bytes()
    found = load_labels(out)
    np.testing.assert_array_equal(found.dataobj, values(1, 2))
    np.testing.assert_array_equal(found.affine, nib.load(image).affine)
    assert found.get_data_dtype() == np.uint8
    table = read_table(out / LABELS / "seg-hippocampus_dseg.tsv")[["index", "hemi", "part"]]
    assert table.values.tolist() == [[1, "L", "anterior"], [2, "R", "anterior"]]
    sidecar = read_sidecar(out / LABELS, "sub-01_seg-hippocampus_dseg")
    assert sidecar["Sources"] == ["bids:raw:sub-01/anat/sub-01_T1w.nii.gz"]
    assert sidecar["SourceFiles"][0]["LabelMap"] == "1:L:anterior,2:R:anterior"


def test_label_images_of_each_side_are_merged_unless_they_overlap(
    source: Path, out: Path, save: Save, values: Values
) -> None:
    save(source / "l.nii", values(1, 0))
    save(source / "r.nii", values(0, 255))
    twice = row(labels=labels(("labels.nii.gz", "1:L,2:R"), ("l.nii", "mask:R")))
    (problem,) = run(source, twice).problems
    assert "voxels twice" in problem
    assert not out.exists()
    assert run(source, row(labels=labels(("l.nii", "mask:L"), ("r.nii", "mask:R")))).written == 1
    np.testing.assert_array_equal(load_labels(out).dataobj, values(1, 2))


def test_analyze_orientation_is_assumed_said_and_checked(
    tmp_path: Path, out: Path, save: Save, values: Values, caplog: pytest.LogCaptureFixture
) -> None:
    source = tmp_path / "source"
    save(source / "image.img")
    save(source / "labels.img", values(1, 2))
    one = row(image=Path("image.img"), labels=labels(("labels.img", "1:L,2:R")))
    # Value 1 is at low indices, which are left only if the axis points to the right.
    (problem,) = run(source, one, orientation="LAS").problems
    assert "image.img: the labels called left lie 6 mm to the right" in problem
    caplog.clear()
    assert run(source, one, orientation="RAS").written == 1
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.args == (1, 1, "RAS")
    image = nib.load(out / "sub-01/anat/sub-01_T1w.nii.gz")
    assert image.shape == (12, 10, 8)
    assert image.get_data_dtype() == np.int16
    assert image.header.get_zooms() == (1.0, 1.5, 2.0)
    assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
    sidecar = read_sidecar(out, "sub-01_T1w")
    assert sidecar["AssumedOrientation"] == "RAS"
    assert [Path(f["File"]).suffix for f in sidecar["SourceFiles"]] == [".hdr", ".img"]
    # The same files with another orientation would be another dataset.
    with raises(CannotCreateOutput, "imported-differently", out / "sub-01/anat/sub-01_T1w.json"):
        run(source, one, orientation="RPS")


def test_problems_do_not_stop_the_others(source: Path, out: Path, save: Save) -> None:
    save(source / "small.nii.gz", np.ones((4, 4, 4), dtype=np.uint8))
    rows = [
        row("5:L,*:-", participant="empty"),
        row("1:L", participant="unknown"),
        row("1:R,2:L", participant="swapped"),
        row(participant="gone", image=Path("gone.nii.gz")),
        row(participant="grid", labels=labels(("small.nii.gz", "1:L,2:R"))),
        row(participant="a-1"),
        row(participant="A1"),
        row(participant="good"),
    ]
    outcome = run(source, *rows)
    assert outcome.written == 1
    for expected in (
        "participants A1, a-1 would all be sub-a1",
        "labels.nii.gz: has no voxel",
        "labels.nii.gz: has the values 2, which",
        "image.nii.gz: the labels called left lie",
        "gone.nii.gz: there is no such file",
        "small.nii.gz: the grid differs from that of image.nii.gz",
    ):
        assert sum(expected in problem for problem in outcome.problems) == 1
    assert [path.name for path in out.glob("sub-*")] == ["sub-good"]


@pytest.mark.parametrize(
    ("label_map", "fact"), [("1:R,2:L", "left and right"), ("2:R,*:-", "side R only")]
)
def test_sides_in_doubt_are_reported(
    source: Path, caplog: pytest.LogCaptureFixture, label_map: str, fact: str
) -> None:
    assert run(source, row(label_map, check_sides=False)).written == 1
    assert fact in caplog.text
    assert "image.nii.gz" in caplog.text


def test_again_and_more(source: Path, out: Path) -> None:
    first, second = row(), row(participant="02", split="test")
    assert run(source, first) == Outcome(1, 0, ())
    image = out / "sub-01/anat/sub-01_T1w.nii.gz"
    before = image.stat().st_mtime_ns
    assert run(source, first, second) == Outcome(1, 1, ())
    assert image.stat().st_mtime_ns == before
    # Another version may describe the columns in other words.
    (out / LABELS / "seg-hippocampus_dseg.json").write_text("{}")
    assert run(source, second) == Outcome(0, 1, ())
    people = read_table(out / "participants.tsv")
    assert people["participant_id"].tolist() == ["sub-01", "sub-02"]
    assert people["split"].tolist()[1] == "test"
    # A lost image is written again.
    image.unlink()
    assert run(source, first) == Outcome(1, 0, ())
    assert image.is_file()


def test_nothing_else_is_overwritten(source: Path, out: Path, save: Save) -> None:
    run(source, row())
    with raises(CannotCreateOutput, "other-labels-in-output", out / LABELS):
        run(source, row("1:L:anterior,2:R:anterior"))
    with raises(CannotCreateOutput, "output-of-other-dataset", out / "dataset_description.json"):
        import_rows([row()], source, out, replace(MADE, name="B"), orientation="LAS")
    with raises(CannotCreateOutput, "output-not-a-dataset", source):
        run(source, row(), output="source")
    save(source / "image.nii.gz", np.ones((12, 10, 8), dtype=np.uint8))
    with raises(CannotCreateOutput, "imported-differently", out / "sub-01"):
        run(source, row())
    (source.parent / "file").touch()
    with raises(CannotCreateOutput, "output-folder-unusable", source.parent / "file"):
        run(source, row(), output="file")


def test_a_crop_keeps_its_voxels_and_gets_its_side(source: Path, out: Path) -> None:
    rows = [
        row("1:L,2:L", acquisition="left", crop="L"),
        row("1:R,2:R", acquisition="right", crop="R"),
        row("1:L,2:R", acquisition="both", crop="R"),
    ]
    (problem,) = run(source, *rows).problems
    assert "L+R" in problem
    stored = nib.load(source / "image.nii.gz").get_fdata()
    for name, sign in (("left", -1), ("right", 1)):
        image = nib.load(out / f"sub-01/anat/sub-01_acq-{name}_T1w.nii.gz")
        np.testing.assert_array_equal(image.get_fdata(), stored)
        found = load_labels(out, f"sub-01_acq-{name}")
        np.testing.assert_array_equal(found.affine, image.affine)
        where = nib.affines.apply_affine(image.affine, np.argwhere(found.get_fdata()))
        assert (np.sign(where[:, 0]) == sign).all()
        assert read_sidecar(out, f"sub-01_acq-{name}_T1w")["CropAroundHippocampus"] is True
    assert "nominal" in (out / "README.md").read_text()


def harp(save: Save, values: Values, folder: Path) -> None:
    for number, scan in (("0295", 1), ("0938", 2)):
        name = f"ADNI_002_S_{number}_{scan}"
        save(folder / f"100/{name}_ACPC.nii")
        save(folder / f"Labels_100_NIFTI/{name}_L.nii", values(1, 0))
        # Some masks of the release have an offset.
        mask = values(0, 1).astype(np.float32) + np.float32(26896.988)
        save(folder / f"Labels_100_NIFTI/{name}_R.nii", mask)


def authors(save: Save, values: Values, folder: Path) -> None:
    for n in (1, 8):
        save(folder / f"sub{n}/sub{n}_img.nii.gz")
        save(folder / f"sub{n}/sub{n}_mask.nii.gz", values(1, 1))


def lpba40(save: Save, values: Values, folder: Path) -> None:
    stem = folder / "delineation_space/S01/S01.delineation"
    save(Path(f"{stem}.skullstripped.img"))
    # The first axis of Analyze points to the left.
    save(Path(f"{stem}.structure.label.img"), values(166, 165, 21))


def hfh(save: Save, values: Values, folder: Path) -> None:
    save(folder / "Train/HFH_001.img")
    save(folder / "Train/Labels/HFH_001_Hipp_Labels.img", values(2, 1))
    save(folder / "Test/HFH_002.img")


@pytest.mark.parametrize(
    ("preset", "make", "stem", "first"),
    [
        ("harp", harp, "sub-002S0295", 1),
        ("harp", authors, "sub-1", 1),
        ("lpba40", lpba40, "sub-S01", 2),
        ("hfh", hfh, "sub-HFH001", 2),
    ],
)
def test_presets_give_valid_bids(
    preset: str,
    make: Callable[[Save, Values, Path], None],
    stem: str,
    first: int,
    save: Save,
    values: Values,
    out: Path,
    validator: str,
) -> None:
    source, about = out.parent / "source", load_presets()[preset]
    make(save, values, source)
    found = find_rows(about, source)
    assert import_rows(found.rows, source, out, about, orientation="LAS") == Outcome(1, 0, ())
    assert (len(found.left_out), found.problems) == (preset == "harp", [])
    data = np.asarray(load_labels(out, stem).dataobj)
    assert (data[2, 4, 3], data[8, 4, 3]) == (first, 3 - first)
    assert set(np.unique(data)) == {0, 1, 2}
    description = json.loads((out / "dataset_description.json").read_text())
    assert description["License"] == about.license
    assert errors(validator, out) == errors(validator, out / LABELS) == []


@pytest.mark.shared
@pytest.mark.parametrize("count", [4, pytest.param(None, marks=pytest.mark.slow)])
def test_msd_task04(shared_data: Path, out: Path, validator: str, count: int | None) -> None:
    """The app reads real crops as they are stored, with right ones mirrored back."""
    source, about = shared_data / "msd_task04", load_presets()["msd-task04"]
    rows = find_rows(about, source).rows[:count]
    outcome = import_rows(rows, source, out, about, orientation="LAS")
    assert outcome == Outcome(count or 199, 0, ())
    for one in rows[:4]:
        stored, right = nib.load(source / one.image), one.crop == "R"
        path = out / f"sub-{one.participant}/anat/{one.stem}_T1w.nii.gz"
        seen, expected = conform(path), stored.get_fdata(dtype=np.float32)
        np.testing.assert_array_equal(seen.data, expected[::-1] if right else expected)
        assert nib.aff2axcodes(seen.affine) == ("R", "A", "S")
        assert not seen.remarks
        assert nib.load(path).get_data_dtype() == stored.get_data_dtype()
        known = np.asarray(nib.load(source / one.labels[0][0]).dataobj).astype(int)
        found = np.asarray(load_labels(out, one.stem).dataobj)
        np.testing.assert_array_equal(found, np.where(known > 0, known + 2 * right, 0))
    people = read_table(out / "participants.tsv")
    if count is None:
        assert len(people) == 130
        assert (people["split"] == "test").sum() == 26
    assert errors(validator, out) == errors(validator, out / LABELS) == []
