"""Tests of :mod:`hyps_bids.segmentation.segment` and of the pipeline on a real head."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from hyps_bids.imaging.agreement import dice
from hyps_bids.imaging.conform import ConformedImage, conform
from hyps_bids.imaging.volumes import measure
from hyps_bids.networks.cards import GRID
from hyps_bids.outputs.labels import HEMISPHERES
from hyps_bids.outputs.scan_files import BOX
from hyps_bids.segmentation.localize import Location
from hyps_bids.segmentation.pipeline import Pipeline, Result, restore_sides, segment
from hyps_bids.segmentation.segment import LATTICE, Segmentation, SegmentedSide, segment_views

ANTERIOR, POSTERIOR = 1, 2
Places = dict[str, Location | None]


def run(pipeline: Pipeline, image: ConformedImage, places: Places) -> Segmentation:
    return segment(image, places, pipeline.adapter, pipeline.base, pipeline.device)


def volumes(image: ConformedImage, segmentation: Segmentation) -> list[float]:
    """Soft volume of each whole hippocampus, left first, mm³."""
    restored = restore_sides(image, segmentation)
    return [measure(restored[hemi], image.affine)[-1].volume_soft_mm3 for hemi in HEMISPHERES]


def center(side: SegmentedSide, *labels: int) -> np.ndarray:
    mask = np.isin(side.probabilities.argmax(axis=0), labels)
    return nib.affines.apply_affine(side.affine, np.argwhere(mask).mean(axis=0))


def test_probabilities_and_parts(result: Result) -> None:
    assert result.segmentation.device == "cpu"
    assert result.segmentation.parts == ("anterior", "posterior")
    assert list(result.segmentation.sides) == list(HEMISPHERES)
    for side in result.segmentation.sides.values():
        assert side.probabilities.shape == (3, *LATTICE)
        assert side.probabilities.dtype == np.float32
        np.testing.assert_allclose(side.probabilities.sum(axis=0), 1, atol=1e-5)
        seen = np.argwhere(side.inside)
        np.testing.assert_array_equal(seen.max(axis=0) - seen.min(axis=0) + 1, BOX)
        assert 0 < side.disagreement < 0.1


class Constant:
    """A network that finds hippocampus in the upper half of what it is shown."""

    labels = ("hippocampus",)

    def predict(self, batch: np.ndarray) -> tuple[np.ndarray, str]:
        out = np.zeros((len(batch), 2, *GRID), np.float32)
        out[:, 0] = 1
        out[:, :, :, :, GRID[2] // 2 :] = np.array([0.2, 0.8])[None, :, None, None, None]
        return out, "cpu"


def test_views_are_averaged_where_they_see() -> None:
    volume = np.ones(LATTICE, np.float32)
    (found,), _ = segment_views(Constant(), [volume], [volume > 0], (40, 56, 36))
    hippocampus = found.probabilities[1]
    np.testing.assert_allclose(found.probabilities.sum(axis=0), 1, atol=1e-6)
    middle = hippocampus[20, 30]
    # Views see planes 2–37 and 5–40, and find hippocampus from planes 20 and 23 on.
    np.testing.assert_allclose(middle[:20], 0)
    np.testing.assert_allclose(middle[20:23], 0.4, atol=1e-6)
    np.testing.assert_allclose(middle[23:41], 0.8, atol=1e-6)
    np.testing.assert_allclose(middle[41:], 0)
    np.testing.assert_array_equal(np.flatnonzero(found.inside[20, 30])[[0, -1]], [2, 40])
    # One finds 40 x 56 x 18 voxels, the other the same but shifted by 3 along each axis.
    common = 37 * 53 * 15
    assert found.disagreement == pytest.approx(1 - common / (40 * 56 * 18))


def test_anatomy(result: Result, head: ConformedImage) -> None:
    sides = result.segmentation.sides
    for hemi, side in sides.items():
        place = result.localization.hippocampi[hemi]
        assert place is not None
        assert np.linalg.norm(center(side, ANTERIOR, POSTERIOR) - place.center) < 6
        assert center(side, ANTERIOR)[1] > center(side, POSTERIOR)[1] + 8
    assert center(sides["L"], ANTERIOR)[0] < center(sides["R"], ANTERIOR)[0] - 35
    left, right = volumes(head, result.segmentation)
    assert 1800 < min(left, right) < max(left, right) < 4800
    assert 0.8 < left / right < 1.25


def test_mirrored_image_swaps_the_volumes(
    result: Result, head: ConformedImage, pipeline: Pipeline
) -> None:
    ends = [nib.affines.apply_affine(head.affine, (x, 0, 0))[0] for x in (0, len(head.data) - 1)]
    swapped: Places = {}
    for hemi, other in (("L", "R"), ("R", "L")):
        place = result.localization.hippocampi[other]
        assert place is not None
        x, y, z = place.center
        swapped[hemi] = replace(place, center=(sum(ends) - x, y, z))
    image = replace(head, data=np.ascontiguousarray(head.data[::-1]))
    # The network sees the very same boxes
    expected = volumes(head, result.segmentation)[::-1]
    assert volumes(image, run(pipeline, image, swapped)) == pytest.approx(expected, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [
        "1e-20",
        "hot voxels",
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("padding", "overflow")),
    ],
)
def test_volumes_depend_on_the_signal_only(
    kind: str, result: Result, head: ConformedImage, pipeline: Pipeline, tmp_path: Path
) -> None:
    data = head.data.astype(np.float64)
    spoiled = {
        "1e-20": lambda: data * 1e-20,
        "hot voxels": lambda: np.where(np.indices(data.shape).sum(axis=0) % 97 == 0, 1e5, data),
        "padding": lambda: np.where(data < 3, -1024, data),
        "overflow": lambda: np.round(data * 140).astype(np.int32).astype(np.int16),
    }[kind]()
    nib.save(nib.Nifti1Image(spoiled, head.affine), tmp_path / "a.nii")
    image = conform(tmp_path / "a.nii")
    assert len(image.remarks) == (kind != "1e-20")
    found = pipeline.run(image)
    expected = volumes(head, result.segmentation)
    assert volumes(image, found.segmentation) == pytest.approx(expected, rel=0.01)
    assert found.localization.icv_mm3 == pytest.approx(result.localization.icv_mm3, rel=0.01)


def test_one_side_alone_at_another_scale_of_intensities(
    result: Result, head: ConformedImage, pipeline: Pipeline
) -> None:
    places = {"L": None, "R": result.localization.hippocampi["R"]}
    found = run(pipeline, replace(head, data=head.data * 0.01 + 3), places).sides
    assert list(found) == ["R"]
    expected = result.segmentation.sides["R"].probabilities
    np.testing.assert_allclose(found["R"].probabilities, expected, atol=0.02)


def test_nothing_found_computes_nothing(head: ConformedImage, pipeline: Pipeline) -> None:
    found = run(pipeline, head, {"L": None, "R": None})
    assert (found.sides, found.device) == ({}, "none")


def test_parts_on_the_image_and_on_another_grid(
    result: Result, head: ConformedImage, pipeline: Pipeline
) -> None:
    fine = head.affine @ np.diag([0.5, 0.5, 0.5, 1])
    # The finer voxels fill the coarse ones
    fine[:3, 3] -= head.affine[:3, :3] @ [0.25, 0.25, 0.25]
    shape = [2 * side for side in head.data.shape]
    left, right = restore_sides(head, result.segmentation, {"R": (shape, fine)}).values()
    assert set(np.unique(right.labels)) == {0, ANTERIOR, POSTERIOR}
    np.testing.assert_array_equal(left.labels, result.restored["L"].labels)
    whole, labels = np.zeros(shape, bool), np.zeros(head.data.shape, bool)
    whole[right.region] = right.labels > 0
    labels[result.restored["R"].region] = result.restored["R"].labels > 0
    coarse = whole.reshape(*(n for side in labels.shape for n in (side, 2))).mean(axis=(1, 3, 5))
    assert dice(labels, coarse > 0.5) > 0.95
