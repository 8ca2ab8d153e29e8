"""Averages of adapters."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hyps_bids.errors import BadData, MissingInput
from hyps_bids.networks.adapters.config import AdapterConfig
from hyps_bids.networks.adapters.network import add_adapters
from hyps_bids.networks.cards import read_card
from hyps_bids.networks.checkpoints import load_network, replace_head, save_adapter
from hyps_bids.recipe.soup import adapter_of, average_adapters, greedy_soup
from tests.raising import raises

LABELS = {"anterior": ["hippocampus"], "posterior": ["hippocampus"]}


def save(path: Path, base: Path, shift: float, *, rank: int = 2, flipped: bool = False) -> Path:
    """Write an adapter whose trained tensors are those of the start plus a constant."""
    torch.manual_seed(0)
    model, card = load_network(base)
    replace_head(model, card["labels"], LABELS)
    config = AdapterConfig(rank=rank, bottleneck=2)
    add_adapters(model, config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(shift * parameter.requires_grad)
        if flipped:
            for name, tensor in model.state_dict().items():
                if "lora_" in name:
                    tensor.neg_()
    save_adapter(path, model, config, base, {"labels": list(LABELS), "grid": [40, 56, 40]})
    return path


@pytest.mark.slow
def test_mean_of_adapters_is_the_mean_of_their_tensors(small_base: Path, tmp_path: Path) -> None:
    one = save(tmp_path / "one.safetensors", small_base, 0.0)
    two = save(tmp_path / "two.safetensors", small_base, 0.5)
    card = {"training": {"seeds": 2}}
    out = average_adapters([one, two], small_base, tmp_path / "mean.safetensors", card, half=False)
    first, mean = load_file(one), load_file(out)
    for name, tensor in first.items():
        expected = tensor if name.endswith("_init") else tensor + 0.25
        torch.testing.assert_close(mean[name], expected)
    assert read_card(out)["training"] == {"seeds": 2}
    assert read_card(out)["base"]["name"] == "base-synthetic"


@pytest.mark.slow
def test_adapters_that_do_not_belong_together(small_base: Path, tmp_path: Path) -> None:
    one = save(tmp_path / "one.safetensors", small_base, 0.0)
    out = tmp_path / "mean.safetensors"
    unlike = save(tmp_path / "unlike.safetensors", small_base, 0.0, rank=3)
    with raises(BadData, "soup-unlike", unlike, one):
        average_adapters([one, unlike], small_base, out, {})
    # The same function, written with other signs: the mean of both would be nonsense.
    other = save(tmp_path / "other.safetensors", small_base, 0.0, flipped=True)
    with raises(BadData, "soup-other-start", other, one):
        average_adapters([one, other], small_base, out, {})
    assert not out.exists()


def test_greedy_soup_tries_the_best_first() -> None:
    scores = {"a": 0.9, "b": 0.8, "c": 0.7, "ab": 0.85, "ac": 0.95}
    tried = []

    def score(names: tuple[str, ...]) -> float:
        tried.append("".join(names))
        return scores[tried[-1]]

    assert greedy_soup(["a", "b", "c"], score) == ("a", "c")
    assert tried == ["a", "ab", "ac"]


def test_folder_without_an_adapter(small_base: Path, tmp_path: Path) -> None:
    with raises(MissingInput, "no-adapter-in-folder", tmp_path):
        adapter_of(tmp_path, small_base, None, tmp_path / "x.safetensors")
