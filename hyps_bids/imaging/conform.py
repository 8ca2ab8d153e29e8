"""Read an image, check it, and bring it to a canonical form.

Images that cannot be processed are refused here, with the file and the remedy in the message.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from hyps_bids.errors import BadData, MissingInput
from hyps_bids.imaging.content import refuse_other_content
from hyps_bids.imaging.geometry import read_geometry
from hyps_bids.imaging.intensities import make_finite, mend
from hyps_bids.outputs.compression import DAMAGED, open_compressed
from hyps_bids.outputs.quality import GEOMETRY

#: Accepted voxel sizes, mm.
VOXEL_RANGE = (0.2, 6.0)
#: Fewest voxels and smallest extent (mm) along an axis.
SMALLEST_SIDE = 8
SMALLEST_EXTENT = 20.0
#: What the libraries raise on files that are not what their names say.
UNREADABLE = (ImageFileError, HeaderDataError, OSError, EOFError, *DAMAGED, ValueError)


#: Start of the small text files that stand in for content → program, and how to fetch the content.
_POINTERS = {
    b"/annex/objects/": ("git-annex", "datalad get"),
    b"version https://git-lfs.github.com/": ("Git LFS", "git lfs pull --include"),
}


@dataclass(frozen=True)
class ConformedImage:
    """A checked image with its axes nearest to right, anterior, superior.

    Attributes
    ----------
    data : numpy.ndarray
        Finite intensities, float32, shape ``(x, y, z)``; its axes lie in memory in the order
        of the file, so that it may not be contiguous.
    affine : numpy.ndarray
        Voxel-to-world transform (RAS, mm), shape (4, 4).
    native_shape : tuple of int
        Spatial shape in the file.
    orientation : numpy.ndarray
        From the file's axes to canonical ones, as in :mod:`nibabel.orientations`.
    remarks : tuple of str
        What is unusual about the file; shown in the QC table.
    flags : tuple of str
        What makes the results doubtful, among the results' flags: ``geometry``.
    """

    data: np.ndarray
    affine: np.ndarray
    native_shape: tuple[int, int, int]
    orientation: np.ndarray
    remarks: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()


def conform(path: Path, *, is_label: bool = False) -> ConformedImage:
    """Read and check an image.

    Parameters
    ----------
    path : Path
        NIfTI file, 3-D, or 4-D with one volume.
    is_label : bool
        Whether values are labels, which must not be mended as gray values are.

    Returns
    -------
    ConformedImage
        The image in canonical orientation.

    Raises
    ------
    MissingInput
        If there is no such file, its content has not been fetched, or it may not be read.
    BadData
        If the file is unreadable or truncated, is not one volume, has absurd voxels, no valid
        transform or no content, or is computed tomography or a label map.
    """
    return conform_image(load_nifti(path), path, is_label=is_label)


def conform_image(image: nib.Nifti1Image, path: Path, *, is_label: bool = False) -> ConformedImage:
    """Check an image that was loaded from a file or from memory; see :func:`conform`.

    Parameters
    ----------
    image : nibabel.Nifti1Image
        The image, as loading it gave it: its header, as it was stored, is read again.
    path : Path
        Its name in messages.
    is_label : bool
        As in :func:`conform`.
    """
    if len(image.shape) < 3 or any(extra != 1 for extra in image.shape[3:]):
        raise BadData(
            f"{path}: the shape {image.shape} is not that of one 3-D volume; split the file or "
            "select one volume",
            code="not-one-volume",
        )
    shape = (int(image.shape[0]), int(image.shape[1]), int(image.shape[2]))
    geometry = read_geometry(image, path)
    _check_size(shape, geometry.affine, path)
    data, repairs = make_finite(_read(image, path).reshape(shape), path)
    if is_label:
        data = data.astype(np.float32, copy=False)
    else:
        refuse_other_content(data, path)
        data, mended = mend(data, _integer_step(image))
        repairs += mended
    if data.min() == data.max():
        raise BadData(
            f"{path}: all voxels have the value {data.flat[0]:g}, so the image is empty",
            code="empty-image",
        )
    orientation = nib.io_orientation(geometry.affine)
    # The order of axes in memory stays that of the file, as turning a whole image takes long.
    canonical = canonical_view(data, orientation)
    if min(canonical.strides) < 0:
        canonical = canonical.copy(order="K")
    affine = geometry.affine @ nib.orientations.inv_ornt_aff(orientation, shape)
    remarks = (*geometry.remarks, *repairs)
    flags = (GEOMETRY,) if geometry.contradictory else ()
    return ConformedImage(canonical, affine, shape, orientation, remarks, flags)


def canonical_view(data: np.ndarray, orientation: np.ndarray) -> np.ndarray:
    """Turn data in the order of a file's axes to canonical axes, without copying.

    Parameters
    ----------
    data : numpy.ndarray
        Array whose first three axes are those of the file; more may follow.
    orientation : numpy.ndarray
        Orientation of the file, as in :class:`ConformedImage`.

    Examples
    --------
    >>> data = np.zeros((2, 3, 4))
    >>> view = canonical_view(data, nib.orientations.axcodes2ornt("PIR"))
    >>> view.shape, np.shares_memory(view, data)
    ((4, 2, 3), True)
    """
    view: np.ndarray = nib.apply_orientation(data, orientation)
    return view


def restore_orientation(data: np.ndarray, orientation: np.ndarray) -> np.ndarray:
    """Bring canonical data back to the file's axes.

    Parameters
    ----------
    data : numpy.ndarray
        Array whose first three axes are canonical; more may follow.
    orientation : numpy.ndarray
        Orientation of the file, as in :class:`ConformedImage`.

    Examples
    --------
    >>> ornt = nib.orientations.axcodes2ornt("PIR")
    >>> data = np.arange(24).reshape(2, 3, 4)
    >>> there = nib.apply_orientation(data, ornt)
    >>> bool((restore_orientation(there, ornt) == data).all())
    True
    """
    canonical = nib.orientations.axcodes2ornt("RAS")
    turn = nib.orientations.ornt_transform(canonical, orientation)
    restored: np.ndarray = nib.apply_orientation(data, turn)
    return restored


def load_nifti(path: Path) -> nib.Nifti1Image:
    """Open an image without reading its voxels; see :func:`conform` for errors."""
    _refuse_absent(path)
    try:
        # An array that stays in its file would change with it.
        return nib.load(path, mmap=False)
    except UNREADABLE as error:
        raise BadData(
            f"{path}: cannot be read as NIfTI ({error}); fetch or convert it again",
            code="not-readable-nifti",
        ) from error


def _refuse_absent(path: Path) -> None:
    """Refuse a file without content, which no conversion would mend."""
    try:
        with path.open("rb") as stream:
            start = stream.read(len(max(_POINTERS, key=len)))
    except (FileNotFoundError, NotADirectoryError) as error:
        hint = f"; it links to content that is not here: run 'datalad get {path}'"
        raise MissingInput(
            f"{path}: no such file{hint if path.is_symlink() else ''}", code="image-missing"
        ) from error
    except IsADirectoryError:
        # The library says what is wrong with it.
        return
    except OSError as error:
        raise MissingInput(
            f"{path}: this user cannot read it ({error.strerror}); check its permissions and the "
            "disk",
            code="image-locked",
        ) from error
    for pointer, (program, remedy) in _POINTERS.items():
        if start.startswith(pointer):
            raise MissingInput(
                f"{path}: this is a pointer of {program}, whose content is not here: run "
                f"'{remedy} {path}'",
                code="image-not-fetched",
            )


def _check_size(shape: tuple[int, int, int], affine: np.ndarray, path: Path) -> None:
    sizes = voxel_sizes(affine)
    words = " × ".join(f"{size:.3g}" for size in sizes)
    if not ((sizes >= VOXEL_RANGE[0]) & (sizes <= VOXEL_RANGE[1])).all():
        raise BadData(
            f"{path}: voxels of {words} mm are outside {VOXEL_RANGE[0]}–{VOXEL_RANGE[1]} mm; "
            "check pixdim, the affine and the spatial unit",
            code="absurd-voxel-size",
        )
    if min(shape) < SMALLEST_SIDE or (sizes * shape).min() < SMALLEST_EXTENT:
        raise BadData(
            f"{path}: {shape} voxels of {words} mm are too few to hold a brain",
            code="image-too-small",
        )


def _read(image: nib.Nifti1Image, path: Path) -> np.ndarray:
    stored = image.get_data_dtype()
    if stored.kind not in "iuf":
        raise BadData(
            f"{path}: data of type {stored} are not gray values; convert them to numbers",
            code="not-gray-values",
        )
    # Double precision costs time and memory, so it is used only where the values need it.
    dtype = np.float64 if _needs_double(stored, image.dataobj.slope) else np.float32
    try:
        is_file = image.file_map["image"].filename is not None
        if not (is_file and path.suffix == ".gz" and isinstance(image, nib.Nifti1Image)):
            return np.asanyarray(image.dataobj, dtype=dtype)
        # nibabel stops at the last voxel; only reading on to the end verifies the checksum.
        with open_compressed(path) as stream:
            data = np.asanyarray(type(image).from_stream(stream).dataobj, dtype=dtype)
            while stream.read(2**20):
                pass
        return data
    except UNREADABLE as error:
        raise BadData(
            f"{path}: truncated or damaged ({error}); fetch or convert it again",
            code="damaged-image",
        ) from error


def _needs_double(stored: np.dtype, slope: float) -> bool:
    """Tell whether single precision loses values, or the contrast on a large offset."""
    integers = stored == np.uint32 or (stored == np.int32 and slope == 1)
    return bool(stored.itemsize >= 8 or integers or not 1e-20 < abs(slope or 1) < 1e20)


def _integer_step(image: nib.Nifti1Image) -> float | None:
    """Return the value of the integer 1 where overflow of 16 bits turns values negative."""
    if image.get_data_dtype() != np.int16 or image.dataobj.inter:
        return None
    return float(image.dataobj.slope) or None
