from __future__ import annotations

from pathlib import Path

import pytest
import torch
from monai.networks.nets import SwinUNETR

from hyps_bids.errors import BadData, MissingInput
from hyps_bids.networks.adapters import AdapterConfig, add_adapters
from hyps_bids.networks.checkpoints import load_network, replace_head
from hyps_bids.networks.foreign import import_swin_unetr


@pytest.fixture
def brats(tmp_path: Path) -> tuple[SwinUNETR, Path]:
    """A checkpoint as MONAI publishes it for BraTS21: four channels in, three classes out."""
    torch.manual_seed(0)
    model = SwinUNETR(in_channels=4, out_channels=3, feature_size=12).eval()
    path = tmp_path / "fold1.pt"
    state = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 1}, path)
    return model, path


def features(model: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Output of the last decoder."""
    found: list[torch.Tensor] = []
    block = model.get_submodule("decoder1.conv_block")
    hook = block.register_forward_hook(lambda *a: found.append(a[2]))
    with torch.inference_mode():
        model(x)
    hook.remove()
    return found[-1]


def test_brats_checkpoint_becomes_a_base(brats: tuple[SwinUNETR, Path], tmp_path: Path) -> None:
    original, path = brats
    card = import_swin_unetr(path, tmp_path / "base.safetensors")
    model, _ = load_network(tmp_path / "base.safetensors")
    x = torch.randn(1, 1, 64, 32, 32)
    # the same image in all channels must look the same to both
    expected = features(original, x.expand(-1, 4, -1, -1, -1))
    torch.testing.assert_close(features(model, x), expected, atol=1e-4, rtol=1e-4)
    assert card["labels"] == ["background"]
    replace_head(model, card["labels"], {"hippocampus": []})
    add_adapters(model, AdapterConfig(rank=2, bottleneck=2))
    assert model(x).shape == (1, 2, 64, 32, 32)


def test_what_is_not_a_swin_unetr_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.pt"
    torch.save({"state_dict": torch.nn.Linear(2, 2).state_dict()}, other)
    with pytest.raises(BadData, match=r"other\.pt: has no encoder1"):
        import_swin_unetr(other, tmp_path / "out.safetensors")
    torn = tmp_path / "torn.pt"
    torn.write_bytes(other.read_bytes()[:100])
    with pytest.raises(BadData, match=r"torn\.pt"):
        import_swin_unetr(torn, tmp_path / "out.safetensors")
    with pytest.raises(MissingInput):
        import_swin_unetr(tmp_path / "none.pt", tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()
