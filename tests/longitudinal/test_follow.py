"""Scans of a real head that was moved and spoiled in known ways."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine
from scipy import ndimage
from scipy.spatial.transform import Rotation

from hyps_bids.imaging.conform import ConformedImage, conform
from hyps_bids.longitudinal import pipeline
from hyps_bids.longitudinal.alignment import centered
from hyps_bids.longitudinal.deformation import carry, deform_to_mean, expansion, inverse
from hyps_bids.longitudinal.heads import Scan, align, mirrored
from hyps_bids.longitudinal.intensities import match
from hyps_bids.longitudinal.pipeline import TimePoint, follow
from hyps_bids.networks.cards import ADAPTER, BASE, LOCALIZER, shipped_weights
from hyps_bids.segmentation.inference import cached_adapted
from hyps_bids.segmentation.localize import localize
from tests.remembering import remembered


def _scan(path: Path) -> Scan:
    image = conform(path)
    found = localize(image, shipped_weights(LOCALIZER))
    centers = {hemi: place.center for hemi, place in found.hippocampi.items() if place}
    return Scan(image, found.intracranial, found.affine, centers)


@pytest.fixture(scope="module")
def scan(coarse_head: nib.Nifti1Image, tmp_path_factory: pytest.TempPathFactory) -> Scan:
    path = tmp_path_factory.mktemp("scan") / "sub-0001_T1w.nii"
    nib.save(coarse_head, path)
    return _scan(path)


def _moved(scan: Scan, degrees: tuple[float, ...], shift: tuple[float, ...]) -> Scan:
    """Return the scan with another place in the world, sampled on its old grid."""
    move = np.eye(4)
    move[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    move[:3, 3] = shift
    image = scan.image
    pull = np.linalg.inv(image.affine) @ np.linalg.inv(move) @ image.affine
    data = ndimage.affine_transform(image.data, pull[:3, :3], pull[:3, 3], order=3)
    centers = {hemi: apply_affine(move, center) for hemi, center in scan.centers.items()}
    return Scan(
        replace(image, data=np.maximum(np.ascontiguousarray(data), 0)),
        scan.intracranial,
        move @ scan.intracranial_affine,
        centers,
    )


_DEGREES, _SHIFT = (4.0, -3.0, 6.0), (8.0, -5.0, 12.0)


def test_copies_of_an_image_are_no_scans_of_two_times(scan: Scan) -> None:
    elsewhere = scan.image.affine.copy()
    elsewhere[:3, 3] += 5
    copy = replace(scan.image, affine=elsewhere)
    assert align([scan, scan._replace(image=copy)]).refusals == ("same-image",) * 2


@pytest.mark.slow
def test_a_known_movement_is_found_and_the_midway_space_favors_none(scan: Scan) -> None:
    moved = _moved(scan, _DEGREES, _SHIFT)
    moved = moved._replace(image=replace(moved.image, data=moved.image.data**1.2))
    aligned = align([scan, moved])
    assert aligned.refusals == (None, None)
    first, second = aligned.moves
    assert first is not None
    assert second is not None
    true = np.eye(4)
    true[:3, :3] = Rotation.from_euler("xyz", _DEGREES, degrees=True).as_matrix()
    true[:3, 3] = _SHIFT
    for center in scan.centers.values():
        found = apply_affine(second @ np.linalg.inv(first), center)
        np.testing.assert_allclose(found, apply_affine(true, center), atol=0.05)
    turns = Rotation.from_matrix([first[:3, :3], second[:3, :3]])
    np.testing.assert_allclose(turns.as_rotvec().sum(axis=0), 0, atol=1e-6)
    assert aligned.figures[0]["rotation_deg"] == pytest.approx(
        np.rad2deg(Rotation.from_euler("xyz", _DEGREES, degrees=True).magnitude()) / 2, abs=0.05
    )
    back = align([moved, scan])
    np.testing.assert_allclose(back.moves[1], first, atol=1e-4)


@pytest.mark.slow
def test_another_head_and_a_mirrored_head_are_refused(scan: Scan, demo_bids: Path) -> None:
    moved = _moved(scan, (2.0, 0.0, -3.0), (1.0, 2.0, 0.0))
    image = moved.image
    turn = np.diag([-1.0, 1.0, 1.0, 1.0])
    turn[0, 3] = image.data.shape[0] - 1
    assert align([scan, mirrored(moved)]).refusals == ("sides-swapped",) * 2
    other = _scan(demo_bids / "sub-05/anat/sub-05_T1w.nii.gz")
    # Nobody knows which of two heads is the wrong one, but two of three are one person.
    assert align([scan, other]).refusals == ("different-head",) * 2
    assert align([scan, other, moved]).refusals == (None, "different-head", None)
    empty = moved._replace(intracranial=np.zeros_like(scan.intracranial))
    assert align([scan, empty]).refusals == (None, "no-brain")


def test_centered_transforms_have_no_mean() -> None:
    turns = Rotation.from_euler("xyz", [[0, 0, 0], [0, 0, 20], [0, 0, 40]], degrees=True)
    moves = [np.eye(4) for _ in range(3)]
    for move, turn in zip(moves, turns.as_matrix(), strict=True):
        move[:3, :3] = turn
    new = centered(moves, np.zeros(3))
    angles = Rotation.from_matrix([move[:3, :3] for move in new]).as_euler("xyz", degrees=True)
    np.testing.assert_allclose(angles[:, 2], [-20, 0, 20], atol=1e-6)


def test_scale_bias_and_gamma_are_matched() -> None:
    rng = np.random.default_rng(0)
    tissue = 100 + 50 * ndimage.gaussian_filter(rng.standard_normal((30, 30, 30)), 2) * 10
    tissue = np.clip(tissue, 40, 200)
    field = np.exp(0.2 * np.linspace(-1, 1, 30))[:, None, None]
    images = np.stack([tissue, 7 * (tissue * field) ** 1.2]).astype(np.float32)
    matched = match(images, np.ones(images.shape, bool))
    np.testing.assert_allclose(matched[0], matched[1], rtol=0.01)


def test_a_deformation_between_three_images_is_found() -> None:
    axes = np.meshgrid(*[np.arange(48) - 23.5] * 3, indexing="ij")
    radius = np.sqrt(sum(axis**2 for axis in axes))
    radii = [12.0, 12.0 * 0.98 ** (1 / 3), 12.0 * 0.95 ** (1 / 3)]
    images = np.stack([1 / (1 + np.exp((radius - r) / 0.7)) for r in radii]).astype(np.float32)
    shifts = deform_to_mean(images, np.ones(images.shape, bool))
    np.testing.assert_allclose(shifts.sum(axis=0), 0, atol=1e-4)
    mean = np.mean([carry(i[None], u)[0] for i, u in zip(images, shifts, strict=True)], axis=0)
    volumes = [float((mean * expansion(u)).sum()) for u in shifts]
    np.testing.assert_allclose(np.array(volumes) / volumes[0], [1, 0.98, 0.95], atol=0.004)
    there = carry(shifts[2], inverse(shifts[2]))
    np.testing.assert_allclose(there, -inverse(shifts[2]), atol=1e-3)


@pytest.mark.slow
def test_three_time_points_one_of_which_lacks_a_side(
    scan: Scan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What does not depend on the order of time is computed for one order.
    once = remembered(pipeline._follow, tmp_path, lambda points, network, threads: points)
    monkeypatch.setattr(pipeline, "_follow", once)
    network = cached_adapted(shipped_weights(ADAPTER), shipped_weights(BASE), "cpu")
    scans = [scan, _moved(scan, (3.0, 1.0, -2.0), (2.0, -3.0, 1.0))]
    scans.append(_without_left(_moved(scan, (-2.0, 2.0, 3.0), (0.0, 4.0, -2.0))))
    points = [TimePoint(*each) for each in scans]
    found = follow(points, network)
    assert found.refusals == (None, None, None)
    left, right = found.sides["L"], found.sides["R"]
    # More than half of the left box is in the field of view, but nothing was found there.
    assert found.missing == {"L": (None, None, "not-found"), "R": (None, None, None)}
    assert np.isnan(left.volumes[2]).all()
    assert np.isnan(left.boundary_shift[2]).all()
    assert left.probabilities[2] is None
    assert left.images[2] is None
    np.testing.assert_allclose(right.volumes / right.volumes[0], 1, atol=0.02)
    np.testing.assert_allclose(right.boundary_shift / right.volumes[0], 0, atol=0.02)
    again = follow(points[::-1], network)
    np.testing.assert_allclose(again.sides["R"].volumes[::-1], right.volumes, rtol=5e-4)
    change = right.boundary_shift[2] - right.boundary_shift[0]
    reversed_change = again.sides["R"].boundary_shift[2]
    np.testing.assert_allclose(reversed_change, -change, atol=5e-4 * right.volumes[0, 2])
    # With one other scan there is no change of the left side, and it is known which scan lacks it.
    pair = follow(points[1:], network)
    assert list(pair.sides) == ["R"]
    assert pair.missing == {"L": (None, "not-found"), "R": (None, None)}


def _without_left(scan: Scan) -> Scan:
    """End the field of view between the hippocampi."""
    image: ConformedImage = scan.image
    world = np.mean(list(scan.centers.values()), axis=0)
    column = int(apply_affine(np.linalg.inv(image.affine), world)[0])
    affine = image.affine.copy()
    affine[:3, 3] += affine[:3, 0] * (column - 15)
    cropped = replace(image, data=image.data[column - 15 :], affine=affine)
    return scan._replace(image=cropped, centers={"R": scan.centers["R"]})


@pytest.mark.slow
def test_a_resected_hippocampus_does_not_spoil_the_other_time_points(scan: Scan) -> None:
    network = cached_adapted(shipped_weights(ADAPTER), shipped_weights(BASE), "cpu")
    scans = [scan, _moved(scan, (3.0, 1.0, -2.0), (2.0, -3.0, 1.0))]
    scans.append(_with_cavity(_moved(scan, (-2.0, 2.0, 3.0), (0.0, 4.0, -2.0))))
    points = [TimePoint(*each) for each in scans]
    left = follow(points, network).sides["L"]
    assert left.unlike == (False, False, True)
    assert max(left.agreement[:2]) > 0.9 > 0.85 > left.agreement[2]
    assert np.isfinite(left.volumes[2]).all()
    assert np.isnan(left.comparable[2]).all()
    assert np.isnan(left.boundary_shift[2]).all()
    np.testing.assert_allclose(left.volumes[1], left.volumes[0], rtol=0.02)
    np.testing.assert_allclose(left.boundary_shift[1] / left.volumes[0], 0, atol=0.03)


def _with_cavity(scan: Scan) -> Scan:
    """Replace the anterior half of the left hippocampus and what is around it by fluid."""
    data = scan.image.data.copy()
    grid = np.moveaxis(np.indices(data.shape), 0, -1)
    middle = np.add(scan.centers["L"], (0, 14, 0))
    cavity = np.linalg.norm(apply_affine(scan.image.affine, grid) - middle, axis=-1) < 15
    data[cavity] = np.percentile(data[data > 0], 10)
    return scan._replace(image=replace(scan.image, data=data))
