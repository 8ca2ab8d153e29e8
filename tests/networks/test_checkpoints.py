"""Tests of :mod:`hyps_bids.networks.checkpoints`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from hyps_bids.errors import BadData, CannotCreateOutput, MissingInput, UsageError
from hyps_bids.networks.adapters.config import METHODS, AdapterConfig
from hyps_bids.networks.adapters.network import add_adapters
from hyps_bids.networks.cards import (
    ADAPTER,
    BASE,
    GRID,
    LOCALIZER,
    Architecture,
    read_card,
    shipped_weights,
)
from hyps_bids.networks.checkpoints import (
    build_network,
    load_adapted,
    load_network,
    replace_head,
    save_adapter,
    save_network,
)
from hyps_bids.outputs.digests import sha256
from tests.full_disk import full_disk
from tests.networks.perturbing import perturb
from tests.raising import raises

CONFIG = AdapterConfig(rank=2, bottleneck=2)
LABELS = ["background", "white", "hippocampus", "rest"]
PARTS = ["anterior", "posterior"]
SHAPE = (1, 1, 16, 40, 16)


@pytest.fixture(scope="module")
def x() -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(3))


ARCHITECTURE: Architecture = {
    "name": "HippocampusSwinUNETR",
    "kwargs": {"in_channels": 1, "out_channels": len(LABELS), "feature_size": 12},
}


def save_base(path: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    card = {"architecture": ARCHITECTURE, "labels": LABELS, "grid": list(GRID)}
    save_network(path, build_network(ARCHITECTURE), card)
    return path


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("base") / "base.safetensors", 0)


@pytest.fixture(scope="module")
def adapted(base: Path) -> nn.Module:
    """The base with a trained adapter."""
    model, card = load_network(base)
    replace_head(model, card["labels"], {"anterior": ["hippocampus"], "posterior": []})
    add_adapters(model, CONFIG)
    return perturb(model)


@pytest.fixture(scope="module")
def adapter(base: Path, adapted: nn.Module) -> Path:
    path = base.with_name("adapter.safetensors")
    save_adapter(path, adapted, CONFIG, base, {"labels": PARTS, "grid": list(GRID)})
    return path


def rewritten(source: Path, target: Path, change: dict[str, torch.Tensor | None]) -> Path:
    """Copy a weights file with some tensors replaced, added, or left out (None)."""
    with safe_open(source, "pt") as weights:
        metadata = weights.metadata()
        tensors = {name: weights.get_tensor(name) for name in weights.keys()}  # noqa: SIM118
    tensors |= change
    save_file({k: v for k, v in tensors.items() if v is not None}, target, metadata)
    return target


def test_network_round_trip(base: Path, tmp_path: Path, x: torch.Tensor) -> None:
    model, card = load_network(base)
    assert not model.training
    assert (card["labels"], card["kind"]) == (LABELS, "network")
    with torch.no_grad():
        save_network(tmp_path / "again.safetensors", model, card)
        again, _ = load_network(tmp_path / "again.safetensors")
        assert torch.equal(again(x), model(x))
        save_network(tmp_path / "half.safetensors", model, card, dtype=torch.float16)
        half, _ = load_network(tmp_path / "half.safetensors")
        assert all(p.dtype == torch.float32 for p in half.parameters())
        torch.testing.assert_close(half(x), model(x), atol=2e-2, rtol=2e-2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again.safetensors", "half.safetensors"]


def test_adapter_round_trip_is_exact(
    base: Path, adapter: Path, adapted: nn.Module, x: torch.Tensor
) -> None:
    model, card = load_adapted(adapter, base)
    assert not model.training
    assert card["labels"] == PARTS
    assert card["adapter"]["method"] == "hyps"
    assert card["base"] == {"name": "base", "sha256": sha256(base)}
    with torch.no_grad():
        assert torch.equal(model(x), adapted(x))
    with safe_open(adapter, "pt") as weights:
        names = set(weights.keys())
        assert json.loads(weights.metadata()["hyps"]) == card
    # The frozen part of the base is not stored again.
    assert not any(name.startswith("encoder") or name.endswith("frozen") for name in names)
    assert not any(name.endswith(".qkv.weight") for name in names)
    assert adapter.stat().st_size < 0.6 * base.stat().st_size


def test_untrained_adapter_in_half_precision_is_the_base(
    base: Path, tmp_path: Path, x: torch.Tensor
) -> None:
    # The residual follows from the stored factors, so their rounding cancels out.
    model, card = load_network(base)
    names = {name: [name] for name in card["labels"][1:]}
    replace_head(model, card["labels"], names)
    with torch.no_grad():
        expected = model(x)
        add_adapters(model, CONFIG)
        path = tmp_path / "identity.safetensors"
        save_adapter(path, model, CONFIG, base, {"labels": list(names)}, dtype=torch.float16)
        got = load_adapted(path, base)[0](x)
    # Decoder, head and norms are rounded to half precision nevertheless.
    torch.testing.assert_close(got, expected, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize(
    ("method", "dtype"),
    [("hyps", torch.float16)]
    + [
        pytest.param(method, dtype, marks=pytest.mark.slow)
        for method in METHODS
        for dtype in (torch.float32, torch.float16, torch.bfloat16)
        if (method, dtype) != ("hyps", torch.float16)
    ],
)
def test_every_method_comes_back_from_every_dtype(
    base: Path, tmp_path: Path, x: torch.Tensor, method: str, dtype: torch.dtype
) -> None:
    config = AdapterConfig(method, rank=2, bottleneck=2)
    model, card = load_network(base)
    replace_head(model, card["labels"], {"hippocampus": ["hippocampus"]})
    add_adapters(model, config)
    path = tmp_path / "adapter.safetensors"
    with torch.no_grad():
        start = model(x)
        trained = perturb(model)(x)
        save_adapter(path, model, config, base, {"labels": ["hippocampus"]}, dtype=dtype)
        loaded, _ = load_adapted(path, base)
        assert {p.dtype for p in loaded.parameters()} == {torch.float32}
        if dtype == torch.float32:
            assert torch.equal(loaded(x), trained)
        # Rounding is small in comparison with what training changed.
        assert (loaded(x) - trained).norm() < 0.1 * (trained - start).norm()


def test_another_base_is_refused_even_under_the_same_name(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    path = tmp_path / "base.safetensors"
    path.write_bytes(base.read_bytes())
    load_adapted(adapter, path)
    save_base(path, 1)
    facts = (adapter, "base base", path.name, sha256(path)[:12], "--base-model")
    with raises(UsageError, "adapter-other-base", *facts):
        load_adapted(adapter, path)


def test_adapter_and_base_swapped(base: Path, adapter: Path) -> None:
    with raises(UsageError, "network-not-adapter", base):
        load_adapted(base, adapter)
    with raises(UsageError, "adapter-not-network", adapter):
        load_adapted(adapter, adapter)


@pytest.mark.parametrize(
    "change",
    [{"out.conv.conv.bias": None}, {"more": torch.zeros(2)}, {"out.conv.conv.bias": torch.ones(9)}],
    ids=["missing", "unexpected", "wrong-shaped"],
)
def test_tensors_that_do_not_fit(
    change: dict[str, torch.Tensor | None], base: Path, adapter: Path, tmp_path: Path
) -> None:
    wrong = rewritten(base, tmp_path / "wrong-base.safetensors", change)
    with raises(BadData, "weights-misfit", wrong):
        load_network(wrong)
    wrong = rewritten(adapter, tmp_path / "wrong-adapter.safetensors", change)
    with raises(BadData, "adapter-misfit", wrong):
        load_adapted(wrong, base)


@pytest.mark.parametrize("kept", [0, 4, 100, 0.5, -1])
def test_truncated(kept: float, base: Path, adapter: Path, tmp_path: Path) -> None:
    for source in (base, adapter):
        content = source.read_bytes()
        end = int(kept * len(content)) if kept == 0.5 else int(kept)
        path = tmp_path / f"cut-{source.name}"
        path.write_bytes(content[:end])
        load = load_network if source == base else lambda path: load_adapted(path, base)
        with raises(BadData, "weights-unreadable", path):
            load(path)


def test_not_safetensors_and_not_ours(tmp_path: Path) -> None:
    path = tmp_path / "text.safetensors"
    path.write_text("weights, honestly " * 100)
    with raises(BadData, "weights-unreadable", path):
        read_card(path)
    path = tmp_path / "foreign.safetensors"
    save_file({"a": torch.zeros(1)}, path, {"format": "pt"})
    with raises(BadData, "card-missing", path, "hyps-tools import-base"):
        read_card(path)
    save_file({"a": torch.zeros(1)}, path, {"hyps": "{}"})
    with raises(BadData, "card-incomplete", path):
        read_card(path)


def test_missing_files(base: Path, adapter: Path, tmp_path: Path) -> None:
    absent = tmp_path / "absent.safetensors"
    for load in (
        lambda: read_card(absent),
        lambda: load_network(absent),
        lambda: load_adapted(absent, base),
        lambda: load_adapted(adapter, absent),
        lambda: read_card(tmp_path),
    ):
        with raises(MissingInput, "weights-missing"):
            load()


def test_replace_head() -> None:
    model = build_network(ARCHITECTURE)
    with pytest.raises(ValueError, match="amygdala"):
        replace_head(model, LABELS, {"new": ["amygdala"]})
    nn.init.normal_(model.out.conv.conv.bias)
    weight, bias = (p.detach().clone() for p in model.out.conv.conv.parameters())
    replace_head(model, LABELS, {"gray": ["hippocampus", "white"], "new": []})
    head = model.out.conv.conv
    assert isinstance(head, nn.Conv3d)
    assert all(p.requires_grad for p in head.parameters())
    for i, sources in enumerate([[0, 3], [1, 2]]):
        torch.testing.assert_close(head.weight[i], weight[sources].mean(0))
        torch.testing.assert_close(head.bias[i], bias[sources].mean())
    assert not head.weight[2].any()
    assert not head.bias[2].any()
    with torch.no_grad():
        assert model(torch.zeros(SHAPE)).shape == (1, 3, *SHAPE[2:])


@pytest.mark.parametrize("name", [LOCALIZER, BASE])
def test_shipped_networks_load_strictly(name: str) -> None:
    model, card = load_network(shipped_weights(name))
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert len(card["labels"]) == card["architecture"]["kwargs"]["out_channels"]


def test_shipped_adapter_fits_the_shipped_base() -> None:
    model, card = load_adapted(shipped_weights(ADAPTER), shipped_weights(BASE))
    assert tuple(card["grid"]) == GRID
    with torch.no_grad():
        out = model(torch.zeros(1, 1, *GRID))
    assert out.shape == (1, 1 + len(card["labels"]), *GRID)
    assert torch.isfinite(out).all()


def test_full_disk_keeps_the_weights_that_were_there(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    model, card = nn.Linear(100, 100), {"labels": []}
    save_network(path, model, card)
    before = path.read_bytes()
    with full_disk(), raises(CannotCreateOutput, "not-writable", path, "kept"):
        save_network(path, nn.Linear(100, 100), card)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
