"""Stored classifiers are safe to load, predict the same, and refuse tables that do not fit."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import skops.io
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer

from hyps_bids.classification import train
from hyps_bids.classification.apply import apply_classifier
from hyps_bids.classification.cross_validation import predict_subjects, search
from hyps_bids.classification.estimators import ESTIMATORS, TREES
from hyps_bids.classification.metrics import metrics
from hyps_bids.classification.store import CARD, MODEL, load_classifier, save_classifier
from hyps_bids.classification.train import train_classifiers
from hyps_bids.errors import BadData, HypsError, MissingInput, UsageError
from hyps_bids.outputs.reading import read_table
from hyps_bids.outputs.writing import write_json
from tests.classification.conftest import SETTINGS, folder, make_subjects, shrink_search
from tests.cohorts import PARTS, simulate
from tests.raising import raises

SIDECAR = "group_seg-hippocampus_desc-wide_morph.json"


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train on 12 + 12 subjects of the sites A and B, one of C and one of D."""
    frame = simulate({"AD": 12, "CN": 12}, {"AD": -3}, sites=("A", "B"), site_shift=100)
    frame.loc[[5, 20], "site"] = ["C", "D"]
    options = replace(SETTINGS, output_dir=tmp_path_factory.mktemp("trained"))
    sidecar = {name: {"Units": "mm3"} for name in PARTS} | {"age": {"Units": "year"}}
    write_json(options.output_dir / SIDECAR, sidecar)
    chosen = replace(options, covariates=("age", "sex"), site="site", harmonize=True)
    with pytest.MonkeyPatch.context() as patch:
        shrink_search(patch)
        patch.setattr(train, "draw_charts", lambda *_: None)
        assert train_classifiers(chosen, frame) == []
    return folder(options)


@pytest.fixture
def trained(trained_once: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(trained_once, tmp_path / "trained"))


def test_new_subjects_are_predicted(
    trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    new = simulate({"AD": 10, "CN": 10}, {"AD": -3}, seed=9, scans=2, sites=("A", "C", "E", "n/a"))
    new["site"] = new["site"].replace("n/a", None)
    new.loc[0, "sex"] = "X"
    new.loc[2, "age"] = np.nan
    truth = new.drop_duplicates("participant_id")["diagnosis"].to_numpy()
    # The diagnosis of new subjects is not known.
    new = new.drop(columns=["diagnosis", "MMSE"]).assign(software_version="0.2.0")
    path = apply_classifier(trained, new, tmp_path / "new")
    table = read_table(path)
    assert path.name == "group_classifier-AD-vs-CN_predictions.tsv"
    assert path.with_suffix(".json").is_file()
    assert (table["predicted"] == truth).mean() >= 0.7
    assert (table["scans"] == 2).all()
    assert "sex X" in table["remarks"][0]
    assert "age imputed" in table["remarks"][1]
    remarks = dict(zip(table["participant_id"], table["remarks"].fillna(""), strict=True))
    # A site that was never seen, one with a single subject in training, none, and a known one.
    sites = new.drop_duplicates("participant_id").set_index("participant_id")["site"]
    for name, site in sites.items():
        about = {"C": "site C in training", "E": "unknown site E", "A": ""}
        expected = "no site" if pd.isna(site) else about[site]
        assert ("not harmonized" in remarks[name]) == (site != "A")
        assert expected in remarks[name]
    warned = [record.args for record in caplog.records if record.levelname == "WARNING"]
    assert (trained, "0.1.0", "0.2.0") in warned
    (counted,) = (r.getMessage() for r in caplog.records if "not harmonized" in r.getMessage())
    for fact in (
        f"{(sites != 'A').sum()} of 20 subjects not harmonized",
        "1 of 20 subjects unknown levels (sex X)",
        "1 of 20 subjects imputed (age)",
    ):
        assert fact in counted


def test_where_no_site_could_be_harmonized_every_subject_is_told(
    tmp_path: Path, small_search: None, no_charts: None, caplog: pytest.LogCaptureFixture
) -> None:
    frame = simulate({"AD": 6, "CN": 6}, {"AD": -3})
    frame.loc[0, "site"] = "B"
    options = replace(SETTINGS, output_dir=tmp_path, site="site", harmonize=True, folds=2)
    assert train_classifiers(options, frame) == []
    remarks = read_table(apply_classifier(folder(options), frame, tmp_path))["remarks"]
    assert remarks.str.contains("fewer than two levels of site").all()
    assert any("12 of 12 subjects not harmonized" in r.getMessage() for r in caplog.records)


def test_tables_that_do_not_fit_are_refused(trained: Path, tmp_path: Path) -> None:
    new = simulate({"AD": 3, "CN": 3}, seed=9).assign(image_contrast="T1w")
    other = "localizer:0 base:0 adapter-other:1 n4:none"
    cases: list[tuple[pd.DataFrame, type[HypsError], str, str]] = [
        (new.drop(columns=[PARTS[1], "age"]), BadData, "column-missing", f"{PARTS[1]}, age"),
        (new.rename(columns={"age": "Age"}), BadData, "column-missing", "there are: Age, "),
        (new.assign(models=other), BadData, "weights-differ", other),
        (new.assign(image_contrast="T2w"), BadData, "image-contrast-differs", "--suffix T1w"),
        # The contrast differs although the suffix does not.
        (
            new.assign(image_contrast="ce-gd_T1w"),
            BadData,
            "image-contrast-differs",
            '{"t1w": {"ceagent": null}}',
        ),
        (
            pd.concat([new, new.assign(image_contrast="T2w", scan=new["scan"] + "_space-T2w")]),
            UsageError,
            "contrasts-pooled",
            "T2w (6 scans)",
        ),
        (new.assign(age="70 years"), BadData, "column-not-numeric", "'70 years'"),
        (new.assign(sex=[1.0, 2.0] * 3), BadData, "levels-unknown", "1, 2"),
        (new.assign(status="missing"), MissingInput, "no-scan-done", str(tmp_path)),
    ]
    for table, kind, code, fact in cases:
        with raises(kind, code, fact):
            apply_classifier(trained, table, tmp_path)
    for column, unit in ((PARTS[0], "cm3"), ("age", "month")):
        write_json(tmp_path / SIDECAR, {column: {"Units": unit}})
        with raises(BadData, "units-differ", column, unit):
            apply_classifier(trained, new, tmp_path)


@pytest.mark.parametrize(
    ("name", "contrast"),
    [
        *((name, "AD:MCI:CN") for name in ESTIMATORS),
        *((name, "AD:CN") for name in ESTIMATORS if name not in TREES),
    ],
)
def test_every_estimator_predicts_and_survives(name: str, contrast: str, tmp_path: Path) -> None:
    frame = simulate({"AD": 12, "MCI": 12, "CN": 12}, {"AD": -4, "MCI": -2}, sites=("A", "B"))
    data, schema = make_subjects(frame, contrast)
    model = search(data, schema.preprocessing(), ESTIMATORS[name], data.everybody, 0).model
    probability = predict_subjects(data, model, data.everybody)
    assert np.allclose(probability.sum(axis=1), 1)
    auc = metrics(data.label, probability, np.zeros(len(data.ids), dtype=int))["auc"][0]
    assert auc == 0.5 if name == "dummy" else auc > 0.85

    save_classifier(tmp_path / "new", model, {"Name": "made"})
    stored, card = load_classifier(tmp_path / "new" / MODEL)
    assert np.array_equal(probability, predict_subjects(data, stored, data.everybody))
    assert card["Name"] == "made"
    # Models of earlier versions name these paths.
    assert {
        "hyps_bids.classification.estimators.SelectShare",
        "hyps_bids.classification.estimators.anova",
        "hyps_bids.classification.harmonize.IcvAdjuster",
        "hyps_bids.classification.harmonize.SiteHarmonizer",
    } < set(card["Model"]["TrustedTypes"])


def test_other_types_are_neither_saved_nor_loaded(tmp_path: Path) -> None:
    evil = Pipeline([("call", FunctionTransformer(json.loads))])
    with pytest.raises(TypeError, match="json"):
        save_classifier(tmp_path, evil, {})
    save_classifier(tmp_path, Pipeline([("none", FunctionTransformer())]), {})
    content = skops.io.dumps(evil)
    (tmp_path / MODEL).write_bytes(content)
    with raises(BadData, "classifier-digest-differs", tmp_path / MODEL):
        load_classifier(tmp_path)
    card = json.loads((tmp_path / CARD).read_text())
    card["Model"]["SHA256"] = hashlib.sha256(content).hexdigest()
    (tmp_path / CARD).write_text(json.dumps(card))
    with raises(BadData, "classifier-type-untrusted", tmp_path / MODEL, "json"):
        load_classifier(tmp_path)


def test_a_folder_without_a_classifier_is_refused(tmp_path: Path) -> None:
    with raises(MissingInput, "classifier-missing", tmp_path / MODEL):
        load_classifier(tmp_path)
    (tmp_path / MODEL).write_bytes(b"")
    (tmp_path / CARD).write_text("[]")
    with raises(BadData, "classifier-card-damaged", tmp_path / CARD):
        load_classifier(tmp_path)


def test_values_outside_the_range_of_training_are_remarked(
    trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    card = json.loads((trained / CARD).read_text())
    training = simulate({"AD": 12, "CN": 12}, {"AD": -3}, sites=("A", "B"), site_shift=100)
    assert card["Ranges"]["age"] == [training["age"].min(), training["age"].max()]
    assert set(card["Ranges"]) == {*PARTS, "icv_mm3", "age"}
    new = training.assign(participant_id=[f"sub-new{i}" for i in range(24)])
    new.loc[0, "age"] = 20
    new.loc[1, "icv_mm3"] *= 1000
    new.loc[2, PARTS[0]] = 10
    # A little beyond the range of a small group is nothing unusual.
    new.loc[3, "age"] = training["age"].max() + 1
    remarks = read_table(apply_classifier(trained, new, tmp_path))["remarks"]
    found = dict(zip(sorted(new["participant_id"]), remarks.fillna(""), strict=True))
    assert "age 20" in found["sub-new0"]
    assert "icv_mm3" in found["sub-new1"]
    assert PARTS[0] in found["sub-new2"]
    assert set(found.values()) - {found[f"sub-new{i}"] for i in range(3)} == {""}
    (warning,) = (r.getMessage() for r in caplog.records if "outside the range" in r.getMessage())
    for fact in ("age of 1 subject (20; trained on", "icv_mm3 of 1 subject (", PARTS[0]):
        assert fact in warning


def test_participants_of_the_training_set_are_marked_however_they_are_spelled(
    trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    new = simulate({"AD": 2, "CN": 2}, seed=9)
    new["participant_id"] = ["sub-1", "sub-0002", "sub-99", "sub-x1"]
    remarks = read_table(apply_classifier(trained, new, tmp_path))
    marked = remarks["remarks"].fillna("").str.contains("training set")
    assert remarks.loc[marked, "participant_id"].tolist() == ["sub-0002", "sub-1"]
    assert any((r.args or ())[1:3] == (2, "4 subjects") for r in caplog.records)
    # The labels themselves are nowhere in the folder's model and card.
    assert "sub-0002" not in (trained / CARD).read_text()
    assert len(json.loads((trained / CARD).read_text())["Model"]["ParticipantHashes"]) == 24


def test_classifiers_of_earlier_versions_are_applied_as_before(tmp_path: Path) -> None:
    # Version 0.1 made these predictions; its card has neither cuts nor ranges nor hashes.
    frame = simulate({"AD": 4, "CN": 4}, {"AD": -3}, seed=9, sites=("A", "B"))
    # It did not tell images with a contrast agent from those without.
    frame = frame.assign(image_contrast="ce-gadolinium_T1w")
    table = read_table(apply_classifier(Path(__file__).parent / "stored", frame, tmp_path))
    expected = [0.998377, 0.928791, 0.374325, 0.999706, 0.556722, 0.739608, 0.294963, 0.685759]
    assert table["p_AD"].to_numpy() == pytest.approx(expected, abs=1e-6)
    assert table["predicted"].tolist() == ["AD", "AD", "CN", "AD", "AD", "AD", "CN", "AD"]
    assert table["remarks"].isna().all()
    with raises(BadData, "image-contrast-differs", "FLAIR"):
        apply_classifier(
            Path(__file__).parent / "stored", frame.assign(image_contrast="FLAIR"), tmp_path
        )


def test_the_stored_cuts_call_the_class(trained: Path, tmp_path: Path) -> None:
    card = json.loads((trained / CARD).read_text())
    assert card["Threshold"] == {"Rule": "prevalence", "Cuts": {"AD": 0.5, "CN": 0.5}}
    card["Threshold"]["Cuts"] = {"AD": 0.001, "CN": 0.999}
    write_json(trained / CARD, card)
    table = read_table(apply_classifier(trained, simulate({"AD": 3, "CN": 3}, seed=9), tmp_path))
    assert (table["predicted"] == np.where(table["p_AD"] > 0.001, "AD", "CN")).all()
