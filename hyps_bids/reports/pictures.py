"""Pictures of a scan: gray images with contours and marks drawn over them as SVG.

Contours and letters are vectors: they are small, sharp at any zoom and in print, and easy to switch
off. World coordinates are RAS, mm. All pictures follow the radiological convention (left is on the
right of the picture), and in sagittal slices the nose points to the left.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from contourpy import LineType, contour_generator
from markupsafe import Markup
from nibabel.affines import apply_affine
from PIL import Image
from scipy import ndimage

from hyps_bids.outputs.scan_files import BOX
from hyps_bids.reports.scan_images import Voxels

#: Probabilities between which the uncertainty is shown.
ENTROPY_RANGE = (0.05, 0.95)
#: SVG units per mm.
_UNITS = 20
#: Mm between the points at which the image is sampled around a hippocampus.
_FINE = 0.5
#: Mm under a picture for a color bar.
_BAR = 6.0
_AXES = "xyz"
#: Rows and columns of a picture.
Window = tuple[slice, slice]
#: Smallest part of the head that a tile around a hippocampus shows: right, anterior, superior, mm.
_FIELD = np.array([40.0, 60.0, 40.0])
_MARGIN = 6.0
#: Mm between tiles.
_GAP = 1.0
#: Rows of a mosaic: plane and number of slices; with the field above all rows are equally wide.
_ROWS = ((1, 6), (0, 4), (2, 6))
#: Size of a whole head where there is no mask, and margin around the mask, mm.
_HEAD, _SCALP = np.array([190.0, 230.0, 230.0]), 20.0
#: Five stops of the color map plasma: perceptually uniform, safe for color-blind readers.
_HEAT = np.array([[13, 8, 135], [126, 3, 168], [204, 71, 120], [248, 149, 64], [240, 249, 33]])
_ICV, _EDGE = "#F0E442", "#FFFFFF"


@dataclass(frozen=True)
class Tile:
    """One slice in a picture: what it shows (world coordinates) and its place in the picture, mm.

    The plane is the world axis that is perpendicular to it: 0 sagittal, 1 coronal, 2 axial.
    """

    plane: int
    center: tuple[float, float, float]
    width: float
    height: float
    left: float = 0.0
    top: float = 0.0

    @property
    def axes(self) -> tuple[int, int]:
        """World axes whose positive directions are to the left and up in the picture."""
        return ((1, 2), (0, 2), (0, 1))[self.plane]

    def points(self, step: float) -> np.ndarray:
        """Return the world coordinates of its pixels, shape ``(3, rows, columns)``."""
        rows, columns = round(self.height / step), round(self.width / step)
        across, up = self.axes
        out = np.empty((3, rows, columns))
        out[self.plane] = self.center[self.plane]
        out[across] = self.center[across] + self.width / 2 - (np.arange(columns) + 0.5) * step
        heights = self.center[up] + self.height / 2 - (np.arange(rows) + 0.5) * step
        out[up] = heights[:, None]
        return out

    def window(self, low: np.ndarray, high: np.ndarray, step: float) -> Window | None:
        """Find the pixels, rows and columns, of a box in the world; None if it is elsewhere."""
        if not low[self.plane] <= self.center[self.plane] <= high[self.plane]:
            return None
        parts = []
        for axis, size in zip(self.axes[::-1], (self.height, self.width), strict=True):
            # Pixels are counted against the direction of the axis.
            edge = self.center[axis] + size / 2
            start = max(0, round((edge - high[axis]) / step) - 1)
            stop = min(round(size / step), round((edge - low[axis]) / step) + 1)
            if start >= stop:
                return None
            parts.append(slice(start, stop))
        return parts[0], parts[1]

    def place(self, world: Sequence[float]) -> tuple[float, float]:
        """Find a world point in the picture, mm from its left and top."""
        across, up = self.axes
        x = self.left + self.width / 2 - (world[across] - self.center[across])
        y = self.top + self.height / 2 - (world[up] - self.center[up])
        return x, y


@dataclass(frozen=True)
class Picture:
    """A picture and what is drawn over it.

    The pixels are bytes in gray or RGB. Width and height are in SVG units. The outline has the
    contours; the marks are letters, coordinates and the scale bar.
    """

    pixels: np.ndarray
    width: int
    height: int
    outline: Markup
    marks: Markup


def side_tiles(
    low: Sequence[float], high: Sequence[float], rows: Sequence[tuple[int, int]] = _ROWS
) -> list[list[Tile]]:
    """Choose slices through a hippocampus, given the corners of its bounding box in the world.

    The rows, given by plane and number of slices, are coronal slices from anterior to posterior,
    sagittal ones from right to left, and axial ones from superior to inferior.

    Examples
    --------
    >>> coronal, sagittal, axial = side_tiles((-40, -40, -30), (-20, 0, 0))
    >>> len(coronal), len(sagittal), len(axial)
    (6, 4, 6)
    >>> [round(tile.center[1]) for tile in coronal]
    [-3, -10, -17, -23, -30, -37]
    """
    corner = np.asarray(high, dtype=float)
    size = corner - np.asarray(low, dtype=float)
    # All slices have the same zoom, and a very large segmentation is still shown whole.
    field = _FIELD * max(1.0, float(((size + 2 * _MARGIN) / _FIELD).max()))
    tiles = []
    for plane, count in rows:
        positions = corner[plane] - (np.arange(count) + 0.5) / count * size[plane]
        tiles.append([_tile(plane, at, corner - size / 2, field) for at in positions])
    return tiles


def mosaic(
    anatomy: Voxels, labels: Voxels, colors: Mapping[int, str], rows: Sequence[Sequence[Tile]]
) -> Picture:
    """Draw slices through a hippocampus with the contours of its parts.

    The labels may be of a part of the image. Labels without a color (``#rrggbb``) are not drawn.
    The rows of slices are those of :func:`side_tiles`.
    """
    layout = Layout.of_rows(rows, _FINE)
    return layout.picture(layout.gray(anatomy, zoom=3), layout.label_contours(labels, colors))


def uncertainty(anatomy: Voxels, whole: Voxels, rows: Sequence[Sequence[Tile]]) -> Picture:
    """Draw where the network is unsure: the entropy of hippocampus against background.

    `whole` is the probability of hippocampus in a part of the image. The picture is colored where
    the probability is within :data:`ENTROPY_RANGE`, and the outline is where it is one half. A
    color bar gives the entropy in bits.
    """
    layout = Layout.of_rows(rows, _FINE)
    gray = layout.gray(anatomy, zoom=3)
    probability = Image.fromarray(layout.canvas(whole))
    p = np.asarray(probability.resize(gray.shape[::-1], Image.Resampling.BILINEAR))
    unsure = (p >= ENTROPY_RANGE[0]) & (p <= ENTROPY_RANGE[1])
    q = p[unsure]
    entropy = -(q * np.log2(q) + (1 - q) * np.log2(1 - q))
    pixels = np.repeat(gray[..., None], 3, axis=2)
    pixels[unsure] = (0.2 * pixels[unsure] + 0.8 * _heat(entropy)).astype(np.uint8)
    picture = layout.picture(pixels, layout.contours(whole, _EDGE))
    return replace(
        picture,
        height=round((layout.height + _BAR) * _UNITS),
        marks=picture.marks + _color_bar(layout.width, layout.height),
    )


def overview(
    anatomy: Voxels,
    *,
    intracranial: Voxels | None = None,
    labels: Voxels | None = None,
    colors: Mapping[int, str] | None = None,
    centers: Sequence[Sequence[float]] = (),
    boxes: Sequence[Sequence[float]] = (),
) -> Picture:
    """Draw the whole head: intracranial contour, boxes, segmentation.

    There is a sagittal slice through each of the centers of the hippocampi, a coronal and an axial
    one; without centers, they go through the middle of the head. The labels may be of a part of the
    image. The boxes are given by their centers.
    """
    low, high = anatomy.extent()
    region = None if intracranial is None else intracranial.content()
    intracranial = None if intracranial is None or region is None else intracranial.part(region)
    middle, wanted = middle_of_head(anatomy, intracranial), _HEAD
    if intracranial is not None:
        first, last = intracranial.extent(0.5)
        wanted = last - first + 2 * _SCALP
    # The field is no larger than the image, so that a part of a head fills the picture too.
    field = np.ceil(np.minimum(wanted, high - low + 2))
    middle = np.clip(middle, low + field / 2 - 1, high - field / 2 + 1)
    points = [np.asarray(c, dtype=float) for c in centers] or [middle]
    mean = np.mean(points, axis=0)
    slices = [*((0, point[0]) for point in points), (1, mean[1]), (2, mean[2])]
    layout = Layout.of_rows([[_tile(plane, at, middle, field) for plane, at in slices]], step=1.0)
    outline = Markup("")
    if intracranial is not None:
        mask = Voxels(intracranial.data > 0, intracranial.affine)
        outline += layout.contours(mask, _ICV)
    if labels is not None:
        outline += layout.label_contours(labels, colors or {})
    for center in boxes:
        outline += _box(np.asarray(center, dtype=float), layout.tiles)
    return layout.picture(layout.gray(anatomy, zoom=2), outline, scale_bar=50)


def middle_of_head(anatomy: Voxels, intracranial: Voxels | None = None) -> np.ndarray:
    """Find the middle of the intracranial mask, or else of the bright voxels, in world coordinates.

    Examples
    --------
    >>> image = np.zeros((40, 40, 40))
    >>> image[20:, :8, 8:24] = 1
    >>> middle_of_head(Voxels(image, np.eye(4))).tolist()
    [28.0, 2.0, 14.0]
    """
    region = None if intracranial is None else intracranial.content()
    if intracranial is not None and region is not None:
        return np.mean(intracranial.part(region).extent(0.5), axis=0)
    step = 4
    coarse = anatomy.data[::step, ::step, ::step]
    bright = np.argwhere(coarse > coarse.mean())
    middle = step * bright.mean(axis=0) if len(bright) else (np.array(anatomy.data.shape) - 1) / 2
    return apply_affine(anatomy.affine, middle)


def compress(pixels: np.ndarray, limit: int) -> bytes:
    """Encode a picture (bytes, gray or RGB) as WebP in the best quality within a limit in bytes.

    The quality goes down first, then the resolution. The smallest version is returned even if it
    is larger than the limit.

    Examples
    --------
    >>> compress(np.zeros((8, 8), np.uint8), 1000)[:4]
    b'RIFF'
    """
    image = Image.fromarray(pixels).convert("RGB")
    content = b""
    for scale in (1.0, 0.7, 0.5, 0.35):
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        scaled = image if scale == 1 else image.resize(size, Image.Resampling.LANCZOS)
        for quality in (80, 60, 40):
            buffer = io.BytesIO()
            scaled.save(buffer, "WEBP", quality=quality, method=2)
            content = buffer.getvalue()
            if len(content) <= limit:
                return content
    return content


def extremes(canvas: np.ndarray) -> tuple[float, float]:
    """Find robust extremes of sampled intensities; 0 is beyond the edge of the image."""
    inside = canvas[canvas != 0]
    if not inside.size:
        return 0.0, 1.0
    low, high = np.percentile(inside, (0.5, 99.8))
    return float(low), float(high)


def gray_bytes(canvas: np.ndarray, limits: tuple[float, float], zoom: int) -> np.ndarray:
    """Turn sampled intensities into bytes, black and white at the limits; enlarge them smoothly."""
    low, high = limits
    scaled = np.clip((canvas - low) / max(high - low, 1e-12), 0, 1)
    scaled[canvas == 0] = 0
    image = Image.fromarray(np.round(255 * scaled).astype(np.uint8))
    size = (image.width * zoom, image.height * zoom)
    return np.asarray(image.resize(size, Image.Resampling.BICUBIC))


@dataclass(frozen=True)
class Layout:
    """The placed tiles of a picture, its size and the distance of samples, mm."""

    tiles: tuple[Tile, ...]
    width: float
    height: float
    step: float

    @classmethod
    def of_rows(cls, rows: Sequence[Sequence[Tile]], step: float) -> Layout:
        """Put tiles side by side, row under row, each row as wide as the picture."""
        width = max(sum(tile.width for tile in row) + _GAP * (len(row) - 1) for row in rows)
        tiles: list[Tile] = []
        top = 0.0
        for row in rows:
            gap = (width - sum(tile.width for tile in row)) / max(1, len(row) - 1)
            height = max(tile.height for tile in row)
            left = 0.0
            for tile in row:
                tiles.append(replace(tile, left=left, top=top + (height - tile.height) / 2))
                left += tile.width + gap
            top += height + _GAP
        return cls(tuple(tiles), width, top - _GAP, step)

    def picture(
        self, pixels: np.ndarray, outline: Markup, scale_bar: int = 10, letters: float | None = None
    ) -> Picture:
        """Put pixels, outline and marks together; scale bar and height of the letters are in mm."""
        size = (round(self.width * _UNITS), round(self.height * _UNITS))
        marks = _marks(self.tiles, letters or self.width / 75, scale_bar)
        return Picture(pixels, *size, outline, marks)

    def canvas(self, voxels: Voxels) -> np.ndarray:
        """Sample voxels in all tiles."""
        shape = (round(self.height / self.step), round(self.width / self.step))
        canvas = np.zeros(shape, dtype=np.float32)
        for tile in self.tiles:
            values = _sample(voxels, tile, self.step)
            top, left = round(tile.top / self.step), round(tile.left / self.step)
            view = canvas[top : top + values.shape[0], left : left + values.shape[1]]
            view[:] = values[: view.shape[0], : view.shape[1]]
        return canvas

    def gray(self, anatomy: Voxels, zoom: int) -> np.ndarray:
        """Sample the image between robust extremes, and enlarge it smoothly; returns bytes."""
        canvas = self.canvas(anatomy)
        return gray_bytes(canvas, extremes(canvas), zoom)

    def label_contours(self, labels: Voxels, colors: Mapping[int, str]) -> Markup:
        """Draw one contour per label."""
        return Markup("").join(
            self.contours(Voxels(labels.data == index, labels.affine), color)
            for index, color in colors.items()
        )

    def contours(self, voxels: Voxels, color: str) -> Markup:
        """Draw where a mask or a probability passes one half."""
        if voxels.data.dtype == bool:
            region = voxels.content()
            if region is None:
                return Markup("")
            # Sampling is faster in a small array. Contours end in the background around it.
            part = voxels.part(region)
            voxels = Voxels(np.pad(part.data, 1).view(np.uint8), part.moved((-1, -1, -1)))
        paths = []
        low, high = voxels.extent()
        for tile in self.tiles:
            window = tile.window(low, high, self.step)
            if window is None:
                continue
            # The padding closes contours at the edge of the tile.
            values = np.pad(_sample(voxels, tile, self.step, window), 1)
            rows, columns = (np.arange(part.start, part.stop + 2) for part in window)
            generator = contour_generator(
                columns, rows, values, line_type=LineType.Separate, name="serial"
            )
            for line in generator.lines(0.5):
                # From pixel centers of the padded tile to units of the picture.
                points = (np.asarray(line) - 0.5) * self.step + (tile.left, tile.top)
                paths.append(_path(np.round(points * _UNITS).astype(int)))
        if not paths:
            return Markup("")
        return Markup('<path stroke="{}" d="{}"/>').format(color, "".join(paths))


def _tile(plane: int, position: float, center: np.ndarray, field: np.ndarray) -> Tile:
    """Make a tile around a center, moved to a position across its plane."""
    at = [float(position if axis == plane else center[axis]) for axis in range(3)]
    tile = Tile(plane, (at[0], at[1], at[2]), 0, 0)
    across, up = tile.axes
    return replace(tile, width=float(field[across]), height=float(field[up]))


def _sample(
    voxels: Voxels, tile: Tile, step: float, window: Window = (slice(None), slice(None))
) -> np.ndarray:
    """Sample voxels in a tile, or in a part of it; zero beyond their edge."""
    inverse = np.linalg.inv(voxels.affine)
    points = tile.points(step)[:, *window]
    index = np.tensordot(inverse[:3, :3], points, 1) + inverse[:3, 3][:, None, None]
    return ndimage.map_coordinates(voxels.data, index, order=1, output=np.float32, prefilter=False)


def _path(points: np.ndarray) -> str:
    steps = np.diff(points, axis=0)
    moves = " ".join(f"{x} {y}" for x, y in steps[(steps != 0).any(axis=1)])
    if not moves:
        return f"m{points[0, 0]} {points[0, 1]} "
    return f"M{points[0, 0]} {points[0, 1]}l{moves}"


def _box(center: np.ndarray, tiles: Sequence[Tile]) -> Markup:
    """Draw the network's box in the slices that it crosses."""
    half = np.array(BOX) / 2
    out = Markup("")
    for tile in tiles:
        if abs(tile.center[tile.plane] - center[tile.plane]) > half[tile.plane]:
            continue
        # The positive directions are left and up.
        x, y = tile.place((center + half).tolist())
        across, up = tile.axes
        out += Markup(
            '<rect class="box" stroke="{}" x="{:.0f}" y="{:.0f}" width="{}" height="{}"/>'
        ).format(_EDGE, x * _UNITS, y * _UNITS, BOX[across] * _UNITS, BOX[up] * _UNITS)
    return out


def _marks(tiles: Sequence[Tile], size: float, scale_bar: int) -> Markup:
    """Write sides and coordinates into each tile, and a scale bar into the last."""
    out = Markup("")
    for tile in tiles:
        first, last = (("A", "P"), ("R", "L"), ("R", "L"))[tile.plane]
        middle = tile.top + tile.height / 2
        position = f"{_AXES[tile.plane]} = {tile.center[tile.plane]:.0f}".replace("-", "−")
        for x, y, anchor, text in (
            (tile.left + size / 3, middle, "start", first),
            (tile.left + tile.width - size / 3, middle, "end", last),
            (tile.left + size / 3, tile.top + tile.height - size / 2, "start", position),
        ):
            out += _text(x, y, size, anchor, text)
    tile = tiles[-1]
    right, bottom = tile.left + tile.width - size / 2, tile.top + tile.height - size / 2
    out += Markup('<path class="bar" d="M{:.0f} {:.0f}h-{}"/>').format(
        right * _UNITS, bottom * _UNITS, scale_bar * _UNITS
    )
    return out + _text(right - scale_bar / 2, bottom - size / 2, size, "middle", f"{scale_bar} mm")


def _text(x: float, y: float, size: float, anchor: str, text: str) -> Markup:
    return Markup(
        '<text x="{:.0f}" y="{:.0f}" font-size="{:.0f}" text-anchor="{}">{}</text>'
    ).format(x * _UNITS, y * _UNITS, size * _UNITS, anchor, text)


def _heat(entropy: np.ndarray) -> np.ndarray:
    """Return the colors of an entropy of 0 to 1 bits, shape ``(…, 3)``."""
    stops = np.linspace(0, 1, len(_HEAT))
    return np.stack([np.interp(entropy, stops, _HEAT[:, i]) for i in range(3)], axis=-1)


def _color_bar(width: float, height: float) -> Markup:
    low = -sum(p * np.log2(p) for p in ENTROPY_RANGE)
    steps = np.linspace(low, 1, 24)
    top, length = height + 1.5, width / 3
    out = Markup("")
    for i, color in enumerate(_heat(steps).round().astype(np.uint8)):
        out += Markup('<rect x="{:.0f}" y="{:.0f}" width="{:.0f}" height="60" fill="#{}"/>').format(
            (8 + i * length / 24) * _UNITS,
            top * _UNITS,
            length / 24 * _UNITS + 1,
            color.tobytes().hex(),
        )
    out += _text(7, top + 2.7, 3.2, "end", f"{low:.1f}")
    return out + _text(9 + length, top + 2.7, 3.2, "start", "1 bit: undecided")
