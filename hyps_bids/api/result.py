"""What was found in one image, in memory."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import nibabel as nib
import numpy as np

from hyps_bids.imaging.conform import ConformedImage
from hyps_bids.imaging.geometry import read_geometry
from hyps_bids.imaging.sources import Source
from hyps_bids.imaging.volumes import RestoredSide
from hyps_bids.outputs.flags import reasons
from hyps_bids.outputs.images import read_part
from hyps_bids.outputs.labels import HEMISPHERES, label_rows, label_table
from hyps_bids.outputs.quality import EXPECTED
from hyps_bids.outputs.scan_files import (
    ScanImages,
    ScanMeasures,
    image_headers,
    morph_table,
    qc_table,
)
from hyps_bids.outputs.surface_files import make_gifti
from hyps_bids.segmentation.localize import Localization
from hyps_bids.segmentation.pipeline import native_images
from hyps_bids.segmentation.setup import Setup
from hyps_bids.settings import Settings

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False, repr=False)
class SegmentationResult:
    """The hippocampi of one image, as :func:`hyps_bids.segment` returns them.

    Images are made when they are first asked for. They have the grid, the transforms and the order
    of axes of the image that was segmented, and are those that the BIDS App writes.

    Attributes
    ----------
    name : str
        The file or folder that was segmented; ``image`` if it was in memory.
    suffix : str
        BIDS suffix of the image, such as ``T1w``.
    flags : tuple of str
        Reasons to look at the result, such as ``missing_L`` or ``low_expected_dice_R``.
    remarks : tuple of str
        What is unusual about the image.
    """

    name: str
    suffix: str
    flags: tuple[str, ...]
    remarks: tuple[str, ...]
    _source: Source
    _content: str | None
    _settings: Settings
    _setup: Setup
    _measures: ScanMeasures
    _found: Localization
    _restored: Mapping[str, RestoredSide] = field(default_factory=dict)
    # Without its voxels: only the grid is needed.
    _grid: ConformedImage | None = None

    def __repr__(self) -> str:
        state = f"flagged: {' '.join(self.flags)}" if self.flags else "no flags"
        return f"<SegmentationResult of {self.name}, {self.suffix}, {state}>"

    @cached_property
    def labels(self) -> nib.Nifti1Image:
        """Labels, uint8, shape ``(x, y, z)``; :attr:`label_names` says what they mean."""
        return self._image("dseg", [self._native().labels])

    @cached_property
    def probabilities(self) -> nib.Nifti1Image:
        """Probability of each label, in [0, 1] in steps of 1/255, shape ``(x, y, z, labels)``."""
        return self._image("probseg", self._native().probabilities)

    @cached_property
    def intracranial(self) -> nib.Nifti1Image:
        """1 inside the skull and 0 elsewhere, uint8, shape ``(x, y, z)``."""
        return self._image("mask", [self._native().intracranial])

    @cached_property
    def surfaces(self) -> dict[str, nib.gifti.GiftiImage]:
        """Hemisphere → surface of the hippocampus, in the world (RAS, mm) of the image.

        A hippocampus without a voxel has none.
        """
        from hyps_bids.segmentation.surfaces import find_surfaces

        found = find_surfaces(
            np.asarray(self.labels.dataobj),
            read_geometry(self._source.image, self._source.name).affine,
            lambda region: read_part(self.probabilities, region),
        )
        return {hemi: make_gifti(surface, hemi) for hemi, surface in found.items()}

    @property
    def label_names(self) -> dict[int, str]:
        """Label → name, such as ``{1: "Left anterior hippocampus", …}``."""
        return {row[0]: row[1] for row in label_rows(self._measures.parts)}

    @cached_property
    def volumes(self) -> pd.DataFrame:
        """Volumes in mm³, a row for each part and each whole hippocampus.

        This is the table that the BIDS App writes to ``…_morph.tsv``, before numbers are rounded.
        """
        return morph_table(self.suffix, self._measures)

    @cached_property
    def qc(self) -> pd.DataFrame:
        """Quality measures, flags and the reasons for a review, in one row.

        This is the table that the BIDS App writes to ``…_qc.tsv``, before numbers are rounded.
        """
        return qc_table(self.suffix, self._measures)

    @property
    def needs_review(self) -> bool:
        """Whether a person should look at the result before it is used."""
        return bool(self.flags)

    @property
    def reasons(self) -> tuple[str, ...]:
        """The flags in sentences, with advice."""
        return tuple(reasons(self.flags, self._measures.figures))

    @property
    def expected_dice(self) -> dict[str, float]:
        """Hemisphere → Dice with a manual segmentation that is to be expected; empty if unknown."""
        known = {hemi: self._measures.figures.get(f"{EXPECTED}_{hemi}") for hemi in HEMISPHERES}
        return {hemi: value for hemi, value in known.items() if value is not None}

    def save(
        self,
        folder: str | os.PathLike[str],
        *,
        name: str | None = None,
        report: bool = True,
        surfaces: bool = False,
    ) -> Path:
        """Write what the BIDS App writes for a scan: images, tables, sidecars and the report.

        The folder becomes a BIDS derivatives dataset. The image that was segmented is linked, or
        written if it was not a NIfTI file, below ``sourcedata/raw``.

        Parameters
        ----------
        folder : path
            New, empty, or written by ``save`` or ``hyps-tools segment`` before.
        name : str, optional
            Label of the participant, or a BIDS name such as ``sub-01_ses-2``; by default it is made
            of the name of the file.
        report : bool
            Whether to write the HTML report, too.
        surfaces : bool
            Whether to write the surfaces, too, and measure their area.

        Returns
        -------
        Path
            The HTML report, or the folder if there is none.

        Raises
        ------
        UsageError
            If the folder holds other files, or the results of another image of this name.
        BadData
            If the file has changed since it was segmented.
        CannotCreateOutput
            If a file cannot be written.
        """
        from hyps_bids.api.names import name_scan
        from hyps_bids.api.saving import Saved, save_scan

        scan = name_scan(name or Path(self.name).name, self.suffix)
        saved = Saved(scan, self._source, self._content, self._settings, self._setup)
        return save_scan(
            Path(folder).expanduser(), saved, self._native(), self._measures, report, surfaces
        )

    def _native(self) -> ScanImages:
        assert self._grid is not None
        return native_images(
            *(self._grid, self._restored, self._found.intracranial, self._found.affine),
            len(self._measures.parts),
        )

    def _image(self, kind: str, volumes: Iterable[np.ndarray]) -> nib.Nifti1Image:
        """Make an image as if its file had been read, so that values are those of the file."""
        count = len(label_table(self._measures.parts))
        stream = io.BytesIO()
        image_headers(self._source.image, count)[kind].write_to(stream)
        for volume in volumes:
            stream.write(volume.ravel(order="F").data)
        stream.seek(0)
        return nib.Nifti1Image.from_stream(stream)
