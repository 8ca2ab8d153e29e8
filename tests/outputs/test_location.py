"""Where outputs and intermediate files may be written."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from hyps_bids.errors import CannotCreateOutput, UsageError
from hyps_bids.outputs import location
from hyps_bids.outputs.location import check_output
from hyps_bids.settings import Settings
from tests.raising import raises


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    folder = tmp_path / "raw"
    folder.mkdir()
    return folder


def settings(raw: Path, output: Path, **options: Any) -> Settings:
    return Settings(bids_dir=raw, output_dir=output, analysis_level="participant", **options)


def test_checking_creates_nothing(raw: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    check_output(settings(raw, tmp_path / "new" / "out"))
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("inside", ["derivatives", "derivatives/hyps", "sourcedata/x", "code/x"])
def test_safe_folders_inside_the_input(raw: Path, inside: str) -> None:
    check_output(settings(raw, raw / inside))
    (raw / inside).mkdir(parents=True)
    check_output(settings(raw, raw / inside))
    assert list((raw / inside).iterdir()) == []


def test_input_among_the_sources_of_the_output(raw: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    for folder in ("sourcedata/raw", "sourcedata", "sources/raw"):
        shutil.copytree(raw, output / folder, dirs_exist_ok=True)
        given = settings(output / folder, output)
        if folder.startswith("sourcedata"):
            check_output(given)
        else:
            with raises(UsageError, "output-contains-input", output):
                check_output(given)


@pytest.mark.parametrize(
    ("output", "code"),
    [
        ("raw", "output-is-input"),
        ("raw/../raw", "output-is-input"),
        ("link", "output-is-input"),
        (".", "output-contains-input"),
        ("raw/out", "output-in-raw-data"),
        ("raw/sub-01", "output-in-raw-data"),
        ("link/out", "output-in-raw-data"),
    ],
)
def test_unsafe_output(raw: Path, tmp_path: Path, output: str, code: str) -> None:
    (tmp_path / "link").symlink_to(raw)
    before = sorted(tmp_path.rglob("*"))
    with raises(UsageError, code, tmp_path / output):
        check_output(settings(raw, tmp_path / output))
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("output", ["file", "file/below"])
def test_output_that_cannot_be_made(raw: Path, tmp_path: Path, output: str) -> None:
    (tmp_path / "file").touch()
    with raises(CannotCreateOutput, "not-writable", tmp_path / output):
        check_output(settings(raw, tmp_path / output))


def test_work_folder_in_its_place(raw: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    check_output(settings(raw, output, work_dir=tmp_path))
    check_output(settings(raw, output, work_dir=output / "work", clean_workdir=True))
    inner = raw / "derivatives/hyps"
    check_output(settings(raw, inner, work_dir=inner / "work/mine", clean_workdir=True))


@pytest.mark.parametrize(
    ("output", "work", "clean", "code"),
    [
        ("out", "raw", False, "work-is-input"),
        ("out", "raw/sub-01", False, "work-in-raw-data"),
        ("out", "link", False, "work-in-raw-data"),
        ("out", ".", True, "cleaning-removes-data"),
        ("out", "out", True, "cleaning-removes-data"),
        ("out", "raw/sourcedata", True, "cleaning-in-input"),
        ("raw/derivatives/hyps", "raw/derivatives/other", True, "cleaning-in-input"),
        ("out", "out/sub-01", True, "cleaning-removes-results"),
    ],
)
def test_unsafe_work_folder(
    raw: Path, tmp_path: Path, output: str, work: str, clean: bool, code: str
) -> None:
    (tmp_path / "link").symlink_to(raw / "sub-01")
    with raises(UsageError, code, tmp_path / work):
        check_output(
            settings(raw, tmp_path / output, work_dir=tmp_path / work, clean_workdir=clean)
        )


def test_output_that_is_lost_with_its_container(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HYPS_BIDS_CONTAINER", "hyps-bids:1")
    for on_root in (False, True):
        monkeypatch.setattr(location, "is_on_root", lambda path, told=on_root: told)
        check_output(settings(raw, tmp_path / "out"))
        assert [str(tmp_path / "out") in record.getMessage() for record in caplog.records] == [
            True
        ] * on_root
