"""Tests of :mod:`hyps_bids.segmentation.localize` on a real head."""

from __future__ import annotations

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from hyps_bids.imaging.conform import ConformedImage
from hyps_bids.outputs.labels import HEMISPHERES
from hyps_bids.outputs.quality import flags
from hyps_bids.segmentation.localize import (
    SPACING,
    Localization,
    _locate,
    _scale,
    localize,
    lost_volume,
)
from hyps_bids.segmentation.pipeline import Pipeline

CPU = "cpu"


def distances(a: Localization, b: Localization) -> list[float]:
    """mm between the centers of each hippocampus, inf where one is missing."""
    out = []
    for hemi in HEMISPHERES:
        p, q = a.hippocampi[hemi], b.hippocampi[hemi]
        out.append(
            np.inf if not (p and q) else float(np.linalg.norm(np.subtract(p.center, q.center)))
        )
    return out


def brain_center(found: Localization) -> np.ndarray:
    index = np.argwhere(found.intracranial > 0.5).mean(axis=0)
    return nib.affines.apply_affine(found.affine, index)


def test_both_hippocampi_are_where_they_belong(found: Localization) -> None:
    left, right = found.hippocampi["L"], found.hippocampi["R"]
    assert left is not None
    assert right is not None
    middle = brain_center(found)
    # Anatomy: 20–35 mm to either side, at nearly the same height and depth, below the middle
    assert -40 < left.center[0] - middle[0] < -15
    assert 15 < right.center[0] - middle[0] < 40
    assert 40 < right.center[0] - left.center[0] < 70
    for place in (left, right):
        assert -25 < place.center[1] - middle[1] < 25
        assert -40 < place.center[2] - middle[2] < 5
        assert 1500 < place.volume_mm3 < 7000
        assert 0.85 < place.confidence <= 1
    assert np.abs(np.subtract(left.center, right.center))[1:].max() < 10


def test_arrays_fit_together(found: Localization) -> None:
    assert found.device == "cpu"
    assert found.hippocampus.shape == (2, *found.intracranial.shape)
    for array in (found.intracranial, found.hippocampus):
        assert array.dtype == np.float32
        assert 0 <= array.min() <= array.max() <= 1 + 1e-6
    np.testing.assert_allclose(found.affine[:3, :3], np.eye(3) * SPACING)
    assert 1.0e6 < found.icv_mm3 < 2.0e6
    assert found.icv_mm3 == pytest.approx(float(found.intracranial.sum()) * SPACING**3, rel=1e-4)
    for i, hemi in enumerate(HEMISPHERES):
        index = np.argwhere(found.hippocampus[i] > 0.5)
        place = found.hippocampi[hemi]
        ends = nib.affines.apply_affine(found.affine, [index.min(axis=0), index.max(axis=0)])
        # Ends are interpolated, so they lie up to a voxel beyond the outermost voxels.
        np.testing.assert_allclose(place.center, ends.mean(axis=0), atol=SPACING / 2)


def test_center_of_a_slanted_rod() -> None:
    """The center is the middle between the ends, wherever most of the mass is."""
    probability = np.zeros((12, 20, 12), np.float32)
    for y in range(3, 17):
        probability[5:7, y, 2 + y // 3 : 5 + y // 3] = 0.9
    probability[3:9, 3:6, 2:6] = 0.9
    affine = np.diag([SPACING, SPACING, SPACING, 1.0])
    affine[:3, 3] = (-10, -20, -30)
    place = _locate(probability > 0.5, probability, affine)
    assert place is not None
    middle = np.array([5.5, 9.5, (2 + 9) / 2])
    np.testing.assert_allclose(place.center, SPACING * middle + affine[:3, 3], atol=1e-5)


@pytest.mark.slow
def test_padding_changes_nothing(
    head: ConformedImage, found: Localization, pipeline: Pipeline
) -> None:
    pad = [(20, 13), (3, 20), (0, 11)]
    affine = head.affine.copy()
    affine[:3, 3] -= affine[:3, :3] @ np.array([part[0] for part in pad])
    padded = localize(
        replace(head, data=np.pad(head.data, pad), affine=affine), pipeline.localizer, CPU
    )
    assert padded.icv_mm3 == pytest.approx(found.icv_mm3, rel=0.02)
    assert max(distances(padded, found)) < SPACING


def test_scale_of_intensities_does_not_matter(head: ConformedImage) -> None:
    np.testing.assert_allclose(_scale(head.data * 13 + 500), _scale(head.data), atol=1e-4)


def test_mirrored_head_swaps_sides(
    head: ConformedImage, found: Localization, pipeline: Pipeline
) -> None:
    # Flip world x: the affine stays, the voxels swap sides about the image's middle
    flipped = localize(
        replace(head, data=np.ascontiguousarray(head.data[::-1])), pipeline.localizer, CPU
    )
    ends = [nib.affines.apply_affine(head.affine, (x, 0, 0))[0] for x in (0, len(head.data) - 1)]
    for hemi, other in (("L", "R"), ("R", "L")):
        place, origin = flipped.hippocampi[hemi], found.hippocampi[other]
        assert place is not None
        assert place.center[0] == pytest.approx(sum(ends) - origin.center[0], abs=2)
        assert place.volume_mm3 == pytest.approx(origin.volume_mm3, rel=0.1)
    assert flipped.icv_mm3 == pytest.approx(found.icv_mm3, rel=0.03)


def test_orientation_of_the_array_does_not_matter(
    head: ConformedImage, found: Localization, pipeline: Pipeline
) -> None:
    # Not conformed on purpose: world coordinates alone must decide about left and right
    image = nib.Nifti1Image(head.data, head.affine)
    turn = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt("PIL")
    )
    turned = image.as_reoriented(turn)
    other = localize(
        replace(head, data=np.asarray(turned.dataobj), affine=turned.affine),
        pipeline.localizer,
        CPU,
    )
    assert max(distances(other, found)) < 0.5
    assert other.icv_mm3 == pytest.approx(found.icv_mm3, rel=0.005)


@pytest.mark.parametrize("hemi", HEMISPHERES)
def test_side_that_is_cut_off_is_missing(
    hemi: str, head: ConformedImage, found: Localization, pipeline: Pipeline
) -> None:
    other = "R" if hemi == "L" else "L"
    # Cut 5 mm beyond the middle: medial parts of the lost side are gone as well
    edge = brain_center(found)[0] + (5 if hemi == "L" else -5)
    index = round((edge - head.affine[0, 3]) / head.affine[0, 0])
    affine = head.affine.copy()
    if hemi == "L":
        data = head.data[index:]
        affine[:3, 3] += affine[:3, 0] * index
    else:
        data = head.data[:index]
    cut = localize(
        replace(head, data=np.ascontiguousarray(data), affine=affine), pipeline.localizer, CPU
    )
    # Half of the intracranial volume must not pass for all of it.
    assert "high_icv_cut" in flags({"icv_cut": cut.icv_cut})
    assert not flags({"icv_cut": found.icv_cut})
    assert cut.hippocampi[hemi] is None
    place, origin = cut.hippocampi[other], found.hippocampi[other]
    assert place is not None
    assert np.linalg.norm(np.subtract(place.center, origin.center)) < 5


@pytest.mark.parametrize("turn", [(0, 0, 0), (0.4, 0.3, 0.2)])
@pytest.mark.parametrize("height", [8, 15, 30])
def test_volume_beyond_the_field_of_view(height: float, turn: tuple[float, ...]) -> None:
    """A ball with the volume of an intracranial space, cut off on two sides."""
    radius, spacing = 70, 1.2
    index = np.indices((64, 64, 64)).reshape(3, -1).T
    grid = nib.affines.from_matvec(np.eye(3) * SPACING, [-SPACING * 31.5] * 3)
    place = nib.affines.apply_affine(grid, index)
    turned = nib.eulerangles.euler2mat(*turn)
    # The field of view reaches to radius - height along its first axis, in both directions.
    side = 2 * (radius - height)
    shape = (round(side / spacing), 150, 150)
    affine = nib.affines.from_matvec(turned * spacing, [0, 0, 0])
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    inside = (np.linalg.norm(place, axis=1) < radius) & (np.abs(place @ turned[:, 0]) < side / 2)
    ball = inside.reshape(64, 64, 64).astype(np.float32)
    cap = np.pi * height**2 * (radius - height / 3)
    assert lost_volume(ball, grid, shape, affine) == pytest.approx(2 * cap, rel=0.3)


def synthetic(data: np.ndarray, spacing: float) -> ConformedImage:
    affine = np.diag([spacing, spacing, spacing, 1])
    return ConformedImage(data.astype(np.float32), affine, data.shape, np.eye(3))


def test_what_is_found_in_noise_is_flagged(pipeline: Pipeline) -> None:
    noise = synthetic(np.random.default_rng(0).uniform(size=(60, 60, 60)), 3)
    nothing = localize(noise, pipeline.localizer, CPU)
    for place in nothing.hippocampi.values():
        if place is not None:
            assert "low_localiser_confidence" in flags({"localiser_confidence": place.confidence})
    assert np.isfinite(nothing.icv_mm3)


def test_one_bright_voxel_is_no_error(pipeline: Pipeline) -> None:
    data = np.zeros((40, 40, 40))
    data[20, 20, 20] = 1
    nothing = localize(synthetic(data, 2), pipeline.localizer, CPU)
    assert nothing.hippocampi == {"L": None, "R": None}
