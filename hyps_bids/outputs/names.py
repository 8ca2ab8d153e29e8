"""Names and places of all files that we write into a derivatives dataset."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from hyps_bids.outputs.scan import AFFINE, ANNUAL_CHANGE, DEFAULT_SUFFIX, LONGITUDINAL, Scan

#: Value of the entity ``seg`` of our segmentations.
SEG = "hippocampus"
#: The same as it stands in file names.
SEG_PREFIX = f"seg-{SEG}"
#: Order of the entities that derivatives add behind ``space``, from the BIDS schema.
_ORDER = ("seg", "res", "den", "label", "desc")
#: Entities that stand behind ``hemi`` in the order of BIDS; ``seg`` is always there.
_BEHIND_HEMI = ("space-", "split-", "recording-", "chunk-", "atlas-", "seg-")
#: Suffixes of the images behind group outputs whose names do not state the contrast.
T1W_ALONE = (DEFAULT_SUFFIX,)
#: Version 0.1 left these entities before ``seg``, which is not valid.
_LATE = re.compile(r"_(?:res|den|label|desc)-")
#: Ends of ``desc`` in names of results over several scans, or in the space of a template.
_NOT_OWN = (LONGITUDINAL, ANNUAL_CHANGE, AFFINE)


def output_path(
    output_dir: Path, scan: Scan, *, suffix: str, extension: str, **entities: str
) -> Path:
    """Return the path of a derivative of a scan, named by :func:`output_name`."""
    name = output_name(scan, suffix=suffix, extension=extension, **entities)
    return output_dir / scan.folder / name


def output_name(scan: Scan, *, suffix: str, extension: str, **entities: str) -> str:
    """Name a derivative of a scan.

    Parameters
    ----------
    scan : Scan
        The source.
    suffix, extension : str
        ``dseg`` and ``.nii.gz``, for example.
    **entities : str
        Entities to add to those of the source. All are put into the order of BIDS, so those that
        an earlier derivative has added to the source, such as ``desc``, come after ``seg``.

    Returns
    -------
    str
        Name of the file.

    Raises
    ------
    ValueError
        If an entity is not one that derivatives add.

    Examples
    --------
    >>> scan = Scan.from_path(Path("sub-01_run-2_T1w.nii.gz"))
    >>> output_name(scan, suffix="mask", extension=".nii.gz", label="ICV")
    'sub-01_run-2_label-ICV_mask.nii.gz'
    >>> scan = Scan.from_path(Path("sub-01_run-2_T2w.nii.gz"))
    >>> output_name(scan, suffix="mask", extension=".nii.gz", label="ICV")
    'sub-01_run-2_space-T2w_label-ICV_mask.nii.gz'
    >>> scan = Scan.from_path(Path("sub-01_desc-preproc_T1w.nii.gz"))
    >>> output_name(scan, suffix="dseg", extension=".nii.gz", seg=SEG)
    'sub-01_seg-hippocampus_desc-preproc_dseg.nii.gz'
    """
    unknown = sorted(set(entities) - set(_ORDER))
    if unknown:
        raise ValueError(f"not entities of derivatives: {unknown}")
    values = scan.derived_entities | entities
    added = [f"{key}-{values[key]}" for key in _ORDER if key in values]
    return "_".join([*scan.source_entities, *added, suffix]) + extension


def parse_output(name: str) -> tuple[str, str] | None:
    """Read from the name of a derivative its scan, and the suffix with the extension.

    Returns
    -------
    (str, str) or None
        None if we would not give this name to a file of a scan. :meth:`Scan.from_stem` makes a
        scan of the first.

    Examples
    --------
    >>> parse_output("sub-01_seg-hippocampus_desc-preproc_qc.tsv")
    ('sub-01_desc-preproc', 'qc.tsv')
    >>> parse_output("sub-01_desc-preproc_seg-hippocampus_qc.tsv")
    >>> parse_output("sub-01_seg-hippocampus_desc-longitudinal_qc.tsv")
    """
    source, _, rest = name.partition(f"_{SEG_PREFIX}_")
    *derived, kind = rest.split("_")
    stem = "_".join([source, *derived])
    elsewhere = any(part.startswith("desc-") and part.endswith(_NOT_OWN) for part in derived)
    is_ours = kind and not (name.startswith(".") or elsewhere or _LATE.search(source))
    return (stem, kind) if is_ours else None


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
    return path.with_name(sidecar_name(path.name))


def sidecar_name(name: str) -> str:
    """Return the name of the JSON sidecar of a file."""
    return name.split(".")[0] + ".json"


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
    folder = output_dir / scan.folder
    return {kind: folder / name for kind, name in scan_names(scan).items()}


def scan_names(scan: Scan) -> dict[str, str]:
    """Return the names of the files of :func:`scan_paths`."""
    kinds = {
        "dseg": {"seg": SEG, "suffix": "dseg", "extension": ".nii.gz"},
        "probseg": {"seg": SEG, "suffix": "probseg", "extension": ".nii.gz"},
        "mask": {"label": "ICV", "suffix": "mask", "extension": ".nii.gz"},
        "morph": {"seg": SEG, "suffix": "morph", "extension": ".tsv"},
        "qc": {"seg": SEG, "suffix": "qc", "extension": ".tsv"},
    }
    return {kind: output_name(scan, **parts) for kind, parts in kinds.items()}


def norms_path(scan: Scan, output_dir: Path) -> Path:
    """Return the table of the norms of a scan, which no scan needs in order to be done.

    Examples
    --------
    >>> norms_path(Scan.from_stem("sub-01_desc-preproc"), Path("out")).name
    'sub-01_seg-hippocampus_desc-preproc_norms.tsv'
    """
    name = output_name(scan, seg=SEG, suffix="norms", extension=".tsv")
    return output_dir / scan.folder / name


def surface_path(scan: Scan, output_dir: Path, hemi: str) -> Path:
    """Return the surface of one hippocampus of a scan, which no scan needs in order to be done.

    Examples
    --------
    >>> scan = Scan.from_stem("sub-01_run-2_space-T2w_desc-preproc")
    >>> surface_path(scan, Path("out"), "L").name
    'sub-01_run-2_hemi-L_space-T2w_seg-hippocampus_desc-preproc_mesh.surf.gii'
    """
    name = output_name(scan, seg=SEG, suffix="mesh", extension=".surf.gii")
    entities = name.split("_")
    behind = [i for i, entity in enumerate(entities) if entity.startswith(_BEHIND_HEMI)]
    entities.insert(behind[0], f"hemi-{hemi}")
    return output_dir / scan.folder / "_".join(entities)


def group_space(suffixes: Collection[str]) -> str:
    """Return what tells the group outputs of some contrasts from those of others.

    It stands in names after an underscore, and is empty for T1w images alone.

    Examples
    --------
    >>> [group_space(suffixes) for suffixes in (["T1w"], ["T2w"], ["T2w", "T1w"])]
    ['', '_space-T2w', '_space-T1w+T2w']
    """
    unique = sorted(set(suffixes))
    return "" if unique == sorted(T1W_ALONE) else f"_space-{'+'.join(unique)}"


def group_path(output_dir: Path, kind: str, suffixes: Collection[str] = T1W_ALONE) -> Path:
    """Return a table of the group level; tables of other contrasts are other files.

    Examples
    --------
    >>> group_path(Path("out"), "desc-wide_morph").name
    'group_seg-hippocampus_desc-wide_morph.tsv'
    >>> group_path(Path("out"), "qc", ["T2w"]).name
    'group_space-T2w_seg-hippocampus_qc.tsv'
    """
    return output_dir / f"group{group_space(suffixes)}_{SEG_PREFIX}_{kind}.tsv"
