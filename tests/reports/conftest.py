"""A browser without a network, real scans and simulated groups for the tests of reports."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np
import pytest

from hyps_bids import cli
from hyps_bids.outputs.scan import Scan
from hyps_bids.outputs.scan_files import write_failure
from hyps_bids.reports.group import write_group_report
from hyps_bids.reports.subject import write_subject_report
from tests.classification.conftest import shrink_search
from tests.reports import simulated

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

OpenReport = Callable[..., "Page"]

_LOCAL = ("file:", "data:", "blob:")


@pytest.fixture(scope="module")
def open_report(chromium: Browser) -> Iterator[OpenReport]:
    """Open a report from its file, ``open_report(path, **context_options)``, without a network.

    After the last test of the module, any message of the console, any error of a page and any
    request other than for the file itself is an error.
    """
    contexts: list[BrowserContext] = []
    complaints: list[str] = []

    def open_(path: Path, **options: Any) -> Page:
        def complain(text: object, really: bool = True) -> None:
            complaints.extend([f"{path.name}: {str(text)[:200]}"] if really else [])

        context = chromium.new_context(offline=True, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda m: complain(m.text, m.type in ("error", "warning")))
        page.on("pageerror", complain)
        page.on("request", lambda r: complain(r.url, not r.url.startswith(_LOCAL)))
        page.on("requestfailed", lambda r: complain(r.url))
        page.goto(path.resolve().as_uri(), wait_until="load")
        return page

    yield open_
    for context in contexts:
        context.close()
    assert complaints == []


def grave_violations(page: Page) -> list[Any]:
    """Check accessibility: rules whose violation keeps people out, with the elements."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    found = axe.Axe().run(page).response["violations"]
    grave = [v for v in found if v["impact"] in ("serious", "critical")]
    return [(v["id"], [node["html"][:150] for node in v["nodes"]]) for v in grave]


def named(stem: str) -> Scan:
    """Return the scan of a subject report, whose path is a file name only."""
    return Scan.from_path(Path(f"{stem}_T1w.nii.gz"))


def change_sidecar(path: Path, **entries: object) -> None:
    """Set entries of a JSON file; None removes one."""
    content = json.loads(path.read_text()) | entries
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def _write(path: Path, image: nib.Nifti1Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)


@dataclass(frozen=True)
class Study:
    """A raw dataset and its derivatives."""

    raw: Path
    output: Path


#: Odd but legal labels: a head, half a head, and a failed scan whose reason must be escaped.
GOOD = "sub-001A_ses-2020x_acq-2mmIso_run-01"
HALF = "sub-001A_ses-2021_run-1"
FAILED = "sub-001A_ses-W3"
#: Settings whose text must be escaped.
SETTINGS = "nprocs = 1 # <&>"
REASON = "it broke: <script>document.title = 'broken'</script> & <b>so on</b>"
#: The same head with another order and direction of the axes.
TURNED = "sub-02"


@pytest.fixture(scope="session")
def processed(tmp_path_factory: pytest.TempPathFactory, coarse_head: nib.Nifti1Image) -> Study:
    """A subject with three sessions and one without sessions; tests must not change it."""
    folder = tmp_path_factory.mktemp("reports")
    raw, output = folder / "raw", folder / "out"
    raw.mkdir()
    (raw / "dataset_description.json").write_text('{"Name": "Made", "BIDSVersion": "1.10.0"}')
    data, affine = np.asarray(coarse_head.dataobj), coarse_head.affine
    # The right hippocampus is outside the field of view.
    middle = round(-affine[0, 3] / affine[0, 0])
    half = nib.Nifti1Image(data[: middle + 2], affine)
    _write(raw / f"sub-001A/ses-2020x/anat/{GOOD}_T1w.nii.gz", coarse_head)
    _write(raw / f"sub-001A/ses-2021/anat/{HALF}_T1w.nii.gz", half)
    options = ["--skip-bids-validation", "--no-longitudinal"]
    assert cli.main([str(raw), str(output), "participant", *options]) == 0
    _write(raw / f"sub-001A/ses-W3/anat/{FAILED}_T1w.nii.gz", coarse_head)
    failed = Path(f"{FAILED}_T1w.nii.gz")
    write_failure(Scan.from_path(raw / "sub-001A/ses-W3/anat" / failed), output, REASON)
    _turn(raw / "sub-001A/ses-2020x/anat", raw / "sub-02/anat")
    _turn(output / "sub-001A/ses-2020x/anat", output / "sub-02/anat")
    return Study(raw, output)


def _turn(source: Path, target: Path) -> None:
    """Copy the files of the good scan; its images get another order and direction of the axes."""
    target.mkdir(parents=True)
    axes = nib.orientations.axcodes2ornt("PIL")
    for path in source.iterdir():
        copy = target / path.name.replace(GOOD, TURNED)
        if path.name.endswith(".nii.gz"):
            image = nib.load(path)
            turn = nib.orientations.ornt_transform(nib.io_orientation(image.affine), axes)
            stored = nib.Nifti1Image(image.dataobj.get_unscaled(), image.affine, image.header)
            turned = stored.as_reoriented(turn)
            turned.header.set_slope_inter(image.dataobj.slope, image.dataobj.inter)
            turned.to_filename(copy)
        else:
            shutil.copy(path, copy)


@pytest.fixture
def study(processed: Study, tmp_path: Path) -> Study:
    """A copy that a test may change."""
    shutil.copytree(processed.raw, tmp_path / "raw")
    shutil.copytree(processed.output, tmp_path / "out")
    return Study(tmp_path / "raw", tmp_path / "out")


@pytest.fixture(scope="session")
def pages(processed: Study, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Reports of both subjects; tests must not change them."""
    output = tmp_path_factory.mktemp("pages") / "out"
    shutil.copytree(processed.output, output)
    return {
        subject: write_subject_report(processed.raw, output, subject, settings_text=SETTINGS)
        for subject in ("001A", "02")
    }


@pytest.fixture(scope="session")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A group report of a dataset with everything that there can be; tests must not change it."""
    output = tmp_path_factory.mktemp("everything")
    simulated.write_derivatives(output, 40, sessions=2)
    simulated.write_models(output)
    with pytest.MonkeyPatch.context() as patch:
        shrink_search(patch)
        simulated.write_classifier(output)
    simulated.write_adapter(output)
    simulated.write_change(output)
    return write_group_report(output)


@pytest.fixture(scope="session")
def thousand(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A group report of 1000 scans, two of which have a subject report."""
    output = tmp_path_factory.mktemp("thousand")
    simulated.write_derivatives(output, 1000)
    for number in (5, 6):
        (output / f"sub-{number:04d}.html").write_text("<!doctype html><title>Subject</title>")
    return write_group_report(output)
