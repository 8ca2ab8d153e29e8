"""Contrasts and the subjects of a contrast."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from hyps_bids.classification.contrast import (
    Contrast,
    LabeledSubjects,
    label_scans,
    site_association,
)
from hyps_bids.errors import BadData, UsageError
from tests.cohorts import simulate
from tests.raising import raises


def test_contrasts_of_groups_and_many_classes() -> None:
    contrast = Contrast.parse("AD+LMCI:CN:EMCI")
    assert list(contrast.classes) == ["AD+LMCI", "CN", "EMCI"]
    assert contrast.name == "AD+LMCI-vs-CN-vs-EMCI"
    assert contrast.text == "AD+LMCI:CN:EMCI"
    # The name becomes the name of a folder.
    assert Contrast.parse("a/b:../c").name == "a_b-vs-.._c"


@pytest.mark.parametrize("text", ["AD", "AD:", ":CN", "AD++CN:X", "", "AD:AD+CN"])
def test_contrasts_that_are_none_are_refused(text: str) -> None:
    code = "contrast-level-repeated" if "AD+CN" in text else "contrast-syntax"
    with raises(UsageError, code, text):
        Contrast.parse(text)


@pytest.mark.parametrize(
    ("contrast", "code", "facts"),
    [
        ("EMCI:CN", "contrast-level-absent", ("EMCI", "AD, CN")),
        # One subject is too few, however often scanned.
        ("AD:CN", "class-too-small", ("class AD", "1 subject")),
    ],
)
def test_contrasts_without_subjects(contrast: str, code: str, facts: tuple[str, ...]) -> None:
    frame = simulate({"AD": 1, "CN": 5}, scans=4)
    with raises(BadData, code, *facts):
        label_scans(frame, "diagnosis", Contrast.parse(contrast))


def test_the_class_of_the_first_scan_is_kept() -> None:
    frame = simulate({"MCI": 4, "CN": 4}, scans=2)
    # The diagnosis of the first subject changes at the second visit.
    frame.loc[1, "diagnosis"] = "CN"
    # The fifth subject has no diagnosis at the first visit.
    frame.loc[8, "diagnosis"] = None
    label = label_scans(frame, "diagnosis", Contrast.parse("MCI:CN"))
    assert label[0] == 0
    assert pd.isna(label[1])
    assert pd.isna(label[8])
    assert label[9] == 1
    assert label.notna().sum() == 14


def test_numbers_are_levels_too() -> None:
    frame = simulate({"AD": 3, "CN": 3}).assign(group=[1.0, 1.0, 1.0, 0.0, 0.0, np.nan])
    label = label_scans(frame, "group", Contrast.parse("1:0"))
    assert label.tolist()[:5] == [0, 0, 0, 1, 1]


def test_every_subject_needs_a_scan() -> None:
    with pytest.raises(ValueError, match="scan"):
        LabeledSubjects(np.zeros((1, 1)), np.array([0]), np.array([0, 1]), ("a", "b"), ("x", "y"))


def test_confounding_is_measured() -> None:
    label = np.array([0] * 10 + [1] * 10)
    assert site_association(label, ["a"] * 10 + ["b"] * 5 + ["c"] * 5) == (pytest.approx(1), True)
    value, full = site_association(label, ["a"] * 9 + ["b"] + ["b"] * 9 + ["a"])
    assert value == pytest.approx(0.8)
    assert not full
    assert site_association(label, ["a"] * 20) == (0, False)


def test_the_second_session_comes_before_the_tenth() -> None:
    frame = pd.DataFrame(
        {
            "participant_id": ["sub-1", "sub-1", "sub-2", "sub-3", "sub-4"],
            "session_id": ["ses-10", "ses-2", "ses-1", "ses-1", "ses-1"],
            "dx": ["AD", "CN", "AD", "AD", "CN"],
        }
    )
    assert label_scans(frame, "dx", Contrast.parse("AD:CN")).isna().tolist()[:2] == [True, False]
