"""Read NIfTI and Analyze images, whose orientation is either stated or assumed."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine, from_matvec
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from hyps_bids.errors import BadData, MissingInput, UsageError

#: Nominal center of a crop around a left hippocampus, mm: about its place in MNI space.
CROP_CENTER = (-26.0, -22.0, -14.0)
#: Orientation that is assumed for files that state none, as in nibabel and SPM.
ANALYZE = "LAS"
_AXES = {letter: pair for pair in ("LR", "PA", "IS") for letter in pair}
_UNREADABLE = (ImageFileError, HeaderDataError, OSError, EOFError, zlib.error, ValueError)
#: Mm between corresponding corners of two grids that are the same.
_TOLERANCE = 1e-2


@dataclass(frozen=True)
class SourceImage:
    """One volume of a NIfTI or Analyze file, whose data are not yet read."""

    path: Path
    image: nib.analyze.AnalyzeImage
    #: Voxel to world (RAS, mm), shape (4, 4)
    affine: np.ndarray
    #: The file itself does not state its orientation.
    assumed: bool

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of the volume."""
        return self.image.shape[:3]

    def data(self, *, scaled: bool = True) -> np.ndarray:
        """Read the voxels, with the scale factor of the file or as they are stored."""
        proxy = self.image.dataobj
        try:
            stored = np.asanyarray(proxy) if scaled else proxy.get_unscaled()
        except _UNREADABLE as error:
            raise BadData(
                f"{self.path}: the file is truncated or damaged ({error}). Fetch it again.",
                code="image-damaged",
            ) from error
        return np.asarray(stored).reshape(self.shape)


def check_orientation(codes: str) -> str:
    """Check the letters of an orientation: one each of L or R, A or P, S or I, in any order.

    Examples
    --------
    >>> check_orientation("las")
    'LAS'
    """
    upper = codes.upper()
    if sorted(_AXES.get(letter, letter) for letter in upper) != sorted(set(_AXES.values())):
        raise UsageError(
            f"orientation {codes}: write where the three voxel axes point to, such as LAS or RPI.",
            code="orientation-invalid",
        )
    return upper


def read_image(path: Path, orientation: str = ANALYZE) -> SourceImage:
    """Open a file that holds one volume: ``.nii``, ``.nii.gz``, ``.hdr`` or ``.img``.

    `orientation` says where the voxel axes point to in files that do not state it: Analyze files,
    and NIfTI files whose ``sform_code`` and ``qform_code`` are zero.
    """
    if not path.is_file():
        raise MissingInput(f"{path}: there is no such file.", code="image-missing")
    try:
        image = nib.load(path)
    except _UNREADABLE as error:
        raise BadData(
            f"{path}: the image cannot be read ({error}). Convert it to .nii.gz.",
            code="image-unreadable",
        ) from error
    if not isinstance(image, nib.analyze.AnalyzeImage):
        raise BadData(
            f"{path}: the image is neither NIfTI nor Analyze. Convert it to .nii.gz.",
            code="image-format",
        )
    if len(image.shape) < 3 or any(extra != 1 for extra in image.shape[3:]):
        raise BadData(
            f"{path}: the shape {image.shape} is not one 3-D volume. Split it or pick one.",
            code="image-not-3d",
        )
    header = image.header
    stated = isinstance(header, nib.Nifti1Header) and (
        int(header["sform_code"]) > 0 or int(header["qform_code"]) > 0
    )
    affine = image.affine
    if not stated:
        affine = assumed_affine(image.shape[:3], header.get_zooms()[:3], orientation)
    affine = np.asarray(affine, dtype=np.float64)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine)) < 1e-9:
        raise BadData(
            f"{path}: the transform or voxel size is not valid. Correct the header.",
            code="affine-invalid",
        )
    return SourceImage(path, image, affine, not stated)


def assumed_affine(
    shape: tuple[int, ...], zooms: tuple[float, ...], orientation: str
) -> np.ndarray:
    """Make the affine of an image that does not state its place: its center is the origin.

    Examples
    --------
    >>> assumed_affine((11, 11, 11), (1.0, 1.0, 2.0), "LAS").astype(int).tolist()
    [[-1, 0, 0, 5], [0, 1, 0, -5], [0, 0, 2, -10], [0, 0, 0, 1]]
    """
    world, signs = nib.orientations.axcodes2ornt(orientation).T
    matrix = np.zeros((3, 3))
    matrix[world.astype(int), range(3)] = signs * zooms
    return from_matvec(matrix, -matrix @ ((np.asarray(shape) - 1) / 2))


def crop_affine(shape: tuple[int, ...], zooms: tuple[float, ...], hemisphere: str) -> np.ndarray:
    """Make the affine of a crop around one hippocampus that is stored in left orientation.

    The voxels stay as they are. The mirroring of a right hippocampus is undone by an affine whose
    first axis points to the left, so that left crops lie at negative and right ones at positive x.
    The position itself is nominal.

    Examples
    --------
    >>> crop_affine((5, 5, 5), (1.0, 1.0, 1.0), "L")[0].tolist()
    [1.0, 0.0, 0.0, -28.0]
    >>> crop_affine((5, 5, 5), (1.0, 1.0, 1.0), "R")[0].tolist()
    [-1.0, 0.0, 0.0, 28.0]
    """
    affine = assumed_affine(shape, zooms, "RAS")
    affine[:3, 3] += CROP_CENTER
    if hemisphere == "R":
        affine[0] *= -1
    # Adding zero removes negative zeros, which would be stored in the header.
    return affine + 0.0


def on_grid_of(label: SourceImage, image: SourceImage) -> np.ndarray:
    """Read a label image, with its axes ordered and flipped like those of the image."""
    change = nib.orientations.ornt_transform(
        nib.io_orientation(label.affine), nib.io_orientation(image.affine)
    )
    data = nib.apply_orientation(label.data(), change)
    affine = label.affine @ nib.orientations.inv_ornt_aff(change, label.shape)
    corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(image.shape) - 1)
    gap = apply_affine(affine, corners) - apply_affine(image.affine, corners)
    if data.shape != image.shape or np.abs(gap).max() > _TOLERANCE:
        how = f"its corners are up to {np.linalg.norm(gap, axis=1).max():.2f} mm away"
        if data.shape != image.shape:
            how = f"shape {label.shape} instead of {image.shape}"
        hint = ""
        if label.assumed != image.assumed:
            which = label if label.assumed else image
            hint = f"; {which.path.name} does not state its orientation, the other does"
        raise BadData(
            f"{label.path}: the grid differs from that of {image.path.name} ({how}{hint}). "
            "Resample the labels, or correct the header.",
            code="grids-differ",
        )
    return data


def to_nifti(source: SourceImage, affine: np.ndarray) -> nib.Nifti1Image:
    """Make a 3-D NIfTI image of the same data type, values and scale factors."""
    image = new_nifti(source.data(scaled=False), affine)
    slope, inter = source.image.dataobj.slope, source.image.dataobj.inter
    if (slope, inter) != (1, 0):
        # With the factors set, nibabel writes the stored values untouched.
        image.header.set_slope_inter(slope, inter)
    return image


def new_nifti(data: np.ndarray, affine: np.ndarray) -> nib.Nifti1Image:
    """Make a NIfTI image with the affine as sform and qform, in mm."""
    image = nib.Nifti1Image(data, affine)
    image.header.set_xyzt_units("mm")
    for set_transform in (image.set_sform, image.set_qform):
        set_transform(affine, code="aligned")
    return image
