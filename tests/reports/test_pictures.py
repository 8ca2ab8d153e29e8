from __future__ import annotations

import io
import re

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from hyps_bids.reports import pictures
from hyps_bids.reports.pictures import Layout, Tile, mosaic, overview, side_tiles, uncertainty
from hyps_bids.reports.scan_images import Voxels

COLORS = {1: "#D55E00"}
ROWS = side_tiles((-35, -20, -15), (-15, 20, 5))


def head(axes: str = "RAS", zoom: float = 1.0) -> tuple[Voxels, Voxels]:
    """A made gray image of 120 mm in any axes, with a bright ball on the left, and its label."""
    side = round(120 / zoom)
    affine = np.diag([zoom, zoom, zoom, 1.0])
    affine[:3, 3] = -60
    grid = np.stack(np.meshgrid(*[np.arange(side) * zoom - 60] * 3, indexing="ij"))
    ball = np.linalg.norm(grid - np.array([-25, 0, -5])[:, None, None, None], axis=0) <= 8
    data = (100 + 100 * ball).astype(np.float32)
    image = nib.Nifti1Image(data, affine)
    turn = nib.orientations.axcodes2ornt(axes)
    turned = image.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(affine), turn))
    anatomy = Voxels(np.asarray(turned.dataobj), turned.affine)
    return anatomy, Voxels((anatomy.data > 150).astype(np.uint8), anatomy.affine)


def points(outline: str) -> np.ndarray:
    """All points of the contours, mm in the picture."""
    out = []
    for path in re.findall(r'd="([^"]+)"', outline):
        for start, steps in re.findall(r"M(-?\d+ -?\d+)l([-\d ]+)", path):
            first = np.array(start.split(), dtype=float)
            moves = np.array(steps.split(), dtype=float).reshape(-1, 2)
            out.append(first + np.cumsum(moves, axis=0))
    return np.concatenate(out) / 20


def test_left_is_on_the_right() -> None:
    for plane in (1, 2):
        tile = Tile(plane, (0, 0, 0), 40, 40)
        assert tile.place((-10, 0, 0))[0] > tile.place((10, 0, 0))[0]
    # The nose is on the left, and up is up.
    tile = Tile(0, (0, 0, 0), 40, 40)
    assert tile.place((0, 10, 0))[0] < tile.place((0, -10, 0))[0]
    assert tile.place((0, 0, 10))[1] < tile.place((0, 0, -10))[1]


@pytest.mark.parametrize("plane", [0, 1, 2])
def test_points_and_place_are_inverse(plane: int) -> None:
    tile = Tile(plane, (3, -4, 5), 20, 10, left=7, top=2)
    world = tile.points(0.5)
    assert world.shape == (3, 20, 40)
    x, y = tile.place(world[:, 4, 30].tolist())
    assert (x, y) == pytest.approx((7 + 30.5 * 0.5, 2 + 4.5 * 0.5))


@pytest.mark.parametrize("axes", ["RAS", "LPS", "PIR", "SLA"])
def test_contours_and_image_are_where_the_ball_is(axes: str) -> None:
    anatomy, labels = head(axes)
    for off in (0, 4):
        rows = [[Tile(plane, (off - 25, off, off - 5), 60, 60) for plane in (0, 1, 2)]]
        picture = mosaic(anatomy, labels, COLORS, rows)
        contour = points(picture.outline)
        pixels = picture.pixels / picture.pixels.max()
        scale = picture.pixels.shape[1] / (picture.width / 20)
        for tile in Layout.of_rows(rows, 0.5).tiles:
            inside = (contour[:, 0] > tile.left) & (contour[:, 0] < tile.left + tile.width)
            x, y = tile.place((-25, 0, -5))
            # Contours close at the cut, so their middle is the middle of the ball.
            low, high = contour[inside].min(axis=0), contour[inside].max(axis=0)
            assert (low + high) / 2 == pytest.approx((x, y), abs=0.6)
            if not off:
                assert pixels[int(y * scale), int(x * scale)] > 0.9
                assert pixels[int(y * scale), int((x + 15) * scale)] < 0.1


def test_an_outline_on_a_part_of_the_grid() -> None:
    anatomy, labels = head()
    whole = mosaic(anatomy, labels, COLORS, ROWS)
    part = mosaic(anatomy, labels.part([slice(20, None)] * 3), COLORS, ROWS)
    assert whole.outline == part.outline != ""
    assert mosaic(anatomy, labels, {7: "#000000"}, ROWS).outline == ""


@pytest.mark.parametrize("axes", ["RAS", "PIL"])
@pytest.mark.parametrize("degrees", [0, 20])
def test_outlines_pass_one_half_of_all_samples(axes: str, degrees: int) -> None:
    """Only the pixels around a segmentation are sampled; the others are outside."""
    _, labels = head(axes, 1.3)
    angle = np.deg2rad(degrees)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    ball = Voxels((labels.data > 0).astype(np.float32), turn @ labels.affine)
    layout = Layout.of_rows(ROWS, 0.5)
    everything = Voxels(np.pad(ball.data, 40), ball.moved((-40,) * 3))
    whole = layout.contours(everything, "#FFFFFF")
    assert whole.count("l") > 8
    assert layout.contours(Voxels(ball.data > 0, ball.affine), "#FFFFFF") == whole
    # Beyond the field of all tiles there is nothing to draw.
    away = ball.affine.copy()
    away[:3, 3] += 300
    assert layout.contours(Voxels(ball.data > 0, away), "#FFFFFF") == ""


def test_marks_say_sides_coordinates_and_scale() -> None:
    anatomy, labels = head()
    marks = mosaic(anatomy, labels, COLORS, ROWS).marks
    texts = re.findall(r">([^<>]+)</text>", marks)
    assert texts.count("L") == texts.count("R") == 12
    assert texts.count("A") == texts.count("P") == 4
    assert "x = −18" in texts
    assert texts[-1] == "10 mm"


def test_a_large_segmentation_is_shown_whole() -> None:
    (coronal, *_), (sagittal, *_), _ = side_tiles((-80, -60, -50), (0, 60, 30))
    assert min(coronal.width, coronal.height) >= 92
    assert sagittal.width >= 132


def test_uncertainty_is_in_color_where_the_network_hesitates() -> None:
    anatomy, labels = head()
    tile = [[Tile(1, (-25.0, 0.0, -5.0), 40, 40)]]
    certain, doubtful = (
        uncertainty(anatomy, Voxels(labels.data * np.float32(p), labels.affine), tile)
        for p in (1, 0.6)
    )
    middle = np.array(doubtful.pixels.shape[:2]) // 2
    assert np.ptp(certain.pixels[tuple(middle)]) == 0
    red, green, blue = doubtful.pixels[tuple(middle)].astype(int)
    assert red > green > blue
    # The color map is ordered by lightness.
    weights = np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(pictures._heat(np.linspace(0, 1, 20)) @ weights) > 0).all()


def test_overview_with_and_without_masks() -> None:
    anatomy, labels = head("PIR", 2.0)
    bare = overview(anatomy)
    assert bare.outline == ""
    assert len(re.findall("<text", bare.marks)) == 3 * 3 + 1
    full = overview(
        anatomy,
        intracranial=Voxels((anatomy.data > 0).astype(np.uint8), anatomy.affine),
        labels=labels,
        colors=COLORS,
        centers=[(-25, 0, -5), (25, 0, -5)],
        boxes=[(-25, 0, -5), (25, 0, -5)],
    )
    # Each box is in its own sagittal slice and in the coronal and axial ones.
    assert full.outline.count("<rect") == 6
    assert full.outline.count('stroke="#D55E00"') == 1


def test_compression_keeps_to_its_limit() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (300, 400), dtype=np.uint8)
    best = pictures.compress(noise, 10**9)
    assert Image.open(io.BytesIO(best)).size == (400, 300)
    small = pictures.compress(noise, len(best) // 4)
    assert len(small) <= len(best) // 4
    assert Image.open(io.BytesIO(small)).format == "WEBP"
