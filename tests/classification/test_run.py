"""From the wide table to folders of classifiers, and to predictions of new subjects."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hyps_bids.classification import cross_validation as evaluate
from hyps_bids.classification.estimators import ESTIMATORS
from hyps_bids.classification.run import apply_classifier, classify
from hyps_bids.errors import BadData, MissingInput, UsageError
from hyps_bids.outputs.reading import read_table
from hyps_bids.outputs.writing import write_json
from hyps_bids.settings import Settings
from tests.cohorts import PARTS, simulate

TABLES = (
    *("figures", "comparisons", "chosen", "predictions"),
    *("confusion", "roc", "calibration", "importance"),
)
DRAWINGS = ("roc", "calibration", "confusion", "importance")
FILES = [
    *("README.md", "classifier.json", "model.skops"),
    *(f"{name}.{kind}" for name in TABLES for kind in ("tsv", "json")),
    *(f"{name}.{kind}" for name in DRAWINGS for kind in ("svg", "png")),
]


@pytest.fixture(autouse=True)
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the inner search small: tested here is what surrounds it."""
    small = replace(ESTIMATORS["logistic"], grid=({"C": 1.0, "percentile": 100},))
    monkeypatch.setitem(ESTIMATORS, "logistic", small)
    monkeypatch.setattr(evaluate, "_INNER_FOLDS", 2)


@pytest.fixture
def options(tmp_path: Path) -> Settings:
    """Settings of a small run: one estimator, few folds, no permutations."""
    return Settings(
        bids_dir=tmp_path / "bids",
        output_dir=tmp_path / "out",
        analysis_level="group",
        target="diagnosis",
        contrast=("AD:CN",),
        estimators=("logistic", "dummy"),
        folds=3,
        repeats=1,
        permutations=0,
        nprocs=1,
    )


def folder(options: Settings, name: str = "AD-vs-CN") -> Path:
    return options.output_dir / "models" / f"classifier-{name}"


def figure(path: Path, name: str, **where: str) -> pd.Series:
    """One figure of the selected estimator."""
    table = read_table(path / "figures.tsv")
    where = {"validation": "cross-validation", "estimator": "selected", **where}
    for column, value in where.items():
        table = table[table[column] == value]
    return table.set_index("figure").loc[name]


def test_everything_on_a_simulated_cohort(
    options: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    frame = simulate(
        {"AD": 24, "MCI": 5, "CN": 24},
        {"AD": -2},
        scans=2,
        sites=("A", "B"),
        site_shift=150,
        missing=0.05,
        mmse_effect=2,
    )
    frame.loc[frame["participant_id"] == "sub-0001", "status"] = "failed"
    frame.loc[4, "flags"] = "small_L"
    held_out = options.output_dir / "held_out.txt"
    held_out.parent.mkdir()
    held_out.write_text("sub-0003\n0005\nsub-0040\n0041\nsub-9999\n")
    chosen = replace(
        options,
        repeats=2,
        covariates=("age", "sex", "MMSE"),
        site="site",
        harmonize=True,
        leave_one_site_out=True,
        held_out=str(held_out),
        permutations=4,
        controls="diagnosis=CN",
    )
    assert classify(chosen, frame) == []
    out = folder(options)
    assert sorted(p.name for p in out.iterdir()) == sorted(FILES)

    # the unit is the subject, and folds, held-out set and failures are respected
    predictions = read_table(out / "predictions.tsv")
    cv = predictions[(predictions["validation"] == "cross-validation")]
    volumes = cv[(cv["features"] == "volumes") & (cv["repeat"] == 1)]
    assert len(volumes) == 24 + 24 - 1 - 4
    assert not set(volumes["participant_id"]) & {"sub-0001", "sub-0003", "sub-0040"}
    assert np.allclose(volumes["p_AD"] + volumes["p_CN"], 1, atol=1e-5)
    last = predictions[predictions["validation"] == "held-out"]
    assert set(last["participant_id"]) == {"sub-0003", "sub-0005", "sub-0040", "sub-0041"}
    assert set(predictions["validation"]) == {"cross-validation", "leave-one-site-out", "held-out"}

    # the table has every set, validation and estimator, and intervals around the values
    figures = read_table(out / "figures.tsv")
    assert set(figures["features"]) == {
        "volumes",
        "metadata",
        "both",
        "metadata_noncircular",
        "both_noncircular",
    }
    assert set(figures["estimator"]) == {"selected", "logistic", "dummy"}
    area = figure(out, "auc", features="volumes")
    assert 0.6 < area["low"] <= area["value"] <= area["high"] <= 1
    assert figure(out, "auc", features="both", estimator="dummy")["value"] == 0.5
    for name in TABLES:
        described = json.loads((out / f"{name}.json").read_text())
        assert list(read_table(out / f"{name}.tsv")) == list(described)
    comparisons = read_table(out / "comparisons.tsv")
    assert {"both", "volumes", "both_noncircular"} == set(comparisons["first"])
    assert read_table(out / "confusion.tsv")[["AD", "CN"]].to_numpy().sum() == 43

    # the card says what was done, to whom, with which doubts
    card = json.loads((out / "classifier.json").read_text())
    assert card["Cohort"]["Subjects"] == {"AD": 21, "CN": 22}
    assert card["Cohort"]["Scans"] == 86
    assert card["PermutationTest"]["both"]["P"] == pytest.approx(0.2)
    assert card["Estimator"] == "logistic"
    assert "fitted on diagnosis=CN" in card["IcvAdjustment"]
    assert "kept: age, sex" in card["Harmonization"]
    text = (out / "README.md").read_text()
    for expected in ("circular: MMSE", "1 of 94 scans have a quality flag", "What adds what"):
        assert expected in text
    assert "| leave-one-site-out | both | metadata |" in text
    assert "circular: MMSE" in caplog.text


def test_contrasts_that_fail_do_not_stop_the_others(options: Settings) -> None:
    frame = simulate({"AD": 8, "CN": 9, "X": 1}, {"AD": -3})
    failures = classify(replace(options, contrast=("EMCI:CN", "X:CN", "AD+X:CN")), frame)
    assert len(failures) == 2
    assert "no scan with diagnosis = EMCI" in failures[0]
    assert "earlier run" not in " ".join(failures)
    assert "only 1 subject with a scan in class X" in failures[1]
    assert (folder(options, "AD+X-vs-CN") / "model.skops").is_file()
    assert not folder(options, "X-vs-CN").exists()


def test_an_older_classifier_is_not_taken_for_a_new_one(options: Settings) -> None:
    frame = simulate({"AD": 8, "CN": 9, "X": 8}, {"AD": -3})
    assert classify(options, frame) == []
    again = replace(options, contrast=("AD:CN", "X:CN"))
    fewer = frame[~((frame["diagnosis"] == "AD") & (frame["participant_id"] > "sub-0001"))]
    (failure,) = classify(again, fewer)
    assert "only 1 subject" in failure
    assert f"{folder(options)} is of an earlier run" in failure


def test_one_column_is_enough(options: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    half = replace(ESTIMATORS["logistic"], grid=({"C": 1.0, "percentile": 50},))
    monkeypatch.setitem(ESTIMATORS, "logistic", half)
    frame = simulate({"AD": 12, "CN": 12}, {"AD": -4})
    chosen = replace(options, covariates=("age",), features=("volume_mm3_L_whole",))
    assert classify(chosen, frame) == []
    assert figure(folder(options), "auc", features="volumes")["value"] > 0.7
    new = replace(options, apply_classifier=folder(options))
    assert len(read_table(apply_classifier(new, frame))) == 24


def test_held_out_table_is_read_by_its_first_column(
    options: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    # an age of 0002 years is no subject
    table = options.output_dir / "held_out.tsv"
    table.parent.mkdir()
    table.write_text("participant_id\tage\nsub-0001\t0002\nsub-0014\t0003\nsub-99\t0\n")
    frame = simulate({"AD": 8, "CN": 9}, {"AD": -3})
    assert classify(replace(options, held_out=str(table)), frame) == []
    last = read_table(folder(options) / "predictions.tsv")
    last = last[last["validation"] == "held-out"]
    assert set(last["participant_id"]) == {"sub-0001", "sub-0014"}
    assert "1 of 3 are not in this contrast: sub-99" in caplog.text
    table.write_bytes("sub-Zürich".encode("latin-1"))
    with pytest.raises(BadData, match="cannot be read as UTF-8"):
        classify(replace(options, held_out=str(table)), frame)


def test_small_unbalanced_groups_say_how_uncertain_they_are(
    options: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    frame = simulate({"AD": 12, "CN": 9}, {"AD": -1}, seed=3)
    assert classify(replace(options, folds=10), frame) == []
    assert "9 folds instead of 10: the smallest class has 9" in caplog.text
    assert "very uncertain: with 12 AD, 9 CN the AUC may be anywhere" in caplog.text
    area = figure(folder(options), "auc", features="volumes")
    assert area["score_high"] - area["score_low"] > 0.3
    assert "very uncertain" in (folder(options) / "README.md").read_text()


def test_confounded_site_is_detected_even_if_not_named(
    options: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    frame = simulate({"AD": 8, "CN": 8}, site_of_group={"AD": "A", "CN": "B"}, site_shift=500)
    assert classify(options, frame) == []
    assert "site and diagnosis are fully confounded" in caplog.text
    chosen = replace(options, site="site", harmonize=True, leave_one_site_out=True)
    assert classify(chosen, frame) == []
    assert "no site can be left out" in (folder(options) / "README.md").read_text()


def test_three_classes_and_no_contrast_named(options: Settings) -> None:
    frame = simulate({"AD": 9, "CN": 9, "MCI": 9}, {"AD": -4, "MCI": -2})
    assert classify(replace(options, contrast=()), frame) == []
    out = folder(options, "AD-vs-CN-vs-MCI")
    assert figure(out, "auc", features="volumes")["value"] > 0.7
    assert len(read_table(out / "confusion.tsv")) == 3
    assert set(read_table(out / "roc.tsv")["class"]) == {"AD", "CN", "MCI"}


def test_two_subjects_a_class_still_work(
    options: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    frame = simulate({"AD": 2, "CN": 5}, {"AD": -3})
    chosen = replace(options, estimators=("logistic", "linear_svm"))
    assert classify(chosen, frame) == []
    assert "left out: linear_svm" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": None}, "--contrast needs --target"),
        ({"target": "dx"}, "--target: no column dx"),
        ({"covariates": ("weight",)}, "--covariates: no column weight"),
        ({"site": "center"}, "--site: no column center"),
        ({"harmonize": True}, "need --site COLUMN"),
        ({"estimators": ("magic",)}, "--estimators magic: there are logistic"),
        ({"contrast": ("AD",)}, "--contrast AD: write levels"),
        ({"contrast": ("AD:CN", "AD:CN")}, "two have the same name"),
        ({"held_out": "age"}, "--held-out age: neither COLUMN=LEVEL"),
        ({"controls": "diagnosis"}, "write COLUMN=LEVEL"),
        ({"features": ("icv_residual_mm3_L_whole",)}, "test folds included"),
        ({"features": ("nosuch",)}, "--features: no column nosuch"),
        ({"estimators": ("dummy",)}, "name another"),
        ({"target": "age", "contrast": ()}, "--target age has .* name those to tell apart"),
    ],
)
def test_options_that_cannot_be(options: Settings, change: dict, message: str) -> None:
    frame = simulate({"AD": 14, "CN": 14}).assign(icv_residual_mm3_L_whole=0.0)
    with pytest.raises(UsageError, match=message):
        classify(replace(options, **change), frame)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"held_out": "site=Z"}, "no subject of this contrast"),
        ({"held_out": "diagnosis=AD"}, "held-out subjects away, a class has 0"),
        ({"contrast": ("AD:EMCI", "EMCI:CN")}, "AD:EMCI: no scan .*; contrast EMCI:CN: no scan"),
    ],
)
def test_contrasts_that_cannot_be(options: Settings, change: dict, message: str) -> None:
    with pytest.raises(BadData, match=message):
        classify(replace(options, **change), simulate({"AD": 4, "CN": 4}))


def test_bad_tables(options: Settings) -> None:
    frame = simulate({"AD": 4, "CN": 4})
    with pytest.raises(BadData, match="scan sub-0001 is in the group table more than once"):
        classify(options, pd.concat([frame, frame[:1]]))
    with pytest.raises(BadData, match="no scan is done"):
        classify(options, frame.assign(status="failed"))
    with pytest.raises(BadData, match="fewer than 2 levels: AD"):
        classify(replace(options, contrast=()), frame.assign(diagnosis="AD"))
    mixed = frame.copy()
    mixed.loc[:2, "models"] = "localizer:0 base:0 adapter-other:1 n4:none"
    with pytest.raises(BadData, match=r"cannot be mixed: [35] scans by 0.1.0 with"):
        classify(options, mixed)
    empty = frame.assign(**dict.fromkeys((*PARTS, "volume_mm3_L_whole"), np.nan))
    with pytest.raises(BadData, match="no feature is left"):
        classify(replace(options, features=("volume_mm3_L_*",)), empty)


@pytest.fixture
def trained(options: Settings) -> Path:
    frame = simulate({"AD": 12, "CN": 12}, {"AD": -3}, sites=("A", "B"), site_shift=100)
    units = {"Units": "mm3"}
    sidecar = {name: units for name in PARTS} | {"age": {"Units": "year"}}
    write_json(options.output_dir / "group_seg-hippocampus_desc-wide_morph.json", sidecar)
    chosen = replace(options, covariates=("age", "sex"), site="site", harmonize=True, repeats=1)
    assert classify(chosen, frame) == []
    return folder(options)


def test_new_subjects_are_predicted(options: Settings, trained: Path, tmp_path: Path) -> None:
    new = simulate({"AD": 10, "CN": 10}, {"AD": -3}, seed=9, scans=2, sites=("A", "C"))
    new.loc[0, "sex"] = "X"
    new.loc[2, "age"] = np.nan
    truth = new.drop_duplicates("participant_id")["diagnosis"].to_numpy()
    # the diagnosis of new subjects is not known
    new = new.drop(columns=["diagnosis", "MMSE"])
    chosen = replace(options, output_dir=tmp_path / "new", apply_classifier=trained)
    path = apply_classifier(chosen, new)
    table = read_table(path)
    assert path.name == "group_classifier-AD-vs-CN_predictions.tsv"
    assert path.with_suffix(".json").is_file()
    assert (table["predicted"] == truth).mean() >= 0.7
    assert (table["scans"] == 2).all()
    assert "imputed: unknown sex X" in table["remarks"][0]
    assert "age imputed" in table["remarks"][1]
    harmonized = table["remarks"].fillna("").str.contains("not harmonized: unknown site C")
    assert 0 < harmonized.sum() < 20


def test_mismatches_are_refused(options: Settings, trained: Path, tmp_path: Path) -> None:
    new = simulate({"AD": 3, "CN": 3}, seed=9)
    chosen = replace(options, output_dir=tmp_path / "new", apply_classifier=trained)
    with pytest.raises(BadData, match=f"columns that the group table lacks: {PARTS[1]}, age"):
        apply_classifier(chosen, new.drop(columns=[PARTS[1], "age"]))
    with pytest.raises(BadData, match="trained on volumes of other weights"):
        apply_classifier(chosen, new.assign(models="localizer:0 base:0 adapter-other:1 n4:none"))
    name = "group_seg-hippocampus_desc-wide_morph.json"
    write_json(chosen.output_dir / name, {PARTS[0]: {"Units": "cm3"}})
    with pytest.raises(BadData, match=f"{PARTS[0]} was in mm3, here it is in cm3"):
        apply_classifier(chosen, new)
    write_json(chosen.output_dir / name, {"age": {"Units": "month"}})
    with pytest.raises(BadData, match="age was in year, here it is in month"):
        apply_classifier(chosen, new)
    with pytest.raises(BadData, match="age was a number, here it is text such as '70 years'"):
        apply_classifier(chosen, new.assign(age="70 years"))
    with pytest.raises(BadData, match="sex was one of F, M; here it is 1, 2"):
        apply_classifier(chosen, new.assign(sex=[1.0, 2.0] * 3))
    with pytest.raises(MissingInput, match="no scan is done"):
        apply_classifier(chosen, new.assign(status="missing"))
    with pytest.raises(MissingInput, match="no such file"):
        apply_classifier(replace(chosen, apply_classifier=tmp_path), new)
    with pytest.raises(UsageError, match="--apply-classifier PATH"):
        apply_classifier(replace(chosen, apply_classifier=None), new)


def test_another_version_is_said(
    options: Settings, trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    new = simulate({"AD": 3, "CN": 3}, seed=9).assign(software_version="0.2.0")
    apply_classifier(replace(options, output_dir=tmp_path, apply_classifier=trained), new)
    assert "trained on volumes of HyPS-BIDS 0.1.0, here: 0.2.0" in caplog.text
