"""The QC table of a series: which scans were used or refused, and which to review."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from nibabel.affines import voxel_sizes

from hyps_bids.longitudinal.pipeline import Followed, FollowedSide
from hyps_bids.longitudinal.tables import Course, used_scans
from hyps_bids.messages import join_names
from hyps_bids.outputs.columns import SERIES_QC_COLUMNS
from hyps_bids.outputs.flags import describe_series_flag
from hyps_bids.outputs.scan import Scan

#: Share by which voxel sizes may differ.
_VOXELS = 0.1
#: Share by which the volume of a hippocampus may differ from that in the scan by itself. It is 0.01
#: to 0.05 for scans that are what they should be.
_UNLIKE_ITSELF = 0.1
#: Share of the volume by which both measures of change may differ, if it is less than half of them:
#: about four standard errors of their difference without change.
_CONTRADICTION = 0.035
_FAILED = "scan-failed"
#: What a raw JSON sidecar says about scanner and sequence → share by which numbers may differ.
_PROTOCOL = {
    "Manufacturer": 0.0,
    "ManufacturersModelName": 0.0,
    "MagneticFieldStrength": 0.05,
    "PulseSequenceType": 0.0,
    "ScanningSequence": 0.0,
    "RepetitionTime": 0.05,
    "EchoTime": 0.1,
    "InversionTime": 0.05,
    "FlipAngle": 0.1,
}


class ScanState(NamedTuple):
    """What is known about a scan beside its change.

    Attributes
    ----------
    affine : numpy.ndarray
        Voxel-to-world transform of its image.
    flagged : bool
        Whether its own QC table asks for a review.
    protocol : mapping
        What the JSON sidecar of its image says.
    volumes : mapping of str to float
        Hemisphere → soft volume of the whole hippocampus in the scan by itself, mm³; only those
        that were found.
    edited : bool
        Whether the labels of the scan by itself are not those of the networks.
    """

    affine: np.ndarray
    flagged: bool
    protocol: Mapping[str, Any]
    volumes: Mapping[str, float]
    edited: bool = False


def quality_table(course: Course, followed: Followed, states: Sequence[ScanState]) -> pd.DataFrame:
    """Say of each scan of a series whether it was used, and whether to review it.

    Returns
    -------
    pandas.DataFrame
        One row per scan in the order of time, and then one per scan that failed by itself, with
        the columns :data:`~hyps_bids.outputs.columns.SERIES_QC_COLUMNS`.
    """
    rows = []
    names = [scan.path.name for scan in course.scans]
    for i, scan in enumerate(course.scans):
        refusal = followed.refusals[i]
        flags = [*_flags(i, followed, states)]
        others = join_names(name for k, name in enumerate(names) if k != i)
        words = [describe_series_flag(flag, others).text for flag in flags]
        row: dict[str, object] = {
            **_keys(scan),
            "status": "used" if followed.to_midway[i] is not None else "refused",
            "reason": describe_series_flag(refusal, others).text if refusal else None,
            "review": "yes" if flags or refusal else "no",
            "reasons": " ".join(words) or None,
            "flags": " ".join([*([refusal] if refusal else []), *flags]) or None,
        }
        agreement = {f"agreement_{h}": side.agreement[i] for h, side in followed.sides.items()}
        rows.append(row | dict(followed.figures[i]) | agreement)
    finding = describe_series_flag(_FAILED, join_names(names)).finding
    rows += [
        {
            **_keys(scan),
            "status": "failed",
            "reason": f"{finding} {why}",
            "review": "yes",
            "flags": _FAILED,
        }
        for scan, why in course.failed.items()
    ]
    return pd.DataFrame(rows, columns=list(SERIES_QC_COLUMNS))


def _keys(scan: Scan) -> dict[str, str | None]:
    session = f"ses-{scan.session}" if scan.session else None
    return {"suffix": scan.suffix, "scan": scan.stem, "session_id": session}


def _flags(i: int, followed: Followed, states: Sequence[ScanState]) -> Iterator[str]:
    if states[i].flagged:
        yield "scan-flagged"
    if followed.to_midway[i] is None:
        return
    used = used_scans(followed)
    for hemi, missing in followed.missing.items():
        if missing[i] is not None:
            yield f"missing_{hemi}"
        elif hemi in followed.sides:
            side = followed.sides[hemi]
            if side.unlike[i]:
                yield f"unlike_{hemi}"
            if _disagree(side, i):
                yield f"methods-disagree_{hemi}"
            own = states[i].volumes.get(hemi, math.nan)
            if abs(side.volumes[i, -1] / own - 1) > _UNLIKE_ITSELF:
                yield f"unlike-itself_{hemi}"
    sizes = np.array([np.sort(voxel_sizes(states[k].affine)) for k in used])
    usual = np.median(sizes, axis=0) if len(used) > 2 else sizes[0]
    if (np.abs(sizes[used.index(i)] / usual - 1) > _VOXELS).any():
        yield "other-voxels"
    if i != used[0] and _differs(states[used[0]].protocol, states[i].protocol):
        yield "other-protocol"


def _disagree(side: FollowedSide, i: int) -> bool:
    """Tell whether volume and boundary shift of a scan contradict each other."""
    volumes = side.comparable[:, -1]
    first = volumes[np.isfinite(volumes)][0]
    by_volume, by_shift = volumes[i] / first - 1, side.boundary_shift[i, -1] / first
    allowed = max(_CONTRADICTION, max(abs(by_volume), abs(by_shift)) / 2)
    return bool(abs(by_volume - by_shift) > allowed)


def _differs(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Tell whether two sidecars state different scanners or sequences."""
    for name, share in _PROTOCOL.items():
        a, b = first.get(name), second.get(name)
        if a is None or b is None:
            continue
        if isinstance(a, int | float) and isinstance(b, int | float):
            if abs(a - b) > share * max(abs(a), abs(b)):
                return True
        elif str(a).strip().casefold() != str(b).strip().casefold():
            return True
    return False
