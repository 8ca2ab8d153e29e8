"""A real head whose place, size, contrast and field of view were changed in known ways."""

from __future__ import annotations

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from nibabel.affines import apply_affine
from scipy.spatial.transform import Rotation

from hyps_bids.imaging.conform import conform
from hyps_bids.imaging.registration import (
    Head,
    NotRegistered,
    register,
    rigid_between,
    rigid_guesses,
)
from hyps_bids.imaging.roi import shifted
from hyps_bids.networks.cards import LOCALIZER, shipped_weights
from hyps_bids.segmentation.localize import localize
from hyps_bids.spaces.align import align
from hyps_bids.spaces.quality import judge


@pytest.fixture(scope="module")
def head(coarse_head: nib.Nifti1Image, tmp_path_factory: pytest.TempPathFactory) -> Head:
    path = tmp_path_factory.mktemp("head") / "sub-0001_T1w.nii"
    nib.save(coarse_head, path)
    image = conform(path)
    found = localize(image, shipped_weights(LOCALIZER))
    return Head(image.data, image.affine, found.intracranial, found.hippocampus, found.affine)


def moved(head: Head, move: np.ndarray) -> Head:
    """Give a head another place, size and shape, by its headers alone."""
    return replace(head, affine=move @ head.affine, grid=move @ head.grid)


def affine(degrees: tuple[float, ...], scales: tuple[float, ...]) -> np.ndarray:
    move = np.eye(4)
    turn = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    move[:3, :3] = turn @ np.diag(scales)
    move[0, 1] += 0.04
    move[:3, 3] = (30, -20, 45)
    return move


def error_mm(head: Head, found: np.ndarray, truth: np.ndarray) -> float:
    """Return the largest error at the hippocampi, mm."""
    places = apply_affine(head.grid, np.argwhere(head.hippocampi.max(axis=0) > 0.5))
    distance = apply_affine(found, places) - apply_affine(truth, places)
    return float(np.linalg.norm(distance, axis=1).max())


_TRUTH = affine((12, -8, 15), (0.88, 1.05, 0.94))


def test_a_known_affine_is_found_and_found_again(head: Head) -> None:
    scan = moved(head, _TRUTH)
    found = register(head, scan, rigid_guesses(head, scan)[0])
    assert error_mm(head, found, _TRUTH) < 0.5
    verdict = judge(head, scan, found)
    assert (verdict.refusal, verdict.flags) == ("", ())
    assert verdict.figures["overlap"] > 0.97
    assert verdict.figures["similarity"] > 0.95
    # From the scan to the template; the truth leads from the template to the scan.
    assert verdict.figures["volume_factor"] == pytest.approx(1 / np.linalg.det(_TRUTH), rel=0.03)


def cut(head: Head, axis: int, low: float, high: float) -> Head:
    """Cut a head beside its hippocampi, mm from their middle; its axes are those of the world."""
    middle = apply_affine(head.grid, np.argwhere(head.hippocampi.max(axis=0) > 0.5)).mean(axis=0)
    parts, affines = [], []
    for data, grid in ((head.image, head.affine), (head.inside, head.grid)):
        ends = (middle[axis] + np.array([low, high]) - grid[axis, 3]) / grid[axis, axis]
        start, stop = np.clip(np.round(ends), 0, data.shape[axis]).astype(int)
        region = [slice(None)] * 3
        region[axis] = slice(start, stop)
        parts.append(tuple(region))
        affines.append(shifted(grid, [part.start or 0 for part in region]))
    return Head(
        head.image[parts[0]],
        affines[0],
        head.inside[parts[1]],
        head.hippocampi[(slice(None), *parts[1])],
        affines[1],
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("axis", "low", "high"),
    [(2, -200, 25), (2, -30, 30), (1, -25, 200), (1, -200, 25)],
    ids=["top", "slab", "back", "front"],
)
def test_heads_that_the_field_of_view_cuts_are_registered(
    head: Head, axis: int, low: float, high: float
) -> None:
    truth = affine((4, -3, 5), (0.9, 1.05, 0.95))
    scan = moved(cut(head, axis, low, high), truth)
    found, verdict = align(head, scan, same_contrast=True)
    assert found is not None
    assert error_mm(head, found, truth) < 3
    assert (verdict.refusal, verdict.flags) == ("", ("cut-off",))


@pytest.mark.slow
def test_a_turned_head_with_one_hippocampus_is_registered_and_flagged(head: Head) -> None:
    truth = affine((35, 0, 10), (0.95, 1.0, 1.05))
    one = replace(head, hippocampi=head.hippocampi * np.array([1, 0]).reshape(2, 1, 1, 1))
    found, verdict = align(head, moved(one, truth), same_contrast=True)
    assert found is not None
    assert error_mm(head, found, truth) < 1
    assert (verdict.refusal, verdict.flags) == ("", ("missing_R",))


@pytest.mark.slow
def test_few_extreme_intensities_change_little(head: Head) -> None:
    bright = head.image.copy()
    place = [side // 2 + 8 for side in bright.shape]
    region = tuple(slice(start, start + 2) for start in place)
    bright[region] = 50 * np.percentile(bright, 99.5)
    scan = moved(replace(head, image=bright), _TRUTH)
    found, verdict = align(head, scan, same_contrast=True)
    assert found is not None
    assert error_mm(head, found, _TRUTH) < 0.5
    assert verdict.is_clean


@pytest.mark.slow
def test_the_same_images_give_the_same_transform(head: Head) -> None:
    scan = moved(head, _TRUTH)
    guess = rigid_guesses(head, scan)[0]
    np.testing.assert_array_equal(register(head, scan, guess), register(head, scan, guess))


@pytest.mark.slow
@pytest.mark.parametrize("spoiled", ["inverted", "top missing", "thick slices", "one side missing"])
def test_other_contrasts_and_parts_of_heads_are_registered(head: Head, spoiled: str) -> None:
    scan = moved(head, _TRUTH)
    if spoiled == "inverted":
        scan = replace(scan, image=scan.image.max() - scan.image)
    elif spoiled == "top missing":
        # Everything 35 mm above the hippocampi is beyond the field of view.
        places = np.argwhere(head.hippocampi.max(axis=0) > 0.5)
        top = apply_affine(head.grid, places)[:, 2].max() + 35
        rows = int((top - head.affine[2, 3]) / head.affine[2, 2])
        slices = int((top - head.grid[2, 3]) / head.grid[2, 2])
        scan = replace(
            scan,
            image=scan.image[:, :, :rows],
            inside=scan.inside[:, :, :slices],
            hippocampi=scan.hippocampi[..., :slices],
        )
    elif spoiled == "thick slices":
        step = np.diag([1.0, 1.0, 3.0, 1.0])
        scan = replace(scan, image=scan.image[:, :, ::3], affine=scan.affine @ step)
    else:
        scan = replace(scan, hippocampi=scan.hippocampi * np.array([1, 0]).reshape(2, 1, 1, 1))
        scan = replace(scan, affine=np.linalg.inv(_TRUTH) @ scan.affine)
        scan = replace(scan, grid=np.linalg.inv(_TRUTH) @ scan.grid)
    truth = np.eye(4) if spoiled == "one side missing" else _TRUTH
    found, verdict = align(head, scan)
    assert found is not None
    limit = {"top missing": 3.0, "thick slices": 1.5}.get(spoiled, 1.0)
    assert error_mm(head, found, truth) < limit
    assert verdict.refusal == ""
    assert ("cut-off" in verdict.flags) == (spoiled == "top missing")


def test_wrong_registrations_are_refused(head: Head) -> None:
    shifted = np.eye(4)
    shifted[:3, 3] = (0, 60, 0)
    assert judge(head, head, shifted).refusal == "not-aligned"
    swapped = replace(head, hippocampi=head.hippocampi[::-1])
    assert judge(head, swapped, np.eye(4)).refusal == "sides-swapped"
    mirror = np.diag([-1.0, 1.0, 1.0, 1.0])
    assert judge(head, head, mirror).refusal in ("sides-swapped", "absurd-size")
    small = np.diag([0.5, 1.0, 1.0, 1.0])
    assert judge(head, moved(head, small), small).refusal == "absurd-size"


def test_what_does_not_fit_is_refused_or_flagged(head: Head) -> None:
    beside = np.eye(4)
    beside[:3, 3] = (0, 14, 0)
    verdict = judge(head, head, beside)
    assert 0 < max(verdict.figures[f"hippocampus_{hemi}"] for hemi in "LR") < 0.2
    assert verdict.refusal == "not-aligned"
    noise = np.random.default_rng(0).normal(100, 20, head.image.shape).astype(np.float32)
    other = replace(head, image=noise)
    assert judge(head, other, np.eye(4), same_contrast=True).flags == ("dissimilar",)
    # T2w images of real heads explain as little.
    assert judge(head, other, np.eye(4)).is_clean


def test_what_does_not_overlap_is_not_registered(head: Head) -> None:
    far = replace(head, affine=head.affine + np.outer([1000, 0, 0, 0], [0, 0, 0, 1]))
    guess = rigid_guesses(head, far)[0]
    with pytest.raises(NotRegistered):
        register(head, far, guess)
    assert align(head, far)[1].refusal == "not-aligned"


@pytest.mark.parametrize("text", ["Failed to allocate memory for image.", "can't start new thread"])
def test_other_failures_of_the_registration_are_failures(
    head: Head, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError(text)

    monkeypatch.setattr(sitk.ImageRegistrationMethod, "Execute", fail)
    with pytest.raises(RuntimeError, match=text):
        align(head, head)


def test_two_points_are_turned_as_little_as_possible() -> None:
    places = np.array([[-10.0, 0, 0], [10, 0, 0]])
    move = rigid_between(places, np.array([[5.0, -5, 3], [5, 15, 3]]))
    np.testing.assert_allclose(
        move, [[0, -1, 0, 5], [1, 0, 0, 5], [0, 0, 1, 3], [0, 0, 0, 1]], atol=1e-12
    )
    np.testing.assert_allclose(rigid_between(places[:1], places[1:])[:3, 3], [20, 0, 0])
