"""Take the pictures of the documentation from the reports of the demo.

    hyps-tools demo demo-out && python docs/pictures.py demo-out

needs Playwright and Chromium, and replaces the files in ``docs/images``.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

IMAGES = Path(__file__).parent / "images"
LARGEST = 200_000
#: name → report, what it shows, largest height in pixels
PICTURES = {
    "hippocampus": ("sub-0001.html", "figure.picture svg >> nth=0", 900),
    "report-summary": ("sub-0001.html", "body", 420),
    "report-hippocampus": ("sub-0001.html", "figure.picture >> nth=0", 700),
    "report-uncertainty": ("sub-0001.html", "figure.picture >> nth=3", 600),
    "group-report": ("group_report.html", "body", 900),
}
VIEWER = "report-viewer"


def take(browser: Browser, results: Path) -> None:
    """Take all pictures."""
    for name, (report, what, height) in PICTURES.items():
        page = browser.new_page(viewport={"width": 1000, "height": 1000}, device_scale_factor=1.5)
        page.goto((results / report).absolute().as_uri())
        page.wait_for_timeout(2000)
        box = page.locator(what).first.bounding_box()
        assert box is not None, what
        clip = {**box, "height": min(box["height"], height)}
        save(page.screenshot(full_page=True, clip=clip, type="jpeg", quality=80), name)
        page.close()
    page = browser.new_page(viewport={"width": 1000, "height": 1000}, device_scale_factor=1.5)
    page.goto((results / "sub-0001.html").absolute().as_uri())
    page.get_by_role("button", name="Open the viewer").click()
    # The surfaces are drawn after the slices.
    page.wait_for_timeout(5000)
    section = page.locator("#viewer-body")
    save(section.screenshot(type="jpeg", quality=80), VIEWER)


def save(picture: bytes, name: str) -> None:
    """Write a picture that is not too large."""
    assert len(picture) < LARGEST, (name, len(picture))
    (IMAGES / f"{name}.jpg").write_bytes(picture)
    print(f"{name}: {len(picture) // 1000} kB")


def main() -> None:
    """Start the browser of the system."""
    arguments = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=arguments
        )
        take(browser, Path(sys.argv[1]) / "derivatives")
        browser.close()


if __name__ == "__main__":
    main()
