"""Stored classifiers give the same predictions, and hold nothing that could run."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import skops.io
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer

from hyps_bids.classification.cross_validation import predict_subjects, search
from hyps_bids.classification.estimators import ESTIMATORS
from hyps_bids.classification.metrics import metrics
from hyps_bids.classification.store import CARD, MODEL, load_classifier, save_classifier
from hyps_bids.errors import BadData, MissingInput
from tests.classification.conftest import make_subjects
from tests.cohorts import simulate
from tests.raising import raises


@pytest.mark.parametrize("contrast", ["AD:CN", "AD:MCI:CN"])
@pytest.mark.parametrize("name", list(ESTIMATORS))
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
