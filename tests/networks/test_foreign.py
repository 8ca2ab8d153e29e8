"""Tests of :mod:`hyps_bids.networks.foreign` on checkpoints that MONAI's own class wrote."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from monai.networks.nets import SwinUNETR
from safetensors.torch import save_file

from hyps_bids.errors import BadData, MissingInput, UsageError
from hyps_bids.networks.adapters import AdapterConfig, add_adapters, parameter_counts
from hyps_bids.networks.checkpoints import (
    load_adapted,
    load_network,
    read_card,
    replace_head,
    save_adapter,
)
from hyps_bids.networks.foreign import describe_import, import_swin_unetr, reduce_channels
from hyps_bids.segmentation.inference import predict

State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def original() -> SwinUNETR:
    """A network as MONAI's for BraTS21, but for its width: four channels in, three classes out."""
    torch.manual_seed(0)
    return SwinUNETR(in_channels=4, out_channels=3, feature_size=12).eval()


@pytest.fixture
def brats(original: SwinUNETR, tmp_path: Path) -> Path:
    """Its checkpoint as MONAI publishes it."""
    path = tmp_path / "fold1.pt"
    state = {f"module.{name}": tensor for name, tensor in original.state_dict().items()}
    # the best score is a NumPy number in some
    torch.save({"state_dict": state, "epoch": 1, "best_acc": np.float64(0.9)}, path)
    return path


def write(state: State, path: Path) -> Path:
    torch.save(state, path)
    return path


@pytest.mark.parametrize(
    ("channels", "factors"), [("sum", [1, 1, 1, 1]), ("mean", [0.25] * 4), ("2", [0, 0, 1, 0])]
)
def test_reduction_is_what_the_original_computes(
    original: SwinUNETR, brats: Path, tmp_path: Path, channels: str, factors: list[float]
) -> None:
    """The same image in all channels, a quarter of it in all, or in one and zero elsewhere."""
    card = import_swin_unetr(brats, tmp_path / "base.safetensors", channels)
    assert card["imported"]["channels"] == channels
    model, _ = load_network(tmp_path / "base.safetensors")
    x = torch.randn(1, 1, 16, 16, 16)
    shown = x * torch.tensor(factors).reshape(1, 4, 1, 1, 1)
    # what sees the image; everything behind is taken as it is, which the next test shows
    for name in ("swinViT.patch_embed", "encoder1"):
        with torch.inference_mode():
            expected = original.get_submodule(name)(shown)
            got = model.get_submodule(name)(x)
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


def test_all_other_weights_are_the_originals(
    original: SwinUNETR, brats: Path, tmp_path: Path
) -> None:
    facts = import_swin_unetr(brats, tmp_path / "base.safetensors")["imported"]
    model, _ = load_network(tmp_path / "base.safetensors")
    state = original.state_dict()
    same = [name for name, tensor in model.state_dict().items() if torch.equal(tensor, state[name])]
    assert len(same) == facts["taken"]


def test_report_accounts_for_every_tensor(original: SwinUNETR, brats: Path, tmp_path: Path) -> None:
    card = import_swin_unetr(brats, tmp_path / "base.safetensors")
    facts = read_card(tmp_path / "base.safetensors")["imported"]
    assert facts == card["imported"]
    assert facts["reduced"] == [
        "encoder1.layer.conv1.conv.weight",
        "encoder1.layer.conv3.conv.weight",
        "swinViT.patch_embed.proj.weight",
    ]
    heads = len(facts["re-initialized"])
    known = facts["taken"] + len(facts["reduced"]) + heads + facts["recomputed"]
    assert known == len(original.state_dict())
    assert facts["ignored"] == []
    text = describe_import(card)
    assert "reduced from 4 input channels to 1 (sum): encoder1" in text
    assert "(had 3 outputs)" in text


def test_head_starts_at_zero(brats: Path, tmp_path: Path) -> None:
    card = import_swin_unetr(brats, tmp_path / "base.safetensors")
    assert card["labels"] == ["background"]
    model, _ = load_network(tmp_path / "base.safetensors")
    with torch.inference_mode():
        assert not model(torch.randn(1, 1, 24, 40, 24)).any()


@pytest.mark.parametrize(
    ("wrapper", "prefix"),
    [(None, "module."), ("state_dict", ""), ("model", "net.module."), ("net", "module.")],
)
def test_wrappers_and_prefixes(
    original: SwinUNETR, tmp_path: Path, wrapper: str | None, prefix: str
) -> None:
    state = {prefix + name: tensor for name, tensor in original.state_dict().items()}
    state["loss.weight"] = torch.ones(3)
    path = tmp_path / "some.pt"
    torch.save({wrapper: state} if wrapper else state, path)
    card = import_swin_unetr(path, tmp_path / "base.safetensors")
    assert card["imported"]["ignored"] == ["loss.weight"]


def test_safetensors_and_one_channel(tmp_path: Path) -> None:
    model = SwinUNETR(in_channels=1, out_channels=2, feature_size=12)
    state = {name: t.contiguous() for name, t in model.state_dict().items() if "index" not in name}
    save_file(state, tmp_path / "one.safetensors")
    card = import_swin_unetr(tmp_path / "one.safetensors", tmp_path / "base.safetensors")
    assert card["imported"]["reduced"] == []
    assert card["imported"]["channels"] == "as they are"
    with pytest.raises(UsageError, match="single input channel"):
        import_swin_unetr(tmp_path / "one.safetensors", tmp_path / "base.safetensors", "1")


@pytest.mark.parametrize("rule", ["", "T1", "4", "-1", "1.0"])
def test_unknown_reductions_are_refused(rule: str) -> None:
    with pytest.raises(UsageError, match="sum, mean or a number from 0 to 3"):
        reduce_channels(torch.ones(2, 4, 1, 1, 1), rule)


def test_what_is_not_a_swin_unetr_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    other = write({"state_dict": torch.nn.Linear(2, 2).state_dict()}, tmp_path / "other.pt")
    with pytest.raises(BadData, match=r"other\.pt: has no encoder1"):
        import_swin_unetr(other, out)
    torn = tmp_path / "torn.pt"
    torn.write_bytes(other.read_bytes()[:100])
    with pytest.raises(BadData, match=r"torn\.pt"):
        import_swin_unetr(torn, out)
    whole = tmp_path / "whole.pt"
    torch.save(torch.nn.Linear(2, 2), whole)
    with pytest.raises(BadData, match=r"whole\.pt: .*without running code"):
        import_swin_unetr(whole, out)
    with pytest.raises(BadData, match="holds no state dict"):
        import_swin_unetr(write([torch.ones(2)], tmp_path / "list.pt"), out)
    with pytest.raises(MissingInput):
        import_swin_unetr(tmp_path / "none.pt", out)
    assert not out.exists()


def test_other_shapes_are_refused_by_name(original: SwinUNETR, tmp_path: Path) -> None:
    out, path = tmp_path / "out.safetensors", tmp_path / "a.pt"
    state = original.state_dict()
    table = "swinViT.layers1.0.blocks.0.attn.relative_position_bias_table"
    changed = write(state | {table: torch.zeros(729, 3)}, path)
    with pytest.raises(
        BadData, match=rf"{table} should have the shape \(2197, 3\), found \(729, 3\)"
    ):
        import_swin_unetr(changed, out)
    missing = write({k: v for k, v in state.items() if not k.startswith("decoder")}, path)
    with pytest.raises(BadData, match=r"decoder.* but is missing.*and \d+ more"):
        import_swin_unetr(missing, out)
    deeper = write(state | {"swinViT.layers1.0.blocks.2.norm1.weight": torch.ones(12)}, path)
    with pytest.raises(
        BadData, match=r"blocks\.2\.norm1\.weight of the shape \(12,\) has no place"
    ):
        import_swin_unetr(deeper, out)
    flat = SwinUNETR(in_channels=1, out_channels=2, feature_size=12, spatial_dims=2)
    with pytest.raises(BadData, match=r"should have the shape .*, found"):
        import_swin_unetr(write(flat.state_dict(), path), out)
    odd = {"encoder1.layer.conv1.conv.weight": torch.zeros(10, 1, 3, 3, 3)}
    with pytest.raises(BadData, match="has 10 outputs"):
        import_swin_unetr(write(odd, path), out)
    assert not out.exists()


def test_version_2_is_refused_with_the_reason(tmp_path: Path) -> None:
    model = SwinUNETR(in_channels=4, out_channels=3, feature_size=12, use_v2=True)
    path = write(model.state_dict(), tmp_path / "v2.pt")
    with pytest.raises(BadData, match=r"version 2 \(use_v2=True\): it has convolutions before"):
        import_swin_unetr(path, tmp_path / "out.safetensors")


@pytest.mark.slow
def test_the_size_of_the_paper_works_all_the_way(tmp_path: Path) -> None:
    """feature_size 48: import, adapt for two steps, save, load, infer, on a small box."""
    torch.manual_seed(0)
    model = SwinUNETR(in_channels=4, out_channels=3, feature_size=48)
    source = tmp_path / "f48.pt"
    state = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"state_dict": state}, source)
    del model, state
    base = tmp_path / "base.safetensors"
    card = import_swin_unetr(source, base)
    assert card["architecture"]["kwargs"]["feature_size"] == 48

    network, _ = load_network(base)
    replace_head(network, card["labels"], {"hippocampus": []})
    config = AdapterConfig(method="hyps", rank=2, bottleneck=2)
    add_adapters(network, config)
    counts = parameter_counts(network)
    # the paper has 20.07 M of 63.13 M, with r = d = 2
    assert counts.trainable / counts.total == pytest.approx(0.318, abs=0.02)
    assert counts.total == pytest.approx(63.13e6, rel=0.03)
    box, targets = torch.randn(1, 1, 24, 40, 24), torch.randint(2, (1, 24, 40, 24))
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    network.train()
    for _ in range(2):
        loss = torch.nn.functional.cross_entropy(network(box), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[1] < losses[0] == pytest.approx(np.log(2), abs=1e-4)

    adapter = tmp_path / "adapter.safetensors"
    save_adapter(adapter, network, config, base, {"labels": ["hippocampus"], "grid": [24, 40, 24]})
    loaded, _ = load_adapted(adapter, base)
    probabilities, _ = predict(loaded, box, torch.device("cpu"))
    expected, _ = predict(network.eval(), box, torch.device("cpu"))
    torch.testing.assert_close(probabilities, expected, atol=1e-4, rtol=1e-4)
    assert probabilities.shape == (1, 2, 24, 40, 24)
    assert probabilities[:, 1].std() > 0
