"""Replace a hippocampus by a cavity, a mass or other tissue."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import ndimage

from hyps_bids.evaluation.heads import Head, Spoiled, Tissues, smooth_noise
from hyps_bids.evaluation.sites import Site, signed_distance, site_of, with_region
from hyps_bids.imaging.resample import resample

#: Width of the edges of cavities, mm: the partial volume of voxels of 1 mm.
_EDGE = 0.4

# Shapes of what is lost: the distance from their surface, mm, negative inside.


def selective(site: Site, rng: np.random.Generator, share: float) -> np.ndarray:
    """Shape of the removal of the amygdala and a share of the hippocampus, from the front."""
    rough = 1.2 * smooth_noise(site.mask.shape, site.sizes, 10.0, rng)
    depth = site.distance() - 2.5 + rough
    place, own = site.along()
    front = site.mask & (place > np.quantile(own, 0.85))
    center = [float(np.broadcast_to(a, front.shape)[front].mean()) for a in site.axes]
    amygdala = _radius(site, (center[0] - 2, center[1] + 7, center[2] + 4)) - 8 + 1.5 * rough
    behind = np.quantile(own, 1 - share) - 3.0 * (share == 1) - place
    return np.maximum(np.minimum(depth, amygdala), behind + rough)


def lobectomy(site: Site, rng: np.random.Generator, share: float) -> np.ndarray:
    """Shape of an anterior temporal lobectomy that removes a share of the hippocampus."""
    rough = 2.0 * smooth_noise(site.mask.shape, site.sizes, 12.0, rng)
    medial = np.quantile(np.broadcast_to(site.lateral, site.mask.shape)[site.mask], 0.02)
    behind = np.quantile(np.broadcast_to(site.anterior, site.mask.shape)[site.mask], 1 - share)
    # The lateral fissure rises backwards; beside it, the temporal lobe is higher.
    roof = 7 + 0.5 * np.maximum(site.lateral - 8, 0) - 0.3 * site.anterior
    walls = (medial - 2 - site.lateral, behind - site.anterior, site.superior - roof)
    depth = np.maximum(np.maximum(walls[0], walls[1]), walls[2])
    near = np.maximum(site.distance() - 2.5, behind - site.anterior)
    return np.minimum(depth, near) + rough


def mass(site: Site, rng: np.random.Generator, radius: float) -> np.ndarray:
    """Shape of a lobulated mass in the middle of the hippocampus."""
    rough = smooth_noise(site.mask.shape, site.sizes, 1.2 * radius, rng)
    center = rng.uniform(-0.15, 0.15, 3) * radius
    return _radius(site, tuple(center), (1.0, 0.8, 1.1)) - radius + 0.18 * radius * rough


def territory(site: Site, rng: np.random.Generator, margin: float) -> np.ndarray:
    """Shape of an infarct of the hippocampus and what is below and behind it."""
    rough = smooth_noise(site.mask.shape, site.sizes, 14.0, rng)
    depth = site.distance() - 0.35 * margin
    lower = _radius(site, (-2, -14, -8), (1.2, 0.6, 1.3)) - 1.2 * margin
    return np.minimum(depth, lower) + 0.25 * margin * rough


def _radius(
    site: Site, center: tuple[float, ...], squeeze: tuple[float, float, float] = (1, 1, 1)
) -> np.ndarray:
    squares = [((axis - c) * s) ** 2 for axis, c, s in zip(site.axes, center, squeeze, strict=True)]
    radius: np.ndarray = np.sqrt(squares[0] + squares[1] + squares[2])
    return radius


# What fills the place: intensities, from the distance to the surface, mm, negative inside.

Fill = Callable[[Site, np.ndarray, Tissues, np.random.Generator], np.ndarray]


def _texture(
    site: Site, rng: np.random.Generator, mean: float, share: float, wavelength: float
) -> np.ndarray:
    return mean * (1 + share * smooth_noise(site.mask.shape, site.sizes, wavelength, rng))


def _fluid(site: Site, depth: np.ndarray, tissues: Tissues, rng: np.random.Generator) -> np.ndarray:
    return np.full(depth.shape, tissues.csf, np.float32)


def _blood(site: Site, depth: np.ndarray, tissues: Tissues, rng: np.random.Generator) -> np.ndarray:
    bright = rng.uniform(1.1, 1.4) * tissues.white
    return _texture(site, rng, bright, 0.12, 9.0)


def _bright_rim(
    site: Site, depth: np.ndarray, tissues: Tissues, rng: np.random.Generator
) -> np.ndarray:
    rim = np.exp(-(((depth + 0.9) / 0.9) ** 2))
    return tissues.csf + rim * (_texture(site, rng, 1.2 * tissues.white, 0.15, 6.0) - tissues.csf)


def _dark_rim(
    site: Site, depth: np.ndarray, tissues: Tissues, rng: np.random.Generator
) -> np.ndarray:
    rim = np.exp(-(((depth + 0.8) / 1.2) ** 2))
    fluid = _texture(site, rng, tissues.csf + 0.35 * (tissues.gray - tissues.csf), 0.06, 12.0)
    return fluid + rim * (0.35 * tissues.csf - fluid)


def _scar(site: Site, depth: np.ndarray, tissues: Tissues, rng: np.random.Generator) -> np.ndarray:
    return _texture(site, rng, (tissues.csf + tissues.gray) / 2, 0.15, 5.0)


def _gray(site: Site, depth: np.ndarray, tissues: Tissues, rng: np.random.Generator) -> np.ndarray:
    return _texture(site, rng, tissues.gray, 0.06, 6.0)


def _white(site: Site, depth: np.ndarray, tissues: Tissues, rng: np.random.Generator) -> np.ndarray:
    return _texture(site, rng, 0.97 * tissues.white, 0.03, 10.0)


def _solid(site: Site, depth: np.ndarray, tissues: Tissues, rng: np.random.Generator) -> np.ndarray:
    mean = rng.uniform(0.5, 0.9)
    return _texture(site, rng, tissues.csf + mean * (tissues.gray - tissues.csf), 0.12, 8.0)


def _enhancing(
    site: Site, depth: np.ndarray, tissues: Tissues, rng: np.random.Generator
) -> np.ndarray:
    core = _texture(site, rng, tissues.csf + 0.3 * (tissues.gray - tissues.csf), 0.15, 6.0)
    rim = np.exp(-(((depth + 2.5) / 1.8) ** 2))
    return core + rim * (_texture(site, rng, 1.2 * tissues.white, 0.15, 6.0) - core)


_FILLS: dict[str, Fill] = {
    "csf": _fluid,
    "blood": _blood,
    "brightrim": _bright_rim,
    "darkrim": _dark_rim,
    "scar": _scar,
    "gray": _gray,
    "white": _white,
    "solid": _solid,
    "enhancing": _enhancing,
}

Shape = Callable[[Site, np.random.Generator, float], np.ndarray]


def replace_tissue(
    head: Head,
    rng: np.random.Generator,
    hemisphere: str,
    shape: Shape,
    size: float,
    fill: str,
    *,
    margin: float = 22.0,
    edema: float = 0.0,
) -> Spoiled:
    """Fill the place of what is lost; the true hippocampus is what remains of it.

    Parameters
    ----------
    head : Head
        The head.
    rng : numpy.random.Generator
        For the irregular surface, and the texture and noise of what fills the place.
    hemisphere : str
        ``L`` or ``R``.
    shape : Shape
        For example :func:`selective`.
    size : float
        Argument of the shape.
    fill : str
        What fills the place; ``collapsed`` is the tissue around it.
    margin : float
        How far beyond the hippocampus the shape may reach, mm.
    edema : float
        Width of darker white matter around the place, mm.
    """
    site = site_of(head, hemisphere, margin)
    depth = _within_skull(head, site, shape(site, rng, size))
    tissues = head.tissues
    there = site.data
    if fill == "collapsed":
        there = _collapse(site, depth)
    else:
        if edema:
            swollen = 0.6 * np.exp(-np.maximum(depth, 0) / edema) * (depth < 3 * edema)
            bright = np.maximum(there - (tissues.csf + tissues.gray) / 2, 0)
            there = there - swollen * np.where(there < 1.1 * tissues.white, bright, 0)
        inside = 1 / (1 + np.exp(np.clip(depth / _EDGE, -30, 30)))
        filled = _FILLS[fill](site, depth, tissues, rng)
        filled = np.abs(filled + tissues.noise * rng.standard_normal(depth.shape))
        there = there + inside * (filled - there)
    remains = head.sides[site.hemisphere].copy()
    remains[site.region] &= depth > 0
    return with_region(head, site, there, {site.hemisphere: remains})


def _collapse(site: Site, depth: np.ndarray) -> np.ndarray:
    """Let the tissue around a cavity close it, except for a thin cleft of fluid."""
    hole = signed_distance(depth < 0, site.sizes)
    deepest, reach = float(-hole.min()), 14.0
    source = (hole + deepest) * reach / (deepest + reach) + 0.6
    pull = np.where(hole < reach, source - hole, 0)
    smooth = ndimage.gaussian_filter(hole, 1.0 / site.sizes)
    normal = np.stack(np.gradient(smooth, *site.sizes))
    normal /= np.maximum(np.linalg.norm(normal, axis=0), 1e-3)
    index = np.indices(depth.shape, np.float32)
    index += (normal * pull / site.sizes[:, None, None, None]).astype(np.float32)
    closed: np.ndarray = ndimage.map_coordinates(site.data, index, order=1, mode="nearest")
    return closed


def _within_skull(head: Head, site: Site, depth: np.ndarray) -> np.ndarray:
    """Keep what is lost inside the skull."""
    if head.is_crop:
        return depth
    probability = resample(head.brain, head.brain_affine, depth.shape, site.affine)
    # The coarse mask of the inside of the skull may have gaps near the hippocampus.
    near = ndimage.gaussian_filter(site.mask.astype(np.float32), 2 / site.sizes)
    probability = np.maximum(probability, np.minimum(3 * near, 1))
    # Near the skull, the logit falls by about 1 per mm.
    probability = np.clip(probability, 1e-4, 1 - 1e-4)
    skull: np.ndarray = 1 - 1.2 * np.log(probability / (1 - probability))
    return np.maximum(depth, skull)
