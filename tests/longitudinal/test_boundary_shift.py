"""The boundary shift integral of shapes whose change is known."""

from __future__ import annotations

import numpy as np
import pytest

from hyps_bids.longitudinal.boundary_shift import Tissues, boundary_shift

_TISSUES = Tissues((0.2, 0.6, 1.0), (0.02, 0.02, 0.02))


def _ellipsoid(scale: float) -> tuple[np.ndarray, float]:
    """Return the soft mask of an ellipsoid, and its volume, mm³."""
    radii = np.array([8.0, 12.0, 6.0]) * scale
    axes = np.meshgrid(*[np.arange(41) - 20.0] * 3, indexing="ij")
    reach = np.sqrt(sum((axis / radius) ** 2 for axis, radius in zip(axes, radii, strict=True)))
    slope = np.sqrt(sum((axis / radius**2) ** 2 for axis, radius in zip(axes, radii, strict=True)))
    distance = (reach - 1) * reach / np.maximum(slope, 1e-6)
    return 1 / (1 + np.exp(distance / 0.45)), 4 / 3 * np.pi * float(radii.prod())


@pytest.mark.parametrize("loss", [0.01, 0.05])
@pytest.mark.parametrize("beside", [0.2, 1.0])
def test_an_ellipsoid_that_shrinks_in_fluid_or_white_matter(beside: float, loss: float) -> None:
    masks, volumes = zip(*(_ellipsoid((1 - k * loss) ** (1 / 3)) for k in range(3)), strict=True)
    images = np.stack([mask * 0.6 + (1 - mask) * beside for mask in masks])
    back = np.arange(41)[:, None] < 20
    parts = np.stack([masks[0] * back, masks[0] * ~back])
    found = boundary_shift(images, parts, np.stack(masks) > 0.5, _TISSUES)
    lost = np.array(volumes) - volumes[0]
    assert found.refusal is None
    np.testing.assert_allclose(found.gained[:, 2], lost, rtol=0.04)
    # Half of the loss is in each part, and changes add up.
    np.testing.assert_allclose(found.gained[:, :2], lost[:, None] / [2, 2], rtol=0.1)
    np.testing.assert_allclose(found.gained[:, :2].sum(axis=1), found.gained[:, 2])
    reverse = boundary_shift(images[::-1], parts, np.stack(masks)[::-1] > 0.5, _TISSUES)
    np.testing.assert_allclose(reverse.gained[2], -found.gained[2])


def test_images_without_the_contrast_of_t1w_are_refused() -> None:
    mask, _ = _ellipsoid(1.0)
    images = np.stack([mask, mask])
    inverted = Tissues((1.0, 0.6, 0.2), (0.02, 0.02, 0.02))
    found = boundary_shift(images, mask[None], images > 0.5, inverted)
    assert found.refusal == "contrast"
    assert np.isnan(found.gained).all()
