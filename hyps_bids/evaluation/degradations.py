"""All kinds in which images are spoiled while the hippocampi are whole, in several strengths."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hyps_bids.evaluation import geometry_faults as geometry
from hyps_bids.evaluation import signal_faults as signal
from hyps_bids.evaluation.heads import Head, Kind, Spoiled, Spoiler

_AXES = {"x": 0, "y": 1, "z": 2}


def _leveled(spoil: Callable[..., Spoiled], *levels: float, crops: bool = True) -> Kind:
    """Name strengths after the only number that they differ by."""
    return Kind({f"{level:g}": _bind(spoil, level) for level in levels}, crops)


def _bind(spoil: Callable[..., Spoiled], *args: object) -> Spoiler:
    def spoiler(head: Head, rng: np.random.Generator) -> Spoiled:
        return spoil(head, rng, *args)

    return spoiler


def _turned(spoil: Callable[..., Spoiled], *degrees: float, crops: bool = False) -> Kind:
    return Kind({f"{n}{d:g}": _bind(spoil, a, d) for n, a in _AXES.items() for d in degrees}, crops)


def _cuts() -> dict[str, Spoiler]:
    ends = {
        "left": (0, "low"),
        "right": (0, "high"),
        "posterior": (1, "low"),
        "anterior": (1, "high"),
        "inferior": (2, "low"),
        "superior": (2, "high"),
    }
    return {
        f"{name}{100 * share:g}": _bind(geometry.cut, *end, share)
        for name, end in ends.items()
        for share in (0.15, 0.3, 0.6)
    }


def _slabs() -> dict[str, Spoiler]:
    slabs: dict[str, Spoiler] = {
        f"{name}{margin:g}": _bind(geometry.keep_slab, axes, margin)
        for name, axes in {"x": (0,), "y": (1,), "z": (2,), "xyz": (0, 1, 2)}.items()
        for margin in (3, 10, 20)
    }
    slabs |= {f"half_{hemi}": _bind(geometry.keep_hemisphere, hemi) for hemi in ("L", "R")}
    return slabs


def _thick() -> dict[str, Spoiler]:
    gaps = ((2, 0), (3, 0), (4, 0), (5, 0), (6, 0), (8, 0), (4, 1), (5, 1))
    return {
        f"{name}{thickness}" + (f"+{gap}" if gap else ""): _bind(
            geometry.slice_thickly, (axis,), thickness, gap
        )
        for name, axis in _AXES.items()
        for thickness, gap in gaps
    }


def _scales() -> dict[str, Spoiler]:
    factors: dict[str, tuple[float, ...]] = {
        f"{f:g}": (f, f, f) for f in (0.5, 0.7, 0.8, 0.9, 1.1, 1.25, 1.5, 2)
    }
    for name, axis in _AXES.items():
        for factor in (0.6, 1.5):
            factors[f"{name}{factor:g}"] = tuple(factor if axis == k else 1 for k in range(3))
    return {name: _bind(geometry.scale_header, each) for name, each in factors.items()}


#: Kinds of spoiled images by their names.
DEGRADATIONS: dict[str, Kind] = {
    "rotation": _turned(geometry.rotate, 10, 20, 30, 45, 60, 90),
    "header": _turned(geometry.turn_header, 15, 30, 45, 90, 180),
    "oblique": _turned(geometry.acquire_obliquely, 15, 30, 45),
    "tilt": _turned(geometry.rotate, 5, 15, 25, crops=True),
    "cut": Kind(_cuts()),
    "slab": Kind(_slabs(), crops=False),
    "apart": Kind(
        {
            "above": _bind(geometry.keep_apart, 2, "high"),
            "behind": _bind(geometry.keep_apart, 1, "low"),
            "before": _bind(geometry.keep_apart, 1, "high"),
        },
        crops=False,
    ),
    "noise": _leveled(signal.add_noise, 0.03, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4),
    "rician": _leveled(signal.add_rician_noise, 0.03, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4),
    "blur": _leveled(signal.blur, 0.7, 1, 1.5, 2, 2.6, 3.5),
    "slices": Kind(_thick()),
    "voxels": Kind(
        {f"{s:g}": _bind(geometry.slice_thickly, (0, 1, 2), s) for s in (1.5, 2, 2.5, 3, 4, 5, 6)}
    ),
    "bias": _leveled(signal.add_bias, 1.5, 2, 3, 5, 8),
    "gamma": _leveled(signal.change_gamma, 0.25, 0.4, 0.6, 1.6, 2.5, 4),
    "contrast": Kind({name: _bind(signal.change_contrast, name) for name in signal.CONTRASTS}),
    "ratio": _leveled(signal.make_ratio, 0.03, 0.08, 0.15),
    "vessels": _leveled(signal.brighten_vessels, 0.01, 0.03),
    "map": _leveled(signal.map_randomly, 4, 6, 8),
    "motion": _leveled(signal.move, 1, 2, 4, 8, 15),
    "ghosts": _leveled(signal.add_ghosts, 0.1, 0.25, 0.5, 0.8),
    "ringing": _leveled(signal.ring, 0.7, 0.5, 0.35, 0.25, 0.15),
    "spikes": _leveled(signal.spike, 0.1, 0.2, 0.4, 0.8),
    "hot": _leveled(signal.add_hot_voxels, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2),
    "wrap": Kind(
        {
            f"{n}{s:g}": _bind(geometry.wrap_around, a, s)
            for n, a in _AXES.items()
            for s in (0.9, 0.8, 0.7, 0.6)
        },
        crops=False,
    ),
    "displaced": Kind(
        {
            f"{n}{s:g}": _bind(geometry.displace, a, s)
            for n, a in _AXES.items()
            for s in (0.2, 0.35, 0.5)
        },
        crops=False,
    ),
    "saturation": Kind(
        {
            f"{low:g}-{high:g}": _bind(signal.saturate, low, high)
            for low, high in ((0, 1.1), (0, 0.9), (0, 0.75), (0.4, 1), (0.7, 2))
        }
    ),
    "alternating": Kind(
        {
            f"{n}{s:g}": _bind(signal.alternate_slices, a, s)
            for n, a in _AXES.items()
            for s in (0.2, 0.4)
        }
    ),
    "dropout": Kind(
        {f"{n}{mm:g}": _bind(signal.drop_slices, a, mm) for n, a in _AXES.items() for mm in (3, 8)}
    ),
    "stripped": _leveled(signal.strip, -8, -5, -3, 0, 5, 10, crops=False),
    "badly_stripped": Kind(
        {
            f"{hemi}{share:g}": _bind(signal.strip_badly, hemi, share)
            for hemi in ("L", "R")
            for share in (0.1, 0.3, 0.6)
        }
    ),
    "defaced": _leveled(signal.deface, 40, 20, 5, crops=False),
    "background": Kind(
        {
            name: _bind(signal.change_background, name)
            for name in ("zero", "padding", "gray", "white", "noise")
        },
        crops=False,
    ),
    "metal": Kind(
        {f"{h}{r}": _bind(signal.add_metal, h, r) for h in ("L", "R") for r in (12, 20, 28, 40)}
    ),
    "scale": Kind(_scales(), crops=False),
}
