"""Tests of :mod:`hyps_bids.pretraining.pretrain`."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hyps_bids.errors import UsageError
from hyps_bids.networks.cards import BASE, LOCALIZER, read_card, shipped_weights
from hyps_bids.networks.checkpoints import load_network
from hyps_bids.pretraining.pretrain import (
    base_task,
    localizer_task,
    pretrain,
    segmentation_loss,
    synthetic_dice,
)
from hyps_bids.pretraining.synthesis import BOX, HEAD
from hyps_bids.training.loop import LoopSettings
from tests.raising import raises

CPU = torch.device("cpu")
SETTINGS = LoopSettings(steps=2, warmup=1, learning_rate=1e-4)
TINY = {"batch_size": 1, "validation_batches": 1}


def test_localizer_from_shipped_weights(labelmaps: Path, tmp_path: Path) -> None:
    head = replace(HEAD, shape=(32, 32, 32), voxel=7.5)
    task = replace(localizer_task(), synthesis=head, **TINY)
    path = pretrain(task, labelmaps, tmp_path, SETTINGS, CPU, shipped_weights(LOCALIZER))
    assert path == tmp_path / "localizer.safetensors"
    model, card = load_network(path)
    shipped, shipped_card = load_network(shipped_weights(LOCALIZER))
    assert card["architecture"] == shipped_card["architecture"]
    assert card["labels"] == shipped_card["labels"]
    training = card["training"]
    assert training["held out"] == "02.nii.gz, 03.nii.gz"
    assert (training["label maps"], training["steps"], training["batch size"]) == (1, 2, 1)
    assert set(training["validation"]) >= {"dice_left hippocampus", "dice_mean"}
    # Two small steps change the weights, but not much.
    old, new = shipped.state_dict(), model.state_dict()
    moved = max(float((new[name] - old[name]).abs().max()) for name in old)
    assert 0 < moved < 0.01
    text = path.with_suffix(".md").read_text(encoding="utf-8")
    assert hashlib.sha256(path.read_bytes()).hexdigest() in text
    assert "Apache-2.0" in text
    assert "dice_left hippocampus" in text


@pytest.mark.slow
def test_base_from_nothing_in_half_precision(labelmaps: Path, tmp_path: Path) -> None:
    task = replace(base_task(12), synthesis=replace(BOX, shape=(40, 40, 40)), **TINY)
    path = pretrain(task, labelmaps, tmp_path, replace(SETTINGS, steps=1), CPU, half=True)
    model, card = load_network(path)
    assert card["labels"] == read_card(shipped_weights(BASE))["labels"]
    assert card["training"]["start"] == "random weights"
    count = sum(p.numel() for p in model.parameters())
    assert path.stat().st_size < 2.2 * count


def test_weights_of_another_network_are_refused(labelmaps: Path, tmp_path: Path) -> None:
    with raises(UsageError, "start-other-network", shipped_weights(BASE), "localizer"):
        pretrain(localizer_task(), labelmaps, tmp_path, SETTINGS, CPU, shipped_weights(BASE))


def test_too_few_maps(tmp_path: Path, labelmap: Path) -> None:
    shutil.copy(labelmap, tmp_path / "01.nii.gz")
    with raises(UsageError, "label-maps-too-few", tmp_path, "more than 2"):
        pretrain(localizer_task(), tmp_path, tmp_path / "out", SETTINGS, CPU)


def test_loss_prefers_the_truth_and_weighs_classes() -> None:
    targets = torch.randint(3, (2, 1, 4, 4, 4), generator=torch.Generator().manual_seed(0))
    logits = 8 * torch.nn.functional.one_hot(targets[:, 0], 3).movedim(-1, 1).float()
    loss = segmentation_loss(torch.ones(3))
    assert float(loss(logits, targets)) < 0.01
    assert float(loss(logits.roll(1, dims=1), targets)) > 5
    # A mistake costs more in a class that weighs more.
    wrong = torch.where(targets == 2, logits.roll(1, dims=1), logits)
    heavy = segmentation_loss(torch.tensor([1.0, 1.0, 6.0]))
    assert float(heavy(wrong, targets)) > float(loss(wrong, targets))


def test_validation_counts_present_classes_only() -> None:
    def make(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        targets = torch.zeros(2, 1, 4, 4, 4, dtype=torch.long)
        targets[0, :, :2] = 1
        return targets.float(), targets

    class Oracle(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.one_hot(x[:, 0].long(), 3).movedim(-1, 1).float()

    metrics = synthetic_dice(Oracle(), make, ("none", "one", "two"), 2, CPU)
    assert metrics == {"dice_one": 1.0, "dice_mean": 1.0}
