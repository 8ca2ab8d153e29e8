"""Labeled whole heads as training crops, and the checks that labels must pass first.

A crop is what the network sees of the scan at the participant level, with some more around it for
augmentation: 1 mm, around the localizer's hippocampus, right sides mirrored. Where the localizer
finds none, or the image is itself a crop, the box is placed around the labels.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import secrets
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from nibabel.affines import apply_affine
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from scipy import ndimage

from hyps_bids.adaptation.crops import Crops
from hyps_bids.errors import BadData, CannotCreateOutput, HypsError
from hyps_bids.imaging.bias import correct_bias
from hyps_bids.imaging.conform import conform
from hyps_bids.imaging.resample import coarsen, resample
from hyps_bids.imaging.roi import box_affine, box_from_image, inside_box, mirror, shifted
from hyps_bids.imaging.volumes import decide
from hyps_bids.labels.find import LabeledScan, LabelImage
from hyps_bids.labels.meanings import WHOLE_HIPPOCAMPUS
from hyps_bids.networks.checkpoints import GRID
from hyps_bids.outputs.digests import sha256
from hyps_bids.outputs.labels import HEMISPHERES
from hyps_bids.outputs.scan_files import BOX
from hyps_bids.segmentation.inference import cached_network
from hyps_bids.segmentation.localize import Location, localize

__all__ = [
    "FRAME",
    "SMALLEST_HEAD",
    "VOLUME_RANGE",
    "LabeledCrops",
    "labeled_crops",
    "parts",
]

_LOG = logging.getLogger("hyps_bids")
#: shape of a crop: what the network sees and 4 mm around it, for augmentation
FRAME = tuple(side + 8 for side in GRID)
#: mm³ that one labeled hippocampus (or what is labeled of it) can have
VOLUME_RANGE = (200.0, 15_000.0)
#: mm; an image smaller than that along some axis is a crop: the localizer is not asked
SMALLEST_HEAD = 100.0
#: mm between the centers of a label and of the hippocampus that the localizer found
FARTHEST = 30.0
#: share of a label outside the network's box that is worth a remark, and that is an error
LOST_REMARK, LOST_ERROR = 0.05, 0.5
#: order of known parts; others follow by the smallest of their values
_ORDER = (WHOLE_HIPPOCAMPUS, "anterior", "head", "body", "posterior", "tail")
_SIDES = {"L": "left", "R": "right"}
#: changes when crops of the same files would differ
_VERSION = 2


@dataclass(frozen=True)
class LabeledCrops:
    """Crops of labeled scans, one per scan and labeled side.

    Attributes
    ----------
    crops : Crops
        ids are ``STEM_hemi-L`` or ``STEM_hemi-R``; shape of a crop :data:`FRAME`; right sides
        mirrored; classes ``1 … len(parts)``.
    parts : tuple of str
        Class names in order, background left out.
    subjects, scans, hemis : tuple of str
        Of each crop: participant label, stem of the scan's name, L or R.
    centers : tuple of (float, float, float)
        World coordinates of each crop's center, mm.
    volumes_mm3 : tuple of float
        Labeled volume of that side in the label image, all parts together.
    remarks : tuple of str
        What a person should know about single crops; each names its scan.
    """

    crops: Crops
    parts: tuple[str, ...]
    subjects: tuple[str, ...]
    scans: tuple[str, ...]
    hemis: tuple[str, ...]
    centers: tuple[tuple[float, float, float], ...]
    volumes_mm3: tuple[float, ...]
    remarks: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.crops)

    def of_subjects(self, subjects: set[str]) -> Crops:
        """Return the crops of some participants."""
        of = dict(zip(self.crops.ids, self.subjects, strict=True))
        return self.crops.select(lambda name: of[name] in subjects)

    def as_at_inference(self, crops: Crops | None = None) -> Crops:
        """Return crops (all if None) that show no more than the box the network sees.

        :func:`hyps_bids.adaptation.fit.plain_batch` of them is the network's input at the
        participant level.
        """
        crops = self.crops if crops is None else crops
        box = torch.from_numpy(inside_box(FRAME, BOX))
        return Crops(
            crops.ids, crops.images, crops.inside & box.to(crops.inside.device), crops.labels
        )


@dataclass(frozen=True)
class _Mask:
    """One structure of one file, cut out with a margin: boolean, and its transform."""

    hemi: str
    part: str
    data: np.ndarray
    affine: np.ndarray

    @property
    def points(self) -> np.ndarray:
        """World coordinates of the voxels, shape ``(n, 3)``."""
        return apply_affine(self.affine, np.argwhere(self.data))

    @property
    def volume_mm3(self) -> float:
        return float(self.data.sum() * abs(np.linalg.det(self.affine[:3, :3])))


@dataclass(frozen=True)
class _Facts:
    """What the cache holds of a crop beside its arrays."""

    hemi: str
    center: tuple[float, float, float]
    volume_mm3: float
    remarks: tuple[str, ...]


def parts(labeled: Sequence[LabeledScan]) -> list[str]:
    """Name the classes that the labels of all scans have.

    Returns
    -------
    list of str
        ``["hippocampus"]``, ``["anterior", "posterior"]`` or others, background left out.

    Raises
    ------
    BadData
        If a side of a scan has other parts than that of another scan: one network cannot learn
        both.
    """
    first: dict[str, int] = {}
    seen: dict[frozenset[str], str] = {}
    for item in labeled:
        for hemi in HEMISPHERES:
            mine = [structure for structure in item.structures if structure.hemi == hemi]
            for structure in mine:
                first[structure.part] = min(structure.index, first.get(structure.part, 2**63))
            if mine:
                names = frozenset(structure.part for structure in mine)
                seen.setdefault(names, f"{item.scan.path} ({hemi})")
    if len(seen) > 1:
        kinds = "; ".join(f"{where}: {', '.join(sorted(names))}" for names, where in seen.items())
        raise BadData(
            f"the labels have different parts: {kinds}; give labels of one protocol, or merge "
            "parts with --label-map"
        )
    known = {name: i for i, name in enumerate(_ORDER)}
    return sorted(first, key=lambda name: (known.get(name, len(known)), first[name], name))


def labeled_crops(
    labeled: Sequence[LabeledScan],
    parts: Sequence[str],
    localizer: Path,
    device: torch.device,
    *,
    n4: bool = False,
    cache: Path | None = None,
) -> LabeledCrops:
    """Read labeled scans, check them, and cut out their hippocampi.

    All scans are read before any error is reported.

    Parameters
    ----------
    labeled : sequence of LabeledScan
        From :func:`hyps_bids.labels.find.find_labeled`.
    parts : sequence of str
        Class names in order, from :func:`parts`.
    localizer : Path
        Weights of the localizer.
    device : torch.device
        Where to localize; the crops stay on the CPU.
    n4 : bool
        Correct the bias field first, as the participant level would.
    cache : Path, optional
        Folder of crops made earlier, one safetensors file per scan, found again by what they were
        made from.

    Returns
    -------
    LabeledCrops
        In order of scan, left before right.

    Raises
    ------
    BadData
        If the labels of any scan cannot be right; one line per scan, all in one message.
    CannotCreateOutput
        If the cache cannot be written.
    """
    _LOG.warning("reading the labels of %d T1w images", len(labeled))
    rows: list[tuple[LabeledScan, _Facts, dict[str, torch.Tensor]]] = []
    errors = []
    for i, item in enumerate(labeled):
        try:
            made = _cached(item, parts, localizer, device, n4, cache)
        except CannotCreateOutput:
            raise
        except HypsError as error:
            errors.append(str(error))
            continue
        rows += [(item, facts, tensors) for facts, tensors in made]
        if (i + 1) % 20 == 0:
            _LOG.warning("%d of %d read", i + 1, len(labeled))
    if errors:
        lines = "\n".join(f"- {error}" for error in errors)
        raise BadData(
            f"{len(errors)} of {len(labeled)} labeled scans cannot be used; correct them or "
            f"leave them out with --exclude-participant-label:\n{lines}"
        )
    remarks: dict[str, list[str]] = {}
    for item, facts, _ in rows:
        for remark in facts.remarks:
            remarks.setdefault(remark, []).append(f"{item.scan.stem} {facts.hemi}")
    for remark, which in remarks.items():
        more = f", … ({len(which)} crops)" if len(which) > 3 else ""
        _LOG.warning("%s%s: %s", ", ".join(which[:3]), more, remark)
    crops = Crops(
        tuple(f"{item.scan.stem}_hemi-{facts.hemi}" for item, facts, _ in rows),
        *(
            torch.stack([tensors[name] for _, _, tensors in rows])[:, None]
            for name in ("image", "inside", "label")
        ),
    )
    return LabeledCrops(
        Crops(crops.ids, crops.images, crops.inside.bool(), crops.labels.long()),
        tuple(parts),
        tuple(item.scan.subject for item, _, _ in rows),
        tuple(item.scan.stem for item, _, _ in rows),
        tuple(facts.hemi for _, facts, _ in rows),
        tuple(facts.center for _, facts, _ in rows),
        tuple(facts.volume_mm3 for _, facts, _ in rows),
        tuple(f"{name}: {remark}" for remark, which in remarks.items() for name in which),
    )


def _cached(
    item: LabeledScan,
    parts: Sequence[str],
    localizer: Path,
    device: torch.device,
    n4: bool,
    cache: Path | None,
) -> list[tuple[_Facts, dict[str, torch.Tensor]]]:
    if cache is None:
        return _make(item, parts, localizer, device, n4)
    key = _digest(item, parts, localizer, n4)
    path = cache / f"{item.scan.stem}_{key[:16]}.safetensors"
    if path.is_file():
        return _load(path)
    made = _make(item, parts, localizer, device, n4)
    _save(path, made)
    return made


def _digest(item: LabeledScan, parts: Sequence[str], localizer: Path, n4: bool) -> str:
    """Name what crops are made from."""
    content = {
        "version": _VERSION,
        "image": sha256(item.scan.path),
        "labels": [
            [
                sha256(image.path),
                image.is_mask,
                sorted(image.listed or ()),
                *map(asdict, image.structures),
            ]
            for image in item.labels
        ],
        "parts": list(parts),
        "localizer": sha256(localizer),
        "n4": n4,
        "frame": [FRAME, BOX],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _save(path: Path, made: Sequence[tuple[_Facts, dict[str, torch.Tensor]]]) -> None:
    tensors = {
        f"{facts.hemi}_{name}": tensor for facts, named in made for name, tensor in named.items()
    }
    facts = json.dumps([asdict(facts) for facts, _ in made])
    # random, as in hyps_bids.outputs.writing: several jobs may share a cache
    partial = path.with_name(f".{secrets.token_hex(4)}.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, partial, metadata={"crops": facts})
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        raise CannotCreateOutput(f"{path}: cannot be written ({error})") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def _load(path: Path) -> list[tuple[_Facts, dict[str, torch.Tensor]]]:
    try:
        with safe_open(path, "pt") as stored:
            return [
                (
                    _Facts(
                        row["hemi"], tuple(row["center"]), row["volume_mm3"], tuple(row["remarks"])
                    ),
                    {
                        n: stored.get_tensor(f"{row['hemi']}_{n}")
                        for n in ("image", "inside", "label")
                    },
                )
                for row in json.loads(stored.metadata()["crops"])
            ]
    except (SafetensorError, OSError) as error:
        raise BadData(f"{path}: a damaged crop ({error}); remove it") from error


def _make(
    item: LabeledScan, parts: Sequence[str], localizer: Path, device: torch.device, n4: bool
) -> list[tuple[_Facts, dict[str, torch.Tensor]]]:
    """Read, check and cut one scan."""
    masks = _read_labels(item)
    _check_volumes(item, masks)
    image = conform(item.scan.path)
    _check_world(item, masks, image.data.shape, image.affine)
    data = correct_bias(image.data, image.affine) if n4 else image.data
    zooms = np.sqrt((image.affine[:3, :3] ** 2).sum(axis=0))
    is_head = bool((zooms * data.shape).min() >= SMALLEST_HEAD)
    found: dict[str, Location | None] = dict.fromkeys(HEMISPHERES)
    if is_head:
        network, _ = cached_network(localizer)
        found = localize(data, image.affine, network, device).hippocampi
    _check_sides(item, masks, found)
    made = []
    # in a whole head, while the label map speaks of both sides
    bare = {s.hemi for s in item.structures} - {mask.hemi for mask in masks} if is_head else set()
    for hemi in HEMISPHERES:
        mine = [mask for mask in masks if mask.hemi == hemi]
        if mine:
            facts = _check_side(item, hemi, mine, parts, found[hemi], image.affine, is_head=is_head)
            remarks = tuple(f"no voxel is labeled on the {_SIDES[side]}" for side in bare)
            facts = replace(facts, remarks=facts.remarks + remarks)
            made.append((facts, _cut(data, image.affine, facts, mine, parts)))
    return made


def _read_labels(item: LabeledScan) -> list[_Mask]:
    """Read the label images of a scan: a mask for each structure that has voxels."""
    masks = [mask for image in item.labels for mask in _read_label_image(image)]
    if not masks:
        raise BadData(f"{item.labels[0].path}: no voxel of a hippocampus is labeled")
    return masks


def _read_label_image(image: LabelImage) -> list[_Mask]:
    """Read one label image and cut out its structures."""
    read = conform(image.path)
    if not np.array_equal(read.data, np.rint(read.data)) or read.data.min() < 0:
        raise BadData(f"{image.path}: values are not all whole numbers ≥ 0, so these are no labels")
    data = (read.data > 0).astype(np.int32) if image.is_mask else read.data.astype(np.int32)
    # by hashing: numpy would sort the whole volume
    values = {int(value) for value in pd.unique(data.ravel())} - {0}
    known = {structure.index for structure in image.structures}
    unknown = set() if image.listed is None else values - image.listed
    if not values & known or unknown:
        raise BadData(
            f"{image.path}: has the values {_some(unknown or values)}, but what the labels mean is "
            f"said of {_some(image.listed or known)} only; correct its dseg.tsv, or give the map "
            "that fits with --label-map"
        )
    named: dict[tuple[str, str], list[int]] = {}
    for structure in image.structures:
        named.setdefault((structure.hemi, structure.part), []).append(structure.index)
    masks = []
    for (hemi, part), indices in named.items():
        mask = np.isin(data, indices)
        if mask.any():
            region = ndimage.find_objects(mask.astype(np.uint8))[0]
            # a margin of zeros: a label fades out between voxels, it is not cut off
            start = [side.start - 2 for side in region]
            cut = np.pad(mask[region], 2)
            masks.append(_Mask(hemi, part, cut, shifted(read.affine, start)))
    return masks


def _check_volumes(item: LabeledScan, masks: Sequence[_Mask]) -> None:
    """Refuse what is too small or too large for a hippocampus."""
    for hemi in HEMISPHERES:
        mine = [mask.volume_mm3 for mask in masks if mask.hemi == hemi]
        if mine and not VOLUME_RANGE[0] <= sum(mine) <= VOLUME_RANGE[1]:
            raise BadData(
                f"{_names(item)}: {sum(mine):,.0f} mm³ labeled on the {_SIDES[hemi]}; a "
                f"hippocampus has {VOLUME_RANGE[0]:,.0f} to {VOLUME_RANGE[1]:,.0f} mm³"
            )


def _check_world(
    item: LabeledScan, masks: Sequence[_Mask], shape: Sequence[int], affine: np.ndarray
) -> None:
    """Refuse labels that lie beyond the image."""
    points = np.concatenate([mask.points for mask in masks])
    voxels = apply_affine(np.linalg.inv(affine), points)
    inside = ((voxels >= -0.5) & (voxels <= np.array(shape) - 0.5)).all(axis=1).mean()
    if inside < 1 - LOST_ERROR:
        raise BadData(
            f"{_names(item)}: {1 - inside:.0%} of the labeled voxels lie outside "
            f"{item.scan.path}; the labels must have the world coordinates of their image"
        )


def _check_sides(
    item: LabeledScan, masks: Sequence[_Mask], found: dict[str, Location | None]
) -> None:
    """Compare each structure with where the localizer found the hippocampi."""
    wrong = set()
    for mask in masks:
        center = mask.points.mean(axis=0)
        distance = {
            hemi: math.inf if place is None else float(np.linalg.norm(center - place.center))
            for hemi, place in found.items()
        }
        nearest = min(distance, key=distance.__getitem__)
        if nearest != mask.hemi and distance[nearest] <= FARTHEST:
            wrong.add(_name(mask))
        elif FARTHEST < distance[mask.hemi] < math.inf:
            raise BadData(
                f"{_names(item)}: the label of the {_name(mask)} is {distance[mask.hemi]:.0f} mm "
                f"from where the localizer found it in {item.scan.path}; is it in the world of "
                "this image, and is the label map right?"
            )
    if wrong:
        raise BadData(
            f"{_names(item)}: what is labeled {' and '.join(sorted(wrong))} lies on the other "
            f"side of {item.scan.path}; left and right are swapped in the labels, in the label map "
            "or in the image's header"
        )


def _check_side(
    item: LabeledScan,
    hemi: str,
    masks: Sequence[_Mask],
    parts: Sequence[str],
    place: Location | None,
    affine: np.ndarray,
    *,
    is_head: bool,
) -> _Facts:
    """Compare one labeled hippocampus with its box; say where that is."""
    volume = sum(mask.volume_mm3 for mask in masks)
    remarks = []
    points = np.concatenate([mask.points for mask in masks])
    if place is None:
        # voxels of the box on voxels of the image: 1 mm crops are not interpolated
        middle = (points.min(axis=0) + points.max(axis=0)) / 2
        voxel = apply_affine(np.linalg.inv(affine), middle)
        center = apply_affine(affine, np.floor(np.round(voxel, 3)) + 0.5)
        why = "not found by the localizer" if is_head else "a crop, not a head"
        remarks.append(f"{why}: box placed around the label")
    else:
        center = np.array(place.center)
    lost = 1 - (np.abs(points - center) <= np.array(BOX) / 2).all(axis=1).mean()
    if lost > LOST_ERROR:
        raise BadData(
            f"{_names(item)}: {lost:.0%} of the {_SIDES[hemi]} label lie outside the box around "
            f"the hippocampus of {item.scan.path}; look at both"
        )
    if lost > LOST_REMARK:
        remarks.append(f"{lost:.0%} of the label lie outside the network's box")
    absent = [part for part in parts if part not in {mask.part for mask in masks}]
    if absent:
        remarks.append(f"no voxel labeled {', '.join(absent)}")
    x, y, z = map(float, center)
    return _Facts(hemi, (x, y, z), volume, tuple(remarks))


def _cut(
    data: np.ndarray,
    affine: np.ndarray,
    facts: _Facts,
    masks: Sequence[_Mask],
    parts: Sequence[str],
) -> dict[str, torch.Tensor]:
    """Cut image and labels out, in left orientation."""
    box = box_affine(facts.center, FRAME)
    values, inside = box_from_image(data, affine, FRAME, box)
    seen = values[inside]
    scaled = (values - seen.mean()) / max(float(seen.std()), 1e-6) * inside
    arrays: dict[str, Any] = {
        "image": scaled.astype(np.float32),
        "inside": inside.astype(np.uint8),
        "label": _on_grid(masks, parts, FRAME, box),
    }
    return {
        name: torch.from_numpy(mirror(array) if facts.hemi == "R" else array)
        for name, array in arrays.items()
    }


def _on_grid(
    masks: Sequence[_Mask], parts: Sequence[str], shape: Sequence[int], affine: np.ndarray
) -> np.ndarray:
    """Resample structures linearly, as shares of a voxel, and decide as for a segmentation."""
    spacing = float(np.sqrt((affine[:3, :3] ** 2).sum(axis=0)).min())
    shares = np.zeros((len(parts), *shape), dtype=np.float32)
    for mask in masks:
        smooth, smooth_affine = coarsen(mask.data, mask.affine, spacing, oversampling=1)
        shares[list(parts).index(mask.part)] += resample(smooth, smooth_affine, shape, affine)
    return decide(shares)


def _names(item: LabeledScan) -> str:
    return ", ".join(str(image.path) for image in item.labels)


def _name(mask: _Mask) -> str:
    words = [
        _SIDES[mask.hemi],
        *([] if mask.part == WHOLE_HIPPOCAMPUS else [mask.part]),
        "hippocampus",
    ]
    return " ".join(words)


def _some(values: Collection[int]) -> str:
    listed = ", ".join(map(str, sorted(values)[:8])) or "none"
    return listed + (" …" if len(values) > 8 else "")
