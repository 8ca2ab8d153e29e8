"""``hyps-tools demo``: the app on the data that comes with it."""

from __future__ import annotations

import argparse
from pathlib import Path

from hyps_bids.tools.options import Parser, add_parser

__all__ = ["add_command"]


def add_command(commands: argparse._SubParsersAction[Parser]) -> None:
    """Add the command to the parser."""
    parser = add_parser(
        commands, "demo", _demo, "Run the app on the small dataset shipped with it."
    )
    parser.add_argument("output", type=Path, metavar="OUT", help="folder to write")


def _demo(args: argparse.Namespace) -> int:
    from hyps_bids.demo import run_demo

    return run_demo(args.output)
