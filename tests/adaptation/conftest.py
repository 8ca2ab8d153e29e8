"""A small untrained base, for adapters that are quick to train."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hyps_bids.networks.checkpoints import build_network, save_network


@pytest.fixture(scope="session")
def small_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    kwargs = {"in_channels": 1, "out_channels": 2, "feature_size": 12}
    architecture = {"name": "HippocampusSwinUNETR", "kwargs": kwargs}
    path = tmp_path_factory.mktemp("base") / "base-made.safetensors"
    card = {
        "architecture": architecture,
        "labels": ["background", "hippocampus"],
        "license": "CC0-1.0",
    }
    save_network(path, build_network(architecture), card)
    return path
