"""Tests of :mod:`hyps_bids.training.loop` and of its checkpoints and log."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn

from hyps_bids.errors import CannotCreateOutput, HypsError, NotFinished, UsageError
from hyps_bids.training.loop import Batch, LoopSettings, Objective, Outcome, Session, run
from tests.full_disk import full_disk
from tests.raising import raises

SETTINGS = LoopSettings(steps=8, warmup=2, checkpoint_every=3, evaluate_every=4, seed=7)
PATIENT = replace(SETTINGS, steps=20, evaluate_every=2, patience=2)


class Killed(Exception):
    """Stands for whatever ends a job early."""


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.InstanceNorm3d(4), nn.Conv3d(4, 2, 1))


def make_batch(generator: torch.Generator) -> Batch:
    x = torch.rand(2, 1, 6, 6, 6, generator=generator)
    return x, (x > 0.5).long()


def dies_at(call: int) -> Callable[[torch.Generator], Batch]:
    calls = iter(range(1, call))

    def batches(generator: torch.Generator) -> Batch:
        if next(calls, None) is None:
            raise Killed
        return make_batch(generator)

    return batches


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(logits, targets[:, 0])


def no_metrics(_: nn.Module) -> dict[str, float]:
    return {}


def train(
    folder: Path,
    settings: LoopSettings = SETTINGS,
    *,
    model: nn.Module | None = None,
    batches: Callable[[torch.Generator], Batch] = make_batch,
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = cross_entropy,
    validate: Callable[[nn.Module], dict[str, float]] = no_metrics,
    **options: Any,
) -> tuple[dict[str, torch.Tensor], Outcome]:
    """Train and return the final weights with the outcome."""
    model = model or make_model()
    objective = Objective(batches, loss, validate)
    outcome = run(model, objective, settings, folder, torch.device("cpu"), **options)
    assert not model.training
    return model.state_dict(), outcome


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("call", [2, 5, 8])
def test_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path: Path, call: int) -> None:
    whole, _ = train(tmp_path / "whole")
    with pytest.raises(Killed):
        train(tmp_path / "resumed", batches=dies_at(call))
    assert same(whole, train(tmp_path / "resumed")[0])
    # A finished run is not repeated.
    assert same(whole, train(tmp_path / "resumed", batches=dies_at(1))[0])


def test_other_seed_gives_other_weights(tmp_path: Path) -> None:
    assert not same(train(tmp_path / "a")[0], train(tmp_path / "b", replace(SETTINGS, seed=8))[0])


def test_loss_falls(tmp_path: Path) -> None:
    x, y = make_batch(torch.Generator())
    model = make_model()
    with torch.inference_mode():
        before = float(cross_entropy(model(x), y))
    settings = LoopSettings(steps=60, warmup=2, learning_rate=3e-2, ema=0.8)
    train(tmp_path, settings, model=model)
    with torch.inference_mode():
        assert float(cross_entropy(model(x), y)) < 0.7 * before


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_loss_that_is_not_finite_keeps_the_last_good_checkpoint(tmp_path: Path, bad: float) -> None:
    good, _ = train(tmp_path / "good", replace(SETTINGS, stop_at=3))
    factors = iter([1, 1, 1, 1, 1, bad])
    model, folder = make_model(), tmp_path / "bad"
    facts = (bad, "step 5", "step 3", "--learning-rate")
    with raises(HypsError, "training-diverged", *facts):
        train(folder, model=model, loss=lambda *pair: cross_entropy(*pair) * next(factors))
    assert same(good, model.state_dict())
    assert torch.load(folder / "checkpoint.pt", weights_only=True)["step"] == 3


def test_gradient_that_is_not_finite_never_reaches_the_weights(tmp_path: Path) -> None:
    def steep(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        # The value is finite, the slope infinite.
        return cross_entropy(logits, targets) + (logits - logits.detach()).sum().sqrt()

    model = make_model()
    with raises(HypsError, "training-diverged", "gradient", "step 0", "no checkpoint"):
        train(tmp_path, model=model, loss=steep)
    assert same(make_model().state_dict(), model.state_dict())


class Scores:
    """Metrics of successive validations, and the weights that were validated."""

    def __init__(self, *values: float) -> None:
        self.values = list(values)
        self.seen: list[torch.Tensor] = []

    def __call__(self, model: nn.Module) -> dict[str, float]:
        assert not model.training
        self.seen.append(model.state_dict()["2.weight"].clone())
        return {"dice": self.values[len(self.seen) - 1]}


def test_stops_early_and_returns_the_best_average(tmp_path: Path) -> None:
    scores = Scores(0.1, 0.5, 0.4, 0.45, 0.9)
    weights, outcome = train(tmp_path, PATIENT, validate=scores)
    assert outcome == Outcome({"dice": 0.5}, step=4, steps=8)
    assert torch.equal(weights["2.weight"], scores.seen[1])
    # Nothing is left to do for a second run.
    again, repeated = train(tmp_path, PATIENT, validate=Scores())
    assert repeated == outcome
    assert same(again, weights)


def test_patience_survives_a_kill(tmp_path: Path) -> None:
    settings = replace(PATIENT, checkpoint_every=1)
    with pytest.raises(Killed):
        train(tmp_path, settings, batches=dies_at(8), validate=Scores(0.1, 0.5, 0.4))
    _, outcome = train(tmp_path, settings, validate=Scores(0.3))
    assert outcome == Outcome({"dice": 0.5}, step=4, steps=8)
    # Every step is logged once.
    assert pd.read_csv(tmp_path / "log.csv")["step"].to_list() == list(range(1, 9))


def test_stop_at_ends_on_the_rates_of_the_whole(tmp_path: Path) -> None:
    settings = replace(SETTINGS, stop_at=3)
    assert settings.rate(2) == SETTINGS.rate(2)
    assert train(tmp_path, settings)[1].steps == 3


def test_adam_is_not_adamw(tmp_path: Path) -> None:
    decayed = replace(SETTINGS, weight_decay=0.5)
    adamw, _ = train(tmp_path / "adamw", decayed)
    adam, _ = train(tmp_path / "adam", replace(decayed, optimizer="adam"))
    assert not torch.allclose(adamw["2.weight"], adam["2.weight"])
    with pytest.raises(ValueError, match="sgd"):
        replace(SETTINGS, optimizer="sgd")


def test_head_has_a_learning_rate_of_its_own(tmp_path: Path) -> None:
    def moved(settings: LoopSettings, folder: Path) -> dict[str, float]:
        model = nn.Sequential()
        model.add_module("body", nn.Conv3d(1, 4, 3, padding=1))
        model.add_module("out", nn.Conv3d(4, 2, 1))
        before = {name: w.clone() for name, w in model.state_dict().items()}
        after, _ = train(folder, settings, model=model)
        return {name: float((w - before[name]).abs().max()) for name, w in after.items()}

    # Adam's first step is as long as the learning rate, whatever the gradient.
    once = replace(SETTINGS, steps=1, warmup=0, weight_decay=0.0, ema=0.0)
    same_rate = moved(once, tmp_path / "same")
    faster = moved(replace(once, head_learning_rate=1e-2), tmp_path / "faster")
    assert same_rate["out.weight"] == pytest.approx(1e-3, rel=1e-2)
    assert faster["out.weight"] == pytest.approx(1e-2, rel=1e-2)
    assert faster["body.weight"] == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.parametrize(
    ("settings", "data", "named"),
    [
        (replace(SETTINGS, learning_rate=1e-2), "a", "settings (learning_rate)"),
        (SETTINGS, "b", "data"),
    ],
)
def test_checkpoint_of_another_run_is_refused(
    tmp_path: Path, settings: LoopSettings, data: str, named: str
) -> None:
    train(tmp_path, identity={"data": "a"})
    path = tmp_path / "checkpoint.pt"
    before = path.read_bytes()
    with raises(UsageError, "checkpoint-other-run", path, f"other {named};"):
        train(tmp_path, settings, identity={"data": data})
    assert path.read_bytes() == before


def test_full_disk_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    whole, _ = train(tmp_path / "whole")
    folder = tmp_path / "full"
    checkpoint = folder / "checkpoint.pt"
    with pytest.raises(Killed):
        train(folder, batches=dies_at(5))
    with full_disk(), raises(CannotCreateOutput, "not-writable", checkpoint, "previous checkpoint"):
        train(folder)
    assert torch.load(checkpoint, weights_only=True)["step"] == 3
    assert {path.name for path in folder.iterdir()} == {"checkpoint.pt", "log.csv"}
    # With room again, the run continues.
    assert same(whole, train(folder)[0])


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with raises(CannotCreateOutput, "not-writable", tmp_path / "file" / "run"):
        train(tmp_path / "file" / "run")


def test_frozen_parameters_stay(tmp_path: Path) -> None:
    model = make_model()
    model[0].requires_grad_(False)
    before, after = make_model().state_dict(), train(tmp_path, model=model)[0]
    assert torch.equal(before["0.weight"], after["0.weight"])
    assert not torch.equal(before["2.weight"], after["2.weight"])


def test_log_and_metrics(tmp_path: Path) -> None:
    _, outcome = train(tmp_path, validate=Scores(0.25, 0.5))
    assert outcome.metrics == {"dice": 0.5}
    table = pd.read_csv(tmp_path / "log.csv").dropna(subset="metric")
    assert dict(zip(table["step"], table["value"], strict=True)) == {4: 0.25, 8: 0.5}


def test_time_that_is_over_leaves_a_checkpoint_from_which_the_run_goes_on(tmp_path: Path) -> None:
    whole, _ = train(tmp_path / "whole")
    hurried = Session("one", 2, deadline=time.monotonic() + 0.35)

    def slow(generator: torch.Generator) -> Batch:
        time.sleep(0.05)
        return make_batch(generator)

    with raises(NotFinished, "time-over", tmp_path / "parts", "of 8"):
        train(tmp_path / "parts", batches=slow, session=hurried, identity={"batch size": 2})
    assert time.monotonic() < hurried.deadline
    taken = torch.load(tmp_path / "parts" / "checkpoint.pt", weights_only=True)["step"]
    assert 0 < taken < 8
    # On another device, with another batch size, it is still the same run.
    session = Session("two", 16)
    weights, outcome = train(tmp_path / "parts", session=session, identity={"batch size": 16})
    assert same(whole, weights)
    assert outcome.parts == [
        {"hardware": "one", "batch_size": 2, "steps": taken},
        {"hardware": "two", "batch_size": 16, "steps": 8 - taken},
    ]


def test_run_that_is_killed_by_force_ends_where_an_uninterrupted_one_does(tmp_path: Path) -> None:
    whole, _ = train(tmp_path / "whole")

    def kill(generator: torch.Generator) -> Batch:
        if (tmp_path / "killed" / "checkpoint.pt").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        return make_batch(generator)

    child = multiprocessing.get_context("fork").Process(
        target=train, args=(tmp_path / "killed",), kwargs={"batches": kill}
    )
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert same(whole, train(tmp_path / "killed")[0])
