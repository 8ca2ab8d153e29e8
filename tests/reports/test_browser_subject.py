"""Subject reports in a real browser."""

from __future__ import annotations

import io
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from hyps_bids.outputs.reading import read_table
from hyps_bids.outputs.writing import write_nifti, write_table
from hyps_bids.reports.subject import write_subject_report
from tests.reports.conftest import GOOD, HALF, OpenReport, Study

pytest.importorskip("playwright")
from playwright.sync_api import Locator, Page, expect

#: loading takes long without a graphics card
_LOADED_MS = 60_000
#: so does drawing
_SMALL = {"width": 800, "height": 700}


@pytest.fixture(scope="module")
def pages(processed: Study, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Reports of both subjects."""
    output = tmp_path_factory.mktemp("pages") / "out"
    shutil.copytree(processed.output, output)
    return {
        subject: write_subject_report(processed.raw, output, subject, settings_text="a = 1")
        for subject in ("001A", "02")
    }


def pixels(place: Locator) -> np.ndarray:
    """A screenshot, colors in 0 … 255."""
    return np.asarray(Image.open(io.BytesIO(place.screenshot())).convert("RGB")).astype(int)


def colored(image: np.ndarray, color: str) -> np.ndarray:
    """Where an image has a color, in any shade."""
    wanted = np.array(list(bytes.fromhex(color[1:])), dtype=float)
    norm = np.linalg.norm(image, axis=-1)
    cosine = image @ wanted / np.maximum(norm, 1e-9) / np.linalg.norm(wanted)
    return (norm > 60) & (cosine > 0.99)


def open_viewer(page: Page, stem: str) -> None:
    page.locator(f'button[data-scan="scan-{stem}"]').click()
    expect(page.locator("#viewer-location")).to_contain_text(" mm", timeout=_LOADED_MS)
    expect(page.locator("#viewer-message")).to_have_text("", timeout=_LOADED_MS)
    expect(page.locator("#viewer-body")).to_be_visible()


def test_report_opens_and_its_links_lead_somewhere(
    pages: dict[str, Path], open_report: OpenReport
) -> None:
    # without motion: scrolling takes no time
    page = open_report(pages["001A"], reduced_motion="reduce")
    expect(page).to_have_title("Hippocampus of sub-001A")
    links = page.locator("nav a, td a, th a").all()
    assert len(links) >= 9
    for link in links:
        link.click()
        target = page.evaluate("decodeURIComponent(location.hash).slice(1)")
        expect(page.locator(f'[id="{target}"]')).to_be_in_viewport()
    # every picture is decoded
    for image in page.locator(".picture svg image").all():
        assert image.evaluate(
            "async e => { const i = new Image(); i.src = e.href.baseVal; await i.decode();"
            " return i.naturalWidth; }"
        )


@pytest.mark.slow
@pytest.mark.parametrize(("subject", "stem"), [("001A", GOOD), ("02", "sub-02")])
def test_viewer_draws_left_on_the_right(
    pages: dict[str, Path], open_report: OpenReport, subject: str, stem: str
) -> None:
    page = open_report(pages[subject], viewport=_SMALL)
    open_viewer(page, stem)
    expect(page.locator("#viewer-location")).to_contain_text("Left")
    page.locator("#viewer-cross").uncheck()
    page.locator("#viewer-planes").select_option("coronal")
    page.locator("#viewer-labels").fill("1")
    page.wait_for_timeout(500)
    slices, surface = (
        pixels(page.locator("#viewer-slices")),
        pixels(page.locator("#viewer-surface")),
    )
    assert slices.std() > 20
    for image in (slices, surface):
        # posterior parts: of left and right hippocampus
        left, right = (np.argwhere(colored(image, c)) for c in ("#0072B2", "#56B4E9"))
        assert min(len(left), len(right)) > 50
        # highlights of the one may have the color of the other
        assert np.median(left[:, 1]) > np.median(right[:, 1]) + 50


@pytest.mark.slow
def test_viewer_controls_work_by_keyboard(pages: dict[str, Path], open_report: OpenReport) -> None:
    page = open_report(pages["02"], viewport=_SMALL)
    open_viewer(page, "sub-02")
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


def test_viewer_moves_to_another_scan(pages: dict[str, Path], open_report: OpenReport) -> None:
    page = open_report(pages["001A"])
    open_viewer(page, GOOD)
    open_viewer(page, HALF)
    inside = page.locator(f'section[id="scan-{HALF}"] #viewer')
    expect(inside).to_be_visible()
    page.wait_for_timeout(300)
    assert colored(pixels(page.locator("#viewer-surface")), "#0072B2").sum() > 50
    # the other scan's right hippocampus is gone
    assert page.evaluate("viewer.surface.meshes.length") == 1


@pytest.mark.slow
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
    assert "the hippocampi" not in page.locator("svg").first.get_attribute("aria-label")
    expect(page.get_by_text("scan, without segmentation")).to_be_visible()
    open_viewer(page, "sub-02")
    for name in ("surface", "labels", "probability"):
        expect(page.locator(f"#viewer-{name}")).to_be_hidden()
    expect(page.locator("#viewer-location")).to_contain_text(re.compile("mm$"))
    # it opens in the middle of the head
    assert pixels(page.locator("#viewer-slices")).std() > 20


@pytest.mark.slow
def test_without_webgl_there_are_words(pages: dict[str, Path], open_report: OpenReport) -> None:
    page = open_report(pages["02"])
    page.evaluate("() => { HTMLCanvasElement.prototype.getContext = () => null; }")
    page.locator(".open-viewer").click()
    expect(page.locator("#viewer-message")).to_contain_text("no WebGL 2")
    expect(page.locator("#viewer-body")).to_be_hidden()


@pytest.mark.slow
def test_outline_flickers_and_hides(pages: dict[str, Path], open_report: OpenReport) -> None:
    page = open_report(pages["02"])
    figure = page.locator(".picture").first
    outline, flicker = figure.locator(".outline"), figure.locator("button.flicker")
    hide = figure.locator("button.hide")
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


@pytest.mark.slow
def test_nothing_flickers_for_who_wants_no_motion(
    pages: dict[str, Path], open_report: OpenReport
) -> None:
    page = open_report(pages["02"], reduced_motion="reduce")
    expect(page.locator("button.flicker").first).to_be_hidden()
    expect(page.locator("button.hide").first).to_be_visible()


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("subject", ["001A", "02"])
def test_accessibility(
    pages: dict[str, Path], open_report: OpenReport, scheme: str, subject: str
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    # the checker is a script of its own, which the page rightly refuses
    page = open_report(pages[subject], color_scheme=scheme, bypass_csp=True)
    if subject == "02":
        open_viewer(page, "sub-02")
    found = axe.Axe().run(page).response["violations"]
    grave = [v for v in found if v["impact"] in ("serious", "critical")]
    assert [(v["id"], [n["html"][:150] for n in v["nodes"]]) for v in grave] == []


@pytest.mark.slow
@pytest.mark.parametrize("subject", ["001A", "02"])
def test_phone(pages: dict[str, Path], open_report: OpenReport, subject: str) -> None:
    page = open_report(
        pages[subject], viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True
    )
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    if subject == "02":
        open_viewer(page, "sub-02")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        # both fit the screen, and beside them there is room to scroll by
        for name in ("slices", "surface"):
            box = page.locator(f"#viewer-{name}").bounding_box()
            assert box is not None
            assert box["height"] <= 320
            assert box["x"] + box["width"] <= 320
