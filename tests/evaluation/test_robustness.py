"""Silent failures are found, counted and told from flagged ones."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from hyps_bids.evaluation.robustness import (
    evaluate_healthy,
    evaluate_robustness,
    summarize_robustness,
)
from hyps_bids.evaluation.tables import summarize
from hyps_bids.networks.cards import ADAPTER, BASE, LOCALIZER, shipped_weights
from hyps_bids.segmentation.pipeline import Pipeline


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline(*(shipped_weights(name) for name in (LOCALIZER, BASE, ADAPTER)))


def test_summary_counts_variants() -> None:
    columns = ["id", "kind", "strength", "hemi", "refused", "dice", "silent", "review"]
    rows = [
        ("a", "none", "", "L", "", 1.0, False, True),
        ("a", "none", "", "R", "", 1.0, False, True),
        ("b", "none", "", "L", "", 1.0, False, False),
        ("b", "none", "", "R", "", 1.0, False, False),
        # A head of which one side is known.
        ("c", "none", "", "R", "", 1.0, False, True),
        # Both sides are wrong: one variant.
        ("a", "noise", "0.4", "L", "", 0.6, True, False),
        ("a", "noise", "0.4", "R", "", 0.7, True, False),
        ("a", "noise", "0.1", "L", "", 0.9, False, False),
        ("b", "resection", "L_csf", "L", "", 0.0, True, False),
        ("b", "resection", "L_csf", "R", "", 0.9, False, False),
        ("b", "atrophy", "L_0.5", "L", "", 0.7, True, False),
        ("b", "blur", "3.5", "L", "", 0.6, False, True),
        ("b", "slices", "z8", "L", "absurd-voxel-size", np.nan, False, False),
    ]
    summary = summarize_robustness(pd.DataFrame(rows, columns=columns))
    assert summary == {
        "variants": 6,
        "variants_wrong": 4,
        "variants_flagged": 1,
        "variants_refused": 1,
        "variants_silently_wrong": 3,
        "lost_sides_segmented_silently": 1,
        "heads_flagged": 0.6667,
        "silently_wrong_atrophy": 1,
        "silently_wrong_noise": 1,
        "silently_wrong_resection": 1,
    }


@pytest.mark.slow
def test_variants_are_compared_with_the_good_image(
    pipeline: Pipeline, coarse_head: nib.Nifti1Image, tmp_path: Path
) -> None:
    path = tmp_path / "sub-0001_T1w.nii.gz"
    nib.save(coarse_head, path)
    kinds = ["rotation:z10", "slab:half_L", "cut:superior60", "slices:z8", "resection:L_csf"]
    table = evaluate_robustness(pipeline, [path], kinds)
    assert table[["id", "hemi"]].drop_duplicates().to_numpy().tolist() == [
        ["sub-0001", "L"],
        ["sub-0001", "R"],
    ]
    rows = {(row.kind, row.hemi): row for row in table.itertuples()}
    for hemi in "LR":
        assert rows["none", hemi].dice == 1
        assert rows["none", hemi].volume_mm3 > 1500
        assert rows["rotation", hemi].dice > 0.85
        assert rows["slices", hemi].refused == "absurd-voxel-size"
        assert not rows["slices", hemi].found
        # Of all true voxels, at most those in the field of view can be found.
        seen = rows["cut", hemi].visible
        assert not rows["cut", hemi].dice > 2 * seen / (1 + seen) + 1e-6
    assert rows["slab", "L"].visible == 1
    assert rows["slab", "R"].visible == 0
    assert "missing_R" in rows["slab", "R"].flags.split(",") or rows["slab", "R"].dice == 0
    assert rows["resection", "L"].remains < 0.1
    assert rows["resection", "R"].remains == 1
    assert summarize(table)["variants"] == 5


@pytest.mark.slow
def test_flags_of_healthy_heads_are_counted(
    pipeline: Pipeline, coarse_head: nib.Nifti1Image, tmp_path: Path
) -> None:
    path = tmp_path / "sub-0001_T1w.nii.gz"
    nib.save(coarse_head, path)
    table = evaluate_healthy(pipeline, [path])
    assert table["id"].tolist() == ["sub-0001"]
    assert table["review"].tolist() == [table["flags"].iloc[0] != ""]
    assert summarize(table)["heads"] == 1
    assert table["confidence_L"].between(0.5, 1).all()
