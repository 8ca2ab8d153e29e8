"""Heads whose hippocampus is removed, destroyed or deformed.

The right answer to a side that is gone is that it is missing or flagged; to one that is deformed,
its deformed shape.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hyps_bids.evaluation.deformations import enlarge_ventricles, shrink
from hyps_bids.evaluation.heads import Head, Kind, Spoiled, Spoiler
from hyps_bids.evaluation.lesions import (
    Shape,
    lobectomy,
    mass,
    replace_tissue,
    selective,
    territory,
)


def _lost(hemisphere: str, shape: Shape, size: float, fill: str, **options: float) -> Spoiler:
    def spoiler(head: Head, rng: np.random.Generator) -> Spoiled:
        return replace_tissue(head, rng, hemisphere, shape, size, fill, **options)

    return spoiler


def _shrunk(hemispheres: str, share: float) -> Spoiler:
    return lambda head, rng: shrink(head, rng, hemispheres, share)


def _grown(growth: float) -> Spoiler:
    return lambda head, rng: enlarge_ventricles(head, rng, growth)


def _both_sides(make: Callable[[str], dict[str, Spoiler]]) -> Kind:
    return Kind({f"{hemi}_{name}": each for hemi in "LR" for name, each in make(hemi).items()})


#: Kinds by which a hippocampus is lost, as a whole or in part.
LOSSES = ("resection", "lobectomy", "absent", "tumor", "stroke")
#: Kinds of damage by their names; strengths begin with the side.
DAMAGES: dict[str, Kind] = {
    "resection": _both_sides(
        lambda hemi: {
            **{
                fill: _lost(hemi, selective, 1.0, fill)
                for fill in ("csf", "blood", "brightrim", "darkrim", "scar", "collapsed")
            },
            "csf70": _lost(hemi, selective, 0.7, "csf"),
        }
    ),
    "lobectomy": _both_sides(
        lambda hemi: {
            f"{fill}{100 * share:g}": _lost(hemi, lobectomy, share, fill, margin=55.0)
            for fill, share in (
                ("csf", 0.95),
                ("csf", 0.6),
                ("blood", 0.95),
                ("brightrim", 0.8),
                ("darkrim", 0.9),
            )
        }
    ),
    "absent": _both_sides(
        lambda hemi: {fill: _lost(hemi, selective, 1.0, fill) for fill in ("white", "gray")}
    ),
    "tumor": _both_sides(
        lambda hemi: {
            f"{fill}{radius}": _lost(hemi, mass, radius, fill, margin=25.0, edema=8.0)
            for fill, radius in (("solid", 15), ("solid", 25), ("enhancing", 18), ("enhancing", 28))
        }
    ),
    "stroke": _both_sides(
        lambda hemi: {
            f"{fill}{margin}": _lost(hemi, territory, margin, fill, margin=30.0)
            for fill, margin in (("scar", 8), ("csf", 10), ("scar", 16))
        }
    ),
    "hydrocephalus": Kind({f"{growth}": _grown(growth) for growth in (2, 4, 7)}, crops=False),
    "atrophy": Kind(
        {
            f"{sides}_{share}": _shrunk(sides, share)
            for sides in ("L", "R", "LR")
            for share in (0.3, 0.4, 0.5)
        }
    ),
}
