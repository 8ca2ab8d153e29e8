"""The values that go into a normative model, and the scores that come out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Texts = NDArray[np.object_]

#: Fewest participants with which a model is fitted, and number below which it is doubtful.
FEWEST, FEW = 20, 50
#: Fewest controls by whom the offset of a site is measured. With fewer, a centile is further from
#: the truth than without any (measured, see docs/norms.md), so the site counts as unknown.
FEWEST_AT_SITE = 10

#: Why a scan has no score.
NO_VALUE = "value-missing"
NOT_POSITIVE = "value-not-positive"
NO_AGE = "age-missing"
AGE_OUTSIDE = "age-outside-controls"
NO_SEX = "sex-missing"
SEX_OUTSIDE = "sex-not-among-controls"
NO_ICV = "icv-missing"
ICV_OUTSIDE = "icv-outside-controls"
NOT_FITTED = "model-not-fitted"
#: What to know about a scan that has a score.
UNCALIBRATED = "uncalibrated-site"
BEYOND_TAIL = "beyond-tail"


@dataclass(frozen=True)
class NormSample:
    """Scans, as arrays of one length.

    Attributes
    ----------
    participant : ndarray of str
        Labels of the participants; a participant may have several scans.
    age : ndarray of float
        Years; NaN if unknown.
    sex : ndarray of str
        ``F``, ``M``, or an empty text if it is unknown or another one.
    icv : ndarray of float
        Intracranial volumes in mm³; NaN if unknown.
    site : ndarray of str
        Names of the sites; an empty text is a site of its own. Scans of another scanner than those
        of the controls must have another name, or they count as scans of the controls' scanner.
    """

    participant: Texts
    age: Array
    sex: Texts
    icv: Array
    site: Texts

    def __len__(self) -> int:
        return len(self.age)

    def take(self, rows: NDArray[np.bool_] | NDArray[np.intp]) -> NormSample:
        """Return some of the scans."""
        return NormSample(**{name: values[rows] for name, values in vars(self).items()})


@dataclass(frozen=True)
class NormSettings:
    """How a measure is modeled.

    Attributes
    ----------
    measure, units : str
        Name of the measure and its units, which are stored with the model.
    icv : bool
        Whether the intracranial volume is a predictor. Leave it out for ratios and asymmetry.
    sites : bool
        Whether sites have offsets of their own.
    positive : bool
        Whether the measure is positive by its nature, so that its logarithm may be modeled.
        Asymmetry and change are not, even if all controls happen to have positive values.
    """

    measure: str = ""
    units: str = ""
    icv: bool = True
    sites: bool = True
    positive: bool = True


@dataclass(frozen=True)
class NormScores:
    """Scores of scans, as arrays of one length.

    Attributes
    ----------
    z : ndarray of float
        Normal score of the centile; NaN where there is a reason.
    centile, centile_low, centile_high : ndarray of float
        Percent, from 0 to 100, with the 95 % interval that comes from the uncertainty of the model.
    reason : ndarray of str
        Why there is no score (one of the codes of this module), or an empty text.
    remark : ndarray of str
        Codes of what to know about the score, separated by commas: :data:`UNCALIBRATED` or
        :data:`BEYOND_TAIL`, which marks z-scores that were capped.
    """

    z: Array
    centile: Array
    centile_low: Array
    centile_high: Array
    reason: Texts
    remark: Texts

    def __len__(self) -> int:
        return len(self.z)

    def without(self, code: str) -> NormScores:
        """Return the scores with a reason why there is none, where there was no other reason."""
        nothing = np.full(len(self), np.nan)
        reason = np.where(self.reason == "", code, self.reason).astype(object)
        remark = np.full(len(self), "", dtype=object)
        return NormScores(nothing, nothing, nothing, nothing, reason, remark)


def add_remark(remark: Texts, rows: NDArray[np.bool_], code: str) -> None:
    """Add a code to the remarks of some scans, in place, where they do not have it."""
    for row in np.flatnonzero(rows):
        if code not in remark[row].split(","):
            remark[row] = ",".join(filter(None, (code, remark[row])))
