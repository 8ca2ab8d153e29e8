"""Commands on the pages for people: each is read by its parser, and run or visibly marked."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from functools import cache
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from hyps_bids import cli, hyps_docker, tools
from hyps_bids.demo import run_demo
from tests.cohort.study import MadeStudy
from tests.dicom_files import write_series
from tests.documentation.blocks import PAGES, RUN, blocks_of, commands_of, inline_code
from tests.norms.made import make_people

PARSERS = {"hyps-bids": cli, "hyps-tools": tools, "hyps-docker": hyps_docker}
BLOCKS = [block for page in PAGES for block in blocks_of(page)]
#: Other languages, of blocks that are no commands.
SHOWN = {"text", "json", "toml", "yaml"}
#: Options of other programs that pages name.
FOREIGN = {
    *("--cpus", "--gpus", "--mem", "--memory", "--model", "--nproc-per-node", "--nv", "--prefix"),
    *("--gres", "--partition", "--requeue", "--signal", "--build-arg", "--containall", "--scans"),
}
#: Pages about groups need more people than the demo has.
COHORTS = {"group", "statistics", "centiles", "classifiers"}


@cache
def parser_of(program: str) -> argparse.ArgumentParser:
    """Return the parser of a program."""
    return PARSERS[program].build_parser()


def reads(program: str, arguments: list[str]) -> bool:
    """Tell whether a program knows what these arguments mean."""
    try:
        parser_of(program).parse_args(arguments)
    except SystemExit as end:
        # After --help and --version.
        return not end.code
    return True


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_are_what_the_parsers_know(page: Path) -> None:
    for block in blocks_of(page):
        known = block.language in {*RUN, *SHOWN} or block.language.startswith("{")
        assert known, f"{block}: {block.language}"
        for program, arguments in commands_of(block):
            assert reads(program, arguments), f"{block}: {program} {arguments}"


def test_blocks_are_found() -> None:
    commands = [name for block in BLOCKS for name, _ in commands_of(block)]

    assert {*commands} == {*PARSERS}
    assert len(commands) > 40
    assert sum(block.is_run for block in BLOCKS) > 15


def all_options(parser: argparse.ArgumentParser) -> set[str]:
    """Return the options of a parser and of its commands."""
    found = set(parser._option_string_actions)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found.update(*map(all_options, action.choices.values()))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_options_in_sentences_exist(page: Path) -> None:
    known = FOREIGN.union(*(all_options(parser_of(program)) for program in PARSERS))
    known |= {"-m", "-w", "-v", "-u"}

    named = {
        found
        for code in inline_code(page)
        for found in re.findall(r"(?:^|(?<=\s))--?[a-z][a-z0-9-]*", code)
    }
    assert named <= known


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the demo makes."""
    folder = tmp_path_factory.mktemp("demo") / "demo-out"
    assert run_demo(folder) == 0
    return folder


@pytest.fixture
def place(
    demo: Path, coarse_head: nib.Nifti1Image, request: pytest.FixtureRequest, tmp_path: Path
) -> Path:
    """A folder with all that the commands of a page name, where it is run."""
    page: Path = request.getfixturevalue("page")
    place = tmp_path / "place"
    if page.stem in COHORTS:
        study = make_people(place, controls=40, patients=24)
        study.raw.rename(place / "BIDS_DIR")
        study.output.rename(place / "OUT_DIR")
    elif page.stem == "longitudinal":
        make_visits(place)
    else:
        place.mkdir()
        shutil.copytree(demo, place / demo.name)
        shutil.copytree(demo / "bids", place / "BIDS_DIR")
        shutil.copytree(demo / "derivatives", place / "OUT_DIR")
    nib.save(coarse_head, place / "my scan.nii.gz")
    data = np.asarray(coarse_head.dataobj, dtype=np.float32)
    nib.save(nib.MGHImage(data, coarse_head.affine), place / "other.mgz")
    write_series(coarse_head, place / "DICOM_FOLDER")
    return place


def make_visits(place: Path) -> None:
    """Make people with two visits, whose change over time is known."""
    study = MadeStudy.create(place)
    rng = np.random.default_rng(0)
    rows = ["participant_id age sex diagnosis"]
    for i in range(40):
        name, sick = f"sub-{i:02d}", i % 2
        rows.append(f"{name} {rng.uniform(55, 85):.1f} {'MF'[i // 2 % 2]} {('CN', 'AD')[sick]}")
        stems = [f"{name}_ses-{year}" for year in range(2)]
        for stem in stems:
            study.scan(stem, *rng.normal(3000 - 300 * sick, 150, 2))
        loss = {"L": -1.0 - sick + rng.normal(0, 0.5), "R": -1.0 - sick + rng.normal(0, 0.5)}
        study.series(stems, loss)
        study.table(
            f"{name}/{name}_sessions.tsv",
            "session_id acq_time\nses-0 2000-06-15T10:00:00\nses-1 2001-06-15T10:00:00",
        )
    study.table("participants.tsv", "\n".join(rows))
    study.raw.rename(place / "BIDS_DIR")
    study.output.rename(place / "OUT_DIR")


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if any(block.is_run for block in blocks_of(page))],
    ids=lambda page: page.stem,
)
def test_blocks_run(page: Path, place: Path) -> None:
    scripts = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])
    blocks = [block for block in blocks_of(page) if block.is_run]
    python = "\n".join(block.text for block in blocks if block.language == "python")
    commands = [["bash", "-euc", block.text] for block in blocks if block.language == "bash"]

    for command in [*commands, *([[sys.executable, "-c", python]] if python else [])]:
        done = subprocess.run(
            command,
            cwd=place,
            env={**os.environ, "PATH": scripts},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
