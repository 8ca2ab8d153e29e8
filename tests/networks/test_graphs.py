"""Tests of the OpenVINO graphs, and of the weights that they are built from, against PyTorch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from torch import nn

from hyps_bids.errors import BadData, MissingInput
from hyps_bids.networks.adapters.config import METHODS, AdapterConfig
from hyps_bids.networks.adapters.network import add_adapters
from hyps_bids.networks.cards import Architecture, read_card
from hyps_bids.networks.checkpoints import (
    build_network,
    load_network,
    replace_head,
    save_adapter,
    save_network,
)
from hyps_bids.networks.graphs import build_graph
from hyps_bids.networks.openvino import ov
from hyps_bids.networks.states import adapted_state, network_state
from tests.networks.perturbing import perturb
from tests.raising import raises

LABELS = ["background", "white", "hippocampus"]
PARTS = ["anterior", "posterior"]
SWIN: Architecture = {
    "name": "HippocampusSwinUNETR",
    "kwargs": {"in_channels": 1, "out_channels": len(LABELS), "feature_size": 12},
}
UNET: Architecture = {
    "name": "BasicUNet",
    "kwargs": {
        "spatial_dims": 3,
        "in_channels": 1,
        "out_channels": len(LABELS),
        "features": [4, 5, 6, 8, 10, 4],
        "norm": ["instance", {"affine": True}],
        "act": ["LeakyReLU", {"negative_slope": 0.1, "inplace": True}],
    },
}


def probabilities(
    architecture: Architecture, state: Mapping[str, np.ndarray], x: np.ndarray
) -> np.ndarray:
    graph = build_graph(architecture["name"], architecture["kwargs"], state, x.shape)
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    return np.array(ov.compile_model(graph, "CPU", settings)([x])[0])


def by_pytorch(model: nn.Module, x: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        result: np.ndarray = model(torch.from_numpy(x)).softmax(dim=1).numpy()
    return result


def noise(*sides: int) -> np.ndarray:
    return np.random.default_rng(3).standard_normal((1, 1, *sides), dtype=np.float32)


def saved(path: Path, architecture: Architecture) -> tuple[Path, nn.Module]:
    torch.manual_seed(0)
    # MONAI starts biases at zero, where a lost one would not show.
    model = perturb(build_network(architecture), 0.05).eval()
    save_network(path, model, {"architecture": architecture, "labels": LABELS})
    return path, model


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("base") / "base.safetensors", SWIN)[0]


def trained(path: Path, base: Path, config: AdapterConfig) -> nn.Module:
    model, card = load_network(base)
    replace_head(model, card["labels"], {"anterior": ["hippocampus"], "posterior": []})
    add_adapters(model, config)
    perturb(model, 0.05)
    save_adapter(path, model, config, base, {"labels": PARTS})
    return model.eval()


@pytest.mark.parametrize(
    ("architecture", "sides"),
    [
        # Sides that pooling and windows divide, and such that need padding, cropping and shifts
        (UNET, (16, 32, 16)),
        (UNET, (33, 38, 47)),
        (SWIN, (16, 40, 16)),
        (SWIN, (40, 56, 40)),
        pytest.param(SWIN, (32, 64, 96), marks=pytest.mark.slow),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else "x".join(map(str, value)),
)
def test_graph_equals_pytorch(
    architecture: Architecture, sides: Sequence[int], tmp_path: Path
) -> None:
    path, model = saved(tmp_path / "network.safetensors", architecture)
    state, card = network_state(path)
    x = noise(*sides)
    got = probabilities(card["architecture"], state, x)
    assert got.shape == (1, len(LABELS), *sides)
    np.testing.assert_allclose(got, by_pytorch(model, x), atol=2e-4)


CONVOLUTIONS: dict[str, Any] = {"layers": ("convolutions", "merging"), "alpha": 3.0, "scale": 0.7}


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="default"),
        pytest.param(CONVOLUTIONS, id="convolutions", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("method", METHODS)
def test_every_adapter_equals_pytorch(
    method: str, changes: dict[str, Any], base: Path, tmp_path: Path
) -> None:
    config = AdapterConfig(method, rank=2, bottleneck=3, **changes)
    path = tmp_path / "adapter.safetensors"
    model = trained(path, base, config)
    state, architecture, card = adapted_state(path, base)
    assert card["labels"] == PARTS
    x = noise(16, 40, 16)
    expected = by_pytorch(model, x)
    np.testing.assert_allclose(probabilities(architecture, state, x), expected, atol=2e-4)
    plain, _ = load_network(base)
    assert np.abs(by_pytorch(plain, x)[:, 0] - expected[:, 0]).max() > 0.01


def test_adapters_with_other_tensors_are_refused(base: Path, tmp_path: Path) -> None:
    path = tmp_path / "adapter.safetensors"
    trained(path, base, AdapterConfig(rank=2, bottleneck=3))
    card = {"hyps": json.dumps(read_card(path))}
    tensors = load_file(path)
    lost = next(name for name in tensors if name.endswith("lora_A"))
    for changed, fact in (
        ({k: v for k, v in tensors.items() if k != lost}, lost),
        (tensors | {"more.weight": np.zeros(2, np.float32)}, "more.weight"),
    ):
        save_file(changed, path, card)
        with raises(BadData, "adapter-misfit", path, fact):
            adapted_state(path, base)


def test_openvino_reports_nothing_to_its_makers(tmp_path: Path) -> None:
    program = """
import sys
connections = []
def watch(name, facts):
    if name == "socket.connect":
        connections.append(facts)
sys.addaudithook(watch)
from hyps_bids.networks.openvino import ov
ov.Core().available_devices
assert not any("telemetry" in name for name in sys.modules if name.startswith("openvino_")), 1
import openvino_telemetry  # It is installed, so a plain import of OpenVINO would have used it.
assert not connections, connections
"""
    environment = os.environ | {"HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir())


def test_missing_weights_are_named(tmp_path: Path) -> None:
    path = tmp_path / "none.safetensors"
    with raises(MissingInput, "weights-missing", path):
        network_state(path)
