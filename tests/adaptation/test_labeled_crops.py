"""Crops of labeled scans: what the network will see, and which labels are refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from nibabel.affines import apply_affine

from hyps_bids.adaptation.fit import plain_batch
from hyps_bids.adaptation.labeled_crops import (
    FRAME,
    LabeledCrops,
    _check_sides,
    _read_labels,
    labeled_crops,
    parts,
)
from hyps_bids.errors import BadData, CannotCreateOutput
from hyps_bids.imaging.conform import conform
from hyps_bids.imaging.roi import box_affine, box_from_image, inside_box, mirror
from hyps_bids.labels.find import LabeledScan, LabelImage, find_labeled
from hyps_bids.labels.meanings import Structure, parse_label_map
from hyps_bids.networks.checkpoints import GRID, LOCALIZER, shipped_weights
from hyps_bids.outputs.scan import Scan
from hyps_bids.outputs.scan_files import BOX
from hyps_bids.segmentation.inference import cached_network
from hyps_bids.segmentation.localize import Location, localize
from hyps_bids.segmentation.normalize import standardize
from hyps_bids.settings import Settings

CPU = torch.device("cpu")
WEIGHTS = shipped_weights(LOCALIZER)
WHOLE = parse_label_map("whole").structures


@pytest.fixture(scope="session")
def head(demo_bids: Path, root: Path) -> tuple[Path, Path]:
    """A real head at 1 mm, and FreeSurfer's hippocampi of it: 1 left, 2 right."""
    image = demo_bids / "sub-0001/anat/sub-0001_T1w.nii.gz"
    return image, root / "tests/data/sub-0001_desc-hippocampus_dseg.nii.gz"


@pytest.fixture(scope="session")
def small(head: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The part of that head around both hippocampi: too small for the localizer, so quick."""
    folder = tmp_path_factory.mktemp("small")
    image, label = (nib.load(path) for path in head)
    assert image.shape == label.shape
    assert np.allclose(image.affine, label.affine)
    paths = folder / "sub-1_T1w.nii.gz", folder / "sub-1_dseg.nii.gz"
    region = around(np.asarray(label.dataobj), 8)
    for source, path in zip((image, label), paths, strict=True):
        nib.save(source.slicer[region], path)
    return paths


def around(data: np.ndarray, margin: int) -> tuple[slice, ...]:
    index = np.argwhere(data)
    low, high = index.min(axis=0) - margin, index.max(axis=0) + margin + 1
    return tuple(slice(a, b) for a, b in zip(low, high, strict=True))


def labeled(image: Path, *labels: Path, structures: tuple[Structure, ...] = WHOLE) -> LabeledScan:
    images = tuple(LabelImage(path, structures) for path in labels)
    return LabeledScan(Scan.from_path(image), images, labels[0].parent)


def crop(*items: LabeledScan, names: list[str] | None = None, **options: Path) -> LabeledCrops:
    return labeled_crops(items, names or parts(items), WEIGHTS, CPU, **options)


@pytest.fixture(scope="session")
def whole(small: tuple[Path, Path]) -> LabeledCrops:
    return crop(labeled(*small))


@pytest.fixture(scope="session")
def crops(head: tuple[Path, Path]) -> LabeledCrops:
    return crop(labeled(*head))


Change = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def changed(source: Path, target: Path, change: Change) -> Path:
    """Write labels that are changed in a way that is to be noticed, or not."""
    image = nib.load(source)
    data, affine = change(np.asarray(image.dataobj).copy(), image.affine.copy())
    target.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data, affine), target)
    return target


def test_parts_and_sides(head: tuple[Path, Path], crops: LabeledCrops) -> None:
    assert crops.parts == ("hippocampus",)
    assert crops.crops.ids == ("sub-0001_hemi-L", "sub-0001_hemi-R")
    assert (crops.subjects, crops.scans, crops.hemis) == (
        ("0001", "0001"),
        ("sub-0001", "sub-0001"),
        ("L", "R"),
    )
    assert crops.crops.images.shape == crops.crops.labels.shape == (2, 1, *FRAME)
    assert crops.crops.images.dtype == torch.float32
    assert crops.crops.inside.dtype == torch.bool
    assert crops.crops.labels.dtype == torch.int64
    # 1 mm voxels: resampling keeps the volume
    reference = np.asarray(nib.load(head[1]).dataobj)
    for i in range(2):
        assert crops.volumes_mm3[i] == pytest.approx((reference == i + 1).sum(), rel=1e-3)
        assert int(crops.crops.labels[i].sum()) == pytest.approx(crops.volumes_mm3[i], rel=0.02)
    assert crops.remarks == ()


def test_crops_are_what_the_network_sees(head: tuple[Path, Path], crops: LabeledCrops) -> None:
    image = conform(head[0])
    network, _ = cached_network(WEIGHTS)
    places = localize(image.data, image.affine, network, CPU).hippocampi
    inputs, _ = plain_batch(crops.as_at_inference(), slice(None))
    for i, hemi in enumerate("LR"):
        place = places[hemi]
        assert place is not None
        assert crops.centers[i] == place.center
        # as hyps_bids.segmentation.segment does it
        values, covered = box_from_image(
            image.data, image.affine, GRID, box_affine(place.center, GRID)
        )
        seen = covered & inside_box(GRID, BOX)
        if hemi == "R":
            values, seen = mirror(values), mirror(seen)
        expected = standardize(
            torch.from_numpy(values)[None, None], torch.from_numpy(seen)[None, None]
        )
        assert torch.allclose(inputs[i], expected[0], atol=1e-3)


def test_labels_lie_on_the_hippocampus(head: tuple[Path, Path], crops: LabeledCrops) -> None:
    reference = nib.load(head[1])
    data = np.asarray(reference.dataobj)
    for i, hemi in enumerate("LR"):
        label = crops.crops.labels[i, 0].numpy()
        label = mirror(label) if hemi == "R" else label
        ours = apply_affine(box_affine(crops.centers[i], FRAME), np.argwhere(label)).mean(axis=0)
        theirs = apply_affine(reference.affine, np.argwhere(data == i + 1)).mean(axis=0)
        # half a voxel would be a wrong grid; thin ends that fall between voxels move it less
        assert np.abs(ours - theirs).max() < 0.4


def test_any_grid_and_orientation(
    small: tuple[Path, Path], whole: LabeledCrops, tmp_path: Path
) -> None:
    """Labels turned, cut out of their image and at another resolution are the same labels."""

    def cut_and_turn(data: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        image = nib.Nifti1Image(data, affine).slicer[around(data, 3)]
        turned = image.as_reoriented(nib.orientations.axcodes2ornt("PIR"))
        return np.asarray(turned.dataobj), turned.affine

    def finer(data: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        fine = affine @ np.diag([0.5, 0.5, 0.5, 1])
        fine[:3, 3] -= affine[:3, :3] @ np.full(3, 0.25)
        return data.repeat(2, 0).repeat(2, 1).repeat(2, 2), fine

    for name, change, most in (("turned", cut_and_turn, 0.0), ("finer", finer, 0.06)):
        path = changed(small[1], tmp_path / f"{name}.nii.gz", change)
        other = crop(labeled(small[0], path))
        differ = (other.crops.labels != whole.crops.labels).sum() / whole.crops.labels.sum()
        assert float(differ) <= most, name
        assert other.volumes_mm3 == pytest.approx(whole.volumes_mm3)


def test_parts_keep_their_order(
    small: tuple[Path, Path], whole: LabeledCrops, tmp_path: Path
) -> None:
    """Made parts: each hippocampus cut in half."""

    def halve(data: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        index = np.argwhere(data)
        y = apply_affine(affine, index)[:, 1]
        for side in (1, 2):
            mine = data[tuple(index.T)] == side
            half = (mine & (y < np.median(y[mine]))).astype(data.dtype)
            data[tuple(index.T)] += np.uint8(10) * side * mine + half
        return data, affine

    path = changed(small[1], tmp_path / "parts.nii.gz", halve)
    # posterior has the smaller value of the right, the larger of the left
    structures = (
        Structure(11, "L", "anterior"),
        Structure(12, "L", "posterior"),
        Structure(22, "R", "anterior"),
        Structure(23, "R", "posterior"),
    )
    item = labeled(small[0], path, structures=structures)
    assert parts([item]) == ["anterior", "posterior"]
    found = crop(item)
    assert torch.equal(found.crops.labels > 0, whole.crops.labels > 0)
    for label in found.crops.labels[:, 0]:
        anterior, posterior = (torch.argwhere(label == i)[:, 1].float().mean() for i in (1, 2))
        assert anterior > posterior + 10


def test_masks_of_single_sides(
    small: tuple[Path, Path], whole: LabeledCrops, tmp_path: Path
) -> None:
    images = []
    for hemi, value in (("L", 1), ("R", 2)):
        path = tmp_path / f"sub-1_label-{hemi}_mask.nii.gz"
        # any value above 0 counts in a mask
        changed(small[1], path, lambda data, affine, v=value: ((data == v) * np.uint8(255), affine))
        images.append(LabelImage(path, (Structure(1, hemi, "hippocampus"),)))
    both = LabeledScan(Scan.from_path(small[0]), tuple(images), tmp_path)
    assert torch.equal(crop(both).crops.labels, whole.crops.labels)
    right = crop(replace(both, labels=tuple(images[1:])))
    assert right.hemis == ("R",)
    assert torch.equal(right.crops.images, whole.crops.images[1:])


def test_cache(small: tuple[Path, Path], whole: LabeledCrops, tmp_path: Path) -> None:
    image = tmp_path / small[0].name
    shutil.copy(small[0], image)
    item, cache = labeled(image, small[1]), tmp_path / "cache"
    first = crop(item, cache=cache)
    (path,) = cache.iterdir()
    assert path.suffix == ".safetensors"
    written = path.stat().st_mtime_ns
    second = crop(item, cache=cache)
    for made in (first, second):
        for name in ("images", "inside", "labels"):
            assert torch.equal(getattr(made.crops, name), getattr(whole.crops, name))
        assert replace(made, crops=whole.crops) == whole
    assert path.stat().st_mtime_ns == written
    # the cache itself was read: what is in it is what comes
    path.write_bytes(b"not a safetensors file")
    with pytest.raises(BadData, match=r"damaged crop.*remove it"):
        crop(item, cache=cache)
    path.unlink()
    # other meaning, other crops
    crop(labeled(image, small[1], structures=WHOLE[:1]), cache=cache)
    crop(labeled(image, small[1]), cache=cache)
    assert len(list(cache.iterdir())) == 2


def test_cache_that_cannot_be_written(small: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CannotCreateOutput, match="file"):
        crop(labeled(*small), cache=tmp_path / "file")


def swap(data: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.choose(data, [0, 2, 1]).astype(np.uint8), affine


def shift(*mm: float) -> Change:
    def move(data: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        affine[:3, 3] += mm
        return data, affine

    return move


def shrink(data: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    keep = np.argwhere(data == 1)[:100]
    data[data == 1] = 0
    data[tuple(keep.T)] = 1
    return data, affine


def swell(data: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x, y, z = np.argwhere(data == 2).mean(axis=0).astype(int)
    data[x - 13 : x + 13, y - 13 : y + 13, z - 13 : z + 13] = 2
    return data, affine


def refused(pair: tuple[Path, Path], tmp_path: Path, change: Change, message: str) -> None:
    path = changed(pair[1], tmp_path / "sub-0001_dseg.nii.gz", change)
    with pytest.raises(BadData, match=message) as caught:
        crop(labeled(pair[0], path))
    assert f"- {path}" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (shrink, "100 mm³ labeled on the left; a hippocampus has 200 to 15,000"),
        (swell, r"1\d,\d{3} mm³ labeled on the right"),
        (shift(0, 500, 0), "100% of the labeled voxels lie outside"),
        (lambda data, affine: (data * 0, affine), "the image is empty"),
        (lambda data, affine: (data * 7, affine), r"has the values 7, 14, but .* is said of 1, 2"),
        (lambda data, affine: (data * np.float32(0.4), affine), "not all whole numbers"),
    ],
)
def test_labels_that_cannot_be_right(
    small: tuple[Path, Path], tmp_path: Path, change: Change, message: str
) -> None:
    refused(small, tmp_path, change, message)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (swap, "left hippocampus and right hippocampus lies on the other side"),
        (shift(0, 0, 50), "left hippocampus is 5[0-9] mm from where"),
        (shift(0, 0, 24), "% of the left label lie outside the box"),
    ],
)
def test_labels_that_contradict_the_localizer(
    head: tuple[Path, Path], tmp_path: Path, change: Change, message: str
) -> None:
    refused(head, tmp_path, change, message)


def test_sides_where_the_localizer_found_one_only(head: tuple[Path, Path]) -> None:
    item = labeled(*head)
    left, right = _read_labels(item)
    place = Location(tuple(left.points.mean(axis=0)), 4000.0, 0.9)
    _check_sides(item, [left, right], {"L": place, "R": None})
    _check_sides(item, [left, right], {"L": None, "R": None})
    with pytest.raises(BadData, match="what is labeled right hippocampus lies on the other"):
        _check_sides(item, [replace(left, hemi="R")], {"L": place, "R": None})
    with pytest.raises(BadData, match=r"left hippocampus is 5[0-9] mm from where"):
        _check_sides(item, [replace(right, hemi="L")], {"L": place, "R": None})


def test_head_with_one_side_labeled(head: tuple[Path, Path], tmp_path: Path) -> None:
    path = changed(head[1], tmp_path / "one.nii.gz", lambda d, a: (d * (d == 2), a))
    found = crop(labeled(head[0], path))
    assert found.hemis == ("R",)
    assert found.remarks == ("sub-0001 R: no voxel is labeled on the left",)


def test_wrong_label_maps(
    head: tuple[Path, Path], small: tuple[Path, Path], tmp_path: Path
) -> None:
    # two wholes taken for two parts of the left: the second lies on the right
    item = labeled(*head, structures=parse_label_map("anteriorposterior").structures)
    with pytest.raises(BadData, match="left posterior hippocampus lies on the other side"):
        crop(item)
    with pytest.raises(BadData, match="values 1, 2, but what the labels mean is said of 17, 53"):
        crop(labeled(*small, structures=parse_label_map("aseg").structures))
    # parts taken for wholes
    more = changed(
        small[1], tmp_path / "more.nii.gz", lambda data, affine: (data**2 * np.uint8(1), affine)
    )
    image = LabelImage(more, parse_label_map("whole").structures, frozenset({1, 2}))
    with pytest.raises(BadData, match="values 4, but what the labels mean is said of 1, 2"):
        crop(replace(labeled(*small), labels=(image,)))


def test_all_bad_scans_in_one_message(small: tuple[Path, Path], tmp_path: Path) -> None:
    items = [labeled(*small)]
    for name, change in (("a", shrink), ("b", shift(0, 500, 0))):
        items.append(labeled(small[0], changed(small[1], tmp_path / f"{name}.nii.gz", change)))
    with pytest.raises(BadData, match="2 of 3 labeled scans cannot be used") as caught:
        crop(*items)
    assert "a.nii.gz" in str(caught.value)
    assert "b.nii.gz" in str(caught.value)


@pytest.mark.slow
def test_label_partly_outside_the_box(
    head: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = changed(head[1], tmp_path / "moved.nii.gz", shift(0, 0, 12))
    found = crop(labeled(head[0], path))
    assert len(found.remarks) == 2
    assert found.remarks[0].startswith("sub-0001 L: ")
    assert "% of the label lie outside the network's box" in found.remarks[0]
    assert "lie outside the network's box" in caplog.text


def test_image_that_is_a_crop(
    small: tuple[Path, Path], whole: LabeledCrops, tmp_path: Path
) -> None:
    """As MSD Task04 when imported: no localizer, the box is placed around the label."""
    note = "a crop, not a head: box placed around the label"
    assert whole.remarks == (f"sub-1 L: {note}", f"sub-1 R: {note}")
    scan, data = (np.asarray(nib.as_closest_canonical(nib.load(p)).dataobj) for p in small)
    for i, (label, image) in enumerate(zip(whole.crops.labels, whole.crops.images, strict=True)):
        region = around(label[0].numpy(), 0)
        middle = [(part.start + part.stop) / 2 for part in region]
        assert np.abs(np.array(middle) - np.array(FRAME) / 2).max() <= 1
        # voxels are copied, not interpolated
        expected = data[around(data == i + 1, 0)] == i + 1
        seen = label[0].numpy()[region] > 0
        assert np.array_equal(mirror(seen) if i else seen, expected)
        source = scan[around(data == i + 1, 0)]
        values = image[0].numpy()[region]
        values = mirror(values) if i else values
        assert np.corrcoef(values.ravel(), source.ravel())[0, 1] > 0.99999
    # what lies beyond the image is not seen
    assert int(whole.crops.inside[0].sum()) < whole.crops.inside[0].numel()
    # one side, named by its only value
    only = changed(small[1], tmp_path / "r.nii.gz", lambda d, a: (d * (d == 2), a))
    assert crop(labeled(small[0], only)).hemis == ("R",)


def test_parts_must_agree() -> None:
    whole = labeled(Path("sub-01_T1w.nii.gz"), Path("sub-01_dseg.nii.gz"))
    halves = labeled(
        Path("sub-02_T1w.nii.gz"),
        Path("sub-02_dseg.nii.gz"),
        structures=parse_label_map("anteriorposterior").structures,
    )
    assert parts([whole]) == ["hippocampus"]
    assert parts([halves]) == ["anterior", "posterior"]
    with pytest.raises(BadData, match=r"sub-01_T1w.nii.gz \(L\): hippocampus; sub-02"):
        parts([whole, halves])
    own = (Structure(3, "L", "zone1"), Structure(1, "L", "zone2"), Structure(2, "L", "tail"))
    assert parts([labeled(Path("sub-01_T1w.nii"), Path("x.nii"), structures=own)]) == [
        "tail",
        "zone2",
        "zone1",
    ]


def test_crops_of_some_subjects(crops: LabeledCrops) -> None:
    assert len(crops) == 2
    assert crops.of_subjects({"0001"}).ids == crops.crops.ids
    assert len(crops.of_subjects({"02"})) == 0


def lay_out_malf(source: Path, target: Path) -> tuple[Path, Path]:
    """Write the scans of ``data/malf`` as BIDS: links to images and labels, rescans as sessions.

    Returns
    -------
    raw, labels : Path
        The dataset and the derivatives dataset with ``dseg.tsv``.
    """
    raw, manual = target / "raw", target / "raw" / "derivatives" / "manual"
    manual.mkdir(parents=True)
    about = {"Name": "malf", "BIDSVersion": "1.10.0"}
    derived = about | {"DatasetType": "derivative", "GeneratedBy": [{"Name": "manual"}]}
    (raw / "dataset_description.json").write_text(json.dumps(about))
    (manual / "dataset_description.json").write_text(json.dumps(derived))
    (manual / "dseg.tsv").write_text("index\tname\n1\tLeft hippocampus\n2\tRight hippocampus\n")
    scans = pd.read_csv(source / "scans.tsv", sep="\t", dtype=str)
    scans["session"] = scans.groupby("subject").cumcount() + 1
    for row in scans.itertuples():
        folder = Path(f"sub-{row.subject}", f"ses-{row.session}", "anat")
        for root, suffix in ((raw, "T1w"), (manual, "dseg")):
            (root / folder).mkdir(parents=True)
            name = f"sub-{row.subject}_ses-{row.session}_{suffix}.nii.gz"
            (root / folder / name).symlink_to((source / f"{row.id}_{suffix}.nii.gz").resolve())
    return raw, manual


def settings(raw: Path, labels: Path, **options: str) -> Settings:
    return Settings(
        bids_dir=raw,
        output_dir=raw.parent / "out",
        analysis_level="group",
        labels=(labels,),
        **options,
    )


@pytest.mark.shared
@pytest.mark.slow
def test_manual_labels_of_oasis(shared_data: Path, tmp_path: Path) -> None:
    raw, manual = lay_out_malf(shared_data / "malf", tmp_path)
    items = find_labeled(settings(raw, manual))
    assert len(items) == 15
    found = crop(*items[:4])
    assert found.subjects == ("1005",) * 4 + ("1006",) * 2 + ("1017",) * 2
    table = pd.read_csv(shared_data / "malf/scans.tsv", sep="\t", dtype={"subject": str})
    expected = table.sort_values(["subject", "id"])[["left_mm3", "right_mm3"]].to_numpy()[:4]
    assert found.volumes_mm3 == pytest.approx(expected.ravel(), rel=0.01)
    assert not found.remarks


@pytest.mark.shared
def test_freesurfer_labels_with_preset(shared_data: Path, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    shutil.copytree(shared_data / "aomic_piop2", raw)
    labels = tmp_path / "freesurfer"
    (labels / "sub-0001" / "anat").mkdir(parents=True)
    shutil.copy(
        shared_data / "aomic_piop2_freesurfer/sub-0001_desc-aseg_dseg.nii.gz",
        labels / "sub-0001" / "anat",
    )
    about = {"Name": "aseg", "BIDSVersion": "1.10.0", "DatasetType": "derivative"}
    (labels / "dataset_description.json").write_text(json.dumps(about))
    found = crop(*find_labeled(settings(raw, labels, label_map="aseg")))
    assert found.volumes_mm3 == pytest.approx((4418, 4247), rel=0.01)
