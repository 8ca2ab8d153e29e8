"""Crops of one scan on disk, found again by what they were made from.

The content and the names in these files are those of version 0.1, so that its caches stay valid.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from hyps_bids.adaptation.crops import FRAME
from hyps_bids.errors import BadData
from hyps_bids.labels.find import LabeledScan
from hyps_bids.outputs.digests import sha256
from hyps_bids.outputs.scan_files import BOX
from hyps_bids.outputs.writing import write_with

__all__ = ["ScanCrop", "crop_digest", "load_scan_crops", "save_scan_crops"]

#: raised when crops of the same files would become different
_VERSION = 2
_TENSORS = ("image", "inside", "label")


@dataclass(frozen=True)
class ScanCrop:
    """The crop of one side of a scan, with facts as in :class:`.labeled_crops.LabeledCrops`.

    Its tensors, in left orientation and of shape :data:`.crops.FRAME`, are ``image`` (float32),
    ``inside`` and ``label`` (uint8).
    """

    hemi: str
    center: tuple[float, float, float]
    volume_mm3: float
    remarks: tuple[str, ...]
    tensors: dict[str, torch.Tensor]


def crop_digest(item: LabeledScan, parts: Sequence[str], localizer: Path, n4: bool) -> str:
    """Return a SHA-256 sum of everything that the crops of a scan are made from."""
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
        "parts": list(parts),
        "localizer": sha256(localizer),
        "n4": n4,
        "frame": [FRAME, BOX],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def save_scan_crops(path: Path, crops: Sequence[ScanCrop]) -> None:
    """Write the crops of a scan as safetensors."""
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


def load_scan_crops(path: Path) -> list[ScanCrop]:
    """Read the crops of a scan; a damaged file is an error."""
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
