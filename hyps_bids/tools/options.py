"""What the commands of ``hyps-tools`` share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from hyps_bids.errors import CannotCreateOutput, UsageError

if TYPE_CHECKING:
    import torch

    from hyps_bids.training.loop import LoopSettings

__all__ = [
    "Parser",
    "add_parser",
    "add_training_options",
    "loop_settings",
    "make_folder",
    "names",
    "positive",
    "prepare",
]


class Parser(argparse.ArgumentParser):
    """Ends with the exit code that BIDS Apps use for wrong usage."""

    def error(self, message: str) -> NoReturn:
        """Print usage and message, and end."""
        self.print_usage(sys.stderr)
        self.exit(UsageError.exit_code, f"{self.prog}: {message}\n")


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults, and leaves the lines of long texts as they are."""


def add_parser(
    commands: argparse._SubParsersAction[Parser],
    name: str,
    run: Callable[[argparse.Namespace], int],
    text: str,
    *,
    details: str = "",
) -> Parser:
    """Add a command.

    Parameters
    ----------
    commands : argparse action
        From ``add_subparsers``.
    name : str
        The word to type.
    run : callable
        Gets the parsed arguments, returns the exit code.
    text : str
        What the command does, a sentence.
    details : str
        Shown below the options by ``--help``, lines as they are.

    Returns
    -------
    Parser
        For the arguments of the command.
    """
    parser = commands.add_parser(
        name, help=text, description=text, epilog=details, formatter_class=_Help
    )
    parser.set_defaults(run=run)
    return parser


def add_training_options(
    parser: argparse.ArgumentParser, *, steps: int, learning_rate: float
) -> None:
    """Add the options that all training commands have, with the defaults of this one."""
    group = parser.add_argument_group("training")
    group.add_argument("--steps", type=positive, default=steps, help="optimizer steps in all")
    group.add_argument("--batch-size", type=positive, help="default: fits the network")
    group.add_argument("--learning-rate", type=float, default=learning_rate, help="at the start")
    group.add_argument("--seed", type=int, default=0, help="of weights and images")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    group.add_argument("--threads", type=positive, help="CPU threads; default: torch's choice")
    group.add_argument("--fp16", action="store_true", help="write the weights in half precision")


def prepare(args: argparse.Namespace) -> torch.device:
    """Set threads and memory up, and choose the device."""
    from hyps_bids.segmentation.devices import choose_device, prepare_process

    prepare_process(args.threads)
    return choose_device(args.device)


def loop_settings(args: argparse.Namespace) -> LoopSettings:
    """Make the loop's settings from the training options."""
    from hyps_bids.training.loop import LoopSettings

    return LoopSettings(steps=args.steps, learning_rate=args.learning_rate, seed=args.seed)


def make_folder(path: Path) -> None:
    """Make a folder, which may exist."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CannotCreateOutput(f"{path}: cannot be made ({error})") from error


def positive(text: str) -> int:
    """Read a whole number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def names(text: str) -> list[str]:
    """Read names with commas between them."""
    found = [name.strip() for name in text.split(",")]
    if not all(found):
        raise argparse.ArgumentTypeError(f"{text!r} has an empty name")
    return found
