"""Measure the shipped (or any) weights: the figures of the README's benchmark table.

Everything runs through the functions that the participant level runs.
"""

from __future__ import annotations

import itertools
import json
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd

from hyps_bids.adaptation.crops import load_crops
from hyps_bids.adaptation.fit import crop_dice
from hyps_bids.errors import MissingInput
from hyps_bids.imaging.agreement import dice
from hyps_bids.imaging.conform import ConformedImage, conform, restore_orientation
from hyps_bids.imaging.resample import resample
from hyps_bids.labels.msd import msd_subject, split_every_fifth
from hyps_bids.outputs.labels import HEMISPHERES
from hyps_bids.segmentation.inference import cached_adapted
from hyps_bids.segmentation.pipeline import Pipeline

__all__ = [
    "evaluate_crops",
    "evaluate_images",
    "evaluate_orientation",
    "evaluate_retest",
    "evaluate_speed",
    "summarize",
]


def evaluate_crops(pipeline: Pipeline, images: Path, labels: Path) -> pd.DataFrame:
    """Dice per class on the fixed test split of MSD Task04.

    Returns
    -------
    pandas.DataFrame
        One row per crop of the test subjects.
    """
    network, card = cached_adapted(pipeline.adapter, pipeline.base)
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
            rows.append(
                {
                    "id": path.name.split("_T1w")[0],
                    "hemi": hemi,
                    "dice": dice(a, b),
                    "volume_mm3": a.sum() * voxel,
                    "reference_mm3": b.sum() * voxel,
                }
            )
    return pd.DataFrame(rows)


def pairs_in(folder: Path) -> Iterator[tuple[Path, Path]]:
    """Find ``X_T1w.nii.gz`` and ``X_dseg.nii.gz`` in a folder.

    Raises
    ------
    MissingInput
        If there is no pair.
    """
    found = [
        (path, path.with_name(path.name.replace("_T1w", "_dseg")))
        for path in sorted(folder.glob("*_T1w.nii*"))
    ]
    found = [pair for pair in found if pair[1].is_file()]
    if not found:
        raise MissingInput(f"{folder}: no pair of *_T1w.nii.gz and *_dseg.nii.gz")
    yield from found


def evaluate_retest(
    pipeline: Pipeline, paths: Sequence[Path], *, moves: int = 4, seed: int = 0
) -> pd.DataFrame:
    """Move heads by up to ±5° and ±5 mm, segment, move back and compare.

    Each head is resampled once per move on its own grid; the reference is the segmentation of the
    image as it is.

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
        center = image.affine @ [*(np.array(image.data.shape) - 1) / 2, 1]
        for move in range(moves):
            rigid = _rigid(rng.uniform(-5, 5, 3), rng.uniform(-5, 5, 3), center[:3])
            moved_data = resample(
                image.data,
                image.affine,
                image.data.shape,
                rigid @ image.affine,
                outside=float(image.data.min()),
            )
            moved_image = ConformedImage(
                moved_data, image.affine, image.native_shape, image.orientation
            )
            moved = pipeline.segment(moved_image)
            for i, hemi in enumerate(HEMISPHERES):
                mask = (moved == i + 1).astype(np.float32)
                # where the moved grid shows what this voxel shows
                back = resample(mask, rigid @ image.affine, still.shape, image.affine) > 0.5
                before, after = (still == i + 1).sum(), (moved == i + 1).sum()
                rows.append(
                    {
                        "id": path.name.split("_T1w")[0],
                        "move": move,
                        "hemi": hemi,
                        "dice": dice(still == i + 1, back),
                        "volume_change": float(after / before - 1) if before else float("nan"),
                    }
                )
    return pd.DataFrame(rows)


def _rigid(degrees: np.ndarray, shift: np.ndarray, center: np.ndarray) -> np.ndarray:
    rotation = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(degrees)):
        turn = np.eye(3)
        i, j = [k for k in range(3) if k != axis]
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        rotation = rotation @ turn
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
        For temporary files.
    every : int
        Take every so many-th orientation only.

    Returns
    -------
    pandas.DataFrame
        One row per orientation: axes, dice_L, dice_R with the first.
    """
    source = nib.load(path)
    canonical = nib.as_closest_canonical(source)
    reference: np.ndarray | None = None
    rows = []
    for axes in orientations()[::every]:
        ornt = nib.orientations.axcodes2ornt(axes)
        turned = canonical.as_reoriented(
            nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), ornt)
        )
        turned_path = folder / f"{axes}_T1w.nii"
        nib.save(turned, turned_path)
        labels = pipeline.segment(conform(turned_path))
        turned_path.unlink()
        if reference is None:
            reference = labels
        rows.append(
            {"axes": axes}
            | {
                f"dice_{hemi}": dice(reference == i + 1, labels == i + 1)
                for i, hemi in enumerate(HEMISPHERES)
            }
        )
    return pd.DataFrame(rows)


def orientations() -> list[str]:
    """List the 48 axis codes.

    Examples
    --------
    >>> len(orientations()), orientations()[0]
    (48, 'RAS')
    """
    pairs = (("R", "L"), ("A", "P"), ("S", "I"))
    return [
        "".join(pairs[axis][flip] for axis, flip in zip(order, flips, strict=True))
        for order in itertools.permutations(range(3))
        for flips in itertools.product((0, 1), repeat=3)
    ]


def evaluate_speed(pipeline: Pipeline, paths: Sequence[Path], *, repeats: int = 3) -> pd.DataFrame:
    """Time localize, segment and restore, without start and reading.

    Returns
    -------
    pandas.DataFrame
        One row per image and repeat after a first one that does not count; seconds.
    """
    rows = []
    for path in paths:
        image = conform(path)
        pipeline.segment(image)
        for repeat in range(repeats):
            _, seconds = pipeline.timed(image)
            rows.append(
                {"id": path.name.split("_T1w")[0], "repeat": repeat}
                | seconds
                | {"total": sum(seconds.values())}
            )
    return pd.DataFrame(rows)


def summarize(table: pd.DataFrame) -> dict[str, float]:
    """Mean, SD, minimum and median of each figure, and volume agreement if there is a reference."""
    statistics: dict[str, Callable[[pd.Series], float]] = {
        "mean": pd.Series.mean,
        "sd": pd.Series.std,
        "min": pd.Series.min,
        "max": pd.Series.max,
        "median": pd.Series.median,
    }
    out = {}
    for column in table.select_dtypes("float"):
        for name, function in statistics.items():
            out[f"{column}_{name}"] = round(float(function(table[column])), 4)
    if "volume_change" in table:
        out["volume_change_mean_absolute"] = round(float(table["volume_change"].abs().mean()), 4)
    if "reference_mm3" in table and len(table) > 2:
        both = table[["volume_mm3", "reference_mm3"]]
        out["volume_correlation"] = round(float(both.corr().iloc[0, 1]), 4)
        for hemi, side in table.groupby("hemi"):
            correlation = side[["volume_mm3", "reference_mm3"]].corr().iloc[0, 1]
            out[f"volume_correlation_{hemi}"] = round(float(correlation), 4)
        out["volume_ratio"] = round(float((both["volume_mm3"] / both["reference_mm3"]).mean()), 4)
    return out


def report(table: pd.DataFrame, output: Path | None) -> None:
    """Print the summary, and write the table if asked."""
    if output is not None:
        table.to_csv(output, sep="\t", index=False, float_format="%.4f")
    print(json.dumps(summarize(table), indent=2))
