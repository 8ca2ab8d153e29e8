"""Tests of :mod:`hyps_bids.networks.swin_unetr` against MONAI's own implementation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from monai.networks.blocks import UnetrUpBlock
from monai.networks.nets.swin_unetr import (
    SwinTransformerBlock,
    SwinUNETR,
    compute_mask,
    get_window_size,
)
from torch import nn
from torch.func import functional_call

from hyps_bids.networks.swin_unetr import BlockAttention, HippocampusSwinUNETR

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


def assert_same(
    ways: Sequence[Callable[[], torch.Tensor]], tensors: Sequence[nn.Parameter]
) -> None:
    """Check that two ways give the same result and the same gradients of parameters."""
    found = []
    for way in ways:
        out = way()
        weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).reshape(out.shape)
        found.append([out, *torch.autograd.grad((out * weights).sum(), tensors)])
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("shift", [0, 3])
@pytest.mark.parametrize(
    "sides",
    # The windows fit; they need padding on some axes, even more than the shift moves; one window.
    [(14, 14, 14), (14, 21, 7), (10, 14, 10), (9, 8, 15), (5, 7, 5)],
)
def test_attention_equals_that_of_monai(sides: tuple[int, ...], shift: int) -> None:
    block = SwinTransformerBlock(24, 3, (7, 7, 7), (shift,) * 3, qkv_bias=True).double()
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    window, shifts = get_window_size(sides, (7, 7, 7), (shift,) * 3)
    padded = [-(-side // w) * w for side, w in zip(sides, window, strict=True)]
    mask = compute_mask(padded, window, shifts, torch.device("cpu")).double()
    x = nn.Parameter(torch.randn(2, *sides, 24).double())
    ours = BlockAttention(block)
    with torch.inference_mode():
        # What is remembered of this must also serve in training.
        ours(x)
    trained = [p for name, p in block.named_parameters() if name.startswith(("norm1", "attn"))]
    assert_same((lambda: ours(block.norm1(x)), lambda: block.forward_part1(x, mask)), [x, *trained])


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("small", [(6, 7, 8), (2, 2, 2)])
def test_up_sampling_equals_that_of_monai(small: tuple[int, ...], channels_last: bool) -> None:
    network, _ = twins()
    ours = network.decoder1.double()
    theirs = UnetrUpBlock(3, FEATURES, FEATURES, 3, 2, "instance", res_block=True).double()
    theirs.load_state_dict(ours.state_dict())
    shared = dict(ours.named_parameters())
    layout = torch.channels_last_3d if channels_last else torch.contiguous_format
    x, skip = (
        nn.Parameter(torch.randn(2, FEATURES, *shape).double().to(memory_format=layout))
        for shape in (small, [2 * side for side in small])
    )
    assert_same(
        (lambda: ours(x, skip), lambda: functional_call(theirs, shared, (x, skip))),
        [x, skip, *shared.values()],
    )


@pytest.mark.parametrize("shape", [(36, 56, 40), (40, 52, 40), (40, 56, 41)])
def test_other_sizes_are_refused(shape: tuple[int, ...]) -> None:
    network = HippocampusSwinUNETR(1, 3, FEATURES)
    with pytest.raises(ValueError, match="multiple of 8"):
        network(torch.zeros(1, 1, *shape))
