"""Crops of labeled scans: what the network will see, and which labels are refused."""

from __future__ import annotations

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
from safetensors.torch import save_file

from hyps_bids.adaptation.crops import FRAME, plain_batch
from hyps_bids.adaptation.label_masks import check_positions, read_masks
from hyps_bids.adaptation.labeled_crops import (
    CropMaker,
    LabeledCrops,
    class_names,
    labeled_crops,
    load_scan_crops,
)
from hyps_bids.errors import BadData, CannotCreateOutput, HypsError
from hyps_bids.imaging.conform import conform
from hyps_bids.imaging.roi import box_affine, mirror
from hyps_bids.labels.find import LabeledScan, LabelImage
from hyps_bids.labels.meanings import Structure, parse_label_map
from hyps_bids.networks.cards import ADAPTER, BASE, GRID, LOCALIZER, shipped_weights
from hyps_bids.outputs.scan import Scan
from hyps_bids.segmentation import segment as segment_module
from hyps_bids.segmentation.localize import Location
from hyps_bids.segmentation.openvino_inference import OpenVinoNetwork
from hyps_bids.segmentation.pipeline import localize, segment
from tests.adaptation.regions import around, turned
from tests.raising import raises

CPU = "cpu"
WEIGHTS = shipped_weights(LOCALIZER)
WHOLE = parse_label_map("whole").structures


@pytest.fixture(scope="session")
def small(head: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The part of that head around both hippocampi: too small for the localizer, so quick."""
    folder = tmp_path_factory.mktemp("small")
    paths = folder / "sub-1_T1w.nii.gz", folder / "sub-1_dseg.nii.gz"
    region = around(np.asarray(nib.load(head[1]).dataobj), 8)
    for source, path in zip(head, paths, strict=True):
        nib.save(nib.load(source).slicer[region], path)
    return paths


def labeled(image: Path, *labels: Path, structures: tuple[Structure, ...] = WHOLE) -> LabeledScan:
    images = tuple(LabelImage(path, structures) for path in labels)
    return LabeledScan(Scan.from_path(image), images, labels[0].parent)


def crop(*items: LabeledScan, names: list[str] | None = None, **options: Path) -> LabeledCrops:
    return labeled_crops(items, names or class_names(items), WEIGHTS, CPU, **options)


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
    assert crops.crops.ids == ("sub-0001_hemi-L", "sub-0001_hemi-R")
    assert (crops.subjects, crops.scans) == (("0001",) * 2, ("sub-0001",) * 2)
    assert crops.hemis == ("L", "R")
    tensors = crops.crops.images, crops.crops.inside, crops.crops.labels
    assert {tensor.shape for tensor in tensors} == {(2, 1, *FRAME)}
    assert [tensor.dtype for tensor in tensors] == [torch.float32, torch.bool, torch.int64]
    # 1 mm voxels: resampling keeps the volume
    reference = np.asarray(nib.load(head[1]).dataobj)
    for i in range(2):
        assert crops.volumes_mm3[i] == pytest.approx((reference == i + 1).sum(), rel=1e-3)
        assert int(crops.crops.labels[i].sum()) == pytest.approx(crops.volumes_mm3[i], rel=0.02)
    assert crops.remarks == ()
    assert crops.of_subjects({"0001"}).ids == crops.crops.ids
    assert len(crops.of_subjects({"02"})) == 0


@pytest.mark.slow
def test_crops_are_what_the_network_sees(
    head: tuple[Path, Path], crops: LabeledCrops, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[np.ndarray] = []

    def record(_: object, batch: np.ndarray) -> tuple[np.ndarray, str]:
        seen.append(batch)
        return np.repeat(batch, 3, axis=1), CPU

    image = conform(head[0])
    places = localize(image, WEIGHTS, CPU).hippocampi
    monkeypatch.setattr(OpenVinoNetwork, "predict", record)
    # Crops are centered; here both views are so too.
    monkeypatch.setattr(segment_module, "LATTICE", GRID)
    whole = tuple(slice(0, side) for side in GRID)
    monkeypatch.setattr(segment_module, "_WINDOWS", (whole, whole))
    segment(image, places, shipped_weights(ADAPTER), shipped_weights(BASE), CPU)
    inputs, _ = plain_batch(crops.as_at_inference(), slice(None))
    torch.testing.assert_close(inputs, torch.from_numpy(seen[0][::2]), atol=1e-3, rtol=0)
    for center, place in zip(crops.centers, places.values(), strict=True):
        assert place is not None
        assert center == pytest.approx(place.center, abs=1e-5)


def test_labels_lie_on_the_hippocampus(head: tuple[Path, Path], crops: LabeledCrops) -> None:
    reference = nib.load(head[1])
    data = np.asarray(reference.dataobj)
    for i, hemi in enumerate("LR"):
        label = crops.crops.labels[i, 0].numpy()
        label = mirror(label) if hemi == "R" else label
        ours = apply_affine(box_affine(crops.centers[i], FRAME), np.argwhere(label)).mean(axis=0)
        theirs = apply_affine(reference.affine, np.argwhere(data == i + 1)).mean(axis=0)
        # Half a voxel would be a wrong grid; thin ends that fall between voxels move it less
        assert np.abs(ours - theirs).max() < 0.4


def test_any_grid_and_orientation(
    small: tuple[Path, Path], whole: LabeledCrops, tmp_path: Path
) -> None:
    """Labels turned, cut out of their image and at another resolution are the same labels."""

    def cut_and_turn(data: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        image = turned(nib.Nifti1Image(data, affine).slicer[around(data, 3)], "PIR")
        return np.asarray(image.dataobj), image.affine

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
    # Posterior has the smaller value of the right, the larger of the left
    values = {("L", "anterior"): 11, ("L", "posterior"): 12}
    values |= {("R", "anterior"): 22, ("R", "posterior"): 23}
    structures = tuple(Structure(value, *names) for names, value in values.items())
    item = labeled(small[0], path, structures=structures)
    assert class_names([item]) == ["anterior", "posterior"]
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
        # Any value above 0 counts in a mask
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
    # The cache itself was read: what is in it is what comes
    path.write_bytes(b"not a safetensors file")
    with raises(BadData, "labels-unusable", path) as caught:
        crop(item, cache=cache)
    assert code_of_cause(caught) == "crop-damaged"
    path.unlink()
    # Other meaning, other crops
    crop(labeled(image, small[1], structures=WHOLE[:1]), cache=cache)
    crop(labeled(image, small[1]), cache=cache)
    assert len(list(cache.iterdir())) == 2


def test_cache_that_cannot_be_written(small: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with raises(CannotCreateOutput, "not-writable", tmp_path / "file"):
        crop(labeled(*small), cache=tmp_path / "file")


def test_cache_of_version_0_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Crops are found under the same name, and their facts under the same keys."""
    monkeypatch.chdir(tmp_path)
    names = ("sub-1_T1w.nii.gz", "sub-1_dseg.nii.gz", "localizer.safetensors")
    image, label, localizer = map(Path, names)
    for path in (image, label, localizer):
        path.write_text(path.name)
    structures = (Structure(1, "L", "hippocampus"), Structure(2, "R", "hippocampus"))
    images = (LabelImage(label, structures, frozenset({1, 2})),)
    item = LabeledScan(Scan.from_path(image), images, tmp_path)
    digest = CropMaker(["hippocampus"], localizer, CPU).digest(item)
    assert digest == "3a524e674bbda2ceabcb9e79baadb38c72cdf53e9c166660c7d9e996e2eef426"
    tensors = {f"L_{name}": torch.ones(2, 2, 2) for name in ("image", "inside", "label")}
    facts = '[{"hemi": "L", "centre": [1, 2, 3], "volume_mm3": 4.5, "remarks": ["note"]}]'
    save_file(tensors, tmp_path / "old.safetensors", metadata={"crops": facts})
    (found,) = load_scan_crops(tmp_path / "old.safetensors")
    assert (found.hemi, found.center, found.volume_mm3) == ("L", (1, 2, 3), 4.5)
    assert found.remarks == ("note",)
    assert set(found.tensors) == {"image", "inside", "label"}


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


def code_of_cause(caught: pytest.ExceptionInfo[HypsError]) -> str:
    """Code of the first scan's error, of those that one error sums up."""
    cause = caught.value.__cause__
    assert isinstance(cause, HypsError)
    return cause.code


@pytest.mark.parametrize(
    ("change", "code", "facts"),
    [
        (shrink, "label-volume", ["100 mm³", "left", "200 to 15,000"]),
        (swell, "label-volume", ["right"]),
        (shift(0, 500, 0), "label-outside-image", ["100%"]),
        (lambda data, affine: (data * 0, affine), "empty-image", []),
        (lambda data, affine: (data * 7, affine), "label-value-unknown", ["7, 14", "1, 2"]),
        (lambda data, affine: (data * np.float32(0.4), affine), "label-values-fractional", []),
    ],
)
def test_labels_that_cannot_be_right(
    small: tuple[Path, Path], tmp_path: Path, change: Change, code: str, facts: list[str]
) -> None:
    path = changed(small[1], tmp_path / "sub-1_dseg.nii.gz", change)
    with raises(BadData, "labels-unusable", f"- {path}", *facts) as caught:
        crop(labeled(small[0], path))
    assert code_of_cause(caught) == code


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "code", "fact"),
    [
        (
            lambda d, a: (np.choose(d, [0, 2, 1]).astype(np.uint8), a),
            "label-sides-swapped",
            "left hippocampus and the right hippocampus",
        ),
        (shift(0, 0, 50), "label-far-away", "left hippocampus is 5"),
        (shift(0, 0, 24), "label-outside-box", "% of the left label"),
    ],
)
def test_labels_that_contradict_the_localizer(
    head: tuple[Path, Path], tmp_path: Path, change: Change, code: str, fact: str
) -> None:
    path = changed(head[1], tmp_path / "sub-0001_dseg.nii.gz", change)
    with raises(BadData, "labels-unusable", f"- {path}", fact) as caught:
        crop(labeled(head[0], path))
    assert code_of_cause(caught) == code


def test_sides_where_the_localizer_found_one_only(head: tuple[Path, Path]) -> None:
    item = labeled(*head)
    left, right = read_masks(item)
    place = Location(tuple(left.points.mean(axis=0)), 4000.0, 0.9)
    check_positions(item, [left, right], {"L": place, "R": None})
    check_positions(item, [left, right], {"L": None, "R": None})
    with raises(BadData, "label-sides-swapped", "right hippocampus"):
        check_positions(item, [replace(left, hemi="R")], {"L": place, "R": None})
    with raises(BadData, "label-far-away", "left hippocampus is 5"):
        check_positions(item, [replace(right, hemi="L")], {"L": place, "R": None})


@pytest.mark.slow
def test_head_with_one_side_labeled(head: tuple[Path, Path], tmp_path: Path) -> None:
    path = changed(head[1], tmp_path / "one.nii.gz", lambda d, a: (d * (d == 2), a))
    found = crop(labeled(head[0], path))
    assert found.hemis == ("R",)
    assert found.remarks == ("sub-0001 R: no voxel is labeled on the left",)


@pytest.mark.slow
def test_wrong_label_maps(
    head: tuple[Path, Path], small: tuple[Path, Path], tmp_path: Path
) -> None:
    # Two wholes taken for two parts of the left: the second lies on the right
    item = labeled(*head, structures=parse_label_map("anteriorposterior").structures)
    with raises(BadData, "labels-unusable", "left posterior hippocampus") as caught:
        crop(item)
    assert code_of_cause(caught) == "label-sides-swapped"
    # Parts taken for wholes
    more = changed(small[1], tmp_path / "more.nii.gz", lambda d, a: (d**2 * np.uint8(1), a))
    image = LabelImage(more, parse_label_map("whole").structures, frozenset({1, 2}))
    with raises(BadData, "labels-unusable", "values 4", "1, 2"):
        crop(replace(labeled(*small), labels=(image,)))


def test_all_bad_scans_in_one_message(small: tuple[Path, Path], tmp_path: Path) -> None:
    items = [labeled(*small)]
    for name, change in (("a", shrink), ("b", shift(0, 500, 0))):
        items.append(labeled(small[0], changed(small[1], tmp_path / f"{name}.nii.gz", change)))
    with raises(BadData, "labels-unusable", "2 of 3", "a.nii.gz", "b.nii.gz"):
        crop(*items)


@pytest.mark.slow
def test_label_partly_outside_the_box(
    head: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = changed(head[1], tmp_path / "moved.nii.gz", shift(0, 0, 12))
    found = crop(labeled(head[0], path))
    assert [remark.split(":")[0] for remark in found.remarks] == ["sub-0001 L", "sub-0001 R"]
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 2
    assert "sub-0001 L" in warnings[0]


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
        # Voxels are copied, not interpolated
        expected = data[around(data == i + 1, 0)] == i + 1
        seen = label[0].numpy()[region] > 0
        assert np.array_equal(mirror(seen) if i else seen, expected)
        source = scan[around(data == i + 1, 0)]
        values = image[0].numpy()[region]
        values = mirror(values) if i else values
        assert np.corrcoef(values.ravel(), source.ravel())[0, 1] > 0.99999
    # What lies beyond the image is not seen
    assert int(whole.crops.inside[0].sum()) < whole.crops.inside[0].numel()
    # One side, named by its only value
    only = changed(small[1], tmp_path / "r.nii.gz", lambda d, a: (d * (d == 2), a))
    assert crop(labeled(small[0], only)).hemis == ("R",)


def test_parts_must_agree() -> None:
    whole = labeled(Path("sub-01_T1w.nii.gz"), Path("sub-01_dseg.nii.gz"))
    two = parse_label_map("anteriorposterior").structures
    halves = labeled(Path("sub-02_T1w.nii.gz"), Path("sub-02_dseg.nii.gz"), structures=two)
    assert class_names([whole]) == ["hippocampus"]
    assert class_names([halves]) == ["anterior", "posterior"]
    with raises(BadData, "label-parts-differ", "sub-01_T1w.nii.gz (L): hippocampus; sub-02"):
        class_names([whole, halves])
    own = (Structure(3, "L", "zone1"), Structure(1, "L", "zone2"), Structure(2, "L", "tail"))
    names = class_names([labeled(Path("sub-01_T1w.nii"), Path("x.nii"), structures=own)])
    assert names == ["tail", "zone2", "zone1"]


@pytest.mark.shared
@pytest.mark.slow
def test_manual_labels_of_oasis(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "malf"
    table = pd.read_csv(source / "scans.tsv", sep="\t", dtype={"subject": str}).head(4)
    items = []
    for row in table.itertuples():
        stem = tmp_path / f"sub-{row.subject}_run-{row.Index}"
        image, label = (Path(f"{stem}_{suffix}.nii.gz") for suffix in ("T1w", "dseg"))
        image.symlink_to((source / f"{row.id}_T1w.nii.gz").resolve())
        label.symlink_to((source / f"{row.id}_dseg.nii.gz").resolve())
        items.append(labeled(image, label))
    found = crop(*items)
    assert found.subjects == tuple(table["subject"].repeat(2))
    expected = table[["left_mm3", "right_mm3"]].to_numpy().ravel()
    assert found.volumes_mm3 == pytest.approx(expected, rel=0.01)
    assert not found.remarks


@pytest.mark.slow
@pytest.mark.shared
def test_freesurfer_labels_with_preset(shared_data: Path) -> None:
    image = shared_data / "aomic_piop2/sub-0001/anat/sub-0001_T1w.nii.gz"
    aseg = shared_data / "aomic_piop2_freesurfer/sub-0001_desc-aseg_dseg.nii.gz"
    found = crop(labeled(image, aseg, structures=parse_label_map("aseg").structures))
    assert found.volumes_mm3 == pytest.approx((4418, 4247), rel=0.01)
