"""How well z-scores and centiles are calibrated."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import kurtosis, skew

from hyps_bids.norms.fit import weights_of
from hyps_bids.norms.sample import NormSample, NormScores


def calibration_table(sample: NormSample, scores: NormScores) -> pd.DataFrame:
    """Summarize scores that were made out of folds: all, by third of age, and by site.

    Shares of people with several scans count once, as in the fit.

    Returns
    -------
    pandas.DataFrame
        One row per group: ``group`` (``all``, ``age``, ``site``), ``level``, ``n`` (scans),
        ``z_mean``, ``z_sd``, ``z_skew``, ``z_kurtosis`` (excess), and ``below_5`` and ``above_95``
        (percent of the scans).
    """
    known = np.isfinite(scores.z)
    rows = []
    for group, level, of in _groups(sample, known):
        z = scores.z[of]
        weights = weights_of(sample.participant[of])
        weights /= weights.sum()
        mean = weights @ z
        row = {
            "z_mean": mean,
            "z_sd": np.sqrt(weights @ (z - mean) ** 2),
            "z_skew": skew(z) if len(z) > 2 else np.nan,
            "z_kurtosis": kurtosis(z) if len(z) > 3 else np.nan,
            "below_5": 100 * weights @ (scores.centile[of] < 5),
            "above_95": 100 * weights @ (scores.centile[of] > 95),
        }
        rows.append({"group": group, "level": level, "n": len(z), **row})
    return pd.DataFrame(rows)


def pit_histogram(scores: NormScores, bins: int = 10) -> pd.DataFrame:
    """Count centiles in bins of equal width: ``low``, ``high``, ``n``, ``expected``."""
    centiles = scores.centile[np.isfinite(scores.centile)]
    counts, edges = np.histogram(centiles, np.linspace(0, 100, bins + 1))
    columns = {"low": edges[:-1], "high": edges[1:], "n": counts}
    return pd.DataFrame(columns).assign(expected=len(centiles) / bins)


def _groups(
    sample: NormSample, known: NDArray[np.bool_]
) -> Iterator[tuple[str, str, NDArray[np.bool_]]]:
    """Yield groups of scans with scores, without empty ones."""
    if not known.any():
        return
    yield "all", "", known
    ends = np.quantile(sample.age[known], [0, 1 / 3, 2 / 3, 1])
    if ends[0] < ends[-1]:
        third = np.searchsorted(ends[1:-1], sample.age, side="right")
        for k in range(3):
            of = known & (third == k)
            if of.any():
                yield "age", f"{sample.age[of].min():.1f}-{sample.age[of].max():.1f}", of
    sites = sorted(set(sample.site[known]))
    for site in sites if len(sites) > 1 else []:
        yield "site", site, known & (sample.site == site)
