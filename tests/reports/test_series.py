"""The part of a subject report about change over time says what the tables of a series say."""

from __future__ import annotations

import io
import json
import re
import shutil
from base64 import b64decode
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from hyps_bids.errors import BadData, MissingInput
from hyps_bids.outputs.labels import label_rows
from hyps_bids.outputs.names import scan_paths, sidecar_path
from hyps_bids.outputs.scan import Scan
from hyps_bids.outputs.series import Series, time_point_paths
from hyps_bids.reports.scan_images import Voxels, read_images, read_raw
from hyps_bids.reports.series_facts import read_series
from hyps_bids.reports.series_images import draw_side, read_midway
from hyps_bids.reports.series_section import MOST_PICTURES, SeriesSection, build_series_section
from hyps_bids.reports.state import is_current, state_of
from hyps_bids.reports.subject import LIMIT
from tests.raising import raises
from tests.reports.conftest import GOOD, Study, named
from tests.reports.made_series import WHY_REFUSED, WHY_REVIEWED, Point, write_series
from tests.reports.test_subject import check, report

COLORS = {index: color for index, _, hemi, _, color in label_rows(("a", "p")) if hemi == "L"}
THREE = (Point(GOOD, 0.0), Point("sub-001A_ses-2021", 1.0), Point("sub-001A_ses-2023", 2.5))


@pytest.fixture(scope="module")
def head(processed: Study) -> tuple[Voxels, Voxels]:
    scan = named("sub-02")
    images = read_images(processed.output, scan, read_raw(processed.raw, scan))
    return images.anatomy, images.labels


def section(
    output: Path, *points: Point, head: tuple[Voxels, Voxels] | None = None
) -> SeriesSection:
    series = write_series(output, points, head)
    return build_series_section(output, series, {}, 600_000)


def test_a_report_shows_the_series(study: Study, head: tuple[Voxels, Voxels]) -> None:
    write_series(study.output, [*THREE, Point("sub-001A_ses-W3", None, "refused")], head)
    assert not is_current(study.raw, study.output, "001A")
    html = report(study, "001A")
    text = check(html)
    assert is_current(study.raw, study.output, "001A")
    assert "change over time: 1 of 4 scans left out" in text
    assert WHY_REFUSED in text
    assert "<masks>" not in html
    headline = "Left hippocampus: −2.0 % (95 % interval −2.5 to −1.5) per year, smaller over time"
    assert text.count(headline) == 2, "in the summary and in the section"
    assert "By the boundary shift −1.8 % (95 % interval −2.3 to −1.3)" in text
    assert "Right hippocampus: 0.0 % (95 % interval −0.5 to +0.5) per year, no clear change" in text
    assert f'href="#scan-{GOOD}"' in html
    assert html.count('class="line-chart"') == 6
    # Three scans and two differences on each side.
    assert html.count('<figure class="time-point') == 10
    # Each scan's own volume is there only for scans that were processed.
    assert len(re.findall(r"<title>ses-2020x[^<]* on its own: [\d,]+ mm³<", html)) == 6


def test_a_report_is_made_again_when_the_series_changes(tmp_path: Path) -> None:
    def state() -> str:
        return state_of(tmp_path, tmp_path, "001A", with_settings=True)

    write_series(tmp_path, THREE[:2])
    states = [state()]
    sidecar = sidecar_path(Series("001A", "T1w").paths(tmp_path)["qc"])
    sidecar.write_text('{"Fingerprint": "other"}')
    states.append(state())
    write_series(tmp_path, THREE)
    states.append(state())
    assert len(set(states)) == 3
    write_series(tmp_path, THREE)
    assert state() == states[-1]


@pytest.mark.slow
def test_a_report_with_missing_pictures_says_so_and_is_made_again(
    study: Study, head: tuple[Voxels, Voxels]
) -> None:
    write_series(study.output, THREE, head)
    next(study.output.glob("sub-001A/**/*space-midway*_T1w.nii.gz")).unlink()
    assert "Pictures over time are missing" in check(report(study, "001A"))
    assert not is_current(study.raw, study.output, "001A")
    write_series(study.output, THREE, head)
    report(study, "001A")
    assert is_current(study.raw, study.output, "001A")


def test_volumes_and_their_intervals_are_at_the_years_of_the_scans(tmp_path: Path) -> None:
    facts = section(tmp_path, *THREE).facts
    assert facts.timed
    assert [(point.visit, point.years) for point in facts.used] == [(1, 0), (2, 1), (3, 2.5)]
    volumes = [point.volumes["L", "whole"] for point in facts.used]
    assert [v.value for v in volumes] == pytest.approx([2500, 2450, 2375])
    # The standard error is 0.5 % of 2500 mm³.
    assert volumes[1].low == pytest.approx(2450 - 1.96 * 12.5, abs=0.1)
    assert volumes[1].bsi_mm3 == pytest.approx(-45)
    change = facts.change("L", "whole")
    assert change is not None
    assert change.fitted(2.5) == pytest.approx(2375)


def test_without_times_the_scans_are_numbered(tmp_path: Path) -> None:
    found = section(tmp_path, *(Point(p.stem, None) for p in THREE))
    assert not found.facts.timed
    assert not found.per_year
    assert found.changes[0].headline.startswith(
        "−4.0 % (95 % interval −5.0 to −3.0) from the first to the last scan, smaller over time."
    )
    assert "The times of the scans are not known." in found.changes[0].remarks
    assert "times are unknown" in found.charts[0][1]
    assert "mm³ at scan 3" in found.charts[0][1]


def test_a_side_that_is_missing_at_one_time_has_a_gap_and_no_outline_there(
    tmp_path: Path, head: tuple[Voxels, Voxels]
) -> None:
    points = [THREE[0], Point(THREE[1].stem, 1.0, missing="R"), THREE[2]]
    found = section(tmp_path, *points, head=head)
    charts = dict(found.charts)
    assert charts["Left hippocampus"].count("<circle") == 3
    assert charts["Right hippocampus"].count("<circle") == 2
    assert [len(side.images) for side in found.sides] == [3, 3]
    outlines = [bool(shown.picture.outline) for shown in found.sides[1].images]
    assert outlines == [True, False, True]


def test_a_line_begins_at_the_first_scan_that_shows_the_side(tmp_path: Path) -> None:
    points = [Point(THREE[0].stem, 0.0, missing="L"), *THREE[1:]]
    chart = str(dict(section(tmp_path, *points).charts)["Left hippocampus"])
    (line,) = re.findall(r'class="line thin"[^>]* d="M([^"]+)"', chart)
    ends = np.array([part.split() for part in line.split("L")], float)
    circles = re.findall(r'<circle[^>]* cx="([^"]+)" cy="([^"]+)"', chart)
    # All volumes lie on one line.
    np.testing.assert_allclose(ends, np.array(circles, float), atol=0.5)


def test_scans_that_were_processed_again_make_the_series_out_of_date(tmp_path: Path) -> None:
    series = write_series(tmp_path, THREE)
    mark = sidecar_path(series.paths(tmp_path)["qc"])
    scans = {point.stem: "as it was" for point in THREE}
    text = json.dumps({"Fingerprint": "made", "Scans": scans, "Used": list(scans)})
    mark.write_text(text)
    for stem, now in zip(scans, ("as it was", "as it was", "other"), strict=True):
        path = sidecar_path(scan_paths(Scan.from_stem(stem), tmp_path)["qc"])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"Fingerprint": now}))
    (problem,) = read_series(tmp_path, series).problems
    assert "again" in problem
    path.write_text(json.dumps({"Fingerprint": "as it was"}))
    assert read_series(tmp_path, series).problems == ()


def test_reviewed_and_refused_scans_are_named_in_words(tmp_path: Path) -> None:
    refused = Point("sub-001A_ses-9", None, "refused")
    found = section(tmp_path, THREE[0], Point(THREE[1].stem, 1.0, reasons=WHY_REVIEWED), refused)
    assert found.state.kind == "warn"
    assert found.notes == [f"ses-2021: {WHY_REVIEWED}", f"ses-9: {WHY_REFUSED}"]
    assert [point.title for point in found.facts.left_out] == ["ses-9"]
    (overlap, *_) = found.figures_of(found.facts.left_out[0])
    assert overlap == "0.712"
    assert found.facts.figures[0] == ("Overlap of heads", "mask_overlap", "Dice of the masks.")
    one_left = section(tmp_path, THREE[0], refused)
    assert one_left.state.words == "could not be measured", "not that there is no change"


def test_a_series_that_failed_or_was_interrupted_is_no_result(tmp_path: Path) -> None:
    found = section(tmp_path, *(Point(p.stem, None, "failed") for p in THREE))
    assert found.state.words == "could not be measured"
    assert WHY_REFUSED in found.notes[0]
    write_series(tmp_path, THREE)
    series = Series("001A", "T1w")
    sidecar_path(series.paths(tmp_path)["qc"]).unlink()
    assert "interrupted" in read_series(tmp_path, series).problems[0]


@pytest.mark.slow
def test_twenty_time_points_fit_on_a_page(study: Study, head: tuple[Voxels, Voxels]) -> None:
    stems = [f"sub-001A_ses-{k:02d}_acq-averyveryverylonglabelofasequence" for k in range(20)]
    write_series(study.output, [Point(stem, k / 2) for k, stem in enumerate(stems)], head)
    html = report(study, "001A")
    assert len(html.encode()) < LIMIT
    assert f"pictures of {MOST_PICTURES} of the 20 scans" in check(html)
    assert html.count('<figure class="time-point') == 2 * (2 * MOST_PICTURES - 1)
    title = "ses-19, acq-averyveryverylonglabelofasequence"
    assert f"{title}: 2,025 mm³" in html, "charts have all time points"


def _pixels(address: str) -> np.ndarray:
    content = b64decode(address.partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)


def test_what_became_darker_is_blue_and_the_other_side_is_gray(
    tmp_path: Path, head: tuple[Voxels, Voxels]
) -> None:
    found = section(tmp_path, *THREE, head=head)
    left, right = found.sides
    assert [side.hemi for side in found.sides] == ["L", "R"]
    shares = []
    for side in (left, right):
        # The last difference, where the left hippocampus has lost most.
        red, _, blue = np.moveaxis(_pixels(side.differences[-1].image), -1, 0)
        shares.append(((blue - red > 60).mean(), (red - blue > 60).mean()))
    assert shares[0][0] > 0.02
    assert shares[0][0] > 10 * shares[0][1]
    assert shares[1][0] < 0.005


def test_slices_and_gray_values_are_the_same_at_all_time_points(
    tmp_path: Path, head: tuple[Voxels, Voxels]
) -> None:
    write_series(tmp_path, THREE, head)
    scans = [Scan.from_stem(point.stem) for point in THREE]
    images = read_midway(tmp_path, scans)
    brighter = Voxels(images[0].anatomy.data * 1.2, images[0].anatomy.affine)
    drawn = draw_side([images[0], type(images[0])(brighter, images[0].labels)], COLORS)
    assert drawn is not None
    one, two = drawn.images
    assert one.marks == two.marks
    assert two.pixels.mean() > 1.1 * one.pixels.mean()
    assert one.outline == two.outline
    assert draw_side(images, {99: "#FFFFFF"}) is None


def test_images_on_another_grid_or_missing_are_errors(
    tmp_path: Path, head: tuple[Voxels, Voxels]
) -> None:
    write_series(tmp_path, THREE, head)
    scans = [Scan.from_stem(point.stem) for point in THREE]
    path = time_point_paths(scans[1], tmp_path)["midway_dseg"]
    image = nib.load(path)
    moved = image.affine.copy()
    moved[0, 3] += 1
    shutil.copy(path, tmp_path / "kept.nii.gz")
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj, np.uint8), moved), path)
    with raises(BadData, "midway-grid", path.name):
        read_midway(tmp_path, scans)
    path.unlink()
    with raises(MissingInput, "derivative-missing", path.name):
        read_midway(tmp_path, scans)
