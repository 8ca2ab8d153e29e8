"""Read one series of DICOM files as an image, with SimpleITK.

GDCM, which SimpleITK uses, decodes the files. What it does not do is done here: it neither chooses
a series nor notices that slices are missing, that a series has several volumes or that its slices
have several orientations, and would give a wrong image in these cases.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from nibabel.affines import apply_affine

from hyps_bids.errors import BadData, MissingInput
from hyps_bids.messages import format_count, join_names, printable
from hyps_bids.outputs.transforms import RAS_TO_LPS

_LOG = logging.getLogger("hyps_bids")
#: Tags that are read of each file.
_TAGS = {
    "sop": "0008|0018",
    "sop_class": "0008|0016",
    "image_type": "0008|0008",
    "modality": "0008|0060",
    "description": "0008|103e",
    "series": "0020|000e",
    "series_number": "0020|0011",
    "number": "0020|0013",
    "position": "0020|0032",
    "orientation": "0020|0037",
    "acquired": "0020|1002",
    "samples": "0028|0002",
    "photometric": "0028|0004",
    "frames": "0028|0008",
    "rows": "0028|0010",
    "columns": "0028|0011",
    "spacing": "0028|0030",
    "intercept": "0028|1052",
    "slope": "0028|1053",
}
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
#: Fewest slices of an image that can show a hippocampus.
_FEWEST = 8
#: Largest difference of the distance between two slices from the usual one, as a share of it, and
#: of the cosines of two orientations.
_STEP_TOLERANCE, _TURN_TOLERANCE = 0.05, 1e-3
#: Code of files that hold no image, or one that is damaged.
_NO_IMAGE = "dicom-without-image"
#: How pixels without color may be stored; black and white are exchanged in the first of these.
_INVERTED = "MONOCHROME1"
_GRAYS = ("", "MONOCHROME2", _INVERTED)
#: What to do with files that are not read here.
_CONVERT = "convert it with dcm2niix, and give the NIfTI file"


@dataclass(frozen=True)
class DicomSeries:
    """An image that was made of DICOM files.

    Attributes
    ----------
    image : nibabel.Nifti1Image
        The image, with equal qform and sform.
    uid : str
        SeriesInstanceUID.
    title : str
        Number, description and slices of the series, for messages.
    """

    image: nib.Nifti1Image
    uid: str
    title: str


class _File(dict[str, str]):
    """The tags of one file, by the names in ``_TAGS``; missing ones are empty."""

    path: Path

    def numbers(self, name: str, count: int) -> np.ndarray | None:
        """Return the numbers of a tag; None unless there are so many of them."""
        try:
            values = np.array([float(part) for part in self[name].split("\\")])
        except ValueError:
            return None
        return values if len(values) == count and np.isfinite(values).all() else None


def is_dicom(path: Path) -> bool:
    """Tell whether a file begins as DICOM files do."""
    try:
        with path.open("rb") as stream:
            return stream.read(132)[128:] == b"DICM"
    except OSError:
        return False


def read_dicom(path: Path) -> DicomSeries:
    """Read the one series of a folder that can be segmented, or the series of a file.

    Localizers, color images, secondary captures, series of several volumes and the like are left
    out. The log names the series that was chosen, and why others were not.

    Parameters
    ----------
    path : Path
        A folder with DICOM files, in it or below; or one file, which stands for its series.

    Returns
    -------
    DicomSeries
        The image and its series.

    Raises
    ------
    BadData
        If no series can be segmented, or several can; slices are missing; or files cannot be
        decoded.
    MissingInput
        If the folder has no DICOM files.
    """
    with _quiet():
        series = _find_series(path)
        problems = {uid: _problem(files) for uid, files in series.items()}
        usable = [uid for uid, problem in problems.items() if problem is None]
        _refuse_unless_one(path, series, problems, usable)
        uid = usable[0]
        title = _title(series[uid])
        slices = _sorted(series[uid])
        _LOG.info("%s: reading %s, %s", path, title, _extent(slices))
        _warn_of_ends(path, slices)
        for other, problem in problems.items():
            if problem is not None:
                # A damaged file may be a slice at the end of the series, which nothing else shows.
                level = logging.WARNING if problem[0] == _NO_IMAGE else logging.INFO
                _LOG.log(level, "%s: %s is left out: %s", path, _title(series[other]), problem[1])
        return DicomSeries(_read(path, slices), uid, title)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the library from printing its warnings about single files."""
    before = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(before)


def _find_series(path: Path) -> dict[str, list[_File]]:
    """Read the tags of all files, by series; copies of a file are read once."""
    folder = path if path.is_dir() else path.parent
    walk = os.walk(folder) if path.is_dir() else [(str(folder), [], os.listdir(folder))]
    paths = [Path(top, name) for top, _, names in walk for name in names]
    wanted = None if path.is_dir() else _read_tags(path)["series"]
    found: dict[str, dict[str, _File]] = {}
    for each in sorted(paths):
        if is_dicom(each):
            file = _read_tags(each)
            if wanted in (None, file["series"]):
                found.setdefault(file["series"], {}).setdefault(file["sop"] or str(each), file)
    if not found:
        raise MissingInput(
            f"{path}: this folder has no DICOM files; give NIfTI files by their names, or the "
            "folder of a DICOM series. A BIDS dataset is processed by the command hyps-bids.",
            code="folder-without-dicom",
        )
    return {uid: [*files.values()] for uid, files in found.items()}


def _read_tags(path: Path) -> _File:
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        # Files without an image, such as structured reports and DICOMDIR, belong to no image.
        _LOG.debug("%s: no image", path, exc_info=error)
        tags = dict.fromkeys(_TAGS, "") | {"frames": "0"}
    else:
        known = set(reader.GetMetaDataKeys())
        tags = {n: reader.GetMetaData(t).strip() if t in known else "" for n, t in _TAGS.items()}
    file = _File(tags)
    file.path = path
    return file


def _title(files: Sequence[_File]) -> str:
    """Name a series for messages."""
    first = files[0]
    count = format_count(len(files), "file")
    description = printable(first["description"]) or "no description"
    number = first["series_number"] or "without number"
    # Exports may give the files of each series the same names, in a folder of its own.
    place = f"{first.path.parent.name}/{first.path.name}"
    return f"series {number} ({description}, {count} such as {place})"


def _problem(files: Sequence[_File]) -> tuple[str, str] | None:
    """Say why a series cannot be segmented, as a code and in words; None if it can be."""
    found = _problem_of_kind(files)
    return found if found is not None else _problem_of_slices(files)


def _problem_of_kind(files: Sequence[_File]) -> tuple[str, str] | None:
    first = files[0]
    if first["frames"] == "0":
        return (
            _NO_IMAGE,
            "the files have no image, or one that is damaged or stored in a way that is not known "
            f"here; if it is an image, {_CONVERT}",
        )
    if any(f["samples"] not in ("", "1") or f["photometric"] not in _GRAYS for f in files):
        return "dicom-color", "these are color images, such as screenshots or color maps"
    if any(file["photometric"] == _INVERTED for file in files):
        return "dicom-inverted", f"its gray values are inverted (MONOCHROME1); {_CONVERT}"
    if first["sop_class"].startswith(_SECONDARY_CAPTURE):
        return "dicom-secondary-capture", "these are secondary captures, not images of the scanner"
    if first["modality"] not in ("", "MR"):
        return "dicom-not-mr", f"the modality is {printable(first['modality'])}, not MR"
    if any(file["frames"] not in ("", "1") for file in files):
        return "dicom-multi-frame", f"each file has several slices (enhanced DICOM); {_CONVERT}"
    kinds = first["image_type"].upper().split("\\")
    words = first["description"].casefold()
    if "LOCALIZER" in kinds or any(w in words for w in ("localizer", "localiser", "scout")):
        return "dicom-localizer", "it is a localizer"
    if "PROJECTION IMAGE" in kinds:
        return "dicom-projection", "it is a projection, not slices of the head"
    return None


def _problem_of_slices(files: Sequence[_File]) -> tuple[str, str] | None:
    turns = [file.numbers("orientation", 6) for file in files]
    places = [file.numbers("position", 3) for file in files]
    if any(value is None for value in (*turns, *places)):
        return "dicom-without-geometry", "files do not say where their slices are"
    turn, place = np.array(turns), np.array(places)
    shapes = {(file["rows"], file["columns"], file["spacing"]) for file in files}
    if np.abs(turn - turn[0]).max() > _TURN_TOLERANCE or len(shapes) > 1:
        return (
            "dicom-localizer",
            "its slices differ in orientation or size, as those of a localizer do",
        )
    if len(files) < _FEWEST:
        return "dicom-few-slices", f"it has only {format_count(len(files), 'slice')}"
    normal = np.cross(turn[0, :3], turn[0, 3:])
    height = np.sort(place @ normal)
    steps = np.diff(height)
    usual = float(np.median(steps))
    if (steps < 0.01).any():
        layers = 1 + np.count_nonzero(steps >= 0.01)
        return (
            "dicom-several-volumes",
            f"it has {len(files)} files at {layers} places, so it is 4-D (several echoes, "
            "repetitions or directions); select one volume",
        )
    order = place[np.argsort(place @ normal)]
    path = np.diff(order, axis=0)
    if np.linalg.norm(path - steps[:, None] * normal, axis=1).max() > _STEP_TOLERANCE * usual:
        return "dicom-tilted", f"its slices are not stacked along their normal; {_CONVERT}"
    odd = np.abs(steps / usual - 1) > _STEP_TOLERANCE
    if odd.any():
        where = height[int(np.argmax(odd))]
        missing = int(np.round(steps / usual - 1).clip(0).sum())
        return (
            "dicom-slices-missing",
            f"its slices are {usual:.3g} mm apart, but not everywhere: about {missing} are missing,"
            f" the first after the one at {where:.4g} mm. Export the series again, completely",
        )
    return None


def _refuse_unless_one(
    path: Path,
    series: dict[str, list[_File]],
    problems: dict[str, tuple[str, str] | None],
    usable: Sequence[str],
) -> None:
    if len(usable) == 1:
        return
    if usable:
        raise BadData(
            f"{path}: there are {len(usable)} series that could be segmented: "
            f"{join_names(_title(series[uid]) for uid in usable)}. Give a file of the right one "
            f"instead of the folder, such as {series[usable[0]][0].path}",
            code="several-dicom-series",
        )
    reasons = [(uid, problem) for uid, problem in problems.items() if problem is not None]
    # One series has a code of its own.
    code = reasons[0][1][0] if len(reasons) == 1 else "no-usable-dicom-series"
    words = "; ".join(f"{_title(series[uid])}: {problem[1]}" for uid, problem in reasons)
    raise BadData(f"{path}: no series can be segmented. {words}", code=code)


def _sorted(files: Sequence[_File]) -> list[_File]:
    """Sort slices along their normal, so that the image has right-handed axes."""
    first = files[0].numbers("orientation", 6)
    assert first is not None
    normal = np.cross(first[:3], first[3:])

    def height(file: _File) -> float:
        place = file.numbers("position", 3)
        assert place is not None
        return float(place @ normal)

    return sorted(files, key=height)


def _extent(files: Sequence[_File]) -> str:
    """Say how far slices reach, which shows a user whether those at an end are missing."""
    ends = [file.numbers("position", 3) for file in (files[0], files[-1])]
    assert ends[0] is not None
    assert ends[1] is not None
    step = float(np.linalg.norm(ends[1] - ends[0])) / (len(files) - 1)
    return f"{len(files)} slices that are {step:.3g} mm apart, {step * len(files):.3g} mm in all"


def _warn_of_ends(path: Path, files: Sequence[_File]) -> None:
    """Warn where the files say that slices at an end are missing; many do not say it."""
    expected = [int(value) for value in (files[0]["acquired"],) if value.isdecimal()]
    numbers = sorted(int(f["number"]) for f in files if f["number"].isdecimal())
    if expected and expected[0] > len(files):
        found = f"the acquisition has {expected[0]} images, but only {len(files)} files are here"
    elif len(numbers) == len(files) == numbers[-1] - numbers[0] + 1 and numbers[0] > 1:
        found = f"the numbers of the files begin with {numbers[0]}, not with 1"
    else:
        return
    _LOG.warning(
        "%s: %s; if slices at an end are missing, the intracranial volume is too small.",
        *(path, found),
    )


def _read(path: Path, files: Sequence[_File]) -> nib.Nifti1Image:
    reader = sitk.ImageSeriesReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileNames([str(file.path) for file in files])
    if len({(file["slope"], file["intercept"]) for file in files}) > 1:
        # The type of all slices would otherwise be the one that suits the first.
        reader.SetOutputPixelType(sitk.sitkFloat32)
    try:
        read = reader.Execute()
    except RuntimeError as error:
        raise BadData(
            f"{path}: {_title(files)} cannot be decoded, because files are damaged or compressed "
            f"in a way that is not known here; {_CONVERT}",
            code="dicom-not-decodable",
        ) from error
    data = sitk.GetArrayFromImage(read).T
    if data.dtype == np.float64:
        data = data.astype(np.float32)
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(read.GetDirection(), (3, 3)) * read.GetSpacing()
    affine[:3, 3] = read.GetOrigin()
    for index in (0, len(files) - 1):
        place = files[index].numbers("position", 3)
        if place is None or np.abs(apply_affine(affine, (0, 0, index)) - place).max() > 0.1:
            raise BadData(
                f"{path}: the slices of {_title(files)} are not where their files say; {_CONVERT}",
                code="dicom-geometry",
            )
    # The axes of DICOM point left and to the back, those of NIfTI right and to the front.
    affine = RAS_TO_LPS @ affine
    image = nib.Nifti1Image(data, affine)
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    image.header.set_xyzt_units("mm")
    return image
