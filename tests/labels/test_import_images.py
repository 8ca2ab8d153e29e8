"""Source images keep their data, and get the right orientation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from hyps_bids.errors import BadData, MissingInput, UsageError
from hyps_bids.labels.import_images import (
    assumed_affine,
    check_orientation,
    on_grid_of,
    read_image,
    to_nifti,
)
from tests.raising import raises

Save = Callable[..., Path]


@pytest.mark.parametrize("codes", ["", "LA", "LAS3", "LLS", "LRA", "XAS"])
def test_what_is_no_orientation_is_refused(codes: str) -> None:
    with raises(UsageError, "orientation-invalid", codes):
        check_orientation(codes)


def test_analyze_is_taken_for_las_as_nibabel_does(save: Save, tmp_path: Path) -> None:
    path = save(tmp_path / "a.img")
    source = read_image(path)
    assert source.assumed
    assert source.shape == (12, 10, 8)
    # nibabel's image is 4-D here, with the same affine.
    np.testing.assert_allclose(source.affine, nib.load(path).affine)
    assert nib.aff2axcodes(read_image(path, "PIR").affine) == ("P", "I", "R")


def test_nifti_without_codes_says_nothing_either(save: Save, tmp_path: Path) -> None:
    image = nib.load(save(tmp_path / "a.nii"))
    image.set_sform(None, code=0)
    image.set_qform(None, code=0)
    nib.save(image, tmp_path / "b.nii")
    assert not read_image(tmp_path / "a.nii", "RAS").assumed
    silent = read_image(tmp_path / "b.nii", "RAS")
    assert silent.assumed
    np.testing.assert_allclose(
        silent.affine, assumed_affine((12, 10, 8), (1.0, 1.5, 2.0), "RAS"), atol=1e-5
    )


def test_data_type_and_scale_factors_are_kept(save: Save, tmp_path: Path) -> None:
    stored = np.arange(960, dtype=np.int16).reshape(12, 10, 8)
    scaled = nib.Nifti1Image(stored, np.eye(4))
    scaled.header.set_slope_inter(0.5, 3)
    nib.save(scaled, tmp_path / "scaled.nii")
    for path in (save(tmp_path / "a.img", stored), tmp_path / "scaled.nii"):
        source = read_image(path)
        nib.save(to_nifti(source, source.affine), tmp_path / "out.nii.gz")
        out = nib.load(tmp_path / "out.nii.gz")
        assert out.get_data_dtype() == np.int16
        np.testing.assert_array_equal(out.dataobj.get_unscaled(), stored)
        np.testing.assert_array_equal(out.get_fdata(), source.data())
        assert (int(out.header["sform_code"]), int(out.header["qform_code"])) == (2, 2)


def test_labels_in_another_order_of_axes_are_the_same_grid(save: Save, tmp_path: Path) -> None:
    affine = np.array([[1.0, 0, 0, -4], [0, 1.5, 0, 3], [0, 0, 2, 7], [0, 0, 0, 1]])
    image = nib.load(save(tmp_path / "a.nii", affine=affine))
    other = image.as_reoriented(nib.orientations.axcodes2ornt("PIR"))
    nib.save(other, tmp_path / "b.nii")
    assert other.shape != image.shape
    data = on_grid_of(read_image(tmp_path / "b.nii"), read_image(tmp_path / "a.nii"))
    np.testing.assert_array_equal(data, image.get_fdata())


@pytest.mark.parametrize("change", ["shape", "shift", "analyze"])
def test_another_grid_is_refused_by_name(save: Save, tmp_path: Path, change: str) -> None:
    image = read_image(save(tmp_path / "image.nii"))
    if change == "shape":
        label = save(tmp_path / "label.nii", np.zeros((12, 10, 7), dtype=np.uint8))
        fact = "(12, 10, 7) instead of (12, 10, 8)"
    elif change == "shift":
        affine = image.affine.copy()
        affine[0, 3] = 0.3
        label = save(tmp_path / "label.nii", affine=affine)
        fact = "0.30 mm"
    else:
        label = save(tmp_path / "label.img")
        fact = "label.img does not state its orientation"
    with raises(BadData, "grids-differ", label, "image.nii", fact):
        on_grid_of(read_image(label), image)


def test_bad_files(save: Save, tmp_path: Path) -> None:
    empty = np.zeros((4, 4, 4, 2), dtype=np.uint8)
    (tmp_path / "junk.nii").write_bytes(b"junk")
    nib.save(nib.MGHImage(empty, np.eye(4)), tmp_path / "a.mgz")
    save(tmp_path / "4d.nii", empty)
    (tmp_path / "torn.nii").write_bytes(save(tmp_path / "whole.nii").read_bytes()[:800])
    save(tmp_path / "pair.img")
    (tmp_path / "pair.hdr").unlink()
    for name, kind, code in (
        ("none.nii", MissingInput, "image-missing"),
        ("junk.nii", BadData, "image-unreadable"),
        ("a.mgz", BadData, "image-format"),
        ("4d.nii", BadData, "image-not-3d"),
        ("torn.nii", BadData, "image-damaged"),
        ("pair.img", BadData, "image-unreadable"),
    ):
        with raises(kind, code, tmp_path / name):
            read_image(tmp_path / name).data()
