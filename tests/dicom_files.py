"""Write images as DICOM files, one for each slice, as scanners do."""

from __future__ import annotations

import locale
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk

_ROOT = "1.2.826.0.1.3680043.2.1125"


def write_series(
    image: nib.Nifti1Image,
    folder: Path,
    *,
    number: int = 1,
    skip: tuple[int, ...] = (),
    compressor: str = "",
    tags: dict[str, str] | None = None,
) -> list[Path]:
    """Write the slices of an image along its third axis; `number` makes the series unique.

    The affine follows from the definition of DICOM, without SimpleITK's own conversions.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # From right and anterior to left and posterior.
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ image.affine
    data = np.asarray(image.dataobj).astype(np.int16)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    along = affine[:3, :3] / spacing
    written = []
    for k in range(data.shape[2]):
        if k in skip:
            continue
        # Columns run along the first axis, rows along the second.
        piece = sitk.GetImageFromArray(np.ascontiguousarray(data[:, :, k].T))
        piece.SetSpacing([float(spacing[0]), float(spacing[1])])
        place = affine[:3, :3] @ [0, 0, k] + affine[:3, 3]
        values = {
            "0008|0008": "ORIGINAL\\PRIMARY\\M\\NONE",
            "0008|0016": "1.2.840.10008.5.1.4.1.1.4",
            "0008|0018": f"{_ROOT}.{number}.{k + 1}",
            "0008|0060": "MR",
            "0008|103e": f"made {number}",
            "0018|0050": f"{spacing[2]:.6f}",
            "0020|000d": f"{_ROOT}.9",
            "0020|000e": f"{_ROOT}.{number}",
            "0020|0011": str(number),
            "0020|0013": str(k + 1),
            "0020|0032": "\\".join(f"{value:.8g}" for value in place),
            "0020|0037": "\\".join(f"{value:.10f}" for value in along[:, :2].T.ravel()),
        } | (tags or {})
        for tag, value in values.items():
            piece.SetMetaData(tag, value)
        # Names say nothing about the order of slices.
        path = folder / f"IM{number}_{(k * 7919) % 1009:04d}"
        _write(piece, path, compressor)
        written.append(path)
    return written


def write_color(folder: Path, *, number: int) -> None:
    """Write a screenshot in color."""
    folder.mkdir(parents=True, exist_ok=True)
    piece = sitk.GetImageFromArray(np.zeros((32, 32, 3), np.uint8), isVector=True)
    for tag, value in {
        "0008|0016": "1.2.840.10008.5.1.4.1.1.7",
        "0008|0018": f"{_ROOT}.{number}.1",
        "0020|000e": f"{_ROOT}.{number}",
        "0020|0011": str(number),
    }.items():
        piece.SetMetaData(tag, value)
    _write(piece, folder / f"SC{number}", "")


def _write(piece: sitk.Image, path: Path, compressor: str) -> None:
    writer = sitk.ImageFileWriter()
    writer.SetImageIO("GDCMImageIO")
    writer.KeepOriginalImageUIDOn()
    if compressor:
        writer.UseCompressionOn()
        writer.SetCompressor(compressor)
    writer.SetFileName(str(path))
    # Writing leaves the process in the locale C, where other tests could not read UTF-8.
    before = locale.setlocale(locale.LC_ALL)
    writer.Execute(piece)
    locale.setlocale(locale.LC_ALL, before)
