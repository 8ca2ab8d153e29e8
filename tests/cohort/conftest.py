"""Fixtures of the group level."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cohort.study import MadeStudy


@pytest.fixture
def study(tmp_path: Path) -> MadeStudy:
    return MadeStudy.create(tmp_path)
