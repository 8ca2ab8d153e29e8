"""Tests of :mod:`hyps_bids.training.loop`."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from hyps_bids.errors import CannotCreateOutput, HypsError, UsageError
from hyps_bids.training.loop import Batch, LoopSettings, Outcome, fit, run

CPU = torch.device("cpu")
SETTINGS = LoopSettings(steps=8, warmup=2, checkpoint_every=3, evaluate_every=4, seed=7)


class Killed(Exception):
    """Stands for whatever ends a job early."""


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


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_loss_that_is_not_finite_keeps_the_last_good_checkpoint(tmp_path: Path, bad: float) -> None:
    good = train(tmp_path / "good", replace(SETTINGS, stop_at=3)).state_dict()
    calls = 0

    def spoilt(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return loss(logits, targets) * (bad if calls == 6 else 1)

    model = make_model()
    with pytest.raises(HypsError, match=rf"loss is {bad} at step 5; the weights of step 3 .*--lea"):
        fit(model, make_batch, spoilt, no_figures, SETTINGS, tmp_path / "bad", CPU)
    state = model.state_dict()
    assert all(torch.equal(good[name], state[name]) for name in good)
    kept = torch.load(tmp_path / "bad/checkpoint.pt", weights_only=True)
    assert kept["step"] == 3


def test_gradient_that_is_not_finite_never_reaches_the_weights(tmp_path: Path) -> None:
    def spoilt(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        # finite value, infinite slope
        return loss(logits, targets) + (logits - logits.detach()).sum().sqrt()

    model = make_model()
    before = {name: p.clone() for name, p in model.state_dict().items()}
    with pytest.raises(HypsError, match="gradient is not finite at step 0; there is no checkpoint"):
        fit(model, make_batch, spoilt, no_figures, SETTINGS, tmp_path, CPU)
    assert all(torch.equal(before[name], p) for name, p in model.state_dict().items())


class Scores:
    """Figures of successive validations, and the weights they were asked about."""

    def __init__(self, *values: float) -> None:
        self.values = list(values)
        self.seen: list[torch.Tensor] = []

    def __call__(self, model: nn.Module) -> dict[str, float]:
        self.seen.append(model.state_dict()["2.weight"].clone())
        return {"dice": self.values[len(self.seen) - 1]}


def test_stops_early_and_returns_the_best_average(tmp_path: Path) -> None:
    settings = replace(SETTINGS, steps=20, evaluate_every=2, patience=2)
    scores = Scores(0.1, 0.5, 0.4, 0.45, 0.9)
    model = make_model()
    outcome = run(model, make_batch, loss, scores, settings, tmp_path, CPU)
    assert outcome == Outcome({"dice": 0.5}, step=4, steps=8)
    assert torch.equal(model.state_dict()["2.weight"], scores.seen[1])
    # nothing is left to do
    again = make_model()
    scores = Scores()
    assert run(again, make_batch, loss, scores, settings, tmp_path, CPU) == outcome
    assert torch.equal(again.state_dict()["2.weight"], model.state_dict()["2.weight"])


def test_patience_survives_a_kill(tmp_path: Path) -> None:
    settings = replace(SETTINGS, steps=20, evaluate_every=2, patience=2, checkpoint_every=1)
    calls = 0

    def dies(generator: torch.Generator) -> Batch:
        nonlocal calls
        calls += 1
        if calls == 8:
            raise Killed
        return make_batch(generator)

    with pytest.raises(Killed):
        run(make_model(), dies, loss, Scores(0.1, 0.5, 0.4), settings, tmp_path, CPU)
    outcome = run(make_model(), make_batch, loss, Scores(0.3), settings, tmp_path, CPU)
    assert outcome == Outcome({"dice": 0.5}, step=4, steps=8)
    with open(tmp_path / "log.csv", newline="") as stream:
        steps = [int(row["step"]) for row in csv.DictReader(stream)]
    # no step twice, none forgotten
    assert steps == list(range(1, 9))


def test_stop_at_ends_on_the_rates_of_the_whole(tmp_path: Path) -> None:
    settings = replace(SETTINGS, stop_at=3)
    assert settings.rate(2) == SETTINGS.rate(2)
    outcome = run(make_model(), make_batch, loss, no_figures, settings, tmp_path, CPU)
    assert outcome.steps == 3


def test_adam_is_not_adamw(tmp_path: Path) -> None:
    # decoupled decay alone would shrink a weight without a gradient
    decayed = replace(SETTINGS, weight_decay=0.5)
    adamw = train(tmp_path / "adamw", decayed).state_dict()
    adam = train(tmp_path / "adam", replace(decayed, optimizer="adam")).state_dict()
    assert not torch.allclose(adamw["2.weight"], adam["2.weight"])
    with pytest.raises(ValueError, match="choose from"):
        replace(SETTINGS, optimizer="sgd")


def test_head_has_a_learning_rate_of_its_own(tmp_path: Path) -> None:
    def moved(settings: LoopSettings, folder: Path) -> dict[str, float]:
        model = nn.Sequential()
        model.add_module("body", nn.Conv3d(1, 4, 3, padding=1))
        model.add_module("out", nn.Conv3d(4, 2, 1))
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        # Adam's first step is as long as the learning rate, whatever the gradient
        fit(model, make_batch, loss, no_figures, settings, folder, CPU)
        return {n: float((p - before[n]).detach().abs().max()) for n, p in model.named_parameters()}

    once = replace(SETTINGS, steps=1, warmup=0, weight_decay=0.0, ema=0.0)
    same = moved(once, tmp_path / "same")
    faster = moved(replace(once, head_learning_rate=1e-2), tmp_path / "faster")
    assert same["out.weight"] == pytest.approx(1e-3, rel=1e-2)
    assert faster["out.weight"] == pytest.approx(1e-2, rel=1e-2)
    assert faster["body.weight"] == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.parametrize(
    ("settings", "identity", "named"),
    [
        (replace(SETTINGS, learning_rate=1e-2), {"data": "a"}, r"settings \(learning_rate\)"),
        (SETTINGS, {"data": "b"}, "data"),
    ],
)
def test_checkpoint_of_another_run_is_refused(
    tmp_path: Path, settings: LoopSettings, identity: dict[str, str], named: str
) -> None:
    first = run(
        make_model(), make_batch, loss, no_figures, SETTINGS, tmp_path, CPU, identity={"data": "a"}
    )
    assert first.steps == 8
    before = (tmp_path / "checkpoint.pt").read_bytes()
    with pytest.raises(UsageError, match=f"checkpoint of other {named};"):
        run(make_model(), make_batch, loss, no_figures, settings, tmp_path, CPU, identity=identity)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


def test_full_disk_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    whole = train(tmp_path / "whole").state_dict()
    folder = tmp_path / "full"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def filling(generator: torch.Generator) -> Batch:
        if (folder / "checkpoint.pt").is_file():
            # as if the disk were full; the kernel refuses to write beyond
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        return make_batch(generator)

    try:
        with pytest.raises(CannotCreateOutput, match=r"step 6 cannot be written.*step 3 is"):
            fit(make_model(), filling, loss, no_figures, SETTINGS, folder, CPU)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert torch.load(folder / "checkpoint.pt", weights_only=True)["step"] == 3
    assert not (folder / "checkpoint.partial").exists()
    # with room again, it goes on
    resumed = train(folder).state_dict()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CannotCreateOutput, match="cannot be made"):
        train(tmp_path / "file" / "run")


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
