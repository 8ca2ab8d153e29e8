"""The normative model of one measure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hyps_bids.norms.sample import Array, NormSample, NormScores, NormSettings


@dataclass(frozen=True)
class Norm:
    """The distribution of a measure by age, sex, intracranial volume and site.

    Attributes
    ----------
    settings : NormSettings
        How it was fitted.
    facts : mapping
        Counts and ranges of the controls, in plain JSON: Participants, Scans, Ages, Sexes, Sites
        (name → participants), ICV (mm³, or None if the model has none), Family, Converged.
    remarks : tuple of str
        What the user should know about the fit, in sentences.
    """

    settings: NormSettings
    facts: Mapping[str, Any]
    remarks: tuple[str, ...]

    def score(self, sample: NormSample, values: Array) -> NormScores:
        """Return z-scores and centiles of scans."""
        raise NotImplementedError

    def curves(
        self, ages: Array, sex: str, icv: float, site: str, centiles: Sequence[float]
    ) -> Array:
        """Return the values at centiles (percent), of shape (ages, centiles); NaN if unsupported.

        An `icv` of NaN stands for the controls' median, and a `site` that is not among the
        controls' for an average site.
        """
        raise NotImplementedError

    def to_arrays(self) -> tuple[dict[str, Any], dict[str, Array]]:
        """Return facts that JSON can hold, and arrays."""
        raise NotImplementedError

    @classmethod
    def from_arrays(cls, facts: Mapping[str, Any], arrays: Mapping[str, Array]) -> Norm:
        """Make the model from what :meth:`to_arrays` returned."""
        raise NotImplementedError


def fit_norm(sample: NormSample, values: Array, settings: NormSettings) -> Norm:
    """Fit the model of one measure to the scans of controls.

    Raises
    ------
    BadData
        ``norm-too-few``: fewer than 20 participants have all that the model needs.
        ``norm-constant``: the measure has the same value everywhere.
    """
    raise NotImplementedError


def calibrate_site(norm: Norm, sample: NormSample, values: Array) -> Norm:
    """Add the sites of new controls, whose other sites stay as they are.

    Raises
    ------
    BadData
        ``norm-site-no-controls``: no scan can be used.
    """
    raise NotImplementedError
