"""What is packed for a GPU gives the same split and the same crops there."""

from __future__ import annotations

import runpy
import tarfile
from argparse import Namespace
from pathlib import Path

import torch

from hyps_bids.recipe.plan import read_recipe
from hyps_bids.recipe.stages import Workshop

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu_training.py"


def test_packed_crops_have_the_same_split_and_content(data: Path, tmp_path: Path) -> None:
    recipe, archive = data / "recipe.toml", tmp_path / "pack.tar.xz"
    paths = {"data": data, "archive": archive, "weights": tmp_path, "recipe": recipe}
    options = {"stages": ["soup"], "results": None, "limit": 64, "preset": 0}
    runpy.run_path(str(SCRIPT))["pack"](Namespace(**paths, **options))
    with tarfile.open(archive) as stream:
        stream.extractall(tmp_path, filter="data")
    plan = read_recipe(recipe)
    here, there = (
        Workshop(plan, folder, tmp_path / "out", tmp_path, torch.device("cpu")).crops
        for folder in (data, tmp_path / "data")
    )
    assert [part.ids for part in here] == [part.ids for part in there]
    assert [part.digest() for part in here] == [part.digest() for part in there]
