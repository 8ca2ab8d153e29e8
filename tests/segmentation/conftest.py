"""A real head and the shipped networks."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import pytest

from hyps_bids.imaging.conform import ConformedImage, conform
from hyps_bids.networks.cards import ADAPTER, BASE, LOCALIZER, shipped_weights
from hyps_bids.segmentation.localize import Localization
from hyps_bids.segmentation.pipeline import Pipeline, Result


@pytest.fixture(scope="session")
def head(coarse_head: nib.Nifti1Image, tmp_path_factory: pytest.TempPathFactory) -> ConformedImage:
    path: Path = tmp_path_factory.mktemp("head") / "head.nii"
    nib.save(coarse_head, path)
    return conform(path)


@pytest.fixture(scope="session")
def pipeline() -> Pipeline:
    weights = [shipped_weights(name) for name in (LOCALIZER, BASE, ADAPTER)]
    return Pipeline(*weights)


@pytest.fixture(scope="session")
def result(head: ConformedImage, pipeline: Pipeline) -> Result:
    return pipeline.run(head)


@pytest.fixture(scope="session")
def found(result: Result) -> Localization:
    return result.localization
