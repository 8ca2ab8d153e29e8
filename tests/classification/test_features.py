"""From a table to a matrix to the input of a classifier."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest

from hyps_bids.classification.features import Schema, circular, levels_of, text_levels
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
