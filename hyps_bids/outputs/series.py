"""A series: the scans of one participant and one contrast over time; names of its files.

Names end with ``desc-longitudinal`` or ``desc-annualchange``, after a ``desc`` of the image itself.
The outputs of a scan never do (:attr:`Scan.derived_entities`), so neither are taken for the others.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from hyps_bids.outputs.names import SEG, SEG_PREFIX, output_name
from hyps_bids.outputs.scan import ANNUAL_CHANGE, LONGITUDINAL, Scan

#: Value of ``space`` of the space that is midway between all scans of a series.
MIDWAY = "midway"
_TABLES = (f"{LONGITUDINAL}_morph.tsv", f"{LONGITUDINAL}_qc.tsv", f"{ANNUAL_CHANGE}_morph.tsv")
_QC = f"_{SEG_PREFIX}_desc-{LONGITUDINAL}_qc.tsv"


@dataclass(frozen=True, order=True)
class Series:
    """The scans of one participant and one contrast.

    Attributes
    ----------
    subject : str
        Label without ``sub-``.
    contrast : str
        As :attr:`hyps_bids.outputs.scan.Scan.contrast`.

    Examples
    --------
    >>> series = Series.of(Scan.from_stem("sub-01_ses-2_ce-gd_run-1_space-T2w"))
    >>> series, series.stem, series.suffix
    (Series(subject='01', contrast='ce-gd_T2w'), 'sub-01_ce-gd_space-T2w', 'T2w')
    """

    subject: str
    contrast: str

    @classmethod
    def of(cls, scan: Scan) -> Series:
        """Return the series to which a scan belongs."""
        return cls(scan.subject, scan.contrast)

    @property
    def _named(self) -> Scan:
        """A scan with the name of the series."""
        return Scan.from_path(Path(f"sub-{self.subject}_{self.contrast}.nii.gz"))

    @property
    def stem(self) -> str:
        """Name that tells the series from all others of the dataset."""
        return self._named.stem

    @property
    def suffix(self) -> str:
        """BIDS suffix of its images."""
        return self._named.suffix

    @property
    def workflow_name(self) -> str:
        """Name for nipype: letters, digits and underscores."""
        return f"series_{self._named.workflow_name}"

    @property
    def folder(self) -> Path:
        """Folder of its tables relative to the dataset."""
        return self._named.folder

    def paths(self, output_dir: Path) -> dict[str, Path]:
        """Return its tables: ``morph``, ``annual`` and ``qc``; each has a sidecar.

        Examples
        --------
        >>> print(*(p.name for p in Series("01", "T1w").paths(Path()).values()), sep=chr(10))
        sub-01_seg-hippocampus_desc-longitudinal_morph.tsv
        sub-01_seg-hippocampus_desc-annualchange_morph.tsv
        sub-01_seg-hippocampus_desc-longitudinal_qc.tsv
        """
        kinds = {
            "morph": (LONGITUDINAL, "morph"),
            "annual": (ANNUAL_CHANGE, "morph"),
            "qc": (LONGITUDINAL, "qc"),
        }
        return {
            kind: output_dir
            / self.folder
            / output_name(self._named, seg=SEG, desc=desc, suffix=suffix, extension=".tsv")
            for kind, (desc, suffix) in kinds.items()
        }


def time_point_paths(scan: Scan, output_dir: Path) -> dict[str, Path]:
    """Return the files that a series has for one of its scans, without their sidecars.

    Parameters
    ----------
    scan : Scan
        The scan.
    output_dir : Path
        The derivatives dataset.

    Returns
    -------
    dict of str to Path
        ``dseg``: labels on the grid of the scan; ``midway_dseg`` and ``midway_image``: labels and
        intensities on the grid in the midway space that all scans of the series share; ``xfm``:
        transform from the scan's space to the midway space.

    Examples
    --------
    >>> scan = Scan.from_stem("sub-01_ses-1_desc-preproc_space-T2w")
    >>> print(*(path.name for path in time_point_paths(scan, Path()).values()), sep=chr(10))
    sub-01_ses-1_space-T2w_seg-hippocampus_desc-preproclongitudinal_dseg.nii.gz
    sub-01_ses-1_space-midwayT2w_seg-hippocampus_desc-preproclongitudinal_dseg.nii.gz
    sub-01_ses-1_space-midwayT2w_desc-preproclongitudinal_T2w.nii.gz
    sub-01_ses-1_from-T2w_to-midwayT2w_mode-image_desc-preproc_xfm.txt
    """
    late = scan.derived_entities
    desc = late.get("desc", "") + LONGITUDINAL
    others = [f"{key}-{late[key]}" for key in ("res", "den", "label") if key in late]
    midway = MIDWAY + scan.space
    there = scan.entities_in(midway)
    marked = [*others, f"desc-{desc}"]
    own = [f"{key}-{value}" for key, value in scan.entities if key not in late]
    link = [f"from-{scan.suffix}", f"to-{midway}", "mode-image"]
    names = {
        "dseg": output_name(scan, seg=SEG, desc=desc, suffix="dseg", extension=".nii.gz"),
        "midway_dseg": "_".join([*there, SEG_PREFIX, *marked, "dseg.nii.gz"]),
        "midway_image": "_".join([*there, *marked, f"{scan.suffix}.nii.gz"]),
        "xfm": "_".join([*own, *link, *(f"{k}-{v}" for k, v in late.items()), "xfm.txt"]),
    }
    return {kind: output_dir / scan.folder / name for kind, name in names.items()}


def group_scans(scans: Iterable[Scan]) -> dict[Series, list[Scan]]:
    """Sort scans into their series, in the order of the scans."""
    found: dict[Series, list[Scan]] = {}
    for scan in scans:
        found.setdefault(Series.of(scan), []).append(scan)
    return found


def find_series_of(output_dir: Path, subject: str) -> list[Series]:
    """Find the series of a subject (label without ``sub-``) of which there are results, sorted.

    A series whose QC table has no sidecar was interrupted or has failed.
    """
    try:
        names = os.listdir(output_dir / f"sub-{subject}" / "anat")
    except OSError:
        return []
    stems = [n.removesuffix(_QC) for n in names if n.endswith(_QC) and not n.startswith(".")]
    found = {Series.of(Scan.from_stem(stem)) for stem in stems}
    return sorted(each for each in found if each.stem in stems and each.subject == subject)


def parse_series(name: str) -> Series | None:
    """Return the series to which a table belongs by its name; None for all other files.

    Examples
    --------
    >>> parse_series("sub-01_space-T2w_seg-hippocampus_desc-annualchange_morph.tsv")
    Series(subject='01', contrast='T2w')
    >>> parse_series("sub-01_ses-1_seg-hippocampus_qc.tsv")
    """
    stem, mark, kind = name.partition(f"_{SEG_PREFIX}_desc-")
    if not mark or kind not in _TABLES:
        return None
    series = Series.of(Scan.from_stem(stem))
    return series if series.stem == stem else None
