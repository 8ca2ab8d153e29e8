"""Tests of :mod:`hyps_bids.networks.monai_checkpoints` on checkpoints of MONAI's own class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from monai.networks.nets import SwinUNETR
from safetensors.torch import save_file

from hyps_bids.errors import BadData, MissingInput, UsageError
from hyps_bids.networks.adapters.config import AdapterConfig
from hyps_bids.networks.adapters.network import add_adapters, parameter_counts
from hyps_bids.networks.checkpoints import load_network, replace_head
from hyps_bids.networks.monai_checkpoints import describe_import, import_swin_unetr, reduce_channels
from tests.raising import raises

State = dict[str, torch.Tensor]

FIRST = "encoder1.layer.conv1.conv.weight"


@pytest.fixture(scope="module")
def original() -> SwinUNETR:
    """A narrow network with the channels and classes of MONAI's BraTS21 model."""
    torch.manual_seed(0)
    return SwinUNETR(in_channels=4, out_channels=3, feature_size=12).eval()


@pytest.fixture(scope="module")
def brats(original: SwinUNETR, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its checkpoint in the form that MONAI publishes; some hold a NumPy number."""
    path = tmp_path_factory.mktemp("brats") / "fold1.pt"
    state = {f"module.{name}": tensor for name, tensor in original.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 1, "best_acc": np.float64(0.9)}, path)
    return path


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "base.safetensors"


def write(content: object, path: Path) -> Path:
    torch.save(content, path)
    return path


@pytest.mark.parametrize(
    ("channels", "factors"), [("sum", [1, 1, 1, 1]), ("mean", [0.25] * 4), ("2", [0, 0, 1, 0])]
)
def test_reduction_is_what_the_original_computes(
    original: SwinUNETR, brats: Path, out: Path, channels: str, factors: list[float]
) -> None:
    """Sum: the same image in all channels; mean: a quarter of it; number: zero elsewhere."""
    assert import_swin_unetr(brats, out, channels)["channels"] == channels
    model, _ = load_network(out)
    x = torch.randn(1, 1, 16, 16, 16)
    shown = x * torch.tensor(factors).reshape(1, 4, 1, 1, 1)
    # Only these see the image; the next test covers all other weights.
    for name in ("swinViT.patch_embed", "encoder1"):
        with torch.inference_mode():
            expected = original.get_submodule(name)(shown)
            got = model.get_submodule(name)(x)
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


def test_every_tensor_is_accounted_for(original: SwinUNETR, brats: Path, out: Path) -> None:
    record = import_swin_unetr(brats, out)
    model, card = load_network(out)
    state = original.state_dict()
    same = [name for name, tensor in model.state_dict().items() if torch.equal(tensor, state[name])]
    assert len(same) == record["taken"]
    assert card["imported"] == record
    assert card["labels"] == ["background"]
    assert record["reduced"] == [
        FIRST,
        "encoder1.layer.conv3.conv.weight",
        "swinViT.patch_embed.proj.weight",
    ]
    kinds = ("reduced", "re-initialized", "ignored")
    assert record["taken"] + record["recomputed"] + sum(len(record[k]) for k in kinds) == len(state)
    text = describe_import(record)
    assert "from 4 input channels to 1 (sum): encoder1" in text
    assert "3 outputs" in text
    # The new head is zero.
    with torch.inference_mode():
        assert not model(torch.randn(1, 1, 24, 40, 24)).any()


@pytest.mark.parametrize(
    ("wrapper", "prefix"),
    [(None, "module."), ("state_dict", ""), ("model", "net.module."), ("net", "module.")],
)
def test_wrappers_and_prefixes(
    original: SwinUNETR, out: Path, tmp_path: Path, wrapper: str | None, prefix: str
) -> None:
    state = {prefix + name: tensor for name, tensor in original.state_dict().items()}
    state["loss.weight"] = torch.ones(3)
    path = write({wrapper: state} if wrapper else state, tmp_path / "some.pt")
    assert import_swin_unetr(path, out)["ignored"] == ["loss.weight"]


def test_safetensors_and_one_channel(out: Path, tmp_path: Path) -> None:
    model = SwinUNETR(in_channels=1, out_channels=2, feature_size=12)
    state = {name: t.contiguous() for name, t in model.state_dict().items() if "index" not in name}
    path = tmp_path / "one.safetensors"
    save_file(state, path)
    record = import_swin_unetr(path, out)
    assert (record["reduced"], record["channels"]) == ([], "as they are")
    with raises(UsageError, "channels-single", path):
        import_swin_unetr(path, out, "1")


@pytest.mark.parametrize("rule", ["", "T1", "4", "-1", "1.0"])
def test_unknown_reductions_are_refused(rule: str) -> None:
    with raises(UsageError, "channels-unknown", "0 to 3"):
        reduce_channels(torch.ones(2, 4, 1, 1, 1), rule)


def test_files_without_weights_are_refused(out: Path, tmp_path: Path) -> None:
    path = write({"state_dict": torch.nn.Linear(2, 2).state_dict()}, tmp_path / "other.pt")
    with raises(BadData, "checkpoint-not-swinunetr", path, "encoder1"):
        import_swin_unetr(path, out)
    path.write_bytes(path.read_bytes()[:100])
    with raises(BadData, "checkpoint-unreadable", path):
        import_swin_unetr(path, out)
    with raises(BadData, "checkpoint-unreadable", path):
        import_swin_unetr(write(torch.nn.Linear(2, 2), path), out)
    with raises(BadData, "checkpoint-no-state", path):
        import_swin_unetr(write([torch.ones(2)], path), out)
    with raises(MissingInput, "checkpoint-missing", tmp_path / "none.pt"):
        import_swin_unetr(tmp_path / "none.pt", out)
    assert not out.exists()


def test_other_shapes_are_refused_by_name(original: SwinUNETR, out: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    state = original.state_dict()
    table = "swinViT.layers1.0.blocks.0.attn.relative_position_bias_table"
    deeper = "swinViT.layers1.0.blocks.2.norm1.weight"
    flat = SwinUNETR(in_channels=1, out_channels=2, feature_size=12, spatial_dims=2)
    cases: list[tuple[State, tuple[str, ...]]] = [
        (state | {table: torch.zeros(729, 3)}, (table, "[2197, 3]", "[729, 3]")),
        ({k: v for k, v in state.items() if "decoder" not in k}, ("decoder", "Missing")),
        (state | {deeper: torch.ones(12)}, (deeper, "Unexpected")),
        (flat.state_dict(), ("shape",)),
        ({FIRST: torch.zeros(10, 1, 3, 3, 3)}, ("feature_size",)),
    ]
    for changed, facts in cases:
        with raises(BadData, "checkpoint-misfit", path, *facts):
            import_swin_unetr(write(changed, path), out)
    version_2 = SwinUNETR(in_channels=4, out_channels=3, feature_size=12, use_v2=True)
    with raises(BadData, "checkpoint-version-2", path, "use_v2"):
        import_swin_unetr(write(version_2.state_dict(), path), out)
    assert not out.exists()


@pytest.mark.slow
def test_network_of_the_papers_size(out: Path, tmp_path: Path) -> None:
    """The paper counts 20.07 M of 63.13 M parameters, with r = d = 2 and 48 features."""
    model = SwinUNETR(in_channels=4, out_channels=3, feature_size=48)
    import_swin_unetr(write({"state_dict": model.state_dict()}, tmp_path / "f48.pt"), out)
    network, card = load_network(out)
    assert card["architecture"]["kwargs"]["feature_size"] == 48
    replace_head(network, card["labels"], {"hippocampus": []})
    add_adapters(network, AdapterConfig.preset("paper"))
    counts = parameter_counts(network)
    assert counts.trainable / counts.total == pytest.approx(0.318, abs=0.02)
    assert counts.total == pytest.approx(63.13e6, rel=0.03)
    # The head starts at zero, and learns.
    box, targets = torch.randn(1, 1, 24, 40, 24), torch.randint(2, (1, 24, 40, 24))
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    for _ in range(2):
        losses.append(torch.nn.functional.cross_entropy(network.train()(box), targets))
        losses[-1].backward()
        optimizer.step()
    assert losses[1].item() < losses[0].item() == pytest.approx(np.log(2), abs=1e-4)
