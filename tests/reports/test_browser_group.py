"""The group report in a real browser, from its file and without a network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hyps_bids.reports.group import write_group_report
from tests.reports.simulated import (
    NASTY,
    ODD_COLUMN,
    write_adapter,
    write_change,
    write_classifier,
    write_derivatives,
    write_models,
)

if TYPE_CHECKING:
    from playwright.sync_api import Page

#: those that are not drawn yet
_LEFT = """[...document.querySelectorAll('.plot')]
    .filter(p => !('drawn' in p.dataset) && p.textContent !== 'Nothing to show.')
    .map(p => p.dataset.chart)"""
#: share of the pixels of each chart that something was drawn on
_INK = """Object.fromEntries([...document.querySelectorAll('.plot canvas')].map(c => {
    const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
    let n = 0;
    for (let i = 3; i < d.length; i += 4) n += d[i] > 0;
    return [c.closest('.plot').dataset.chart, 4 * n / d.length];
}))"""
_BUSY = ("minor", "moderate", None)


@pytest.fixture(scope="module")
def thousand(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("thousand")
    write_derivatives(output, 1000)
    for number in (5, 6):
        (output / f"sub-{number:04d}.html").write_text("<!doctype html><title>Subject</title>")
    return write_group_report(output)


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("everything")
    write_derivatives(output, 40, sessions=2)
    write_models(output)
    write_classifier(output)
    write_adapter(output)
    write_change(output)
    return write_group_report(output)


def wait_until_drawn(page: Page) -> None:
    for _ in range(300):
        # not wait_for_function: the page's policy forbids eval, and it needs that
        if page.evaluate("document.querySelectorAll('#table tbody tr, .plot').length") and not (
            page.evaluate(_LEFT)
        ):
            return
        page.wait_for_timeout(100)
    raise AssertionError(f"not drawn: {page.evaluate(_LEFT)}")


def ready(page: Page) -> Page:
    """Wait until the script has filled the table."""
    page.wait_for_selector("#table tbody tr")
    return page


def first_column(page: Page) -> list[str]:
    return page.locator("#table tbody th").all_inner_texts()


def found(page: Page) -> str:
    return page.locator("#found").inner_text()


def test_all_charts_are_drawn(open_report, everything: Path) -> None:
    page = open_report(everything)
    wait_until_drawn(page)
    ink = page.evaluate(_INK)
    assert len(ink) == 7 + 2 + 3 + 5 + 5
    assert min(ink.values()) > 0.005, ink


def test_the_table_sorts_by_mouse_and_keyboard(open_report, thousand: Path) -> None:
    page = ready(open_report(thousand))
    left = page.get_by_role("button", name="Left, mm³")
    left.click()
    heading = page.locator("th", has=left)
    assert heading.get_attribute("aria-sort") == "ascending"
    assert first_column(page)[0] == "sub-0004", "the made outlier is the smallest"
    left.press("Enter")
    assert heading.get_attribute("aria-sort") == "descending"
    cells = page.locator("#table tbody tr td:nth-child(4)").all_inner_texts()
    values = [float(text.replace(",", "")) for text in cells]
    assert values == sorted(values, reverse=True)
    page.get_by_role("button", name="Next").press("Enter")
    assert "Page 2 of 40" in page.locator("#page").inner_text()


@pytest.mark.slow
def test_what_is_not_known_is_sorted_last(open_report, thousand: Path) -> None:
    page = ready(open_report(thousand))
    for _ in range(2):
        page.get_by_role("button", name="Left, mm³").click()
        assert "sub-0001" not in first_column(page)


def test_the_table_filters(open_report, thousand: Path) -> None:
    page = ready(open_report(thousand))
    assert found(page) == "1,000 of 1,000 scans"
    page.get_by_label("State").first.select_option("flagged")
    assert found(page) == "40 of 1,000 scans"
    page.get_by_label("Find").fill("low CONFIDENCE sub-0030")
    assert first_column(page) == ["sub-0030"]
    page.get_by_label("Find").fill("nobody")
    assert found(page) == "0 of 1,000 scans"
    page.locator("a.count.failed").click()
    assert first_column(page) == ["sub-0001"]
    assert NASTY in page.locator("#table tbody").inner_text()
    page.locator("a.count.absent").press("Enter")
    assert first_column(page) == ["sub-0002"]


@pytest.mark.slow
def test_flags_are_explained_on_focus(open_report, thousand: Path) -> None:
    page = ready(open_report(thousand))
    note = page.locator("#first .note", has_text="low confidence, left").first
    assert not note.locator(".words").is_visible()
    note.focus()
    assert "0.61, below 0.8." in note.locator(".words").inner_text()


@pytest.mark.slow
def test_links_resolve(open_report, thousand: Path) -> None:
    page = ready(open_report(thousand))
    hrefs = page.evaluate("[...document.querySelectorAll('main a, nav a')].map(a => a.href)")
    files = {href for href in hrefs if not href.startswith(page.url.split("#")[0])}
    assert files == {
        f"{(thousand.parent / f'sub-{k:04d}.html').as_uri()}#scan-sub-{k:04d}" for k in (5, 6)
    }
    targets = {href.split("#")[1] for href in hrefs if href not in files}
    assert all(page.locator(f"#{target}").count() == 1 for target in targets)
    page.get_by_role("link", name="sub-0005").first.click()
    assert page.title() == "Subject"


@pytest.mark.slow
def test_links_of_models_resolve(open_report, everything: Path) -> None:
    page = open_report(everything)
    hrefs = page.locator(".model a").evaluate_all("all => all.map(a => decodeURI(a.pathname))")
    assert len(hrefs) == 4
    assert all(Path(href).exists() for href in hrefs)


@pytest.mark.slow
def test_points_say_who_they_are_and_lead_to_the_subject(open_report, tmp_path: Path) -> None:
    write_derivatives(tmp_path, 60)
    for k in range(60):
        (tmp_path / f"sub-{k + 1:04d}.html").write_text("<!doctype html><title>Subject</title>")
    page = open_report(write_group_report(tmp_path))
    wait_until_drawn(page)
    canvas = page.locator("[data-chart=quality-0] canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
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


@pytest.mark.slow
def test_choices_change_charts_and_numbers(open_report, thousand: Path) -> None:
    page = open_report(thousand)
    wait_until_drawn(page)
    numbers = page.locator("[data-summary=distribution]")
    assert numbers.locator("tbody tr").count() == 4
    before = page.locator("[data-chart=distribution-L] canvas").screenshot()
    # a name that would be a path, an expression or an element anywhere else
    page.locator("#group").select_option(label=ODD_COLUMN)
    page.locator("#color").select_option(label=ODD_COLUMN)
    page.locator("#measure").select_option(label="whole hippocampus, volume adjusted for ICV")
    page.wait_for_timeout(500)
    wait_until_drawn(page)
    assert NASTY in numbers.inner_text()
    assert "adjusted" in numbers.inner_text()
    assert page.locator("[data-chart=distribution-L] canvas").screenshot() != before
    assert page.evaluate(_INK)["distribution-L"] > 0.005


@pytest.mark.slow
def test_dark_mode_follows_the_system(open_report, everything: Path) -> None:
    page = open_report(everything, color_scheme="light")
    wait_until_drawn(page)
    before = page.locator("[data-chart=asymmetry] canvas").screenshot()
    page.emulate_media(color_scheme="dark")
    page.wait_for_timeout(500)
    wait_until_drawn(page)
    assert page.locator("[data-chart=asymmetry] canvas").screenshot() != before
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == "rgb(20, 23, 27)"


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_keeps_people_out(open_report, everything: Path, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    page = open_report(everything, color_scheme=scheme)
    wait_until_drawn(page)
    violations = axe.Axe().run(page).response["violations"]
    grave = {
        v["id"]: [node["html"][:150] for node in v["nodes"][:3]]
        for v in violations
        if v["impact"] not in _BUSY
    }
    assert grave == {}


@pytest.mark.slow
def test_a_phone_scrolls_down_only(open_report, everything: Path) -> None:
    page = open_report(everything, viewport={"width": 360, "height": 640})
    wait_until_drawn(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


@pytest.mark.slow
def test_without_javascript_the_conspicuous_scans_are_there(open_report, thousand: Path) -> None:
    page = open_report(thousand, java_script_enabled=False)
    assert page.locator("#first tbody tr").count() == 44
    assert page.get_by_text("need JavaScript").is_visible()
    assert not page.locator("#find").is_visible()


@pytest.mark.slow
def test_a_print_has_all_charts_and_words(open_report, everything: Path) -> None:
    page = open_report(everything)
    wait_until_drawn(page)
    page.emulate_media(media="print")
    assert page.locator("#first .words").first.is_visible()
    assert not page.locator("#table").is_visible()
    assert page.locator("[data-chart=asymmetry] canvas").is_visible()
    assert len(page.pdf()) > 20_000


@pytest.mark.slow
def test_adapters_alone(open_report, tmp_path: Path) -> None:
    write_adapter(tmp_path)
    page = open_report(write_group_report(tmp_path))
    wait_until_drawn(page)
    assert len(page.evaluate(_INK)) == 5
