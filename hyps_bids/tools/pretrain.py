"""``hyps-tools pretrain``: train a network on synthetic images."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from hyps_bids.tools.options import (
    Parser,
    add_parser,
    add_training_options,
    loop_settings,
    prepare,
    training_folder,
)


def add_command(commands: argparse._SubParsersAction[Parser]) -> None:
    """Add the command to the parser."""
    parser = add_parser(commands, "pretrain", _pretrain, "Train a network on synthetic images.")
    parser.add_argument("network", choices=("localizer", "base"), help="network to train")
    parser.add_argument("labelmaps", type=Path, metavar="LABELMAPS", help="folder of label maps")
    parser.add_argument(
        "output",
        type=Path,
        metavar="OUT",
        help="folder to write to; continues its training",
    )
    parser.add_argument(
        "--from",
        dest="start",
        type=Path,
        metavar="FILE",
        help="weights to start from; random if not given",
    )
    add_training_options(parser, steps=4000, learning_rate=1e-3)


def _pretrain(args: argparse.Namespace) -> int:
    training_folder(args.output, args.network)
    device = prepare(args)
    from hyps_bids.pretraining.pretrain import base_task, localizer_task, pretrain

    task = base_task() if args.network == "base" else localizer_task()
    if args.batch_size is not None:
        task = replace(task, batch_size=args.batch_size)
    settings = loop_settings(args)
    print(pretrain(task, args.labelmaps, args.output, settings, device, args.start, half=args.fp16))
    return 0
