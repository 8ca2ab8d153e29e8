"""Where an image comes from: a file, a folder of DICOM files, or memory."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np

from hyps_bids.errors import BadData
from hyps_bids.imaging.conform import UNREADABLE, load_nifti

#: Ends of the names of files that are used as they are.
NIFTI_EXTENSIONS = (".nii.gz", ".nii")
_MGH_EXTENSIONS = (".mgz", ".mgh")
#: Key of an origin: sum of the absolute path.
PATH_SUM = "PathSum"
#: Stands for an image in memory in messages and in names.
_IN_MEMORY = Path("image")


@dataclass(frozen=True)
class Source:
    """An image to segment.

    Attributes
    ----------
    name : Path
        The file or the folder; for an image in memory, ``image``.
    image : nibabel.Nifti1Image
        The image; its voxels may not have been read yet.
    path : Path or None
        The NIfTI file, if it is one.
    origin : mapping of str to str
        What tells the image from others of the same name, as sums from which no name can be read:
        paths and series may name a patient. Empty for an image in memory.
    """

    name: Path
    image: nib.Nifti1Image
    path: Path | None = None
    origin: Mapping[str, str] = field(default_factory=dict)


def sum_of(text: str) -> str:
    """Return a SHA-256 sum that recognizes a text, but does not tell it."""
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def read_source(given: str | os.PathLike[str] | nib.Nifti1Image) -> Source:
    """Open an image of any kind that we can read.

    Parameters
    ----------
    given : path or nibabel image
        A NIfTI or MGH/MGZ file, a folder of DICOM files, one of these files, or an image in
        memory, which is taken as :func:`nibabel.save` would write it.

    Raises
    ------
    TypeError
        If it is neither a path nor an image.
    MissingInput, BadData
        If there is no such image, or it cannot be read.
    """
    if isinstance(given, (str, os.PathLike)):
        return _read_path(Path(given).expanduser())
    if not isinstance(given, nib.spatialimages.SpatialImage):
        raise TypeError(f"an image must be a path or a nibabel image, not {type(given).__name__}")
    path = _file_of(given)
    return _read_path(path) if path else Source(_IN_MEMORY, _as_nifti(given, _IN_MEMORY))


def _read_path(path: Path) -> Source:
    from hyps_bids.imaging.dicom import is_dicom, read_dicom

    origin = {PATH_SUM: sum_of(str(path.absolute()))}
    if path.is_dir() or is_dicom(path):
        series = read_dicom(path)
        origin["SeriesSum"] = sum_of(series.uid)
        return Source(path, _as_nifti(series.image, path), origin=origin)
    image = load_nifti(path)
    if path.name.casefold().endswith(NIFTI_EXTENSIONS):
        return Source(path, image, path, origin)
    return Source(path, _as_nifti(image, path), origin=origin)


def _file_of(image: nib.spatialimages.SpatialImage) -> Path | None:
    """Return the file that an image was loaded from, if it is still the same."""
    name = image.get_filename()
    if not name or not nib.is_proxy(image.dataobj):
        return None
    try:
        stored = nib.load(name)
    except UNREADABLE:
        return None
    same = stored.header == image.header and np.array_equal(stored.affine, image.affine)
    return Path(name) if same else None


def _as_nifti(image: nib.spatialimages.SpatialImage, name: Path) -> nib.Nifti1Image:
    """Make a NIfTI image of an image, as if it had been saved and loaded."""
    if not isinstance(image, (nib.Nifti1Pair, nib.MGHImage)):
        raise BadData(
            f"{name}: images of the type {type(image).__name__} do not say for certain where left "
            "and right are; convert it to NIfTI",
            code="image-type-unknown",
        )
    try:
        if isinstance(image, nib.MGHImage):
            if not int(image.header["goodRASFlag"]):
                raise BadData(
                    f"{name}: the file does not say where its voxels are, so left and right are "
                    "unknown; set the transform when converting",
                    code="no-valid-transform",
                )
            image, affine = (
                nib.Nifti1Image(np.asanyarray(image.dataobj), image.affine),
                image.affine,
            )
            image.set_qform(affine, code=1)
            image.set_sform(affine, code=1)
            image.header.set_xyzt_units("mm")
        elif not isinstance(image, nib.Nifti1Image):
            data = np.asanyarray(image.dataobj)
            image = nib.Nifti1Image(data, image.affine, nib.Nifti1Header.from_header(image.header))
        return type(image).from_bytes(image.to_bytes())
    except UNREADABLE as error:
        raise BadData(
            f"{name}: the image cannot be read ({error}); fetch or convert it again",
            code="damaged-image",
        ) from error
