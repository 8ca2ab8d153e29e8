"""How a run ends when it cannot continue: signals, too little memory, full disks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from hyps_bids.cli import main

_PATIENCE_S = 120


def test_too_little_memory_is_said_before_anything_is_computed(
    demo_bids: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main([str(demo_bids), str(out), "participant", "--mem-gb", "1"]) == 75
    message = capsys.readouterr().err
    assert "--mem-gb gives 1.0 GB" in message
    assert message.endswith("[memory-too-small]\n")
    assert not list(out.glob("sub-*"))


@pytest.mark.slow
@pytest.mark.parametrize("full", ["work", "out"])
def test_full_disk_is_74(demo_bids: Path, tmp_path: Path, full: str) -> None:
    # Mount a real small disk in a namespace of its own.
    space = ["unshare", "--map-root-user", "--mount"]
    if subprocess.run([*space, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine offers no namespace in which to mount a small disk")
    for name in ("work", "out"):
        (tmp_path / name).mkdir()
    size = {"work": "16k", "out": "400k"}[full]
    command = (
        f"mount -t tmpfs -o size={size} tmpfs {tmp_path / full} && "
        f"{sys.executable} -m hyps_bids {demo_bids} {tmp_path / 'out'} participant "
        f"-w {tmp_path / 'work'} --participant-label 05 --nprocs 1"
    )
    done = subprocess.run(
        [*space, "bash", "-c", command], capture_output=True, text=True, check=False
    )
    assert done.returncode == 74, done.stderr
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


#: Classifies without end, with the exit code and the message of the command.
_CLASSIFICATION = """
import sys
from pathlib import Path
from hyps_bids import app, cli
from hyps_bids.classification.train import train_classifiers
from tests.cohorts import simulate

frame = simulate({"AD": 20, "CN": 20})
app.run = lambda settings: train_classifiers(settings, frame)
options = "--target diagnosis --contrast AD:CN --estimators logistic --repeats 500 --nprocs 2"
sys.exit(cli.main([".", sys.argv[1], "group", *options.split()]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signal_to_all_processes_ends_a_classification_cleanly(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    run = subprocess.Popen(
        [sys.executable, "-c", _CLASSIFICATION, str(tmp_path)],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert run.stderr is not None
    while "cross-validation" not in (line := run.stderr.readline()):
        assert line, run.wait()
    # By now the workers are busy.
    time.sleep(0.5)
    os.killpg(run.pid, number)
    _, message = run.communicate(timeout=_PATIENCE_S)
    assert run.returncode == code
    # The command tells it in one line, and nobody else says a word.
    lines = [line for line in message.splitlines() if " AD:CN: " not in line]
    assert len(lines) == 1
    assert lines[0].startswith("hyps-bids: interrupted")
    # The process that removes temporary files ends a moment after the command.
    until = time.monotonic() + _PATIENCE_S
    while _living(run.pid):
        assert time.monotonic() < until
        time.sleep(0.05)


def _living(leader: int) -> list[str]:
    """List the states of a group's processes, except those of which process 1 must take notice."""
    states = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, group = path.read_text().rpartition(")")[2].split()[:3]
            if int(group) == leader and state != "Z":
                states.append(state)
    return states


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signal_ends_a_run_cleanly(
    demo_bids: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "hyps_bids", str(demo_bids), str(out), "participant"]
    # A session of its own keeps the signals away from this test.
    run = subprocess.Popen(
        [*command, "--nprocs", "1"], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    until = time.monotonic() + _PATIENCE_S
    while not list(out.glob("work/*/participant_wf/*/*/write")):
        assert run.poll() is None, run.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.05)
    run.send_signal(number)
    _, message = run.communicate(timeout=_PATIENCE_S)
    assert run.returncode == code
    assert "hyps-bids: interrupted" in message
    assert "Traceback" not in message
    assert not (out / "work").exists()
    hidden = [path for path in out.rglob(".*") if path.name != ".bidsignore"]
    assert not hidden
    # No worker has stayed behind.
    with pytest.raises(ProcessLookupError):
        os.killpg(run.pid, 0)
