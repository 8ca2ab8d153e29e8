"""Harmonization of sites, against neuroCombat 0.2.12 and longCombat with lme4 1.1-31."""

from __future__ import annotations

import numpy as np
import pytest

from hyps_bids.cohort.combat import harmonize, site_effects

_SHIFTS = np.array([1.0, 0.8, 1.2, 0.6])


def cross_sectional(
    rng: np.random.Generator | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values, sites and design (age and diagnosis) of 36 scans."""
    rng = rng or np.random.default_rng(7)
    site = np.repeat([0, 1, 2], [14, 12, 10])
    age = np.round(rng.normal(70, 6, 36), 1)
    dx = rng.integers(0, 2, 36)
    noise = rng.normal(0, 80, (36, 4)) * np.array([1, 1.6, 0.7])[site][:, None]
    shift = np.array([0, 150, -100])[site][:, None] * _SHIFTS
    values = 2000 - 15 * (age - 70)[:, None] - 120 * dx[:, None] + shift + noise
    return np.round(values, 1), site, np.column_stack([age, dx]).astype(float)


def repeated() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Values, sites, design and subjects of 16 subjects with three visits, some at two sites."""
    rng = np.random.default_rng(7)
    cross_sectional(rng)
    subject, time = np.repeat(np.arange(16), 3), np.tile([0.0, 1.0, 2.0], 16)
    site = np.where(subject < 6, 0, np.where(subject < 11, 1, 2))
    site = np.where((subject % 4 == 0) & (time == 2), (site + 1) % 3, site)
    dx = subject % 2
    intercept = rng.normal(0, 150, 16)[subject]
    noise = rng.normal(0, 40, (48, 4)) * np.array([1, 1.6, 0.7])[site][:, None]
    fixed = 2000 + intercept - 20 * time - 100 * dx - 15 * dx * time
    values = fixed[:, None] + np.array([0, 120, -90])[site][:, None] * _SHIFTS + noise
    design = np.column_stack([dx, time, dx * time])
    return np.round(values, 1), site, design, subject


def test_scans_of_different_subjects_are_those_of_neurocombat() -> None:
    values, site, design = cross_sectional()
    expected = [
        [1981.748, 2061.509, 2021.222, 2071.334],
        [2318.611, 2339.191, 2197.499, 2163.617],
        [2130.562, 2154.086, 2129.324, 2179.438],
    ]
    assert harmonize(values, site, design, None)[[0, 20, 35]] == pytest.approx(
        np.array(expected), abs=1e-5 * values.std()
    )


def test_repeated_scans_are_those_of_longcombat() -> None:
    values, site, design, subjects = repeated()
    expected = [
        [1981.326, 1947.025, 1950.470, 1963.255],
        [2296.537, 2260.882, 2244.905, 2203.019],
        [1499.546, 1566.797, 1549.659, 1454.982],
    ]
    # longCombat stops after 30 iterations, and the two optimizers differ a little.
    assert harmonize(values, site, design, subjects)[[0, 20, 47]] == pytest.approx(
        np.array(expected), abs=5e-5 * values.std()
    )


def test_redundant_and_constant_columns_of_the_design_change_nothing() -> None:
    values, site, design = cross_sectional()
    dx = design[:, 1]
    other = np.column_stack([np.ones(36), dx, 1 - dx, design[:, 0] * 1000])
    assert harmonize(values, site, other, None) == pytest.approx(
        harmonize(values, site, design, None)
    )


def test_missing_and_constant_values_cost_only_themselves() -> None:
    values, site, design = cross_sectional()
    whole = harmonize(values, site, design, None)
    holes = np.column_stack([values, np.full(36, 7.0)])
    holes[:12, 3] = np.nan
    found = harmonize(holes, site, design, None)
    # Two values of a site are too few to know its variance.
    assert np.isnan(found[:14, 3]).all()
    assert np.isfinite(found[14:, 3]).all()
    assert (found[:, 4] == 7).all()
    # Priors come from the other measures, so they change a little.
    assert found[:, :3] == pytest.approx(whole[:, :3], rel=0.02)


def test_a_single_measure_takes_plain_means_and_variances() -> None:
    values, site, _ = cross_sectional()
    found = harmonize(values[:, :1], site, np.empty((36, 0)), None)[:, 0]
    assert [found[site == s].mean() for s in range(3)] == pytest.approx([values[:, 0].mean()] * 3)
    assert np.ptp([found[site == s].std(ddof=1) for s in range(3)]) == pytest.approx(0, abs=1e-9)


def test_no_value_at_all_has_no_effect() -> None:
    shift, scale = site_effects(np.full((6, 2), np.nan), np.eye(2).repeat(3, axis=0))
    assert (shift == 0).all()
    assert (scale == 1).all()
