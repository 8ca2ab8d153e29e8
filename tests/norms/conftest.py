"""Norms of a made dataset."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from hyps_bids.app import run
from hyps_bids.norms import fitting
from tests.cohort.study import MadeStudy
from tests.norms.made import make_people

#: Options of a run that fits norms.
OPTIONS = {"norms": "made", "controls": "diagnosis=CN", "site": "scanner"}


@pytest.fixture(scope="session")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> MadeStudy:
    """A dataset with norms; tests must not change it."""
    study = make_people(tmp_path_factory.mktemp("norms") / "study")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, "_FOLDS", 3)
        # Drawing takes longer than fitting.
        patch.setattr(fitting, "draw_charts", lambda *_: None)
        assert run(study.settings(**OPTIONS)) == 0
    return study


@pytest.fixture
def copied(fitted: MadeStudy, tmp_path: Path) -> MadeStudy:
    """A copy of it that a test may change."""
    shutil.copytree(fitted.folder, tmp_path / "copy")
    return MadeStudy(tmp_path / "copy")


@pytest.fixture
def norms(fitted: MadeStudy) -> Path:
    """The folder of the norms."""
    return fitted.output / "models" / "norms-made"
