"""Progress on a terminal and in logs."""

from __future__ import annotations

import logging
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from hyps_bids.progress import Progress, track
from hyps_bids.workflows.watch import Piece, Watch


class Clock:
    """A clock that tests move."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def count(total: int, workers: int = 1) -> tuple[Progress, Clock]:
    clock = Clock()
    return Progress({"scans": total}, workers=workers, clock=clock), clock


def test_the_time_left_follows_from_the_pace() -> None:
    progress, clock = count(10)
    assert progress.seconds_left() is None
    for _ in range(4):
        clock.now += 30
        progress.advance("scans")
    # Four took 120 s, so six more take 180 s; the seconds since the last one are over.
    assert progress.seconds_left() == pytest.approx(180)
    clock.now += 20
    assert progress.seconds_left() == pytest.approx(160)
    assert progress.text() == "4 of 10 scans done, about 3 min left"
    clock.now += 1000
    assert progress.seconds_left() == 0


def test_the_first_of_several_workers_tells_nothing_about_the_time() -> None:
    progress, clock = count(40, workers=4)
    clock.now += 60
    for _ in range(3):
        progress.advance("scans")
        assert progress.seconds_left() is None
    progress.advance("scans", failed=True)
    # Four in a minute: 36 more take nine minutes.
    assert progress.seconds_left() == pytest.approx(540)
    assert progress.text() == "3 of 40 scans done, 1 failed, about 9 min left"


def test_pieces_that_take_longer_count_more() -> None:
    clock = Clock()
    progress = Progress({"scans": 6, "series": 2, "reports": 0}, weights={"series": 3}, clock=clock)
    clock.now += 60
    progress.advance("scans", 6)
    assert progress.seconds_left() == pytest.approx(60)
    progress.drop("series")
    assert progress.seconds_left() == pytest.approx(30)
    assert progress.text() == "6 of 6 scans done, 0 of 1 series done, about 30 s left"


@pytest.mark.parametrize(
    ("total", "seconds", "lines"),
    [
        # A minute is rarer than a tenth.
        (100, 2, [30, 60, 90]),
        # A tenth is rarer than a minute.
        (50, 40, [5, 10, 15, 20, 25, 30, 35, 40, 45]),
        # Short work says nothing.
        (20, 2, []),
    ],
)
def test_the_log_has_few_lines(
    total: int, seconds: float, lines: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    progress, clock = count(total)
    with progress:
        for _ in range(total):
            clock.now += seconds
            progress.advance("scans")
    found = [int(re.match(r"(\d+) of", text)[1]) for text in caplog.messages]
    assert found == lines


def node(workflow: str, name: str) -> SimpleNamespace:
    return SimpleNamespace(fullname=f"participant_wf.subject_1.{workflow}.{name}", name=name)


def test_each_scan_counts_once_whatever_nipype_says() -> None:
    progress = Progress({"scans": 3, "series": 1})
    pieces = {name: Piece("scans", "write", "all") for name in "abc"}
    watch = Watch(progress, pieces | {"all": Piece("series", "follow")})
    for name in ("read", "networks", "write"):
        watch(node("a", name), "start")
        watch(node("a", name), "end")
    watch(node("b", "read"), "exception")
    # The plugin Linear calls nodes that it leaves out ended.
    for name in ("read", "networks", "write"):
        watch(node("b", name), "end")
    watch(node("all", "follow"), "end")
    watch(SimpleNamespace(fullname="participant_wf.subject_1.report", name="report"), "end")
    assert (progress.done, progress.failed) == (
        {"scans": 1, "series": 0},
        {"scans": 1, "series": 0},
    )
    assert progress.totals["series"] == 0


_PROGRAM = """
import logging, sys, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from hyps_bids.cli import start_logging
from hyps_bids.progress import track
def work(n):
    logging.getLogger("hyps_bids").warning("worker %d", n)
start_logging()
pool = ProcessPoolExecutor(1, get_context("fork"))
pool.submit(work, 0).result()
for n in track(range(3), 3, "scans"):
    logging.getLogger("hyps_bids").error("sub-%d: failed", n)
    pool.submit(work, n + 1).result()
    if n == 1 and sys.argv[1:]:
        raise SystemExit(3)
logging.getLogger("hyps_bids").info("end")
"""


def on_terminal(*arguments: str) -> str:
    """Run the program on a terminal, and return all that it wrote."""
    parent, child = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, *arguments], stderr=child, stdout=child, close_fds=True,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "100", "LINES": "30"},
    )  # fmt: skip
    os.close(child)
    found = b""
    while True:
        try:
            part = os.read(parent, 4096)
        except OSError:
            break
        if not part:
            break
        found += part
    os.close(parent)
    assert process.wait() == (3 if arguments else 0)
    return found.decode()


def screen(text: str) -> list[str]:
    """Return the lines that stay on the screen: a carriage return goes back to the start."""
    lines = []
    for line in text.replace("\r\n", "\n").split("\n"):
        shown: list[str] = []
        for part in line.split("\r"):
            shown[: len(part)] = part
        lines.append("".join(shown).rstrip())
    return lines


@pytest.mark.parametrize("arguments", [(), ("interrupted",)])
def test_log_lines_stay_whole_above_the_line_of_progress(arguments: tuple[str, ...]) -> None:
    text = on_terminal(*arguments)
    assert "2 of 3 scans done" in text or arguments
    lines = [line[9:] for line in screen(text) if line]
    told = [f"{what}" for n in range(3) for what in (f"sub-{n}: failed", f"worker {n + 1}")]
    # Nothing of the line of progress is left at the end.
    assert lines == ["worker 0", *(told[:4] if arguments else [*told, "end"])]


def test_redirected_output_has_no_carriage_returns(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, check=True)
    assert b"\r" not in done.stderr
    assert done.stdout == b""
    assert len(done.stderr.splitlines()) == 8


def test_items_that_end_early_are_no_fault() -> None:
    for item in track("abc", 3, "letters"):
        if item == "b":
            break
