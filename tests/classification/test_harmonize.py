"""Effects of site and head size are removed, and effects of the design are kept."""

from __future__ import annotations

import numpy as np
import pytest

from hyps_bids.classification.harmonize import IcvAdjuster, SiteHarmonizer


def made(n: int = 300, seed: int = 0) -> np.ndarray:
    """Volumes of three sites that differ in mean and scale; columns: 3 volumes, site, age."""
    rng = np.random.default_rng(seed)
    site = np.arange(n) % 3
    # The oldest are at site 2, so that a naive correction would remove the effect of age too.
    age = rng.normal(70, 5, n) + 4 * (site == 2)
    noise = rng.normal(0, 100, (n, 3)) * (1 + site[:, None])
    volumes = 3000 - 20 * (age[:, None] - 70) + 300 * site[:, None] + noise
    return np.column_stack([volumes, site, age])


def test_takes_mean_and_scale_of_sites_and_keeps_age() -> None:
    matrix = made()
    out = SiteHarmonizer((0, 1, 2), 3, (4,)).fit_transform(matrix)
    slope = np.polyfit(matrix[:, 4], out[:, 0], 1)[0]
    assert slope == pytest.approx(-20, abs=5)
    residual = out[:, 0] + 20 * (matrix[:, 4] - 70)
    means = [residual[matrix[:, 3] == s].mean() for s in range(3)]
    spreads = [residual[matrix[:, 3] == s].std() for s in range(3)]
    assert np.ptp(means) < 40
    assert max(spreads) / min(spreads) < 1.25
    assert np.array_equal(out[:, 3:], matrix[:, 3:])


@pytest.mark.parametrize("site", [7.0, -1.0, np.nan])
def test_unseen_sites_are_left_as_they_are(site: float) -> None:
    matrix = made()
    harmonizer = SiteHarmonizer((0, 1, 2), 3, (4,)).fit(matrix)
    new = matrix[:5].copy()
    new[:, 3] = site
    assert np.array_equal(harmonizer.transform(new), new, equal_nan=True)


def test_sites_with_two_scans_and_single_sites_change_nothing() -> None:
    matrix = made(6)
    assert np.array_equal(SiteHarmonizer((0,), 3, ()).fit_transform(matrix), matrix)
    matrix = made(30)
    matrix[:, 3] = 0
    assert np.array_equal(SiteHarmonizer((0,), 3, ()).fit_transform(matrix), matrix)


def test_one_column_and_constant_columns_work() -> None:
    matrix = made()
    matrix[:, 1] = 5.0
    out = SiteHarmonizer((0,), 3, ()).fit_transform(matrix)
    assert np.isfinite(out).all()
    out = SiteHarmonizer((0, 1), 3, ()).fit_transform(matrix)
    assert np.allclose(out[:, 1], 5.0)


def test_shrinks_noisy_sites_towards_their_other_columns() -> None:
    rng = np.random.default_rng(3)
    site = np.repeat([0.0, 1.0], [200, 4])
    volumes = rng.normal(0, 1, (204, 8)) + 0.5 * site[:, None]
    fitted = SiteHarmonizer(tuple(range(8)), 8, ()).fit(np.column_stack([volumes, site]))
    raw = volumes[200:].mean(axis=0)
    assert np.ptp(fitted.shift_[1]) < 0.7 * np.ptp(raw)


def test_icv_slope_of_controls_only() -> None:
    rng = np.random.default_rng(0)
    icv = rng.normal(1.5e6, 1e5, 200)
    control = (np.arange(200) < 100).astype(float)
    # In patients the sign of the slope is reversed, which must not influence that of controls.
    volume = 3000 + 0.002 * (icv - 1.5e6) * np.where(control == 1, 1, -1)
    matrix = np.column_stack([volume, icv, control])
    fitted = IcvAdjuster((0,), 1, 2).fit(matrix)
    assert fitted.slope_[0] == pytest.approx(0.002)
    assert np.ptp(fitted.transform(matrix)[:100, 0]) < 1e-6
    # Without controls, all rows are used.
    matrix[:, 2] = 0
    assert abs(IcvAdjuster((0,), 1, 2).fit(matrix).slope_[0]) < 0.001


def test_icv_without_variance_changes_nothing() -> None:
    matrix = np.array([[1.0, 5.0, 0.0], [2.0, 5.0, 0.0]])
    assert np.array_equal(IcvAdjuster((0,), 1, 2).fit_transform(matrix), matrix)
