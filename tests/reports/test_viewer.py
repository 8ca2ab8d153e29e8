from __future__ import annotations

import struct

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine

from hyps_bids.reports import viewer
from hyps_bids.reports.scan import find_scans_of, read_images, read_raw
from tests.reports.conftest import Study

COLORS = {1: "#D55E00", 2: "#0072B2", 3: "#E69F00", 4: "#56B4E9"}


def read_mz3(content: bytes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    magic, attributes, faces, vertices, skip = struct.unpack_from("<HHIII", content)
    assert (magic, attributes, skip) == (0x5A4D, 7, 0)
    assert len(content) == 16 + 12 * faces + 16 * vertices
    at = 16 + 12 * faces
    return (
        np.frombuffer(content, "<f4", 3 * vertices, at).reshape(-1, 3),
        np.frombuffer(content, "<i4", 3 * faces, 16).reshape(-1, 3),
        np.frombuffer(content, np.uint8, 4 * vertices, at + 12 * vertices).reshape(-1, 4),
    )


@pytest.fixture(params=["001A", "02"])
def images(processed: Study, request: pytest.FixtureRequest):
    scan = find_scans_of(processed.output, request.param)[0]
    return read_images(processed.output, scan, read_raw(processed.raw, scan))


@pytest.mark.parametrize("level", viewer.LEVELS)
def test_left_is_left_in_every_file(images, level: viewer.Level) -> None:
    region = viewer.region_around(images.labels, images.affine)
    data, affine = viewer.close_up(images.t1w, images.affine, region, level)
    volume = nib.Nifti1Image.from_bytes(viewer.nifti(data, affine))
    assert volume.get_data_dtype() == np.uint8
    assert volume.header["sform_code"] > 0
    # the same structure is as bright at the same place of the world
    for label in COLORS:
        where = apply_affine(images.affine, np.argwhere(images.labels == label))
        index = np.round(apply_affine(np.linalg.inv(volume.affine), where)).astype(int)
        index = np.clip(index, 0, np.array(volume.shape) - 1)
        shown = np.asarray(volume.dataobj)[tuple(index.T)]
        real = images.t1w[images.labels == label]
        if level.spacing < 2:
            assert np.corrcoef(shown, real)[0, 1] > 0.9


def test_the_labels_of_the_close_up_are_in_place(images) -> None:
    region = viewer.region_around(images.labels, images.affine)
    cut = images.labels[region]
    assert (cut > 0).sum() == (images.labels > 0).sum()
    start = [part.start for part in region]
    labels = nib.Nifti1Image.from_bytes(viewer.nifti(cut, viewer._moved(images.affine, start)))
    for label, sign in ((1, -1), (4, 1)):
        where = apply_affine(labels.affine, np.argwhere(np.asarray(labels.dataobj) == label))
        assert (np.sign(where[:, 0]) == sign).all()


def test_whole_head_is_smaller_and_in_place(images) -> None:
    data, affine = viewer.head(images.t1w, images.affine, viewer.Level(0, 64, 4.0))
    assert data.shape == tuple(side // 2 for side in images.t1w.shape)
    weights = images.t1w.astype(float)
    center = [
        apply_affine(a, np.array([np.average(np.indices(w.shape)[i], weights=w) for i in range(3)]))
        for a, w in ((images.affine, weights), (affine, data.astype(float)))
    ]
    assert center[0] == pytest.approx(center[1], abs=3)


def test_surfaces_lie_around_their_voxels(images) -> None:
    region = viewer.region_around(images.labels, images.affine)
    affine = viewer._moved(images.affine, [part.start for part in region])
    probabilities, labels = images.probabilities(region), images.labels[region]
    for indices, sign in (([1, 2], -1), ([3, 4], 1)):
        own = probabilities[[i - 1 for i in indices]]
        content = viewer.surface(own, labels, affine, indices, COLORS)
        assert content is not None
        vertices, faces, colors = read_mz3(content)
        assert (np.sign(vertices[:, 0]) == sign).all()
        voxels = apply_affine(affine, np.argwhere(np.isin(labels, indices)))
        assert (vertices.min(axis=0) > voxels.min(axis=0) - 2.5).all()
        assert (vertices.max(axis=0) < voxels.max(axis=0) + 2.5).all()
        a, b, c = (vertices[faces[:, i]].astype(float) for i in range(3))
        enclosed = abs(np.einsum("ij,ij->i", a, np.cross(b, c)).sum()) / 6
        assert enclosed == pytest.approx(len(voxels) * 8, rel=0.12)
        # anterior points have the color of the anterior part
        front = colors[vertices[:, 1].argmax(), :3]
        assert bytes(front).hex().upper() == COLORS[indices[0]][1:]
        back = colors[vertices[:, 1].argmin(), :3]
        assert bytes(back).hex().upper() == COLORS[indices[1]][1:]


def test_nothing_segmented() -> None:
    empty = np.zeros((10, 10, 10), np.uint8)
    assert viewer.region_around(empty, np.eye(4)) is None
    probabilities = np.zeros((1, 10, 10, 10), np.float32)
    assert viewer.surface(probabilities, empty, np.eye(4), [1], COLORS) is None


def test_lower_levels_are_smaller(images) -> None:
    import gzip

    region = viewer.region_around(images.labels, images.affine)
    sizes = [
        len(gzip.compress(viewer.close_up(images.t1w, images.affine, region, level)[0].tobytes()))
        for level in viewer.LEVELS
    ]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < sizes[0] / 2
