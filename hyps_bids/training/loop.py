"""One training loop for all networks: resumable, seeded by step, averaged weights."""

from __future__ import annotations

import csv
import json
import logging
import math
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from hyps_bids.errors import CannotCreateOutput, HypsError, UsageError
from hyps_bids.training.distributed import Processes

__all__ = ["HEAD", "Batch", "LoopSettings", "Outcome", "differences", "fit", "run"]

_LOG = logging.getLogger("hyps_bids")

#: prefix of the parameters of a SwinUNETR's output head
HEAD = "out."

Batch = tuple[torch.Tensor, torch.Tensor]
Tensors = dict[str, torch.Tensor]

_OPTIMIZERS: dict[str, type[torch.optim.Adam]] = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
}


@dataclass(frozen=True)
class LoopSettings:
    """How to train.

    Attributes
    ----------
    steps : int
        Optimizer steps in all; a resumed run counts those already done.
    learning_rate : float
        The optimizer's, at the start of the polynomial decay.
    head_learning_rate : float or None
        That of the output head, which is new while the rest is pre-trained: classes that start
        as copies of one class part ways sooner. As the rest if None.
    warmup : int
        Steps over which the learning rate rises from zero.
    power : float
        Exponent of the polynomial decay.
    weight_decay : float
        The optimizer's.
    ema : float
        Decay of the exponential moving average of the weights.
    evaluate_every, checkpoint_every : int
        Steps between validations and between checkpoints.
    seed : int
        Together with the step number it seeds each batch, so that a resumed run sees what an
        uninterrupted one would have seen.
    optimizer : {"adamw", "adam"}
        Which optimizer.
    patience : int or None
        End after so many validations without a better mean of the figures, and return the best
        averaged weights; None trains to the end and returns the last.
    stop_at : int or None
        End after this step, on the learning rates of a run of `steps`.
    """

    steps: int
    learning_rate: float = 1e-3
    head_learning_rate: float | None = None
    warmup: int = 50
    power: float = 0.9
    weight_decay: float = 1e-4
    ema: float = 0.995
    evaluate_every: int = 200
    checkpoint_every: int = 50
    seed: int = 0
    optimizer: str = "adamw"
    patience: int | None = None
    stop_at: int | None = None

    def __post_init__(self) -> None:
        if self.optimizer not in _OPTIMIZERS:
            raise ValueError(f"optimizer {self.optimizer!r}: choose from {sorted(_OPTIMIZERS)}")

    @property
    def last_step(self) -> int:
        """Number of steps to take."""
        return min(self.steps, self.stop_at or self.steps)

    def rate(self, step: int) -> float:
        """Learning rate of a step.

        Examples
        --------
        >>> LoopSettings(steps=100, warmup=10, learning_rate=1.0, power=1.0).rate(4)
        0.48
        """
        rise = min(1.0, (step + 1) / max(1, self.warmup))
        return self.learning_rate * rise * (1 - step / self.steps) ** self.power


@dataclass(frozen=True)
class Outcome:
    """What a training run ended with.

    Attributes
    ----------
    figures : dict of str to float
        Figures of the weights that the model holds now.
    step : int
        Step after which they were that; the last, or with patience the best.
    steps : int
        Steps taken.
    """

    figures: dict[str, float]
    step: int
    steps: int


def fit(
    model: nn.Module,
    batches: Callable[[torch.Generator], Batch],
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    validate: Callable[[nn.Module], dict[str, float]],
    settings: LoopSettings,
    folder: Path,
    device: torch.device,
) -> dict[str, float]:
    """As :func:`run`, but return only the figures."""
    return run(model, batches, loss, validate, settings, folder, device).figures


def run(
    model: nn.Module,
    batches: Callable[[torch.Generator], Batch],
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    validate: Callable[[nn.Module], dict[str, float]],
    settings: LoopSettings,
    folder: Path,
    device: torch.device,
    *,
    identity: Mapping[str, Any] | None = None,
    processes: Processes | None = None,
    title: str | None = None,
) -> Outcome:
    """Train the parameters of `model` that require gradients, in place.

    The folder receives ``checkpoint.pt`` (weights and optimizer, resumed from when it is there)
    and ``log.csv``. At the end the model holds the averaged weights.

    Parameters
    ----------
    model : torch.nn.Module
        Network, already on `device`.
    batches : callable
        Makes a batch ``(inputs, targets)`` from a seeded generator on `device`.
    loss : callable
        ``loss(logits, targets)``; a mean over the samples of a batch if several processes share it.
    validate : callable
        Figures of a model, by name; higher is better if `settings` has patience.
    settings : LoopSettings
        How to train.
    folder : Path
        Where checkpoints and the log go; made if missing, the same for all processes.
    device : torch.device
        Where to train.
    identity : mapping, optional
        What else the result depends on (data, network), JSON; recorded in the checkpoint.
    processes : Processes, optional
        Those that share each batch; this one alone if None.
    title : str, optional
        Name on the progress bar.

    Returns
    -------
    Outcome
        Figures and step of the weights that the model ends with.

    Raises
    ------
    UsageError
        If the folder holds a checkpoint of other data or settings.
    HypsError
        If the loss or a gradient is not finite; the model then holds the averaged weights of the
        last checkpoint, which stays.
    CannotCreateOutput
        If a checkpoint cannot be written; the one before stays.
    """
    processes = processes or Processes()
    _make(folder)
    checkpoint = folder / "checkpoint.pt"
    # as JSON, to compare with what was read
    known = json.loads(json.dumps({"settings": asdict(settings)} | dict(identity or {})))
    state = _State(model, settings)
    if checkpoint.is_file():
        state.load(checkpoint, known, device)
    if processes.from_first(state.step) != state.step:
        raise UsageError(f"{folder}: all processes must see the same folder; use a shared one")
    log = _Log(folder / "log.csv" if processes.is_main_process else None, state.step)
    generator = torch.Generator(device)
    model.train()
    bar = _bar(settings, state.step, title, processes)
    while state.step < settings.last_step and not state.is_stale:
        step = state.step
        # the CPU's generator keeps only the lower 32 bits of a seed
        seed = settings.seed * 1_000_003 + step
        generator.manual_seed(seed)
        # for dropout: other numbers in each process
        torch.manual_seed(seed + 7919 * processes.rank)
        batch = batches(generator)
        inputs, targets = processes.share(batch)
        for group in state.optimizer.param_groups:
            group["lr"] = settings.rate(step) * group["factor"]
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
            logits = model(inputs)
        value = loss(logits.float(), targets) * (len(inputs) / len(batch[0]))
        state.optimizer.zero_grad(set_to_none=True)
        value.backward()
        processes.sum_gradients(state.trained.values())
        norm = nn.utils.clip_grad_norm_(state.trained.values(), 1.0)
        total = processes.sum(value)
        if not torch.isfinite(total + norm):
            bar.close()
            raise _diverged(state, checkpoint, float(total), device)
        state.optimizer.step()
        state.advance()
        log.add(state.step, float(total), settings.rate(step))
        bar.set_postfix(loss=f"{log.mean_loss:.3f}", refresh=False)
        bar.update()
        last = state.step == settings.last_step
        if state.step % settings.evaluate_every == 0 or last:
            figures = processes.from_first(
                state.evaluate(validate) if processes.is_main_process else {}
            )
            state.note(figures)
            log.write(figures)
        if processes.is_main_process and (
            state.step % settings.checkpoint_every == 0 or last or state.is_stale
        ):
            if state.step % settings.evaluate_every and not last:
                log.write({})
            _save(checkpoint, state.to_dict() | {"identity": known}, state.saved)
            state.saved = state.step
    bar.close()
    outcome = state.finish()
    model.eval()
    return outcome


@dataclass
class _State:
    """All that a run must remember."""

    model: nn.Module
    settings: LoopSettings
    step: int = 0
    figures: dict[str, float] = field(default_factory=dict)
    #: of the best validation: score, step, figures and averaged weights
    best: dict[str, Any] | None = None
    since_best: int = 0
    #: step of the checkpoint on disk
    saved: int | None = None

    def __post_init__(self) -> None:
        self.trained = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        self.average = {name: p.detach().clone() for name, p in self.trained.items()}
        rate = self.settings.learning_rate
        factor = (self.settings.head_learning_rate or rate) / rate
        head = {name: p for name, p in self.trained.items() if name.startswith(HEAD)}
        rest = [p for name, p in self.trained.items() if name not in head]
        self.optimizer = _OPTIMIZERS[self.settings.optimizer](
            [
                {"params": rest, "factor": 1.0},
                {"params": [*head.values()], "factor": factor},
            ],
            lr=self.settings.learning_rate,
            weight_decay=self.settings.weight_decay,
        )

    @property
    def is_stale(self) -> bool:
        """Whether it is time to stop early."""
        patience = self.settings.patience
        return patience is not None and self.since_best >= patience

    def advance(self) -> None:
        """Count a step and move the average."""
        self.step += 1
        # a short memory at first, so that the start weighs nothing in the end
        decay = min(self.settings.ema, self.step / (self.step + 10))
        with torch.no_grad():
            for name, parameter in self.trained.items():
                self.average[name].lerp_(parameter, 1 - decay)

    def evaluate(self, validate: Callable[[nn.Module], dict[str, float]]) -> dict[str, float]:
        """Compute the figures of the averaged weights."""
        current = _copy(self.trained)
        self.put(self.average)
        figures = validate(self.model.eval())
        self.put(current)
        self.model.train()
        return figures

    def note(self, figures: dict[str, float]) -> None:
        """Remember figures, and the averaged weights if they are the best so far."""
        self.figures = figures
        if self.settings.patience is None or not figures:
            return
        score = math.fsum(figures.values()) / len(figures)
        if self.best is None or score > self.best["score"]:
            self.best = {
                "score": score,
                "step": self.step,
                "figures": figures,
                "average": _copy(self.average),
            }
            self.since_best = 0
        else:
            self.since_best += 1

    def put(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Give the model these weights."""
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(weights[name])

    def finish(self) -> Outcome:
        """Leave the weights to be returned in the model."""
        if self.best is not None:
            self.put(self.best["average"])
            return Outcome(self.best["figures"], self.best["step"], self.step)
        self.put(self.average)
        return Outcome(self.figures, self.step, self.step)

    def to_dict(self) -> dict[str, Any]:
        """Return what a checkpoint holds."""
        return {
            "step": self.step,
            "weights": {name: p.detach() for name, p in self.trained.items()},
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "figures": self.figures,
            "best": self.best,
            "since_best": self.since_best,
        }

    def load(self, path: Path, known: dict[str, Any], device: torch.device) -> None:
        """Go on from a checkpoint, if it belongs to this run."""
        content = torch.load(path, map_location=device, weights_only=True)
        before = content.get("identity", {"settings": content.get("settings")})
        if before != known:
            raise UsageError(
                f"{path}: a checkpoint of other {differences(before, known)}; give another "
                "folder, or remove this one to start anew"
            )
        self.put(content["weights"])
        self.average = content["average"]
        self.optimizer.load_state_dict(content["optimizer"])
        self.step = self.saved = content["step"]
        self.figures, self.best = content["figures"], content["best"]
        self.since_best = content["since_best"]


def _copy(weights: Mapping[str, torch.Tensor]) -> Tensors:
    return {name: w.detach().clone() for name, w in weights.items()}


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Name what two identities of runs differ in.

    Parameters
    ----------
    before, now : dict
        What a result depends on, by name; settings by name below.

    Returns
    -------
    str
        The names.

    Examples
    --------
    >>> differences({"settings": {"steps": 1, "seed": 0}}, {"settings": {"steps": 2, "seed": 0}})
    'settings (steps)'
    >>> differences({"data": "a"}, {"data": "b"})
    'data'
    """
    names = []
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            keys = [k for k in sorted(old.keys() | new.keys()) if old.get(k) != new.get(k)]
            names.append(f"{name} ({', '.join(keys)})")
        else:
            names.append(name)
    return ", ".join(names)


def _diverged(state: _State, checkpoint: Path, value: float, device: torch.device) -> HypsError:
    """Put the last good weights back, and word the error."""
    kept = "there is no checkpoint yet"
    if checkpoint.is_file():
        content = torch.load(checkpoint, map_location=device, weights_only=True)
        state.put(content["average"])
        kept = f"the weights of step {content['step']} are kept in {checkpoint}"
    what = "a gradient is not finite" if math.isfinite(value) else f"loss is {value}"
    return HypsError(
        f"training stopped: {what} at step {state.step}; {kept}; lower --learning-rate, or look "
        "for images with extreme intensities"
    )


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CannotCreateOutput(f"{folder}: cannot be made ({error.strerror})") from error


def _save(path: Path, content: dict[str, Any], before: int | None) -> None:
    """Replace a checkpoint; whatever goes wrong, the one before stays whole."""
    partial = path.with_suffix(".partial")
    try:
        with open(partial, "wb") as stream:
            torch.save(content, stream)
        partial.replace(path)
    # torch's archive writer turns a failed write into a RuntimeError
    except (OSError, RuntimeError) as error:
        partial.unlink(missing_ok=True)
        reason = error.strerror if isinstance(error, OSError) else "is the disk full?"
        kept = "" if before is None else f"; that of step {before} is still there"
        raise CannotCreateOutput(
            f"{path}: the checkpoint of step {content['step']} cannot be written ({reason}){kept}. "
            "Make room and run the same command again to go on"
        ) from error


def _bar(settings: LoopSettings, start: int, title: str | None, processes: Processes) -> tqdm:
    return tqdm(
        desc=title,
        initial=start,
        total=settings.last_step,
        unit="step",
        # a line now and then in the log of a batch job
        mininterval=0.5 if sys.stderr.isatty() else 30,
        disable=not processes.is_main_process,
    )


class _Log:
    """CSV rows ``step, seconds, loss, learning_rate, metric, value``."""

    def __init__(self, path: Path | None, start: int) -> None:
        self.path = path
        self.losses: list[float] = []
        self.step = start
        self.rate = 0.0
        seconds = 0.0
        if path is not None:
            kept = _rows_until(path, start)
            seconds = float(kept[-1][1]) if len(kept) > 1 else 0.0
            self._write(kept, "w")
        self.began = time.monotonic() - seconds

    @property
    def mean_loss(self) -> float:
        recent = self.losses[-50:]
        return sum(recent) / max(1, len(recent))

    def add(self, step: int, loss: float, rate: float) -> None:
        self.step, self.rate = step, rate
        self.losses.append(loss)

    def write(self, figures: Mapping[str, float]) -> None:
        seconds = f"{time.monotonic() - self.began:.1f}"
        head = [str(self.step), seconds, f"{self.mean_loss:.4f}", f"{self.rate:.2e}"]
        rows = [[metric, f"{value:.4f}"] for metric, value in figures.items()] or [["", ""]]
        self._write([head + row for row in rows], "a")

    def _write(self, rows: list[list[str]], mode: str) -> None:
        if self.path is None:
            return
        try:
            with open(self.path, mode, newline="") as stream:
                csv.writer(stream).writerows(rows)
        except OSError as error:
            raise CannotCreateOutput(
                f"{self.path}: cannot be written ({error.strerror})"
            ) from error


def _rows_until(path: Path, step: int) -> list[list[str]]:
    """Header and those rows of a log that a resumed run will not write again."""
    header = ["step", "seconds", "loss", "learning_rate", "metric", "value"]
    if not step or not path.is_file():
        return [header]
    with open(path, newline="") as stream:
        rows = list(csv.reader(stream))[1:]
    return [header, *(row for row in rows if len(row) == len(header) and int(row[0]) <= step)]
