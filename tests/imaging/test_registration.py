"""A real head whose place, size, contrast and field of view were changed in known ways."""

from __future__ import annotations

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine
from scipy.spatial.transform import Rotation

from hyps_bids.imaging.conform import conform
from hyps_bids.imaging.registration import Head, NotRegistered, register, rigid_between
from hyps_bids.networks.cards import LOCALIZER, shipped_weights
from hyps_bids.segmentation.localize import localize
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
    found = register(head, scan)
    assert error_mm(head, found, _TRUTH) < 0.5
    verdict = judge(head, scan, found)
    assert (verdict.refusal, verdict.flags) == ("", ())
    assert verdict.figures["overlap"] > 0.97
    assert verdict.figures["similarity"] > 0.95
    # From the scan to the template; the truth leads from the template to the scan.
    assert verdict.figures["volume_factor"] == pytest.approx(1 / np.linalg.det(_TRUTH), rel=0.03)


@pytest.mark.slow
def test_a_head_without_its_upper_half_is_registered_from_its_hippocampi(head: Head) -> None:
    top = apply_affine(head.grid, np.argwhere(head.hippocampi.max(axis=0) > 0.5))[:, 2].max() + 12
    rows = int((top - head.affine[2, 3]) / head.affine[2, 2])
    slices = int((top - head.grid[2, 3]) / head.grid[2, 2])
    scan = moved(
        Head(
            head.image[:, :, :rows],
            head.affine,
            head.inside[:, :, :slices],
            head.hippocampi[..., :slices],
            head.grid,
        ),
        affine((4, -3, 5), (0.9, 1.05, 0.95)),
    )
    truth = affine((4, -3, 5), (0.9, 1.05, 0.95))
    found = register(head, scan, upright=True)
    assert error_mm(head, found, truth) < 3
    verdict = judge(head, scan, found)
    assert (verdict.refusal, verdict.flags) == ("", ("cut-off",))


@pytest.mark.slow
def test_the_same_images_give_the_same_transform(head: Head) -> None:
    scan = moved(head, _TRUTH)
    np.testing.assert_array_equal(register(head, scan), register(head, scan))


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
    found = register(head, scan)
    limit = {"top missing": 3.0, "thick slices": 1.5}.get(spoiled, 1.0)
    assert error_mm(head, found, truth) < limit
    verdict = judge(head, scan, found)
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


def test_what_does_not_overlap_is_not_registered(head: Head) -> None:
    far = replace(head, affine=head.affine + np.outer([1000, 0, 0, 0], [0, 0, 0, 1]))
    with pytest.raises(NotRegistered):
        register(head, far)


def test_two_points_shift_and_do_not_turn() -> None:
    places = np.array([[0.0, 0, 0], [10, 0, 0]])
    move = rigid_between(places, places @ np.diag([0.0, 1, 1]) + [0, 5, 0])
    np.testing.assert_allclose(move[:3, :3], np.eye(3))
    np.testing.assert_allclose(move[:3, 3], [-5, 5, 0])
