"""Presets find the images and labels of known datasets."""

from __future__ import annotations

from pathlib import Path

from hyps_bids.errors import BadData, MissingInput, UsageError
from hyps_bids.labels.presets import find_rows, load_presets, read_preset
from tests.raising import raises

PRESETS = load_presets()


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def test_msd_crops_are_sides_of_subjects(tmp_path: Path) -> None:
    numbers = [1, 2, *range(3, 21, 2)]
    crops = [f"Tr/hippocampus_{n:03d}.nii.gz" for n in numbers]
    names = [f"Task04/{kind}{crop}" for crop in crops for kind in ("images", "labels")]
    found = find_rows(PRESETS["msd-task04"], touch(tmp_path, *names, "Task04/imagesTr/._x.nii.gz"))
    assert [(row.stem, row.crop, row.labels[0][1].line) for row in found.rows[:3]] == [
        ("sub-001_acq-left", "L", "1:L:anterior,2:L:posterior"),
        ("sub-001_acq-right", "R", "1:R:anterior,2:R:posterior"),
        ("sub-002_acq-left", "L", "1:L:anterior,2:L:posterior"),
    ]
    # Every fifth subject is in the fixed test set.
    assert {row.participant for row in found.rows if row.split == "test"} == {"005", "010"}
    assert not found.problems


def test_harp_release(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "100/ADNI_002_S_0295_13722_ACPC.nii",
        "Labels_100_NIFTI/ADNI_002_S_0295_13722_L.nii",
        "Labels_100_NIFTI/ADNI_002_S_0295_13722_R.nii",
        "35/ADNI_007_S_1304_74384_ACPC.nii.gz",
        "Labels_35_NIFTI/ADNI_007_S_1304_74384_L.nii",
        "Labels_35_NIFTI/ADNI_007_S_1304_74384_R.nii",
        "35/ADNI_011_S_0002_1_ACPC.nii.gz",
        "Labels_35_NIFTI/ADNI_011_S_0002_1_L.nii",
        "Labels_35_NIFTI/ADNI_011_S_0002_2_R.nii",
    )
    found = find_rows(PRESETS["harp"], tmp_path)
    assert [row.stem for row in found.rows] == ["sub-002S0295"]
    assert [path.name[-5:] for path, _ in found.rows[0].labels] == ["L.nii", "R.nii"]
    assert len(found.left_out) == 1
    assert "007_S_1304" in found.left_out[0]
    assert len(found.problems) == 1
    assert "ADNI_011_S_0002_1_ACPC.nii.gz" in found.problems[0]
    kept = find_rows(PRESETS["harp"], tmp_path, keep_left_out=True).rows
    checked = {row.participant: row.check_sides for row in kept}
    assert checked == {"002_S_0295": True, "007_S_1304": False}


def test_harp_as_the_authors_processed_it(tmp_path: Path) -> None:
    numbers = [1, 8, 18, 35, 65, 85, 134]
    names = [f"EADC/sub{n}/sub{n}_{kind}.nii.gz" for n in numbers for kind in ("img", "mask")]
    found = find_rows(PRESETS["harp"], touch(tmp_path, *names))
    assert [row.participant for row in found.rows] == ["sub1", "sub18"]
    assert len(found.left_out) == 5
    replaced = find_rows(PRESETS["harp"], tmp_path, label_map="whole")
    assert replaced.rows[0].labels[0][1].line == "1:L,2:R"


def test_ambiguity_is_a_problem(tmp_path: Path) -> None:
    touch(tmp_path, "1/HFH_001.img", "2/HFH_001.img", "HFH_001_Hipp_Labels.img")
    found = find_rows(PRESETS["hfh"], tmp_path)
    assert len(found.rows) == 1
    for fact in ("2/HFH_001.img", "sub-HFH001", "1/HFH_001.img"):
        assert fact in found.problems[0]
    touch(tmp_path, "old/HFH_001_Hipp_Labels.img")
    assert "2 label images" in find_rows(PRESETS["hfh"], tmp_path).problems[0]


def test_nothing_found(tmp_path: Path) -> None:
    with raises(MissingInput, "folder-missing", tmp_path / "none"):
        find_rows(PRESETS["hfh"], tmp_path / "none")
    touch(tmp_path, "100/ADNI_002_S_0295_13722_ACPC.mnc")
    with raises(MissingInput, "preset-not-found", tmp_path, "ADNI_", "mnc2nii"):
        find_rows(PRESETS["harp"], tmp_path)


def test_a_preset_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        '[mine]\nname = "Mine"\nlicense = "CC0"\n[[mine.layouts]]\n'
        'image = "{participant}/{session}/t1.{ext}"\n'
        'labels = [{ file = "{participant}/{session}/seg.{ext}", map = "17:L,53:R,*:-" }]\n',
        encoding="utf-8",
    )
    touch(tmp_path / "data", "ann/M0/t1.nii.gz", "ann/M0/seg.nii", "bob/M0/t1.nii")
    found = find_rows(read_preset(path), tmp_path / "data")
    assert [row.stem for row in found.rows] == ["sub-ann_ses-M0"]
    assert len(found.problems) == 1
    path.write_text(path.read_text().replace("{session}", "{visit}"), encoding="utf-8")
    with raises(UsageError, "preset-placeholder", "{visit}"):
        find_rows(read_preset(path), tmp_path / "data")
    path.write_text('[mine]\nname = "Mine"\n', encoding="utf-8")
    with raises(BadData, "preset-invalid", path):
        read_preset(path)
    with raises(MissingInput, "preset-missing", tmp_path / "none.toml"):
        read_preset(tmp_path / "none.toml")
