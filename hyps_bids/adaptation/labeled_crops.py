"""Labeled whole heads as training crops.

A crop is what the network sees of the scan at the participant level, with some more around it for
augmentation: 1 mm, around the localizer's hippocampus, right sides mirrored. Where the localizer
finds none, or the image is itself a crop, the box is placed around the labels.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from hyps_bids.adaptation.crops import FRAME, Crops
from hyps_bids.adaptation.scan_crops import CropMaker, ScanCrop
from hyps_bids.errors import BadData, CannotCreateOutput, HypsError
from hyps_bids.imaging.roi import inside_box
from hyps_bids.labels.find import LabeledScan
from hyps_bids.labels.meanings import WHOLE_HIPPOCAMPUS
from hyps_bids.outputs.scan_files import BOX

__all__ = ["LabeledCrops", "class_names", "labeled_crops"]

_LOG = logging.getLogger("hyps_bids")
#: order of known parts; others follow by the smallest of their values
_ORDER = (WHOLE_HIPPOCAMPUS, "anterior", "head", "body", "posterior", "tail")


@dataclass(frozen=True)
class LabeledCrops:
    """Crops of labeled scans, one per scan and labeled side."""

    #: crops with the ids ``STEM_hemi-L`` or ``STEM_hemi-R``, right sides mirrored
    crops: Crops
    #: names of the classes 1, 2, …
    parts: tuple[str, ...]
    #: participant label, stem of the scan's name, and L or R of each crop
    subjects: tuple[str, ...]
    scans: tuple[str, ...]
    hemis: tuple[str, ...]
    #: world coordinates of each crop's center, mm
    centers: tuple[tuple[float, float, float], ...]
    #: labeled volume of that side in the label image, all parts together
    volumes_mm3: tuple[float, ...]
    #: what a person should know about single crops; each names its scan
    remarks: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.crops)

    def of_subjects(self, subjects: Iterable[str]) -> Crops:
        """Return the crops of some participants."""
        chosen = set(subjects)
        owner = dict(zip(self.crops.ids, self.subjects, strict=True))
        return self.crops.select(lambda name: owner[name] in chosen)

    def as_at_inference(self, crops: Crops | None = None) -> Crops:
        """Return crops (all if None) that show no more than the box the network sees.

        :func:`hyps_bids.adaptation.crops.plain_batch` of them is the network's input at the
        participant level.
        """
        crops = self.crops if crops is None else crops
        box = torch.from_numpy(inside_box(FRAME, BOX)).to(crops.inside.device)
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
    device: torch.device,
    *,
    n4: bool = False,
    cache: Path | None = None,
) -> LabeledCrops:
    """Read labeled scans, check them, and cut out their hippocampi.

    All scans are read before an error names those whose labels cannot be right.

    Parameters
    ----------
    labeled : sequence of LabeledScan
        From :func:`hyps_bids.labels.find.find_labeled`.
    parts : sequence of str
        Class names in order, from :func:`class_names`.
    localizer : Path
        Weights of the localizer.
    device : torch.device
        Where to localize; the crops stay on the CPU.
    n4 : bool
        Correct the bias field first, as the participant level would.
    cache : Path, optional
        Folder of crops made earlier, one safetensors file per scan.

    Returns
    -------
    LabeledCrops
        In order of scan, left before right.
    """
    _LOG.info("reading the labels of %d T1w images", len(labeled))
    maker = CropMaker(parts, localizer, device, n4, cache)
    rows: list[tuple[LabeledScan, ScanCrop]] = []
    errors: list[HypsError] = []
    for i, item in enumerate(labeled, start=1):
        try:
            rows += [(item, crop) for crop in maker.crops(item)]
        except CannotCreateOutput:
            raise
        except HypsError as error:
            errors.append(error)
            continue
        if i % 20 == 0:
            _LOG.info("%d of %d T1w images read", i, len(labeled))
    if errors:
        lines = "\n".join(f"- {error}" for error in errors)
        raise BadData(
            f"{len(errors)} of {len(labeled)} labeled scans cannot be used; correct them or "
            f"leave them out with --exclude-participant-label:\n{lines}",
            code="labels-unusable",
        ) from errors[0]
    return LabeledCrops(
        _stack(rows),
        tuple(parts),
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
