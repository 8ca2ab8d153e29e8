"""``hyps-tools distill``: teach a smaller localizer to give the answers of a larger one."""

from __future__ import annotations

import argparse
from pathlib import Path

from hyps_bids.tools.options import (
    Parser,
    add_parser,
    add_training_options,
    loop_settings,
    positive,
    prepare,
    training_folder,
)


def add_command(commands: argparse._SubParsersAction[Parser]) -> None:
    """Add the command to the parser."""
    parser = add_parser(
        commands, "distill", _distill, "Teach a smaller localizer the answers of a larger one."
    )
    parser.add_argument("labelmaps", type=Path, metavar="LABELMAPS", help="folder of label maps")
    parser.add_argument(
        "output", type=Path, metavar="OUT", help="folder to write to; continues its training"
    )
    parser.add_argument(
        "--teacher", type=Path, metavar="FILE", help="localizer to learn from; the shipped one"
    )
    parser.add_argument(
        "--images",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="real T1w images of heads to learn on besides the synthetic ones",
    )
    parser.add_argument(
        "--features",
        type=positive,
        nargs=6,
        default=(4, 16, 64, 128, 256, 4),
        metavar="N",
        help="features of the BasicUNet, from full to lowest resolution, and of the last layer",
    )
    parser.add_argument("--examples", type=positive, default=600, help="images to learn on")
    parser.add_argument(
        "--encoder-steps", type=positive, default=500, help="steps in which only the encoder learns"
    )
    parser.add_argument(
        "--bfloat16",
        action="store_true",
        help="compute in this precision, which is faster on a GPU and with AVX512-BF16",
    )
    add_training_options(parser, steps=3000, learning_rate=2e-3, batches=False)


def _distill(args: argparse.Namespace) -> int:
    training_folder(args.output, "localizer")
    device = prepare(args)
    from hyps_bids.networks.cards import LOCALIZER, shipped_weights
    from hyps_bids.pretraining.distill import DistillationPlan, distill

    plan = DistillationPlan(
        teacher=args.teacher or shipped_weights(LOCALIZER),
        labelmaps=args.labelmaps,
        images=args.images,
        features=tuple(args.features),
        examples=args.examples,
        encoder_steps=args.encoder_steps,
        bfloat16=args.bfloat16,
    )
    print(distill(plan, args.output, loop_settings(args), device, half=args.fp16))
    return 0
