"""Every kind of spoiled image by its name, and the images themselves.

    head, result = segment_head(pipeline, conform(path))
    for kind, strength in variants():
        spoiled = spoil(head, kind, strength, seed=0)

The same head, kind, strength and seed give the same image.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from hyps_bids.errors import UsageError
from hyps_bids.evaluation.damage import DAMAGES
from hyps_bids.evaluation.degradations import DEGRADATIONS
from hyps_bids.evaluation.heads import Head, Kind, Spoiled

#: All kinds by their names.
KINDS: dict[str, Kind] = DEGRADATIONS | DAMAGES


def variants(kinds: Iterable[str] | None = None, *, crops: bool = False) -> list[tuple[str, str]]:
    """List kinds and their strengths.

    Parameters
    ----------
    kinds : iterable of str, optional
        Names of kinds, or of single strengths as ``KIND:STRENGTH``; all kinds by default.
    crops : bool
        Leave out the kinds that need a whole head.

    Raises
    ------
    UsageError
        If there is no such kind or strength.
    """
    found = []
    for name in KINDS if kinds is None else kinds:
        kind, _, strength = name.partition(":")
        known = KINDS[kind].strengths if kind in KINDS else {}
        if not known or (strength and strength not in known):
            raise UsageError(
                f"{name}: there is no such kind of spoiled image; kinds are "
                f"{', '.join(known or KINDS)}.",
                code="variant-unknown",
            )
        if KINDS[kind].crops or not crops:
            found += [(kind, each) for each in ([strength] if strength else known)]
    return found


def spoil(head: Head, kind: str, strength: str, seed: int = 0) -> Spoiled:
    """Make one of the :func:`variants` of a head."""
    rng = np.random.default_rng([seed, zlib.crc32(f"{kind}:{strength}".encode())])
    spoiled = KINDS[kind].strengths[strength](head, rng)
    return replace(spoiled, data=np.ascontiguousarray(spoiled.data, np.float32))
