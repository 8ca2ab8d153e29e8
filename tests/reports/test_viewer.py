from __future__ import annotations

import gzip
import struct

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine
from scipy import ndimage

from hyps_bids.reports import viewer
from hyps_bids.reports.scan_facts import find_scans_of
from hyps_bids.reports.scan_images import Region, StoredImages, Voxels, read_images, read_raw
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


@pytest.fixture(scope="module", params=["001A", "02"])
def images(processed: Study, request: pytest.FixtureRequest) -> StoredImages:
    scan = find_scans_of(processed.output, request.param)[0]
    return read_images(processed.output, scan, read_raw(processed.raw, scan))


@pytest.fixture(scope="module")
def region(images: StoredImages) -> Region:
    found = viewer.region_around(images.labels)
    assert found is not None
    return found


def test_left_is_left_in_close_ups_which_get_ever_smaller(
    images: StoredImages, region: Region
) -> None:
    sizes = []
    for level in viewer.LEVELS:
        content = viewer.nifti(viewer.close_up(images.anatomy, region, level))
        sizes.append(len(gzip.compress(content)))
        volume = nib.Nifti1Image.from_bytes(content)
        assert volume.get_data_dtype() == np.uint8
        assert volume.header["sform_code"] > 0
        # The same structure is equally bright at the same place in the world.
        for label in COLORS if level.spacing < 2 else ():
            inside = images.labels.data == label
            where = apply_affine(images.anatomy.affine, np.argwhere(inside))
            index = np.round(apply_affine(np.linalg.inv(volume.affine), where)).astype(int)
            index = np.clip(index, 0, np.array(volume.shape) - 1)
            shown = np.asarray(volume.dataobj)[tuple(index.T)]
            assert np.corrcoef(shown, images.anatomy.data[inside])[0, 1] > 0.9
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < sizes[0] / 2


def test_blocks_of_voxels_are_averaged() -> None:
    data = np.arange(5 * 6 * 7, dtype=np.float32).reshape(5, 6, 7)
    image = Voxels(data, np.diag([1.0, 0.5, 3.0, 1.0]))
    coarse = viewer._coarse(image, 2.0)
    assert np.array_equal(
        coarse.data, data[:4, :4].reshape(2, 2, 1, 4, 7).mean(axis=(1, 3), dtype=np.float64)
    )
    assert np.array_equal(image.data, np.arange(5 * 6 * 7).reshape(5, 6, 7))
    assert np.diag(coarse.affine).tolist() == [2.0, 2.0, 3.0, 1.0]
    assert coarse.affine[:3, 3].tolist() == [0.5, 0.75, 0.0]


def test_whole_head_is_smaller_and_in_place(images: StoredImages) -> None:
    head = viewer.head(images.anatomy, viewer.Level(0, 64, 4.0))
    assert head.data.shape == tuple(side // 2 for side in images.anatomy.data.shape)
    centers = [
        apply_affine(v.affine, ndimage.center_of_mass(v.data.astype(float)))
        for v in (images.anatomy, head)
    ]
    assert centers[0] == pytest.approx(centers[1], abs=3)


def test_surfaces_lie_around_their_voxels(images: StoredImages, region: Region) -> None:
    probabilities, labels = images.probabilities(region), images.labels.part(region)
    for indices, sign in (([1, 2], -1), ([3, 4], 1)):
        own = probabilities[[i - 1 for i in indices]]
        content = viewer.surface(own, labels, {i: COLORS[i] for i in indices})
        assert content is not None
        vertices, faces, colors = read_mz3(content)
        assert (np.sign(vertices[:, 0]) == sign).all()
        voxels = apply_affine(labels.affine, np.argwhere(np.isin(labels.data, indices)))
        assert (vertices.min(axis=0) > voxels.min(axis=0) - 2.5).all()
        assert (vertices.max(axis=0) < voxels.max(axis=0) + 2.5).all()
        a, b, c = (vertices[faces[:, i]].astype(float) for i in range(3))
        enclosed = abs(np.einsum("ij,ij->i", a, np.cross(b, c)).sum()) / 6
        assert enclosed == pytest.approx(len(voxels) * 8, rel=0.12)
        # The anterior end has the color of the anterior part, the posterior end the other one.
        ends = colors[[vertices[:, 1].argmax(), vertices[:, 1].argmin()], :3]
        assert [bytes(end).hex().upper() for end in ends] == [COLORS[i][1:] for i in indices]


def test_nothing_segmented() -> None:
    empty = Voxels(np.zeros((10, 10, 10), np.uint8), np.eye(4))
    assert viewer.region_around(empty) is None
    assert viewer.surface(np.zeros((1, 10, 10, 10), np.float32), empty, COLORS) is None
