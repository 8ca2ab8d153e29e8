"""``hyps-tools``: everything around the BIDS App. One module per command.

Imports are lazy, so that ``--help`` and usage errors come at once.
"""

from __future__ import annotations

import sys

from hyps_bids.errors import HypsError
from hyps_bids.tools import adapt, demo, evaluate, importing, pretrain, synthesize
from hyps_bids.tools.adapt import choose_crops
from hyps_bids.tools.options import Parser
from hyps_bids.tools.synthesize import sample_figure

__all__ = ["choose_crops", "main", "sample_figure"]

_COMMANDS = (demo, pretrain, adapt, synthesize, importing, evaluate)


def main(argv: list[str] | None = None) -> int:
    """Run one command.

    Parameters
    ----------
    argv : list of str, optional
        Arguments without the program's name; those of the process if None.

    Returns
    -------
    int
        Exit code: 0, that of a :class:`~hyps_bids.errors.HypsError`, or the command's own.
    """
    parser = Parser(prog="hyps-tools", description="Tools around the BIDS App hyps-bids.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for module in _COMMANDS:
        module.add_command(commands)
    args = parser.parse_args(argv)
    try:
        return args.run(args)
    except HypsError as error:
        print(f"hyps-tools: {error}", file=sys.stderr)
        return error.exit_code
