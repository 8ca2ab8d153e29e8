"""The group report and the demo in a real browser, opened from files and without a network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import html5lib
import pytest

from hyps_bids.demo import run_demo
from hyps_bids.outputs.names import group_path
from hyps_bids.outputs.reading import read_table
from hyps_bids.reports.group import write_group_report
from tests.reports.conftest import OpenReport, grave_violations
from tests.reports.simulated import NASTY, ODD_COLUMN, write_adapter, write_derivatives
from tests.reports.test_browser_subject import open_viewer, pixels

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.slow
#: Charts that are not drawn yet.
_LEFT = """[...document.querySelectorAll('.plot')]
    .filter(p => !('drawn' in p.dataset) && p.textContent !== 'Nothing to show.')
    .map(p => p.dataset.chart)"""
#: Share of the pixels of each chart on which something was drawn.
_INK = """Object.fromEntries([...document.querySelectorAll('.plot canvas')].map(c => {
    const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
    let n = 0;
    for (let i = 3; i < d.length; i += 4) n += d[i] > 0;
    return [c.closest('.plot').dataset.chart, 4 * n / d.length];
}))"""


@pytest.fixture
def large_page(open_report: OpenReport, thousand: Path) -> Page:
    """The report of 1000 scans with a full table."""
    page = open_report(thousand)
    page.wait_for_selector("#table tbody tr")
    return page


@pytest.fixture(scope="module")
def _drawn(open_report: OpenReport, everything: Path) -> Page:
    page = open_report(everything, color_scheme="light")
    wait_until_drawn(page)
    return page


@pytest.fixture
def page(_drawn: Page) -> Iterator[Page]:
    """The report of everything with all charts, in a normal window, light and on the screen."""
    yield _drawn
    _drawn.emulate_media(color_scheme="light", media="screen")
    _drawn.set_viewport_size({"width": 1280, "height": 720})
    wait_until_drawn(_drawn)


def wait_until_drawn(page: Page) -> None:
    for _ in range(300):
        # The page's policy forbids eval, which wait_for_function needs.
        if page.evaluate("document.querySelectorAll('#table tbody tr, .plot').length") and not (
            page.evaluate(_LEFT)
        ):
            return
        page.wait_for_timeout(100)
    raise AssertionError(f"not drawn: {page.evaluate(_LEFT)}")


def first_column(page: Page) -> list[str]:
    return page.locator("#table tbody th").all_inner_texts()


def test_all_charts_are_drawn_and_links_of_models_resolve(page: Page) -> None:
    ink = page.evaluate(_INK)
    assert len(ink) == 9 + 2 + 3 + 5 + 5
    assert min(ink.values()) > 0.005, ink
    hrefs = page.locator(".model a").evaluate_all("all => all.map(a => decodeURI(a.pathname))")
    assert len(hrefs) == 4
    assert all(Path(href).exists() for href in hrefs)


def test_the_table_sorts_by_mouse_and_keyboard(large_page: Page) -> None:
    page = large_page
    left = page.get_by_role("button", name="Left, mm³")
    left.click()
    heading = page.locator("th", has=left)
    assert heading.get_attribute("aria-sort") == "ascending"
    assert first_column(page)[0] == "sub-0004", "the made outlier is the smallest"
    assert "sub-0001" not in first_column(page), "unknown values come last"
    left.press("Enter")
    assert heading.get_attribute("aria-sort") == "descending"
    assert "sub-0001" not in first_column(page), "unknown values come last"
    cells = page.locator("#table tbody tr td:nth-child(4)").all_inner_texts()
    values = [float(text.replace(",", "")) for text in cells]
    assert values == sorted(values, reverse=True)
    page.get_by_role("button", name="Next").press("Enter")
    assert "Page 2 of 40" in page.locator("#page").inner_text()


def test_the_table_filters(large_page: Page) -> None:
    page, found = large_page, large_page.locator("#found")
    assert found.inner_text() == "1,000 of 1,000 scans"
    page.get_by_label("State").first.select_option("flagged")
    assert found.inner_text() == "40 of 1,000 scans"
    page.get_by_label("Find").fill("low CONFIDENCE sub-0030")
    assert first_column(page) == ["sub-0030"]
    page.get_by_label("Find").fill("nobody")
    assert found.inner_text() == "0 of 1,000 scans"
    page.locator("a.count.failed").click()
    assert first_column(page) == ["sub-0001"]
    assert NASTY in page.locator("#table tbody").inner_text()
    page.locator("a.count.absent").press("Enter")
    assert first_column(page) == ["sub-0002"]


def test_flags_are_explained_on_focus(large_page: Page) -> None:
    note = large_page.locator("#first .note", has_text="low confidence, left").first
    assert not note.locator(".words").is_visible()
    note.focus()
    assert "0.61, below the bound of 0.8." in note.locator(".words").inner_text()


def test_choices_change_charts_and_numbers(large_page: Page) -> None:
    page = large_page
    wait_until_drawn(page)
    numbers = page.locator("[data-summary=distribution]")
    assert numbers.locator("tbody tr").count() == 4
    before = page.locator("[data-chart=distribution-L] canvas").screenshot()
    # This name would be a path, an expression or an element anywhere else.
    page.locator("#group").select_option(label=ODD_COLUMN)
    page.locator("#color").select_option(label=ODD_COLUMN)
    page.locator("#measure").select_option(label="whole hippocampus, volume adjusted for ICV")
    page.wait_for_timeout(500)
    wait_until_drawn(page)
    assert NASTY in numbers.inner_text()
    assert "adjusted" in numbers.inner_text()
    assert page.locator("[data-chart=distribution-L] canvas").screenshot() != before
    assert page.evaluate(_INK)["distribution-L"] > 0.005


def test_points_say_who_they_are_and_lead_to_the_subject(
    open_report: OpenReport, tmp_path: Path
) -> None:
    write_derivatives(tmp_path, 60)
    for k in range(60):
        (tmp_path / f"sub-{k + 1:04d}.html").write_text("<!doctype html><title>Subject</title>")
    page = open_report(write_group_report(tmp_path))
    wait_until_drawn(page)
    canvas = page.locator("[data-chart=quality-0] canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    assert box is not None
    tip = page.locator(".tip")
    for step in range(200):
        x, y = box["width"] * (0.6 + 0.38 * (step % 20) / 20), box["height"] * (0.2 + step / 400)
        page.mouse.move(box["x"] + x, box["y"] + y)
        if tip.is_visible():
            break
    assert tip.inner_text().startswith("sub-00")
    assert "diagnosis: " in tip.inner_text()
    page.mouse.down()
    page.mouse.up()
    page.wait_for_url("**/sub-00*.html#scan-sub-00*")


def test_dark_mode_follows_the_system_and_nothing_keeps_people_out(page: Page) -> None:
    assert grave_violations(page) == []
    before = page.locator("[data-chart=asymmetry] canvas").screenshot()
    page.emulate_media(color_scheme="dark")
    page.wait_for_timeout(500)
    wait_until_drawn(page)
    assert page.locator("[data-chart=asymmetry] canvas").screenshot() != before
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == "rgb(20, 23, 27)"
    assert grave_violations(page) == []


def test_a_phone_scrolls_down_only(page: Page) -> None:
    page.set_viewport_size({"width": 360, "height": 640})
    wait_until_drawn(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_a_print_has_all_charts_and_words(page: Page) -> None:
    page.emulate_media(media="print")
    assert page.locator("#first .words").first.is_visible()
    assert not page.locator("#table").is_visible()
    assert page.locator("[data-chart=asymmetry] canvas").is_visible()
    assert len(page.pdf()) > 20_000


def test_without_javascript_the_conspicuous_scans_are_there(
    open_report: OpenReport, thousand: Path
) -> None:
    page = open_report(thousand, java_script_enabled=False)
    assert page.locator("#first tbody tr").count() == 44
    assert page.locator(".no-script").is_visible()
    assert not page.locator("#find").is_visible()


def test_adapters_alone(open_report: OpenReport, tmp_path: Path) -> None:
    write_adapter(tmp_path)
    page = open_report(write_group_report(tmp_path))
    wait_until_drawn(page)
    assert page.locator("#scans").count() == 0
    assert len(page.evaluate(_INK)) == 5


def test_the_demo_does_all_scans_and_every_report_shows_what_it_has(
    tmp_path: Path, open_report: OpenReport
) -> None:
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
