"""The files from which images are built agree with the package."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

import hyps_bids

VARIANTS = ("cpu", "cuda")


def pins(path: Path) -> dict[str, str]:
    lines = path.read_text().splitlines()
    pinned = (line.split()[0].split("==") for line in lines if re.match(r"[^#\s]+==", line))
    return {normal(name): version for name, version in pinned}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.fixture
def constraints(root: Path) -> Path:
    return root / "constraints"


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_dependency_is_locked_at_the_tested_version(
    root: Path, constraints: Path, variant: str
) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    tested = pins(constraints / "cpu.txt")
    locked = pins(constraints / f"image-{variant}.txt")
    build = {"cpu": "+cpu", "cuda": ""}[variant]

    for requirement in project["dependencies"]:
        name = normal(re.split(r"[^\w.-]", requirement)[0])
        local = build if name == "torch" else ""
        assert locked[name] == tested[name] + local, "constraints/lock.sh writes the locks anew"


def test_the_build_backend_is_locked(root: Path, constraints: Path) -> None:
    (backend,) = tomllib.loads((root / "pyproject.toml").read_text())["build-system"]["requires"]

    assert re.split(r"[^\w.-]", backend)[0] in pins(constraints / "image-build.txt")


@pytest.mark.parametrize("name", ["image-cpu.txt", "image-cuda.txt", "image-build.txt"])
def test_locks_have_hashes_and_no_places(constraints: Path, name: str) -> None:
    text = (constraints / name).read_text()

    blocks = re.findall(r"^\S+==.*(?:\n    .*)*", text, re.MULTILINE)
    assert len(blocks) == len(pins(constraints / name))
    assert all("--hash=sha256:" in block for block in blocks)
    assert not re.search(r"://|--(index|extra-index|find-links)|(^|\s)/", text)


def test_image_has_the_version_of_the_package(root: Path) -> None:
    (version,) = re.findall(r"^ARG VERSION=(.*)$", (root / "Dockerfile").read_text(), re.MULTILINE)

    assert version == hyps_bids.__version__
