"""Tests of :mod:`hyps_bids.training.loop`."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from hyps_bids.training.loop import Batch, LoopSettings, fit

CPU = torch.device("cpu")
SETTINGS = LoopSettings(steps=8, warmup=2, checkpoint_every=3, evaluate_every=4, seed=7)


class Killed(Exception):
    """Stands for whatever ends a job early."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """For small tensors threads cost more than they bring."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.InstanceNorm3d(4), nn.Conv3d(4, 2, 1))


def make_batch(generator: torch.Generator) -> Batch:
    x = torch.rand(2, 1, 6, 6, 6, generator=generator)
    return x, (x > 0.5).long()


def loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(logits, targets[:, 0])


def no_figures(_: nn.Module) -> dict[str, float]:
    return {}


def train(folder: Path, settings: LoopSettings = SETTINGS, die_at: int | None = None) -> nn.Module:
    calls = 0

    def batches(generator: torch.Generator) -> Batch:
        nonlocal calls
        calls += 1
        if calls == die_at:
            raise Killed
        return make_batch(generator)

    model = make_model()
    fit(model, batches, loss, no_figures, settings, folder, CPU)
    return model


@pytest.mark.parametrize("die_at", [2, 5, 8])
def test_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path: Path, die_at: int) -> None:
    whole = train(tmp_path / "whole").state_dict()
    with pytest.raises(Killed):
        train(tmp_path / "resumed", die_at=die_at)
    resumed = train(tmp_path / "resumed").state_dict()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_finished_run_is_not_repeated(tmp_path: Path) -> None:
    first = train(tmp_path).state_dict()
    again = train(tmp_path, die_at=1).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_other_seed_gives_other_weights(tmp_path: Path) -> None:
    first = train(tmp_path / "a").state_dict()
    other = train(tmp_path / "b", LoopSettings(steps=8, warmup=2, seed=8)).state_dict()
    assert not torch.equal(first["2.weight"], other["2.weight"])


def test_loss_falls(tmp_path: Path) -> None:
    x, y = make_batch(torch.Generator())
    with torch.inference_mode():
        before = float(loss(make_model()(x), y))
    settings = LoopSettings(steps=60, warmup=2, learning_rate=3e-2, ema=0.8)
    model = train(tmp_path, settings)
    with torch.inference_mode():
        after = float(loss(model(x), y))
    assert after < 0.7 * before


def test_nan_loss_raises_and_names_the_step(tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match=r"nan at step 0.*--learning-rate"):
        fit(
            make_model(),
            make_batch,
            lambda logits, _: logits.sum() * torch.nan,
            no_figures,
            SETTINGS,
            tmp_path,
            CPU,
        )


def test_frozen_parameters_stay(tmp_path: Path) -> None:
    model = make_model()
    model[0].requires_grad_(False)
    before = {name: p.clone() for name, p in model.named_parameters()}
    fit(model, make_batch, loss, no_figures, SETTINGS, tmp_path, CPU)
    after = dict(model.named_parameters())
    assert torch.equal(before["0.weight"], after["0.weight"])
    assert not torch.equal(before["2.weight"], after["2.weight"])


def test_log_and_figures(tmp_path: Path) -> None:
    seen_in_training_mode = []

    def validate(model: nn.Module) -> dict[str, float]:
        seen_in_training_mode.append(model.training)
        return {"dice": 0.25}

    model = make_model()
    assert fit(model, make_batch, loss, validate, SETTINGS, tmp_path, CPU) == {"dice": 0.25}
    assert seen_in_training_mode == [False, False]
    assert not model.training
    with open(tmp_path / "log.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    measured = {int(row["step"]): float(row["value"]) for row in rows if row["metric"] == "dice"}
    assert measured == {4: 0.25, 8: 0.25}
