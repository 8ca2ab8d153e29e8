"""The log of a training run: ``log.csv``, which a resumed run continues."""

from __future__ import annotations

import csv
import time
from collections.abc import Mapping
from pathlib import Path

from hyps_bids.errors import cannot_write

_HEADER = ["step", "seconds", "loss", "learning_rate", "metric", "value"]


class TrainingLog:
    """Collects losses and writes rows ``step, seconds, loss, learning_rate, metric, value``.

    Nothing is written without a path. A run that continues drops the rows after step `start`.
    """

    def __init__(self, path: Path | None, start: int) -> None:
        self.path = path
        self.losses: list[float] = []
        self.step = start
        self.rate = 0.0
        seconds = 0.0
        if path is not None:
            kept = _rows_until(path, start)
            seconds = float(kept[-1][1]) if kept else 0.0
            self._write([_HEADER, *kept], "w")
        self.began = time.monotonic() - seconds

    @property
    def mean_loss(self) -> float:
        """Mean over the last 50 steps."""
        recent = self.losses[-50:]
        return sum(recent) / max(1, len(recent))

    def add(self, step: int, loss: float, rate: float) -> None:
        """Remember the loss and the learning rate of a step."""
        self.step, self.rate = step, rate
        self.losses.append(loss)

    def write(self, metrics: Mapping[str, float]) -> None:
        """Write a row for each metric, or a single one if there is none."""
        seconds = f"{time.monotonic() - self.began:.1f}"
        head = [str(self.step), seconds, f"{self.mean_loss:.4f}", f"{self.rate:.2e}"]
        rows = [[metric, f"{value:.4f}"] for metric, value in metrics.items()] or [["", ""]]
        self._write([head + row for row in rows], "a")

    def _write(self, rows: list[list[str]], mode: str) -> None:
        if self.path is None:
            return
        try:
            with open(self.path, mode, newline="", encoding="utf-8") as stream:
                csv.writer(stream).writerows(rows)
        except OSError as error:
            raise cannot_write(self.path, error) from error


def _rows_until(path: Path, step: int) -> list[list[str]]:
    """Return the rows of a log that a resumed run will not write again."""
    if not step or not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8") as stream:
        rows = list(csv.reader(stream))[1:]
    return [row for row in rows if len(row) == len(_HEADER) and int(row[0]) <= step]
