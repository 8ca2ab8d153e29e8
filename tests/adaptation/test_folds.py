"""Properties that every division into folds must have."""

from __future__ import annotations

import logging

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyps_bids.adaptation.folds import Fold, levels, make_folds, splits_table
from hyps_bids.errors import UsageError

#: scans of subjects: each label as often as the subject has scans
scans = st.lists(st.sampled_from([f"{i:02d}" for i in range(25)]), min_size=1, max_size=60)


@settings(max_examples=60, deadline=None)
@given(
    subjects=scans.filter(lambda labels: len(set(labels)) > 1),
    count=st.integers(2, 8),
    seed=st.integers(0, 99),
    kinds=st.none() | st.integers(1, 4),
)
def test_every_division(subjects: list[str], count: int, seed: int, kinds: int | None) -> None:
    strata = {s: str(int(s) % kinds) for s in set(subjects)} if kinds else None
    folds = make_folds(subjects, count, strata=strata, seed=seed)
    everyone = set(subjects)
    assert len(folds) == min(count, len(everyone))
    # each subject is tested once
    assert sorted(s for fold in folds for s in fold.test) == sorted(everyone)
    for fold in folds:
        three = [set(fold.training), set(fold.validation), set(fold.test)]
        assert set.union(*three) == everyone
        assert sum(map(len, three)) == len(everyone)
        assert fold.training
        assert fold.test
        assert bool(fold.validation) == (len(everyone) - len(fold.test) > 2)
        assert len(fold.validation) <= 8
    assert folds == make_folds(subjects[::-1], count, strata=strata, seed=seed)


def test_strata_are_spread() -> None:
    subjects = [f"{i:02d}" for i in range(20)]
    strata = {s: "patient" if i < 5 else "control" for i, s in enumerate(subjects)}
    folds = make_folds(subjects, 5, strata=strata)
    assert [sum(strata[s] == "patient" for s in fold.test) for fold in folds] == [1] * 5


def test_rare_levels_are_put_together(caplog: pytest.LogCaptureFixture) -> None:
    subjects = [f"{i:02d}" for i in range(12)]
    strata = {s: "site A" if i < 8 else f"site {i}" for i, s in enumerate(subjects)}
    folds = make_folds(subjects, 4, strata=strata)
    assert [sum(strata[s] != "site A" for s in fold.test) for fold in folds] == [1] * 4
    assert "site 10" in caplog.text


def test_strata_that_cannot_be_spread(caplog: pytest.LogCaptureFixture) -> None:
    subjects = ["01", "02", "03"]
    folds = make_folds(subjects, 3, strata={"01": "a", "02": "b", "03": "b"})
    assert len(folds) == 3
    assert "not stratified" in caplog.text or "one level" in caplog.text


def test_fewer_subjects_than_folds(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="hyps_bids"):
        assert len(make_folds(["01", "02", "02", "03"], 5)) == 3
    assert "3 subjects: 3 folds instead of 5" in caplog.text


def test_one_subject_and_one_fold() -> None:
    with pytest.raises(UsageError, match=r"one subject only \(01\)"):
        make_folds(["01", "01"], 5)
    with pytest.raises(UsageError, match="--folds 1"):
        make_folds(["01", "02"], 1)


def test_other_seed_other_folds() -> None:
    subjects = [f"{i:02d}" for i in range(20)]
    assert make_folds(subjects, 5, seed=0) != make_folds(subjects, 5, seed=1)


def test_levels_of_columns() -> None:
    ages = pd.Series(np.arange(9.0), index=[f"{i}" for i in range(9)])
    ages.iloc[4] = np.nan
    found = levels(ages)
    assert found["4"] == "n/a"
    assert pd.Series(found).value_counts().to_dict() == {
        "third 1": 2,
        "third 2": 3,
        "third 3": 3,
        "n/a": 1,
    }
    assert levels(pd.Series({"a": 1, "b": 2})) == {"a": "1", "b": "2"}


def test_table_of_splits() -> None:
    table = splits_table([Fold(("01",), (), ("02",)), Fold(("02",), (), ("01",))])
    assert table.to_numpy().tolist() == [
        ["sub-01", 1, "training"],
        ["sub-02", 1, "test"],
        ["sub-02", 2, "training"],
        ["sub-01", 2, "test"],
    ]
