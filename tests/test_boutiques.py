"""The Boutiques descriptor and the Nipoppy pipeline: up to date, valid, and true."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from dataclasses import MISSING
from pathlib import Path
from typing import Any

import pytest

import hyps_bids
from hyps_bids.cli import parse_settings
from hyps_bids.errors import HypsError
from hyps_bids.settings import Option, all_options
from hyps_bids.tools import main
from hyps_bids.tools.boutiques import descriptor


@pytest.fixture
def pipeline(root: Path) -> Path:
    return root / "examples" / "nipoppy"


def bosh(*args: str | Path) -> str:
    command = [str(Path(sys.executable).with_name("bosh")), *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_committed_descriptor_is_that_of_the_settings(pipeline: Path, tmp_path: Path) -> None:
    assert main(["boutiques", str(tmp_path / "new.json")]) == 0
    new, committed = (tmp_path / "new.json").read_text(), (pipeline / "descriptor.json").read_text()
    assert new == committed, "run: hyps-tools boutiques examples/nipoppy/descriptor.json"


def test_descriptor_is_valid(pipeline: Path) -> None:
    assert "OK" in bosh("validate", pipeline / "descriptor.json")


def some_value(option: Option) -> Any:
    """Return a value other than the default, with what a shell would change."""
    if option.kind is bool or option.counted:
        return True
    if option.kind in (int, float):
        return option.kind(3)
    text = option.choices[-1] if option.choices else f"it's {option.name} & more"
    return [text, text] if option.several else text


def test_simulated_command_means_what_was_asked_for(pipeline: Path, tmp_path: Path) -> None:
    asked = {each.name: some_value(each) for each in all_options()}
    asked |= {"bids_dir": "a b", "output_dir": "out", "analysis_level": "group"}
    invocation = tmp_path / "invocation.json"
    invocation.write_text(json.dumps(asked))
    printed = bosh("exec", "simulate", pipeline / "descriptor.json", "-i", invocation)
    program, *argv = shlex.split(printed.strip().splitlines()[-1])
    assert program == "hyps-bids"
    settings = parse_settings(argv)
    kinds = {each.name: each for each in all_options()}
    for name, value in asked.items():
        got = getattr(settings, name)
        several = name in kinds and kinds[name].several
        assert (list(map(str, got)) if several else type(value)(got)) == value, name


def test_flags_that_switch_off(pipeline: Path, tmp_path: Path) -> None:
    negatable = [each.name for each in all_options() if each.negatable]
    asked: dict[str, Any] = {f"no_{name}": True for name in negatable}
    asked |= {"bids_dir": "a", "output_dir": "b", "analysis_level": "participant"}
    invocation = tmp_path / "invocation.json"
    invocation.write_text(json.dumps(asked))
    printed = bosh("exec", "simulate", pipeline / "descriptor.json", "-i", invocation)
    settings = parse_settings(shlex.split(printed.strip().splitlines()[-1])[1:])
    assert [getattr(settings, name) for name in negatable] == [False] * len(negatable)


def test_descriptor_knows_all_options_and_exit_codes() -> None:
    described = descriptor()
    named = {each["id"] for each in described["inputs"]}
    assert {each.name for each in all_options() if each.default is not MISSING} <= named
    codes = {each["code"] for each in described["error-codes"]}
    assert {each.exit_code for each in [HypsError, *HypsError.__subclasses__()]} <= codes
    assert described["tool-version"] == hyps_bids.__version__


def test_nipoppy_pipeline_fits_the_descriptor(pipeline: Path) -> None:
    """Nipoppy itself is not installed here; `nipoppy pipeline validate` accepts the folder."""
    config = json.loads((pipeline / "config.json").read_text())
    assert config["VERSION"] == hyps_bids.__version__
    for step in config["STEPS"]:
        for name in (value for key, value in step.items() if key.endswith("_FILE")):
            json.loads((pipeline / name).read_text())
        invocation = pipeline / step["INVOCATION_FILE"]
        bosh("invocation", "-i", invocation, pipeline / step["DESCRIPTOR_FILE"])
        assert json.loads(invocation.read_text())["analysis_level"] == step["NAME"]
