"""``hyps-tools evaluate``: measure how well weights segment."""

from __future__ import annotations

import argparse
from pathlib import Path

from hyps_bids.tools.options import Parser, add_parser, positive, prepare

#: First columns of the tables, by which those of earlier runs are recognized.
_TABLE_MARKS = (b"id\tdice_", b"id\themi\tdice", b"id\tmove\t", b"id\trepeat\t", b"axes\tdice_")


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
        "--values",
        type=int,
        nargs=2,
        default=(1, 2),
        metavar=("LEFT", "RIGHT"),
        help="values of the hippocampi in the reference (default: 1 2)",
    )
    retest = what.add_parser("retest", help="agreement after shifts and rotations of heads")
    retest.add_argument("images", type=Path, nargs="+")
    retest.add_argument("--moves", type=positive, default=4, help="moves per image (default: 4)")
    orientation = what.add_parser("orientation", help="agreement over all 48 axis orders of a head")
    orientation.add_argument("image", type=Path)
    speed = what.add_parser("speed", help="seconds that each step takes")
    speed.add_argument("images", type=Path, nargs="+")
    for sub in (crops, images, retest, orientation, speed):
        sub.add_argument("--output", type=Path, metavar="TSV", help="write all rows to this table")
        for name in ("adapter", "base", "localizer"):
            sub.add_argument(
                f"--{name}", type=Path, help=f"weights of the {name} (default: shipped)"
            )
        sub.add_argument("--n4", action="store_true", help="correct the bias field first")
        sub.add_argument(
            "--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)"
        )
        sub.add_argument("--threads", type=positive, help="CPU threads (default: PyTorch's choice)")


def _evaluate(args: argparse.Namespace) -> int:
    if args.output is not None:
        from hyps_bids.outputs.ownership import refuse_foreign_file

        refuse_foreign_file(args.output, *_TABLE_MARKS)
    device = prepare(args)
    import tempfile

    from hyps_bids import evaluation
    from hyps_bids.networks.cards import ADAPTER, BASE, LOCALIZER, shipped_weights
    from hyps_bids.segmentation.pipeline import Pipeline

    pipeline = Pipeline(
        localizer=args.localizer or shipped_weights(LOCALIZER),
        base=args.base or shipped_weights(BASE),
        adapter=args.adapter or shipped_weights(ADAPTER),
        device=str(device),
        n4=args.n4,
    )
    if args.what == "crops":
        table = evaluation.evaluate_crops(pipeline, args.images, args.labels)
    elif args.what == "images":
        pairs = (
            [(args.image, args.reference)] if args.reference else evaluation.pairs_in(args.image)
        )
        table = evaluation.evaluate_images(pipeline, pairs, tuple(args.values))
    elif args.what == "retest":
        table = evaluation.evaluate_retest(pipeline, args.images, moves=args.moves)
    elif args.what == "orientation":
        with tempfile.TemporaryDirectory() as folder:
            table = evaluation.evaluate_orientation(pipeline, args.image, Path(folder))
    else:
        table = evaluation.evaluate_speed(pipeline, args.images)
    evaluation.report(table, args.output)
    return 0
