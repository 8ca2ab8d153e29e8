"""``hyps-tools demo``: run the app on the data that comes with it."""

from __future__ import annotations

import argparse
from pathlib import Path

from hyps_bids.tools.options import Parser, add_parser


def add_command(commands: argparse._SubParsersAction[Parser]) -> None:
    """Add the command to the parser."""
    text = "Run the app on the small dataset that comes with it."
    parser = add_parser(commands, "demo", _demo, text)
    parser.add_argument("output", type=Path, metavar="OUT", help="Folder to write the results to")


def _demo(args: argparse.Namespace) -> int:
    from hyps_bids.demo import run_demo

    return run_demo(args.output)
