"""Tests of :mod:`hyps_bids.networks.adapters` against the equations of the papers."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hyps_bids.networks.adapters.config import LAYERS, METHODS, AdapterConfig
from hyps_bids.networks.adapters.layers import ADAPTERS, AdapterLayer, HypsLayer
from hyps_bids.networks.adapters.network import (
    adapter_state,
    add_adapters,
    load_adapter_state,
    merge_adapters,
    parameter_counts,
)
from hyps_bids.networks.swin_unetr import HippocampusSwinUNETR
from tests.networks.perturbing import perturb

#: W is split in two and added up again in single precision.
TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}
SHAPE = (1, 1, 16, 40, 16)


def network() -> HippocampusSwinUNETR:
    model = HippocampusSwinUNETR(1, 3, 12)
    # MONAI starts biases at zero, where a lost one would not show.
    return perturb(model, 0.05)


def trained_names(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


def low_rank(p: dict[str, np.ndarray], layer: AdapterLayer) -> np.ndarray:
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
    method: str, layer: AdapterLayer, linear: nn.Linear, rank: int, inputs: torch.Tensor
) -> np.ndarray:
    """Apply the equations of a method in double precision, with NumPy's own SVD."""
    p = {name: t.detach().double().numpy() for name, t in layer.named_parameters()}
    x, w = inputs.double().numpy(), linear.weight.detach().double().numpy()
    b = np.zeros(1) if linear.bias is None else linear.bias.detach().double().numpy()
    h = x @ w.T + b
    if method == "lora":
        return h + x @ low_rank(p, layer).T
    if method == "dora":
        v = w + low_rank(p, layer)
        return x @ (p["magnitude"][:, None] * v / np.linalg.norm(v, axis=1, keepdims=True)).T + b
    if method in ("pissa", "hyps"):
        h = x @ (w - principal(w, rank) + low_rank(p, layer)).T + b
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
        # The rank may be larger than the layer.
        rank=draw(st.integers(1, 60)),
        bottleneck=draw(st.integers(1, 60)),
        scale=draw(st.floats(-2, 2, width=32)),
        alpha=draw(st.none() | st.floats(0.5, 20, width=32)),
    )
    lead = draw(st.lists(st.integers(1, 4), max_size=3))
    return linear, config, torch.randn(*lead, n)


@settings(max_examples=200, deadline=None)
@given(case=cases())
def test_layer_starts_pretrained_follows_the_equations_and_merges(case: Case) -> None:
    linear, config, x = case
    layer = ADAPTERS[config.method](linear, config)
    torch.testing.assert_close(layer(x), linear(x), **TOLERANCE)
    perturb(layer, 0.1)
    rank = min(config.rank, *linear.weight.shape)
    expected = layer_by_numpy(config.method, layer, linear, rank, x)
    for prepare in (lambda: None, layer.merge, layer.merge, layer.rebase):
        prepare()
        np.testing.assert_allclose(layer(x).detach().numpy(), expected, atol=5e-4, rtol=2e-3)


@pytest.mark.parametrize("method", sorted(ADAPTERS))
@pytest.mark.parametrize("stride", [1, 2])
def test_convolution_is_the_linear_layer_of_its_patches(method: str, stride: int) -> None:
    conv = nn.Conv3d(4, 6, 3, stride=stride, padding=1)
    linear = nn.Linear(conv.weight[0].numel(), len(conv.weight))
    linear.weight.data = conv.weight.detach().flatten(1).clone()
    linear.bias.data = conv.bias.detach().clone()
    config = AdapterConfig(method, rank=3, bottleneck=2, alpha=2.0)
    adapted, flat = ADAPTERS[method](conv, config), ADAPTERS[method](linear, config)
    volume = torch.randn(2, 4, 5, 6, 7)
    torch.testing.assert_close(adapted(volume), conv(volume), **TOLERANCE)
    perturb(adapted, 0.1)
    flat.load_state_dict(adapted.state_dict())
    flat.rebase()
    padded = nn.functional.pad(volume, [1] * 6)
    patches = padded.unfold(2, 3, stride).unfold(3, 3, stride).unfold(4, 3, stride)
    patches = patches.permute(0, 2, 3, 4, 1, 5, 6, 7).flatten(4)
    for prepare in (lambda: None, adapted.merge):
        prepare()
        got = adapted(volume).movedim(1, -1)
        torch.testing.assert_close(got, flat(patches), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", ["lora", "pissa", "dora"])
def test_agrees_with_peft(method: str) -> None:
    from peft import LoraConfig, get_peft_model

    rank, alpha = 4, 4 if method == "pissa" else 10
    net, x, target = nn.Sequential(nn.Linear(20, 12)), torch.randn(30, 20), torch.randn(30, 12)
    ours = ADAPTERS[method](net[0], AdapterConfig(method, rank=rank, alpha=alpha))
    theirs = get_peft_model(
        net,
        LoraConfig(
            r=rank,
            lora_alpha=alpha,
            target_modules=["0"],
            init_lora_weights="pissa" if method == "pissa" else True,
            use_dora=method == "dora",
        ),
    )
    layer = theirs.base_model.model[0]
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    if method == "pissa":
        # The factors are the same up to the sign of each singular vector.
        torch.testing.assert_close(ours.lora_B @ ours.lora_A, b @ a, **TOLERANCE)
        torch.testing.assert_close(ours.frozen, layer.base_layer.weight, **TOLERANCE)
    with torch.no_grad():
        ours.lora_A.copy_(a)
        ours.lora_B.copy_(b)
    for model in (ours, theirs):
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01)
        for _ in range(20):
            optimizer.zero_grad()
            ((model(x) - target) ** 2).mean().backward()
            optimizer.step()
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-4, rtol=1e-4)


def test_dropout_acts_in_training_only() -> None:
    layer = HypsLayer(nn.Linear(30, 20), AdapterConfig(dropout=0.5))
    perturb(layer, 0.2)
    x = torch.randn(8, 30)
    assert not torch.equal(layer.train()(x), layer(x))
    assert torch.equal(layer.eval()(x), layer(x))


def test_start_of_hyps() -> None:
    linear = nn.Linear(30, 20)
    layer = HypsLayer(linear, AdapterConfig(rank=5))
    # B = U S^½ and A = S^½ Vᵀ share the singular values evenly
    roots = np.sqrt(np.linalg.svd(linear.weight.detach().numpy(), compute_uv=False)[:5])
    np.testing.assert_allclose(layer.lora_A.norm(dim=1).detach(), roots, rtol=1e-5)
    np.testing.assert_allclose(layer.lora_B.norm(dim=0).detach(), roots, rtol=1e-5)
    assert torch.equal(layer.lora_A_init, layer.lora_A)
    # Two zero factors would never receive a gradient.
    assert [bool(p.any()) for p in (*layer.up.parameters(), layer.down.weight)] == [0, 0, 1]
    # Frozen tensors are buffers, and copies of the base's.
    buffers = dict(layer.named_buffers())
    assert {"frozen", "bias", "weight", "lora_A_init", "lora_B_init"} == buffers.keys()
    before = linear.weight.detach().clone()
    perturb(layer)
    assert torch.equal(linear.weight, before)


def test_all_parts_of_hyps_receive_gradients() -> None:
    layer = HypsLayer(nn.Linear(10, 12), AdapterConfig(rank=3, bottleneck=4))
    x = torch.randn(50, 10)
    for _ in range(2):
        layer.zero_grad()
        (layer(x) * torch.randn(50, 12)).sum().backward()
        for name in ("lora_A", "lora_B", "up.weight", "up.bias"):
            assert layer.get_parameter(name).grad.abs().min() > 0, name
        perturb(layer.up, 1.0)
    # Down waits until Up has left zero.
    assert layer.down.weight.grad.abs().max() > 0


@pytest.mark.parametrize("method", sorted(ADAPTERS))
def test_network_starts_pretrained_and_merging_keeps_its_outputs(method: str) -> None:
    model = network()
    x = torch.randn(SHAPE)
    with torch.no_grad():
        before = model(x)
        add_adapters(model, AdapterConfig(method, rank=4, bottleneck=4, layers=tuple(LAYERS)))
        torch.testing.assert_close(model(x), before, atol=5e-4, rtol=1e-3)
        perturb(model)
        before = model(x)
        merge_adapters(model)
        torch.testing.assert_close(model(x), before, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("layers", [("attention",), ("mlp", "merging"), ("convolutions",)])
def test_layers_can_be_chosen(layers: tuple[str, ...]) -> None:
    model = network()
    add_adapters(model, AdapterConfig("lora", layers=layers))
    adapted = {n for n, m in model.named_modules() if isinstance(m, AdapterLayer)}
    ends = tuple(end for kind in layers for end in LAYERS[kind])
    assert adapted
    assert all(n.endswith(ends) or n.startswith(ends) for n in adapted)


@pytest.mark.parametrize("method", METHODS)
def test_what_each_method_trains(method: str) -> None:
    model = network()
    names = {name for name, _ in model.named_parameters()}
    total = sum(p.numel() for p in model.parameters())
    add_adapters(model, AdapterConfig(method, rank=2, bottleneck=2))
    trains = trained_names(model)
    counts = parameter_counts(model)
    assert counts.total == total + counts.adapters
    assert bool(counts.adapters) == (method in ADAPTERS)
    outside = {n for n in trains if not n.startswith("swinViT")}
    if method == "full":
        assert trains == names
    elif method == "bitfit":
        assert {n for n in names if n.endswith("bias")} < trains
        assert all(n.endswith("bias") or "norm" in n or n.startswith("out.") for n in trains)
    else:
        assert outside == {n for n in names if n.startswith(("decoder", "out."))}


def test_what_hyps_trains_and_counts() -> None:
    model = network()
    linears = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    norms = [n for n, m in model.named_modules() if isinstance(m, nn.LayerNorm)]
    kinds = {"qkv", "proj", "linear1", "linear2", "reduction"}
    assert {name.rpartition(".")[2] for name in linears} == kinds
    r, d = 2, 3
    added = sum(
        r * (m.in_features + m.out_features) + 2 * d * m.out_features + d + m.out_features
        for m in linears.values()
    )
    add_adapters(model, AdapterConfig("hyps", rank=r, bottleneck=d))
    assert all(isinstance(model.get_submodule(name), HypsLayer) for name in linears)
    parts = {"lora_A", "lora_B", "down.weight", "down.bias", "up.weight", "up.bias"}
    expected = {f"{name}.{part}" for name in linears for part in parts}
    expected |= {f"{name}.{part}" for name in norms for part in ("weight", "bias")}
    expected |= {n for n, _ in model.named_parameters() if n.startswith(("decoder", "out."))}
    assert trained_names(model) == expected
    counts = parameter_counts(model)
    assert counts.adapters == added
    merge_adapters(model)
    assert parameter_counts(model) == counts


def test_a_step_of_training_moves_only_what_is_saved() -> None:
    model = network()
    add_adapters(model, AdapterConfig("hyps", rank=2, bottleneck=16))
    tensors = dict([*model.named_parameters(), *model.named_buffers()])
    before = {name: t.clone() for name, t in tensors.items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    (model(torch.randn(SHAPE)) * torch.randn(1, 3, *SHAPE[2:])).sum().backward()
    optimizer.step()
    moved = {name for name, t in tensors.items() if not torch.equal(t, before[name])}
    assert moved <= adapter_state(model).keys()
    # Only Down, which waits for Up, may stand still.
    assert all(".down." in name for name in trained_names(model) - moved)


def test_loading_into_a_merged_network_undoes_the_merge() -> None:
    trained, fresh = network(), network()
    fresh.load_state_dict(trained.state_dict())
    for model in (trained, fresh):
        add_adapters(model, AdapterConfig(rank=3, bottleneck=2))
    perturb(trained)
    merge_adapters(fresh)
    load_adapter_state(fresh, adapter_state(trained))
    x = torch.randn(SHAPE)
    with torch.no_grad():
        assert torch.equal(fresh(x), trained(x))


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"method": "prompt"}, "prompt"),
        ({"rank": 0}, "rank"),
        ({"bottleneck": 0}, "bottleneck"),
        ({"layers": ("heads",)}, "heads"),
        ({"dropout": 1.0}, "dropout"),
        # An untrained head would not be saved, and be zero after loading.
        ({"trainable": ("decoder",)}, "out"),
    ],
)
def test_impossible_settings_are_refused(values: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        AdapterConfig(**values)


def test_network_without_such_layers_is_refused() -> None:
    with pytest.raises(ValueError, match="attention"):
        add_adapters(nn.Sequential(nn.Linear(2, 2)), AdapterConfig())


def test_settings_come_from_cards_and_presets() -> None:
    config = AdapterConfig("cps", 3, 4, 0.5, layers=("mlp",), dropout=0.1)
    assert AdapterConfig.from_card(json.loads(json.dumps(asdict(config)))) == config
    first = {"method": "hyps", "rank": 8, "targets": "swinViT", "trainable": ["decoder", "out"]}
    assert AdapterConfig.from_card(first) == AdapterConfig()
    with pytest.raises(ValueError, match="flavor"):
        AdapterConfig.from_card({"flavor": 1})
    assert AdapterConfig.preset("paper", rank=4) == AdapterConfig("hyps", 4, 2, 1.0)
    with pytest.raises(ValueError, match="mine"):
        AdapterConfig.preset("mine")
