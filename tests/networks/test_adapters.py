"""Tests of :mod:`hyps_bids.networks.adapters` against the equations of arXiv:2409.00884."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hyps_bids.networks.adapters import (
    ADAPTERS,
    METHODS,
    AdapterConfig,
    AdapterLayer,
    adapter_state,
    add_adapters,
    load_adapter_state,
    merge_adapters,
    parameter_counts,
)
from hyps_bids.networks.adapters.config import LAYERS
from hyps_bids.networks.adapters.layers import HypsLayer
from hyps_bids.networks.swin_unetr import HippocampusSwinUNETR

FEATURES = 12
#: single precision: W is split in two and added up again
TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}
SHAPE = (1, 1, 32, 40, 24)


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


def matrices(layer: AdapterLayer) -> dict[str, np.ndarray]:
    return {name: t.detach().double().numpy() for name, t in layer.named_parameters()}


def low_rank(w: np.ndarray, p: dict[str, np.ndarray], layer: AdapterLayer) -> np.ndarray:
    return layer.factor * p["lora_B"] @ p["lora_A"]


def principal(w: np.ndarray, rank: int) -> np.ndarray:
    u, s, vh = np.linalg.svd(w, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vh[:rank]


def bottleneck(
    x: np.ndarray, p: dict[str, np.ndarray], layer: AdapterLayer, suffix: str = ""
) -> np.ndarray:
    narrow = np.maximum(x @ p[f"down{suffix}.weight"].T + p[f"down{suffix}.bias"], 0)
    return layer.scale * (narrow @ p[f"up{suffix}.weight"].T + p[f"up{suffix}.bias"])


def layer_by_numpy(
    method: str, layer: AdapterLayer, w: np.ndarray, b: np.ndarray, rank: int, x: np.ndarray
) -> np.ndarray:
    """Apply METHOD's equations in double precision, with numpy's own SVD."""
    p = matrices(layer)
    h = x @ w.T + b
    if method == "lora":
        return h + x @ low_rank(w, p, layer).T
    if method == "dora":
        v = w + low_rank(w, p, layer)
        return x @ (p["magnitude"][:, None] * v / np.linalg.norm(v, axis=1, keepdims=True)).T + b
    if method in ("pissa", "hyps"):
        h = x @ (w - principal(w, rank) + low_rank(w, p, layer)).T + b
        return h if method == "pissa" else h + bottleneck(h, p, layer)
    if method == "parallel":
        return h + bottleneck(x, p, layer, "_parallel")
    if method == "serial":
        return h + bottleneck(h, p, layer)
    assert method == "cps"
    return h + bottleneck(x, p, layer, "_parallel") + bottleneck(h, p, layer)


Case = tuple[nn.Linear, AdapterConfig, torch.Tensor]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    m, n = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    torch.manual_seed(draw(st.integers(0, 2**31)))
    linear = nn.Linear(n, m, bias=draw(st.booleans()))
    config = AdapterConfig(
        draw(st.sampled_from(sorted(ADAPTERS))),
        # larger than the layer too
        rank=draw(st.integers(1, 60)),
        bottleneck=draw(st.integers(1, 60)),
        scale=draw(st.floats(-2, 2, width=32)),
        alpha=draw(st.none() | st.floats(0.5, 20, width=32)),
    )
    lead = draw(st.lists(st.integers(1, 4), max_size=3))
    return linear, config, torch.randn(*lead, n)


@settings(max_examples=150, deadline=None)
@given(case=cases())
def test_layer_starts_as_the_pretrained_one(case: Case) -> None:
    linear, config, x = case
    layer = ADAPTERS[config.method](linear, config)
    torch.testing.assert_close(layer(x), linear(x), **TOLERANCE)


@settings(max_examples=200, deadline=None)
@given(case=cases())
def test_layer_follows_the_equations_and_merging_keeps_them(case: Case) -> None:
    linear, config, x = case
    layer = ADAPTERS[config.method](linear, config)
    perturb(layer, 0.1)
    weight = linear.weight.detach().double().numpy()
    bias = np.zeros(1) if linear.bias is None else linear.bias.detach().double().numpy()
    rank = min(config.rank, *weight.shape)
    expected = layer_by_numpy(config.method, layer, weight, bias, rank, x.double().numpy())
    for merge in (False, True):
        if merge:
            layer.merge()
        np.testing.assert_allclose(layer(x).detach().numpy(), expected, atol=5e-4, rtol=2e-3)


def kernel_as_matrix(conv: nn.Conv3d, config: AdapterConfig) -> tuple[AdapterLayer, nn.Linear]:
    """Make the linear layer that a convolution is for the voxels under its kernel."""
    linear = nn.Linear(conv.weight[0].numel(), len(conv.weight))
    linear.weight.data = conv.weight.detach().flatten(1).clone()
    linear.bias.data = conv.bias.detach().clone()
    return ADAPTERS[config.method](linear, config), linear


@pytest.mark.parametrize("method", sorted(ADAPTERS))
@pytest.mark.parametrize("stride", [1, 2])
def test_convolution_is_the_linear_layer_of_its_patches(method: str, stride: int) -> None:
    conv = nn.Conv3d(4, 6, 3, stride=stride, padding=1)
    config = AdapterConfig(method, rank=3, bottleneck=2, alpha=2.0)
    adapted = ADAPTERS[method](conv, config)
    volume = torch.randn(2, 4, 5, 6, 7)
    torch.testing.assert_close(adapted(volume), conv(volume), **TOLERANCE)
    flat, _ = kernel_as_matrix(conv, config)
    perturb(adapted, 0.1)
    flat.load_state_dict(adapted.state_dict())
    flat.rebase()
    padded = nn.functional.pad(volume, [1] * 6)
    patches = padded.unfold(2, 3, stride).unfold(3, 3, stride).unfold(4, 3, stride)
    patches = patches.permute(0, 2, 3, 4, 1, 5, 6, 7).flatten(4)
    for merge in (False, True):
        if merge:
            adapted.merge()
        got = adapted(volume).movedim(1, -1)
        torch.testing.assert_close(got, flat(patches), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", ["lora", "pissa", "dora"])
def test_agrees_with_peft(method: str) -> None:
    from peft import LoraConfig, get_peft_model

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(20, 12)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.one(x)

    rank, alpha = 4, 4 if method == "pissa" else 10
    net, x, target = Net(), torch.randn(30, 20), torch.randn(30, 12)
    ours = ADAPTERS[method](net.one, AdapterConfig(method, rank=rank, alpha=alpha))
    start = "pissa" if method == "pissa" else True
    theirs = get_peft_model(
        net,
        LoraConfig(
            r=rank,
            lora_alpha=alpha,
            target_modules=["one"],
            init_lora_weights=start,
            use_dora=method == "dora",
        ),
    )
    layer = theirs.base_model.model.one
    if method == "pissa":
        # the same factors, up to the sign of each singular vector
        product = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        torch.testing.assert_close(ours.lora_B @ ours.lora_A, product, **TOLERANCE)
        torch.testing.assert_close(ours.frozen, layer.base_layer.weight, **TOLERANCE)
    with torch.no_grad():
        ours.lora_A.copy_(layer.lora_A["default"].weight)
        ours.lora_B.copy_(layer.lora_B["default"].weight)
    optimizers = [
        torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01)
        for model in (ours, theirs)
    ]
    for _ in range(20):
        for model, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            ((model(x) - target) ** 2).mean().backward()
            optimizer.step()
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-4, rtol=1e-4)
    if method != "dora":
        merged = ours(x)
        ours.merge()
        torch.testing.assert_close(ours(x), merged, **TOLERANCE)
        torch.testing.assert_close(theirs.merge_and_unload()(x), merged, atol=1e-4, rtol=1e-4)


def test_dropout_acts_in_training_only() -> None:
    layer = HypsLayer(nn.Linear(30, 20), AdapterConfig(dropout=0.5))
    perturb(layer, 0.2)
    x = torch.randn(8, 30)
    assert not torch.equal(layer.train()(x), layer(x))
    assert torch.equal(layer.eval()(x), layer(x))


def test_trainable_part_is_the_principal_one() -> None:
    weight = torch.randn(20, 30)
    linear = nn.Linear(30, 20)
    linear.weight.data = weight
    layer = HypsLayer(linear, AdapterConfig(rank=5))
    u, s, vh = np.linalg.svd(weight.double().numpy(), full_matrices=False)
    principal = (u[:, :5] * s[:5]) @ vh[:5]
    product = (layer.lora_B @ layer.lora_A).detach().numpy()
    np.testing.assert_allclose(product, principal, atol=1e-5)
    np.testing.assert_allclose(layer.frozen.numpy(), weight.numpy() - principal, atol=1e-5)
    # B = U S^½ and A = S^½ Vᵀ: both share the singular values evenly
    np.testing.assert_allclose(layer.lora_A.norm(dim=1).detach(), np.sqrt(s[:5]), rtol=1e-5)
    np.testing.assert_allclose(layer.lora_B.norm(dim=0).detach(), np.sqrt(s[:5]), rtol=1e-5)
    assert torch.equal(layer.lora_A_init, layer.lora_A)


def test_up_starts_at_zero_and_down_does_not() -> None:
    layer = HypsLayer(nn.Linear(10, 10), AdapterConfig())
    assert not layer.up.weight.any()
    assert not layer.up.bias.any()
    assert layer.down.weight.any(), "two zero factors would never receive a gradient"


def test_residual_is_a_buffer_and_parameters_are_not_the_base() -> None:
    linear = nn.Linear(10, 12)
    layer = HypsLayer(linear, AdapterConfig(rank=3))
    buffers = dict(layer.named_buffers())
    assert {"frozen", "bias", "weight", "lora_A_init", "lora_B_init"} == buffers.keys()
    assert not any(buffer.requires_grad for buffer in buffers.values())
    assert "frozen" not in dict(layer.named_parameters())
    before = linear.weight.detach().clone()
    perturb(layer)
    assert torch.equal(linear.weight, before)
    assert torch.equal(layer.lora_A_init, HypsLayer(linear, AdapterConfig(rank=3)).lora_A)


def test_principal_factors_and_bottleneck_receive_gradients() -> None:
    layer = HypsLayer(nn.Linear(10, 12), AdapterConfig(rank=3, bottleneck=4))
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
    layer = HypsLayer(linear, AdapterConfig(rank=3))
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
    assert all(isinstance(model.get_submodule(name), HypsLayer) for name in swin)
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
    add_adapters(model, AdapterConfig("hyps", rank=2, bottleneck=16))
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
    counts = parameter_counts(model)
    assert counts.total == total + added
    assert counts.adapters == added
    other = sum(
        p.numel()
        for n, p in model.named_parameters()
        if n.startswith(("decoder", "out.")) or ".norm" in n or "downsample.norm" in n
    )
    assert counts.trainable == added + other
    merge_adapters(model)
    assert parameter_counts(model) == counts


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
    assert not any(n.startswith("encoder") or n.endswith("frozen") for n in state)
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
        with pytest.raises(ValueError, match="adapter"):
            load_adapter_state(model, wrong)


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="prompt"):
        AdapterConfig("prompt")
    for wrong in ({"rank": 0}, {"bottleneck": 0}):
        with pytest.raises(ValueError, match="bottleneck"):
            AdapterConfig(**wrong)
    with pytest.raises(ValueError, match="heads"):
        AdapterConfig(layers=("heads",))
    with pytest.raises(ValueError, match="dropout"):
        AdapterConfig(dropout=1.0)
    # it would not be saved, and come back as zeros
    with pytest.raises(ValueError, match="out"):
        AdapterConfig(trainable=("decoder",))
    with pytest.raises(ValueError, match="mine"):
        AdapterConfig.preset("mine")
    with pytest.raises(ValueError, match="attention"):
        add_adapters(nn.Sequential(nn.Linear(2, 2)), AdapterConfig())


def test_settings_survive_their_card_and_the_first_cards_are_read() -> None:
    config = AdapterConfig("cps", 3, 4, 0.5, layers=("mlp",), dropout=0.1)
    assert AdapterConfig.from_card(json.loads(json.dumps(asdict(config)))) == config
    first = {"method": "hyps", "rank": 8, "targets": "swinViT", "trainable": ["decoder", "out"]}
    assert AdapterConfig.from_card(first) == AdapterConfig()
    with pytest.raises(ValueError, match="flavor"):
        AdapterConfig.from_card({"flavor": 1})


def test_paper_preset() -> None:
    config = AdapterConfig.preset("paper", "hyps")
    assert (config.method, config.rank, config.bottleneck) == ("hyps", 2, 2)
    assert AdapterConfig.preset("paper", "lora", rank=4).rank == 4


@pytest.mark.parametrize("method", METHODS)
def test_what_each_method_trains(method: str) -> None:
    model = network()
    config = AdapterConfig(method, rank=2, bottleneck=2)
    total = sum(p.numel() for p in model.parameters())
    biases = {n for n, _ in model.named_parameters() if n.endswith("bias")}
    add_adapters(model, config)
    trains = {n for n, p in model.named_parameters() if p.requires_grad}
    counts = parameter_counts(model)
    assert counts.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert counts.total == total + counts.adapters
    assert any(isinstance(m, AdapterLayer) for m in model.modules()) == (method in ADAPTERS)
    assert bool(counts.adapters) == (method in ADAPTERS)
    if method == "full":
        assert counts.trainable == total
    elif method == "bitfit":
        assert biases < trains
        assert all(n.endswith("bias") or "norm" in n or n.startswith("out.") for n in trains)
    else:
        outside = {n for n in trains if not n.startswith("swinViT")}
        assert outside == {
            n for n, _ in model.named_parameters() if n.startswith(("decoder", "out."))
        }
    frozen_encoder = {n for n in trains if n.startswith("encoder")}
    assert bool(frozen_encoder) == (method == "full")


@pytest.mark.parametrize("method", sorted(ADAPTERS))
@pytest.mark.parametrize("layers", [("attention",), ("mlp", "merging"), ("convolutions",)])
def test_layers_can_be_chosen(method: str, layers: tuple[str, ...]) -> None:
    model = network()
    x = torch.randn(SHAPE)
    with torch.no_grad():
        before = model(x)
        add_adapters(model, AdapterConfig(method, rank=2, bottleneck=2, layers=layers))
        torch.testing.assert_close(model(x), before, atol=5e-4, rtol=1e-3)
    adapted = {n for n, m in model.named_modules() if isinstance(m, AdapterLayer)}
    ends = tuple(end for kind in layers for end in LAYERS[kind])
    assert adapted
    assert all(n.endswith(ends) or n.startswith(ends) for n in adapted)
