"""The site is built without a warning, and needs no network."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from tests.documentation.blocks import ROOT

pytest.importorskip("sphinx")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built with warnings as errors."""
    folder = tmp_path_factory.mktemp("site")
    options = ["-W", "--keep-going", "-n", "-q", "-d", folder / "doctrees"]
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", *options, ROOT / "docs", folder / "html"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder / "html"


@pytest.mark.slow
def test_every_page_is_there(site: Path) -> None:
    pages = {page.stem for page in (ROOT / "docs").glob("*.md")}

    assert {page.stem for page in site.glob("*.html")} == {
        *pages,
        "genindex",
        "py-modindex",
        "search",
    }


@pytest.mark.slow
def test_reference_has_what_it_is_made_from(site: Path) -> None:
    command = (site / "hyps-bids.html").read_text()
    assert 'id="cmdoption-hyps-bids-suffix"' in command
    assert "hyps-tools evaluate norms" in (site / "hyps-tools.html").read_text()
    assert 'id="code-output-is-input"' in (site / "messages.html").read_text()
    assert 'id="hyps_bids.segment"' in (site / "api.html").read_text()
    assert "expected_dice_low" in (site / "quality-control.html").read_text()


@pytest.mark.slow
def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    for page in site.glob("*.html"):
        loaded = re.findall(r"<(?:script|img|link|iframe)\b[^>]*", page.read_text())
        assert not [tag for tag in loaded if re.search(r"(?:src|href)=\"(?:https?:)?//", tag)], page


@pytest.mark.slow
@pytest.mark.parametrize("width", [1400, 390])
def test_pages_fit_the_screen(site: Path, width: int, request: pytest.FixtureRequest) -> None:
    browser: Browser = request.getfixturevalue("chromium")
    page = browser.new_page(viewport={"width": width, "height": 900})
    for path in sorted(site.glob("*.html")):
        page.goto(path.as_uri(), wait_until="domcontentloaded")
        wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
        assert wide <= 0, path.name
    page.close()
