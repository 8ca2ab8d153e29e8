"""Tests of :mod:`hyps_bids.networks.swin_unetr` against MONAI's own implementation."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from monai.networks.nets.swin_unetr import SwinUNETR, WindowAttention, compute_mask
from torch import nn

from hyps_bids.networks.swin_unetr import FusedWindowAttention, HippocampusSwinUNETR

FEATURES = 12
#: The sums of the attention have another order in our network.
TOLERANCE = {"atol": 2e-4, "rtol": 1e-3}


def twins() -> tuple[HippocampusSwinUNETR, SwinUNETR]:
    """Ours and MONAI's with the same weights, every one of them random."""
    ours = HippocampusSwinUNETR(1, 3, FEATURES)
    monai = SwinUNETR(1, 3, feature_size=FEATURES, spatial_dims=3)
    with torch.no_grad():
        for p in ours.parameters():
            # MONAI starts biases at zero and bias tables near it, where an error would not show.
            p.add_(torch.randn_like(p) * 0.05)
    # Parameters have the names and shapes of MONAI's, whose index tables we compute.
    missing, unexpected = monai.load_state_dict(ours.state_dict(), strict=False)
    assert not unexpected
    assert all(name.endswith("relative_position_index") for name in missing)
    return ours.eval(), monai.eval()


def test_logits_of_a_batch_equal_those_of_monai() -> None:
    # With 32 × 16 × 16 tokens in windows of 7, every other block shifts and masks its windows.
    ours, monai = twins()
    x = torch.randn(2, 1, 64, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), monai(x), **TOLERANCE)


def test_logits_and_gradients_equal_those_of_monai() -> None:
    networks = twins()
    x = torch.randn(1, 1, 32, 64, 32)
    weights = torch.randn(1, 3, 32, 64, 32)
    logits = [network(x) for network in networks]
    torch.testing.assert_close(*logits, **TOLERANCE)
    gradients: list[dict[str, torch.Tensor]] = []
    for network, out in zip(networks, logits, strict=True):
        (out * weights).mean().backward()
        gradients.append({n: p.grad for n, p in network.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert any("relative_position_bias_table" in name for name in gradients[0])
    # Each gradient is a sum of many terms that nearly cancel, which calls for a floor.
    floor = 1e-3 * max(float(gradient.norm()) for gradient in gradients[1].values())
    for name, gradient in gradients[0].items():
        expected = gradients[1][name]
        error = float((gradient - expected).norm() / expected.norm().clamp(min=floor))
        assert error < 2e-2, (name, error)


@pytest.mark.parametrize("sides", [(14, 14, 14), (14, 21, 7), (8, 14, 8)])
@pytest.mark.parametrize("batch", [1, 2])
def test_attention_equals_that_of_monai_with_shift_masks(sides: Sequence[int], batch: int) -> None:
    window = [min(7, side) for side in sides]
    shift = [3 if side > 7 else 0 for side in sides]
    sides = [-(-side // w) * w for side, w in zip(sides, window, strict=True)]
    mask = compute_mask(sides, window, shift, torch.device("cpu"))
    assert mask.unique(dim=0).shape[0] > 1, "nothing is masked"
    reference = WindowAttention(24, 3, window, qkv_bias=True).eval()
    nn.init.normal_(reference.relative_position_bias_table)
    fused = FusedWindowAttention(reference).double()
    reference = reference.double()
    x = torch.randn(batch * len(mask), window[0] * window[1] * window[2], 24).double()
    weights = torch.randn_like(x)
    for some_mask in (mask.double(), None):
        found = []
        for attention in (reference, fused):
            attention.zero_grad()
            out = attention(x, some_mask)
            (out * weights).sum().backward()
            found.append([out, *(p.grad.clone() for _, p in sorted(attention.named_parameters()))])
        for expected, got in zip(*found, strict=True):
            torch.testing.assert_close(got, expected, atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("shape", [(36, 56, 40), (40, 52, 40), (40, 56, 41)])
def test_other_sizes_are_refused(shape: tuple[int, ...]) -> None:
    network = HippocampusSwinUNETR(1, 3, FEATURES)
    with pytest.raises(ValueError, match="multiple of 8"):
        network(torch.zeros(1, 1, *shape))
