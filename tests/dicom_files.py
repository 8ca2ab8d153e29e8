"""Write images as DICOM files, one for each slice, as scanners do."""

from __future__ import annotations

import locale
import struct
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk

ROOT = "1.2.826.0.1.3680043.2.1125"


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
            "0008|0018": f"{ROOT}.{number}.{k + 1}",
            "0008|0060": "MR",
            "0008|103e": f"made {number}",
            "0018|0050": f"{spacing[2]:.6f}",
            "0020|000d": f"{ROOT}.9",
            "0020|000e": f"{ROOT}.{number}",
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
        "0008|0018": f"{ROOT}.{number}.1",
        "0020|000e": f"{ROOT}.{number}",
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


#: Transfer syntaxes.
EXPLICIT, RLE = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.5"


def write_by_hand(
    image: nib.Nifti1Image,
    folder: Path,
    *,
    syntax: str = EXPLICIT,
    encode: Callable[[np.ndarray], bytes] | None = None,
    tags: dict[str, tuple[str, str | bytes | int]] | None = None,
    each: Callable[[int], dict[str, tuple[str, str | bytes | int]]] = lambda k: {},
) -> list[Path]:
    """Write slices byte by byte, for what SimpleITK does not write.

    `encode` makes the compressed pixels of a slice. `tags` are those of all slices, and `each`
    returns those of one: tag → kind of value and value.
    """
    folder.mkdir(parents=True, exist_ok=True)
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ image.affine
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    along = (affine[:3, :3] / spacing)[:, :2].T.ravel()
    data = np.asarray(image.dataobj)
    written = []
    for k in range(data.shape[2]):
        pixels = np.ascontiguousarray(data[:, :, k].T)
        place = affine[:3, :3] @ [0, 0, k] + affine[:3, 3]
        values: dict[str, tuple[str, str | bytes | int]] = {
            "0008|0008": ("CS", "ORIGINAL\\PRIMARY\\M\\NONE"),
            "0008|0016": ("UI", "1.2.840.10008.5.1.4.1.1.4"),
            "0008|0018": ("UI", f"{ROOT}.1.{k + 1}"),
            "0008|0060": ("CS", "MR"),
            "0008|103e": ("LO", "by hand"),
            "0020|000d": ("UI", f"{ROOT}.9"),
            "0020|000e": ("UI", f"{ROOT}.1"),
            "0020|0011": ("IS", "1"),
            "0020|0013": ("IS", str(k + 1)),
            "0020|0032": ("DS", "\\".join(f"{value:.8g}" for value in place)),
            "0020|0037": ("DS", "\\".join(f"{value:.10f}" for value in along)),
            "0028|0002": ("US", 1),
            "0028|0004": ("CS", "MONOCHROME2"),
            "0028|0010": ("US", pixels.shape[0]),
            "0028|0011": ("US", pixels.shape[1]),
            "0028|0030": ("DS", f"{spacing[1]:.6f}\\{spacing[0]:.6f}"),
            "0028|0100": ("US", 16),
            "0028|0101": ("US", 16),
            "0028|0102": ("US", 15),
            "0028|0103": ("US", 1),
            **(tags or {}),
            **each(k),
        }
        body = b"".join(_element(tag, *values[tag]) for tag in sorted(values))
        content = pixels.astype("<i2").tobytes() if encode is None else encode(pixels)
        body += _pixels(content, is_compressed=encode is not None)
        head = _element("0002|0002", *values["0008|0016"])
        head += _element("0002|0003", *values["0008|0018"]) + _element("0002|0010", "UI", syntax)
        size = _element("0002|0000", "UL", struct.pack("<I", len(head)))
        path = folder / f"IM{(k * 7919) % 1009:04d}"
        path.write_bytes(bytes(128) + b"DICM" + size + head + body)
        written.append(path)
    return written


def rle(pixels: np.ndarray) -> bytes:
    """Compress a slice of 16 bits as DICOM does, high bytes first, in runs without repetition."""
    planes = []
    for byte in (1, 0):
        values = pixels.astype("<i2").view(np.uint8).reshape(-1, 2)[:, byte].tobytes()
        runs = (values[start : start + 128] for start in range(0, len(values), 128))
        plane = b"".join(bytes([len(run) - 1]) + run for run in runs)
        planes.append(plane + bytes(len(plane) % 2))
    starts = (64, 64 + len(planes[0]))
    return struct.pack("<16I", 2, *starts, *[0] * 13) + b"".join(planes)


def _element(tag: str, kind: str, value: str | bytes | int) -> bytes:
    group, element = (int(part, 16) for part in tag.split("|"))
    content = struct.pack("<H", value) if isinstance(value, int) else value
    if isinstance(content, str):
        content = content.encode()
        content += (b"\0" if kind == "UI" else b" ") * (len(content) % 2)
    long = kind in ("OB", "OW", "SQ", "UN")
    size = struct.pack("<HI", 0, len(content)) if long else struct.pack("<H", len(content))
    return struct.pack("<HH", group, element) + kind.encode() + size + content


def _pixels(content: bytes, *, is_compressed: bool) -> bytes:
    if not is_compressed:
        return _element("7fe0|0010", "OW", content)
    content += bytes(len(content) % 2)
    items = struct.pack("<HHI", 0xFFFE, 0xE000, 0) + struct.pack(
        "<HHI", 0xFFFE, 0xE000, len(content)
    )
    end = struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    return struct.pack("<HH2sHI", 0x7FE0, 0x10, b"OB", 0, 0xFFFFFFFF) + items + content + end
