"""Read a T1w image, check it, and bring it to a canonical form.

What cannot be processed is refused here, with the file and the remedy in the message.
"""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from hyps_bids.errors import BadData, MissingInput

__all__ = ["ConformedImage", "conform", "restore_orientation"]

#: mm, voxels and mm
VOXEL_RANGE = (0.2, 6.0)
SMALLEST_SIDE = 8
SMALLEST_EXTENT = 20.0
#: a fraction of voxels that are not finite above this is not a masked background any more
NONFINITE_LIMIT = 0.9
#: mm between the same voxel placed by qform and sform
TRANSFORM_TOLERANCE = 1.0
#: what the libraries raise on files that are not what they claim to be
_UNREADABLE = (ImageFileError, HeaderDataError, OSError, EOFError, zlib.error, ValueError)


@dataclass(frozen=True)
class ConformedImage:
    """A checked image with its axes nearest to right, anterior, superior.

    Attributes
    ----------
    data : numpy.ndarray
        Finite float32 intensities, shape ``(x, y, z)``.
    affine : numpy.ndarray
        Voxel to world (RAS, mm), shape (4, 4).
    native_shape : tuple of int
        Spatial shape in the file.
    orientation : numpy.ndarray
        From the file's axes to canonical ones, as in :mod:`nibabel.orientations`.
    remarks : tuple of str
        What is unusual about the file; shown in the QC table.
    """

    data: np.ndarray
    affine: np.ndarray
    native_shape: tuple[int, int, int]
    orientation: np.ndarray
    remarks: tuple[str, ...] = field(default=())


def conform(path: Path) -> ConformedImage:
    """Read and check an image.

    Parameters
    ----------
    path : Path
        NIfTI file, 3-D, or 4-D with one volume.

    Returns
    -------
    ConformedImage
        Canonical orientation, float32, no value that is not finite.

    Raises
    ------
    MissingInput
        If there is no such file, or it is a dangling link.
    BadData
        If the file is unreadable or truncated, is not one volume, has absurd voxels, no valid
        transform, or no content.
    """
    image = _load(path)
    shape = tuple(side for side in image.shape[:3])
    if len(image.shape) < 3 or any(extra != 1 for extra in image.shape[3:]):
        raise BadData(f"{path}: shape {image.shape} is not one 3-D volume; split it or pick one")
    remarks: list[str] = []
    affine = _affine(image, path, remarks)
    zooms = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    if not ((zooms >= VOXEL_RANGE[0]) & (zooms <= VOXEL_RANGE[1])).all():
        raise BadData(
            f"{path}: voxels of {_mm(zooms)} mm are outside {VOXEL_RANGE[0]}–{VOXEL_RANGE[1]} mm; "
            "check pixdim, the affine and the spatial unit"
        )
    if min(shape) < SMALLEST_SIDE or (zooms * shape).min() < SMALLEST_EXTENT:
        raise BadData(f"{path}: {shape} voxels of {_mm(zooms)} mm are too few to hold a brain")
    data = _read(image, path).reshape(shape)
    data = _finite(data, path, remarks)
    if data.min() == data.max():
        raise BadData(f"{path}: all voxels have the value {data.flat[0]:g}; the image is empty")
    orientation = nib.io_orientation(affine)
    canonical = np.ascontiguousarray(nib.apply_orientation(data, orientation))
    affine = affine @ nib.orientations.inv_ornt_aff(orientation, shape)
    return ConformedImage(canonical, affine, shape, orientation, tuple(remarks))


def restore_orientation(data: np.ndarray, orientation: np.ndarray) -> np.ndarray:
    """Bring canonical data back to the file's axes.

    Parameters
    ----------
    data : numpy.ndarray
        First three axes canonical; more may follow.
    orientation : numpy.ndarray
        As in :class:`ConformedImage`.

    Examples
    --------
    >>> ornt = nib.orientations.axcodes2ornt("PIR")
    >>> data = np.arange(24).reshape(2, 3, 4)
    >>> there = nib.apply_orientation(data, ornt)
    >>> bool((restore_orientation(there, ornt) == data).all())
    True
    """
    canonical = nib.orientations.axcodes2ornt("RAS")
    return nib.apply_orientation(data, nib.orientations.ornt_transform(canonical, orientation))


def _load(path: Path) -> nib.Nifti1Image:
    if not path.exists():
        hint = "; it is a link to content that is not here: run 'datalad get'"
        raise MissingInput(f"{path}: no such file{hint if path.is_symlink() else ''}")
    try:
        return nib.load(path)
    except _UNREADABLE as error:
        raise BadData(
            f"{path}: cannot be read as NIfTI ({error}); fetch or convert it again"
        ) from error


def _read(image: nib.Nifti1Image, path: Path) -> np.ndarray:
    if image.get_data_dtype().kind not in "iuf":
        raise BadData(f"{path}: data of type {image.get_data_dtype()} are not gray values")
    try:
        # double precision only where the file has it: it costs time and memory
        wide = image.get_data_dtype().itemsize >= 8 or image.get_data_dtype() == np.uint32
        dtype = np.float64 if wide else np.float32
        if not (path.suffix == ".gz" and isinstance(image, nib.Nifti1Image)):
            return np.asanyarray(image.dataobj, dtype=dtype)
        # nibabel stops at the last voxel: only reading on to the end checks the checksum
        with gzip.open(path) as stream:
            data = np.asanyarray(type(image).from_stream(stream).dataobj, dtype=dtype)
            while stream.read(2**20):
                pass
        return data
    except _UNREADABLE as error:
        raise BadData(
            f"{path}: truncated or damaged ({error}); fetch or convert it again"
        ) from error


def _affine(image: nib.Nifti1Image, path: Path, remarks: list[str]) -> np.ndarray:
    """Choose the transform: sform, else qform, as the NIfTI standard's users do."""
    header = image.header
    if not isinstance(header, nib.Nifti1Header):
        raise BadData(f"{path}: is not NIfTI; convert it to .nii.gz")
    sform, qform = _transform(header, "sform"), _transform(header, "qform")
    usable = [a for a in (sform, qform) if a is not None]
    if not usable:
        codes = f"codes {int(header['sform_code'])} and {int(header['qform_code'])}"
        raise BadData(
            f"{path}: neither sform nor qform is valid ({codes}), so left and right are unknown; "
            "set the transform when converting"
        )
    for name, transform in (("sform", sform), ("qform", qform)):
        if transform is None and header[f"{name}_code"] > 0:
            remarks.append(f"{name} is not valid and was ignored")
    if sform is not None and qform is not None:
        ends = np.array([[0, 0, 0], [side - 1 for side in image.shape[:3]]])
        gap = np.linalg.norm(apply_affine(sform, ends) - apply_affine(qform, ends), axis=1).max()
        if np.sign(np.linalg.det(sform)) != np.sign(np.linalg.det(qform)):
            raise BadData(
                f"{path}: qform and sform contradict each other about left and right; make them "
                "agree, for example with 'fslorient -copysform2qform'"
            )
        if gap > TRANSFORM_TOLERANCE:
            remarks.append(f"qform and sform differ by {gap:.1f} mm; sform used")
    return usable[0].astype(np.float64)


def _transform(header: nib.Nifti1Header, kind: str) -> np.ndarray | None:
    """Read a transform; None if its code is 0 or it cannot be one."""
    try:
        affine, _ = getattr(header, f"get_{kind}")(coded=True)
    except (ValueError, HeaderDataError):
        return None
    return affine if affine is not None and _is_regular(affine) else None


def _is_regular(affine: np.ndarray) -> bool:
    if not np.isfinite(affine).all():
        return False
    directions = affine[:3, :3]
    lengths = np.linalg.norm(directions, axis=0)
    # a cosine triple product near zero: two axes point the same way
    return bool(lengths.min() > 0 and abs(np.linalg.det(directions / lengths)) > 0.1)


def _finite(data: np.ndarray, path: Path, remarks: list[str]) -> np.ndarray:
    finite = np.isfinite(data)
    if not finite.all():
        fraction = 1 - finite.mean()
        if fraction > NONFINITE_LIMIT:
            raise BadData(f"{path}: {fraction:.0%} of the voxels are NaN or infinite")
        remarks.append(f"{fraction:.2%} of voxels not finite, taken as background")
        background = np.clip(0, data[finite].min(), data[finite].max())
        data = np.where(finite, data, background)
    # float32 overflows above 3e38, underflows below 1e-38 and loses contrast on a large offset
    low, high = float(data.min()), float(data.max())
    largest = max(abs(low), abs(high))
    if low < high and (largest > 1e30 or largest < 1e-30 or high / largest - low / largest < 1e-3):
        data = data.astype(np.float64) / largest
        data = (data - data.min()) / np.ptp(data)
    return data.astype(np.float32)


def _mm(values: np.ndarray) -> str:
    return " × ".join(f"{value:.3g}" for value in values)
