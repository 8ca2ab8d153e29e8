"""Say how far long work is: a line that changes on a terminal, and a line in the log now and then.

Everything that may take longer than ten seconds counts its pieces with :class:`Progress` or
:func:`track`. On a terminal they draw one line with the time left, and remove it at the end.
Otherwise the log has a line at most every minute and every tenth of the work, whichever is rarer,
so that the logs of clusters stay short and have no carriage returns.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, Self, TextIO, TypeVar

from hyps_bids.messages import format_duration

_LOG = logging.getLogger("hyps_bids")
_Item = TypeVar("_Item")
#: Seconds, and share of the work, between two lines in the log.
EVERY_S, EVERY_SHARE = 60.0, 0.1
#: Attribute of the log's records that a terminal with a line of progress does not need.
_SHOWN = "is_progress"
#: Number of lines of progress that this process shows now.
_showing = 0


class Progress:
    """Counts pieces of work that were done or have failed, and shows how far it is.

    Parameters
    ----------
    totals : mapping of str to int
        What is counted, in the plural → how many there are. The first ones are named first.
    title : str
        What the work belongs to, such as a contrast; empty if that is clear.
    workers : int
        How many pieces are worked on at a time. No time left is told before as many have ended,
        because the first ones all end at about the same time.
    weights : mapping of str to float
        What is counted → how long a piece takes in comparison with others; 1 if not given.
    is_shown : bool
        False where another process, or nobody, tells how far the work is.
    may_draw : bool
        False where much else is written to the terminal, so that only the log tells.
    clock : callable
        Returns the time in seconds.
    """

    def __init__(
        self,
        totals: Mapping[str, int],
        title: str = "",
        *,
        workers: int = 1,
        weights: Mapping[str, float] | None = None,
        is_shown: bool = True,
        may_draw: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.title = title
        self.totals = {name: total for name, total in totals.items() if total}
        self.done = dict.fromkeys(self.totals, 0)
        self.failed = dict.fromkeys(self.totals, 0)
        self.note = ""
        self._weights = {name: (weights or {}).get(name, 1.0) for name in self.totals}
        self._workers = workers
        self._clock = clock
        self._began = self._ended = self._told = clock()
        self._told_share = 0.0
        self._is_shown = is_shown and multiprocessing.parent_process() is None
        self._may_draw = may_draw
        self._bar: Any = None

    def __enter__(self) -> Self:
        self._began = self._ended = self._told = self._clock()
        if self._is_shown and self._may_draw and self.totals and _on_terminal():
            self._draw()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        global _showing
        if self._bar is not None:
            self._bar.close()
            self._bar = None
            _showing -= 1

    def advance(self, name: str, count: int = 1, *, failed: bool = False) -> None:
        """Count pieces that have ended."""
        (self.failed if failed else self.done)[name] += count
        self._ended = self._clock()
        self.tick()
        if not self._is_shown:
            return
        share = self._share()
        # Sums of shares are rounded.
        is_enough = share - self._told_share >= EVERY_SHARE - 1e-9
        if is_enough and self._ended - self._told >= EVERY_S and share < 1:
            self._told, self._told_share = self._ended, share
            _LOG.info("%s", self.text(), extra={_SHOWN: True})

    def drop(self, name: str, count: int = 1) -> None:
        """Take back pieces that will not be worked on."""
        self.totals[name] -= count

    def tick(self) -> None:
        """Draw the line on the terminal again, where there is one: time has passed."""
        if self._bar is not None:
            # The window may have another size now.
            self._bar.ncols = _width()
            self._bar.n = self._share()
            self._bar.set_description_str(self.text(), refresh=True)

    def seconds_left(self) -> float | None:
        """Estimate the time to the end from the pace so far; None before that can be known."""
        ended = sum(self.done.values()) + sum(self.failed.values())
        share = self._share()
        if ended < min(self._workers, sum(self.totals.values())) or not share:
            return None
        pace = (self._ended - self._began) / share
        return max(0.0, pace * (1 - share) - (self._clock() - self._ended))

    def text(self) -> str:
        """Say how far the work is, in one line.

        Examples
        --------
        >>> progress = Progress({"scans": 141, "series": 20})
        >>> progress.advance("scans", 12)
        >>> progress.advance("scans", failed=True)
        >>> progress.text().rpartition(",")[0]
        '12 of 141 scans done, 1 failed, 0 of 20 series done'
        """
        parts = []
        for name, total in self.totals.items():
            parts.append(f"{self.done[name]:,} of {total:,} {name} done")
            if self.failed[name]:
                parts.append(f"{self.failed[name]:,} failed")
        left = self.seconds_left()
        if left is not None and self._share() < 1:
            parts.append(f"about {format_duration(left)} left")
        if self.note:
            parts.append(self.note)
        return f"{self.title}: {', '.join(parts)}" if self.title else ", ".join(parts)

    def _share(self) -> float:
        """Return the share of the work that has ended, in [0, 1]."""
        whole = sum(self._weights[name] * total for name, total in self.totals.items())
        ended = sum(
            self._weights[name] * (self.done[name] + self.failed[name]) for name in self.totals
        )
        return min(1.0, ended / whole) if whole else 1.0

    def _draw(self) -> None:
        """Begin the line on the terminal."""
        global _showing
        # Imported here, because runs without a terminal need not wait for it.
        from tqdm import tqdm

        self._bar = tqdm(
            total=1.0,
            bar_format="{desc} |{bar:20}|{percentage:3.0f} %",
            # The library shows nothing on terminals that do not know their size.
            ncols=_width(),
            nrows=shutil.get_terminal_size().lines,
            leave=False,
            file=sys.stderr,
        )
        _showing += 1
        self.tick()


def track(
    items: Iterable[_Item], total: int, name: str, title: str = "", *, is_shown: bool = True
) -> Iterator[_Item]:
    """Yield items of long work, and show how many are done; `name` is what they are, in the plural.

    Examples
    --------
    >>> list(track("ab", 2, "letters"))
    ['a', 'b']
    """
    with Progress({name: total}, title, is_shown=is_shown) as progress:
        for item in items:
            yield item
            progress.advance(name)


class ConsoleHandler(logging.StreamHandler[TextIO]):
    """Writes the log to the console above a line of progress, which stays whole."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, unless the line of progress says the same."""
        if not _showing:
            if multiprocessing.parent_process() is not None and _is_terminal(self.stream):
                # The line is that of the process that has started this one.
                self._clear()
            super().emit(record)
        elif not getattr(record, _SHOWN, False):
            from tqdm import tqdm

            with tqdm.external_write_mode(file=self.stream):
                super().emit(record)

    def _clear(self) -> None:
        self.stream.write("\r" + " " * _width() + "\r")


def _width() -> int:
    """Return the width of the terminal without the last column, where some begin a new line."""
    return shutil.get_terminal_size().columns - 1


def _on_terminal() -> bool:
    """Tell whether a line that changes can be shown: not where much else is written."""
    console = [handler for handler in _LOG.handlers if isinstance(handler, ConsoleHandler)]
    return bool(console) and _is_terminal(sys.stderr) and os.environ.get("TERM") != "dumb"


def _is_terminal(stream: Any) -> bool:
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError):
        return False
