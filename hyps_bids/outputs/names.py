"""Names and places of all files that we write into a derivatives dataset."""

from __future__ import annotations

from pathlib import Path

from hyps_bids.outputs.scan import Scan

__all__ = [
    "SEG",
    "SEG_PREFIX",
    "bids_uri",
    "group_path",
    "output_path",
    "scan_paths",
    "sidecar_path",
]

#: value of the entity ``seg`` of our segmentations
SEG = "hippocampus"
#: the same as it stands in file names
SEG_PREFIX = f"seg-{SEG}"
#: order of the entities that derivatives add, from the BIDS schema
_ORDER = ("space", "seg", "res", "den", "label", "desc")


def output_path(
    output_dir: Path, scan: Scan, *, suffix: str, extension: str, **entities: str
) -> Path:
    """Name a derivative of a scan.

    Parameters
    ----------
    output_dir : Path
        The derivatives dataset.
    scan : Scan
        The source.
    suffix, extension : str
        ``dseg`` and ``.nii.gz``, for example.
    **entities : str
        Entities to add to those of the source.

    Returns
    -------
    Path
        The file; its folder need not exist.

    Raises
    ------
    ValueError
        If an entity is not one that derivatives add.

    Examples
    --------
    >>> scan = Scan.from_path(Path("sub-01_run-2_T1w.nii.gz"))
    >>> output_path(Path("out"), scan, suffix="mask", extension=".nii.gz", label="ICV").name
    'sub-01_run-2_label-ICV_mask.nii.gz'
    """
    unknown = sorted(set(entities) - set(_ORDER))
    if unknown:
        raise ValueError(f"not entities of derivatives: {unknown}")
    added = [f"{key}-{entities[key]}" for key in _ORDER if key in entities]
    return output_dir / scan.folder / ("_".join([scan.stem, *added, suffix]) + extension)


def bids_uri(dataset: str, relative: Path) -> str:
    """Name a file of a dataset as a BIDS URI.

    Examples
    --------
    >>> bids_uri("raw", Path("sub-01/anat/sub-01_T1w.nii.gz"))
    'bids:raw:sub-01/anat/sub-01_T1w.nii.gz'
    """
    return f"bids:{dataset}:{relative.as_posix()}"


def sidecar_path(path: Path) -> Path:
    """Return the JSON sidecar of a file, whatever extension the file has.

    Examples
    --------
    >>> sidecar_path(Path("sub-01_dseg.nii.gz")).name
    'sub-01_dseg.json'
    """
    return path.with_name(path.name.split(".")[0] + ".json")


def scan_paths(scan: Scan, output_dir: Path) -> dict[str, Path]:
    """Return the files that the participant level writes for one scan, without their sidecars.

    Parameters
    ----------
    scan : Scan
        The scan.
    output_dir : Path
        The derivatives dataset.

    Returns
    -------
    dict of str to Path
        Keys are ``dseg``, ``probseg``, ``mask``, ``morph`` and ``qc``.
    """
    kinds = {
        "dseg": {"seg": SEG, "suffix": "dseg", "extension": ".nii.gz"},
        "probseg": {"seg": SEG, "suffix": "probseg", "extension": ".nii.gz"},
        "mask": {"label": "ICV", "suffix": "mask", "extension": ".nii.gz"},
        "morph": {"seg": SEG, "suffix": "morph", "extension": ".tsv"},
        "qc": {"seg": SEG, "suffix": "qc", "extension": ".tsv"},
    }
    return {name: output_path(output_dir, scan, **kind) for name, kind in kinds.items()}


def group_path(output_dir: Path, kind: str) -> Path:
    """Return a table of the group level.

    Examples
    --------
    >>> group_path(Path("out"), "desc-wide_morph").name
    'group_seg-hippocampus_desc-wide_morph.tsv'
    """
    return output_dir / f"group_{SEG_PREFIX}_{kind}.tsv"
