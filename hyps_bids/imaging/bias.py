"""Bias field correction."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk
from nibabel.affines import voxel_sizes

__all__ = ["correct_bias"]


def correct_bias(
    data: np.ndarray, affine: np.ndarray, *, shrink: int = 4, threads: int = 1
) -> np.ndarray:
    """Correct the bias field with N4.

    The field is estimated on a shrunk image, above Otsu's threshold, and divided out at full
    resolution.

    Parameters
    ----------
    data : numpy.ndarray
        Intensities, shape ``(x, y, z)``.
    affine : numpy.ndarray
        Voxel-to-world transform; only the voxel sizes matter.
    shrink : int
        Factor by which the image is shrunk to estimate the field.
    threads : int
        Number of CPU threads.

    Returns
    -------
    numpy.ndarray
        Corrected intensities, float32, same shape.

    References
    ----------
    Tustison et al. 2010, N4ITK, https://doi.org/10.1109/TMI.2010.2046908
    """
    # N4 takes logarithms, so intensities must not be negative.
    positive = data - data.min()
    image = sitk.GetImageFromArray(positive.astype(np.float32))
    # SimpleITK counts axes in reverse.
    image.SetSpacing([float(size) for size in voxel_sizes(affine)[::-1]])
    factors = [max(1, min(shrink, size // 16)) for size in image.GetSize()]
    small = sitk.Shrink(image, factors)
    mask = sitk.OtsuThreshold(small, 0, 1, 200)
    corrector = sitk.N4BiasFieldCorrectionImageFilter()
    corrector.SetNumberOfThreads(threads)
    corrector.SetMaximumNumberOfIterations([30, 30, 20])
    corrector.Execute(small, mask)
    field = sitk.GetArrayFromImage(corrector.GetLogBiasFieldAsImage(image))
    return (positive / np.exp(field)).astype(np.float32)
