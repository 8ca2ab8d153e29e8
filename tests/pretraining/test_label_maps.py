"""Tests of :mod:`hyps_bids.pretraining.label_maps`, on a real label map at 2 mm."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from hyps_bids.errors import BadData, MissingInput
from hyps_bids.networks.cards import BASE, LOCALIZER, read_card, shipped_weights
from hyps_bids.pretraining.label_maps import (
    BASE_CLASSES,
    HEAD_CLASSES,
    HIPPOCAMPI,
    LabelMaps,
    load_labelmaps,
    tissues,
)
from tests.raising import raises


def test_classes_are_those_of_the_shipped_networks() -> None:
    assert list(BASE_CLASSES) == read_card(shipped_weights(BASE))["labels"]
    assert list(HEAD_CLASSES) == read_card(shipped_weights(LOCALIZER))["labels"]


def test_tissue_table() -> None:
    table = tissues()
    inside = {v for v, flag in zip(table.labels, table.intracranial, strict=False) if flag}
    assert inside == {v for v in table.labels if 0 < v < 500}
    assert 24 not in {v for v, flag in zip(table.labels, table.brain, strict=False) if flag}
    assert set(table.base_class.tolist()) == set(range(15))
    rows = [table.labels.index(v) for v in (*HIPPOCAMPI, 3)]
    # Both sides share a structure, and hippocampus and cortex share a tissue.
    assert table.structure[rows[0]] == table.structure[rows[1]] != table.structure[rows[2]]
    assert table.tissue[rows[0]] == table.tissue[rows[2]]
    mean = table.priors[table.tissue[rows[0]], 0]
    assert float(mean) == pytest.approx(96.3)
    # Nothing is known outside the field of view.
    assert not table.intracranial[table.outside]
    assert table.base_class[table.outside] == table.head_class[table.outside] == 0


def test_load_is_independent_of_the_axes_on_disk(
    tmp_path: Path, labelmap: Path, maps: LabelMaps
) -> None:
    image = nib.load(labelmap)
    turned = image.as_reoriented(np.array([[2, 1], [0, -1], [1, -1]]))
    assert nib.aff2axcodes(turned.affine) != ("R", "A", "S")
    nib.save(turned, tmp_path / "a.nii.gz")
    loaded = load_labelmaps(tmp_path)
    assert torch.equal(loaded.volumes, maps.volumes)
    torch.testing.assert_close(loaded.hippocampi, maps.hippocampi)


def test_load_finds_head_hippocampi_and_cuts(labelmap: Path, maps: LabelMaps) -> None:
    assert maps.voxel == pytest.approx(2)
    values = np.asarray(nib.load(labelmap).dataobj)
    for i, label in enumerate(HIPPOCAMPI):
        found = np.argwhere(values == label)
        expected = (found.min(axis=0) + found.max(axis=0)) / 2
        np.testing.assert_allclose(maps.hippocampi[0, i].numpy(), expected)
    assert maps.hippocampi[0, 0, 0] < maps.heads[0, 0] < maps.hippocampi[0, 1, 0]
    # The neck is cut off flat, and nothing is known beyond it. Above the round crown there is air.
    outside = maps.volumes[0] == tissues().outside
    assert outside[:, :, 0].all()
    assert not outside[:, :, -1].any()


def test_maps_of_unlike_shape_are_padded(tmp_path: Path, labelmap: Path, maps: LabelMaps) -> None:
    image = nib.load(labelmap)
    nib.save(image, tmp_path / "a.nii.gz")
    nib.save(image.slicer[:, 4:], tmp_path / "b.nii.gz")
    both = load_labelmaps(tmp_path)
    assert torch.equal(both.volumes[0], maps.volumes[0])
    assert (both.volumes[1, :, -4:] == tissues().outside).all()
    torch.testing.assert_close(
        both.hippocampi[1], both.hippocampi[0] - torch.tensor([0.0, 4.0, 0.0])
    )
    assert both[1:].names == ("b.nii.gz",)


def test_unusable_maps_are_refused(tmp_path: Path, labelmap: Path) -> None:
    with raises(MissingInput, "label-maps-missing", tmp_path):
        load_labelmaps(tmp_path)
    image = nib.load(labelmap)
    values = np.asarray(image.dataobj).astype(np.int16)
    stretched = image.affine @ np.diag([1, 1, 1.5, 1])
    path = tmp_path / "a.nii.gz"
    for data, affine, code, facts in (
        (np.where(values == 17, 999, values), image.affine, "label-without-tissue", (path, 999)),
        (np.where(values == 53, 42, values), image.affine, "label-map-unusable", (path, 53)),
        (values, stretched, "label-map-spacing", (tmp_path, 3.0)),
    ):
        nib.save(nib.Nifti1Image(data, affine), path)
        with raises(BadData, code, *facts):
            load_labelmaps(tmp_path)
