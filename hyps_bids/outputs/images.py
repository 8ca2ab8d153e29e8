"""Readers of the images that we have written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.arrayproxy import ArrayProxy
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from hyps_bids.errors import BadData, MissingInput
from hyps_bids.outputs.compression import DAMAGED, open_compressed

_UNREADABLE = (ImageFileError, HeaderDataError, OSError, EOFError, *DAMAGED, ValueError)


#: Part of an image, one slice per axis.
Region = tuple[slice, slice, slice]


def read_part(image: nib.Nifti1Image, region: Region) -> np.ndarray:
    """Read a part of an image with a fourth axis, which comes first in the result, float32."""
    stored = image.dataobj
    # Without the slope, slicing gives bytes. Whole planes lie together in the file.
    proxy = ArrayProxy(stored.file_like, (stored.shape, stored.dtype, stored.offset))
    planes = proxy[:, :, region[2]]
    part: np.ndarray = np.moveaxis(planes[region[:2]], -1, 0).astype(np.float32)
    return part * np.float32(stored.slope) + np.float32(stored.inter)


@contextmanager
def opened(path: Path) -> Iterator[nib.Nifti1Image]:
    """Open a derivative; failures to read it within the body are reported too."""
    try:
        # nibabel would use zlib, which takes several times longer.
        with open_compressed(path) as stream:
            yield nib.Nifti1Image.from_stream(stream)
    except FileNotFoundError as error:
        raise MissingInput(
            f"{path}: no such file; run the participant level again", code="derivative-missing"
        ) from error
    except _UNREADABLE as error:
        raise BadData(
            f"{path}: damaged ({error}); run the participant level again", code="derivative-damaged"
        ) from error
