"""``hyps-tools boutiques``: describe the app for platforms that read Boutiques descriptors."""

from __future__ import annotations

import argparse
from dataclasses import MISSING
from pathlib import Path
from typing import Any

from hyps_bids import __version__
from hyps_bids.cli import option_help
from hyps_bids.settings import GROUPS, Option
from hyps_bids.tools.options import Parser, add_parser

#: Paths that are written: a platform must not expect them before the run.
_WRITTEN = ("output_dir", "work_dir", "bids_database_dir")
_EXIT_CODES = {
    1: "A scan or a contrast failed; the others are done, and the QC table gives the reason.",
    16: "The input is not a BIDS dataset.",
    18: "No scan passes the filters.",
    64: "Options are wrong or contradict each other.",
    65: "The content of a file cannot be used.",
    66: "A file or folder is missing or may not be read.",
    73: "The output or work folder cannot be written.",
    74: "The disk is full or broken.",
    75: "There is too little memory.",
    130: "The run was interrupted; the same command continues it.",
    143: "The run was terminated; the same command continues it.",
}


def add_command(commands: argparse._SubParsersAction[Parser]) -> None:
    """Add the command to the parser."""
    text = "Write the Boutiques descriptor of hyps-bids, made from the settings."
    parser = add_parser(commands, "boutiques", _write, text)
    parser.add_argument("output", type=Path, metavar="FILE", help="JSON file to write")


def _write(args: argparse.Namespace) -> int:
    from hyps_bids.outputs.writing import write_json

    write_json(args.output, descriptor())
    return 0


def descriptor() -> dict[str, Any]:
    """Describe the command line of ``hyps-bids`` in the schema of Boutiques 0.5.

    Examples
    --------
    >>> descriptor()["command-line"][:44]
    'hyps-bids [BIDS_DIR] [OUTPUT_DIR] [ANALYSIS_'
    """
    config = Option(
        name="config",
        kind=Path,
        several=False,
        default=None,
        help="Read options from this TOML file; options on the command line take precedence.",
    )
    declared = [*GROUPS[0].options, config, *(o for group in GROUPS[1:] for o in group.options)]
    inputs = [each for option in declared for each in _inputs(option)]
    switches = [option for option in declared if option.negatable]
    return {
        "name": "hyps-bids",
        "description": "Segment the hippocampus in the T1w or other images of a BIDS dataset.",
        "tool-version": __version__,
        "author": "The HyPS-BIDS developers",
        "schema-version": "0.5",
        "command-line": " ".join(["hyps-bids", *(each["value-key"] for each in inputs)]),
        "container-image": {"type": "docker", "image": "hyps-bids"},
        "inputs": inputs,
        "groups": [_either(option) for option in switches],
        "output-files": [
            {
                "id": "derivatives",
                "name": "Description of the derivatives dataset",
                "path-template": "[OUTPUT_DIR]/dataset_description.json",
            }
        ],
        "error-codes": [{"code": c, "description": text} for c, text in _EXIT_CODES.items()],
        "suggested-resources": {"cpu-cores": 2, "ram": 2},
        "tags": {"domain": ["neuroinformatics", "image processing", "mri"]},
    }


def _inputs(option: Option) -> list[dict[str, Any]]:
    """Describe an option; one that can be switched off is two flags."""
    described: dict[str, Any] = {
        "id": option.name,
        "name": option.name.replace("_", " ").capitalize(),
        "description": option_help(option),
        "type": _type(option),
        "value-key": f"[{option.name.upper()}]",
        "optional": option.default is not MISSING,
    }
    if option.default is not MISSING:
        described["command-line-flag"] = option.flags[0]
    if option.several:
        described |= {"list": True, "list-separator": " "}
    if option.choices:
        described["value-choices"] = list(option.choices)
    if option.kind is int and not option.counted:
        described |= {"integer": True, "minimum": option.least}
        if option.most < float("inf"):
            described["maximum"] = option.most
    if option.kind is float:
        described |= {"minimum": 0, "exclusive-minimum": True}
    if not option.negatable:
        return [described]
    negative = described | {
        "id": f"no_{option.name}",
        "name": f"Not {option.name.replace('_', ' ')}",
        "description": f"Switch {option.flags[0]} off.",
        "value-key": f"[NO_{option.name.upper()}]",
        "command-line-flag": f"--no-{option.flags[0][2:]}",
    }
    return [described, negative]


def _type(option: Option) -> str:
    if option.kind is bool or option.counted:
        return "Flag"
    if option.kind in (int, float):
        return "Number"
    return "File" if option.kind is Path and option.name not in _WRITTEN else "String"


def _either(option: Option) -> dict[str, Any]:
    return {
        "id": f"{option.name}_or_not",
        "name": f"Switch {option.name.replace('_', ' ')} on or off",
        "members": [option.name, f"no_{option.name}"],
        "mutually-exclusive": True,
    }
