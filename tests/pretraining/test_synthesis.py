"""Tests of :mod:`hyps_bids.pretraining.synthesis`, on a real label map at 2 mm."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from hyps_bids.pretraining.label_maps import BASE_CLASSES, LabelMaps, tissues
from hyps_bids.pretraining.synthesis import BOX, HEAD, box_batch, head_batch
from hyps_bids.training.augment import Deformation

CLASS = {name: i for i, name in enumerate(BASE_CLASSES)}
STILL = Deformation(rotation=0, scaling=0, shearing=0, translation=0, elastic=0)
UNCUT = {"cut_probability": 0.0, "deep_cut_probability": 0.0}
_NEVER = ("thick_probability", "strip_probability", "deface_probability")
CLEAN = UNCUT | dict.fromkeys(("texture", "blur"), (0.0, 0.0))
CLEAN |= dict.fromkeys(("bias", "gamma", "noise", *_NEVER), 0.0)
SMALL_HEAD = replace(HEAD, shape=(48, 48, 48), voxel=5.0)
SMALL_BOX = replace(BOX, shape=(20, 28, 20), voxel=2.0)
BOTH = pytest.mark.parametrize(
    ("make", "settings"), [(head_batch, SMALL_HEAD), (box_batch, SMALL_BOX)], ids=["head", "box"]
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def along_x(mask: torch.Tensor) -> float:
    """Mean place of a mask along x, voxels."""
    return float(mask.nonzero()[:, -3].float().mean())


@BOTH
def test_same_seed_same_batch(maps: LabelMaps, make, settings) -> None:
    (x, y), (x2, y2), (x3, _) = (make(maps, settings, 2, seeded(s)) for s in (5, 5, 6))
    assert x.shape == y.shape == (2, 1, *settings.shape)
    assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
    assert torch.equal(x, x2)
    assert torch.equal(y, y2)
    assert not torch.equal(x, x3)


def test_targets_line_up_with_images(maps: LabelMaps) -> None:
    boxes = box_batch(maps, replace(SMALL_BOX, **CLEAN), 6, seeded())
    structures = ("hippocampus", "amygdala", "putamen", "cerebral cortex")
    heads = head_batch(maps, replace(SMALL_HEAD, **CLEAN), 6, seeded())
    for (x, y), classes in ((boxes, [CLASS[name] for name in structures]), (heads, [2, 3])):
        for image, target in zip(x, y, strict=True):
            for label in classes:
                values = image[target == label]
                assert not len(values) or float(values.max() - values.min()) < 1e-4, label


def test_t1w_contrast(maps: LabelMaps) -> None:
    settings = replace(SMALL_BOX, **CLEAN, t1w_probability=1.0)
    x, y = box_batch(maps, settings, 12, seeded())
    white, gray, fluid = (
        torch.stack([i[t == CLASS[n]].median() for i, t in zip(x, y, strict=True)])
        for n in ("cerebral white matter", "hippocampus", "ventricles")
    )
    assert (white > gray).all()
    assert ((gray > fluid).float().mean()) > 0.8
    x, y = box_batch(maps, replace(settings, t1w_probability=0.0), 12, seeded())
    inverted = [
        i[t == CLASS["cerebral white matter"]].median() < i[t == CLASS["hippocampus"]].median()
        for i, t in zip(x, y, strict=True)
    ]
    assert 0 < sum(inverted) < 12


def test_right_boxes_are_mirrored_exactly(maps: LabelMaps) -> None:
    whole = LabelMaps(maps.names, maps.volumes, maps.voxel, maps.heads, maps.hippocampi.floor())
    settings = replace(SMALL_BOX, shape=(21, 25, 21), voxel=maps.voxel, deformation=STILL, **CLEAN)
    _, y = box_batch(whole, settings, 12, seeded())
    boxes = []
    for side in range(2):
        i, j, k = (int(c) for c in whole.hippocampi[0, side])
        rows = maps.volumes[0, i - 10 : i + 11, j - 12 : j + 13, k - 10 : k + 11].long()
        boxes.append(tissues().base_class[rows])
    left, right = boxes[0], boxes[1].flip(0)
    is_left = [torch.equal(target[0], left) for target in y]
    is_right = [torch.equal(target[0], right) for target in y]
    assert all(a or b for a, b in zip(is_left, is_right, strict=True))
    assert any(is_left)
    assert any(is_right)


def test_sides_and_volumes_of_hippocampi_are_kept(maps: LabelMaps) -> None:
    true_mm3 = 8 * float((maps.volumes == tissues().labels.index(17)).sum())
    _, y = head_batch(maps, replace(SMALL_HEAD, **UNCUT), 12, seeded())
    for target in y:
        assert along_x(target == 2) < along_x(target == 3) - 3
    for label in (2, 3):
        volumes = 125 * (y == label).flatten(1).sum(dim=1)
        assert float(volumes.min()) > 0.4 * true_mm3
        assert float(volumes.max()) < 2 * true_mm3
    _, y = box_batch(maps, replace(SMALL_BOX, **UNCUT), 12, seeded())
    volumes = 8 * (y == CLASS["hippocampus"]).flatten(1).sum(dim=1)
    assert float(volumes.min()) > 0.4 * true_mm3


@BOTH
def test_field_of_view_is_really_cut(maps: LabelMaps, make, settings) -> None:
    cut = replace(settings, deformation=STILL, cut_probability=1.0, mild_cut=(0.4, 0.6))
    x, y = make(maps, cut, 4, seeded())
    for image, target in zip(x[:, 0], y[:, 0], strict=True):
        for volume in (image, target):
            faces = [volume.select(axis, at) for axis in range(3) for at in (0, -1)]
            assert not any(face.any() for face in faces)
        assert target.any()


def test_deep_cuts_take_a_hippocampus_away(maps: LabelMaps) -> None:
    deep = replace(SMALL_HEAD, deformation=STILL, deep_cut_probability=0.5, deep_cut=(0.0, 0.1))
    _, y = head_batch(maps, deep, 12, seeded())
    found = [[bool((target == label).any()) for label in (2, 3)] for target in y]
    assert [True, False] in found or [False, True] in found


def test_intensities_are_normalized_as_at_inference(maps: LabelMaps) -> None:
    x, _ = head_batch(maps, SMALL_HEAD, 4, seeded())
    assert float(x.min()) == 0
    assert ((x.amax(dim=(1, 2, 3, 4)) > 0.9) & (x.amax(dim=(1, 2, 3, 4)) <= 1.5)).all()
    x, _ = box_batch(maps, replace(SMALL_BOX, **UNCUT), 4, seeded())
    torch.testing.assert_close(x.mean(dim=(1, 2, 3, 4)), torch.zeros(4), atol=0.02, rtol=0)
    torch.testing.assert_close(x.std(dim=(1, 2, 3, 4)), torch.ones(4), atol=0.05, rtol=0)


def test_skull_stripping_leaves_the_brain(maps: LabelMaps) -> None:
    clean = CLEAN | {"strip_probability": 1.0, "texture": (0.2, 0.2)}
    settings = replace(SMALL_HEAD, deformation=STILL, **clean, t1w_probability=1.0)
    x, y = head_batch(maps, settings, 6, seeded())
    # Percentile 1 is scaled to zero, so that some voxels of the brain are zero too.
    assert float((x[y >= 2] > 0).float().mean()) > 0.99
    assert float((x[y == 0] > 0).float().mean()) < 0.05
    kept = (x > 0).flatten(1).sum(dim=1).float()
    assert float(kept.max() / kept.min()) > 1.1, "tightness varies"


def test_defacing_spares_the_brain(maps: LabelMaps) -> None:
    clean = CLEAN | {"texture": (0.2, 0.2)}
    whole = replace(SMALL_HEAD, deformation=STILL, **clean, t1w_probability=1.0)
    before, y = head_batch(maps, replace(whole, deface_probability=1e-9), 4, seeded())
    after, _ = head_batch(maps, replace(whole, deface_probability=1.0), 4, seeded())
    gone = (before > 0.1) & (after == 0)
    assert (gone.flatten(1).sum(dim=1) > 50).all()
    assert not gone[y > 0].any()
