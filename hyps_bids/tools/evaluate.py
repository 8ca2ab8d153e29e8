"""``hyps-tools evaluate``: measure how well weights segment."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from hyps_bids.tools.options import Parser, add_parser, positive, prepare

if TYPE_CHECKING:
    import pandas as pd

    from hyps_bids.segmentation.pipeline import Pipeline

#: First columns of the tables, by which those of earlier runs are recognized.
_TABLE_MARKS = (
    b"id\tdice_",
    b"id\themi\tdice",
    b"id\tcontrast\t",
    b"id\tmove\t",
    b"id\trepeat\t",
    b"axes\tdice_",
    b"id\tsource\tkind\t",
    b"subject\tfirst\t",
    b"id\tkind\tstrength",
    b"id\treview\t",
    b"kind\tn\tseed\t",
)

#: Measures with these networks and options; returns the rows.
_Measure = Callable[["Pipeline", argparse.Namespace], "pd.DataFrame"]


def add_command(commands: argparse._SubParsersAction[Parser]) -> None:
    """Add the command to the parser."""
    parser = add_parser(
        commands, "evaluate", _evaluate, "Measure weights on labeled or real images."
    )
    kinds = parser.add_subparsers(title="what", required=True, metavar="WHAT")
    _add_crops(kinds)
    _add_images(kinds)
    _add_contrasts(kinds)
    _add_rescans(kinds)
    _add_retest(kinds)
    _add_longitudinal(kinds)
    _add_orientation(kinds)
    _add_speed(kinds)
    _add_quality(kinds)
    _add_robustness(kinds)
    _add_healthy(kinds)
    _add_norms(kinds)


def _add_kind(
    kinds: argparse._SubParsersAction[Parser], name: str, measure: _Measure, text: str
) -> Parser:
    """Add a kind of measurement, with the options of all kinds."""
    parser = kinds.add_parser(name, help=text)
    parser.set_defaults(measure=measure)
    parser.add_argument("--output", type=Path, metavar="TSV", help="write all rows to this table")
    for weights in ("adapter", "base", "localizer"):
        parser.add_argument(
            f"--{weights}", type=Path, help=f"weights of the {weights} (default: shipped)"
        )
    parser.add_argument("--n4", action="store_true", help="correct the bias field first")
    parser.add_argument(
        "--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: auto)"
    )
    parser.add_argument("--threads", type=positive, help="CPU threads (default: PyTorch's choice)")
    return parser


def _evaluate(args: argparse.Namespace) -> int:
    if args.output is not None:
        from hyps_bids.outputs.ownership import refuse_foreign_file

        refuse_foreign_file(args.output, *_TABLE_MARKS)
    device = prepare(args)
    from hyps_bids.evaluation.tables import report
    from hyps_bids.networks.cards import ADAPTER, BASE, LOCALIZER, shipped_weights
    from hyps_bids.segmentation.pipeline import Pipeline

    pipeline = Pipeline(
        localizer=args.localizer or shipped_weights(LOCALIZER),
        base=args.base or shipped_weights(BASE),
        adapter=args.adapter or shipped_weights(ADAPTER),
        device=str(device),
        n4=args.n4,
    )
    report(args.measure(pipeline, args), args.output)
    return 0


def _add_crops(kinds: argparse._SubParsersAction[Parser]) -> None:
    text = "Dice on a fixed part of MSD Task04"
    parser = _add_kind(kinds, "crops", _crops, text)
    parser.add_argument("images", type=Path, metavar="IMAGES")
    parser.add_argument("labels", type=Path, metavar="LABELS")
    parser.add_argument(
        "--split",
        choices=("test", "validation"),
        default="test",
        help="test: every fifth subject; validation: every 13th of the others (default: test)",
    )


def _crops(pipeline: Pipeline, args: argparse.Namespace) -> pd.DataFrame:
    from hyps_bids.evaluation.crops import evaluate_crops

    return evaluate_crops(pipeline, args.images, args.labels, split=args.split)


def _add_images(kinds: argparse._SubParsersAction[Parser]) -> None:
    text = "whole images against references, end to end"
    parser = _add_kind(kinds, "images", _images, text)
    parser.add_argument("image", type=Path, help="a T1w image, or a folder of *_T1w and *_dseg")
    parser.add_argument("reference", type=Path, nargs="?", help="label image of a single image")
    parser.add_argument(
        "--values",
        type=int,
        nargs=2,
        default=(1, 2),
        metavar=("LEFT", "RIGHT"),
        help="values of the hippocampi in the reference (default: 1 2)",
    )


def _images(pipeline: Pipeline, args: argparse.Namespace) -> pd.DataFrame:
    from hyps_bids.evaluation.images import evaluate_images, pairs_in

    pairs = [(args.image, args.reference)] if args.reference else pairs_in(args.image)
    return evaluate_images(pipeline, pairs, tuple(args.values))


def _add_contrasts(kinds: argparse._SubParsersAction[Parser]) -> None:
    text = "other contrasts against the T1w image of the same session"
    parser = _add_kind(kinds, "contrasts", _contrasts, text)
    parser.add_argument("dataset", type=Path, metavar="BIDS_DIR", help="dataset of aligned images")
    parser.add_argument(
        "--simulate",
        action="store_true",
        help="make T2w, FLAIR, PDw and inverted images from the T1w images instead",
    )


def _contrasts(pipeline: Pipeline, args: argparse.Namespace) -> pd.DataFrame:
    from hyps_bids.evaluation.contrasts import evaluate_contrasts, find_sessions

    return evaluate_contrasts(pipeline, find_sessions(args.dataset), simulate=args.simulate)


def _add_rescans(kinds: argparse._SubParsersAction[Parser]) -> None:
    text = "difference of the volumes of people who were scanned twice"
    parser = _add_kind(kinds, "rescans", _rescans, text)
    parser.add_argument(
        "table",
        type=Path,
        metavar="TSV",
        help="columns id and subject; the images ID_T1w.nii.gz lie beside it",
    )
    parser.add_argument(
        "--longitudinal",
        action="store_true",
        help="process the scans of each person together (default: each scan on its own)",
    )


def _rescans(pipeline: Pipeline, args: argparse.Namespace) -> pd.DataFrame:
    from hyps_bids.evaluation.rescans import evaluate_rescans

    return evaluate_rescans(pipeline, args.table, longitudinal=args.longitudinal)


def _add_retest(kinds: argparse._SubParsersAction[Parser]) -> None:
    text = "agreement after shifts and rotations of heads"
    parser = _add_kind(kinds, "retest", _retest, text)
    parser.add_argument("images", type=Path, nargs="+")
    parser.add_argument("--moves", type=positive, default=4, help="moves per image (default: 4)")


def _retest(pipeline: Pipeline, args: argparse.Namespace) -> pd.DataFrame:
    from hyps_bids.evaluation.retest import evaluate_retest

    return evaluate_retest(pipeline, args.images, moves=args.moves)


def _add_longitudinal(kinds: argparse._SubParsersAction[Parser]) -> None:
    text = "change that is found between made scans whose true change is known"
    parser = _add_kind(kinds, "longitudinal", _longitudinal, text)
    parser.add_argument("images", type=Path, nargs="+", metavar="HEAD", help="good T1w images")
    parser.add_argument(
        "--levels",
        type=float,
        nargs="+",
        metavar="PERCENT",
        default=(0, 1, 2, 5),
        help="how much the hippocampi lose (default: 0 1 2 5)",
    )
    parser.add_argument(
        "--repeats", type=positive, default=4, help="pairs of each head and level (default: 4)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of all that is random (default: 0)")


def _longitudinal(pipeline: Pipeline, args: argparse.Namespace) -> pd.DataFrame:
    from hyps_bids.evaluation.longitudinal import evaluate_longitudinal

    levels = [percent / 100 for percent in args.levels]
    return evaluate_longitudinal(
        pipeline, args.images, levels=levels, repeats=args.repeats, seed=args.seed
    )


def _add_orientation(kinds: argparse._SubParsersAction[Parser]) -> None:
    text = "agreement over all 48 axis orders of a head"
    parser = _add_kind(kinds, "orientation", _orientation, text)
    parser.add_argument("image", type=Path)


def _orientation(pipeline: Pipeline, args: argparse.Namespace) -> pd.DataFrame:
    from hyps_bids.evaluation.orientation import evaluate_orientation

    with tempfile.TemporaryDirectory() as folder:
        return evaluate_orientation(pipeline, args.image, Path(folder))


def _add_speed(kinds: argparse._SubParsersAction[Parser]) -> None:
    parser = _add_kind(kinds, "speed", _speed, "seconds that each step takes")
    parser.add_argument("images", type=Path, nargs="+")


def _speed(pipeline: Pipeline, args: argparse.Namespace) -> pd.DataFrame:
    from hyps_bids.evaluation.speed import evaluate_speed

    return evaluate_speed(pipeline, args.images)


def _add_quality(kinds: argparse._SubParsersAction[Parser]) -> None:
    text = "the expected Dice against the Dice with labels that it was not fitted to"
    parser = _add_kind(kinds, "quality", _quality, text)
    parser.add_argument(
        "--crops",
        type=Path,
        nargs=2,
        metavar=("IMAGES", "LABELS"),
        help="folders of MSD Task04, whose fixed test split is used",
    )
    parser.add_argument("--heads", type=Path, help="a folder of *_T1w and *_dseg (labels 1 and 2)")
    parser.add_argument(
        "--per-kind",
        type=int,
        default=0,
        metavar="N",
        help="spoil each image in N strengths of each kind, too (default: 0)",
    )
    parser.add_argument("--model", type=Path, help="model of the expected Dice (default: shipped)")
    parser.add_argument("--processes", type=positive, default=1, help="number of processes")


def _quality(pipeline: Pipeline, args: argparse.Namespace) -> pd.DataFrame:
    from hyps_bids.errors import UsageError
    from hyps_bids.evaluation import calibration
    from hyps_bids.evaluation.quality import evaluate_quality

    subjects = []
    if args.crops:
        crops = calibration.find_crops(args.crops[0], args.crops[1], args.per_kind)
        subjects += [one for one in crops if one.source == "test"]
    if args.heads:
        subjects += calibration.find_labeled_heads(args.heads, args.per_kind)
    if not subjects:
        raise UsageError("give --crops, --heads or both", code="nothing-to-evaluate")
    return evaluate_quality(pipeline, subjects, model=args.model, processes=args.processes)


def _add_robustness(kinds: argparse._SubParsersAction[Parser]) -> None:
    text = "whether wrong results are flagged, on heads that are spoiled and damaged on purpose"
    parser = _add_kind(kinds, "robustness", _robustness, text)
    parser.add_argument("images", type=Path, nargs="+", metavar="HEAD", help="good T1w images")
    parser.add_argument(
        "--kinds",
        nargs="+",
        metavar="KIND[:STRENGTH]",
        help="how to spoil them, for example noise or slices:z5 (default: everything)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of all that is random (default: 0)")


def _robustness(pipeline: Pipeline, args: argparse.Namespace) -> pd.DataFrame:
    from hyps_bids.evaluation.robustness import evaluate_robustness

    return evaluate_robustness(pipeline, args.images, args.kinds, seed=args.seed)


def _add_healthy(kinds: argparse._SubParsersAction[Parser]) -> None:
    text = "share of good images of healthy people that are flagged"
    parser = _add_kind(kinds, "healthy", _healthy, text)
    parser.add_argument("images", type=Path, nargs="+", metavar="HEAD", help="good T1w images")


def _healthy(pipeline: Pipeline, args: argparse.Namespace) -> pd.DataFrame:
    from hyps_bids.evaluation.robustness import evaluate_healthy

    return evaluate_healthy(pipeline, args.images)


def _add_norms(kinds: argparse._SubParsersAction[Parser]) -> None:
    text = "norms on simulated cohorts whose centiles are known; needs no weights and no images"
    parser = kinds.add_parser("norms", help=text)
    parser.set_defaults(run=_norms)
    parser.add_argument("--output", type=Path, metavar="TSV", help="write all rows to this table")
    parser.add_argument(
        "--table",
        type=Path,
        metavar="TSV",
        help="real people, too: participant_id, age, sex, left_hippocampus_mm3, "
        "right_hippocampus_mm3 and etiv_mm3",
    )
    parser.add_argument(
        "--seeds", type=positive, default=20, help="cohorts of each kind and size (default: 20)"
    )
    parser.add_argument(
        "--sizes", type=positive, nargs="+", metavar="N", help="numbers of controls (default: many)"
    )
    parser.add_argument("--no-speed", action="store_true", help="do not time 10,000 scans")


def _norms(args: argparse.Namespace) -> int:
    from hyps_bids.evaluation.norms import SIZES, evaluate_norms
    from hyps_bids.evaluation.tables import report
    from hyps_bids.outputs.ownership import refuse_foreign_file

    if args.output is not None:
        refuse_foreign_file(args.output, *_TABLE_MARKS)
    sizes = args.sizes or SIZES
    found = evaluate_norms(args.table, sizes=sizes, seeds=args.seeds, speed=not args.no_speed)
    report(found, args.output)
    return 0
