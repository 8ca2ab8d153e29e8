"""Labeled crops in memory: read from a folder, drawn in augmented batches, or as at inference."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from torch import nn
from torch.nn.functional import one_hot

from hyps_bids.errors import BadData, MissingInput
from hyps_bids.imaging.intensities import scale
from hyps_bids.imaging.roi import middle
from hyps_bids.networks.cards import GRID
from hyps_bids.pretraining.label_maps import BASE_CLASSES
from hyps_bids.training import augment
from hyps_bids.training.contrasts import ContrastSettings, random_contrasts
from hyps_bids.training.normalize import standardize

#: Shape of a crop: what the network sees and 4 mm around it, for augmentation.
FRAME = tuple(side + 8 for side in GRID)

_KINDS = {
    **dict.fromkeys(("ventricles", "cerebrospinal fluid"), 0),
    **dict.fromkeys(("cerebral white matter", "cerebellar white matter", "pallidum"), 2),
    **dict.fromkeys(("thalamus", "putamen", "brainstem", "ventral DC and chiasm"), 3),
}
#: Kind of each class of the base, as :func:`hyps_bids.training.contrasts.random_contrasts` needs.
TISSUE_KINDS = tuple(_KINDS.get(name, 1) for name in BASE_CLASSES)


@dataclass(frozen=True)
class Crops:
    """Crops around one hippocampus each, left-oriented, centered in a common frame.

    Tensors have shape ``(n, 1, x, y, z)``. `ids` are file names without extension, `images` raw
    intensities scaled to unit variance and zero outside, `inside` is True where the file had
    voxels, `labels` are integer classes, 0 the background, and `tissues` are the tissues of
    :func:`find_tissues`, if these are known.
    """

    ids: tuple[str, ...]
    images: torch.Tensor
    inside: torch.Tensor
    labels: torch.Tensor
    tissues: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def select(self, keep: Callable[[str], bool]) -> Crops:
        """Return the crops whose id fulfills a condition."""
        index = [i for i, name in enumerate(self.ids) if keep(name)]
        ids = tuple(self.ids[i] for i in index)
        tissues = None if self.tissues is None else self.tissues[index]
        return Crops(ids, self.images[index], self.inside[index], self.labels[index], tissues)

    def to(self, device: torch.device) -> Crops:
        """Return the crops on a device."""
        tissues = None if self.tissues is None else self.tissues.to(device)
        images, inside = self.images.to(device), self.inside.to(device)
        return Crops(self.ids, images, inside, self.labels.to(device), tissues)

    def digest(self) -> str:
        """Return a SHA-256 sum of names and content."""
        digest = hashlib.sha256("\n".join(self.ids).encode())
        for tensor in (self.images, self.inside, self.labels):
            digest.update(str(tuple(tensor.shape)).encode())
            digest.update(tensor.cpu().contiguous().numpy().data)
        return digest.hexdigest()


def load_crops(images: Path, labels: Path) -> Crops:
    """Read pairs of NIfTI crops of the same file name from two folders.

    The folders hold 1 mm crops in left orientation, and their integer label images. The crops
    come in order of name.

    Raises
    ------
    MissingInput
        If the images' folder holds no NIfTI file, or an image has no label image.
    BadData
        If shapes differ, a crop is not finite, or it has no label at all.
    """
    paths = sorted(p for p in images.glob("*.nii*") if not p.name.startswith("."))
    if not paths:
        raise MissingInput(f"{images}: there are no NIfTI files in this folder", code="no-crops")
    columns = zip(*(_load_pair(path, labels / path.name) for path in paths), strict=True)
    values, inside, classes = (torch.from_numpy(np.stack(arrays))[:, None] for arrays in columns)
    ids = tuple(path.name.split(".")[0] for path in paths)
    return Crops(ids, values.float(), inside.bool(), classes)


def augmented_batch(
    crops: Crops,
    size: int,
    classes: int,
    generator: torch.Generator,
    *,
    strength: float = 1.0,
    contrasts: ContrastSettings | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw crops and deform them, vary their field of view, contrast, resolution and noise.

    The box that the network sees varies in size and place: an adapter that never saw other boxes
    than its crops loses up to five Dice points on larger ones.

    `strength`, in [0, 1], is a factor of all ranges but those of the box; `classes` counts the
    background. With `contrasts`, some images get another contrast; the crops' tissues must then be
    known. Inputs (standardized images) and targets have shape ``(size, 1, *GRID)``.
    """
    device = generator.device
    index = torch.randint(len(crops), (size,), generator=generator, device=device)
    images = crops.images[index]
    changed = torch.zeros(size, dtype=torch.bool, device=device)
    if contrasts is not None and crops.tissues is not None:
        kinds = torch.tensor(TISSUE_KINDS, device=device)
        tissues = crops.tissues[index].long()
        images, changed = random_contrasts(images, tissues, kinds, contrasts, generator)
    deformation = augment.Deformation(
        rotation=15 * strength,
        scaling=0.15 * strength,
        shearing=0.05 * strength,
        elastic=1.5 * strength,
    )
    offsets = augment.random_sampling_grid(size, GRID, generator, deformation)
    labels = one_hot(crops.labels[index, 0], classes).movedim(-1, 1).float()
    stack = torch.cat((images, crops.inside[index].float(), labels), dim=1)
    moved = augment.sample(stack, offsets)
    image, targets = moved[:, :1], moved[:, 2:].argmax(dim=1, keepdim=True)
    smallest = [side - 10 for side in GRID]
    inside = (moved[:, 1:2] > 0.5) & augment.random_box(size, GRID, smallest, 3.0, generator)
    image = augment.random_gamma(image, 0.3 * strength, generator)
    image = augment.random_bias_field(image, 0.3 * strength, 20, generator)
    image = augment.random_resolution(image, 2.5, 0.3 * strength, generator)
    if contrasts is not None and changed.any():
        image[changed] = augment.random_resolution(
            image[changed], contrasts.thickest, contrasts.thick_probability, generator
        )
    image = standardize(image, inside)
    noise = torch.randn(image.shape, generator=generator, device=device)
    level = augment.uniform((size, 1, 1, 1, 1), 0, 0.25 * strength, generator)
    return standardize(image + level * noise, inside), targets


@torch.inference_mode()
def find_tissues(crops: Crops, base: nn.Module) -> Crops:
    """Let the pre-trained base name the tissue of each voxel, and add these to the crops.

    The tissues are indices in the base's classes; labeled voxels are hippocampus.
    """
    tissues = torch.zeros_like(crops.labels, dtype=torch.uint8)
    cut = middle(crops.images.shape[2:], GRID)
    for start in range(0, len(crops), 4):
        part = slice(start, start + 4)
        inputs, _ = plain_batch(crops, part)
        tissues[(part, slice(None), *cut)] = base(inputs).argmax(dim=1, keepdim=True).byte()
    tissues[crops.labels > 0] = BASE_CLASSES.index("hippocampus")
    return replace(crops, tissues=tissues)


def plain_batch(crops: Crops, index: slice) -> tuple[torch.Tensor, torch.Tensor]:
    """Return crops as at inference: centered in the grid, standardized, not augmented."""
    part = (index, slice(None), *middle(crops.images.shape[2:], GRID))
    return standardize(crops.images[part], crops.inside[part]), crops.labels[part]


def _load_pair(path: Path, partner: Path) -> list[np.ndarray]:
    """Read an image and its labels; return values, field of view and labels in the frame."""
    if not partner.is_file():
        raise MissingInput(f"{partner}: this label image of {path} is missing", code="no-labels")
    image = nib.load(path).get_fdata(dtype=np.float32)
    label = np.asarray(nib.load(partner).dataobj).round().astype(np.int64)
    if image.shape != label.shape or image.ndim != 3:
        raise BadData(
            f"{partner}: the labels have shape {label.shape}, the image {image.shape}; both must "
            "be volumes of the same shape",
            code="crop-shape",
        )
    if not np.isfinite(image).all() or not label.any():
        raise BadData(
            f"{path}: the image has values that are not finite, or nothing is labeled",
            code="crop-unusable",
        )
    image = scale(image)
    scaled = (image - image.mean()) / max(float(image.std()), 1e-6)
    inside = np.ones(image.shape, dtype=np.int64)
    return [_center(array, FRAME) for array in (scaled, inside, label)]


def _center(array: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Center an array in another shape, cutting or padding with zeros."""
    missing = np.array(shape) - array.shape
    before = missing // 2
    padded = np.pad(array, np.maximum(0, np.stack((before, missing - before), axis=1)))
    start = np.maximum(0, -before)
    cut = padded[tuple(slice(i, i + side) for i, side in zip(start, shape, strict=True))]
    # The order of the axes in memory changes rounding errors.
    return np.ascontiguousarray(cut)
