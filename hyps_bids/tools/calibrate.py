"""``hyps-tools calibrate``: fit the expected Dice to what networks make of spoiled images."""

from __future__ import annotations

import argparse
from pathlib import Path

from hyps_bids.tools.options import Parser, add_parser, make_folder, positive


def add_command(commands: argparse._SubParsersAction[Parser]) -> None:
    """Add the command to the parser."""
    parser = add_parser(
        commands,
        "calibrate",
        _calibrate,
        "Fit the expected Dice to what networks make of spoiled images.",
    )
    parser.add_argument(
        "output", type=Path, metavar="OUT", help="folder to write to; a stopped run is continued"
    )
    parser.add_argument(
        "heads",
        type=Path,
        nargs="+",
        metavar="HEAD",
        help="T1w images of whole heads; other contrasts of theirs on the same grid are used",
    )
    parser.add_argument(
        "--crops",
        type=Path,
        nargs=2,
        required=True,
        metavar=("IMAGES", "LABELS"),
        help="folders of MSD Task04; its fixed test split is left out",
    )
    parser.add_argument(
        "--per-kind",
        type=positive,
        default=1,
        metavar="N",
        help="strengths of each kind of spoiled images, for each head and each crop",
    )
    parser.add_argument(
        "--training-crops",
        type=positive,
        default=6,
        metavar="N",
        help="use every Nth subject that the adapter was trained on, too",
    )
    parser.add_argument("--processes", type=positive, default=2, help="number of processes")
    for name in ("adapter", "base", "localizer"):
        parser.add_argument(f"--{name}", type=Path, help=f"weights of the {name}, if not shipped")


def _calibrate(args: argparse.Namespace) -> int:
    make_folder(args.output)
    import json

    from hyps_bids.evaluation import calibration, expected_dice
    from hyps_bids.networks.cards import ADAPTER, BASE, LOCALIZER, shipped_weights
    from hyps_bids.outputs.writing import write_json
    from hyps_bids.segmentation.pipeline import Pipeline

    pipeline = Pipeline(
        localizer=args.localizer or shipped_weights(LOCALIZER),
        base=args.base or shipped_weights(BASE),
        adapter=args.adapter or shipped_weights(ADAPTER),
    )
    crops = calibration.find_crops(args.crops[0], args.crops[1], args.per_kind)
    training = [one for one in crops if one.source == "training"][:: args.training_crops]
    subjects = [
        *calibration.find_heads(args.heads, args.per_kind),
        *(one for one in crops if one.source == "validation"),
        *training,
    ]
    table = calibration.collect(pipeline, subjects, args.output / "rows", args.processes)
    model, checked = expected_dice.fit(table, calibration.networks_of(pipeline))
    facts = expected_dice.describe(table, checked)
    checked.to_csv(args.output / "checked.tsv", sep="\t", index=False, float_format="%.5g")
    write_json(args.output / "figures.json", facts)
    path = expected_dice.write_model(model, args.output, facts)
    print(json.dumps(facts["figures"], indent=2))
    print(path)
    return 0
