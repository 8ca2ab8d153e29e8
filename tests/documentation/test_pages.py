"""What pages for people say about the package, and where their links lead."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.documentation.blocks import PAGES, ROOT, blocks_of

LINK = re.compile(r"\]\(([^)\s]+)\)")
LARGEST = 200_000


@pytest.fixture(scope="module")
def codes() -> set[str]:
    """All codes of errors, as the page of error messages lists them."""
    pytest.importorskip("sphinx")
    sys.path.insert(0, str(ROOT / "docs" / "extensions"))
    try:
        from messages import collect_messages
    finally:
        sys.path.pop(0)
    messages = collect_messages()
    assert all(message.exit_code in range(1, 76) for message in messages)
    return {message.code for message in messages}


def test_page_of_messages_has_every_code_that_tests_know(codes: set[str]) -> None:
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py"))
    known = set(re.findall(r'\braises\(\s*\w+,\s*"([a-z0-9-]+)"', tests))

    assert len(known) > 150
    assert known <= codes


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_codes_that_pages_name_exist(page: Path, codes: set[str]) -> None:
    text = page.read_text(encoding="utf-8")
    named = {*re.findall(r"\[`([a-z0-9-]+)`\]\(#code-", text), *re.findall(r"#code-([\w-]+)", text)}
    named |= set(re.findall(r"`\[([a-z0-9]+(?:-[a-z0-9]+)+)\]`", text))

    assert named <= codes


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for link in LINK.findall(_sentences(page)):
        if link.startswith(("http", "#")):
            continue
        name, _, heading = link.partition("#")
        path = page.parent / name
        assert path.exists(), link
        if heading and "{hyps-parser}" not in path.read_text(encoding="utf-8"):
            assert heading in _anchors(path), link


def test_pictures_are_small_and_used() -> None:
    pictures = set((ROOT / "docs" / "images").iterdir())
    used = {
        (page.parent / link).resolve() for page in PAGES for link in LINK.findall(page.read_text())
    }

    assert pictures <= used
    assert all(picture.stat().st_size < LARGEST for picture in pictures)


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_readme_installs_and_runs_the_demo_in_one_command() -> None:
    first, _ = (block for block in blocks_of(ROOT / "README.md") if "python3 -m venv" in block.text)

    assert first.text.splitlines()[-1] == (
        "python3 -m venv .venv && .venv/bin/pip install -c constraints/cpu.txt . && "
        ".venv/bin/hyps-tools demo demo-out"
    )


def _sentences(page: Path) -> str:
    return re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def _anchors(page: Path) -> set[str]:
    """Return the anchors of headings, as GitHub makes them, and explicit ones."""
    text = _sentences(page)
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    slugs = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
    return slugs | set(re.findall(r"^\(([\w-]+)\)=$", text, re.MULTILINE))
