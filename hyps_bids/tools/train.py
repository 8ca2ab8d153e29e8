"""``hyps-tools train``: from the data folder to the shipped weights, by the recipe."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from hyps_bids.tools.options import (
    Parser,
    add_compute_options,
    add_parser,
    make_folder,
    prepare,
)

#: The stages in their order, as in :mod:`hyps_bids.recipe.plan`, which takes long to import.
_STAGES = ("localizer", "base", "adapter", "soup")


def add_command(commands: argparse._SubParsersAction[Parser]) -> None:
    """Add the command to the parser."""
    text = "Train the weights that come with the app, by their recipe."
    parser = add_parser(commands, "train", _train, text)
    parser.add_argument("data", type=Path, metavar="DATA", help="folder of the training data")
    parser.add_argument(
        "output", type=Path, metavar="OUT", help="folder of results; a stopped run is continued"
    )
    parser.add_argument(
        "--recipe", type=Path, metavar="TOML", help="recipe, if not the shipped one"
    )
    parser.add_argument(
        "--stages", nargs="+", choices=_STAGES, default=_STAGES, help="stages to run"
    )
    parser.add_argument(
        "--seeds", type=int, nargs="+", metavar="N", help="seeds of the adapters, if others"
    )
    parser.add_argument(
        "--adapters",
        type=Path,
        nargs="+",
        default=[],
        metavar="PATH",
        help="more adapters for the stage soup, or folders of their trainings; they must not have "
        "been trained on the validation subjects",
    )
    parser.add_argument(
        "--weights",
        type=Path,
        metavar="DIR",
        help="weights to start from and to compare with, if not the shipped ones",
    )
    parser.add_argument(
        "--replace",
        action="store_true",
        help="exchange those weights for the new ones, where these are better",
    )
    parser.add_argument(
        "--minutes", type=float, metavar="N", help="end after so many minutes, to be continued"
    )
    parser.add_argument(
        "--compile", action="store_true", help="compile networks, which may pay on a GPU"
    )
    add_compute_options(parser)


def _train(args: argparse.Namespace) -> int:
    began = time.monotonic()
    make_folder(args.output)
    device = prepare(args)
    import torch

    from hyps_bids.errors import NotFinished
    from hyps_bids.networks.cards import BASE, shipped_weights
    from hyps_bids.recipe.choose import choose_adapter, replace_weights
    from hyps_bids.recipe.plan import read_recipe
    from hyps_bids.recipe.stages import Workshop, train_adapters, train_network

    # All batches have the same shape, so that the fastest kernels can be found by trying.
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = True, False
    workshop = Workshop(
        read_recipe(args.recipe),
        args.data,
        args.output,
        args.weights or shipped_weights(BASE).parent,
        device,
        deadline=None if args.minutes is None else began + 60 * args.minutes,
        compiled=args.compile,
    )
    seeds = args.seeds or workshop.plan.adapter.seeds
    try:
        done = [train_network(workshop, s) for s in ("localizer", "base") if s in args.stages]
        if "adapter" in args.stages and all(done):
            done.append(train_adapters(workshop, seeds))
        if "soup" in args.stages and all(done):
            done.append(choose_adapter(workshop, seeds, args.adapters))
        if args.replace and all(done):
            replace_weights(workshop)
    except NotFinished as error:
        print(error)
        return NotFinished.exit_code
    return 0 if all(done) else NotFinished.exit_code
