"""Run the acceptance checks if there is an image.

``HYPS_BIDS_ACCEPTANCE`` gives the arguments of ``acceptance.py``. If it is not set, the image
``hyps-bids`` of docker or podman is checked.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("acceptance.py")
IMAGE = "hyps-bids"


@pytest.fixture
def arguments() -> list[str]:
    if "HYPS_BIDS_ACCEPTANCE" in os.environ:
        return shlex.split(os.environ["HYPS_BIDS_ACCEPTANCE"])
    engine = shutil.which("docker") or shutil.which("podman")
    if engine is None:
        pytest.skip("neither docker nor podman here; HYPS_BIDS_ACCEPTANCE names other engines")
    command = [engine, "run", "--rm", "--network", "none", "--entrypoint", "true", IMAGE]
    if subprocess.run([engine, "image", "inspect", IMAGE], capture_output=True).returncode != 0:
        pytest.skip(f"{engine} has no image {IMAGE}: docker build -t {IMAGE} .")
    tried = subprocess.run(command, capture_output=True, text=True)
    if tried.returncode != 0:
        pytest.skip(f"{engine} cannot run containers here: {tried.stderr.strip()[-300:]}")
    return [IMAGE]


@pytest.mark.slow
def test_container(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, SCRIPT, *arguments], stdout=subprocess.PIPE, text=True, timeout=3600
    )

    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([], "give an image, or --prefix COMMAND"),
        (["image", "--prefix", "run {binds}"], "give an image, or --prefix COMMAND"),
    ],
)
def test_wrong_usage(wrong: list[str], message: str) -> None:
    done = subprocess.run([sys.executable, SCRIPT, *wrong], capture_output=True, text=True)

    assert done.returncode == 2
    assert message in done.stderr


def test_a_container_that_fails_is_reported() -> None:
    done = subprocess.run(
        [sys.executable, SCRIPT, "--prefix", "false {binds}", "--skip", "native_run"],
        capture_output=True,
        text=True,
    )

    assert done.returncode == 1
    assert done.stdout.splitlines()[-1].startswith("0 ok")
    assert "exit code 1, not 0" in done.stdout
