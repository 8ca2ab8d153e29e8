"""The blocks of code on the pages for people, and the commands in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
#: Pages whose commands people copy.
PAGES = sorted([ROOT / "README.md", ROOT / "examples" / "README.md", *(ROOT / "docs").glob("*.md")])
#: What the first line of a block says that the tests do not run.
MARK = re.compile(r"# (Not run by the tests\b.*[:.]|Run by \.ci/run\.)")
#: Languages of blocks that are run.
RUN = ("bash", "python")
_FENCE = re.compile(r"^( *)(`{3,})([^\n`]*)\n(.*?)^\1\2 *$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
#: Commands that are read by their parsers.
PROGRAMS = ("hyps-bids", "hyps-tools", "hyps-docker")


class Block(NamedTuple):
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    text: str

    @property
    def is_run(self) -> bool:
        """Whether the tests run it."""
        return self.language in RUN and not MARK.match(self.text)

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks_of(page: Path) -> list[Block]:
    """Find the fenced blocks of a page, without their indentation."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(
            page,
            text[: found.start()].count("\n") + 1,
            found[3].strip(),
            re.sub(rf"^{found[1]}", "", found[4], flags=re.MULTILINE),
        )
        for found in _FENCE.finditer(text)
    ]


def inline_code(page: Path) -> list[str]:
    """Find the code within the sentences of a page."""
    return _INLINE.findall(_FENCE.sub("", page.read_text(encoding="utf-8")))


def commands_of(block: Block) -> Iterator[tuple[str, list[str]]]:
    """Find the commands of HyPS-BIDS in a block of the shell: program and arguments."""
    if block.language != "bash":
        return
    for line in block.text.replace("\\\n", " ").splitlines():
        # Operators of the shell become words of their own, unless they are quoted.
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words = list(lexer)
        ends = [i for i, word in enumerate(words) if set(word) <= set("();<>|&")]
        for start, end in pairwise([-1, *ends, len(words)]):
            found = _command(words[start + 1 : end])
            if found:
                yield found


def _command(words: list[str]) -> tuple[str, list[str]] | None:
    while words and re.match(r"[A-Z_]+=", words[0]):
        words = words[1:]
    if "hyps_bids" in words:
        words = ["hyps-bids", *words[words.index("hyps_bids") + 1 :]]
    name = Path(words[0]).name if words else ""
    return (name, words[1:]) if name in PROGRAMS else None
