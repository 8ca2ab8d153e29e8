"""The value object of one image: its path, its contrast and its BIDS entities."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from hyps_bids.settings import SUFFIXES

#: Suffix of images whose outputs have names that do not state the contrast.
DEFAULT_SUFFIX = "T1w"
#: Values of the entity ``space`` that mean the world coordinates of the scan itself.
OWN_SPACES = frozenset({"T1w", "individual", "native", "orig", "scanner"})
#: Entities that stand behind ``seg`` in the names of derivatives.
_LATE = ("res", "den", "label", "desc")
#: Ends of ``desc`` in the names of results over several scans; see :mod:`hyps_bids.outputs.series`.
LONGITUDINAL, ANNUAL_CHANGE = "longitudinal", "annualchange"
#: End of ``desc`` in the names of a scan's results in the space of a template.
AFFINE = "affine"
_RESERVED = re.compile(rf"(.*(?:{LONGITUDINAL}|{ANNUAL_CHANGE}|{AFFINE}))(0*)")
#: Entity that tells contrasts of the same suffix apart → its name in filter files
CONTRAST_ENTITIES = {"ce": "ceagent", "echo": "echo", "part": "part"}
#: Entities that stand behind ``space`` in the order of BIDS, but before ``seg``.
_BEHIND_SPACE = ("split", "recording", "chunk", "atlas")
_EXTENSIONS = (".nii.gz", ".nii")
#: Names of images of any contrast.
IMAGE_NAME = re.compile(rf"[^./][^.]*_(?:{'|'.join(SUFFIXES)})\.nii(?:\.gz)?")


@dataclass(frozen=True, order=True)
class Scan:
    """One image of a head, T1w or of another contrast.

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

    Contrasts other than T1w are told apart by the entity ``space``.

    >>> [Scan.from_path(Path(f"sub-01{name}.nii.gz")).stem for name in ("_T2w", "_space-T1w_T2w")]
    ['sub-01_space-T2w', 'sub-01_space-T1wT2w']
    """

    path: Path
    entities: tuple[tuple[str, str], ...]

    @classmethod
    def from_path(cls, path: Path) -> Scan:
        """Read the entities from a file name."""
        parts = path.name.split(".")[0].split("_")[:-1]
        pairs = [part.partition("-")[::2] for part in parts]
        return cls(path, tuple((key, value) for key, value in pairs))

    @classmethod
    def from_stem(cls, stem: str) -> Scan:
        """Return the scan with this stem; its path is a file name only.

        Examples
        --------
        >>> scan = Scan.from_stem("sub-01_space-T1wT2w_desc-preproc")
        >>> scan.path.name, scan.suffix, scan.stem
        ('sub-01_space-T1w_desc-preproc_T2w.nii.gz', 'T2w', 'sub-01_space-T1wT2w_desc-preproc')
        """
        entities, suffix = [], DEFAULT_SUFFIX
        for part in stem.split("_"):
            key, _, value = part.partition("-")
            if key == "space":
                value, suffix = _split_space(value)
            if key == "desc" and (reserved := _RESERVED.fullmatch(value)):
                value = reserved[1] + reserved[2][1:]
            if value or key != "space":
                entities.append((key, value))
        name = "_".join([*(f"{key}-{value}" for key, value in entities), suffix])
        return cls(Path(name + _EXTENSIONS[0]), tuple(entities))

    @property
    def suffix(self) -> str:
        """BIDS suffix of the image, which states its contrast."""
        return self.path.name.split(".")[0].rpartition("_")[2]

    @property
    def stem(self) -> str:
        """Name that tells the scan from all others of the dataset, its contrast included."""
        derived = [f"{key}-{value}" for key, value in self.derived_entities.items()]
        return "_".join([*self.source_entities, *derived])

    @property
    def image_names(self) -> tuple[str, ...]:
        """Names that the image may have in the dataset, compressed or not."""
        return image_names(self.stem)

    @property
    def space(self) -> str:
        """Value of the entity ``space`` in the names of derivatives; empty for most T1w images."""
        own = [value for key, value in self.entities if key == "space"]
        return _join_space(own[0] if own else "", self.suffix)

    @property
    def source_entities(self) -> list[str]:
        """The entities that stand before ``seg`` in the names of derivatives."""
        return self.entities_in(self.space)

    def entities_in(self, space: str) -> list[str]:
        """Return the entities of :attr:`source_entities` with another ``space``, or without it."""
        pairs = [pair for pair in self.entities if pair[0] not in _LATE]
        own = [i for i, (key, _) in enumerate(pairs) if key == "space"]
        if space or own:
            behind = [i for i, (key, _) in enumerate(pairs) if key in _BEHIND_SPACE]
            place = (own or behind or [len(pairs)])[0]
            pairs[place : place + len(own[:1])] = [("space", space)] if space else []
        return [f"{key}-{value}" for key, value in pairs]

    @property
    def derived_entities(self) -> dict[str, str]:
        """The entities that stand behind ``seg`` in the names of derivatives, in their order.

        A ``desc`` that would make them names of results over several scans, or in the space of a
        template, has a zero added.
        """
        values = dict(self.entities)
        if _RESERVED.fullmatch(values.get("desc", "")):
            values["desc"] += "0"
        return {key: values[key] for key in _LATE if key in values}

    @property
    def contrast(self) -> str:
        """Contrast of the image: its suffix, after the entities that change the contrast.

        Examples
        --------
        >>> stems = ["sub-01_run-2", "sub-01_ce-gadolinium", "sub-01_part-mag_space-T2w"]
        >>> [Scan.from_stem(stem).contrast for stem in stems]
        ['T1w', 'ce-gadolinium_T1w', 'T2w']
        """
        found = [
            f"{key}-{value}"
            for key, value in self.entities
            # Magnitudes are what images show unless they say otherwise.
            if key in CONTRAST_ENTITIES and (key, value) != ("part", "mag")
        ]
        return "_".join([*found, self.suffix])

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


def image_names(stem: str) -> tuple[str, ...]:
    """Return the names that the image of a scan with this stem may have.

    Examples
    --------
    >>> image_names("sub-01_space-FLAIR_desc-x")
    ('sub-01_desc-x_FLAIR.nii.gz', 'sub-01_desc-x_FLAIR.nii')
    """
    name = Scan.from_stem(stem).path.name.removesuffix(_EXTENSIONS[0])
    return tuple(name + extension for extension in _EXTENSIONS)


def _join_space(space: str, suffix: str) -> str:
    """Return the value of ``space`` in the names of derivatives; none for most T1w images.

    It is the suffix, or the image's own space followed by the suffix. That of a T1w image is its
    own space alone, unless this would mean another contrast.
    """
    if suffix not in SUFFIXES:
        return space
    plain = space if suffix == DEFAULT_SUFFIX else space or suffix
    return plain if _split_space(plain) == (space, suffix) else space + suffix


def _split_space(value: str) -> tuple[str, str]:
    """Return the image's own ``space``, which may be empty, and its suffix."""
    for suffix in SUFFIXES:
        if value == suffix != DEFAULT_SUFFIX:
            return "", suffix
        if value.endswith(suffix) and value != suffix:
            return value.removesuffix(suffix), suffix
    return value, DEFAULT_SUFFIX
