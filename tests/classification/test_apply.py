"""A stored classifier predicts new subjects, and refuses tables that do not fit it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hyps_bids.classification.apply import apply_classifier
from hyps_bids.classification.train import train_classifiers
from hyps_bids.errors import BadData, HypsError, MissingInput
from hyps_bids.outputs.reading import read_table
from hyps_bids.outputs.writing import write_json
from hyps_bids.settings import Settings
from tests.classification.conftest import folder
from tests.cohorts import PARTS, simulate
from tests.raising import raises

SIDECAR = "group_seg-hippocampus_desc-wide_morph.json"


@pytest.fixture
def trained(options: Settings, no_charts: None) -> Path:
    frame = simulate({"AD": 12, "CN": 12}, {"AD": -3}, sites=("A", "B"), site_shift=100)
    sidecar = {name: {"Units": "mm3"} for name in PARTS} | {"age": {"Units": "year"}}
    write_json(options.output_dir / SIDECAR, sidecar)
    chosen = replace(options, covariates=("age", "sex"), site="site", harmonize=True)
    assert train_classifiers(chosen, frame) == []
    return folder(options)


def test_new_subjects_are_predicted(
    trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    new = simulate({"AD": 10, "CN": 10}, {"AD": -3}, seed=9, scans=2, sites=("A", "C"))
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
    harmonized = table["remarks"].fillna("").str.contains("site C")
    assert 0 < harmonized.sum() < 20
    warned = [record.args for record in caplog.records if record.levelname == "WARNING"]
    assert (trained, "0.1.0", "0.2.0") in warned


def test_tables_that_do_not_fit_are_refused(trained: Path, tmp_path: Path) -> None:
    new = simulate({"AD": 3, "CN": 3}, seed=9)
    other = "localizer:0 base:0 adapter-other:1 n4:none"
    cases: list[tuple[pd.DataFrame, type[HypsError], str, str]] = [
        (new.drop(columns=[PARTS[1], "age"]), BadData, "column-missing", f"{PARTS[1]}, age"),
        (new.assign(models=other), BadData, "weights-differ", other),
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
    with raises(MissingInput, "classifier-missing"):
        apply_classifier(tmp_path, new, tmp_path)
