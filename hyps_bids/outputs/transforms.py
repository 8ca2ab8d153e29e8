"""Transforms between spaces, in the text format of ITK."""

from __future__ import annotations

import numpy as np

#: World coordinates of ITK and DICOM are LPS, ours are RAS; the same matrix turns both ways.
RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def itk_transform(matrix: np.ndarray) -> str:
    """Write a transform of images as ITK does.

    Parameters
    ----------
    matrix : numpy.ndarray
        From the world of the images to that of the result (RAS, mm), shape (4, 4). ITK stores the
        opposite: from the points of the result to those of the images, in LPS.

    Returns
    -------
    str
        Content of a text file.
    """
    back = RAS_TO_LPS @ np.linalg.inv(matrix) @ RAS_TO_LPS
    numbers = " ".join(repr(float(x)) for x in (*back[:3, :3].ravel(), *back[:3, 3]))
    return (
        "#Insight Transform File V1.0\n"
        "#Transform 0\n"
        "Transform: AffineTransform_double_3_3\n"
        f"Parameters: {numbers}\n"
        "FixedParameters: 0 0 0\n"
    )
