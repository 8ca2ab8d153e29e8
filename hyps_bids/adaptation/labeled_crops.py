"""Labeled whole heads as training crops, made once and cached.

A crop is what the network sees of the scan at the participant level, with some more around it for
augmentation: 1 mm, around the localizer's hippocampus, right sides mirrored. Where the localizer
finds none, or the image is itself a crop, the box is placed around the labels.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from nibabel.affines import apply_affine, voxel_sizes
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from hyps_bids.adaptation.crops import FRAME, Crops
from hyps_bids.adaptation.label_masks import (
    LOST_ERROR,
    StructureMask,
    check_positions,
    check_world,
    label_files,
    read_masks,
)
from hyps_bids.errors import BadData, CannotCreateOutput, HypsError
from hyps_bids.imaging.conform import ConformedImage, conform
from hyps_bids.imaging.resample import resample
from hyps_bids.imaging.roi import box_affine, box_from_image, inside_box, mirror
from hyps_bids.imaging.volumes import decide
from hyps_bids.labels.find import LabeledScan
from hyps_bids.labels.meanings import WHOLE_HIPPOCAMPUS
from hyps_bids.outputs.digests import sha256
from hyps_bids.outputs.labels import HEMISPHERES, SIDE_NAMES
from hyps_bids.outputs.writing import write_with
from hyps_bids.progress import track
from hyps_bids.segmentation.localize import Location
from hyps_bids.segmentation.pipeline import correct_bias, localize
from hyps_bids.segmentation.segment import VIEW

_LOG = logging.getLogger("hyps_bids")
#: Order of known parts; others follow by the smallest of their values.
_ORDER = (WHOLE_HIPPOCAMPUS, "anterior", "head", "body", "posterior", "tail")
#: Smallest side of a whole head, mm; in smaller images nothing is localized.
SMALLEST_HEAD = 100.0
#: Share of a label outside the network's box that is worth a remark.
LOST_REMARK = 0.05
#: Raised when crops of the same files would become different.
_VERSION = 2
_TENSORS = ("image", "inside", "label")


@dataclass(frozen=True)
class LabeledCrops:
    """Crops of labeled scans, one per scan and labeled side."""

    #: Crops with the ids ``STEM_hemi-L`` or ``STEM_hemi-R``, right sides mirrored.
    crops: Crops
    #: Participant label, stem of the scan's name, and L or R of each crop.
    subjects: tuple[str, ...]
    scans: tuple[str, ...]
    hemis: tuple[str, ...]
    #: World coordinates of each crop's center, mm.
    centers: tuple[tuple[float, float, float], ...]
    #: Labeled volume of that side in the label image, all parts together.
    volumes_mm3: tuple[float, ...]
    #: What a person should know about single crops; each names its scan.
    remarks: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.crops)

    def of_subjects(self, subjects: Iterable[str]) -> Crops:
        """Return the crops of some participants."""
        chosen = set(subjects)
        owner = dict(zip(self.crops.ids, self.subjects, strict=True))
        return self.crops.select(lambda name: owner[name] in chosen)

    def as_at_inference(self, crops: Crops | None = None) -> Crops:
        """Return crops (all if None) that show no more than the box the network sees."""
        crops = self.crops if crops is None else crops
        box = torch.from_numpy(inside_box(FRAME, VIEW)).to(crops.inside.device)
        return replace(crops, inside=crops.inside & box)


def class_names(labeled: Sequence[LabeledScan]) -> list[str]:
    """Name the classes that the labels of all scans have, such as ``["anterior", "posterior"]``.

    Sides or scans with different parts are an error: one network cannot learn both.
    """
    smallest: dict[str, int] = {}
    seen: dict[frozenset[str], str] = {}
    for item in labeled:
        sides: dict[str, set[str]] = {}
        for structure in item.structures:
            part = structure.part
            sides.setdefault(structure.hemi, set()).add(part)
            smallest[part] = min(structure.index, smallest.get(part, structure.index))
        for hemi, names in sorted(sides.items()):
            seen.setdefault(frozenset(names), f"{item.scan.path} ({hemi})")
    if len(seen) > 1:
        kinds = "; ".join(f"{where}: {', '.join(sorted(names))}" for names, where in seen.items())
        raise BadData(
            f"The labels have different parts: {kinds}. Give labels of one protocol, or merge "
            "parts with --label-map",
            code="label-parts-differ",
        )
    rank = {name: i for i, name in enumerate(_ORDER)}
    return sorted(smallest, key=lambda name: (rank.get(name, len(rank)), smallest[name], name))


def labeled_crops(
    labeled: Sequence[LabeledScan],
    parts: Sequence[str],
    localizer: Path,
    device: str,
    *,
    n4: bool = False,
    cache: Path | None = None,
) -> LabeledCrops:
    """Read labeled scans, check them, and cut out their hippocampi.

    `parts` are the class names in order, from :func:`class_names`. Crops come in order of scan,
    left before right, on the CPU; those in the folder `cache` are not made again. All scans are
    read before an error names those whose labels cannot be right.
    """
    _LOG.info("reading the labels of %d images", len(labeled))
    maker = CropMaker(parts, localizer, device, n4, cache)
    rows: list[tuple[LabeledScan, ScanCrop]] = []
    errors: list[HypsError] = []
    for item in track(labeled, len(labeled), "images", "labels"):
        try:
            rows += [(item, crop) for crop in maker.crops(item)]
        except CannotCreateOutput:
            raise
        except HypsError as error:
            errors.append(error)
    if errors:
        lines = "\n".join(f"- {error}" for error in errors)
        raise BadData(
            f"{len(errors)} of {len(labeled)} labeled scans cannot be used; correct them or "
            f"leave them out with --exclude-participant-label:\n{lines}",
            code="labels-unusable",
        ) from errors[0]
    return LabeledCrops(
        _stack(rows),
        tuple(item.scan.subject for item, _ in rows),
        tuple(item.scan.stem for item, _ in rows),
        tuple(crop.hemi for _, crop in rows),
        tuple(crop.center for _, crop in rows),
        tuple(crop.volume_mm3 for _, crop in rows),
        _remarks(rows),
    )


def _stack(rows: Sequence[tuple[LabeledScan, ScanCrop]]) -> Crops:
    images, inside, labels = (
        torch.stack([crop.tensors[name] for _, crop in rows])[:, None]
        for name in ("image", "inside", "label")
    )
    ids = tuple(f"{item.scan.stem}_hemi-{crop.hemi}" for item, crop in rows)
    return Crops(ids, images, inside.bool(), labels.long())


def _remarks(rows: Sequence[tuple[LabeledScan, ScanCrop]]) -> tuple[str, ...]:
    """Log each kind of remark once, with the crops that it applies to; return all of them."""
    crops_of: dict[str, list[str]] = {}
    for item, crop in rows:
        for remark in crop.remarks:
            crops_of.setdefault(remark, []).append(f"{item.scan.stem} {crop.hemi}")
    for remark, names in crops_of.items():
        more = f", … ({len(names)} crops)" if len(names) > 3 else ""
        _LOG.warning("%s%s: %s", ", ".join(names[:3]), more, remark)
    return tuple(f"{name}: {remark}" for remark, names in crops_of.items() for name in names)


@dataclass(frozen=True)
class ScanCrop:
    """The crop of one side of a scan, with facts as in :class:`LabeledCrops`.

    Its tensors, in left orientation and of shape :data:`.crops.FRAME`, are ``image`` (float32),
    ``inside`` and ``label`` (uint8).
    """

    hemi: str
    center: tuple[float, float, float]
    volume_mm3: float
    remarks: tuple[str, ...]
    tensors: dict[str, torch.Tensor]


@dataclass(frozen=True)
class CropMaker:
    """How to make the crops of a scan; see :func:`labeled_crops`."""

    parts: Sequence[str]
    localizer: Path
    device: str
    n4: bool = False
    cache: Path | None = None

    def crops(self, item: LabeledScan) -> list[ScanCrop]:
        """Read the crops of a scan from the cache, or make them."""
        if self.cache is None:
            return self._make(item)
        path = self.cache / f"{item.scan.stem}_{self.digest(item)[:16]}.safetensors"
        if path.is_file():
            return load_scan_crops(path)
        made = self._make(item)
        _save(path, made)
        return made

    def digest(self, item: LabeledScan) -> str:
        """Return a SHA-256 sum of everything that crops depend on, the same as in version 0.1."""
        content = {
            "version": _VERSION,
            "image": sha256(item.scan.path),
            "labels": [
                [
                    sha256(image.path),
                    image.is_mask,
                    sorted(image.listed or ()),
                    *({"index": s.index, "hemi": s.hemi, "part": s.part} for s in image.structures),
                ]
                for image in item.labels
            ],
            "parts": list(self.parts),
            "localizer": sha256(self.localizer),
            "n4": self.n4,
            "frame": [FRAME, VIEW],
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def _make(self, item: LabeledScan) -> list[ScanCrop]:
        """Read, check and cut one scan."""
        masks = read_masks(item)
        image = conform(item.scan.path)
        check_world(item, masks, image.data.shape, image.affine)
        if self.n4:
            image = correct_bias(image)
        found: Mapping[str, Location | None] = dict.fromkeys(HEMISPHERES)
        remarks = []
        if is_head(image):
            found = localize(image, self.localizer, self.device).hippocampi
            # The label map may name both sides while only one of them is labeled.
            unlabeled = {s.hemi for s in item.structures} - {mask.hemi for mask in masks}
            remarks = [f"no voxel is labeled on the {SIDE_NAMES[hemi]}" for hemi in unlabeled]
        check_positions(item, masks, found)
        made = []
        for hemi in HEMISPHERES:
            mine = [mask for mask in masks if mask.hemi == hemi]
            if mine:
                center, about = self._place(item, mine, image, found[hemi])
                volume = sum(mask.volume_mm3 for mask in mine)
                tensors = self._cut(image, center, mine)
                made.append(ScanCrop(hemi, center, volume, (*about, *remarks), tensors))
        return made

    def _place(
        self,
        item: LabeledScan,
        masks: Sequence[StructureMask],
        image: ConformedImage,
        location: Location | None,
    ) -> tuple[tuple[float, float, float], list[str]]:
        """Find the center of the box of one labeled hippocampus, and compare both."""
        remarks = []
        points = np.concatenate([mask.points for mask in masks])
        if location is None:
            center = _center_on_grid(points, image.affine)
            why = "not found by the localizer" if is_head(image) else "a crop, not a head"
            remarks.append(f"{why}: box placed around the label")
        else:
            center = np.array(location.center)
        lost = 1 - (np.abs(points - center) <= np.array(VIEW) / 2).all(axis=1).mean()
        if lost > LOST_ERROR:
            raise BadData(
                f"{label_files(item)}: {lost:.0%} of the {SIDE_NAMES[masks[0].hemi]} label lie "
                f"outside the box around the hippocampus of {item.scan.path}; look at both images",
                code="label-outside-box",
            )
        if lost > LOST_REMARK:
            remarks.append(f"{lost:.0%} of the label lie outside the network's box")
        absent = [part for part in self.parts if part not in {mask.part for mask in masks}]
        if absent:
            remarks.append(f"no voxel labeled {', '.join(absent)}")
        x, y, z = map(float, center)
        return (x, y, z), remarks

    def _cut(
        self, image: ConformedImage, center: Sequence[float], masks: Sequence[StructureMask]
    ) -> dict[str, torch.Tensor]:
        """Sample image and labels in a box; mirror those of a right side."""
        box = box_affine(center, FRAME)
        values, inside = box_from_image(image.data, image.affine, FRAME, box)
        seen = values[inside]
        scaled = (values - seen.mean()) / max(float(seen.std()), 1e-6) * inside
        # Labels are resampled as shares of a voxel, and decided as in a segmentation.
        shares = np.zeros((len(self.parts), *FRAME), dtype=np.float32)
        for mask in masks:
            shares[self.parts.index(mask.part)] += resample(
                mask.data, mask.affine, FRAME, box, smooth=1.0, oversampling=1
            )
        arrays = (scaled.astype(np.float32), inside.astype(np.uint8), decide(shares))
        sided = map(mirror, arrays) if masks[0].hemi == "R" else arrays
        return dict(zip(_TENSORS, map(torch.from_numpy, sided), strict=True))


def is_head(image: ConformedImage) -> bool:
    """Tell whether an image is large enough to be a whole head, in which to localize."""
    return bool((voxel_sizes(image.affine) * image.data.shape).min() >= SMALLEST_HEAD)


def load_scan_crops(path: Path) -> list[ScanCrop]:
    """Read the crops of a scan from a file of the cache; a damaged one is an error."""
    try:
        with safe_open(path, "pt") as stored:
            return [
                ScanCrop(
                    row["hemi"],
                    tuple(row["centre"]),
                    row["volume_mm3"],
                    tuple(row["remarks"]),
                    {name: stored.get_tensor(f"{row['hemi']}_{name}") for name in _TENSORS},
                )
                for row in json.loads(stored.metadata()["crops"])
            ]
    except (SafetensorError, OSError) as error:
        raise BadData(
            f"{path}: the stored crops are damaged ({error}); remove this file", code="crop-damaged"
        ) from error


def _save(path: Path, crops: Sequence[ScanCrop]) -> None:
    """Write the crops of a scan with the names of version 0.1, whose caches stay valid."""
    tensors = {f"{c.hemi}_{name}": tensor for c in crops for name, tensor in c.tensors.items()}
    facts = [
        {"hemi": c.hemi, "centre": c.center, "volume_mm3": c.volume_mm3, "remarks": c.remarks}
        for c in crops
    ]
    metadata = {"crops": json.dumps(facts)}
    write_with(
        path,
        lambda partial: save_file(tensors, partial, metadata=metadata),
        failures=(SafetensorError,),
    )


def _center_on_grid(points: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Return the middle of points, moved so that 1 mm voxels of an image are not interpolated."""
    middle = (points.min(axis=0) + points.max(axis=0)) / 2
    voxel = apply_affine(np.linalg.inv(affine), middle)
    return apply_affine(affine, np.floor(np.round(voxel, 3)) + 0.5)
