"""Change per year: values and errors as other programs, simulation and formulas give them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import stats

from hyps_bids.longitudinal.change import (
    difference,
    error_model,
    fit_line,
    relative_difference,
)
from hyps_bids.networks.cards import ADAPTER, shipped_weights
from hyps_bids.outputs.digests import sha256

TIMES = np.array([0.4, 1.5, 2.1, 4.0, 4.0])
VALUES = np.array([3010.0, 2951.0, 2960.0, 2830.0, 2851.0])


def test_without_a_stated_error_it_is_ordinary_least_squares() -> None:
    line = fit_line(TIMES, VALUES, math.nan, 0)
    expected = sm.OLS(VALUES, sm.add_constant(TIMES - TIMES[0])).fit()
    assert line.baseline == pytest.approx(expected.params[0])
    assert line.slope[:2] == pytest.approx((expected.params[1], expected.bse[1]))
    assert line.slope[2:] == pytest.approx(tuple(expected.conf_int()[1]))
    ratio = expected.params[1] / expected.params[0]
    by_delta = expected.t_test([[-ratio, 1]]).sd.item() / expected.params[0]
    assert line.percent[:2] == pytest.approx((100 * ratio, 100 * by_delta))


def test_an_error_that_is_known_for_sure_is_that_of_weighted_least_squares() -> None:
    for n in (2, 5):
        line = fit_line(TIMES[:n], VALUES[:n], 12.0, 1e12)
        design, weights = sm.add_constant(TIMES[:n] - TIMES[0]), np.full(n, 12.0**-2)
        expected = sm.WLS(VALUES[:n], design, weights).fit(
            cov_type="fixed scale", cov_kwds={"scale": 1.0}
        )
        assert line.slope[:2] == pytest.approx((expected.params[1], expected.bse[1]))
        assert line.slope.high - line.slope.value == pytest.approx(1.959964 * expected.bse[1])


def test_residuals_and_the_stated_error_are_weighted_by_their_degrees_of_freedom() -> None:
    line, own = fit_line(TIMES, VALUES, 12.0, 9), sm.OLS(VALUES, sm.add_constant(TIMES)).fit()
    scale = (9 * 12.0**2 + 3 * own.mse_resid) / 12
    assert line.slope.se == pytest.approx(own.bse[1] * math.sqrt(scale / own.mse_resid))
    reach = stats.t(12).ppf(0.975) * line.slope.se
    assert line.slope.low == pytest.approx(line.slope.value - reach)


@pytest.mark.parametrize("scans", [2, 3, 6])
def test_intervals_cover_the_true_change(scans: int) -> None:
    """Where the scatter of each person differs as its degrees of freedom say."""
    rng = np.random.default_rng(0)
    times, hits, count = np.linspace(0, 3, scans), [], 1500
    for _ in range(count):
        sd = 15.0 / math.sqrt(rng.chisquare(8) / 8)
        values = 3000 * (1 - 0.02 * times) + rng.normal(0, sd, scans)
        low, high = fit_line(times, values, 15.0, 8).percent[2:]
        hits.append(low < -2 < high)
    # The standard error of this share is 0.6 %.
    assert np.mean(hits) == pytest.approx(0.95, abs=0.018)


def test_two_scans_without_a_stated_error_have_no_interval() -> None:
    line = fit_line(TIMES[:2], VALUES[:2], math.nan, 0)
    assert line.slope.value == pytest.approx(-59 / 1.1)
    assert np.isnan([line.slope.se, line.slope.low, line.percent.high]).all()


def test_a_change_in_percent_of_a_reference() -> None:
    """The boundary shift integral has no volume of its own."""
    shifts = np.array([0.0, -30.0, -61.0])
    line = fit_line(np.array([0.0, 1.0, 2.0]), shifts, 12.0, 20, reference=3000.0)
    assert line.percent[:2] == pytest.approx((line.slope.value / 30, line.slope.se / 30), rel=1e-12)
    change = relative_difference(0.0, -61.0, 12.0, 20, reference=3000.0)
    assert change[:2] == pytest.approx((-61 / 30, 12 * math.sqrt(2) / 30))


def test_differences_of_two_scans() -> None:
    change = difference(3000.0, 2700.0, 15.0, 1e12)
    assert change == pytest.approx((-300, 21.2132, -341.577, -258.423), abs=0.01)
    rng = np.random.default_rng(0)
    first, last = 3000 + rng.normal(0, 15, 40_000), 2700 + rng.normal(0, 15, 40_000)
    simulated = np.std(100 * (last - first) / first)
    assert relative_difference(3000.0, 2700.0, 15.0, 20).se == pytest.approx(simulated, rel=0.02)


def test_the_error_model_is_that_of_the_shipped_adapter() -> None:
    """Whoever ships another adapter measures its errors anew."""
    adapter = sha256(shipped_weights(ADAPTER))
    model = error_model(adapter, 1.0)
    for method in ("volume", "bsi"):
        assert 0 < model.sd(method, "whole") < model.sd(method, "anterior") < 3
    for other, word in (
        (error_model("another", 1.0), "adapter"),
        (error_model(adapter, 3.0), "mm"),
    ):
        assert math.isnan(other.sd("volume", "whole"))
        assert word in other.problem
