"""Reasons of failures, read from files that nipype itself writes."""

from __future__ import annotations

from pathlib import Path

import pytest
from nipype.interfaces.utility import Function
from nipype.pipeline import engine as pe

from hyps_bids.workflows.crash_files import read_crash_file


def crash_reasons(folder: Path) -> dict[str, str]:
    """Read all crash files of a folder."""
    paths = sorted(folder.glob("crash-*.txt"))
    return {scan: why for path in paths for scan, why in read_crash_file(path).items()}


def our_error() -> None:
    from hyps_bids.errors import BadData

    try:
        raise ValueError("cause: not to be shown")
    except ValueError as error:
        raise BadData(
            "sub-01_T1w.nii.gz: is empty; fetch it again\nDetail: of it", code="image-empty"
        ) from error


def foreign_error() -> None:
    import zlib

    raise zlib.error("Error -3 while decompressing: invalid code")


def error_without_message() -> None:
    raise AssertionError


def error_with_colons() -> None:
    raise ValueError("Shape: wrong\nHint: RuntimeError: not this one")


@pytest.fixture(scope="module")
def reasons(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("run") / "20260101T000000_abc"
    workflow = pe.Workflow(name="participant_wf", base_dir=str(folder.parent / "work"))
    functions = {
        "sub_01": our_error,
        "sub_02_ses_M00": foreign_error,
        "sub_03": error_without_message,
        "sub_04": error_with_colons,
    }
    for name, function in functions.items():
        inner = pe.Workflow(name=name)
        inner.add_nodes([pe.Node(Function(function=function), name="conform")])
        workflow.add_nodes([inner])
    # Of this workflow alone: the global configuration is that of all tests
    workflow.config["execution"] = {
        "crashdump_dir": str(folder),
        "crashfile_format": "txt",
        "stop_on_first_crash": "false",
    }
    with pytest.raises(RuntimeError):
        workflow.run()
    return crash_reasons(folder)


@pytest.mark.parametrize(
    ("scan", "reason"),
    [
        # Our own messages say it all, on as many lines as they have
        ("sub_01", "sub-01_T1w.nii.gz: is empty; fetch it again Detail: of it"),
        ("sub_02_ses_M00", "zlib.error: Error -3 while decompressing: invalid code"),
        ("sub_03", "AssertionError"),
        ("sub_04", "ValueError: Shape: wrong Hint: RuntimeError: not this one"),
    ],
)
def test_reason(reasons: dict[str, str], scan: str, reason: str) -> None:
    text, _, where = reasons[scan].partition(" (traceback in ")
    assert text == reason
    assert where.startswith("logs/20260101T000000_abc/crash-")
    assert where.endswith(".txt)")


def test_every_scan_is_there_once(reasons: dict[str, str]) -> None:
    assert set(reasons) == {"sub_01", "sub_02_ses_M00", "sub_03", "sub_04"}


def test_nothing_crashed(tmp_path: Path) -> None:
    assert crash_reasons(tmp_path) == {}
    assert crash_reasons(tmp_path / "nowhere") == {}


def test_file_that_is_cut_short_still_names_the_scan(tmp_path: Path) -> None:
    (tmp_path / "crash-1.txt").write_text("Node: participant_wf.sub_01.segment\nWorking dir")
    (tmp_path / "crash-2.txt").write_text("")
    assert list(crash_reasons(tmp_path)) == ["sub_01"]
