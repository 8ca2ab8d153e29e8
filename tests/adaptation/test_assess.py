"""Metrics of agreement on real heads, their summary and their charts."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from hyps_bids.adaptation.assess import (
    assess_scans,
    bland_altman,
    reference_on_own_grid,
    summarize_assessment,
)
from hyps_bids.adaptation.charts import bland_altman_chart, dice_chart, learning_curves, save_chart
from hyps_bids.adaptation.labeled_crops import LabeledCrops, labeled_crops
from hyps_bids.imaging.conform import conform
from hyps_bids.labels.find import LabeledScan, LabelImage
from hyps_bids.labels.meanings import Structure, parse_label_map
from hyps_bids.networks.cards import ADAPTER, BASE, LOCALIZER, shipped_weights
from hyps_bids.outputs.reading import read_json_object
from hyps_bids.outputs.scan import Scan
from hyps_bids.segmentation.pipeline import Pipeline
from tests.adaptation.regions import around, turned

CPU = "cpu"
PARTS = ["anterior", "posterior"]
MAP = parse_label_map("anteriorposterior").structures


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline(
        shipped_weights(LOCALIZER), shipped_weights(BASE), shipped_weights(ADAPTER), CPU
    )


@pytest.fixture(scope="module")
def segmented(
    pipeline: Pipeline, coarse_head: nib.Nifti1Image, tmp_path_factory: pytest.TempPathFactory
) -> LabeledScan:
    """A real head at 2 mm with our own labels, called made; the file is not in RAS order."""
    folder = tmp_path_factory.mktemp("segmented")
    image = folder / "sub-01_ses-2_T1w.nii.gz"
    nib.save(turned(coarse_head, "PIL"), image)
    read = conform(image)
    labels = np.zeros(read.data.shape, dtype=np.uint8)
    for hemi, side in pipeline.segment_sides(read).items():
        first = {"L": 0, "R": 2}[hemi]
        labels[side.region][side.labels > 0] = side.labels[side.labels > 0] + first
    path = folder / "sub-01_ses-2_dseg.nii.gz"
    nib.save(turned(nib.Nifti1Image(labels, read.affine), "PIL"), path)
    return LabeledScan(Scan.from_path(image), (LabelImage(path, MAP),), folder)


@pytest.fixture(scope="module")
def crops(segmented: LabeledScan) -> LabeledCrops:
    return labeled_crops([segmented], PARTS, shipped_weights(LOCALIZER), CPU)


@pytest.mark.slow
def test_own_labels_agree_entirely(
    pipeline: Pipeline, segmented: LabeledScan, crops: LabeledCrops, root: Path
) -> None:
    table = assess_scans(pipeline, [segmented], crops, PARTS, fold=3)
    described = read_json_object(root / "hyps_bids/adaptation/templates/scans.json")
    assert list(table) == list(described)
    assert list(zip(table["hemi"], table["part"], strict=True)) == [
        (hemi, part) for hemi in "LR" for part in (*PARTS, "whole")
    ]
    for name, value in {"scan": "sub-01_ses-2", "session_id": "ses-2", "fold": 3}.items():
        assert set(table[name]) == {value}
    assert set(table["space"]) == {"native"}
    assert (table["dice"] == 1).all()
    assert (table[["hd95_mm", "asd_mm"]] == 0).all(axis=None)
    voxels = np.asarray(nib.load(segmented.labels[0].path).dataobj)
    left = table[table["hemi"] == "L"].set_index("part")["reference_mm3"]
    assert left["whole"] == pytest.approx(8 * ((voxels == 1) | (voxels == 2)).sum(), rel=1e-3)


@pytest.mark.slow
def test_head_in_which_nothing_is_found(
    pipeline: Pipeline, segmented: LabeledScan, crops: LabeledCrops, tmp_path: Path
) -> None:
    source = nib.load(segmented.scan.path)
    noise = np.random.default_rng(0).uniform(0, 100, source.shape).astype(np.float32)
    path = tmp_path / segmented.scan.path.name
    nib.save(nib.Nifti1Image(noise, source.affine), path)
    lost = LabeledScan(Scan.from_path(path), segmented.labels, tmp_path)
    table = assess_scans(pipeline, [lost], crops, PARTS)
    assert set(table["status"]) == {"not found"}
    assert (table["dice"] == 0).all()
    assert table[["hd95_mm", "asd_mm", "volume_mm3"]].isna().all(axis=None)
    summary = summarize_assessment(table)
    assert summary["whole"]["not_found"] == 2
    assert summary["whole"]["hd95_mm"]["mean"] is None
    # Valid JSON: no NaN
    json.loads(json.dumps(summary, allow_nan=False))


def test_image_that_is_no_head_is_assessed_on_the_crop(
    pipeline: Pipeline, head: tuple[Path, Path], tmp_path: Path
) -> None:
    region = around(np.asarray(nib.load(head[1]).dataobj) == 2, 10)
    paths = tmp_path / "sub-1_T1w.nii.gz", tmp_path / "sub-1_dseg.nii.gz"
    for source, path in zip(head, paths, strict=True):
        nib.save(nib.load(source).slicer[region], path)
    structures = (Structure(2, "R", "hippocampus"),)
    item = LabeledScan(Scan.from_path(paths[0]), (LabelImage(paths[1], structures),), tmp_path)
    cut = labeled_crops([item], ["hippocampus"], shipped_weights(LOCALIZER), CPU)
    table = assess_scans(pipeline, [item], cut, ["hippocampus"])
    assert table[["hemi", "part", "space", "status"]].to_numpy().tolist() == [
        ["R", "whole", "crop", "ok"]
    ]
    # The shipped adapter has two parts, of another protocol
    assert table["dice"].item() > 0.75
    assert table["asd_mm"].item() < 1.5


@pytest.mark.slow
def test_masks_on_another_grid_are_brought_together(segmented: LabeledScan, tmp_path: Path) -> None:
    whole = conform(segmented.labels[0].path)
    images = []
    for i, (hemi, part) in enumerate([("L", "anterior"), ("L", "posterior")], start=1):
        mask = (whole.data == i).astype(np.uint8)
        affine = whole.affine.copy()
        if i == 2:
            # Cut: another grid of the same world
            mask = mask[4:]
            affine[:3, 3] += 4 * affine[:3, 0]
        path = tmp_path / f"sub-01_label-{part}_mask.nii.gz"
        nib.save(nib.Nifti1Image(mask, affine), path)
        images.append(LabelImage(path, (Structure(1, hemi, part),)))
    item = LabeledScan(segmented.scan, tuple(images), tmp_path)
    found = reference_on_own_grid(item, PARTS)
    assert list(found) == ["L"]
    labels, affine = found["L"]
    assert np.allclose(affine, whole.affine)
    assert np.array_equal(labels, np.where(whole.data <= 2, whole.data, 0))


def made_table() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    index = pd.MultiIndex.from_product(
        [range(6), ["L", "R"], [*PARTS, "whole"]], names=["number", "hemi", "part"]
    )
    table = index.to_frame(index=False)
    subject, session = table["number"] // 2, table.pop("number") % 2
    reference = rng.uniform(1500, 3500, len(table))
    return table.assign(
        participant_id=[f"sub-{i}" for i in subject],
        scan=[f"sub-{i}_ses-{k}" for i, k in zip(subject, session, strict=True)],
        fold=1 + subject,
        space="native",
        status="ok",
        dice=rng.uniform(0.8, 0.9, len(table)),
        hd95_mm=1.0,
        asd_mm=0.5,
        volume_mm3=reference + 100,
        reference_mm3=reference,
    )


def test_summary() -> None:
    summary = summarize_assessment(made_table())
    assert list(summary) == [*PARTS, "whole"]
    whole = summary["whole"]
    assert (whole["participants"], whole["scans"], whole["hippocampi"]) == (3, 6, 12)
    assert whole["volume"]["correlation"] == 1
    assert list(whole["volume"]["bland_altman_mm3"].values()) == [100, 0, 100, 100]
    assert list(whole["dice_by_fold"]) == ["1", "2", "3"]


def test_limits_of_agreement() -> None:
    difference = np.random.default_rng(0).normal(5, 2, 5000)
    limits = bland_altman(pd.Series(1000 + difference), pd.Series(np.full(5000, 1000.0)))
    inside = (difference > limits["lower_limit"]) & (difference < limits["upper_limit"])
    assert inside.mean() == pytest.approx(0.95, abs=0.01)


def test_charts(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    log.write_text(
        "step,seconds,loss,learning_rate,metric,value\n"
        "1,1,0.9,1e-3,dice_whole,0.5\n1,1,0.9,1e-3,dice_anterior,0.4\n2,2,0.8,1e-3,,\n"
    )
    table = made_table()
    for chart in (
        learning_curves({"fold-1": log, "final": log}),
        dice_chart(table),
        bland_altman_chart(table[table["part"] == "whole"]),
    ):
        path = save_chart(chart, tmp_path / "charts" / "chart.png")
        assert path.read_bytes()[:4] == b"\x89PNG"
    curves = learning_curves({"fold-1": log})
    assert curves.axes[1].lines[0].get_ydata().tolist() == [0.5]
    dots = dice_chart(table).axes[0].collections
    assert sum(len(c.get_offsets()) for c in dots) == 12
