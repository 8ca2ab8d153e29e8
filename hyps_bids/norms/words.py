"""The codes of scores in words, and a centile as a sentence."""

from __future__ import annotations

import math

from hyps_bids.norms import sample

#: Codes of this part of the app: why a scan is not scored.
OTHER_WEIGHTS, OTHER_CONTRAST, ICV_FLAGGED = "other-weights", "other-contrast", "icv-flagged"
#: What to know about a centile.
REVIEW, REVIEW_CHANGE, WAS_CONTROL = "review", "review-change", "was-control"

#: Smallest percentage that is told from 0.
LEAST_PERCENT = 0.1

_WORDS = {
    sample.NO_VALUE: "the measure is missing",
    sample.NOT_POSITIVE: "the measure is not positive",
    sample.NO_AGE: "the age is not known",
    sample.AGE_OUTSIDE: "the age is outside that of the controls",
    sample.NO_SEX: "the sex is not known",
    sample.SEX_OUTSIDE: "there is no control of this sex",
    sample.NO_ICV: "the intracranial volume is not known",
    sample.ICV_OUTSIDE: "the intracranial volume is outside that of the controls",
    sample.NOT_FITTED: "the model without this participant could not be fitted",
    sample.UNCALIBRATED: "uncalibrated: the norms have fewer than "
    f"{sample.FEWEST_AT_SITE} controls of this site, so the centile "
    "may be off by the difference between scanners",
    sample.BEYOND_TAIL: "further from the controls than the model can tell, so z is a bound",
    OTHER_WEIGHTS: "the volumes were made by other weights than those of the controls",
    OTHER_CONTRAST: "the image is of another contrast than those of the controls",
    ICV_FLAGGED: "the intracranial volume is flagged",
    REVIEW: "the scan is flagged: look at it first",
    REVIEW_CHANGE: "a scan of this change is flagged, by itself or among the others of the "
    "participant: look at all of them first",
    WAS_CONTROL: "the participant was among the controls, so the centile may be too close to the "
    "middle",
}


def in_words(codes: str) -> str | None:
    """Put codes, separated by commas, into words; None if there are none."""
    return "; ".join(_WORDS.get(code, code) for code in codes.split(",") if code) or None


def centile_sentence(
    centile: float, low: float, high: float, *, with_icv: bool, change: bool = False
) -> str:
    """Say in plain words what a centile means.

    Examples
    --------
    >>> centile_sentence(12.3, 8.1, 17.4, with_icv=True)
    'larger than 12 % of controls of this age, sex and head size (95 % interval 8–17)'
    >>> centile_sentence(0.4, 0.1, 1.2, with_icv=False)
    'larger than 0.4 % of controls of this age and sex (95 % interval 0.1–1.2)'
    >>> centile_sentence(0.01, 0.0, 0.2, with_icv=False)
    'smaller than more than 99.9 % of controls of this age and sex (95 % interval < 0.1 to 0.2)'
    """
    whom = "age, sex and head size" if with_icv else "age and sex"
    word = "higher" if change else "larger"
    if centile < LEAST_PERCENT:
        word, share = "lower" if change else "smaller", f"more than {percent(100 - LEAST_PERCENT)}"
    elif centile > 100 - LEAST_PERCENT:
        share = f"more than {percent(100 - LEAST_PERCENT)}"
    else:
        share = percent(centile)
    ends = percent(low), percent(high)
    interval = (" to " if any(end.startswith(("<", ">")) for end in ends) else "–").join(ends)
    return f"{word} than {share} % of controls of this {whom} (95 % interval {interval})"


def percent(value: float) -> str:
    """Write a centile with as many digits as tell it from 0 and 100.

    Examples
    --------
    >>> [percent(value) for value in (50.4, 4.26, 0.01, 99.96, 97.77)]
    ['50', '4.3', '< 0.1', '> 99.9', '97.8']
    """
    if not math.isfinite(value):
        return "n/a"
    if value < LEAST_PERCENT:
        return f"< {LEAST_PERCENT}"
    if value > 100 - LEAST_PERCENT:
        return f"> {100 - LEAST_PERCENT}"
    if value < 5 or value > 95:
        return f"{value:.1f}"
    return f"{value:.0f}"
