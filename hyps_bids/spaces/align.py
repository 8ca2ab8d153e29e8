"""Find how a scan lies in the space of a template, and judge it."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
from scipy.spatial.transform import Rotation

from hyps_bids.imaging.registration import Head, NotRegistered, register, rigid_guesses
from hyps_bids.outputs.labels import HEMISPHERES
from hyps_bids.spaces.quality import Verdict, judge

#: Guesses that differ by fewer degrees lead to the same result.
_SAME_GUESS = 15.0
_LOG = logging.getLogger("hyps_bids")


def align(
    template: Head, head: Head, *, same_contrast: bool = False
) -> tuple[np.ndarray | None, Verdict]:
    """Register a scan with a template from one guess or several, and keep the best result.

    Parameters
    ----------
    template, head : Head
        What to register; the template has both hippocampi.
    same_contrast : bool
        Whether both are T1w (see :func:`hyps_bids.spaces.quality.judge`).

    Returns
    -------
    move : numpy.ndarray or None
        From the world of the template to that of the scan, shape (4, 4); None if there is none.
    verdict : Verdict
        How good it is, and whether it is refused.
    """
    if not head.inside.any():
        return None, Verdict({}, "no-brain")
    if not head.hippocampi.any():
        return None, Verdict({}, "no-hippocampus")
    guesses = rigid_guesses(template, head)
    tried = []
    for guess in guesses:
        tried.append(_try(template, head, guess, same_contrast=same_contrast))
        if tried[-1][1].is_clean and _angle(guesses) < _SAME_GUESS:
            break
    return max(tried, key=lambda each: _rank(each[1]))


def _angle(guesses: Sequence[np.ndarray]) -> float:
    """Return the angle between two guesses, degrees."""
    turn = guesses[0][:3, :3].T @ guesses[1][:3, :3]
    return float(np.degrees(Rotation.from_matrix(turn).magnitude()))


def _try(
    template: Head, head: Head, guess: np.ndarray, *, same_contrast: bool
) -> tuple[np.ndarray | None, Verdict]:
    try:
        move = register(template, head, guess)
    except NotRegistered as error:
        _LOG.info("The registration with a template found no overlap: %s", error)
        return None, Verdict({}, "not-aligned")
    return move, judge(template, head, move, same_contrast=same_contrast)


def _rank(verdict: Verdict) -> tuple[bool, float]:
    """Order registrations of the same images; T2w and FLAIR need the hippocampi."""
    figures = verdict.figures
    own = [figures.get(f"hippocampus_{hemi}", 0.0) for hemi in HEMISPHERES]
    return not verdict.refusal, figures.get("similarity", 0.0) + sum(own) / 2
