"""``hyps-tools evaluate``: measure weights."""

from __future__ import annotations

import argparse
from pathlib import Path

from hyps_bids.tools.options import Parser, add_parser, positive, prepare

__all__ = ["add_command"]


def add_command(commands: argparse._SubParsersAction[Parser]) -> None:
    """Add the command to the parser."""
    parser = add_parser(
        commands, "evaluate", _evaluate, "Measure weights on labeled or real images."
    )
    what = parser.add_subparsers(title="what", required=True, metavar="WHAT", dest="what")
    crops = what.add_parser("crops", help="Dice on the fixed test split of MSD Task04")
    crops.add_argument("images", type=Path, metavar="IMAGES")
    crops.add_argument("labels", type=Path, metavar="LABELS")
    images = what.add_parser("images", help="whole images against references, end to end")
    images.add_argument("image", type=Path, help="a T1w image, or a folder of *_T1w and *_dseg")
    images.add_argument("reference", type=Path, nargs="?", help="label image of a single image")
    images.add_argument(
        "--values", type=int, nargs=2, default=(1, 2), metavar=("LEFT", "RIGHT"), help="labels"
    )
    retest = what.add_parser("retest", help="agreement under shifts and rotations")
    retest.add_argument("images", type=Path, nargs="+")
    retest.add_argument("--moves", type=positive, default=4, help="per image")
    orientation = what.add_parser("orientation", help="all 48 axis orders and flips of a head")
    orientation.add_argument("image", type=Path)
    speed = what.add_parser("speed", help="seconds of each step, without start and reading")
    speed.add_argument("images", type=Path, nargs="+")
    for sub in (crops, images, retest, orientation, speed):
        sub.add_argument("--output", type=Path, metavar="TSV", help="table with all rows")
        sub.add_argument("--adapter", type=Path, help="default: the shipped one")
        sub.add_argument("--base", type=Path, help="default: the shipped one")
        sub.add_argument("--localizer", type=Path, help="default: the shipped one")
        sub.add_argument("--n4", action="store_true", help="correct the bias field first")
        sub.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
        sub.add_argument("--threads", type=positive, help="CPU threads; default: torch's choice")


def _evaluate(args: argparse.Namespace) -> int:
    device = prepare(args)
    import tempfile

    from hyps_bids import evaluation as evaluate
    from hyps_bids.networks.checkpoints import ADAPTER, BASE, LOCALIZER, shipped_weights

    pipeline = evaluate.Pipeline(
        localizer=args.localizer or shipped_weights(LOCALIZER),
        base=args.base or shipped_weights(BASE),
        adapter=args.adapter or shipped_weights(ADAPTER),
        device=device,
        n4=args.n4,
    )
    if args.what == "crops":
        table = evaluate.evaluate_crops(pipeline, args.images, args.labels)
    elif args.what == "images":
        pairs = [(args.image, args.reference)] if args.reference else evaluate.pairs_in(args.image)
        table = evaluate.evaluate_images(pipeline, pairs, tuple(args.values))
    elif args.what == "retest":
        table = evaluate.evaluate_retest(pipeline, args.images, moves=args.moves)
    elif args.what == "orientation":
        with tempfile.TemporaryDirectory() as folder:
            table = evaluate.evaluate_orientation(pipeline, args.image, Path(folder))
    else:
        table = evaluate.evaluate_speed(pipeline, args.images)
    evaluate.report(table, args.output)
    return 0
