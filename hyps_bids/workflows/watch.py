"""Tells how far a workflow is: counts scans, series and reports when their nodes have ended."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from hyps_bids.progress import Progress


class Piece(NamedTuple):
    """What the last node of an inner workflow completes.

    Attributes
    ----------
    counted_as : str
        Name in the :class:`~hyps_bids.progress.Progress`.
    last : str
        Name of the last node.
    followed_by : str
        Inner workflow that is not reached in this workflow if this one fails; empty if none.
    """

    counted_as: str
    last: str
    followed_by: str = ""


class Watch:
    """Counts the pieces of a workflow.

    nipype tells of each node when it ends. It may do so twice for a node that has failed, and it
    may call nodes that it has left out ended: the first word about a piece counts.

    Parameters
    ----------
    progress : Progress
        Counts and shows.
    pieces : mapping of str to Piece
        Name of an inner workflow → what it completes.
    """

    def __init__(self, progress: Progress, pieces: Mapping[str, Piece]) -> None:
        self.progress = progress
        self.pieces = pieces
        self._ended: set[str] = set()

    def __call__(self, node: Any, status: str) -> None:
        """Take note of what a plugin says about a node: ``start``, ``end`` or ``exception``."""
        name = str(node.fullname).split(".")[-2]
        piece = self.pieces.get(name)
        if piece is None or name in self._ended:
            return
        if status == "exception":
            self._end(name, piece, failed=True)
        elif status == "end" and node.name == piece.last:
            self._end(name, piece, failed=False)

    def look(self, nodes: Any) -> None:
        """Look for the results of nodes, where the plugin says nothing about them."""
        for node in nodes:
            if any(Path(node.output_dir()).glob("result_*.pklz")):
                self(node, "end")
        self.progress.tick()

    def note_failure(self, name: str) -> None:
        """Count an inner workflow as failed, as its crash file tells."""
        if (piece := self.pieces.get(name)) is not None and name not in self._ended:
            self._end(name, piece, failed=True)

    def _end(self, name: str, piece: Piece, *, failed: bool) -> None:
        self._ended.add(name)
        after = self.pieces.get(piece.followed_by)
        if failed and after is not None and piece.followed_by not in self._ended:
            # It is followed later, without the scan that failed.
            self._ended.add(piece.followed_by)
            self.progress.drop(after.counted_as)
        self.progress.advance(piece.counted_as, failed=failed)
