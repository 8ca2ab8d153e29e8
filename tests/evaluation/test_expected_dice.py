"""Tests of the calibration of the expected Dice: on simulated tables, and on a real crop."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from sklearn.ensemble import ExtraTreesRegressor

from hyps_bids.errors import UsageError
from hyps_bids.evaluation import calibration, expected_dice
from hyps_bids.evaluation.calibration import (
    Subject,
    collect,
    find_crops,
    find_heads,
    read_rows,
)
from hyps_bids.networks.cards import ADAPTER, BASE, LOCALIZER, shipped_weights
from hyps_bids.segmentation.expected import load_model
from hyps_bids.segmentation.pipeline import Pipeline
from tests.raising import raises


def simulate(seed: int = 0) -> pd.DataFrame:
    """Rows whose Dice is the confidence, but for an error of 0.02."""
    rng = np.random.default_rng(seed)
    rows = []
    for k in range(16):
        source = "head" if k % 2 else "validation"
        for kind in ("none", "blur", "bias", "cut", "hot"):
            for hemi in "LR":
                dice = 0.92 if kind == "none" else rng.uniform(0.4, 0.92)
                rows.append(
                    {
                        **{"subject": f"s{k:02d}", "source": source, "kind": kind, "hemi": hemi},
                        **{"strength": "1", "found": True, "visible": 1.0, "flags": ""},
                        **{"removed": 0, "confidence": dice + rng.normal(0, 0.02)},
                        **{"agreement": np.nan},
                        "dice": dice / 0.92 if source == "head" else dice,
                    }
                )
    return pd.DataFrame(rows)


@pytest.fixture(autouse=True)
def few_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expected_dice, "_TREES", 8)


def test_heads_are_as_good_as_raters_at_best() -> None:
    table = simulate()
    true, factor = expected_dice.targets(table)
    assert factor == pytest.approx(0.92)
    unspoiled = table["kind"] == "none"
    assert true[unspoiled].to_numpy() == pytest.approx(np.full(unspoiled.sum(), 0.92))


def test_fit_predicts_subjects_and_kinds_that_it_has_not_seen(tmp_path: Path) -> None:
    table = simulate()
    model, checked = expected_dice.fit(table, {"Adapter": "ab"})
    assert len(checked) == len(table)
    assert (checked["expected"] - checked["true"]).abs().mean() < 0.05
    assert 0.85 <= (checked["true"] >= checked["low"]).mean() <= 0.97
    # More confidence never lowers the estimate
    steps = [model.predict({"confidence": c}).expected for c in np.arange(0.3, 1, 0.02)]
    assert (np.diff(steps) >= -1e-6).all()
    assert steps[-1] - steps[0] > 0.3
    # The file gives the same
    facts = expected_dice.describe(table, checked)
    stored = load_model(expected_dice.write_model(model, tmp_path, facts))
    assert stored.networks == ({"Adapter": "ab"},)
    fresh = simulate(1)
    again = expected_dice.apply(stored, fresh)
    assert again["expected"].to_numpy() == pytest.approx(
        expected_dice.apply(model, fresh)["expected"].to_numpy()
    )
    assert "ab" in (tmp_path / "expected-dice.md").read_text()


def test_left_out_rows_are_never_seen() -> None:
    rows = simulate()
    asked_for = np.zeros(len(rows), int)
    for seen, asked in expected_dice.left_out(rows, kinds=True):
        asked_for[asked] += 1
        assert not set(rows["subject"][seen]) & set(rows["subject"][asked])
        spoiled = rows[asked & (rows["kind"] != "none")]
        assert not set(rows["kind"][seen]) & set(spoiled["kind"])
    assert (asked_for == 1).all()


def test_exported_trees_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    inputs, target = rng.normal(size=(300, 3)), rng.normal(size=300)
    forest = ExtraTreesRegressor(20, max_depth=7, random_state=0).fit(inputs, target)
    model = expected_dice.QualityModel(
        (), ("a", "b", "c"), np.zeros(3), expected_dice.export(forest), np.zeros((2, 1))
    )
    fresh = np.vstack((rng.normal(size=(500, 3)), inputs))
    assert model.mean(fresh) == pytest.approx(forest.predict(fresh), abs=1e-6)


def test_figures_count_what_is_missed() -> None:
    table = simulate()
    table["low"], table["expected"], table["true"] = 0.85, 0.9, 0.9
    scan = (table["subject"] == "s01") & (table["kind"] == "blur")
    # Both sides of a scan are wrong; one of them has a low bound, which flags the scan
    table.loc[scan, "true"] = 0.5
    table.loc[scan & (table["hemi"] == "L"), "low"] = 0.3
    # One is wrong without a flag, one is flagged by a rule
    table.loc[(table["subject"] == "s03") & (table["kind"] == "cut"), "true"] = [0.9, 0.7]
    table.loc[(table["subject"] == "s05") & (table["kind"] == "hot"), "true"] = [0.1, 0.9]
    table.loc[(table["subject"] == "s05") & (table["kind"] == "hot"), "flags"] = "low_volume_mm3_L"
    # One healthy head is flagged, and a removed hippocampus is not
    table.loc[(table["subject"] == "s07") & (table["kind"] == "none"), "flags"] = "missing_L"
    removed = (table["subject"] == "s09") & (table["kind"] == "bias") & (table["hemi"] == "L")
    table.loc[removed, ["removed", "true"]] = 1, 0.0
    found = expected_dice.figures(table, table.drop(columns=["true", "low", "expected"]))
    assert (found["healthy"], found["healthy_flagged"]) == (8, 1)
    assert (found["wrong"], found["wrong_not_flagged"]) == (5, 2)
    assert (found["removed"], found["removed_not_flagged"]) == (1, 1)
    assert found["crops_mean_error"] == pytest.approx(0)
    assert found["crops_coverage"] == 1


def test_contrasts_of_a_head_are_those_of_its_session(tmp_path: Path) -> None:
    names = ["sub-1_ses-1_T1w", "sub-1_ses-1_T2w", "sub-1_ses-2_T1w", "sub-12_T1w", "colin_T1w"]
    for name in names:
        nib.save(nib.Nifti1Image(np.zeros((3, 3, 3)), np.eye(4)), tmp_path / f"{name}.nii")
    nib.save(nib.Nifti1Image(np.zeros((4, 3, 3)), np.eye(4)), tmp_path / "sub-1_ses-1_PDw.nii")
    heads = find_heads([tmp_path / f"{names[k]}.nii" for k in (0, 3, 4)], 1)
    found = [[path.name.split(".")[0] for path in head.images] for head in heads]
    assert found == [names[:2], names[3:4], names[4:]]


def test_subjects_of_one_name_are_refused(tmp_path: Path) -> None:
    same = [Subject("sub-01", "head", (tmp_path / folder / "sub-01_T1w.nii",)) for folder in "ab"]
    with raises(UsageError, "calibration-same-name", "sub-01"):
        collect(Pipeline(tmp_path, tmp_path, tmp_path), same, tmp_path / "rows")


def test_a_first_line_that_was_cut_off_takes_nothing_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = Subject("a", "head", ())
    (tmp_path / "a.jsonl").write_text('["none:", [{"dice', encoding="utf-8")
    rows = [("none:", [{"dice": 1.0}]), ("blur:2", [{"dice": 0.8}])]
    monkeypatch.setattr(calibration, "_measure_head", lambda *_: iter(rows))
    pipeline = Pipeline(*(shipped_weights(name) for name in (LOCALIZER, BASE, ADAPTER)))
    assert collect(pipeline, [subject], tmp_path)["dice"].tolist() == [1.0, 0.8]


@pytest.mark.slow
@pytest.mark.shared
def test_a_crop_is_measured_and_a_stopped_run_goes_on(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "msd_task04"
    subject = find_crops(folder / "imagesTr", folder / "labelsTr", 1)[0]
    subject = Subject(subject.name, "test", subject.images[:1], subject.labels[:1], 0)
    pipeline = Pipeline(*(shipped_weights(name) for name in (LOCALIZER, BASE, ADAPTER)))
    table = collect(pipeline, [subject], tmp_path)
    assert table["dice"].between(0.85, 0.97).all()
    assert table[["found", "kind"]].drop_duplicates().to_numpy().tolist() == [[True, "none"]]
    # A line that was cut off is ignored, and what is there is not measured again
    with (tmp_path / f"{subject.name}.jsonl").open("a") as stream:
        stream.write('["half')
    assert len(collect(pipeline, [subject], tmp_path)) == len(table)
    assert len(read_rows(tmp_path, [subject])) == len(table)
    (tmp_path / "networks.json").write_text("{}")
    with raises(UsageError, "calibration-other-networks", tmp_path):
        collect(pipeline, [subject], tmp_path)
