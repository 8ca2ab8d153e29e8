"""Fixtures of the group level."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cohort.study import MadeStudy
from tests.cohorts import oasis_cross_sectional, oasis_longitudinal


@pytest.fixture
def study(tmp_path: Path) -> MadeStudy:
    return MadeStudy.create(tmp_path)


@pytest.fixture
def oasis(study: MadeStudy) -> MadeStudy:
    """Forty participants with one scan each, like those of OASIS-1."""
    study.cohort(oasis_cross_sectional())
    return study


@pytest.fixture
def oasis2(study: MadeStudy) -> MadeStudy:
    """Thirty participants with two or three visits, like those of OASIS-2; six are converters."""
    study.cohort(*oasis_longitudinal())
    return study
