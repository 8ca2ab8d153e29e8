"""Surfaces of hippocampi: measures, files, and what other outputs say about them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.gifti import GiftiCoordSystem, GiftiDataArray, GiftiImage, GiftiMetaData

from hyps_bids.errors import BadData
from hyps_bids.outputs.columns import MORPH_COLUMNS, SURFACE_COLUMNS, described
from hyps_bids.outputs.labels import HEMISPHERES, SIDE_NAMES, WHOLE
from hyps_bids.outputs.names import scan_paths, sidecar_path, surface_path
from hyps_bids.outputs.reading import load_json, read_json_object, read_text_table
from hyps_bids.outputs.scan import Scan
from hyps_bids.outputs.writing import (
    remove_files,
    write_bytes,
    write_json,
    write_table,
)

#: Key of the QC sidecar: the sides that have a surface.
SURFACES = "Surfaces"
_SCANNER = nib.nifti1.xform_codes["scanner"]
#: Keys of the sidecar of labels that also hold for surfaces.
_SHARED = (
    *("Sources", "SpatialReference", "Resolution", "SoftwareVersion", "Models"),
    *("BiasFieldCorrection", "EditedLabels", "Devices"),
)


@dataclass(frozen=True)
class Surface:
    """A closed surface of triangles.

    Attributes
    ----------
    points : numpy.ndarray
        World coordinates (RAS, mm) of the scan, float32, shape ``(points, 3)``.
    triangles : numpy.ndarray
        Indices of corners, which turn left as seen from outside, int32, shape ``(triangles, 3)``.
    level : float
        Value of the field on the surface: a probability or, of labels alone, a distance in mm.
    """

    points: np.ndarray
    triangles: np.ndarray
    level: float

    @cached_property
    def volume_mm3(self) -> float:
        """Volume that is enclosed, mm³; below 0 if triangles are turned inside out."""
        # Coordinates relative to the middle keep the sum of large numbers exact.
        corners = self._corners() - self.points.mean(axis=0, dtype=np.float64)
        return float(np.einsum("ij,ij->", corners[0], np.cross(corners[1], corners[2]))) / 6

    @cached_property
    def area_mm2(self) -> float:
        """Area, mm²."""
        a, b, c = self._corners()
        return float(np.linalg.norm(np.cross(b - a, c - a), axis=1).sum()) / 2

    @property
    def euler_characteristic(self) -> int:
        """2 for a sphere and whatever has its topology; each handle takes 2 from it."""
        # Every edge of a closed surface is that of two triangles.
        return len(self.points) - len(self.triangles) // 2

    def turned(self) -> Surface:
        """Turn all triangles around."""
        return replace(self, triangles=np.ascontiguousarray(self.triangles[:, ::-1]))

    def _corners(self) -> np.ndarray:
        corners: np.ndarray = self.points[self.triangles.T].astype(np.float64)
        return corners


def make_gifti(surface: Surface, hemi: str) -> GiftiImage:
    """Make a GIFTI image that Workbench, freeview and NiiVue show in the world of the scan."""
    points = GiftiDataArray(
        surface.points.astype(np.float32),
        intent="NIFTI_INTENT_POINTSET",
        datatype="NIFTI_TYPE_FLOAT32",
        coordsys=GiftiCoordSystem(_SCANNER, _SCANNER, np.eye(4)),
        # Workbench knows structures by these names.
        meta=GiftiMetaData(
            AnatomicalStructurePrimary=f"Hippocampus{SIDE_NAMES[hemi].capitalize()}",
            GeometricType="Anatomical",
        ),
    )
    triangles = GiftiDataArray(
        surface.triangles.astype(np.int32),
        intent="NIFTI_INTENT_TRIANGLE",
        datatype="NIFTI_TYPE_INT32",
        coordsys=GiftiCoordSystem(0, 0, np.eye(4)),
        meta=GiftiMetaData(TopologicalType="Closed"),
    )
    return GiftiImage(darrays=[points, triangles])


def has_surfaces(scan: Scan, output_dir: Path) -> bool:
    """Tell whether there is a surface of either side, whatever it was made from."""
    return any(surface_path(scan, output_dir, hemi).is_file() for hemi in HEMISPHERES)


def lacks_surfaces(scan: Scan, output_dir: Path) -> bool:
    """Tell whether a scan is done, but surfaces of its hippocampi have not been made."""
    try:
        mark = load_json(sidecar_path(scan_paths(scan, output_dir)["qc"]))
        sides = mark.get(SURFACES) if "Fingerprint" in mark else ()
    except (OSError, ValueError, TypeError, AttributeError):
        return False
    return sides is None or not all(surface_path(scan, output_dir, h).is_file() for h in sides)


def write_surfaces(scan: Scan, output_dir: Path, surfaces: Mapping[str, Surface]) -> None:
    """Write the surfaces of a scan that is done, and their measures into its table of volumes.

    The QC sidecar, which is written last, says which sides have a surface.

    Parameters
    ----------
    scan : Scan
        The scan.
    output_dir : Path
        The derivatives dataset.
    surfaces : mapping of str to Surface
        Hemisphere → surface; sides that were not found have none.

    Raises
    ------
    BadData
        If an output of the scan is not there or damaged.
    CannotCreateOutput
        If a file cannot be written.
    """
    paths = scan_paths(scan, output_dir)
    labels = read_json_object(sidecar_path(paths["dseg"]))
    shared = {key: labels[key] for key in _SHARED if key in labels}
    for hemi in HEMISPHERES:
        path = surface_path(scan, output_dir, hemi)
        if hemi not in surfaces:
            remove_files([sidecar_path(path), path])
            continue
        write_bytes(path, make_gifti(surfaces[hemi], hemi).to_bytes())
        write_json(sidecar_path(path), shared | _facts(surfaces[hemi], hemi))
    _add_columns(paths["morph"], surfaces)
    described_by = read_json_object(sidecar_path(paths["morph"]))
    columns = described(MORPH_COLUMNS | SURFACE_COLUMNS)
    write_json(sidecar_path(paths["morph"]), described_by | columns)
    mark = read_json_object(sidecar_path(paths["qc"]))
    write_json(sidecar_path(paths["qc"]), mark | {SURFACES: sorted(surfaces)})


def _facts(surface: Surface, hemi: str) -> dict[str, Any]:
    return {
        "Description": f"Surface of the {SIDE_NAMES[hemi]} hippocampus in the world coordinates of "
        "the scan (RAS, mm), at the level at which it encloses the volume of the labeled voxels",
        "Level": round(surface.level, 4),
        "EnclosedVolume": round(surface.volume_mm3, 2),
        "SurfaceArea": round(surface.area_mm2, 2),
        "Vertices": len(surface.points),
        "Triangles": len(surface.triangles),
        "EulerCharacteristic": surface.euler_characteristic,
    }


def _add_columns(path: Path, surfaces: Mapping[str, Surface]) -> None:
    """Add the measures of surfaces to a table of volumes, whose other cells stay as they are."""
    table = read_text_table(path)
    if not {"hemi", "part"} <= set(table):
        raise BadData(f"{path}: damaged; run the participant level again", code="table-damaged")
    table = table.assign(**dict.fromkeys(SURFACE_COLUMNS, np.nan))
    for hemi, surface in surfaces.items():
        row = (table["hemi"] == hemi) & (table["part"] == WHOLE)
        table.loc[row, list(SURFACE_COLUMNS)] = surface.volume_mm3, surface.area_mm2
    write_table(path, table)
