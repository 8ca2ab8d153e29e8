"""Adapters trained on made crops with a small made base."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hyps_bids.adaptation.crops import Crops, plain_batch
from hyps_bids.adaptation.fit import LOSSES, Recipe, crop_dice, fit_adapter, starting_points
from hyps_bids.errors import UsageError
from hyps_bids.networks.adapters.config import AdapterConfig
from hyps_bids.networks.cards import GRID, read_card
from hyps_bids.networks.checkpoints import load_adapted
from hyps_bids.training.loop import LoopSettings
from tests.raising import raises

CPU = torch.device("cpu")
LABELS = {"anterior": ["hippocampus"], "posterior": ["hippocampus"]}


@pytest.fixture(scope="module")
def recipe(small_base: Path) -> Recipe:
    loop = LoopSettings(steps=2, warmup=1, evaluate_every=1, patience=1, checkpoint_every=1)
    return Recipe(small_base, LABELS, AdapterConfig(rank=2, bottleneck=2), loop)


def made_crops(*names: str) -> Crops:
    """Noise with a brighter block of two halves: class 1 in front, 2 behind."""
    frame = [side + 8 for side in GRID]
    generator = torch.Generator().manual_seed(len(names))
    labels = torch.zeros(len(names), 1, *frame, dtype=torch.long)
    labels[:, :, 20:28, 32:42, 20:28] = 1
    labels[:, :, 20:28, 22:32, 20:28] = 2
    images = torch.randn(labels.shape, generator=generator) + 2 * (labels > 0)
    return Crops(names, images, torch.ones_like(labels, dtype=torch.bool), labels)


@pytest.mark.slow
@pytest.mark.parametrize("half", [False, True])
def test_fit_writes_an_adapter_that_loads(half: bool, recipe: Recipe, tmp_path: Path) -> None:
    recipe = replace(recipe, half=half, card={"name": "made"})
    fitted = fit_adapter(recipe, made_crops("a", "b"), made_crops("c"), tmp_path, CPU)
    assert fitted.path == tmp_path / "adapter.safetensors"
    assert set(fitted.metrics) == {"dice_anterior", "dice_posterior", "dice_whole"}
    assert 0 < fitted.parameters["adapters"] < fitted.parameters["trainable"]
    bytes_per_number = 2 if half else 4
    assert fitted.path.stat().st_size < (bytes_per_number + 0.5) * fitted.parameters["trainable"]
    model, card = load_adapted(fitted.path, recipe.base)
    assert card["name"] == "made"
    assert card["training"]["steps"] == fitted.step
    # The weights that were measured were written; after two steps, rounding decides many voxels.
    again = crop_dice(model, made_crops("c"), list(LABELS))
    assert again == pytest.approx(fitted.metrics, abs=0.05 if half else 1e-3)
    # Other data in the same folder would be another run; the names are those of 0.1's checkpoints
    checkpoint = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    names = "settings, training data, validation data, classes, adapter, base, start, batch size, "
    names += "augmentation, loss"
    assert list(checkpoint["identity"]) == names.split(", ")
    with raises(UsageError, "checkpoint-other-run", "training data"):
        fit_adapter(recipe, made_crops("a"), made_crops("c"), tmp_path, CPU)


@pytest.mark.slow
def test_fit_without_validation_and_from_another_adapter(recipe: Recipe, tmp_path: Path) -> None:
    recipe = replace(recipe, loop=replace(recipe.loop, steps=1, patience=None), batch_size=1)
    crops = made_crops("a")
    nothing = crops.select(lambda _: False)
    first = fit_adapter(recipe, crops, nothing, tmp_path / "1", CPU).path
    assert read_card(first)["training"]["validation"] == {}
    recipe = replace(recipe, config=AdapterConfig(rank=4), start=first)
    second = fit_adapter(recipe, crops, None, tmp_path / "2", CPU).path
    assert read_card(second)["adapter"]["rank"] == 2
    with raises(UsageError, "adapter-classes-differ", first):
        fit_adapter(replace(recipe, labels={"whole": []}), crops, None, tmp_path / "3", CPU)


def test_recipes_that_cannot_be(recipe: Recipe) -> None:
    with raises(UsageError, "augmentation-range", "1.5"):
        replace(recipe, augmentation=1.5)
    with raises(UsageError, "base-class-unknown", "amygdala"):
        starting_points(["a"], ["amygdala"], ["hippocampus"])
    for classes, start_from in ((["a", "a"], ["h"]), (["a", "b", "c"], ["h", "h"])):
        with raises(UsageError, "classes-do-not-fit"):
            starting_points(classes, start_from, ["h"])
    assert starting_points(["a", "b"], [], ["h"]) == {"a": [], "b": []}


def test_dice_of_crops() -> None:
    crops = made_crops("a", "b")
    crops.labels[1][crops.labels[1] == 2] = 0

    def oracle(inputs: torch.Tensor) -> torch.Tensor:
        _, targets = plain_batch(crops, slice(0, len(inputs)))
        return 20 * torch.nn.functional.one_hot(targets[:, 0], 3).movedim(-1, 1).float()

    # The second crop has no posterior part, and does not count for it
    assert crop_dice(oracle, crops, list(LABELS)) == {
        "dice_anterior": 1,
        "dice_posterior": 1,
        "dice_whole": 1,
    }

    def nothing(inputs: torch.Tensor) -> torch.Tensor:
        background = torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1, 1)
        return oracle(inputs) * background + background

    assert set(crop_dice(nothing, crops, list(LABELS)).values()) == {0}
    crops.labels[crops.labels == 2] = 0
    assert set(crop_dice(oracle, crops, list(LABELS))) == {"dice_anterior", "dice_whole"}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_means_over_samples(name: str) -> None:
    """Otherwise processes that share a batch would not train as one does."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 3, 6, 6, 6, generator=generator)
    targets = torch.randint(3, (3, 1, 6, 6, 6), generator=generator)
    loss = LOSSES[name]()
    single = [loss(logits[i : i + 1], targets[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(loss(logits, targets), torch.stack(single).mean())


def test_digest_tells_data_apart() -> None:
    crops, zeros = made_crops("a", "b"), torch.zeros(1, 1, 2, 2, 2)
    # As in version 0.1
    known = "b2bc6b24a809030b06647f721dd131d08fc8be08ca51e1ff9ca6237881f0dc72"
    assert Crops(("a",), zeros, zeros.bool(), zeros.long()).digest() == known
    assert crops.digest() == made_crops("a", "b").digest() != made_crops("a", "c").digest()
    crops.labels[0, 0, 0, 0, 0] = 1
    assert crops.digest() != made_crops("a", "b").digest()
