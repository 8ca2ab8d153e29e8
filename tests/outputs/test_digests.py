"""The memory of sums: it never hides a change, and nothing depends on it."""

from __future__ import annotations

import hashlib
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hyps_bids.outputs import digests
from hyps_bids.outputs.digests import Digests
from tests.full_disk import full_disk

BEFORE, AFTER = b"before", b"change"


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An image that has not changed for long, in the time of this test."""
    path = tmp_path / "raw" / "sub-01" / "sub-01_T1w.nii"
    path.parent.mkdir(parents=True)
    path.write_bytes(BEFORE)
    os.utime(path, (1e9, 1e9))
    pass_time(monkeypatch)
    return path


def pass_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the clock of the process go ahead of the times of files by an hour."""
    later = time.time_ns() + 3600 * 10**9
    monkeypatch.setattr(digests.time, "time_ns", lambda: later)


def run(image: Path) -> tuple[str, int]:
    """Return the sum of an image as a new run finds it, and how many bytes the run had to read."""
    memory = Digests(image.parents[2] / "out" / "digests", image.parents[1])
    read = 0
    real = hashlib.file_digest

    def counting(stream, kind):  # type: ignore[no-untyped-def]
        nonlocal read
        read += os.fstat(stream.fileno()).st_size
        return real(stream, kind)

    hashlib.file_digest = counting
    try:
        found = memory.sha256(image)
    finally:
        hashlib.file_digest = real
    memory.save()
    return found, read


def sum_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def memory_files(image: Path) -> list[Path]:
    return sorted(path for path in (image.parents[2] / "out").rglob("*") if path.is_file())


def test_the_memory_is_not_called_json_because_a_sum_precedes_it(image: Path) -> None:
    run(image)
    (path,) = memory_files(image)
    assert path.suffix == ".txt"


def test_second_run_reads_no_image(image: Path) -> None:
    assert run(image) == (sum_of(BEFORE), 6)
    assert run(image) == (sum_of(BEFORE), 0)


def write_in_place(path: Path) -> None:
    path.write_bytes(AFTER)


def replace(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(AFTER)
    other.replace(path)


def lead_elsewhere(path: Path) -> None:
    """Replace the file by a link, as git-annex does."""
    content = path.parents[2] / "annex"
    content.write_bytes(AFTER)
    path.unlink()
    path.symlink_to(content)


@pytest.mark.parametrize("change", [write_in_place, replace, lead_elsewhere])
@pytest.mark.parametrize("restore", [True, False], ids=["same mtime", "new mtime"])
def test_changed_content_of_the_same_size_is_found(
    change: Callable[[Path], None], restore: bool, image: Path
) -> None:
    run(image)
    times = image.stat().st_atime_ns, image.stat().st_mtime_ns
    change(image)
    if restore:
        os.utime(image, ns=times)
        assert image.stat().st_mtime_ns == times[1]
    assert run(image) == (sum_of(AFTER), 6)
    assert run(image) == (sum_of(AFTER), 0)


def test_content_behind_a_link_is_watched(image: Path) -> None:
    content = image.with_name("annex")
    image.rename(content)
    image.symlink_to(content)
    run(image)
    times = content.stat().st_atime_ns, content.stat().st_mtime_ns
    content.write_bytes(AFTER)
    os.utime(content, ns=times)
    assert run(image) == (sum_of(AFTER), 6)


def test_file_that_has_just_changed_is_not_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "raw" / "sub-01" / "sub-01_T1w.nii"
    path.parent.mkdir(parents=True)
    path.write_bytes(BEFORE)
    # The time of modification may be old, but that of the change is not.
    os.utime(path, (1e9, 1e9))
    assert [run(path)[1] for _ in range(3)] == [6, 6, 6]
    pass_time(monkeypatch)
    assert [run(path)[1] for _ in range(3)] == [6, 0, 0]


def test_file_that_changes_while_it_is_read_is_not_remembered(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = hashlib.file_digest

    def meanwhile(stream, kind):  # type: ignore[no-untyped-def]
        found = real(stream, kind)
        image.write_bytes(AFTER)
        return found

    memory = Digests()
    monkeypatch.setattr(hashlib, "file_digest", meanwhile)
    assert memory.sha256(image) == sum_of(BEFORE)
    monkeypatch.undo()
    assert memory.sha256(image) == sum_of(AFTER)


def test_sum_follows_a_dataset_that_is_mounted_elsewhere(image: Path) -> None:
    run(image)
    before = memory_files(image)
    moved = image.parents[1].rename(image.parents[2] / "data")
    os.utime(moved)
    assert run(moved / "sub-01" / image.name) == (sum_of(BEFORE), 0)
    assert memory_files(image) == before


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: text.replace(sum_of(BEFORE), sum_of(AFTER)),
        lambda text: "{" + text,
        lambda text: "\ud8ff" + text,
    ],
    ids=["cut", "empty", "other sum", "no checksum", "not text"],
)
def test_damaged_memory_is_not_believed(damage: Callable[[str], str], image: Path) -> None:
    run(image)
    (path,) = memory_files(image)
    path.write_bytes(damage(path.read_text()).encode("utf-8", "surrogatepass"))
    assert run(image) == (sum_of(BEFORE), 6)
    assert run(image) == (sum_of(BEFORE), 0)


def test_memory_that_cannot_be_written_does_not_matter(image: Path) -> None:
    folder = image.parents[2] / "out"
    folder.write_bytes(b"a file")
    assert [run(image) for _ in range(2)] == [(sum_of(BEFORE), 6)] * 2
    folder.unlink()
    with full_disk(largest=10):
        assert run(image) == (sum_of(BEFORE), 6)
    assert not memory_files(image)


def test_jobs_add_to_what_others_have_written(image: Path) -> None:
    second = image.with_name("sub-01_run-2_T1w.nii")
    second.write_bytes(AFTER)
    folder, root = image.parents[2] / "out" / "digests", image.parents[1]
    jobs = [Digests(folder, root) for _ in range(2)]
    for job, path in zip(jobs, (image, second), strict=True):
        job.sha256(path)
    for job in jobs:
        job.save()
    assert run(image)[1] == 0
    assert run(second)[1] == 0


def test_missing_image_is_an_error(image: Path) -> None:
    run(image)
    image.unlink()
    with pytest.raises(FileNotFoundError):
        run(image)


def test_names_need_not_be_text(image: Path) -> None:
    name = image.with_name(os.fsdecode(b"sub-\xe9_T1w.nii"))
    subprocess.run(["cp", "-p", image, name], check=True)
    assert [run(name)[1] for _ in range(2)] == [6, 0]
