"""``hyps-tools synthesize``: draw a picture of synthetic training images."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from hyps_bids.errors import CannotCreateOutput
from hyps_bids.tools.options import Parser, add_parser, positive, prepare

if TYPE_CHECKING:
    import torch
    from matplotlib.figure import Figure

#: Text in each picture, by which a later run recognizes its own.
_MADE_BY = "HyPS-BIDS"


def add_command(commands: argparse._SubParsersAction[Parser]) -> None:
    """Add the command to the parser."""
    parser = add_parser(commands, "synthesize", _synthesize, "Draw synthetic training images.")
    parser.add_argument("labelmaps", type=Path, metavar="LABELMAPS", help="folder of label maps")
    parser.add_argument("output", type=Path, metavar="OUT.png", help="picture to write")
    parser.add_argument(
        "--kind",
        choices=("head", "box"),
        default="head",
        help="heads, or hippocampi",
    )
    parser.add_argument("-n", type=positive, default=8, help="number of samples")
    parser.add_argument("--seed", type=int, default=0, help="seed of the samples")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    parser.add_argument("--threads", type=positive, help="CPU threads; torch chooses if not given")


def _synthesize(args: argparse.Namespace) -> int:
    device = prepare(args)
    import torch

    from hyps_bids.outputs.ownership import refuse_foreign_file
    from hyps_bids.pretraining import synthesis
    from hyps_bids.pretraining.label_maps import BASE_CLASSES, load_labelmaps

    refuse_foreign_file(args.output, _MADE_BY.encode())
    maps = load_labelmaps(args.labelmaps).to(device)
    generator = torch.Generator(device).manual_seed(args.seed)
    if args.kind == "head":
        images, targets = synthesis.head_batch(maps, synthesis.HEAD, args.n, generator)
        shown, limits = targets >= 2, (0.0, 1.0)
    else:
        images, targets = synthesis.box_batch(maps, synthesis.BOX, args.n, generator)
        shown, limits = targets == BASE_CLASSES.index("hippocampus"), (-2.5, 2.5)
    figure = sample_figure(images.cpu(), shown.cpu(), limits)
    try:
        figure.savefig(args.output, dpi=80, metadata={"Software": _MADE_BY})
    except (OSError, ValueError) as error:
        raise CannotCreateOutput(
            f"{args.output}: the picture cannot be written ({error}); give a path that ends with "
            ".png in an existing folder",
            code="picture-not-writable",
        ) from error
    return 0


def sample_figure(
    images: torch.Tensor, outlined: torch.Tensor, limits: tuple[float, float]
) -> Figure:
    """Draw sagittal, coronal and axial slices through the outlined part, one column per sample.

    `images` and the boolean `outlined` have the shape ``(n, 1, x, y, z)`` with RAS axes; `limits`
    are the intensities that are shown black and white.
    """
    from matplotlib.figure import Figure

    n = len(images)
    figure = Figure(figsize=(1.6 * n, 4.8), facecolor="black", layout="constrained")
    axes = figure.subplots(3, n, squeeze=False)
    for i in range(n):
        image, mask = images[i, 0], outlined[i, 0]
        hit = mask.nonzero().float()
        center = hit.mean(dim=0) if len(hit) else [side // 2 for side in image.shape]
        for axis in range(3):
            at = int(center[axis])
            ax = axes[axis, i]
            picture, outline = image.select(axis, at).T, mask.select(axis, at).T.float()
            ax.imshow(picture, origin="lower", cmap="gray", vmin=limits[0], vmax=limits[1])
            if outline.any():
                ax.contour(outline, [0.5], colors="tab:red", linewidths=0.7)
            ax.set_axis_off()
    return figure
