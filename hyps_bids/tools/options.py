"""The options and helpers that the commands of ``hyps-tools`` share."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from hyps_bids.cli import Parser
from hyps_bids.errors import cannot_write

if TYPE_CHECKING:
    import torch

    from hyps_bids.training.loop import LoopSettings


#: By this key in its header a file of weights is recognized as ours.
WEIGHTS_MARK = b'"hyps"'


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults that are values, and keeps the line breaks of long texts."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, False) or action.default == []:
            return action.help
        return super()._get_help_string(action)


def add_parser(
    commands: argparse._SubParsersAction[Parser],
    name: str,
    run: Callable[[argparse.Namespace], int],
    text: str,
) -> Parser:
    """Add a command that calls `run`; ``--help`` ends with the content of ``NAME.txt``, if any."""
    details = files("hyps_bids.tools") / f"{name}.txt"
    epilog = details.read_text(encoding="utf-8") if details.is_file() else ""
    parser = commands.add_parser(
        name, help=text, description=text, epilog=epilog, formatter_class=_Help
    )
    parser.set_defaults(run=run)
    return parser


def add_compute_options(parser: argparse._ActionsContainer) -> None:
    """Add the options that choose the device and the number of threads."""
    parser.add_argument(
        "--device", default="auto", help="Compute on this device: auto, cpu, cuda, cuda:N or mps"
    )
    parser.add_argument(
        "--threads", type=positive, help="Number of CPU threads; PyTorch chooses if not given"
    )


def add_training_options(
    parser: argparse.ArgumentParser, *, steps: int, learning_rate: float, batches: bool = True
) -> None:
    """Add the options of all training commands, with the defaults of this command.

    Without `batches` every step sees a single image.
    """
    group = parser.add_argument_group("training")
    group.add_argument("--steps", type=positive, default=steps, help="Number of optimizer steps")
    if batches:
        group.add_argument(
            "--batch-size", type=positive, help="Images per step; suits the network if not given"
        )
    group.add_argument(
        "--learning-rate", type=float, default=learning_rate, help="Learning rate at the start"
    )
    group.add_argument("--seed", type=int, default=0, help="Seed of the weights and images")
    group.add_argument("--fp16", action="store_true", help="Write the weights in half precision")
    add_compute_options(group)


def prepare(args: argparse.Namespace) -> torch.device:
    """Set up threads and memory, and choose the device."""
    import torch

    from hyps_bids.segmentation.devices import choose_device, prepare_process

    prepare_process(args.threads)
    return torch.device(choose_device(args.device))


def loop_settings(args: argparse.Namespace) -> LoopSettings:
    """Make the settings of the training loop from the training options."""
    from hyps_bids.training.loop import LoopSettings

    return LoopSettings(steps=args.steps, learning_rate=args.learning_rate, seed=args.seed)


def training_folder(path: Path, *weights: str) -> None:
    """Make the folder of a training, or check that a training of ours has used it before.

    `weights` are the names of the files of weights that the training writes, without extension.
    """
    from hyps_bids.outputs.ownership import refuse_foreign_file

    make_folder(path)
    refuse_foreign_file(path / "log.csv", b"step,seconds,loss,learning_rate,metric,value")
    for name in weights:
        refuse_foreign_file(path / f"{name}.safetensors", WEIGHTS_MARK)
        refuse_foreign_file(path / f"{name}.md", b"## Use and limits")


def make_folder(path: Path) -> None:
    """Make a folder, unless it exists."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error


def positive(text: str) -> int:
    """Parse a whole number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def names(text: str) -> list[str]:
    """Parse names that are separated by commas."""
    found = [name.strip() for name in text.split(",")]
    if not all(found):
        raise argparse.ArgumentTypeError(f"{text!r} has an empty name")
    return found
