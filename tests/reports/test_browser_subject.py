"""Subject reports in a real browser, opened from their files and without a network."""

from __future__ import annotations

import io
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from hyps_bids.outputs.reading import read_table
from hyps_bids.outputs.writing import write_nifti, write_table
from hyps_bids.reports.subject import write_subject_report
from tests.reports.conftest import GOOD, HALF, OpenReport, Study, grave_violations

pytest.importorskip("playwright")
from playwright.sync_api import Locator, Page, expect

pytestmark = pytest.mark.slow
#: Milliseconds; loading takes long without a graphics card.
_LOADED_MS = 60_000


@pytest.fixture(scope="module")
def three_sessions(pages: dict[str, Path], open_report: OpenReport) -> Page:
    return open_report(pages["001A"])


@pytest.fixture(scope="module")
def one_scan(pages: dict[str, Path], open_report: OpenReport) -> Page:
    """The report of sub-02 in a small window, in which drawing takes less time."""
    return open_report(pages["02"], viewport={"width": 800, "height": 700})


def pixels(place: Locator) -> np.ndarray:
    """Take a screenshot; colors are 0 to 255."""
    return np.asarray(Image.open(io.BytesIO(place.screenshot())).convert("RGB")).astype(int)


def colored(image: np.ndarray, color: str) -> np.ndarray:
    """Find where an image has a color, in any shade."""
    wanted = np.array(list(bytes.fromhex(color[1:])), dtype=float)
    norm = np.linalg.norm(image, axis=-1)
    cosine = image @ wanted / np.maximum(norm, 1e-9) / np.linalg.norm(wanted)
    return (norm > 60) & (cosine > 0.99)


def open_viewer(page: Page, stem: str) -> None:
    page.locator(f'button[data-scan="scan-{stem}"]').click()
    expect(page.locator("#viewer-location")).to_contain_text(" mm", timeout=_LOADED_MS)
    expect(page.locator("#viewer-message")).to_have_text("", timeout=_LOADED_MS)
    expect(page.locator("#viewer-body")).to_be_visible()


def left_is_on_the_right(page: Page) -> None:
    expect(page.locator("#viewer-location")).to_contain_text("Left")
    page.locator("#viewer-cross").uncheck()
    page.locator("#viewer-planes").select_option("coronal")
    page.locator("#viewer-labels").fill("1")
    page.wait_for_timeout(500)
    slices = pixels(page.locator("#viewer-slices"))
    assert slices.std() > 20
    for image in (slices, pixels(page.locator("#viewer-surface"))):
        # These are the colors of the posterior parts of the left and the right hippocampus.
        left, right = (np.argwhere(colored(image, c)) for c in ("#0072B2", "#56B4E9"))
        assert min(len(left), len(right)) > 50
        # The median is robust: highlights of one part may have the color of the other.
        assert np.median(left[:, 1]) > np.median(right[:, 1]) + 50


def test_every_picture_can_be_decoded(three_sessions: Page) -> None:
    for image in three_sessions.locator(".picture svg image").all():
        assert image.evaluate(
            "async e => { const i = new Image(); i.src = e.href.baseVal; await i.decode();"
            " return i.naturalWidth; }"
        )


def test_viewer_draws_left_on_the_right_and_moves_to_another_scan(three_sessions: Page) -> None:
    page = three_sessions
    open_viewer(page, GOOD)
    left_is_on_the_right(page)
    open_viewer(page, HALF)
    expect(page.locator(f'section[id="scan-{HALF}"] #viewer')).to_be_visible()
    page.wait_for_timeout(300)
    assert colored(pixels(page.locator("#viewer-surface")), "#0072B2").sum() > 50
    # The other scan has no right hippocampus.
    assert page.evaluate("viewer.surface.meshes.length") == 1


def test_without_webgl_there_are_words(one_scan: Page) -> None:
    page = one_scan
    page.evaluate(
        "() => { const canvas = HTMLCanvasElement.prototype; window.original = canvas.getContext;"
        " canvas.getContext = () => null; }"
    )
    page.locator(".open-viewer").click()
    expect(page.locator("#viewer-message")).to_contain_text("WebGL 2")
    expect(page.locator("#viewer-body")).to_be_hidden()
    page.evaluate("() => { HTMLCanvasElement.prototype.getContext = window.original; }")


def test_outline_flickers_and_hides(one_scan: Page) -> None:
    page = one_scan
    picture = page.locator(".picture").first
    outline, flicker = picture.locator(".outline"), picture.locator("button.flicker")
    hide = picture.locator("button.hide")
    expect(outline).to_have_css("animation-name", "none")
    flicker.press("Enter")
    expect(flicker).to_have_attribute("aria-pressed", "true")
    expect(outline).to_have_css("animation-name", "flicker")
    hide.click()
    expect(flicker).to_have_attribute("aria-pressed", "false")
    expect(outline).to_have_css("visibility", "hidden")
    page.emulate_media(media="print")
    expect(outline).to_have_css("visibility", "visible")
    expect(hide).to_be_hidden()
    # Nothing flickers for readers who want no motion.
    page.emulate_media(media="screen", reduced_motion="reduce")
    expect(flicker).to_be_hidden()
    expect(hide).to_be_visible()
    page.emulate_media(reduced_motion="no-preference")


def test_viewer_controls_work_by_keyboard(one_scan: Page) -> None:
    page = one_scan
    open_viewer(page, "sub-02")
    left_is_on_the_right(page)
    location = page.locator("#viewer-location")
    before = location.text_content()
    page.locator("#viewer-x").focus()
    page.keyboard.press("ArrowRight")
    expect(location).not_to_have_text(str(before))
    page.locator("#viewer-x").fill(page.locator("#viewer-x").get_attribute("max") or "")
    expect(location).to_contain_text("not hippocampus")
    view = page.locator("#viewer-slices")
    page.locator("#viewer-probability").focus()
    plain = pixels(view)
    page.keyboard.press("End")
    page.wait_for_timeout(300)
    assert (pixels(view) != plain).any()
    near = str(page.locator("#viewer-x").get_attribute("max"))
    page.locator("#viewer-volume").select_option("whole head")
    expect(page.locator("#viewer-x")).not_to_have_attribute("max", near)
    page.wait_for_timeout(300)
    assert pixels(view).std() > 20


def test_a_scan_without_hippocampi(study: Study, open_report: OpenReport) -> None:
    prefix = f"{study.output}/sub-02/anat/sub-02_seg-hippocampus_"
    image = nib.load(f"{prefix}dseg.nii.gz")
    empty = nib.Nifti1Image(np.zeros(image.shape, np.uint8), image.affine)
    write_nifti(Path(f"{prefix}dseg.nii.gz"), empty)
    qc, morph = (read_table(Path(f"{prefix}{name}.tsv")) for name in ("qc", "morph"))
    qc["flags"] = "missing_L missing_R"
    sided = [name for name in qc if name.endswith(("_L", "_R"))]
    qc[sided] = morph[["voxels", "volume_mm3", "volume_soft_mm3"]] = np.nan
    write_table(Path(f"{prefix}qc.tsv"), qc)
    write_table(Path(f"{prefix}morph.tsv"), morph)
    path = write_subject_report(study.raw, study.output, "02", settings_text="a = 1")
    page = open_report(path)
    row = page.get_by_role("row", name="Agreement with the localizer left missing")
    expect(row).to_be_visible()
    assert "the hippocampi" not in str(page.locator("svg").first.get_attribute("aria-label"))
    open_viewer(page, "sub-02")
    for name in ("surface", "labels", "probability"):
        expect(page.locator(f"#viewer-{name}")).to_be_hidden()
    expect(page.locator("#viewer-location")).to_contain_text(re.compile("mm$"))
    # The viewer opens in the middle of the head.
    assert pixels(page.locator("#viewer-slices")).std() > 20


@pytest.mark.parametrize("name", ["three_sessions", "one_scan"])
def test_accessibility(request: pytest.FixtureRequest, name: str) -> None:
    page: Page = request.getfixturevalue(name)
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        assert grave_violations(page) == []
    page.emulate_media(color_scheme="light")


def test_phone(pages: dict[str, Path], open_report: OpenReport) -> None:
    for subject in ("001A", "02"):
        size = {"width": 360, "height": 740}
        page = open_report(pages[subject], viewport=size, has_touch=True, is_mobile=True)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
    open_viewer(page, "sub-02")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    # Both canvases fit the screen, and there is room beside them to scroll the page.
    for name in ("slices", "surface"):
        box = page.locator(f"#viewer-{name}").bounding_box()
        assert box is not None
        assert box["height"] <= 320
        assert box["x"] + box["width"] <= 320
