"""Images with the answers of a trained localizer, kept on disk for the training of a smaller one.

A trained network is slow, so its answers are computed once. Images are synthetic, or real heads
that are deformed and degraded at random; both are seen through the localizer's window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from hyps_bids.imaging.conform import conform
from hyps_bids.imaging.resample import coarsen
from hyps_bids.outputs.writing import write_with
from hyps_bids.pretraining.label_maps import LabelMaps
from hyps_bids.pretraining.synthesis import (
    HEAD,
    SynthesisSettings,
    degrade,
    draw_offsets,
    field_of_view,
    head_batch,
)
from hyps_bids.progress import track
from hyps_bids.segmentation.localize import SPACING, head_window
from hyps_bids.training import augment

#: Images as the localizer sees them: a little larger than its window, with the head off center.
SYNTHESIS = replace(
    HEAD, shape=(80, 96, 80), deformation=replace(HEAD.deformation, translation=10.0)
)
#: Steps between 0 and 1 in which probabilities are kept.
_STEPS = 255


@dataclass(frozen=True)
class Example:
    """An image, and what the teacher makes of it.

    Attributes
    ----------
    image : torch.Tensor
        Scaled intensities, float32, shape ``(1, 1, x, y, z)``.
    probabilities : torch.Tensor
        Of the classes of the localizer, float32, shape ``(1, 4, x, y, z)``.
    features : torch.Tensor
        Output of the teacher's second reduction, float32, shape ``(1, c, x / 4, y / 4, z / 4)``.
    """

    image: torch.Tensor
    probabilities: torch.Tensor
    features: torch.Tensor


@dataclass(frozen=True)
class RealHead:
    """A real head, smoothed for sampling at the localizer's resolution.

    `data` has shape ``(1, 1, x, y, z)``; `from_world` turns mm along right, anterior and superior
    into voxels.
    """

    data: torch.Tensor
    from_world: torch.Tensor


def read_heads(paths: Sequence[Path]) -> list[RealHead]:
    """Read real T1w images of whole or skull-stripped heads."""
    heads = []
    for path in paths:
        image = conform(path)
        data, affine = coarsen(image.data, image.affine, SPACING)
        low, high = np.percentile(data, (0, 99.9))
        data = np.clip((data - low) / (high - low), 0, 1)
        inverse = torch.from_numpy(np.linalg.inv(affine[:3, :3])).float()
        heads.append(RealHead(torch.from_numpy(data).float()[None, None], inverse))
    return heads


@dataclass(frozen=True)
class Sources:
    """What images are made from, and the ranges of both kinds of images.

    Every other image is made from a real head, if there are any.
    """

    maps: LabelMaps
    heads: Sequence[RealHead] = ()
    synthesis: SynthesisSettings = SYNTHESIS


def make_examples(teacher: nn.Module, sources: Sources, folder: Path, count: int) -> list[Path]:
    """Write the examples with the seeds 0 to `count` - 1 that `folder` does not have yet.

    Parameters
    ----------
    teacher : torch.nn.Module
        Localizer, a BasicUNet, on the device of the label maps.
    sources : Sources
        What to make images from.
    folder : Path
        Receives one file per example.
    count : int
        Number of examples.
    """
    paths = [folder / f"{seed:05}.npz" for seed in range(count)]
    for seed, path in enumerate(track(paths, count, "examples", folder.name)):
        if not path.exists():
            _write(path, make_example(teacher, sources, seed))
    return paths


def make_example(teacher: nn.Module, sources: Sources, seed: int) -> Example:
    """Draw an image, and compute the teacher's answer; the same seed gives the same example.

    `teacher` is a BasicUNet, or wraps one, on the device of the label maps.
    """
    device = sources.maps.volumes.device
    generator = torch.Generator(device).manual_seed(seed)
    if sources.heads and seed % 2:
        head = sources.heads[(seed // 2) % len(sources.heads)]
        drawn = _draw_real(head, sources.synthesis, generator)
    else:
        drawn, _ = head_batch(sources.maps, sources.synthesis, 1, generator)
    window, _ = head_window(drawn[0, 0].cpu().numpy())
    image = torch.from_numpy(window)[None, None].to(device)
    kept: list[torch.Tensor] = []
    (reduction,) = (m for name, m in teacher.named_modules() if name.split(".")[-1] == "down_2")
    hook = reduction.register_forward_hook(lambda _module, _inputs, output: kept.append(output))
    try:
        with torch.inference_mode():
            probabilities = teacher(image).softmax(dim=1)
    finally:
        hook.remove()
    return Example(image, probabilities, kept[0].float())


def _draw_real(
    head: RealHead, synthesis: SynthesisSettings, generator: torch.Generator
) -> torch.Tensor:
    """Deform and degrade a real head, half of the time mirrored; shape ``(1, 1, x, y, z)``."""
    device = generator.device
    mirrored = augment.uniform((1,), 0, 1, generator) < 0.5
    places = draw_offsets(synthesis, 1, mirrored, generator) @ head.from_world.T.to(device)
    image = degrade(augment.sample(head.data.to(device), places), synthesis, generator)
    half = torch.tensor([(side - 1) / 2 for side in head.data.shape[2:]], device=device)
    inside = (places.abs() <= half).all(-1)[:, None] & field_of_view(1, synthesis, generator)
    return augment.scale_percentiles(image, inside)


def _write(path: Path, example: Example) -> None:
    """Write an example; probabilities are rounded to 1/255, and the background is left out."""
    probabilities = (example.probabilities[0, 1:] * _STEPS).round().byte()
    arrays = {
        "image": example.image[0, 0].half().cpu().numpy(),
        "probabilities": probabilities.cpu().numpy(),
        "features": example.features[0].half().cpu().numpy(),
    }

    def save(partial: Path) -> None:
        with partial.open("wb") as stream:
            np.savez(stream, **arrays)  # type: ignore[arg-type]

    write_with(path, save)


def read_example(path: Path, device: torch.device) -> Example:
    """Read an example that :func:`make_examples` wrote."""
    with np.load(path) as content:
        image, probabilities, features = (
            torch.from_numpy(content[name]).to(device).float()[None]
            for name in ("image", "probabilities", "features")
        )
    probabilities /= _STEPS
    background = (1 - probabilities.sum(dim=1, keepdim=True)).clamp(min=0)
    return Example(image[None], torch.cat([background, probabilities], dim=1), features)
