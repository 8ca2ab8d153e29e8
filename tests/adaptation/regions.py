"""Parts of images around what is labeled."""

from __future__ import annotations

import nibabel as nib
import numpy as np


def around(data: np.ndarray, margin: int) -> tuple[slice, ...]:
    """Box around the voxels that are not zero."""
    index = np.argwhere(data)
    low, high = index.min(axis=0) - margin, index.max(axis=0) + margin + 1
    return tuple(slice(a, b) for a, b in zip(low, high, strict=True))


def turned(image: nib.Nifti1Image, axes: str) -> nib.Nifti1Image:
    """The same image with its voxels stored in another order."""
    ornt = nib.orientations.axcodes2ornt(axes)
    now = nib.io_orientation(image.affine)
    return image.as_reoriented(nib.orientations.ornt_transform(now, ornt))
