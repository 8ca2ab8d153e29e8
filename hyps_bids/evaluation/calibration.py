"""Segment good and spoiled images, and record features and the true Dice of every side.

The table that this leaves is what the expected Dice is fitted to. Its target ``true`` is the Dice
with the labels that a rater of the MSD protocol would draw. On labeled crops it is measured. On
whole heads it is the Dice with the result of the unspoiled image, times the mean Dice with the
rater on unspoiled crops that the networks have not learned from.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd

from hyps_bids.errors import BadData, UsageError
from hyps_bids.evaluation.heads import Head, Spoiled, head_from_crop, head_from_result
from hyps_bids.evaluation.images import pairs_in
from hyps_bids.evaluation.tables import head_name
from hyps_bids.evaluation.variants import spoil, variants
from hyps_bids.imaging.agreement import dice
from hyps_bids.imaging.conform import ConformedImage, conform
from hyps_bids.imaging.volumes import restore
from hyps_bids.labels.msd import msd_subject, split_every_fifth, validation_subjects
from hyps_bids.messages import join_names
from hyps_bids.outputs.digests import sha256
from hyps_bids.outputs.labels import HEMISPHERES
from hyps_bids.segmentation.features import describe_sides
from hyps_bids.segmentation.localize import Location
from hyps_bids.segmentation.measures import measure_scan
from hyps_bids.segmentation.pipeline import Pipeline, localize, restore_sides, segment

_LOG = logging.getLogger("hyps_bids")
#: Columns of the table that name a row.
KEYS = ("subject", "source", "kind", "strength", "hemi")
#: Kind of images that were not spoiled, and of further contrasts of the same session.
UNSPOILED, CONTRAST = "none", "suffix"


@dataclass(frozen=True)
class Subject:
    """One head, or both crops of an MSD subject, that are spoiled in several ways.

    Attributes
    ----------
    name : str
        Subject, by which rows are left out together.
    source : str
        ``head``, ``manual`` for a head with manual labels, or ``training``, ``validation`` or
        ``test`` for MSD crops.
    images : tuple of Path
        The T1w image and further contrasts on its grid, or the crops.
    labels : tuple of Path
        Label images of the crops, or of the head.
    per_kind : int
        Number of strengths of each kind; 0 for the unspoiled image alone.
    """

    name: str
    source: str
    images: tuple[Path, ...]
    labels: tuple[Path, ...] = ()
    per_kind: int = 2


def find_heads(paths: Sequence[Path], per_kind: int) -> list[Subject]:
    """Make subjects of T1w images; other contrasts on the same grid beside them belong to them.

    Images of other sessions do not: the head lies elsewhere in them, even on the same grid.
    """
    found = []
    for path in paths:
        grid = nib.load(path)
        others = [
            other
            for other in sorted(path.parent.glob("sub-*.nii*"))
            if other != path
            and _session(other) == _session(path)
            and nib.load(other).shape == grid.shape
            and np.allclose(nib.load(other).affine, grid.affine, atol=1e-3)
        ]
        found.append(Subject(head_name(path), "head", (path, *others), per_kind=per_kind))
    return found


def _session(path: Path) -> str:
    """Return the first entities of a BIDS name, or all of another name."""
    match = re.match(r"sub-[^_]+(_ses-[^_]+)?_", path.name)
    return match[0] if match else path.name


def find_labeled_heads(folder: Path, per_kind: int) -> list[Subject]:
    """Make subjects of heads with manual labels: 1 for the left and 2 for the right hippocampus."""
    return [
        Subject(head_name(image), "manual", (image,), (labels,), per_kind)
        for image, labels in pairs_in(folder)
    ]


def find_crops(images: Path, labels: Path, per_kind: int) -> list[Subject]:
    """Make subjects of the crops of MSD Task04, and tell which part of the fixed split they are."""
    paths: dict[int, list[Path]] = {}
    for path in sorted(images.glob("*.nii*")):
        if not path.name.startswith("."):
            paths.setdefault(msd_subject(path.name.split(".")[0]), []).append(path)
    _, test = split_every_fifth([*paths])
    validating = validation_subjects([*paths])
    found = []
    for subject, crops in paths.items():
        source = "test" if subject in test else "training"
        source = "validation" if subject in validating else source
        partners = tuple(labels / path.name for path in crops)
        found.append(Subject(f"msd{subject:03d}", source, tuple(crops), partners, per_kind))
    return found


def collect(
    pipeline: Pipeline, subjects: Sequence[Subject], folder: Path, processes: int = 1
) -> pd.DataFrame:
    """Measure all variants of all subjects; what an earlier call has measured is kept.

    Parameters
    ----------
    pipeline : Pipeline
        The networks.
    subjects : sequence of Subject
        What to spoil.
    folder : Path
        One file for each subject is written here, line by line.
    processes : int
        Number of processes.

    Raises
    ------
    UsageError
        If the folder holds measurements of other networks, or two subjects have the same name.
    """
    counts = Counter(subject.name for subject in subjects)
    if twice := [name for name, count in counts.items() if count > 1]:
        raise UsageError(
            f"{join_names(twice)}: more than one subject has this name, so that their measurements "
            "would be mixed; rename the images",
            code="calibration-same-name",
        )
    folder.mkdir(parents=True, exist_ok=True)
    _check_networks(pipeline, folder)
    work = partial(_collect_subject, pipeline, folder)
    if processes == 1:
        for number, subject in enumerate(subjects, start=1):
            work(subject)
            _LOG.info("%s: %d of %d", subject.name, number, len(subjects))
    else:
        with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
            tasks = {pool.submit(work, subject): subject for subject in subjects}
            for number, task in enumerate(as_completed(tasks), start=1):
                task.result()
                _LOG.info("%s: %d of %d", tasks[task].name, number, len(subjects))
    return read_rows(folder, subjects)


def networks_of(pipeline: Pipeline) -> dict[str, str]:
    """Return the SHA-256 sums of the networks by their role, as the sidecars of scans name them."""
    return {
        "Localizer": sha256(pipeline.localizer),
        "Base": sha256(pipeline.base),
        "Adapter": sha256(pipeline.adapter),
    }


def read_rows(folder: Path, subjects: Sequence[Subject]) -> pd.DataFrame:
    """Read what was measured; the sides that were not found have no features."""
    rows = [row for subject in subjects for _, rows in _read(folder, subject) for row in rows]
    return pd.DataFrame(rows)


def _check_networks(pipeline: Pipeline, folder: Path) -> None:
    known, now = folder / "networks.json", networks_of(pipeline)
    if not known.exists():
        known.write_text(json.dumps(now, indent=2), encoding="utf-8")
    elif json.loads(known.read_text(encoding="utf-8")) != now:
        raise UsageError(
            f"{folder}: holds measurements of other networks; choose another folder",
            code="calibration-other-networks",
        )


def _read(folder: Path, subject: Subject) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    path = folder / f"{subject.name}.jsonl"
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            name, rows = json.loads(line)
        except ValueError:
            # The process was stopped while it wrote this line.
            continue
        yield name, rows


def _collect_subject(pipeline: Pipeline, folder: Path, subject: Subject) -> None:
    from hyps_bids.segmentation.devices import prepare_process

    prepare_process(1)
    done = {name for name, _ in _read(folder, subject)}
    measure = _measure_head if subject.source in ("head", "manual") else _measure_crops
    with (folder / f"{subject.name}.jsonl").open("a", encoding="utf-8") as stream:
        if stream.tell():
            # The last line may be incomplete.
            stream.write("\n")
        for name, rows in measure(pipeline, subject, done):
            stream.write(json.dumps([name, rows]) + "\n")
            stream.flush()


def _choose(subject: Subject, *, crops: bool) -> Iterator[tuple[str, str]]:
    """Choose strengths of every kind, others for each subject."""
    rng = np.random.default_rng(sum(subject.name.encode()))
    kinds: dict[str, list[str]] = {}
    for kind, strength in variants(crops=crops):
        kinds.setdefault(kind, []).append(strength)
    names = [*kinds]
    if crops:
        # A crop costs little, but there are many of them.
        names = [names[k] for k in rng.permutation(len(names))[: max(1, len(names) // 4)]]
    for kind in names:
        strengths = kinds[kind]
        count = min(len(strengths), subject.per_kind)
        for k in sorted(rng.permutation(len(strengths))[:count]):
            yield kind, strengths[k]


def _measure_head(
    pipeline: Pipeline, subject: Subject, done: set[str]
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    image = conform(subject.images[0])
    whole = Spoiled(image.data, image.affine)
    result = pipeline.run(image)
    head = head_from_result(result)
    if subject.labels:
        known = conform(subject.labels[0], is_label=True).data.round()
        sides = {hemi: known == value for value, hemi in enumerate(HEMISPHERES, start=1)}
        head = replace(head, sides=sides)
    for path in subject.images:
        kind, strength = (
            (UNSPOILED, "") if path == subject.images[0] else (CONTRAST, path.name.split(".")[0])
        )
        if (name := f"{kind}:{strength}") not in done:
            given = image if kind == UNSPOILED else conform(path)
            spoiled = replace(whole, data=given.data)
            yield name, _rows(pipeline, subject, (kind, strength), head, spoiled)
    for kind, strength in _choose(subject, crops=False):
        if (name := f"{kind}:{strength}") not in done:
            try:
                spoiled = spoil(head, kind, strength, seed=1)
                yield name, _rows(pipeline, subject, (kind, strength), head, spoiled)
            except BadData:
                # The run says so itself, and gives no result to be judged.
                yield name, []


def _rows(
    pipeline: Pipeline,
    subject: Subject,
    variant: tuple[str, str],
    head: Head,
    spoiled: Spoiled,
    center: np.ndarray | None = None,
) -> list[dict[str, Any]]:
    """Run the networks on an image, and describe and judge each side.

    Crops have no localization; their box is around `center`.
    """
    image = ConformedImage(spoiled.data, spoiled.affine, _shape(spoiled.data), np.eye(3))
    if center is None:
        found = localize(image, pipeline.localizer)
        places = found.hippocampi
    else:
        found = None
        x, y, z = (float(value) for value in center)
        places = {"L": Location((x, y, z), math.nan, math.nan), "R": None}
    segmentation = segment(image, places, pipeline.adapter, pipeline.base)
    restored = restore_sides(image, segmentation)
    features = describe_sides(image, found, segmentation.sides, restored)
    flags = () if found is None else measure_scan(image, found, segmentation, restored).flags
    visible = spoiled.visible(head)
    rows = []
    for hemi, truth in spoiled.hippocampi(head).items():
        keys = (subject.name, subject.source, *variant, hemi)
        row: dict[str, Any] = dict(zip(KEYS, keys, strict=True))
        row |= {"found": hemi in features, "visible": visible[hemi], "flags": " ".join(flags)}
        row["removed"] = int(not truth.any())
        if hemi in features:
            side = segmentation.sides[hemi]
            grid = spoiled.grid(head)
            there = restore(side.probabilities, side.affine, truth.shape, grid)
            row |= {"dice": _dice_of_visible(there.labels > 0, there.region, truth, spoiled, head)}
            row |= features[hemi]
        rows.append(row)
    return rows


def _shape(data: np.ndarray) -> tuple[int, int, int]:
    x, y, z = data.shape
    return x, y, z


def _dice_of_visible(
    ours: np.ndarray,
    region: tuple[slice, slice, slice],
    truth: np.ndarray,
    spoiled: Spoiled,
    head: Head,
) -> float:
    """Compute the Dice coefficient within the field of view, as a rater sees no more."""
    mask = np.zeros(truth.shape, bool)
    mask[region] = ours
    both = np.argwhere(mask | truth)
    to_voxel = np.linalg.inv(spoiled.affine) @ spoiled.grid(head)
    index = both @ to_voxel[:3, :3].T + to_voxel[:3, 3]
    seen = ((index >= -0.5) & (index <= np.array(spoiled.data.shape) - 0.5)).all(axis=1)
    there = tuple(both[seen].T)
    return dice(mask[there], truth[there])


def _measure_crops(
    pipeline: Pipeline, subject: Subject, done: set[str]
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    for path, labels in zip(subject.images, subject.labels, strict=True):
        image = conform(path)
        known = conform(labels, is_label=True)
        head = head_from_crop(image.data, known.data.round() > 0, image.affine)
        middle = np.array([*(np.array(image.data.shape) - 1) / 2, 1.0])
        chosen = [(UNSPOILED, "")]
        chosen += _choose(replace(subject, name=path.name), crops=True)
        for kind, strength in chosen:
            name = f"{path.name}:{kind}:{strength}"
            if name in done:
                continue
            spoiled = Spoiled(image.data, image.affine)
            if kind != UNSPOILED:
                spoiled = spoil(head, kind, strength, seed=1)
            center = (spoiled.grid(head) @ middle)[:3]
            yield name, _rows(pipeline, subject, (kind, strength), head, spoiled, center)
