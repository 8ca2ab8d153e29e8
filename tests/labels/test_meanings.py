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


NO_MAPS = {
    "unknown": ("", "1"),
    "syntax": ("1:X", "one:L", "0:L", "-1:L", "*:L", "mask:-", "1:L:a b", "1:L:--"),
    "contradictory": ("1:L,01:R", "*:-", "3:-", "mask:L,2:R", "mask:L,*:-", "mask:L,mask:R"),
}


@pytest.mark.parametrize(
    ("code", "text"), [(code, text) for code, texts in NO_MAPS.items() for text in texts]
)
def test_text_that_is_no_map(code: str, text: str) -> None:
    with raises(UsageError, f"label-map-{code}", repr(text)):
        parse_label_map(text)


def test_line() -> None:
    found = parse_label_map("1:L:anterior, 2:L:CA1-2, 3:LR, 9:-")
    expected = ((1, "L", "anterior"), (2, "L", "CA1-2"), (3, "LR", "hippocampus"))
    assert found.structures == tuple(Structure(*structure) for structure in expected)
    assert found.listed == {1, 2, 3, 9}


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


def test_unknown_values_can_be_ignored() -> None:
    assert len(find("1:L,*:-", column(0, 1, 21, 22))) == 1


def test_masks_may_have_an_offset() -> None:
    mask = column(26896.988, 26897.988, 26896.988).astype(np.float32)
    assert find("mask:R", mask)["R", "hippocampus"].ravel().tolist() == [False, True, False]


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


@pytest.mark.parametrize(
    ("line", "values", "code", "fact"),
    [
        ("1:L", (0, 1.4), "label-values-not-whole", "1.4"),
        ("1:L", (0, np.nan), "label-values-not-finite", ""),
        ("1:L", (0, 0), "no-hippocampus-labeled", "1:L"),
        ("1:L", (0, 1, 21, 22), "label-value-unknown", "21, 22, which the label map 1:L"),
        ("mask:R", (0, 1, 2), "not-a-mask", "3 values"),
        ("mask:R", (0, 0), "not-a-mask", "1 values"),
        # One piece is not two hippocampi.
        ("mask:LR", (0, 1, 1, 1), "sides-not-separable", "0 and 3 voxels"),
    ],
)
def test_values_that_do_not_fit(line: str, values: tuple[float, ...], code: str, fact: str) -> None:
    with raises(BadData, code, fact):
        find(line, column(*values))
