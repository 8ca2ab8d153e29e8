"""The value object of one T1w image: its path and its BIDS entities."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

#: Values of the entity ``space`` that mean the world coordinates of the scan itself.
OWN_SPACES = frozenset({"T1w", "individual", "native", "orig", "scanner"})
#: Entities that stand behind ``seg`` in the names of derivatives.
_LATE = ("res", "den", "label", "desc")


@dataclass(frozen=True, order=True)
class Scan:
    """One T1w image.

    Attributes
    ----------
    path : Path
        The file as it is in the dataset, never resolved through links.
    entities : tuple of (str, str)
        Short BIDS entities and their values, as written in the file name.

    Examples
    --------
    >>> scan = Scan.from_path(Path("raw/sub-01/ses-M00/anat/sub-01_ses-M00_run-02_T1w.nii.gz"))
    >>> scan.stem, str(scan.folder), scan.workflow_name
    ('sub-01_ses-M00_run-02', 'sub-01/ses-M00/anat', 'sub_01_ses_M00_run_02')

    Entities that derivatives add come last, in the order of BIDS.

    >>> scan = Scan.from_path(Path("sub-01_desc-preproc_res-1_run-2_T1w.nii.gz"))
    >>> scan.stem, scan.source_entities, scan.derived_entities
    ('sub-01_run-2_res-1_desc-preproc', ['sub-01', 'run-2'], {'res': '1', 'desc': 'preproc'})
    """

    path: Path
    entities: tuple[tuple[str, str], ...]

    @classmethod
    def from_path(cls, path: Path) -> Scan:
        """Read the entities from a file name."""
        parts = path.name.split(".")[0].split("_")[:-1]
        pairs = [part.partition("-")[::2] for part in parts]
        return cls(path, tuple((key, value) for key, value in pairs))

    @property
    def stem(self) -> str:
        """Name without suffix and extension."""
        derived = [f"{key}-{value}" for key, value in self.derived_entities.items()]
        return "_".join([*self.source_entities, *derived])

    @property
    def source_entities(self) -> list[str]:
        """The entities that stand before ``seg`` in the names of derivatives."""
        return [f"{key}-{value}" for key, value in self.entities if key not in _LATE]

    @property
    def derived_entities(self) -> dict[str, str]:
        """The entities that stand behind ``seg`` in the names of derivatives, in their order."""
        values = dict(self.entities)
        return {key: values[key] for key in _LATE if key in values}

    @property
    def subject(self) -> str:
        """Participant label."""
        return dict(self.entities)["sub"]

    @property
    def session(self) -> str | None:
        """Session label."""
        return dict(self.entities).get("ses")

    @property
    def folder(self) -> Path:
        """Folder relative to the dataset."""
        session = [f"ses-{self.session}"] if self.session else []
        return Path(f"sub-{self.subject}", *session, "anat")

    @property
    def workflow_name(self) -> str:
        """Name for nipype: letters, digits and underscores."""
        return re.sub(r"\W", "_", self.stem)
