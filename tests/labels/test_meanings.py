"""Label maps in every form, and the structures that they find in voxels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hyps_bids.errors import BadData, UsageError
from hyps_bids.labels.meanings import LABEL_MAPS, Structure, parse_label_map, recognize
from hyps_bids.labels.voxels import find_structures
from hyps_bids.outputs.labels import label_table
from tests.raising import raises


def find(line: str, data: np.ndarray, affine: np.ndarray | None = None) -> dict:
    affine = np.eye(4) if affine is None else affine
    return find_structures(parse_label_map(line), data, affine)


def column(*values: float) -> np.ndarray:
    return np.array(values).reshape(-1, 1, 1)


@pytest.mark.parametrize(
    ("written", "line"),
    [
        ("aseg", "17:L,53:R,*:-"),
        ("whole", "1:L,2:R"),
        ("anteriorposterior", "1:L:anterior,2:L:posterior,3:R:anterior,4:R:posterior"),
        ("9:-, 01:L:anterior,2:LR", "9:-, 01:L:anterior,2:LR"),
        ("table.tsv", "5:L:head,6:R:head,*:-"),
    ],
)
def test_every_form_is_also_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: str, line: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("table.tsv").write_text("index\themi\tpart\n0\tL\tn/a\n5\tL\thead\n6\tR\thead\n")
    found = parse_label_map(written)
    assert found.line == line
    assert parse_label_map(line) == found


def test_preset_is_our_own_table() -> None:
    table = label_table(["anterior", "posterior"])[["index", "hemi", "part"]]
    expected = tuple(Structure(*row) for row in table.itertuples(index=False))
    assert parse_label_map("anteriorposterior").structures == expected
    assert set(LABEL_MAPS) == {"aseg", "whole", "anteriorposterior"}


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "label-map-unknown"),
        ("1", "label-map-unknown"),
        ("1:X", "label-map-syntax"),
        ("one:L", "label-map-syntax"),
        ("0:L", "label-map-syntax"),
        ("-1:L", "label-map-syntax"),
        ("*:L", "label-map-syntax"),
        ("mask:-", "label-map-syntax"),
        ("1:L:a b", "label-map-syntax"),
        ("1:L:--", "label-map-syntax"),
        ("1:L,01:R", "label-map-contradictory"),
        ("*:-", "label-map-contradictory"),
        ("3:-", "label-map-contradictory"),
        ("mask:L,2:R", "label-map-contradictory"),
        ("mask:L,*:-", "label-map-contradictory"),
        ("mask:L,mask:R", "label-map-contradictory"),
    ],
)
def test_text_that_is_no_map(text: str, code: str) -> None:
    with raises(UsageError, code, repr(text)):
        parse_label_map(text)


def test_line() -> None:
    found = parse_label_map("1:L:anterior, 2:L:CA1-2, 3:LR, 9:-")
    expected = ((1, "L", "anterior"), (2, "L", "CA1-2"), (3, "LR", "hippocampus"))
    assert found.structures == tuple(Structure(*structure) for structure in expected)
    assert found.listed == {1, 2, 3, 9}
    assert parse_label_map("1:L,9:-,*:-").listed is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("index\themi\tpart\n3\tL\themi1\n4\tR\themi1\n", [(3, "L", "hemi1"), (4, "R", "hemi1")]),
        ("index\themi\n3\tleft\n4\tright\n", [(3, "L", "hippocampus"), (4, "R", "hippocampus")]),
        # Several values have one meaning, an abbreviation gives the side, one is another structure.
        (
            "index\tname\tabbreviation\n0\tbackground\tbg\n1\thippocampus\tHIP_L\n"
            "2\tHippocampus (left)\tn/a\n3\tAmygdala\tAMY_L\n",
            [(1, "L", "hippocampus"), (2, "L", "hippocampus")],
        ),
        (
            "index\tname\n231\tLeft hippocampal tail\n232\tleft hippocampus, head\n"
            "9\tLeft hippocampal fissure\n8\thippocampus\n",
            [(231, "L", "tail"), (232, "L", "head")],
        ),
    ],
)
def test_tables(tmp_path: Path, text: str, expected: list[tuple[int, str, str]]) -> None:
    path = tmp_path / "map.tsv"
    path.write_text(text)
    found = parse_label_map(str(path))
    assert [(s.index, s.hemi, s.part) for s in found.structures] == expected
    assert found.listed is None


@pytest.mark.parametrize(
    ("text", "code", "fact"),
    [
        ("", "table-unreadable", ""),
        ("index,name\n1,Left hippocampus\n", "label-table-columns", ""),
        ("name\nLeft hippocampus\n", "label-table-columns", ""),
        ("index\tname\none\tLeft hippocampus\n", "label-index-invalid", "'one'"),
        ("index\tname\n1.5\tLeft hippocampus\n", "label-index-invalid", "'1.5'"),
        ("index\tname\n1\tAmygdala\n", "label-table-without-hippocampus", ""),
        ("index\tname\n1\thippocampus\n", "label-without-side", "index 1"),
        ("index\themi\n1\tL\n1\tR\n", "label-index-repeated", "index 1"),
    ],
)
def test_bad_tables(tmp_path: Path, text: str, code: str, fact: str) -> None:
    path = tmp_path / "map.tsv"
    path.write_text(text)
    with raises(BadData, code, path, fact):
        parse_label_map(str(path))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Left-Hippocampus", (True, "L", "hippocampus")),
        ("Hippocampus_R", (True, "R", "hippocampus")),
        ("LeftHippocampus", (True, "L", "hippocampus")),
        ("lefthippocampus", (True, "L", "hippocampus")),
        ("Rhippocampus", (True, "R", "hippocampus")),
        ("LHippocampusPosterior", (True, "L", "posterior")),
        ("Right anterior hippocampus", (True, "R", "anterior")),
        ("rh-hippocampus-head", (True, "R", "head")),
        ("HIP_L", (True, "L", "hippocampus")),
        ("L", (False, "L", "hippocampus")),
        ("Leftanterior", (False, "L", "anterior")),
        ("hippocampus", (True, None, "hippocampus")),
        ("Left-hippocampal_fissure", (True, "L", None)),
        ("left hippocampus anterior posterior", (True, "L", None)),
        ("left right hippocampus", (True, None, None)),
        ("Left-Parahippocampal gyrus", (False, "L", None)),
        ("Left-Lateral-Ventricle", (False, "L", None)),
        ("Brain-Stem", (False, None, None)),
    ],
)
def test_recognize(name: str, expected: tuple[bool, str | None, str | None]) -> None:
    assert recognize(name) == expected


def test_values_of_one_structure_are_joined() -> None:
    found = find("1:L,2:L,3:-", column(1, 2, 3, 0))
    assert list(found) == [("L", "hippocampus")]
    assert found["L", "hippocampus"].ravel().tolist() == [True, True, False, False]


def test_unknown_values_are_named_unless_ignored() -> None:
    data = column(0, 1, 21, 22)
    with raises(BadData, "label-value-unknown", "21, 22", "1:L"):
        find("1:L", data)
    assert len(find("1:L,*:-", data)) == 1


def test_masks_may_have_an_offset_but_two_values_only() -> None:
    mask = column(26896.988, 26897.988, 26896.988).astype(np.float32)
    assert find("mask:R", mask)["R", "hippocampus"].ravel().tolist() == [False, True, False]
    with raises(BadData, "not-a-mask", "3 values"):
        find("mask:R", column(0, 1, 2))
    with raises(BadData, "not-a-mask", "1 values"):
        find("mask:R", column(0, 0))


@pytest.mark.parametrize("flip", [1, -1])
def test_both_sides_in_one_mask_are_told_apart_in_the_world(flip: int) -> None:
    mask = np.zeros((20, 4, 4))
    mask[3:6] = mask[13:16] = 1
    # A loose voxel belongs to the side that it lies on.
    mask[7, 0, 0] = 1
    found = find("mask:LR", mask, np.diag([flip, 1.0, 1.0, 1.0]))
    low, high = ("L", "R") if flip == 1 else ("R", "L")
    assert found[low, "hippocampus"].sum() == 49
    assert found[high, "hippocampus"][13:16].all()


def test_one_piece_is_not_two_hippocampi() -> None:
    mask = np.zeros((20, 4, 4))
    mask[3:16] = 1
    with raises(BadData, "sides-not-separable"):
        find("mask:LR", mask)


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ([0, 1.4], "label-values-not-whole"),
        ([0, np.nan], "label-values-not-finite"),
        ([0, 0], "no-hippocampus-labeled"),
    ],
)
def test_values_that_are_no_labels(values: list[float], code: str) -> None:
    with raises(BadData, code):
        find("1:L", column(*values))
