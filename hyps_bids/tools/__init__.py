"""``hyps-tools``: everything around the BIDS App, one module for each command.

The modules import libraries late, so that ``--help`` and usage errors answer at once.
"""

from __future__ import annotations

from hyps_bids.cli import Parser, check_working_folder, run_command, start_logging
from hyps_bids.tools import (
    adapt,
    boutiques,
    calibrate,
    demo,
    distill,
    evaluate,
    importing,
    pretrain,
    segment,
    synthesize,
    train,
)
from hyps_bids.tools.synthesize import sample_figure

__all__ = ["build_parser", "main", "sample_figure"]

_COMMANDS = (
    segment,
    demo,
    train,
    pretrain,
    distill,
    adapt,
    calibrate,
    synthesize,
    importing,
    evaluate,
    boutiques,
)


def main(argv: list[str] | None = None) -> int:
    """Run one command with the arguments of the process, unless others are given.

    Returns the exit code: 0, that of a :class:`~hyps_bids.errors.HypsError`, or the command's own.
    """

    def run() -> int:
        args = build_parser().parse_args(argv)
        check_working_folder()
        start_logging()
        code: int = args.run(args)
        return code

    return run_command("hyps-tools", run)


def build_parser() -> Parser:
    """Build the parser of all commands; the documentation is made from it, too."""
    parser = Parser(prog="hyps-tools", description="Tools around the BIDS App hyps-bids.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for module in _COMMANDS:
        module.add_command(commands)
    return parser
