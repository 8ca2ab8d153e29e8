"""Change over time in a subject report, in a real browser and without a network."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from hyps_bids.reports.scan_images import read_images, read_raw
from hyps_bids.reports.subject import write_subject_report
from tests.reports.conftest import SETTINGS, OpenReport, Study, grave_violations, named
from tests.reports.made_series import Point, write_series
from tests.reports.test_browser_subject import pixels

pytest.importorskip("playwright")
from playwright.sync_api import Page, expect

pytestmark = pytest.mark.slow
_LONG = "acq-averyveryverylonglabelofasequence"


@pytest.fixture(scope="module")
def path(processed: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("series") / "out"
    shutil.copytree(processed.output, output)
    scan = named("sub-02")
    images = read_images(output, scan, read_raw(processed.raw, scan))
    points = [Point(f"sub-02_ses-{k}_{_LONG}", k * 0.7) for k in range(4)]
    points.append(Point("sub-02_ses-wrong", None, "refused"))
    write_series(output, points, (images.anatomy, images.labels))
    return write_subject_report(processed.raw, output, "02", settings_text=SETTINGS)


@pytest.fixture(scope="module")
def page(path: Path, open_report: OpenReport) -> Page:
    return open_report(path, viewport={"width": 1280, "height": 900}, color_scheme="light")


def test_two_time_points_take_turns_by_themselves_and_by_hand(page: Page) -> None:
    panel = page.locator(".over-time").first
    stage, second = panel.locator(".stage"), panel.locator(".stage .time-point").nth(1)
    expect(second).to_be_hidden()
    first_pixels = pixels(stage)
    other = panel.locator("button.other")
    other.press("Enter")
    expect(other).to_have_attribute("aria-pressed", "true")
    expect(second).to_be_visible()
    # The first and the last scan are compared, and the left hippocampus has lost its border.
    assert np.abs(pixels(stage) - first_pixels).mean() > 1
    flick = panel.locator("button.flick")
    flick.press("Space")
    expect(flick).to_have_attribute("aria-pressed", "true")
    expect(other).to_have_attribute("aria-pressed", "false")
    expect(second).to_have_css("animation-name", "flick")
    page.emulate_media(reduced_motion="reduce")
    expect(flick).to_be_hidden()
    expect(second).to_have_css("animation-name", "none")
    expect(other).to_be_visible()
    page.emulate_media(reduced_motion="no-preference")
    flick.click()
    expect(second).to_have_css("animation-name", "none")


def test_time_points_are_chosen_by_keyboard(page: Page) -> None:
    panel = page.locator(".over-time").nth(1)
    labels = panel.locator(".stage figcaption")
    expect(labels).to_have_text([f"1: ses-0, {_LONG}, 0.0 years", f"4: ses-3, {_LONG}, 2.1 years"])
    panel.get_by_label("First").focus()
    page.keyboard.press("ArrowDown")
    expect(labels.first).to_have_text(f"2: ses-1, {_LONG}, 0.7 years")
    outline = panel.locator(".stage .outline").first
    expect(outline).to_have_css("visibility", "visible")
    panel.locator("button.hide").press("Enter")
    expect(outline).to_have_css("visibility", "hidden")
    expect(panel.locator(".strip .outline").first).to_have_css("visibility", "hidden")
    page.emulate_media(media="print")
    expect(panel.locator(".strip .outline").first).to_have_css("visibility", "visible")
    expect(panel.locator(".stage")).to_be_hidden()
    page.emulate_media(media="screen")
    panel.locator("button.hide").press("Enter")


def test_all_pictures_and_charts_are_drawn(page: Page) -> None:
    strip = page.locator(".strip .time-point")
    assert strip.count() == 2 * (4 + 3)
    for image in page.locator(".strip svg image").all():
        assert image.evaluate(
            "async e => { const i = new Image(); i.src = e.href.baseVal; await i.decode();"
            " return i.naturalWidth; }"
        )
    chart = pixels(page.locator(".line-chart").first)
    link = np.array([0x0B, 0x57, 0xB0])
    assert (np.abs(chart - link).sum(axis=-1) < 30).sum() > 50, "points in the color of the page"


def test_dark_and_narrow_pages_keep_nobody_out(page: Page) -> None:
    assert grave_violations(page) == []
    page.emulate_media(color_scheme="dark")
    assert grave_violations(page) == []
    page.set_viewport_size({"width": 360, "height": 640})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.emulate_media(color_scheme="light")
    page.set_viewport_size({"width": 1280, "height": 900})


def test_without_scripts_all_time_points_are_there(path: Path, open_report: OpenReport) -> None:
    page = open_report(path, java_script_enabled=False)
    assert page.locator(".strip .time-point").count() == 14
    expect(page.locator(".compare").first).to_be_hidden()
    expect(page.locator(".line-chart").first).to_be_visible()
