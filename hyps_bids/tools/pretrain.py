"""``hyps-tools pretrain``: train a network on synthetic images."""

from __future__ import annotations

import argparse
from pathlib import Path

from hyps_bids.tools.options import (
    Parser,
    add_parser,
    add_training_options,
    loop_settings,
    make_folder,
    prepare,
)

__all__ = ["add_command"]


def add_command(commands: argparse._SubParsersAction[Parser]) -> None:
    """Add the command to the parser."""
    parser = add_parser(commands, "pretrain", _pretrain, "Train a network on synthetic images.")
    parser.add_argument("network", choices=("localizer", "base"), help="which network")
    parser.add_argument("labelmaps", type=Path, metavar="LABELMAPS", help="folder of label maps")
    parser.add_argument("output", type=Path, metavar="OUT", help="folder; continued if it exists")
    parser.add_argument("--from", dest="start", type=Path, metavar="FILE", help="weights to start")
    add_training_options(parser, steps=4000, learning_rate=1e-3)


def _pretrain(args: argparse.Namespace) -> int:
    make_folder(args.output)
    device = prepare(args)
    from hyps_bids.pretraining.pretrain import pretrain_base, pretrain_localizer

    train = {"localizer": pretrain_localizer, "base": pretrain_base}[args.network]
    options = {} if args.batch_size is None else {"batch_size": args.batch_size}
    path = train(
        args.labelmaps,
        args.output,
        loop_settings(args),
        device,
        args.start,
        half=args.fp16,
        **options,
    )
    print(path)
    return 0
