"""The demo as users see it: both levels on real scans, and its reports in a browser."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

import html5lib
import pytest

from hyps_bids.demo import run_demo
from hyps_bids.outputs.names import group_path
from hyps_bids.outputs.reading import read_table
from tests.reports.conftest import OpenReport

pytestmark = pytest.mark.slow


def test_the_demo_does_all_scans_and_every_report_shows_what_it_has(
    tmp_path: Path, open_report: OpenReport
) -> None:
    from tests.reports.test_browser_group import wait_until_drawn
    from tests.reports.test_browser_subject import open_viewer, pixels

    assert run_demo(tmp_path) == 0
    derivatives = tmp_path / "derivatives"
    qc = read_table(group_path(derivatives, "qc"))
    assert qc["status"].tolist() == ["done"] * 3
    reports = sorted(derivatives.glob("*.html"))
    assert len(reports) == 4
    for path in reports:
        html5lib.HTMLParser(strict=True).parse(path.read_text())
        page = open_report(path)
        if path.name.startswith("sub-"):
            open_viewer(page, path.stem)
            assert pixels(page.locator("#viewer-slices")).std() > 20
            assert pixels(page.locator("#viewer-surface")).std() > 5
        else:
            wait_until_drawn(page)
            assert page.locator("#table tbody tr").count() == 3
        for href in page.locator("a").evaluate_all("all => all.map(a => a.href)"):
            link = urlsplit(href)
            # Cited works lead to the web, all other links into this folder.
            if link.scheme != "https":
                target = Path(unquote(link.path))
                assert target.exists(), href
                assert not link.fragment or f'id="{link.fragment}"' in target.read_text(), href
        page.close()
