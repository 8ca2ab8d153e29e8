"""Tests of :mod:`hyps_bids.networks.adapters` against the equations of arXiv:2409.00884."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hyps_bids.networks.adapters import (
    ADAPTERS,
    AdapterConfig,
    AdapterLinear,
    HypsLinear,
    adapter_state,
    add_adapters,
    load_adapter_state,
    merge_adapters,
    parameter_counts,
)
from hyps_bids.networks.swin_unetr import HippocampusSwinUNETR

FEATURES = 12
#: single precision: W is split in two and added up again
TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}
SHAPE = (1, 1, 32, 40, 24)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def network() -> HippocampusSwinUNETR:
    model = HippocampusSwinUNETR(1, 3, FEATURES)
    with torch.no_grad():
        for p in model.parameters():
            # MONAI starts biases at zero: one that is lost would not show
            p.add_(torch.randn_like(p) * 0.05)
    return model.eval()


def perturb(model: nn.Module, size: float = 0.02) -> None:
    """Move all that trains, as training would."""
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p) * size)


def layer_by_numpy(layer: HypsLinear, weight: np.ndarray, rank: int, x: np.ndarray) -> np.ndarray:
    """Apply METHOD's equations in double precision with numpy's own SVD for the residual."""
    u, s, vh = np.linalg.svd(weight.astype(np.float64), full_matrices=False)
    residual = (u[:, rank:] * s[rank:]) @ vh[rank:]
    p = {name: t.detach().double().numpy() for name, t in layer.named_parameters()}
    bias = 0.0 if layer.bias is None else layer.bias.double().numpy()
    h = x @ residual.T + x @ p["lora_A"].T @ p["lora_B"].T + bias
    bottleneck = np.maximum(h @ p["down.weight"].T + p["down.bias"], 0)
    return h + layer.scale * (bottleneck @ p["up.weight"].T + p["up.bias"])


@st.composite
def cases(draw: st.DrawFn) -> tuple[nn.Linear, AdapterConfig, torch.Tensor]:
    m, n = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    torch.manual_seed(draw(st.integers(0, 2**31)))
    linear = nn.Linear(n, m, bias=draw(st.booleans()))
    config = AdapterConfig(
        # larger than the layer too
        rank=draw(st.integers(1, 60)),
        bottleneck=draw(st.integers(1, 60)),
        scale=draw(st.floats(-2, 2, width=32)),
    )
    lead = draw(st.lists(st.integers(1, 4), max_size=3))
    return linear, config, torch.randn(*lead, n)


@settings(max_examples=60, deadline=None)
@given(case=cases())
def test_layer_starts_as_the_pretrained_one(
    case: tuple[nn.Linear, AdapterConfig, torch.Tensor],
) -> None:
    linear, config, x = case
    layer = HypsLinear(linear, config)
    torch.testing.assert_close(layer(x), linear(x), **TOLERANCE)


@settings(max_examples=60, deadline=None)
@given(case=cases())
def test_layer_follows_the_equations_and_merging_keeps_them(
    case: tuple[nn.Linear, AdapterConfig, torch.Tensor],
) -> None:
    linear, config, x = case
    layer = HypsLinear(linear, config)
    perturb(layer, 0.3)
    m, n = linear.weight.shape
    weight = linear.weight.detach().numpy()
    expected = layer_by_numpy(layer, weight, min(config.rank, m, n), x.double().numpy())
    for merge in (False, True):
        if merge:
            layer.merge()
        np.testing.assert_allclose(layer(x).detach().numpy(), expected, atol=2e-4, rtol=1e-3)


@settings(max_examples=30, deadline=None)
@given(case=cases())
def test_shapes_of_the_parts(case: tuple[nn.Linear, AdapterConfig, torch.Tensor]) -> None:
    linear, config, _ = case
    m, n = linear.weight.shape
    r, d = min(config.rank, m, n), config.bottleneck
    layer = HypsLinear(linear, config)
    assert {name: tuple(p.shape) for name, p in layer.named_parameters()} == {
        "lora_A": (r, n),
        "lora_B": (m, r),
        "down.weight": (d, m),
        "down.bias": (d,),
        "up.weight": (m, d),
        "up.bias": (m,),
    }
    assert layer.residual.shape == (m, n)


def test_trainable_part_is_the_principal_one() -> None:
    weight = torch.randn(20, 30)
    linear = nn.Linear(30, 20)
    linear.weight.data = weight
    layer = HypsLinear(linear, AdapterConfig(rank=5))
    u, s, vh = np.linalg.svd(weight.double().numpy(), full_matrices=False)
    principal = (u[:, :5] * s[:5]) @ vh[:5]
    product = (layer.lora_B @ layer.lora_A).detach().numpy()
    np.testing.assert_allclose(product, principal, atol=1e-5)
    np.testing.assert_allclose(layer.residual.numpy(), weight.numpy() - principal, atol=1e-5)
    # B = U S^½ and A = S^½ Vᵀ: both share the singular values evenly
    np.testing.assert_allclose(layer.lora_A.norm(dim=1).detach(), np.sqrt(s[:5]), rtol=1e-5)
    np.testing.assert_allclose(layer.lora_B.norm(dim=0).detach(), np.sqrt(s[:5]), rtol=1e-5)
    assert torch.equal(layer.lora_A_init, layer.lora_A)


def test_up_starts_at_zero_and_down_does_not() -> None:
    layer = HypsLinear(nn.Linear(10, 10), AdapterConfig())
    assert not layer.up.weight.any()
    assert not layer.up.bias.any()
    assert layer.down.weight.any(), "two zero factors would never receive a gradient"


def test_residual_is_a_buffer_and_parameters_are_not_the_base() -> None:
    linear = nn.Linear(10, 12)
    layer = HypsLinear(linear, AdapterConfig(rank=3))
    buffers = dict(layer.named_buffers())
    assert {"residual", "bias", "weight", "lora_A_init", "lora_B_init"} == buffers.keys()
    assert not any(buffer.requires_grad for buffer in buffers.values())
    assert "residual" not in dict(layer.named_parameters())
    before = linear.weight.detach().clone()
    perturb(layer)
    assert torch.equal(linear.weight, before)
    assert torch.equal(layer.lora_A_init, HypsLinear(linear, AdapterConfig(rank=3)).lora_A)


def test_principal_factors_and_bottleneck_receive_gradients() -> None:
    layer = HypsLinear(nn.Linear(10, 12), AdapterConfig(rank=3, bottleneck=4))
    x = torch.randn(50, 10)
    for _ in range(2):
        layer.zero_grad()
        (layer(x) * torch.randn(50, 12)).sum().backward()
        for name in ("lora_A", "lora_B", "up.weight", "up.bias"):
            assert layer.get_parameter(name).grad.abs().min() > 0, name
        with torch.no_grad():
            layer.up.weight.add_(torch.randn_like(layer.up.weight))
    # Down waits for Up to leave zero
    assert layer.down.weight.grad.abs().max() > 0


def test_rebase_undoes_a_merge() -> None:
    linear = nn.Linear(10, 12)
    layer = HypsLinear(linear, AdapterConfig(rank=3))
    x = torch.randn(5, 10)
    layer.merge()
    layer.merge()
    torch.testing.assert_close(layer(x), linear(x), **TOLERANCE)
    layer.rebase()
    torch.testing.assert_close(layer(x), linear(x), **TOLERANCE)


@pytest.mark.parametrize("method", sorted(ADAPTERS))
@pytest.mark.parametrize("rank", [2, 8, 1000])
def test_whole_network_starts_as_the_pretrained_one(method: str, rank: int) -> None:
    model = network()
    x = torch.randn(SHAPE)
    with torch.no_grad():
        before = model(x)
        add_adapters(model, AdapterConfig(method, rank=rank, bottleneck=2))
        torch.testing.assert_close(model(x), before, atol=5e-4, rtol=1e-3)


@pytest.mark.parametrize("method", sorted(ADAPTERS))
def test_merged_equals_unmerged_after_training(method: str) -> None:
    model = network()
    add_adapters(model, AdapterConfig(method, rank=4, bottleneck=4))
    perturb(model)
    x = torch.randn(SHAPE)
    with torch.no_grad():
        before = model(x)
        merge_adapters(model)
        torch.testing.assert_close(model(x), before, atol=1e-3, rtol=1e-3)


def test_what_hyps_trains() -> None:
    model = network()
    swin = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and "swinViT" in n]
    norms = [n for n, m in model.named_modules() if isinstance(m, nn.LayerNorm)]
    add_adapters(model, AdapterConfig("hyps"))
    for kind in ("qkv", "proj", "linear1", "linear2", "reduction"):
        assert any(name.endswith(kind) for name in swin), kind
    assert all(isinstance(model.get_submodule(name), HypsLinear) for name in swin)
    inner = {"lora_A", "lora_B", "down.weight", "down.bias", "up.weight", "up.bias"}
    expected = {f"{name}.{part}" for name in swin for part in inner}
    expected |= {f"{name}.{part}" for name in norms for part in ("weight", "bias")}
    expected |= {n for n, _ in model.named_parameters() if n.startswith(("decoder", "out."))}
    trains = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trains == expected
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert {n.split(".")[0] for n in frozen} == {
        "encoder1",
        "encoder2",
        "encoder3",
        "encoder4",
        "encoder10",
        "swinViT",
    }
    rest = {n for n in frozen if n.startswith("swinViT")}
    assert all("patch_embed" in n or "relative_position_bias_table" in n for n in rest)


def test_a_step_of_training_moves_only_what_trains() -> None:
    model = network()
    add_adapters(model, AdapterConfig("hyps", rank=2, bottleneck=2))
    before = {n: t.clone() for n, t in [*model.named_parameters(), *model.named_buffers()]}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    (model(torch.randn(SHAPE)) * torch.randn(1, 3, *SHAPE[2:])).sum().backward()
    optimizer.step()
    moved = {
        n
        for n, t in [*model.named_parameters(), *model.named_buffers()]
        if not torch.equal(t, before[n])
    }
    still = {n for n, p in model.named_parameters() if p.requires_grad} - moved
    # nothing but Down, which waits for Up, and norms before an instance norm may stand still
    assert all(".down." in n for n in still), still
    assert all(n in adapter_state(model) for n in moved)


def test_parameter_counts() -> None:
    model = network()
    total = sum(p.numel() for p in model.parameters())
    linears = [m for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    rank, width = 2, 3
    added = sum(
        rank * (m.in_features + m.out_features)
        + 2 * width * m.out_features
        + width
        + m.out_features
        for m in linears
    )
    config = AdapterConfig(rank=rank, bottleneck=width)
    add_adapters(model, config)
    trainable, everything = parameter_counts(model)
    assert everything == total + added
    other = sum(
        p.numel()
        for n, p in model.named_parameters()
        if n.startswith(("decoder", "out.")) or ".norm" in n or "downsample.norm" in n
    )
    assert trainable == added + other
    merge_adapters(model)
    assert parameter_counts(model) == (trainable, everything)


def test_published_size_trains_a_third() -> None:
    # the paper counts 20.07 M of 63.13 M (31.8 %) at feature_size 48, r = 2 and d = 2
    model = HippocampusSwinUNETR(1, 2, 48)
    head = sum(
        p.numel()
        for n, p in model.named_parameters()
        if n.startswith(("decoder", "out.")) or "norm" in n
    )
    added = sum(
        4 * m.out_features + 2 * m.in_features + 2 * m.out_features + m.out_features + 2
        for m in model.modules()
        if isinstance(m, nn.Linear)
    )
    total = sum(p.numel() for p in model.parameters()) + added
    assert (head + added) / total == pytest.approx(0.318, abs=0.02)


def test_adapter_state_brings_a_fresh_network_to_the_same_outputs() -> None:
    trained, fresh = network(), HippocampusSwinUNETR(1, 3, FEATURES).eval()
    fresh.load_state_dict(trained.state_dict())
    config = AdapterConfig(rank=3, bottleneck=2)
    for model in (trained, fresh):
        add_adapters(model, config)
    perturb(trained)
    state = {name: t.clone() for name, t in adapter_state(trained).items()}
    assert not any(n.startswith("encoder") or n.endswith("residual") for n in state)
    merge_adapters(fresh)
    load_adapter_state(fresh, state)
    x = torch.randn(SHAPE)
    with torch.no_grad():
        assert torch.equal(fresh(x), trained(x))


def test_state_that_does_not_fit_is_refused() -> None:
    model = network()
    add_adapters(model, AdapterConfig(rank=3))
    state = {name: t.clone() for name, t in adapter_state(model).items()}
    name = next(n for n in state if n.endswith("lora_A"))
    for wrong in (
        {k: v for k, v in state.items() if k != name},
        state | {"surprise": torch.zeros(1)},
        state | {name: state[name][:1]},
    ):
        with pytest.raises(ValueError, match="does not fit the network"):
            load_adapter_state(model, wrong)


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown adapter method 'prompt': choose from"):
        AdapterConfig("prompt")
    for wrong in ({"rank": 0}, {"bottleneck": 0}):
        with pytest.raises(ValueError, match="at least 1"):
            AdapterConfig(**wrong)
    with pytest.raises(ValueError, match="no linear layer below 'encoder9'"):
        add_adapters(network(), AdapterConfig(targets="encoder9"))


def test_every_adapter_is_one() -> None:
    assert all(issubclass(cls, AdapterLinear) for cls in ADAPTERS.values())
