"""Where the voxels of a NIfTI file are: the transform to use, and what contradicts it.

A header states the size of a voxel up to three times: in ``pixdim`` (which the qform uses), in the
columns of the sform, and by its unit. Contradictions that change volumes or anatomy are flagged.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine
from nibabel.spatialimages import HeaderDataError

from hyps_bids.errors import BadData

#: Relative differences in length and in volume that rounding of pixdim or of the sform explains.
#: 0.868 mm written as 0.87 differ by 0.2 %.
LENGTH_TOLERANCE, VOLUME_TOLERANCE = 0.005, 0.01
#: Largest angle between the axes of qform and sform, degrees. Oblique slices and alignment to a
#: template explain smaller ones.
ANGLE_TOLERANCE = 30.0
#: Largest distance between the same voxel placed by qform and by sform without a remark, mm.
TRANSFORM_TOLERANCE = 1.0
#: Spatial units of NIfTI other than mm; 0 is unknown.
_UNITS = {1: "meters", 3: "micrometers"}


@dataclass(frozen=True)
class Geometry:
    """Where voxels are.

    Attributes
    ----------
    affine : numpy.ndarray
        Voxel-to-world transform (RAS, mm), shape (4, 4).
    remarks : tuple of str
        What is unusual, and each contradiction.
    contradictory : bool
        Whether sizes or directions of the voxels are in doubt.
    """

    affine: np.ndarray
    remarks: tuple[str, ...] = ()
    contradictory: bool = False


def read_geometry(image: nib.Nifti1Image, path: Path) -> Geometry:
    """Choose the sform, or else the qform, as is customary, and compare what the header says.

    Parameters
    ----------
    image : nibabel.Nifti1Image
        The image, loaded from a file.
    path : Path
        Its name in messages.

    Raises
    ------
    BadData
        If there is no valid transform, or left and right are in doubt.
    """
    header = image.header
    if not isinstance(header, nib.Nifti1Header):
        raise BadData(f"{path}: is not NIfTI; convert it to .nii.gz", code="not-nifti")
    stored = _stored_header(image)
    sizes = stored["pixdim"][1:4].astype(np.float64)
    transforms = {"sform": _transform(header, "sform"), "qform": _transform(header, "qform")}
    if not (np.isfinite(sizes) & (sizes != 0)).all():
        # nibabel takes 1 mm for a size of 0.
        transforms["qform"] = None
    usable = [name for name, transform in transforms.items() if transform is not None]
    if not usable:
        codes = f"codes {int(header['sform_code'])} and {int(header['qform_code'])}"
        words = " × ".join(f"{size:g}" for size in sizes)
        raise BadData(
            f"{path}: neither sform nor qform is valid ({codes}, pixdim {words}), so sizes, left "
            "and right are unknown; set the transform when converting",
            code="no-valid-transform",
        )
    remarks = [
        f"{name} is not valid and was ignored"
        for name, transform in transforms.items()
        if transform is None and header[f"{name}_code"] > 0
    ]
    affine = transforms[usable[0]]
    assert affine is not None
    doubts = [*_doubts_about_sizes(affine, sizes, usable), *_doubts_about_unit(stored)]
    if len(usable) == 2:
        qform = transforms["qform"]
        assert qform is not None
        turned, about = _compare(affine, qform, image.shape[:3], path)
        (doubts if turned else remarks).extend(about)
    return Geometry(affine.astype(np.float64), (*remarks, *doubts), bool(doubts))


def _stored_header(image: nib.Nifti1Image) -> nib.Nifti1Header:
    """Read the header as it is in the file; nibabel replaces sizes that are negative or 0."""
    holder = image.file_map.get("header") or image.file_map["image"]
    with holder.get_prepare_fileobj("rb") as stream:
        return type(image.header).from_fileobj(stream, check=False)


def _transform(header: nib.Nifti1Header, kind: str) -> np.ndarray | None:
    """Read a transform; None if its code is 0 or it cannot be a transform."""
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
    # If the triple product of the unit vectors is near zero, two axes point the same way.
    return bool(lengths.min() > 0 and abs(np.linalg.det(directions / lengths)) > 0.1)


def _doubts_about_sizes(affine: np.ndarray, sizes: np.ndarray, usable: list[str]) -> list[str]:
    """Compare the columns of the transform with pixdim, and with each other."""
    doubts = []
    columns = affine[:3, :3]
    lengths = np.linalg.norm(columns, axis=0)
    if (sizes < 0).any() and usable == ["qform"]:
        doubts.append("pixdim has negative sizes, which programs read differently; taken as such")
    if not (np.isfinite(sizes) & (sizes != 0)).all():
        return doubts + _shear(columns / lengths)
    # Between voxels of the right size, the transform is a rotation: all stretches are 1.
    stretch = np.linalg.svd(columns / np.abs(sizes), compute_uv=False)
    far = np.abs(lengths / np.abs(sizes) - 1).max()
    volume = stretch.prod() - 1
    if far > LENGTH_TOLERANCE or abs(volume) > VOLUME_TOLERANCE:
        there, stated = (" × ".join(f"{size:.4g}" for size in s) for s in (lengths, np.abs(sizes)))
        doubts.append(
            f"voxels of {there} mm in the {usable[0]}, but {stated} mm in pixdim: volumes differ "
            f"by {100 * volume:+.1f} %; {usable[0]} used"
        )
    return doubts + _shear(columns / lengths)


def _shear(directions: np.ndarray) -> list[str]:
    """Name the largest angle by which axes are not perpendicular."""
    cosines = np.abs(directions.T @ directions - np.eye(3)).max()
    if cosines <= 4 * LENGTH_TOLERANCE:
        return []
    angle = np.degrees(np.arccos(np.clip(cosines, 0, 1)))
    return [f"the axes of the voxels are not perpendicular: {angle:.0f}° between two of them"]


def _doubts_about_unit(header: nib.Nifti1Header) -> list[str]:
    """Notice a unit by which a head would be as large as a house, or smaller than a cell."""
    unit = _UNITS.get(int(header["xyzt_units"]) & 7)
    return [f"the spatial unit is {unit}, taken as mm"] if unit else []


def _compare(
    sform: np.ndarray, qform: np.ndarray, shape: tuple[int, ...], path: Path
) -> tuple[bool, list[str]]:
    """Compare sform and qform; tell whether their directions contradict each other."""
    if np.sign(np.linalg.det(sform)) != np.sign(np.linalg.det(qform)):
        raise BadData(
            f"{path}: qform and sform contradict each other about left and right; make them "
            "agree, for example with 'fslorient -copysform2qform'",
            code="transforms-contradict",
        )
    ends = np.array([[0, 0, 0], [side - 1 for side in shape]])
    gap = np.linalg.norm(apply_affine(sform, ends) - apply_affine(qform, ends), axis=1).max()
    one, other = (a[:3, :3] / np.linalg.norm(a[:3, :3], axis=0) for a in (sform, qform))
    cosine = (one * other).sum(axis=0).min()
    angle = float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))
    turned = angle > ANGLE_TOLERANCE
    if turned:
        return True, [f"axes of qform and sform differ by {angle:.0f}°; sform used"]
    if gap > TRANSFORM_TOLERANCE:
        return False, [f"qform and sform differ by {gap:.1f} mm; sform used"]
    return False, []
