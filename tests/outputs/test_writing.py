"""Names of derivatives, and that files are written whole or not at all."""

from __future__ import annotations

import errno
import gzip
import json
import os
import threading
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from hyps_bids.errors import CannotCreateOutput, WriteFailed
from hyps_bids.outputs.names import output_path
from hyps_bids.outputs.reading import read_table
from hyps_bids.outputs.scan import Scan
from hyps_bids.outputs.writing import (
    atomic_path,
    discard_partials,
    remove_stale,
    write_json,
    write_nifti,
    write_table,
    write_text,
    write_volumes,
    write_with,
)
from tests.raising import raises

SCAN = Scan.from_path(Path("raw/sub-01/ses-M00/anat/sub-01_ses-M00_acq-x_run-01_T1w.nii.gz"))


def test_names_keep_the_source_entities_and_the_order_of_the_schema() -> None:
    path = output_path(
        Path("out"), SCAN, suffix="dseg", extension=".nii.gz", desc="a", res="2", seg="b", label="c"
    )
    assert path == Path(
        "out/sub-01/ses-M00/anat/sub-01_ses-M00_acq-x_run-01_seg-b_res-2_label-c_desc-a_dseg.nii.gz"
    )


def test_unknown_entities_are_refused() -> None:
    with pytest.raises(ValueError, match="hemi"):
        output_path(Path("out"), SCAN, suffix="dseg", extension=".nii.gz", hemi="L")


def test_writers_leave_the_file_alone_in_a_new_folder(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    write_text(folder / "x.txt", "μ\n")
    write_json(folder / "x.json", {"Name": "Müller"})
    write_table(folder / "x.tsv", pd.DataFrame({"a": [1]}))
    write_nifti(folder / "x.nii.gz", nib.Nifti1Image(np.ones((2, 3, 4), np.uint8), np.eye(4)))
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["x.json", "x.nii.gz", "x.tsv", "x.txt"]
    assert (folder / "x.txt").read_text(encoding="utf-8") == "μ\n"
    assert json.loads((folder / "x.json").read_text(encoding="utf-8")) == {"Name": "Müller"}
    image = nib.load(folder / "x.nii.gz")
    assert image.shape == (2, 3, 4)
    assert image.get_data_dtype() == np.uint8


def test_volumes_one_at_a_time_make_the_file_that_nibabel_makes(tmp_path: Path) -> None:
    volumes = np.random.default_rng(0).integers(0, 255, (3, 4, 5, 6), np.uint8)
    whole = nib.Nifti1Image(np.moveaxis(volumes, 0, -1), np.diag([1, 2, 3, 1]))
    header = whole.header.copy()
    header.set_slope_inter(1, 0)
    # C order, Fortran order, and a view that is neither
    forms = [volumes[0], np.asfortranarray(volumes[1]), np.pad(volumes[2], 1)[1:-1, 1:-1, 1:-1]]
    write_volumes(tmp_path / "x.nii.gz", header, forms)
    assert gzip.decompress((tmp_path / "x.nii.gz").read_bytes()) == whole.to_bytes()


def test_failure_in_the_middle_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "x.nii.gz"
    path.write_text("before")
    # nibabel fails while it writes, because complex numbers do not fit a header of type uint8.
    image = nib.Nifti1Image(np.ones((2, 2, 2), np.complex64), np.eye(4))
    image.header.set_data_dtype(np.uint8)
    with pytest.raises(Exception, match=r"(?i)complex|type"):
        write_nifti(path, image)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with raises(CannotCreateOutput, "not-writable", "x.txt"):
        write_text(tmp_path / "file" / "x.txt", "")
    (tmp_path / "y.txt").mkdir()
    with raises(CannotCreateOutput, "not-writable", "y.txt"):
        write_text(tmp_path / "y.txt", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "y.txt"]


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), WriteFailed, "disk-failure"),
        (PermissionError(errno.EACCES, "Permission denied"), CannotCreateOutput, "not-writable"),
        (ZeroDivisionError("of a library"), CannotCreateOutput, "not-writable"),
        (KeyboardInterrupt(), KeyboardInterrupt, None),
    ],
)
@pytest.mark.parametrize("folder", [False, True])
def test_failed_writing_is_reported_and_leaves_what_was_there(
    tmp_path: Path, error: BaseException, kind: type[Exception], code: str | None, folder: bool
) -> None:
    path = tmp_path / "x.bin"
    path.write_text("before")

    def write(partial: Path) -> None:
        if folder:
            partial.mkdir()
            partial /= "inside"
        partial.write_text("half")
        raise error

    with pytest.raises(kind) as caught:
        write_with(path, write, failures=(ZeroDivisionError,), hint="Make room.")
    if code:
        assert type(caught.value) is kind
        assert caught.value.code == code
        assert f"{path}" in str(caught.value)
        assert "Make room." in str(caught.value)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_folder_is_written_at_once_and_discarded_on_a_signal(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "new" / "folder") as partial:
        partial.mkdir()
        (partial / "x.txt").touch()
        assert not (tmp_path / "new" / "folder").exists()
    assert [path.name for path in (tmp_path / "new").rglob("*")] == ["folder", "x.txt"]

    def write_until_a_signal(partial: Path) -> None:
        partial.mkdir()
        (partial / "x.txt").touch()
        discard_partials()
        assert not partial.exists()

    with raises(CannotCreateOutput, "not-writable", "other"):
        write_with(tmp_path / "other", write_until_a_signal)
    assert not (tmp_path / "other").exists()


def test_writers_at_the_same_time_do_not_race(tmp_path: Path) -> None:
    # Two containers may use the same process number.
    path = tmp_path / "x.txt"
    texts = [str(i) * 200_000 for i in range(4)]
    errors: list[Exception] = []

    def repeat(text: str) -> None:
        try:
            for _ in range(30):
                write_text(path, text)
                assert path.read_text() in texts
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=repeat, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.0, "0"),
        (-0.0, "0"),
        (1.0, "1"),
        (0.5, "0.5"),
        (-0.123456789, "-0.123457"),
        (123.456789, "123.457"),
        # A probability of one in a million is not zero.
        (1.5e-7, "1.5e-07"),
        (999.9999, "1000"),
        (1234.5678, "1234.57"),
        (1500.0, "1500"),
        (1_512_345.678, "1512345.68"),
        (-1200.5, "-1200.5"),
        (1e20, "1e+20"),
        (float("inf"), "inf"),
        (float("nan"), "n/a"),
        (None, "n/a"),
    ],
)
@pytest.mark.parametrize("dtype", ["float64", "Float64"])
def test_numbers(tmp_path: Path, value: float | None, expected: str, dtype: str) -> None:
    write_table(tmp_path / "x.tsv", pd.DataFrame({"a": pd.array([value, 2.5], dtype=dtype)}))
    assert (tmp_path / "x.tsv").read_text().splitlines() == ["a", expected, "2.5"]


def test_missing_whole_numbers_and_text(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {
            "count": pd.array([1_000_000, None], dtype="Int64"),
            "flags": ["low_x high_y", None],
            "empty": [None, None],
        }
    )
    write_table(tmp_path / "x.tsv", frame)
    assert (tmp_path / "x.tsv").read_text() == (
        "count\tflags\tempty\n1000000\tlow_x high_y\tn/a\nn/a\tn/a\tn/a\n"
    )


def test_counts_stay_counts_through_a_table_with_missing_ones(tmp_path: Path) -> None:
    path = tmp_path / "x.tsv"
    write_table(path, pd.DataFrame({"voxels": pd.array([1712, None], dtype="Int64")}))
    write_table(path, read_table(path))
    assert path.read_text() == "voxels\n1712\nn/a\n"


def test_labels_stay_text(tmp_path: Path) -> None:
    path = tmp_path / "x.tsv"
    frame = pd.DataFrame(
        {
            "participant_id": ["01", "1e5"],
            "session_id": ["007", None],
            "run": ["01", "NA"],
            "scan": ["null", "sub-02"],
            "value": [1.5, None],
            "reason": ['he said "no"', "NaN"],
        }
    )
    write_table(path, frame)
    back = read_table(path)
    assert back["participant_id"].tolist() == ["01", "1e5"]
    assert back["session_id"][0] == "007"
    assert pd.isna(back["session_id"][1])
    assert back["run"].tolist() == ["01", "NA"]
    assert back["scan"].tolist() == ["null", "sub-02"]
    assert back["reason"].tolist() == ['he said "no"', "NaN"]
    assert back["value"][0] == 1.5
    assert np.isnan(back["value"][1])


def test_same_text_is_not_written_again(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "ä\n")
    before = path.stat().st_ino
    write_text(path, "ä\n")
    assert path.stat().st_ino == before
    write_text(path, "b\n")
    assert path.stat().st_ino != before
    assert path.read_text() == "b\n"


def test_only_old_files_of_killed_writers_are_removed(tmp_path: Path) -> None:
    names = {
        ".0123abcd.sub-01_dseg.nii.gz": 25,
        ".0123abce.sub-01_dseg.nii.gz": 23,
        ".bidsignore": 25,
        ".0123abcd": 25,
        ".0123ABCD.txt": 25,
        "0123abcd.txt": 25,
    }
    for name, hours in names.items():
        (tmp_path / name).touch()
        then = time.time() - hours * 3600
        os.utime(tmp_path / name, (then, then))
    remove_stale(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(list(names)[1:])
    remove_stale(tmp_path / "nowhere")
