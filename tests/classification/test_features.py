"""From a table to a matrix to the input of a classifier, without effects of site and head size."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest

from hyps_bids.classification.features import Schema, circular, levels_of, text_levels
from hyps_bids.classification.harmonize import IcvAdjuster, SiteHarmonizer
from tests.cohorts import PARTS, simulate

SCHEMA = Schema(
    volumes=PARTS,
    ratios=("asymmetry",),
    icv="icv_mm3",
    numeric=("age", "education"),
    categories={"sex": ("F", "M")},
    preserve=("age", "sex"),
    site="site",
    sites=("A", "B"),
)


@pytest.fixture
def frame() -> pd.DataFrame:
    made = simulate({"AD": 40, "CN": 40}, sites=("A", "B"), site_shift=300, missing=0.1)
    return made.assign(asymmetry=np.random.default_rng(0).normal(size=80))


def test_matrix_has_named_columns(frame: pd.DataFrame) -> None:
    matrix = SCHEMA.matrix(frame)
    assert matrix.shape == (80, len(SCHEMA.columns))
    column = dict(zip(SCHEMA.columns, matrix.T, strict=True))
    assert np.array_equal(column["age"], frame["age"], equal_nan=True)
    assert np.array_equal(column["site"], (frame["site"] == "B").astype(float))
    unknown = SCHEMA.matrix(frame.assign(sex="X", site=None))
    assert np.isnan(unknown[:, [SCHEMA.columns.index("sex"), SCHEMA.columns.index("site")]]).all()


def test_preprocessing_imputes_harmonizes_adjusts_and_scales(frame: pd.DataFrame) -> None:
    matrix = SCHEMA.matrix(frame)
    out = SCHEMA.preprocessing().fit_transform(matrix)
    # There are 4 volumes, asymmetry, age, education, and sex as two columns.
    assert out.shape == (80, 9)
    assert np.allclose(out.mean(axis=0), 0, atol=1e-9)
    site = (frame["site"] == "B").to_numpy()
    raw = np.nan_to_num((matrix[:, 0] - np.nanmean(matrix[:, 0])) / np.nanstd(matrix[:, 0]))
    assert abs(raw[site].mean() - raw[~site].mean()) > 0.8
    assert abs(out[site, 0].mean() - out[~site, 0].mean()) < 0.3
    icv = matrix[:, SCHEMA.columns.index("icv_mm3")]
    known = np.isfinite(icv)
    assert abs(np.corrcoef(out[known, 0], icv[known])[0, 1]) < 0.05


def test_sets_see_only_their_columns(frame: pd.DataFrame) -> None:
    matrix = SCHEMA.matrix(frame)
    both = SCHEMA.preprocessing().fit_transform(matrix)
    volumes = SCHEMA.only(SCHEMA.features).preprocessing().fit_transform(matrix)
    metadata = SCHEMA.only(SCHEMA.covariates).preprocessing().fit_transform(matrix)
    assert np.allclose(np.hstack([volumes, metadata]), both)
    one = SCHEMA.only(["sex"]).preprocessing().fit_transform(matrix)
    assert one.shape == (80, 2)


def test_preprocessing_ignores_labels_and_the_rows_it_transforms(frame: pd.DataFrame) -> None:
    matrix = SCHEMA.matrix(frame)
    labels = np.arange(80) % 2
    first = SCHEMA.preprocessing().fit(matrix[:60], labels[:60])
    second = SCHEMA.preprocessing().fit(matrix[:60], 1 - labels[:60])
    together = first.transform(matrix[60:])
    assert np.array_equal(together, second.transform(matrix[60:]))
    assert np.allclose(together[:1], first.transform(matrix[60:61]))


def test_empty_columns_in_a_fold_do_not_shift_the_others(frame: pd.DataFrame) -> None:
    matrix = SCHEMA.matrix(frame)
    matrix[:, [1, SCHEMA.columns.index("age"), SCHEMA.columns.index("sex")]] = np.nan
    out = SCHEMA.preprocessing().fit_transform(matrix)
    assert out.shape == (80, 9)
    assert np.isfinite(out).all()


def test_schema_survives_json() -> None:
    assert Schema.from_json(asdict(SCHEMA)) == SCHEMA


def test_levels_keep_their_declared_order() -> None:
    column = pd.Series(pd.Categorical(["b", "a", None], categories=["b", "c", "a"]))
    assert levels_of(column) == ("b", "a")
    assert levels_of(pd.Series(["x", None, "a"])) == ("a", "x")
    assert text_levels(pd.Series([0.0, 1.5])).tolist() == ["0", "1.5"]


def test_circular_covariates_are_known() -> None:
    names = ["MMSE", "mmse_total", "CDRSB", "ADAS13", "MoCA", "FAQ", "BDI", "HADS-anx", "ICD-10"]
    assert circular(names) == names
    assert not circular(["age", "sex", "education", "APOE4", "chamber", "handedness", "site"])


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
