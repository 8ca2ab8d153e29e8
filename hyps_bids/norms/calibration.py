"""How well z-scores and centiles are calibrated."""

from __future__ import annotations

import pandas as pd

from hyps_bids.norms.sample import NormSample, NormScores


def calibration_table(sample: NormSample, scores: NormScores) -> pd.DataFrame:
    """Summarize scores that were made out of folds: all, by third of age, and by site.

    Returns
    -------
    pandas.DataFrame
        One row per group: ``group`` (all, age, site), ``level``, ``n``, ``z_mean``, ``z_sd``,
        ``z_skew``, ``z_kurtosis`` (excess), ``below_5`` and ``above_95`` (percent).
    """
    raise NotImplementedError


def pit_histogram(scores: NormScores, bins: int = 10) -> pd.DataFrame:
    """Count centiles in bins of equal width: ``low``, ``high``, ``n``, ``expected``."""
    raise NotImplementedError
