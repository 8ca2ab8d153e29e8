"""Labeled crops in memory, and augmented batches of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

from hyps_bids.errors import BadData, MissingInput
from hyps_bids.networks.checkpoints import GRID
from hyps_bids.segmentation.normalize import standardize
from hyps_bids.training import augment

__all__ = ["Crops", "augmented_batch", "load_crops"]

_MARGIN = 8


@dataclass(frozen=True)
class Crops:
    """Crops around one hippocampus each, left-oriented, centerd in a common frame.

    Attributes
    ----------
    ids : tuple of str
        File names without extension.
    images : torch.Tensor
        Raw intensities scaled to unit variance, zero outside, shape ``(n, 1, x, y, z)``.
    inside : torch.Tensor
        Boolean, True where the file had voxels, same shape.
    labels : torch.Tensor
        Integer classes, same shape; 0 is background.
    """

    ids: tuple[str, ...]
    images: torch.Tensor
    inside: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def select(self, keep: Callable[[str], bool]) -> Crops:
        """Return the crops whose id fulfills a condition."""
        index = [i for i, name in enumerate(self.ids) if keep(name)]
        return Crops(
            tuple(self.ids[i] for i in index),
            self.images[index],
            self.inside[index],
            self.labels[index],
        )

    def to(self, device: torch.device) -> Crops:
        """Return the crops on a device."""
        return Crops(
            self.ids, self.images.to(device), self.inside.to(device), self.labels.to(device)
        )


def load_crops(images: Path, labels: Path) -> Crops:
    """Read pairs of NIfTI crops of the same file name from two folders.

    Parameters
    ----------
    images, labels : Path
        Folders of 1 mm crops in left orientation and of their integer label images.

    Returns
    -------
    Crops
        All pairs, in order of name.

    Raises
    ------
    MissingInput
        If a folder holds no NIfTI file, or a label image has no partner.
    BadData
        If shapes differ, a crop is not finite, or it has no label at all.
    """
    paths = sorted(p for p in images.glob("*.nii*") if not p.name.startswith("."))
    if not paths:
        raise MissingInput(f"{images}: no NIfTI files")
    frame = tuple(side + _MARGIN for side in GRID)
    ids, stacks = [], []
    for path in paths:
        partner = labels / path.name
        if not partner.is_file():
            raise MissingInput(f"{partner}: no label image for {path}")
        image = nib.load(path).get_fdata(dtype=np.float32)
        label = np.asarray(nib.load(partner).dataobj).round().astype(np.int64)
        if image.shape != label.shape or image.ndim != 3:
            raise BadData(f"{partner}: shape {label.shape} differs from the image's {image.shape}")
        if not np.isfinite(image).all() or not label.any():
            raise BadData(f"{path}: not finite, or without any label")
        scaled = (image - image.mean()) / max(float(image.std()), 1e-6)
        inside = np.ones(image.shape, dtype=np.int64)
        stacks.append([_center(a, frame) for a in (scaled, inside, label)])
        ids.append(path.name.split(".")[0])
    columns = [torch.from_numpy(np.stack(c))[:, None] for c in zip(*stacks, strict=True)]
    return Crops(tuple(ids), columns[0].float(), columns[1].bool(), columns[2])


def augmented_batch(
    crops: Crops,
    size: int,
    classes: int,
    generator: torch.Generator,
    *,
    strength: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw crops and deform them, vary their field of view, contrast, resolution and noise.

    The box the network sees varies in size and place: an adapter that never saw other boxes than
    its crops loses up to five Dice points on larger ones.

    Parameters
    ----------
    crops : Crops
        What to draw from.
    size, classes : int
        Crops to draw, and classes with the background.
    generator : torch.Generator
        Source of randomness.
    strength : float
        Factor of all ranges but those of the box, in [0, 1].

    Returns
    -------
    inputs : torch.Tensor
        Standardized images, shape ``(size, 1, *GRID)``.
    targets : torch.Tensor
        Classes, shape ``(size, 1, *GRID)``.
    """
    device = generator.device
    index = torch.randint(len(crops), (size,), generator=generator, device=device)
    deformation = augment.Deformation(
        rotation=15 * strength,
        scaling=0.15 * strength,
        shearing=0.05 * strength,
        elastic=1.5 * strength,
    )
    offsets = augment.random_sampling_grid(size, GRID, generator, deformation)
    labels = torch.nn.functional.one_hot(crops.labels[index, 0], classes).movedim(-1, 1).float()
    stack = torch.cat((crops.images[index], crops.inside[index].float(), labels), dim=1)
    moved = augment.sample(stack, offsets)
    image, targets = moved[:, :1], moved[:, 2:].argmax(dim=1, keepdim=True)
    smallest = [side - 10 for side in GRID]
    inside = (moved[:, 1:2] > 0.5) & augment.random_box(size, GRID, smallest, 3.0, generator)
    image = augment.random_gamma(image, 0.3 * strength, generator)
    image = augment.random_bias_field(image, 0.3 * strength, 20, generator)
    image = augment.random_resolution(image, 2.5, 0.3 * strength, generator)
    image = standardize(image, inside)
    noise = torch.randn(image.shape, generator=generator, device=device)
    level = augment.uniform((size, 1, 1, 1, 1), 0, 0.25 * strength, generator)
    return standardize(image + level * noise, inside), targets


def _center(array: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Center an array in another shape, cutting or padding with zeros."""
    out = np.zeros(shape, dtype=array.dtype)
    source, target = [], []
    for have, want in zip(array.shape, shape, strict=True):
        start = (want - have) // 2
        length = min(have, want)
        source.append(slice(max(0, -start), max(0, -start) + length))
        target.append(slice(max(0, start), max(0, start) + length))
    out[tuple(target)] = array[tuple(source)]
    return out
