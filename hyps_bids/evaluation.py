"""Measure any weights as in the README's benchmark table.

Everything runs through the steps that the participant level runs.
"""

from __future__ import annotations

import itertools
import json
import operator
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from nibabel.eulerangles import euler2mat

from hyps_bids.adaptation.crops import load_crops
from hyps_bids.adaptation.fit import crop_dice
from hyps_bids.errors import MissingInput
from hyps_bids.imaging.agreement import dice
from hyps_bids.imaging.conform import ConformedImage, conform, restore_orientation
from hyps_bids.imaging.resample import resample
from hyps_bids.labels.msd import msd_subject, split_every_fifth
from hyps_bids.networks.checkpoints import load_merged
from hyps_bids.outputs.labels import HEMISPHERES
from hyps_bids.segmentation.pipeline import Pipeline


def evaluate_crops(pipeline: Pipeline, images: Path, labels: Path) -> pd.DataFrame:
    """Compute the Dice of each class on the fixed test split of MSD Task04.

    Returns
    -------
    pandas.DataFrame
        One row per crop of the test subjects.
    """
    network, card = load_merged(pipeline.adapter, pipeline.base)
    crops = load_crops(images, labels)
    _, test = split_every_fifth([msd_subject(name) for name in crops.ids])
    rows = []
    for name in crops.ids:
        if msd_subject(name) in test:
            one = crops.select(partial(operator.eq, name))
            rows.append({"id": name} | crop_dice(network, one, card["labels"]))
    return pd.DataFrame(rows)


def evaluate_images(
    pipeline: Pipeline, pairs: Iterable[tuple[Path, Path]], values: tuple[int, int]
) -> pd.DataFrame:
    """Compare whole hippocampi with reference segmentations on the same grid, end to end.

    Parameters
    ----------
    pipeline : Pipeline
        The networks.
    pairs : iterable of (Path, Path)
        T1w image and label image.
    values : tuple of int
        Labels of the left and the right hippocampus in the references.

    Returns
    -------
    pandas.DataFrame
        One row per side: id, hemi, dice, volume_mm3, reference_mm3.
    """
    rows = []
    for path, reference in pairs:
        image = conform(path)
        ours = restore_orientation(pipeline.segment(image), image.orientation)
        theirs = np.asarray(nib.load(reference).dataobj).reshape(ours.shape)
        voxel = float(abs(np.linalg.det(image.affine[:3, :3])))
        for i, hemi in enumerate(HEMISPHERES):
            a, b = ours == i + 1, theirs == values[i]
            row = {"id": _name(path), "hemi": hemi, "dice": dice(a, b)}
            rows.append(row | {"volume_mm3": a.sum() * voxel, "reference_mm3": b.sum() * voxel})
    return pd.DataFrame(rows)


def pairs_in(folder: Path) -> list[tuple[Path, Path]]:
    """Find the pairs ``X_T1w.nii.gz`` and ``X_dseg.nii.gz`` in a folder.

    Raises
    ------
    MissingInput
        If there is no pair.
    """
    found = [
        (path, path.with_name(path.name.replace("_T1w", "_dseg")))
        for path in sorted(folder.glob("*_T1w.nii*"))
    ]
    pairs = [(path, labels) for path, labels in found if labels.is_file()]
    if not pairs:
        raise MissingInput(
            f"{folder}: there is no pair of *_T1w.nii.gz and *_dseg.nii.gz", code="no-image-pair"
        )
    return pairs


def evaluate_retest(
    pipeline: Pipeline, paths: Sequence[Path], *, moves: int = 4, seed: int = 0
) -> pd.DataFrame:
    """Move heads by up to ±5° and ±5 mm, segment, move back and compare.

    Each head is resampled once per move on its own grid. The reference is the segmentation of the
    image that was not moved.

    Returns
    -------
    pandas.DataFrame
        One row per head, move and side: dice, volume_change (relative, signed).
    """
    rng = np.random.default_rng(seed)
    rows = []
    for path in paths:
        image = conform(path)
        still = pipeline.segment(image)
        shape, center = still.shape, image.affine @ [*(np.array(still.shape) - 1) / 2, 1]
        for move in range(moves):
            # Where the voxels of the moved image lie in the world of the head.
            there = _rigid(rng.uniform(-5, 5, 3), rng.uniform(-5, 5, 3), center[:3]) @ image.affine
            data = resample(image.data, image.affine, shape, there, outside=float(image.data.min()))
            moved = pipeline.segment(
                ConformedImage(data, image.affine, image.native_shape, image.orientation)
            )
            for i, hemi in enumerate(HEMISPHERES):
                mask = (moved == i + 1).astype(np.float32)
                back = resample(mask, there, shape, image.affine) > 0.5
                before, after = (still == i + 1).sum(), (moved == i + 1).sum()
                change = float(after / before - 1) if before else float("nan")
                row = {"id": _name(path), "move": move, "hemi": hemi}
                rows.append(row | {"dice": dice(still == i + 1, back), "volume_change": change})
    return pd.DataFrame(rows)


def _rigid(degrees: np.ndarray, shift: np.ndarray, center: np.ndarray) -> np.ndarray:
    """Return the transform that turns about `center` and then shifts by `shift`."""
    x, y, z = np.deg2rad(degrees)
    rotation = euler2mat(z, -y, x)
    matrix = np.eye(4)
    matrix[:3, :3] = rotation
    matrix[:3, 3] = center - rotation @ center + shift
    return matrix


def evaluate_orientation(
    pipeline: Pipeline, path: Path, folder: Path, *, every: int = 1
) -> pd.DataFrame:
    """Store one head in all 48 axis orders and flips, and compare the segmentations in the world.

    Parameters
    ----------
    pipeline : Pipeline
        The networks.
    path : Path
        The head.
    folder : Path
        Folder for temporary files.
    every : int
        Take only one of so many orientations.

    Returns
    -------
    pandas.DataFrame
        One row per orientation: axes, dice_L and dice_R with the first orientation.
    """
    canonical = nib.as_closest_canonical(nib.load(path))
    ras = nib.orientations.axcodes2ornt("RAS")
    first: np.ndarray | None = None
    rows = []
    for axes in orientations()[::every]:
        turn = nib.orientations.ornt_transform(ras, nib.orientations.axcodes2ornt(axes))
        turned_path = folder / f"{axes}_T1w.nii"
        nib.save(canonical.as_reoriented(turn), turned_path)
        labels = pipeline.segment(conform(turned_path))
        turned_path.unlink()
        first = labels if first is None else first
        scores = {f"dice_{h}": dice(first == i, labels == i) for i, h in enumerate(HEMISPHERES, 1)}
        rows.append({"axes": axes} | scores)
    return pd.DataFrame(rows)


def orientations() -> list[str]:
    """List the 48 axis codes.

    Examples
    --------
    >>> len(orientations()), orientations()[0]
    (48, 'RAS')
    """
    return [
        "".join(ends)
        for axes in itertools.permutations(("RL", "AP", "SI"))
        for ends in itertools.product(*axes)
    ]


def evaluate_speed(pipeline: Pipeline, paths: Sequence[Path], *, repeats: int = 3) -> pd.DataFrame:
    """Time the steps from bias correction to restoring, without start and reading.

    Returns
    -------
    pandas.DataFrame
        One row per image and repeat, in seconds; an earlier first run of each image is left out.
    """
    rows = []
    for path in paths:
        image = conform(path)
        pipeline.run(image)
        for repeat in range(repeats):
            seconds = pipeline.run(image).seconds
            row = {"id": _name(path), "repeat": repeat}
            rows.append(row | seconds | {"total": sum(seconds.values())})
    return pd.DataFrame(rows)


def summarize(table: pd.DataFrame) -> dict[str, float]:
    """Summarize each column of numbers, and the agreement of volumes if there is a reference."""
    out = {}
    for column in table.select_dtypes("float"):
        values = table[column]
        for name, value in {
            "mean": values.mean(),
            "sd": values.std(),
            "min": values.min(),
            "max": values.max(),
            "median": values.median(),
        }.items():
            out[f"{column}_{name}"] = round(float(value), 4)
    if "volume_change" in table:
        out["volume_change_mean_absolute"] = round(float(table["volume_change"].abs().mean()), 4)
    if "reference_mm3" in table and len(table) > 2:
        out["volume_correlation"] = _correlation(table)
        for hemi, side in table.groupby("hemi"):
            out[f"volume_correlation_{hemi}"] = _correlation(side)
        out["volume_ratio"] = round(float((table["volume_mm3"] / table["reference_mm3"]).mean()), 4)
    return out


def report(table: pd.DataFrame, output: Path | None) -> None:
    """Print the summary, and write the table if a path is given."""
    if output is not None:
        table.to_csv(output, sep="\t", index=False, float_format="%.4f")
    print(json.dumps(summarize(table), indent=2))


def _correlation(table: pd.DataFrame) -> float:
    return round(float(table["volume_mm3"].corr(table["reference_mm3"])), 4)


def _name(path: Path) -> str:
    return path.name.split("_T1w")[0]
