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
from hyps_bids.classification.store import CARD, MODEL, load_classifier, save_classifier
from hyps_bids.errors import BadData, MissingInput
from tests.classification.conftest import make_subjects
from tests.cohorts import simulate
from tests.raising import raises


@pytest.mark.parametrize("name", list(ESTIMATORS))
def test_every_estimator_survives(name: str, tmp_path: Path) -> None:
    data, schema = make_subjects(simulate({"AD": 15, "CN": 15}, {"AD": -2}, sites=("A", "B")))
    estimator = ESTIMATORS[name]
    found = search(data, schema.preprocessing(), estimator, np.arange(30), 0)
    save_classifier(tmp_path / "new", found.model, {"Name": "made"})
    model, card = load_classifier(tmp_path / "new" / MODEL)
    before, after = (predict_subjects(data, m, np.arange(30)) for m in (found.model, model))
    assert np.array_equal(before, after)
    assert card["Name"] == "made"
    assert "hyps_bids.classification.harmonize.SiteHarmonizer" in card["Model"]["TrustedTypes"]


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
