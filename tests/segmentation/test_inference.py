"""Tests of :mod:`hyps_bids.segmentation.inference` and of both kinds of networks behind it.

What happens when a GPU's memory is exhausted can only be tested on a GPU.
"""

from __future__ import annotations

import logging
import os
import platform
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from hyps_bids.errors import BadData
from hyps_bids.imaging.conform import ConformedImage
from hyps_bids.imaging.resample import resample, world_grid
from hyps_bids.networks.cards import ADAPTER, BASE, GRID, LOCALIZER, shipped_weights
from hyps_bids.segmentation import inference
from hyps_bids.segmentation.devices import prepare_process
from hyps_bids.segmentation.inference import (
    WINDOW,
    Network,
    cached_adapted,
    cached_network,
    openvino_problem,
)
from hyps_bids.segmentation.localize import SPACING
from hyps_bids.segmentation.openvino_inference import OpenVinoNetwork
from hyps_bids.segmentation.pipeline import Pipeline, Result
from hyps_bids.segmentation.torch_inference import TorchNetwork
from tests.raising import raises


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv3d(4, 3, 1)).eval()


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def test_pytorch_gives_probabilities(model: nn.Module) -> None:
    batch = noise(3, 1, 8, 9, 10)
    probabilities, used = TorchNetwork(model, ["a", "b", "c"], "cpu").predict(batch)
    assert used == "cpu (PyTorch)"
    assert probabilities.shape == (3, 3, 8, 9, 10)
    assert probabilities.dtype == np.float32
    expected = model(torch.from_numpy(batch)).softmax(dim=1)
    np.testing.assert_allclose(probabilities, expected.numpy(), atol=1e-6)


GPUS = [
    pytest.param(name, marks=pytest.mark.skipif(not there, reason=f"no {name} here"))
    for name, there in (
        ("cuda:0", torch.cuda.is_available()),
        ("mps", torch.backends.mps.is_available()),
    )
]


@pytest.mark.parametrize("device", GPUS)
def test_gpu_gives_the_same_probabilities(device: str) -> None:
    path = shipped_weights(LOCALIZER)
    batch = np.abs(noise(2, 1, *WINDOW))
    expected, _ = TorchNetwork.of_network(path, "cpu").predict(batch)
    got, used = TorchNetwork.of_network(path, device).predict(batch)
    # Apple's GPU may lack an operation.
    assert used in ((device,) if device != "mps" else (device, "cpu (PyTorch)"))
    np.testing.assert_allclose(got, expected, atol=2e-2)


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="there is a GPU of Apple here")
def test_gpu_that_cannot_compute_the_network_leaves_it_to_the_cpu(
    model: nn.Module, caplog: pytest.LogCaptureFixture
) -> None:
    """PyTorch raises the same kind of error here as for an operation that Apple's GPUs lack."""
    batch = noise(3, 1, 8, 9, 10)
    network = TorchNetwork(model, ["a", "b", "c"], "mps")
    expected, _ = TorchNetwork(model, ["a", "b", "c"], "cpu").predict(batch)
    for _ in range(2):
        got, used = network.predict(batch)
        assert used == "cpu (PyTorch)"
        np.testing.assert_array_equal(got, expected)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "mps" in record.getMessage()


def test_other_errors_of_a_network_are_not_hidden(model: nn.Module) -> None:
    with pytest.raises(RuntimeError, match="channels"):
        TorchNetwork(model, [], "cpu").predict(noise(1, 2, 8, 8, 8))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_exhausted_gpu_halves_the_batch_and_then_falls_to_the_cpu(
    caplog: pytest.LogCaptureFixture,
) -> None:
    device = torch.device("cuda", 0)
    wide = nn.Sequential(nn.Conv3d(1, 256, 1), nn.Conv3d(256, 2, 1)).eval()
    batch = noise(4, 1, 48, 48, 48)
    expected, _ = TorchNetwork(wide, [], "cpu").predict(batch)
    one = 256 * 48**3 * 4
    total = torch.cuda.get_device_properties(device).total_memory
    try:
        for volumes, where in ((2.5, "cuda:0"), (0.2, "cpu (PyTorch)")):
            torch.cuda.empty_cache()
            torch.cuda.set_per_process_memory_fraction(volumes * one / total, device)
            got, used = TorchNetwork(wide, [], "cuda:0").predict(batch)
            assert used == where
            np.testing.assert_allclose(got, expected, atol=1e-2)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_networks_are_loaded_once() -> None:
    path = shipped_weights(LOCALIZER)
    network = cached_network(path, "cpu")
    assert isinstance(network, OpenVinoNetwork)
    assert cached_network(path, "cpu") is network
    assert network.labels == ("background", "intracranial", "left hippocampus", "right hippocampus")
    adapted = cached_adapted(shipped_weights(ADAPTER), shipped_weights(BASE), "cpu")
    assert adapted.labels == ("anterior", "posterior")


@pytest.mark.parametrize(
    "sides",
    [WINDOW, pytest.param((80, 88, 72), marks=pytest.mark.slow)],
    ids=["usual", "larger head"],
)
def test_localizer_is_the_same_in_both_libraries(
    sides: tuple[int, int, int], head: ConformedImage
) -> None:
    path, network = shipped_weights(LOCALIZER), cached_network(shipped_weights(LOCALIZER), "cpu")
    # Air, most of a real image, shows rounding errors of sums that noise does not.
    _, grid = world_grid(head.data.shape, head.affine, SPACING)
    window = resample(head.data, head.affine, sides, grid, smooth=SPACING)
    batch = (window / np.percentile(window, 99.5)).clip(0, 1.5).astype(np.float32)[None, None]
    got, used = network.predict(batch)
    assert (used, got.dtype) == ("cpu", np.float32)
    expected, _ = TorchNetwork.of_network(path, "cpu").predict(batch)
    np.testing.assert_allclose(got, expected, atol=1e-4)
    assert (expected[:, 0] < 0.5).mean() > 0.1


@pytest.mark.slow
def test_labels_and_probabilities_are_the_same_in_both_libraries(
    pipeline: Pipeline, result: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    def by_pytorch(adapter: Path, base: Path, device: str) -> TorchNetwork:
        return TorchNetwork.of_adapter(adapter, base, device)

    monkeypatch.setattr("hyps_bids.segmentation.segment.cached_adapted", by_pytorch)
    reference = pipeline.run(result.image)
    assert reference.localization.icv_mm3 == result.localization.icv_mm3
    for hemi, side in reference.restored.items():
        ours = result.restored[hemi]
        np.testing.assert_allclose(ours.probabilities, side.probabilities, atol=1e-4)
        both = np.count_nonzero((ours.labels > 0) & (ours.labels == side.labels))
        assert 2 * both / np.count_nonzero([ours.labels, side.labels]) >= 0.9995


@pytest.mark.slow
def test_batches_repetitions_and_threads_change_nothing() -> None:
    network = cached_adapted(shipped_weights(ADAPTER), shipped_weights(BASE), "cpu")
    batch = noise(2, 1, *GRID)
    try:
        both, _ = network.predict(batch)
        np.testing.assert_array_equal(network.predict(batch)[0], both)
        np.testing.assert_array_equal(network.predict(batch[1:])[0], both[1:])
        prepare_process(threads=2)
        np.testing.assert_array_equal(network.predict(batch)[0], both)
    finally:
        prepare_process(threads=1)


def sums_in_a_fork(network: Network, batch: np.ndarray) -> bool:
    """Tell whether a forked process computes probabilities, within a minute."""
    child = os.fork()
    if child == 0:
        probabilities, _ = network.predict(batch)
        os._exit(0 if np.allclose(probabilities.sum(axis=1), 1, atol=1e-5) else 1)
    end = time.monotonic() + 60
    while not (done := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return False
        time.sleep(0.01)
    return os.waitstatus_to_exitcode(done[1]) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_forked_processes_compute_with_inherited_weights(model: nn.Module) -> None:
    """Also where threads of the libraries have computed before, which a fork does not have."""
    batch = noise(1, 1, 32, 32, 32)
    path, sides = shipped_weights(LOCALIZER), batch.shape[2:]
    ours, by_pytorch = OpenVinoNetwork.of_network(path, sides), TorchNetwork(model, ["a"], "cpu")
    assert sums_in_a_fork(ours, batch)
    try:
        prepare_process(threads=2)
        before = ours.predict(batch)[0]
        # OpenVINO keeps the threads of networks that are gone.
        OpenVinoNetwork.of_network(path, sides).predict(batch)
        by_pytorch.predict(np.repeat(batch, 8, axis=0))
        assert sums_in_a_fork(ours, batch)
        assert sums_in_a_fork(by_pytorch, np.repeat(batch, 8, axis=0))
        np.testing.assert_array_equal(ours.predict(batch)[0], before)
    finally:
        prepare_process(threads=1)


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    from hyps_bids.networks.states import network_state

    state, card = network_state(shipped_weights(LOCALIZER))
    path = tmp_path / "cut.safetensors"
    for change, fact in (
        ({"conv_0.conv_0.conv.bias": np.zeros(3, np.float32)}, "conv_0.conv_0.conv.bias"),
        ({"more": np.zeros(3, np.float32)}, "more"),
    ):
        with raises(BadData, "weights-misfit", path, fact):
            OpenVinoNetwork(path, card["architecture"], state | change, card["labels"], WINDOW)
    del state["final_conv.bias"]
    with raises(BadData, "weights-misfit", path, "final_conv.bias"):
        OpenVinoNetwork(path, card["architecture"], state, card["labels"], WINDOW)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="about x86 processors")
def test_processor_without_avx2_gets_pytorch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("processor: 0\nflags\t\t: fpu sse4_2 avx avx512f\n")
    problem = openvino_problem(info)
    assert problem is not None
    assert "AVX2" in problem
    info.write_text("processor: 0\nflags\t\t: fpu sse4_2 avx avx2 avx512f\n")
    assert openvino_problem(info) is None
    assert openvino_problem(tmp_path / "missing") is None
    monkeypatch.setattr(inference, "openvino_problem", lambda: problem)
    with caplog.at_level(logging.INFO, logger="hyps_bids"):
        network = cached_network.__wrapped__(shipped_weights(LOCALIZER), "cpu")
    assert isinstance(network, TorchNetwork)
    assert "AVX2" in caplog.text
