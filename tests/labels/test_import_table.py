"""Import tables are read, checked line by line, and written."""

from __future__ import annotations

from pathlib import Path

import pytest

from hyps_bids.errors import BadData, MissingInput
from hyps_bids.labels.import_table import read_rows, rows_to_tsv
from tests.raising import raises

HEAD = "participant\tsession\timage\tlabel\tlabel_map\n"
CROP = HEAD.replace("session", "crop")
ONE = HEAD + "01\t\ta\tl\t1:L\n"


def write(folder: Path, text: str) -> Path:
    path = folder / "table.tsv"
    path.write_text(text, encoding="utf-8")
    return path


def test_lines_of_one_image_are_joined(tmp_path: Path) -> None:
    text = (
        "01\tn/a\ta.nii\tl.nii\tmask:L\n"
        "01\tn/a\ta.nii\tr.nii\tmask:R\n"
        "02\tM12\tb.nii\tc.nii\t1:L,2:R\n"
    )
    rows = read_rows(write(tmp_path, HEAD + text))
    assert [row.stem for row in rows] == ["sub-01", "sub-02_ses-M12"]
    lines = [(str(path), label_map.line) for path, label_map in rows[0].labels]
    assert lines == [("l.nii", "mask:L"), ("r.nii", "mask:R")]
    assert rows[1].session == "M12"


def test_a_table_survives_writing_and_reading(tmp_path: Path) -> None:
    text = (
        "participant\tsession\tacquisition\timage\tlabel\tlabel_map\tcrop\tsplit\n"
        "1\tn/a\tleft\ta.nii\tl.nii\t1:L:head,2:L:tail\tL\ttest\n"
        "002_S_1\tM0\tn/a\tb.nii\tr.nii\tmask:LR\tn/a\tn/a\n"
    )
    rows = read_rows(write(tmp_path, text))
    assert rows_to_tsv(rows) == text


@pytest.mark.parametrize(
    ("text", "code", "facts"),
    [
        ("participant,image\n1,a", "import-table-columns", ["participant,image"]),
        ("participant\timage\tlabel\tlabel_map\tage\n", "import-table-columns", ["age"]),
        (HEAD, "import-table-empty", []),
        (HEAD + "01\t\ta\t\t1:L", "import-line-incomplete", ["line 2", "label"]),
        (HEAD + "--\t\ta\tb\t1:L", "import-label-invalid", ["line 2", "participant '--'"]),
        (HEAD + "01\t\ta\tb\tleft", "label-map-unknown", ["line 2", "'left'"]),
        (ONE + "01\t\tb\tr\t1:R", "import-lines-differ", ["line 3", "image", "a and b"]),
        (ONE + "0-1\t\ta\tr\t1:R", "import-lines-differ", ["line 3", "sub-01", "0-1"]),
        (CROP + "01\tleft\ta\tb\t1:L", "import-crop-side", ["line 2", "'left'"]),
    ],
)
def test_bad_tables_say_where(tmp_path: Path, text: str, code: str, facts: list[str]) -> None:
    path = write(tmp_path, text)
    with raises(BadData, code, path, *facts):
        read_rows(path)


def test_no_table(tmp_path: Path) -> None:
    with raises(MissingInput, "table-missing", tmp_path / "none.tsv"):
        read_rows(tmp_path / "none.tsv")
