"""Spoil the intensities of an image, which stays where it is."""

from __future__ import annotations

import itertools

import numpy as np
from nibabel.affines import voxel_sizes
from scipy import fft, ndimage

from hyps_bids.evaluation.geometry_faults import rotate
from hyps_bids.evaluation.heads import Head, Spoiled, region_around, smooth_noise
from hyps_bids.imaging.resample import resample

#: Intensities that the tissues of a contrast have instead of those of T1w: air, cerebrospinal
#: fluid, gray matter, white matter and the brightest voxels (fat); 0 is air and 1 white matter.
CONTRASTS = {
    "inverted": (0.0, 1.2, 0.9, 0.6, 0.3),
    "t2": (0.0, 1.5, 0.75, 0.5, 0.9),
    "flair": (0.0, 0.15, 0.9, 0.7, 0.9),
    "pd": (0.0, 1.05, 1.0, 0.8, 0.9),
    "flat": (0.0, 0.85, 0.95, 1.0, 1.05),
}


def _same_place(head: Head, data: np.ndarray) -> Spoiled:
    return Spoiled(np.asarray(data, np.float32), head.affine)


def add_noise(head: Head, rng: np.random.Generator, level: float) -> Spoiled:
    """Add Gaussian noise whose standard deviation is a share of white matter."""
    noise = rng.standard_normal(head.data.shape, dtype=np.float32)
    noise *= np.float32(level * head.tissues.white)
    return _same_place(head, head.data + noise)


def add_rician_noise(head: Head, rng: np.random.Generator, level: float) -> Spoiled:
    """Add noise to both parts of the complex signal, whose magnitude is stored."""
    sd = np.float32(level * head.tissues.white)
    real = head.data + sd * rng.standard_normal(head.data.shape, dtype=np.float32)
    other = sd * rng.standard_normal(head.data.shape, dtype=np.float32)
    return _same_place(head, np.hypot(real, other))


def blur(head: Head, _: np.random.Generator, sigma: float) -> Spoiled:
    """Smooth the image with a Gaussian of this standard deviation, mm."""
    sigmas = sigma / voxel_sizes(head.affine)
    return _same_place(head, ndimage.gaussian_filter(head.data, sigmas, truncate=3))


def add_bias(head: Head, rng: np.random.Generator, ratio: float) -> Spoiled:
    """Multiply the image by a smooth field whose largest value is `ratio` times the smallest."""
    waves = [
        np.cos(np.outer(np.arange(3), np.pi * (np.arange(side) + 0.5) / side))
        for side in head.data.shape
    ]
    weights = rng.standard_normal((3, 3, 3)) / (1 + np.indices((3, 3, 3)).sum(axis=0))
    weights[0, 0, 0] = 0
    thin = [wave[:, ::8] for wave in waves]
    some = np.einsum("abc,ax,by,cz->xyz", weights, *thin)
    weights *= np.log(ratio) / np.ptp(some)
    weights[0, 0, 0] = -(some.max() + some.min()) / 2 * np.log(ratio) / np.ptp(some)
    field = np.einsum("abc,ax->xbc", weights, waves[0])
    field = np.einsum("xbc,by->xyc", field, waves[1])
    logarithm = np.tensordot(field.astype(np.float32), waves[2].astype(np.float32), axes=1)
    return _same_place(head, head.data * np.exp(logarithm))


def change_gamma(head: Head, _: np.random.Generator, exponent: float) -> Spoiled:
    """Raise intensities, scaled to 0–1, to a power."""
    low, high = float(head.data.min()), float(np.percentile(head.data[::3, ::3, ::3], 99.9))
    scaled = np.maximum(head.data - low, 0) / (high - low)
    return _same_place(head, low + (high - low) * scaled**exponent)


def change_contrast(head: Head, _: np.random.Generator, name: str) -> Spoiled:
    """Give tissues the intensities of one of the :data:`CONTRASTS`.

    Outside the skull, where bone is as dark as fluid is in T1w, only bright voxels change.
    """
    air, csf, gray, white, _noise = head.tissues
    bright = max(1.5 * white, float(np.percentile(head.data[::4, ::4, ::4], 99.8)))
    levels = np.array(CONTRASTS[name]) * white
    out = np.interp(head.data, (csf, gray, white, bright), levels[1:])
    # Noise must not vanish in fluid and fat, beyond which the map is constant.
    out += 0.3 * (np.minimum(head.data - csf, 0) + np.maximum(head.data - bright, 0))
    if not head.is_crop:
        outer = np.interp(head.data, (air, csf, bright), (air, csf, levels[4]))
        out = np.where(head.inside(), out, outer)
    return _same_place(head, np.maximum(out, min(0.0, float(head.data.min()))))


def make_ratio(head: Head, rng: np.random.Generator, noise: float) -> Spoiled:
    """Make the ratio image of MP2RAGE (UNIT1), with noise over the whole range in air and bone.

    The real part of one inversion image times the conjugate of the other, over the sum of their
    squares, is -0.5 to 0.5. The noise in both is a share of the second one, which is about the same
    in all tissues; air and bone, which is as dark in T1w, have no signal.
    """
    air, csf, gray, white, _ = head.tissues
    bright = 2 * white
    wanted = np.interp(head.data, (csf, gray, white, bright), (-0.45, -0.05, 0.28, 0.45))
    # The ratio r of both images for which r / (1 + r²) is the wanted value.
    first = 2 * wanted / (1 + np.sqrt(1 - 4 * wanted**2))
    second = np.ones(head.data.shape)
    if not head.is_crop:
        low = air + 0.2 * (white - air)
        outer = np.interp(head.data, (low, (gray + white) / 2), (0, 1))
        second = np.where(head.inside(), 1, outer)
    one, two = (
        signal
        + noise * (rng.standard_normal(second.shape) + 1j * rng.standard_normal(second.shape))
        for signal in (first * second, second)
    )
    return _same_place(head, (one * two.conj()).real / (np.abs(one) ** 2 + np.abs(two) ** 2))


def brighten_vessels(head: Head, rng: np.random.Generator, share: float) -> Spoiled:
    """Make a share of the voxels as bright as vessels with contrast agent: blobs and tubes."""
    field = ndimage.gaussian_filter(
        rng.standard_normal(head.data.shape, dtype=np.float32), 1.2 / voxel_sizes(head.affine)
    )
    vessels = (field > np.quantile(field[::2, ::2, ::2], 1 - share)) & head.inside()
    return _same_place(head, np.where(vessels, 2.2 * head.tissues.white, head.data))


def map_randomly(head: Head, rng: np.random.Generator, knots: int) -> Spoiled:
    """Map intensities by a random piecewise linear function; air stays dark."""
    air, white = head.tissues.air, head.tissues.white
    places = air + (white - air) * np.linspace(0, 1.4, knots)
    levels = np.concatenate(([air], air + (white - air) * rng.uniform(0.1, 1.3, knots - 1)))
    return _same_place(head, np.interp(head.data, places, levels))


def move(head: Head, rng: np.random.Generator, size: float) -> Spoiled:
    """Let the head move between parts of the acquisition: `size` mm, and half as many degrees.

    Lines of k-space near its center come from the head as it is, so that the truth stays.
    """
    axis = int(rng.integers(3))
    side = head.data.shape[axis]
    lines = fft.rfft(head.data, axis=axis)
    count = lines.shape[axis]
    lines = np.moveaxis(lines, axis, 0)
    # The center of k-space is acquired within one rest.
    ends = np.sort(rng.integers(max(2, count // 12), count, 2))
    for low, high in itertools.pairwise([*ends, count]):
        if low == high:
            continue
        other = rotate(head, rng, int(rng.integers(3)), size / 2 * rng.uniform(0.5, 1))
        voxels = size * rng.uniform(0.5, 1, 3) * rng.choice((-1, 1), 3) / voxel_sizes(head.affine)
        moved = np.roll(other.data, np.round(voxels).astype(int), (0, 1, 2))
        lines[low:high] = np.moveaxis(fft.rfft(moved, axis=axis), axis, 0)[low:high]
    data = fft.irfft(np.moveaxis(lines, 0, axis), side, axis=axis)
    return _same_place(head, np.abs(data))


def add_ghosts(head: Head, rng: np.random.Generator, strength: float) -> Spoiled:
    """Let every second to fourth line of k-space lose a share of its signal."""
    axis, every = int(rng.integers(3)), int(rng.integers(2, 5))
    air = np.float32(head.tissues.air)
    signal = head.data - air
    # Weakening every n-th line is the same as subtracting n copies, shifted by 1/n of the image.
    side = head.data.shape[axis]
    ghosts = sum(np.roll(signal, round(i * side / every), axis) for i in range(every))
    return _same_place(head, np.abs(signal - np.float32(strength / every) * ghosts) + air)


def ring(head: Head, _: np.random.Generator, share: float) -> Spoiled:
    """Keep a share of k-space along the second and the third axis (Gibbs ringing)."""
    data = head.data
    for axis in (1, 2):
        lines = fft.rfft(data, axis=axis)
        cutoff = max(2, round(lines.shape[axis] * share))
        np.moveaxis(lines, axis, 0)[cutoff:] = 0
        data = fft.irfft(lines, data.shape[axis], axis=axis)
    return _same_place(head, np.abs(data))


def spike(head: Head, rng: np.random.Generator, amplitude: float) -> Spoiled:
    """Put a few spikes into k-space: waves over the image, as high as a share of white matter."""
    out = head.data.copy()
    count = 2
    for _ in range(count):
        # From 3 to 12 mm between the crests, in any direction.
        direction = rng.standard_normal(3)
        turns = direction / np.linalg.norm(direction) / rng.uniform(3, 12)
        phases = [
            np.exp(2j * np.pi * turn * size * np.arange(side)).astype(np.complex64)
            for turn, size, side in zip(
                turns, voxel_sizes(head.affine), head.data.shape, strict=True
            )
        ]
        plane = (phases[0][:, None] * phases[1]) * np.exp(2j * np.pi * rng.uniform())
        wave = np.tensordot(plane.real, phases[2].real, 0) - np.tensordot(
            plane.imag, phases[2].imag, 0
        )
        out += np.float32(amplitude * head.tissues.white / count) * wave.astype(np.float32)
    return _same_place(head, np.abs(out))


def add_hot_voxels(head: Head, rng: np.random.Generator, share: float) -> Spoiled:
    """Set a share of the voxels to values up to twenty times the brightest."""
    out = head.data.copy()
    count = max(1, round(share * out.size))
    index = tuple(rng.integers(0, side, count) for side in out.shape)
    out[index] = rng.uniform(1, 20, count) * float(out.max())
    return _same_place(head, out)


def saturate(head: Head, _: np.random.Generator, low: float, high: float) -> Spoiled:
    """Clip intensities at shares of white matter."""
    white = head.tissues.white
    return _same_place(head, np.clip(head.data, low * white, high * white))


def alternate_slices(head: Head, _: np.random.Generator, axis: int, strength: float) -> Spoiled:
    """Weaken every second slice of about 2 mm, as in an interleaved acquisition."""
    slices = np.arange(head.data.shape[axis]) * voxel_sizes(head.affine)[axis] // 2
    gain = np.where(slices % 2 == 0, 1, 1 - strength).astype(np.float32)
    return _same_place(head, head.data * np.expand_dims(gain, [k for k in range(3) if k != axis]))


def drop_slices(head: Head, rng: np.random.Generator, axis: int, length: float) -> Spoiled:
    """Lose the signal of `length` mm of slices through the hippocampi."""
    places = np.concatenate([np.nonzero(mask)[axis] for mask in head.sides.values()])
    start = int(np.quantile(places, rng.uniform(0.2, 0.6)))
    out = head.data.copy()
    lost = slice(start, start + max(1, round(length / voxel_sizes(head.affine)[axis])))
    np.moveaxis(out, axis, 0)[lost] = head.tissues.air
    return _same_place(head, out)


def strip(head: Head, _: np.random.Generator, grow: float) -> Spoiled:
    """Set everything to zero outside the skull's inside, or a larger or smaller region."""
    return _same_place(head, np.where(head.inside(grow), head.data, 0))


def strip_badly(head: Head, rng: np.random.Generator, hemisphere: str, share: float) -> Spoiled:
    """Strip the skull, and a share of one hippocampus with the brain below and beside it."""
    mask = head.sides.get(hemisphere)
    if mask is None:
        mask = next(iter(head.sides.values()))
    index = np.argwhere(mask) @ head.affine[:3, :3].T
    outwards = -1.0 if hemisphere == "L" else 1.0
    normal = np.array([outwards * rng.uniform(0.3, 0.8), rng.uniform(-0.4, 0.4), -1.0])
    direction = normal @ head.affine[:3, :3]
    threshold = np.quantile(index @ normal, 1 - share)
    x, y, z = (np.arange(side) * turn for side, turn in zip(mask.shape, direction, strict=True))
    kept = x[:, None, None] + y[:, None] + z < threshold
    if not head.is_crop:
        # The other side of the head stays.
        middle = np.mean([np.argwhere(m)[:, 0].mean() for m in head.sides.values()])
        far = np.arange(mask.shape[0]) * outwards < middle * outwards
        kept |= far[:, None, None]
    return _same_place(head, np.where(kept & head.inside(), head.data, 0))


def change_background(head: Head, rng: np.random.Generator, name: str) -> Spoiled:
    """Fill the air with zeros, padding, a constant, or noise as in the ratio images of MP2RAGE."""
    white = head.tissues.white
    outside = air_around(head)
    if name == "noise":
        values = np.float32(1.3 * white) * rng.random(head.data.shape, dtype=np.float32)
    else:
        level = {"zero": 0.0, "padding": -1000.0, "gray": 0.5 * white, "white": white}[name]
        values = np.full((1, 1, 1), level, np.float32)
    return _same_place(head, np.where(outside, values, head.data))


def add_metal(head: Head, rng: np.random.Generator, hemisphere: str, radius: float) -> Spoiled:
    """Lose the signal around metal 30 mm beside and below one hippocampus, with a bright rim."""
    mask = head.sides.get(hemisphere)
    if mask is None:
        hemisphere, mask = next(iter(head.sides.items()))
    region = region_around(mask, head.affine, 45 + radius)
    sizes = voxel_sizes(head.affine)
    there = head.data[region].copy()
    outwards = -1.0 if hemisphere == "L" else 1.0
    offset = np.array([outwards * 27, rng.uniform(-5, 15), -13])
    center = np.argwhere(mask).mean(axis=0) - [part.start for part in region]
    center += np.linalg.inv(head.affine[:3, :3]) @ offset
    axes = np.ogrid[tuple(slice(0, side) for side in there.shape)]
    distance = np.sqrt(sum(((a - c) * s) ** 2 for a, c, s in zip(axes, center, sizes, strict=True)))
    depth = distance - radius + 0.12 * radius * smooth_noise(there.shape, sizes, radius, rng)
    void = 1 / (1 + np.exp(np.clip(depth / 0.8, -30, 30)))
    rim = np.exp(-(((depth - 2) / 2) ** 2))
    there = head.tissues.air + (there - head.tissues.air) * (1 - void) * (1 + 0.8 * rim)
    data = head.data.copy()
    data[region] = there
    return _same_place(head, data)


def deface(head: Head, _: np.random.Generator, depth: float) -> Spoiled:
    """Cut off the face by a plane that lies `depth` mm before the hippocampi."""
    index = np.concatenate([np.argwhere(mask) for mask in head.sides.values()])
    places = index @ head.affine[:3, :3].T
    normal = np.array([0.0, 0.8, -0.6])
    threshold = float((places @ normal).max()) + depth
    direction = normal @ head.affine[:3, :3]
    x, y, z = (np.arange(s) * turn for s, turn in zip(head.data.shape, direction, strict=True))
    return _same_place(head, np.where(x[:, None, None] + y[:, None] + z < threshold, head.data, 0))


def air_around(head: Head) -> np.ndarray:
    """Mark the air outside the head, of the shape of the image."""
    if head.is_crop:
        return np.zeros(head.data.shape, bool)
    step = 3
    coarse = ndimage.uniform_filter(head.data, step)[::step, ::step, ::step]
    air, white = head.tissues.air, head.tissues.white
    body = ndimage.binary_closing(coarse > air + 0.15 * (white - air), iterations=4)
    body = ndimage.binary_fill_holes(ndimage.binary_opening(body))
    grid = np.diag([step, step, step, 1.0])
    around = resample(body.astype(np.float32), grid, head.data.shape, np.eye(4)) < 0.5
    return around & ~head.inside()
