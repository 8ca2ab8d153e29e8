"""Pictures of a scan: gray images, with contours and marks as SVG over them.

Contours and letters are vectors: sharp at any zoom and in print, easy to switch off, and small.
World coordinates are RAS, mm. All pictures are in radiological convention, left on the right of the
picture, and in sagittal ones the nose is to the left.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from contourpy import LineType, contour_generator
from markupsafe import Markup
from PIL import Image
from scipy import ndimage

__all__ = [
    "BOX",
    "ENTROPY_RANGE",
    "Picture",
    "Tile",
    "bounds",
    "compress",
    "middle_of_head",
    "mosaic",
    "overview",
    "side_tiles",
    "uncertainty",
]

#: mm around a hippocampus that the network gets to see, as in :mod:`hyps_bids.segmentation.segment`
BOX = (36, 52, 36)
#: probabilities between which the uncertainty is shown
ENTROPY_RANGE = (0.05, 0.95)
#: SVG units per mm
_UNITS = 20
_PLANES = ("sagittal", "coronal", "axial")
_AXES = "xyz"
#: mm: the least that a tile shows around a hippocampus, right, anterior, superior
_FIELD = np.array([40.0, 60.0, 40.0])
_MARGIN = 6.0
#: mm between tiles
_GAP = 1.0
#: rows of a mosaic: plane and slices; with the field above all rows are equally wide
_ROWS = ((1, 6), (0, 4), (2, 6))
#: mm of a whole head where there is no mask, and around the mask
_HEAD, _SCALP = np.array([190.0, 230.0, 230.0]), 20.0
#: dark to light, evenly perceived, safe for color-blind readers: five stops of plasma
_HEAT = np.array([[13, 8, 135], [126, 3, 168], [204, 71, 120], [248, 149, 64], [240, 249, 33]])
_ICV, _EDGE = "#F0E442", "#FFFFFF"


@dataclass(frozen=True)
class Tile:
    """One slice in a picture.

    Attributes
    ----------
    plane : int
        Axis across it: 0 sagittal, 1 coronal, 2 axial.
    center : tuple of float
        World coordinates of its center, mm.
    width, height : float
        What it shows, mm.
    left, top : float
        Where it is in the picture, mm.
    """

    plane: int
    center: tuple[float, float, float]
    width: float
    height: float
    left: float = 0.0
    top: float = 0.0

    @property
    def axes(self) -> tuple[int, int]:
        """World axes that go to the left and up in the picture."""
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

    def place(self, world: Sequence[float]) -> tuple[float, float]:
        """Find a world point in the picture, mm from its left and top."""
        across, up = self.axes
        x = self.left + self.width / 2 - (world[across] - self.center[across])
        y = self.top + self.height / 2 - (world[up] - self.center[up])
        return x, y


@dataclass(frozen=True)
class Picture:
    """A picture and what is drawn over it.

    Attributes
    ----------
    pixels : numpy.ndarray
        uint8, shape ``(rows, columns)`` or ``(rows, columns, 3)``.
    width, height : int
        In units of the SVG.
    outline, marks : Markup
        SVG elements: contours; letters, coordinates, scale bar.
    """

    pixels: np.ndarray
    width: int
    height: int
    outline: Markup
    marks: Markup


def side_tiles(low: Sequence[float], high: Sequence[float]) -> list[list[Tile]]:
    """Choose slices through a hippocampus: rows of coronal, sagittal and axial ones.

    Parameters
    ----------
    low, high : sequence of float
        Corners of its bounding box, world coordinates, mm.

    Returns
    -------
    list of list of Tile
        By row, not yet placed; coronal from anterior to posterior, sagittal from right to left,
        axial from superior to inferior.

    Examples
    --------
    >>> coronal, sagittal, axial = side_tiles((-40, -40, -30), (-20, 0, 0))
    >>> len(coronal), len(sagittal), len(axial)
    (6, 4, 6)
    >>> [round(tile.center[1]) for tile in coronal]
    [-3, -10, -17, -23, -30, -37]
    """
    low_, high_ = np.asarray(low, dtype=float), np.asarray(high, dtype=float)
    center = (low_ + high_) / 2
    # one zoom for all: a large or badly segmented hippocampus is shown whole, too
    field = _FIELD * max(1.0, float(((high_ - low_ + 2 * _MARGIN) / _FIELD).max()))
    rows = []
    for plane, count in _ROWS:
        row = []
        for i in range(count):
            position = high_[plane] - (i + 0.5) / count * (high_[plane] - low_[plane])
            at = [float(position if axis == plane else center[axis]) for axis in range(3)]
            tile = Tile(plane, (at[0], at[1], at[2]), 0, 0)
            across, up = tile.axes
            row.append(replace(tile, width=float(field[across]), height=float(field[up])))
        rows.append(row)
    return rows


def bounds(mask: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the corners of the world-aligned box that holds a mask, which must not be empty.

    Examples
    --------
    >>> low, high = bounds(np.ones((2, 2, 2), bool), np.eye(4))
    >>> low.tolist(), high.tolist()
    ([-0.5, -0.5, -0.5], [1.5, 1.5, 1.5])
    """
    (found,) = ndimage.find_objects(mask.view(np.uint8))
    corners = np.array(np.meshgrid(*[(p.start - 0.5, p.stop - 0.5) for p in found])).reshape(3, -1)
    world = affine[:3, :3] @ corners + affine[:3, 3:]
    return world.min(axis=1), world.max(axis=1)


def mosaic(
    t1w: np.ndarray,
    affine: np.ndarray,
    labels: np.ndarray,
    labels_affine: np.ndarray,
    colors: Mapping[int, str],
    rows: Sequence[Sequence[Tile]],
) -> Picture:
    """Draw slices through a hippocampus with the contours of its parts.

    Parameters
    ----------
    t1w, affine : numpy.ndarray
        Image, shape ``(x, y, z)``, and voxel to world.
    labels, labels_affine : numpy.ndarray
        Segmentation, or a part of it, and its own transform.
    colors : mapping of int to str
        Label → ``#rrggbb``; other labels are not drawn.
    rows : sequence of sequence of Tile
        From :func:`side_tiles`.

    Returns
    -------
    Picture
        Its outline has one group per label.
    """
    tiles, width, height = _placed(rows)
    gray = _gray(t1w, affine, tiles, width, height, step=0.5, zoom=3)
    outline = Markup("").join(
        _contours(labels == index, labels_affine, tiles, 0.5, color)
        for index, color in colors.items()
    )
    return Picture(gray, *_size(width, height), outline, _marks(tiles, width))


def uncertainty(
    t1w: np.ndarray,
    affine: np.ndarray,
    whole: np.ndarray,
    whole_affine: np.ndarray,
    rows: Sequence[Sequence[Tile]],
) -> Picture:
    """Draw where the network hesitates: the entropy of hippocampus against background.

    Parameters
    ----------
    t1w, affine : numpy.ndarray
        Image, and voxel to world.
    whole, whole_affine : numpy.ndarray
        Probability of being hippocampus in a part of the image, and its own transform.
    rows : sequence of sequence of Tile
        Slices.

    Returns
    -------
    Picture
        In color where the probability is within :data:`ENTROPY_RANGE`; the outline is that of
        a probability of one half; with a color bar, in bits.
    """
    tiles, width, height = _placed(rows)
    step, zoom = 0.5, 3
    gray = _gray(t1w, affine, tiles, width, height, step=step, zoom=zoom)
    probability = _canvas(whole, whole_affine, tiles, width, height, step)
    shape = gray.shape[::-1]
    p = np.asarray(Image.fromarray(probability).resize(shape, Image.Resampling.BILINEAR))
    doubtful = (p >= ENTROPY_RANGE[0]) & (p <= ENTROPY_RANGE[1])
    q = p[doubtful]
    entropy = -(q * np.log2(q) + (1 - q) * np.log2(1 - q))
    pixels = np.repeat(gray[..., None], 3, axis=2)
    pixels[doubtful] = (0.2 * pixels[doubtful] + 0.8 * _heat(entropy)).astype(np.uint8)
    outline = _contours(whole, whole_affine, tiles, step, _EDGE)
    marks = _marks(tiles, width) + _bar(width, height)
    return Picture(pixels, *_size(width, height + _BAR), outline, marks)


def overview(
    t1w: np.ndarray,
    affine: np.ndarray,
    *,
    intracranial: np.ndarray | None = None,
    labels: tuple[np.ndarray, np.ndarray] | None = None,
    colors: Mapping[int, str] | None = None,
    centers: Sequence[Sequence[float]] = (),
    boxes: Sequence[Sequence[float]] = (),
) -> Picture:
    """Draw the whole head: intracranial contour, boxes, segmentation.

    Parameters
    ----------
    t1w, affine : numpy.ndarray
        Image, and voxel to world.
    intracranial : numpy.ndarray, optional
        Mask on the same grid.
    labels : tuple of numpy.ndarray, optional
        Segmentation, or a part of it, and its own transform.
    colors : mapping of int to str, optional
        Label → color.
    centers : sequence of points
        Where the slices are; without any, they go through the middle of the head.
    boxes : sequence of points
        Centers of the network's boxes.

    Returns
    -------
    Picture
        One sagittal slice per hippocampus, a coronal and an axial one.
    """
    corners = np.array([[i, j, k] for i in (0, 1) for j in (0, 1) for k in (0, 1)])
    edges = affine[:3, :3] @ (corners * (np.array(t1w.shape) - 1)).T + affine[:3, 3:]
    low, high = edges.min(axis=1), edges.max(axis=1)
    middle, wanted = middle_of_head(t1w, affine, intracranial), _HEAD
    if intracranial is not None and intracranial.any():
        first, last = bounds(intracranial > 0, affine)
        wanted = last - first + 2 * _SCALP
    # no more than the image has: a part of a head fills the picture too
    field = np.ceil(np.minimum(wanted, high - low + 2))
    middle = np.clip(middle, low + field / 2 - 1, high - field / 2 + 1)
    points = [np.asarray(c, dtype=float) for c in centers] or [middle]
    slices = [(0, point[0]) for point in points]
    mean = np.mean(points, axis=0)
    slices += [(1, mean[1]), (2, mean[2])]
    row = []
    for plane, position in slices:
        at = [float(position if axis == plane else middle[axis]) for axis in range(3)]
        tile = Tile(plane, (at[0], at[1], at[2]), 0, 0)
        across, up = tile.axes
        row.append(replace(tile, width=float(field[across]), height=float(field[up])))
    tiles, width, height = _placed([row])
    gray = _gray(t1w, affine, tiles, width, height, step=1.0, zoom=2)
    outline = Markup("")
    if intracranial is not None:
        outline += _contours(intracranial > 0, affine, tiles, 1.0, _ICV)
    if labels is not None:
        for index, color in (colors or {}).items():
            outline += _contours(labels[0] == index, labels[1], tiles, 1.0, color)
    for center in boxes:
        outline += _box(np.asarray(center, dtype=float), tiles)
    return Picture(gray, *_size(width, height), outline, _marks(tiles, width, bar=50))


def middle_of_head(
    t1w: np.ndarray, affine: np.ndarray, intracranial: np.ndarray | None = None
) -> np.ndarray:
    """Find the middle of the intracranial volume, or without it of what is bright.

    Parameters
    ----------
    t1w, affine : numpy.ndarray
        Image, and voxel to world.
    intracranial : numpy.ndarray, optional
        Mask on the same grid.

    Returns
    -------
    numpy.ndarray
        World coordinates, mm.

    Examples
    --------
    >>> image = np.zeros((40, 40, 40))
    >>> image[20:, :8, 8:24] = 1
    >>> middle_of_head(image, np.eye(4)).tolist()
    [28.0, 2.0, 14.0]
    """
    if intracranial is not None and intracranial.any():
        first, last = bounds(intracranial > 0, affine)
        return (first + last) / 2
    step = 4
    coarse = t1w[::step, ::step, ::step]
    bright = np.argwhere(coarse > coarse.mean())
    middle = step * bright.mean(axis=0) if len(bright) else (np.array(t1w.shape) - 1) / 2
    return affine[:3, :3] @ middle + affine[:3, 3]


def compress(pixels: np.ndarray, limit: int) -> bytes:
    """Encode a picture as WebP, as well as the limit allows.

    Parameters
    ----------
    pixels : numpy.ndarray
        uint8, shape ``(rows, columns)`` or ``(rows, columns, 3)``.
    limit : int
        Bytes. Quality goes down first, then resolution; the smallest is given even if it is larger.

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


def _placed(rows: Sequence[Sequence[Tile]]) -> tuple[list[Tile], float, float]:
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
    return tiles, width, top - _GAP


def _size(width: float, height: float) -> tuple[int, int]:
    return round(width * _UNITS), round(height * _UNITS)


def _sample(volume: np.ndarray, affine: np.ndarray, tile: Tile, step: float) -> np.ndarray:
    """Sample a volume in a tile; zero beyond its edge."""
    points = tile.points(step)
    inverse = np.linalg.inv(affine)
    index = np.tensordot(inverse[:3, :3], points, 1) + inverse[:3, 3][:, None, None]
    return ndimage.map_coordinates(volume, index, order=1, output=np.float32, prefilter=False)


def _canvas(
    volume: np.ndarray,
    affine: np.ndarray,
    tiles: Sequence[Tile],
    width: float,
    height: float,
    step: float,
) -> np.ndarray:
    canvas = np.zeros((round(height / step), round(width / step)), dtype=np.float32)
    for tile in tiles:
        values = _sample(volume, affine, tile, step)
        top, left = round(tile.top / step), round(tile.left / step)
        view = canvas[top : top + values.shape[0], left : left + values.shape[1]]
        view[:] = values[: view.shape[0], : view.shape[1]]
    return canvas


def _gray(
    t1w: np.ndarray,
    affine: np.ndarray,
    tiles: Sequence[Tile],
    width: float,
    height: float,
    *,
    step: float,
    zoom: int,
) -> np.ndarray:
    """Sample the T1w image in all tiles, with a robust window, and enlarge it smoothly."""
    canvas = _canvas(t1w, affine, tiles, width, height, step)
    inside = canvas[canvas != 0]
    low, high = np.percentile(inside, (0.5, 99.8)) if inside.size else (0.0, 1.0)
    scaled = np.clip((canvas - low) / max(high - low, 1e-12), 0, 1)
    scaled[canvas == 0] = 0
    image = Image.fromarray(np.round(255 * scaled).astype(np.uint8))
    size = (image.width * zoom, image.height * zoom)
    return np.asarray(image.resize(size, Image.Resampling.BICUBIC))


def _contours(
    volume: np.ndarray, affine: np.ndarray, tiles: Sequence[Tile], step: float, color: str
) -> Markup:
    """Draw where a mask or a probability passes one half."""
    if volume.dtype == bool:
        (volume, affine) = _cut(volume, affine)
    paths = []
    for tile in tiles:
        values = _sample(volume, affine, tile, step)
        # closed at the edge of the tile, not open
        generator = contour_generator(
            z=np.pad(values, 1), line_type=LineType.Separate, name="serial"
        )
        for line in generator.lines(0.5):
            # pixel centers of the padded tile → units of the picture
            points = (np.asarray(line) - 0.5) * step + (tile.left, tile.top)
            paths.append(_path(np.round(points * _UNITS).astype(int)))
    if not paths:
        return Markup("")
    return Markup('<path stroke="{}" d="{}"/>').format(color, "".join(paths))


def _path(points: np.ndarray) -> str:
    steps = np.diff(points, axis=0)
    moves = " ".join(f"{x} {y}" for x, y in steps[(steps != 0).any(axis=1)])
    return (
        f"m{points[0, 0]} {points[0, 1]} {moves}"
        if not moves
        else (f"M{points[0, 0]} {points[0, 1]}l{moves}")
    )


def _cut(mask: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cut a mask to its content: sampling bytes is quicker the fewer there are."""
    found = ndimage.find_objects(mask.view(np.uint8))
    if not found:
        return np.zeros((1, 1, 1), np.uint8), affine
    start = [max(0, part.start - 1) for part in found[0]]
    cut = mask[tuple(slice(s, part.stop + 1) for s, part in zip(start, found[0], strict=True))]
    moved = affine.copy()
    moved[:3, 3] += affine[:3, :3] @ np.asarray(start, dtype=float)
    # a voxel of background around it: contours end there
    moved[:3, 3] -= affine[:3, :3].sum(axis=1)
    return np.pad(cut, 1).view(np.uint8), moved


def _box(center: np.ndarray, tiles: Sequence[Tile]) -> Markup:
    """Draw the network's box in the slices that cut it."""
    half = np.array(BOX) / 2
    out = Markup("")
    for tile in tiles:
        if abs(tile.center[tile.plane] - center[tile.plane]) > half[tile.plane]:
            continue
        # left and up are the positive directions
        x, y = tile.place((center + half).tolist())
        across, up = tile.axes
        out += Markup(
            '<rect class="box" stroke="{}" x="{:.0f}" y="{:.0f}" width="{}" height="{}"/>'
        ).format(_EDGE, x * _UNITS, y * _UNITS, BOX[across] * _UNITS, BOX[up] * _UNITS)
    return out


def _marks(tiles: Sequence[Tile], width: float, bar: int = 10) -> Markup:
    """Write sides and coordinates into each tile, and a scale bar into the last."""
    size = width / 75
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
        right * _UNITS, bottom * _UNITS, bar * _UNITS
    )
    return out + _text(right - bar / 2, bottom - size / 2, size, "middle", f"{bar} mm")


def _text(x: float, y: float, size: float, anchor: str, text: str) -> Markup:
    return Markup(
        '<text x="{:.0f}" y="{:.0f}" font-size="{:.0f}" text-anchor="{}">{}</text>'
    ).format(x * _UNITS, y * _UNITS, size * _UNITS, anchor, text)


#: mm under a picture for a color bar
_BAR = 6.0


def _heat(entropy: np.ndarray) -> np.ndarray:
    """Colors of an entropy of 0 to 1 bits, shape ``(…, 3)``."""
    stops = np.linspace(0, 1, len(_HEAT))
    return np.stack([np.interp(entropy, stops, _HEAT[:, i]) for i in range(3)], axis=-1)


def _bar(width: float, height: float) -> Markup:
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
