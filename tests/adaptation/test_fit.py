"""Adapters trained on made crops with a small made base."""

from __future__ import annotations

import logging
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hyps_bids.adaptation.crops import Crops
from hyps_bids.adaptation.fit import (
    LOSSES,
    adapt,
    crop_dice,
    crops_digest,
    fit_adapter,
    plain_batch,
)
from hyps_bids.errors import UsageError
from hyps_bids.networks.adapters import AdapterConfig
from hyps_bids.networks.checkpoints import (
    GRID,
    build_network,
    load_adapted,
    read_card,
    save_network,
)
from hyps_bids.training.loop import LoopSettings

CPU = torch.device("cpu")
SETTINGS = LoopSettings(steps=2, warmup=1, evaluate_every=1, patience=1, checkpoint_every=1)
CONFIG = AdapterConfig(rank=2, bottleneck=2)
LABELS = {"anterior": ["hippocampus"], "posterior": ["hippocampus"]}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    kwargs = {"in_channels": 1, "out_channels": 2, "feature_size": 12}
    architecture = {"name": "HippocampusSwinUNETR", "kwargs": kwargs}
    path = tmp_path_factory.mktemp("base") / "base-made.safetensors"
    card = {"architecture": architecture, "labels": ["background", "hippocampus"]}
    save_network(path, build_network(architecture), card)
    return path


def made_crops(*names: str) -> Crops:
    """Noise with a brighter block of two halves: class 1 in front, 2 behind."""
    frame = [side + 8 for side in GRID]
    generator = torch.Generator().manual_seed(len(names))
    labels = torch.zeros(len(names), 1, *frame, dtype=torch.long)
    labels[:, :, 20:28, 32:42, 20:28] = 1
    labels[:, :, 20:28, 22:32, 20:28] = 2
    images = torch.randn(labels.shape, generator=generator) + 2 * (labels > 0)
    return Crops(names, images, torch.ones_like(labels, dtype=torch.bool), labels)


def test_fit_writes_an_adapter_that_loads(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="hyps_bids"):
        fitted = fit_adapter(
            made_crops("a", "b"),
            made_crops("c"),
            LABELS,
            base,
            CONFIG,
            SETTINGS,
            tmp_path,
            CPU,
            half=True,
            card={"name": "made"},
        )
    assert "parameters train" in caplog.text
    assert fitted.path == tmp_path / "adapter.safetensors"
    assert set(fitted.figures) == {"dice_anterior", "dice_posterior", "dice_whole"}
    assert 0 < fitted.parameters["adapters"] < fitted.parameters["trainable"]
    assert fitted.path.stat().st_size < 2.5 * fitted.parameters["trainable"]
    model, card = load_adapted(fitted.path, base)
    assert card["name"] == "made"
    assert card["training"]["steps"] == fitted.step
    # what was measured is what was written, but for half precision
    again = crop_dice(model, made_crops("c"), list(LABELS))
    assert again == pytest.approx(fitted.figures, abs=0.02)
    # other data in the same folder would be another run
    with pytest.raises(UsageError, match="other training data"):
        fit_adapter(made_crops("a"), made_crops("c"), LABELS, base, CONFIG, SETTINGS, tmp_path, CPU)


def test_adapt_without_validation_and_from_another_adapter(base: Path, tmp_path: Path) -> None:
    one = replace(SETTINGS, steps=1, patience=None)
    crops, nothing = made_crops("a"), made_crops("a").select(lambda _: False)
    first = adapt(crops, nothing, LABELS, base, CONFIG, one, tmp_path / "1", CPU, batch_size=1)
    assert read_card(first)["training"]["validation"] == {}
    other = AdapterConfig(rank=4)
    second = adapt(
        crops, nothing, LABELS, base, other, one, tmp_path / "2", CPU, batch_size=1, start=first
    )
    assert read_card(second)["adapter"]["rank"] == 2
    with pytest.raises(UsageError, match="has the classes"):
        adapt(crops, nothing, {"whole": []}, base, other, one, tmp_path / "3", CPU, start=first)


def test_dice_of_crops() -> None:
    crops = made_crops("a", "b")
    crops.labels[1][crops.labels[1] == 2] = 0

    def oracle(inputs: torch.Tensor) -> torch.Tensor:
        _, targets = plain_batch(crops, slice(0, len(inputs)))
        return 20 * torch.nn.functional.one_hot(targets[:, 0], 3).movedim(-1, 1).float()

    with warnings.catch_warnings():
        # MONAI's deprecations too
        warnings.simplefilter("error")
        figures = crop_dice(oracle, crops, list(LABELS))
    # the second crop has no posterior part, and does not count for it
    assert figures == {"dice_anterior": 1, "dice_posterior": 1, "dice_whole": 1}

    def nothing(inputs: torch.Tensor) -> torch.Tensor:
        return oracle(inputs) * torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1, 1) + torch.tensor(
            [1.0, 0, 0]
        ).view(1, 3, 1, 1, 1)

    assert set(crop_dice(nothing, crops, list(LABELS)).values()) == {0}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_means_over_samples(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 3, 6, 6, 6, generator=generator)
    targets = torch.randint(3, (3, 1, 6, 6, 6), generator=generator)
    loss = LOSSES[name]()
    single = [loss(logits[i : i + 1], targets[i : i + 1]) for i in range(3)]
    # or processes that share a batch would not train as one does
    torch.testing.assert_close(loss(logits, targets), torch.stack(single).mean())


def test_digest_tells_data_apart() -> None:
    crops = made_crops("a", "b")
    assert crops_digest(crops) == crops_digest(made_crops("a", "b"))
    assert crops_digest(crops) != crops_digest(made_crops("a", "c"))
    crops.labels[0, 0, 0, 0, 0] = 1
    assert crops_digest(crops) != crops_digest(made_crops("a", "b"))
