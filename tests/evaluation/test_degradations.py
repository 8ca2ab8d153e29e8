"""Each kind of spoiled image is spoiled in the way that its name says, and by as much."""

from __future__ import annotations

import numpy as np
import pytest
from nibabel.affines import apply_affine, voxel_sizes

from hyps_bids.errors import UsageError
from hyps_bids.evaluation.heads import Head, head_from_crop
from hyps_bids.evaluation.variants import KINDS, spoil, variants
from hyps_bids.imaging.agreement import dice
from tests.evaluation import phantom as known
from tests.raising import raises


def middle(mask: np.ndarray, affine: np.ndarray) -> np.ndarray:
    center: np.ndarray = apply_affine(affine, np.argwhere(mask).mean(axis=0))
    return center


def test_intensities_of_tissues_are_estimated(head: Head) -> None:
    air, csf, gray, white, noise = head.tissues
    assert air == pytest.approx(known.AIR, abs=4)
    assert csf == pytest.approx(known.CSF, abs=6)
    assert gray == pytest.approx(known.GRAY, abs=6)
    assert white == pytest.approx(known.WHITE, abs=4)
    assert noise == pytest.approx(known.NOISE, rel=0.2)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_same_seed_gives_the_same_image(head: Head, kind: str) -> None:
    strength = list(KINDS[kind].strengths)[-1]
    one, two = (spoil(head, kind, strength, seed=3) for _ in range(2))
    assert one.data.dtype == np.float32
    assert np.isfinite(one.data).all()
    assert np.array_equal(one.data, two.data)
    assert one.data.shape != head.data.shape or not (
        np.array_equal(one.data, head.data) and np.array_equal(one.affine, head.affine)
    )


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["rotation:z30", "tilt:x25", "displaced:y0.2"])
def test_truth_moves_with_the_head(head: Head, variant: str) -> None:
    (variant_,) = variants([variant])
    spoiled = spoil(head, *variant_)
    masks = spoiled.masks(head)
    for hemi, mask in masks.items():
        # The hippocampus is where the truth says: gray, surrounded by white matter.
        assert spoiled.data[mask].mean() == pytest.approx(known.GRAY, abs=8)
        before = middle(head.sides[hemi], head.affine)
        there = apply_affine(spoiled.moved, before)
        assert np.allclose(middle(mask, spoiled.affine), there, atol=1)
        assert np.linalg.norm(there - before) > 5


def test_header_turns_the_world_but_no_voxel(head: Head) -> None:
    spoiled = spoil(head, "header", "y90")
    assert np.array_equal(spoiled.data, head.data)
    for hemi, mask in spoiled.masks(head).items():
        assert dice(mask, head.sides[hemi]) > 0.99
    left = middle(spoiled.masks(head)["L"], spoiled.affine)
    assert abs(left[0]) < abs(left[2])


@pytest.mark.slow
def test_oblique_grid_leaves_the_head_where_it_is(head: Head) -> None:
    spoiled = spoil(head, "oblique", "z45")
    for hemi, mask in spoiled.masks(head).items():
        assert np.allclose(
            middle(mask, spoiled.affine), middle(head.sides[hemi], head.affine), atol=0.5
        )
        assert spoiled.data[mask].mean() == pytest.approx(known.GRAY, abs=8)


@pytest.mark.slow
@pytest.mark.parametrize("end", ["left", "right", "posterior", "anterior", "inferior", "superior"])
def test_cuts_leave_out_the_share_that_they_name(head: Head, end: str) -> None:
    seen = spoil(head, "cut", f"{end}30").visible(head)
    cut = [seen["L"]] if end == "left" else [seen["R"]] if end == "right" else list(seen.values())
    # Within a slice of voxels
    assert np.mean(cut) == pytest.approx(0.7, abs=0.12)
    if end == "left":
        assert seen["R"] == 1


def test_slabs_and_halves(head: Head) -> None:
    slab = spoil(head, "slab", "xyz10")
    assert set(slab.visible(head).values()) == {1.0}
    assert max(slab.data.shape) * known.SPACING < 130
    assert spoil(head, "slab", "half_R").visible(head) == {"L": 0.0, "R": 1.0}
    assert spoil(head, "apart", "above").visible(head) == {"L": 0.0, "R": 0.0}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), [("z5", 5), ("x4+1", 5), ("y8", 8)])
def test_slices_have_their_thickness(head: Head, name: str, size: float) -> None:
    spoiled = spoil(head, "slices", name)
    axis = "xyz".index(name[0])
    sizes = voxel_sizes(spoiled.affine)
    assert sizes[axis] == pytest.approx(size)
    assert np.delete(sizes, axis) == pytest.approx(known.SPACING)
    # A ramp shows where the slices are, and that they average what is inside.
    places = apply_affine(head.affine, np.moveaxis(np.indices(head.data.shape), 0, -1))[..., axis]
    ramp = Head(places.astype(np.float32), head.affine, head.sides, head.brain, head.brain_affine)
    sliced = spoil(ramp, "slices", name)
    world = apply_affine(sliced.affine, np.moveaxis(np.indices(sliced.data.shape), 0, -1))
    assert np.allclose(sliced.data, world[..., axis], atol=0.02)


@pytest.mark.slow
def test_voxels_are_means_over_their_volume(head: Head) -> None:
    spoiled = spoil(head, "voxels", "4")
    assert voxel_sizes(spoiled.affine) == pytest.approx(4)
    assert spoiled.data.mean() == pytest.approx(head.data.mean(), rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("level", ["0.05", "0.2"])
def test_noise_is_a_share_of_white_matter(head: Head, level: str) -> None:
    added = spoil(head, "noise", level).data - head.data
    assert added.std() == pytest.approx(float(level) * known.WHITE, rel=0.03)
    rician = spoil(head, "rician", level).data
    air = rician[:8, :8, :8]
    # The mean of a Rayleigh distribution
    assert air.mean() == pytest.approx(float(level) * known.WHITE * np.sqrt(np.pi / 2), rel=0.1)


@pytest.mark.slow
def test_bias_field_has_its_ratio(head: Head) -> None:
    field = spoil(head, "bias", "3").data / head.data
    assert field.max() / field.min() == pytest.approx(3, rel=0.1)
    assert np.abs(np.diff(np.log(field), axis=0)).max() < 0.1


@pytest.mark.slow
def test_contrasts_change_the_order_of_tissues(head: Head) -> None:
    white = head.inside(-25) & (np.abs(head.data - known.WHITE) < 6)
    fluid = head.inside(-25) & (np.abs(head.data - known.CSF) < 6)
    gray = head.sides["L"]
    t2 = spoil(head, "contrast", "t2").data
    assert t2[fluid].mean() > t2[gray].mean() > t2[white].mean() > t2[:8, :8, :8].mean()
    flair = spoil(head, "contrast", "flair").data
    assert flair[gray].mean() > flair[white].mean() > flair[fluid].mean()


@pytest.mark.slow
def test_ratio_image_has_noise_over_the_whole_range_in_air(head: Head) -> None:
    data = spoil(head, "ratio", "0.03").data
    assert np.abs(data).max() <= 0.5
    # Without signal, both inversion images are noise of equal strength.
    air = data[:6, :6, :6]
    assert np.percentile(air, 2) < -0.4
    assert np.percentile(air, 98) > 0.4
    assert abs(np.mean(air)) < 0.06
    for mask in head.sides.values():
        assert np.median(data[mask]) == pytest.approx(-0.05, abs=0.03)


@pytest.mark.slow
def test_spikes_are_lines_of_k_space(head: Head) -> None:
    flat = Head(
        np.full((64, 64, 64), 1000, np.float32),
        np.eye(4),
        {"L": np.ones((64, 64, 64), bool)},
        np.ones((2, 2, 2), np.float32),
        np.eye(4),
    )
    flat.__dict__["tissues"] = head.tissues
    power = np.abs(np.fft.rfftn(spoil(flat, "spikes", "0.8").data - 1000)) ** 2
    brightest = np.sort(power.ravel())[::-1]
    # Two waves, which leak into neighbors as their lengths are no multiples of the image's
    assert brightest[:60].sum() > 0.8 * brightest.sum()


@pytest.mark.slow
def test_ringing_leaves_no_fine_detail(head: Head) -> None:
    power = np.abs(np.fft.rfft(spoil(head, "ringing", "0.5").data[30:50], axis=1)).mean(axis=(0, 2))
    assert power[len(power) * 6 // 10 :].max() < 0.05 * power[: len(power) // 2].mean()


@pytest.mark.slow
def test_ghosts_are_shifted_copies(head: Head) -> None:
    spoiled = spoil(head, "ghosts", "0.8")
    outside = ~head.inside(20)
    assert spoiled.data[outside].max() > known.AIR + 0.1 * known.WHITE


@pytest.mark.slow
def test_wrapping_folds_the_ends(head: Head) -> None:
    spoiled = spoil(head, "wrap", "y0.7")
    assert spoiled.data.shape[1] == pytest.approx(0.7 * 172 / known.SPACING, abs=2)
    total = (spoiled.data - known.AIR).sum()
    assert total == pytest.approx((head.data - known.AIR).sum(), rel=0.02)


@pytest.mark.slow
def test_stripping_takes_its_share_of_one_hippocampus(head: Head) -> None:
    spoiled = spoil(head, "badly_stripped", "L0.3")
    assert (spoiled.data[head.sides["L"]] == 0).mean() == pytest.approx(0.3, abs=0.02)
    assert not (spoiled.data[head.sides["R"]] == 0).any()
    tight, loose = (spoil(head, "stripped", name).data > 0 for name in ("-5", "10"))
    assert tight.sum() < head.inside().sum() < loose.sum()


@pytest.mark.slow
def test_metal_takes_the_signal_beside_a_hippocampus(head: Head) -> None:
    lost = {
        radius: (spoil(head, "metal", f"L{radius}").data[head.sides["L"]] < known.CSF / 2).mean()
        for radius in (12, 40)
    }
    assert lost[12] < 0.05
    assert lost[40] > 0.5


@pytest.mark.slow
def test_background_is_replaced_and_the_head_kept(head: Head) -> None:
    spoiled = spoil(head, "background", "noise")
    inside = head.inside()
    assert np.array_equal(spoiled.data[inside], head.data[inside])
    assert spoiled.data[:8, :8, :8].std() == pytest.approx(1.3 * known.WHITE / np.sqrt(12), rel=0.1)


def test_scaled_header_scales_the_truth(head: Head) -> None:
    spoiled = spoil(head, "scale", "1.5")
    assert voxel_sizes(spoiled.affine) == pytest.approx(1.5 * known.SPACING)
    assert dice(spoiled.masks(head)["L"], head.sides["L"]) > 0.99


@pytest.mark.slow
def test_crops_have_the_same_kinds(head: Head) -> None:
    box = (slice(10, 40), slice(20, 60), slice(10, 40))
    crop = head_from_crop(head.data[box], head.sides["L"][box])
    assert crop.is_crop
    kinds = {kind for kind, _ in variants(crops=True)}
    assert {"noise", "slices", "cut", "motion", "badly_stripped"} <= kinds
    assert not {"rotation", "stripped", "scale"} & kinds
    for kind in kinds:
        spoiled = spoil(crop, kind, next(iter(KINDS[kind].strengths)))
        assert np.isfinite(spoiled.data).all()
        assert list(spoiled.hippocampi(crop)) == ["L"]


def test_unknown_kinds_are_named() -> None:
    assert variants(["noise:0.1"]) == [("noise", "0.1")]
    assert ("noise", "0.03") in variants(["blur", "noise"])
    with raises(UsageError, "variant-unknown", "nois"):
        variants(["nois"])
    with raises(UsageError, "variant-unknown", "noise:7", "0.05"):
        variants(["noise:7"])
