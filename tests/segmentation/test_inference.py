"""Tests of :mod:`hyps_bids.segmentation.inference`.

What happens when a GPU's memory is exhausted can only be tested on a GPU.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hyps_bids.networks.checkpoints import ADAPTER, BASE, GRID, load_adapted, shipped_weights
from hyps_bids.segmentation.inference import cached_adapted, cached_network, predict

CPU = torch.device("cpu")


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv3d(4, 3, 1)).eval()


def test_probabilities(model: nn.Module) -> None:
    batch = torch.randn(3, 1, 8, 9, 10)
    probabilities, used = predict(model, batch, CPU)
    assert used == "cpu"
    assert probabilities.shape == (3, 3, 8, 9, 10)
    assert probabilities.dtype == torch.float32
    assert not probabilities.requires_grad
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(3, 8, 9, 10))
    torch.testing.assert_close(probabilities, model(batch).softmax(dim=1).detach())


def test_predictions_repeat_exactly(model: nn.Module) -> None:
    batch = torch.randn(2, 1, 8, 8, 8)
    assert torch.equal(predict(model, batch, CPU)[0], predict(model, batch, CPU)[0])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_exhausted_gpu_halves_the_batch_and_then_falls_to_the_cpu(
    caplog: pytest.LogCaptureFixture,
) -> None:
    device = torch.device("cuda", 0)
    wide = nn.Sequential(nn.Conv3d(1, 256, 1), nn.Conv3d(256, 2, 1)).eval()
    batch = torch.randn(4, 1, 48, 48, 48)
    expected, _ = predict(wide, batch, CPU)
    one = 256 * 48**3 * 4
    total = torch.cuda.get_device_properties(device).total_memory
    try:
        for volumes, where in ((2.5, "cuda:0"), (0.2, "cpu")):
            torch.cuda.empty_cache()
            torch.cuda.set_per_process_memory_fraction(volumes * one / total, device)
            got, used = predict(wide, batch, device)
            assert used == where
            torch.testing.assert_close(got, expected, atol=1e-2, rtol=0)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_networks_are_loaded_once_and_frozen() -> None:
    path = shipped_weights(BASE)
    model, card = cached_network(path)
    assert cached_network(path)[0] is model
    assert card["kind"] == "network"
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())


def test_cached_adapter_is_merged_and_equal_to_the_unmerged_one() -> None:
    adapter, base = shipped_weights(ADAPTER), shipped_weights(BASE)
    merged, card = cached_adapted(adapter, base)
    plain, _ = load_adapted(adapter, base)
    x = torch.randn(1, 1, *GRID, generator=torch.Generator().manual_seed(0))
    got, expected = predict(merged, x, CPU)[0], predict(plain, x, CPU)[0]
    assert got.shape == (1, 1 + len(card["labels"]), *GRID)
    torch.testing.assert_close(got, expected, atol=1e-3, rtol=0)
