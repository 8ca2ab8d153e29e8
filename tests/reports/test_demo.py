"""The demo as users see it: both levels on real scans, and its reports in a browser."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

import html5lib
import pandas as pd
import pytest

from hyps_bids.demo import run_demo
from tests.reports.conftest import OpenReport

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def derivatives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    assert run_demo(folder) == 0
    return folder / "derivatives"


def test_all_scans_are_done(derivatives: Path) -> None:
    qc = pd.read_csv(derivatives / "group_seg-hippocampus_qc.tsv", sep="\t")
    assert (qc["status"] == "done").all()
    assert len(qc) == 3


def test_every_report_opens_and_shows_what_it_has(
    derivatives: Path, open_report: OpenReport
) -> None:
    from tests.reports.test_browser_group import wait_until_drawn
    from tests.reports.test_browser_subject import open_viewer, pixels

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
