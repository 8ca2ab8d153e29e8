"""Properties that every division into folds must have."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hyps_bids.adaptation.crops import Crops
from hyps_bids.adaptation.folds import Fold, levels, split_by_subject, split_crops, splits_table
from hyps_bids.errors import UsageError
from hyps_bids.labels.msd import msd_subject
from tests.raising import raises

#: Scans of subjects: each label as often as the subject has scans.
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
    folds = split_by_subject(subjects, count, strata=strata, seed=seed)
    everyone = set(subjects)
    assert len(folds) == min(count, len(everyone))
    # Each subject is tested once
    assert sorted(s for fold in folds for s in fold.test) == sorted(everyone)
    for fold in folds:
        three = [set(fold.training), set(fold.validation), set(fold.test)]
        assert set.union(*three) == everyone
        assert sum(map(len, three)) == len(everyone)
        assert fold.training
        assert fold.test
        assert bool(fold.validation) == (len(everyone) - len(fold.test) > 2)
        assert len(fold.validation) <= 8
    assert folds == split_by_subject(subjects[::-1], count, strata=strata, seed=seed)


def test_strata_are_spread() -> None:
    subjects = [f"{i:02d}" for i in range(20)]
    strata = {s: "patient" if i < 5 else "control" for i, s in enumerate(subjects)}
    folds = split_by_subject(subjects, 5, strata=strata)
    assert [sum(strata[s] == "patient" for s in fold.test) for fold in folds] == [1] * 5
    assert folds != split_by_subject(subjects, 5, strata=strata, seed=1)


def test_rare_levels_are_put_together(caplog: pytest.LogCaptureFixture) -> None:
    subjects = [f"{i:02d}" for i in range(12)]
    strata = {s: "site A" if i < 8 else f"site {i}" for i, s in enumerate(subjects)}
    folds = split_by_subject(subjects, 4, strata=strata)
    assert [sum(strata[s] != "site A" for s in fold.test) for fold in folds] == [1] * 4
    assert "site 10" in caplog.messages[0]
    # With too few subjects of every level there are two warnings, and folds all the same
    strata = {"01": "a", "02": "b", "03": "b"}
    assert len(split_by_subject(strata, 3, strata=strata)) == 3
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 3


def test_fewer_subjects_than_folds(caplog: pytest.LogCaptureFixture) -> None:
    assert len(split_by_subject(["01", "02", "02", "03"], 5)) == 3
    (record,) = caplog.records
    assert (record.levelname, record.args) == ("WARNING", (3, 3, 5))
    with raises(UsageError, "one-subject", "01"):
        split_by_subject(["01", "01"], 5)
    with raises(UsageError, "too-few-folds", "--folds 1"):
        split_by_subject(["01", "02"], 1)


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


def split_msd(count: int | None, validation: float | None) -> tuple[Crops, Crops]:
    names = tuple(f"hippocampus_{i:03d}" for i in range(1, 41))
    volume = torch.zeros(len(names), 1, 2, 2, 2)
    crops = Crops(names, volume, volume.bool(), volume.long())
    return split_crops(crops, msd_subject, fixed_test=True, count=count, validation=validation)


def test_msd_test_subjects_are_never_used() -> None:
    training, validation = split_msd(None, 4)
    used = {msd_subject(n) for n in training.ids}, {msd_subject(n) for n in validation.ids}
    assert used[0] | used[1] == set(range(1, 21)) - {5, 10, 15, 20}
    assert not used[0] & used[1]
    assert len(used[1]) == 4
    fraction = split_msd(None, 0.25)
    assert (fraction[0].ids, fraction[1].ids) == (training.ids, validation.ids)


def test_adapters_are_not_trained_on_the_subjects_that_compare_them() -> None:
    training, validation = split_msd(None, None)
    # The eighth of the subjects that are not in the test set; two crops each.
    assert validation.ids == ("hippocampus_017", "hippocampus_018")
    assert {msd_subject(n) for n in training.ids} == set(range(1, 21)) - {5, 9, 10, 15, 20}


def test_first_crops_only() -> None:
    training, validation = split_msd(9, 2)
    # Subject 5 is a test subject: ids 9 and 10 are left out
    assert training.ids == (*(f"hippocampus_{i:03d}" for i in range(1, 9)), "hippocampus_011")
    assert not {msd_subject(n) for n in validation.ids} & {1, 2, 3, 4, 5, 6}


@pytest.mark.parametrize(("count", "validation"), [(32, 2), (31, 2), (None, 0)])
def test_nothing_left_to_validate_on(count: int | None, validation: float) -> None:
    with raises(UsageError, "no-crop-left"):
        split_msd(count, validation)
