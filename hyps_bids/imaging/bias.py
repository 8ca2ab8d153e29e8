"""Bias field correction."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from nibabel.affines import voxel_sizes

from hyps_bids.imaging.conform import ConformedImage

#: Factor by which an image is shrunk to estimate the field, at most.
_SHRINK = 4


def correct_bias(image: ConformedImage, threads: int = 1) -> ConformedImage:
    """Correct the bias field with N4.

    The field is estimated on a shrunk image, above Otsu's threshold, and divided out at full
    resolution.

    Parameters
    ----------
    image : ConformedImage
        The image to correct.
    threads : int
        Number of CPU threads.

    References
    ----------
    Tustison et al. 2010, N4ITK, https://doi.org/10.1109/TMI.2010.2046908
    """
    # Few runs need it.
    import SimpleITK as sitk

    # N4 takes logarithms, so intensities must not be negative.
    positive = image.data - image.data.min()
    volume = sitk.GetImageFromArray(positive.astype(np.float32))
    # SimpleITK counts axes in reverse.
    volume.SetSpacing([float(size) for size in voxel_sizes(image.affine)[::-1]])
    factors = [max(1, min(_SHRINK, size // 16)) for size in volume.GetSize()]
    small = sitk.Shrink(volume, factors)
    mask = sitk.OtsuThreshold(small, 0, 1, 200)
    corrector = sitk.N4BiasFieldCorrectionImageFilter()
    corrector.SetNumberOfThreads(threads)
    corrector.SetMaximumNumberOfIterations([30, 30, 20])
    corrector.Execute(small, mask)
    field = sitk.GetArrayFromImage(corrector.GetLogBiasFieldAsImage(volume))
    return replace(image, data=(positive / np.exp(field)).astype(np.float32))
