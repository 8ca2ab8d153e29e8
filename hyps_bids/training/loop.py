"""One training loop for all networks: resumable, seeded by step, averaged weights."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

__all__ = ["LoopSettings", "fit"]

Batch = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class LoopSettings:
    """How to train.

    Attributes
    ----------
    steps : int
        Optimiser steps in all; a resumed run counts those already done.
    learning_rate : float
        AdamW's, at the start of the polynomial decay.
    warmup : int
        Steps over which the learning rate rises from zero.
    power : float
        Exponent of the polynomial decay.
    weight_decay : float
        AdamW's.
    ema : float
        Decay of the exponential moving average of the weights.
    evaluate_every, checkpoint_every : int
        Steps between validations and between checkpoints.
    seed : int
        Together with the step number it seeds each batch, so that a resumed run sees what an
        uninterrupted one would have seen.
    """

    steps: int
    learning_rate: float = 1e-3
    warmup: int = 50
    power: float = 0.9
    weight_decay: float = 1e-4
    ema: float = 0.995
    evaluate_every: int = 200
    checkpoint_every: int = 50
    seed: int = 0

    def rate(self, step: int) -> float:
        """Learning rate of a step.

        Examples
        --------
        >>> LoopSettings(steps=100, warmup=10, learning_rate=1.0, power=1.0).rate(4)
        0.48
        """
        rise = min(1.0, (step + 1) / max(1, self.warmup))
        return self.learning_rate * rise * (1 - step / self.steps) ** self.power


def fit(
    model: nn.Module,
    batches: Callable[[torch.Generator], Batch],
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    validate: Callable[[nn.Module], dict[str, float]],
    settings: LoopSettings,
    folder: Path,
    device: torch.device,
) -> dict[str, float]:
    """Train the parameters of `model` that require gradients, in place.

    The folder receives ``checkpoint.pt`` (weights and optimiser, resumed from when it is there)
    and ``log.csv``. At the end the model holds the averaged weights.

    Parameters
    ----------
    model : torch.nn.Module
        Network, already on `device`.
    batches : callable
        Makes a batch ``(inputs, targets)`` from a seeded generator on `device`.
    loss : callable
        ``loss(logits, targets)``.
    validate : callable
        Figures of a model, by name.
    settings : LoopSettings
        How to train.
    folder : Path
        Where checkpoints and the log go; made if missing.
    device : torch.device
        Where to train.

    Returns
    -------
    dict of str to float
        The figures of the averaged weights at the end.
    """
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / "checkpoint.pt"
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(
        trained.values(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    average = {name: p.detach().clone() for name, p in trained.items()}
    start = 0
    if checkpoint.is_file():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        with torch.no_grad():
            for name, parameter in trained.items():
                parameter.copy_(state["weights"][name])
        average = state["average"]
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
    log = _Log(folder / "log.csv", start)
    use_bf16 = device.type == "cuda"
    generator = torch.Generator(device)
    model.train()
    progress = tqdm(range(start, settings.steps), initial=start, total=settings.steps, unit="step")
    for step in progress:
        # the CPU's generator keeps only the lower 32 bits of a seed
        generator.manual_seed(settings.seed * 1_000_003 + step)
        inputs, targets = batches(generator)
        for group in optimizer.param_groups:
            group["lr"] = settings.rate(step)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=use_bf16):
            logits = model(inputs)
        value = loss(logits.float(), targets)
        if not torch.isfinite(value):
            raise FloatingPointError(
                f"loss is {value.item()} at step {step}: lower --learning-rate"
            )
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(trained.values(), 1.0)
        optimizer.step()
        done = step + 1
        # a short memory at first, so that the start weighs nothing in the end
        decay = min(settings.ema, done / (done + 10))
        with torch.no_grad():
            for name, parameter in trained.items():
                average[name].lerp_(parameter, 1 - decay)
        log.add(done, value.item(), settings.rate(step))
        progress.set_postfix(loss=f"{log.mean_loss:.3f}", refresh=False)
        last = done == settings.steps
        if done % settings.evaluate_every == 0 and not last:
            log.write(_with_average(model, trained, average, validate))
        if done % settings.checkpoint_every == 0 or last:
            log.write({})
            partial = checkpoint.with_suffix(".partial")
            torch.save(
                {
                    "step": done,
                    "weights": {name: p.detach() for name, p in trained.items()},
                    "average": average,
                    "optimizer": optimizer.state_dict(),
                    "settings": asdict(settings),
                },
                partial,
            )
            partial.replace(checkpoint)
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(average[name])
    model.eval()
    figures = validate(model)
    log.write(figures)
    return figures


def _with_average(
    model: nn.Module,
    trained: dict[str, nn.Parameter],
    average: dict[str, torch.Tensor],
    validate: Callable[[nn.Module], dict[str, float]],
) -> dict[str, float]:
    current = {name: p.detach().clone() for name, p in trained.items()}
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(average[name])
        figures = validate(model.eval())
        for name, parameter in trained.items():
            parameter.copy_(current[name])
    model.train()
    return figures


class _Log:
    """CSV rows ``step, seconds, loss, learning_rate, metric, value``."""

    def __init__(self, path: Path, start: int) -> None:
        self.path = path
        self.losses: list[float] = []
        self.step = start
        self.rate = 0.0
        self.began = time.monotonic()
        if start == 0:
            self._append("step", "seconds", "loss", "learning_rate", "metric", "value", mode="w")

    @property
    def mean_loss(self) -> float:
        recent = self.losses[-50:]
        return sum(recent) / max(1, len(recent))

    def add(self, step: int, loss: float, rate: float) -> None:
        self.step, self.rate = step, rate
        self.losses.append(loss)

    def write(self, figures: dict[str, float]) -> None:
        seconds = round(time.monotonic() - self.began, 1)
        head = (self.step, seconds, f"{self.mean_loss:.4f}", f"{self.rate:.2e}")
        rows = [(metric, f"{value:.4f}") for metric, value in figures.items()] or [("", "")]
        for metric, value in rows:
            self._append(*head, metric, value)

    def _append(self, *row: object, mode: str = "a") -> None:
        with open(self.path, mode, newline="") as stream:
            csv.writer(stream).writerow(row)
