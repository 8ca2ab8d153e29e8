"""One training loop for all networks: resumable, seeded by step, with averaged weights."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hyps_bids.errors import HypsError, NotFinished, UsageError, cannot_write
from hyps_bids.progress import Progress
from hyps_bids.training.checkpoint import (
    Best,
    Checkpoint,
    Part,
    Tensors,
    read_checkpoint,
    write_checkpoint,
)
from hyps_bids.training.distributed import Processes
from hyps_bids.training.log import TrainingLog

#: Prefixes of the parameters of output heads: a SwinUNETR's, and a distilled BasicUNet's.
HEAD = ("out.", "network.final_conv.")

Batch = tuple[torch.Tensor, torch.Tensor]

_OPTIMIZERS: dict[str, type[torch.optim.Adam]] = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
}


@dataclass(frozen=True)
class LoopSettings:
    """Settings of a training run."""

    #: Optimizer steps in total, including those before a run was resumed.
    steps: int
    #: Learning rate at the start of the polynomial decay.
    learning_rate: float = 1e-3
    #: Learning rate of the output head, which is new while the rest is pre-trained: classes that
    #: start as copies of one class then separate sooner. The same as for the rest if None.
    head_learning_rate: float | None = None
    #: Steps over which the learning rate rises from zero.
    warmup: int = 50
    #: Exponent of the polynomial decay.
    power: float = 0.9
    weight_decay: float = 1e-4
    #: Decay of the exponential moving average of the weights.
    ema: float = 0.995
    #: Steps between validations and between checkpoints.
    evaluate_every: int = 200
    checkpoint_every: int = 50
    #: Seeds each batch together with the step number, so that a resumed run sees the same batches
    #: as an uninterrupted one.
    seed: int = 0
    #: ``adamw`` or ``adam``
    optimizer: str = "adamw"
    #: Number of validations without a better mean of the metrics after which the run ends early
    #: and returns the best averaged weights; None trains to the end and returns the last ones.
    patience: int | None = None
    #: Step after which the run ends, with the learning rates of a run of `steps`
    stop_at: int | None = None

    def __post_init__(self) -> None:
        if self.optimizer not in _OPTIMIZERS:
            raise ValueError(
                f"unknown optimizer {self.optimizer!r}: choose from {sorted(_OPTIMIZERS)}"
            )

    @property
    def last_step(self) -> int:
        """Number of steps to take."""
        return min(self.steps, self.stop_at or self.steps)

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0.

        Examples
        --------
        >>> LoopSettings(steps=100, warmup=10, learning_rate=1.0, power=1.0).rate(4)
        0.48
        """
        rise = min(1.0, (step + 1) / max(1, self.warmup))
        return self.learning_rate * rise * (1 - step / self.steps) ** self.power


@dataclass(frozen=True)
class Objective:
    """What a network learns."""

    #: Makes a batch ``(inputs, targets)`` from a seeded generator on the device.
    batches: Callable[[torch.Generator], Batch]
    #: ``loss(logits, targets)``; a mean over the samples if several processes share a batch.
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    #: Returns the metrics of a model by name; higher is better if the settings have patience.
    validate: Callable[[nn.Module], dict[str, float]]


@dataclass(frozen=True)
class Session:
    """How this process takes part in a run, which earlier processes may have begun elsewhere."""

    #: Description of the device, and number of samples per step, for the model card.
    hardware: str = ""
    batch_size: int | None = None
    #: Value of :func:`time.monotonic` before which the process must have ended.
    deadline: float | None = None
    #: Whether PyTorch compiles the network first, which takes minutes and then saves time on a GPU.
    compiled: bool = False


@dataclass(frozen=True)
class Outcome:
    """Result of a training run.

    `metrics` are those of the weights that the model holds now, `step` is the step these are from
    (the last one, or with patience the best one), `steps` is the number of steps taken, and `parts`
    says where.
    """

    metrics: dict[str, float]
    step: int
    steps: int
    parts: list[Part] = field(default_factory=list, compare=False)


def run(
    model: nn.Module,
    objective: Objective,
    settings: LoopSettings,
    folder: Path,
    device: torch.device,
    *,
    identity: Mapping[str, Any] | None = None,
    processes: Processes | None = None,
    session: Session | None = None,
    title: str | None = None,
) -> Outcome:
    """Train the parameters of `model` that require gradients, in place.

    The folder receives ``checkpoint.pt`` (weights and optimizer, from which an interrupted run
    resumes) and ``log.csv``. At the end the model holds the averaged weights.

    Parameters
    ----------
    model : torch.nn.Module
        Network, already on `device`.
    objective, settings : Objective, LoopSettings
        What to learn, and how.
    folder : Path
        Folder of checkpoint and log; made if missing, the same for all processes.
    identity : mapping, optional
        What the result depends on besides the settings (data, network), as JSON; recorded in the
        checkpoint.
    processes : Processes, optional
        The processes that share each batch; this one alone if None.
    session : Session, optional
        Where this process trains, and for how long.
    title : str, optional
        Name in the line of progress.

    Raises
    ------
    NotFinished
        If the session's time is over; everything is in the checkpoint.
    UsageError
        If the folder holds a checkpoint of other data or settings, or is not shared by all
        processes.
    HypsError
        If the loss or a gradient is not finite. The model then holds the averaged weights of the
        last checkpoint, which is kept.
    CannotCreateOutput
        If a checkpoint cannot be written; the previous one is kept.
    """
    processes, session = processes or Processes(), session or Session()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from error
    checkpoint = folder / "checkpoint.pt"
    # Through JSON, so that it compares equal to what a checkpoint holds.
    known = json.loads(json.dumps({"settings": asdict(settings)} | dict(identity or {})))
    state = _State(model, settings, session)
    if checkpoint.is_file():
        state.restore(read_checkpoint(checkpoint, known, device))
    if processes.from_first(state.step) != state.step:
        raise UsageError(
            f"{folder}: the training processes see different checkpoints here; use a folder that "
            "all of them share",
            code="folder-not-shared",
        )
    log = TrainingLog(folder / "log.csv" if processes.is_main_process else None, state.step)
    generator = torch.Generator(device)
    watch = _Watch(session.deadline)
    if session.compiled:
        model.compile()
    model.train()
    steps = {"steps": settings.last_step - state.step}
    with Progress(steps, title or "", is_shown=processes.is_main_process) as progress:
        while state.step < settings.last_step and not state.is_stale:
            if processes.from_first(watch.is_over()):
                if processes.is_main_process:
                    write_checkpoint(checkpoint, state.to_checkpoint(known))
                raise NotFinished(
                    f"{folder}: the time is over after step {state.step} of {settings.last_step}; "
                    "the same command goes on from there",
                    code="time-over",
                )
            rate = settings.rate(state.step)
            loss, norm = _backward(state, objective, generator, processes)
            if not torch.isfinite(loss + norm):
                raise _diverged(state, checkpoint, float(loss), known)
            state.optimizer.step()
            state.advance()
            log.add(state.step, float(loss), rate)
            progress.note = f"loss {log.mean_loss:.3f}"
            progress.advance("steps")
            is_last = state.step == settings.last_step
            is_validated = is_last or state.step % settings.evaluate_every == 0
            if is_validated:
                found = state.evaluate(objective.validate) if processes.is_main_process else {}
                state.note(processes.from_first(found))
                log.write(state.metrics)
            is_saved = is_last or state.is_stale or state.step % settings.checkpoint_every == 0
            if is_saved and processes.is_main_process:
                if not is_validated:
                    log.write({})
                write_checkpoint(checkpoint, state.to_checkpoint(known))
    model.eval()
    return state.finish()


class _State:
    """Everything that a run must remember to be resumed.

    `metrics` are those of the last validation; `best` is the best validation, if the settings have
    patience, and `since_best` the number of validations after it.
    """

    def __init__(self, model: nn.Module, settings: LoopSettings, session: Session) -> None:
        self.model, self.settings = model, settings
        self.earlier: list[Part] = []
        self.own: Part = {
            "hardware": session.hardware,
            "batch_size": session.batch_size,
            "steps": 0,
        }
        self.step = self.since_best = 0
        self.metrics: dict[str, float] = {}
        self.best: Best | None = None
        self.trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.average = _copy(self.trained)
        rate = settings.learning_rate
        head = [p for name, p in self.trained.items() if name.startswith(HEAD)]
        rest = [p for name, p in self.trained.items() if not name.startswith(HEAD)]
        self.optimizer = _OPTIMIZERS[settings.optimizer](
            [
                {"params": rest, "factor": 1.0},
                {"params": head, "factor": (settings.head_learning_rate or rate) / rate},
            ],
            lr=rate,
            weight_decay=settings.weight_decay,
        )

    @property
    def is_stale(self) -> bool:
        """Whether it is time to stop early."""
        patience = self.settings.patience
        return patience is not None and self.since_best >= patience

    def advance(self) -> None:
        """Count a step and move the average."""
        self.step += 1
        self.own["steps"] += 1
        # The average forgets fast at first, so that the start has no weight in the end.
        decay = min(self.settings.ema, self.step / (self.step + 10))
        with torch.no_grad():
            for name, parameter in self.trained.items():
                self.average[name].lerp_(parameter, 1 - decay)

    def evaluate(self, validate: Callable[[nn.Module], dict[str, float]]) -> dict[str, float]:
        """Compute the metrics of the averaged weights."""
        current = _copy(self.trained)
        self.put(self.average)
        metrics = validate(self.model.eval())
        self.put(current)
        self.model.train()
        return metrics

    def note(self, metrics: dict[str, float]) -> None:
        """Remember metrics, and the averaged weights if they are the best so far."""
        self.metrics = metrics
        if self.settings.patience is None or not metrics:
            return
        score = math.fsum(metrics.values()) / len(metrics)
        if self.best is not None and score <= self.best["score"]:
            self.since_best += 1
            return
        average = _copy(self.average)
        self.best = {"score": score, "step": self.step, "figures": metrics, "average": average}
        self.since_best = 0

    def put(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Give the model these weights."""
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(weights[name])

    def finish(self) -> Outcome:
        """Leave the weights to be returned in the model."""
        if self.best is not None:
            self.put(self.best["average"])
            return Outcome(self.best["figures"], self.best["step"], self.step, self.parts)
        self.put(self.average)
        return Outcome(self.metrics, self.step, self.step, self.parts)

    @property
    def parts(self) -> list[Part]:
        """Who took the steps; neighbors that are alike are one."""
        parts: list[Part] = []
        for part in (*self.earlier, self.own):
            if parts and {**parts[-1], "steps": 0} == {**part, "steps": 0}:
                part = {**part, "steps": parts.pop()["steps"] + part["steps"]}
            if part["steps"]:
                parts.append(part)
        return parts

    def to_checkpoint(self, identity: dict[str, Any]) -> Checkpoint:
        """Return the content of a checkpoint."""
        return {
            "step": self.step,
            "weights": {name: p.detach() for name, p in self.trained.items()},
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "figures": self.metrics,
            "best": self.best,
            "since_best": self.since_best,
            "identity": identity,
            "parts": self.parts,
        }

    def restore(self, content: Checkpoint) -> None:
        """Continue from a checkpoint."""
        self.put(content["weights"])
        self.average = content["average"]
        self.optimizer.load_state_dict(content["optimizer"])
        self.step = content["step"]
        self.metrics, self.best = content["figures"], content["best"]
        self.since_best = content["since_best"]
        unknown: Part = {"hardware": "", "batch_size": None, "steps": self.step}
        self.earlier = content.get("parts", [unknown])


def _backward(
    state: _State, objective: Objective, generator: torch.Generator, processes: Processes
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the gradients of the next step; return the batch's loss and the gradients' norm."""
    settings, device = state.settings, generator.device
    # The CPU's generator keeps only the lower 32 bits of a seed.
    seed = settings.seed * 1_000_003 + state.step
    generator.manual_seed(seed)
    # Each process draws other numbers for dropout.
    torch.manual_seed(seed + 7919 * processes.rank)
    batch = objective.batches(generator)
    inputs, targets = processes.share(batch)
    for group in state.optimizer.param_groups:
        group["lr"] = settings.rate(state.step) * group["factor"]
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
        logits = state.model(inputs)
    value = objective.loss(logits.float(), targets) * (len(inputs) / len(batch[0]))
    state.optimizer.zero_grad(set_to_none=True)
    value.backward()
    processes.sum_gradients(state.trained.values())
    norm = nn.utils.clip_grad_norm_(state.trained.values(), 1.0)
    return processes.sum(value), norm


class _Watch:
    """Tells when to stop, so that the slowest step seen so far still ends in time."""

    def __init__(self, deadline: float | None) -> None:
        self.deadline = deadline
        self.last = time.monotonic()
        self.slowest = 0.0

    def is_over(self) -> bool:
        """Measure the time since the last call, which is that of a step."""
        now = time.monotonic()
        self.slowest, self.last = max(self.slowest, now - self.last), now
        return self.deadline is not None and now + 2 * self.slowest > self.deadline


def _diverged(state: _State, checkpoint: Path, loss: float, identity: dict[str, Any]) -> HypsError:
    """Put the last good weights back, and make the error."""
    kept = "there is no checkpoint yet"
    if checkpoint.is_file():
        content = read_checkpoint(checkpoint, identity)
        state.put(content["average"])
        kept = f"the weights of step {content['step']} are kept in {checkpoint}"
    what = "a gradient is not finite" if math.isfinite(loss) else f"the loss is {loss}"
    return HypsError(
        f"training stopped because {what} at step {state.step}; {kept}; lower --learning-rate, or "
        "look for images with extreme intensities",
        code="training-diverged",
    )


def _copy(weights: Mapping[str, torch.Tensor]) -> Tensors:
    return {name: w.detach().clone() for name, w in weights.items()}
