"""From the wide table to folders of classifiers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from hyps_bids.classification.apply import apply_classifier
from hyps_bids.classification.estimators import ESTIMATORS
from hyps_bids.classification.train import train_classifiers
from hyps_bids.errors import BadData, HypsError, UsageError
from hyps_bids.outputs.reading import read_table
from hyps_bids.settings import Settings
from tests.classification.conftest import folder
from tests.cohorts import PARTS, simulate
from tests.raising import raises

CHARTS = ("roc", "calibration", "confusion", "importance")
TABLES = ("figures", "comparisons", "chosen", "predictions", "recalibration", *CHARTS)
FILES = [
    *("README.md", "classifier.json", "model.skops"),
    *(f"{name}.{kind}" for name in TABLES for kind in ("tsv", "json")),
    *(f"{name}.{kind}" for name in CHARTS for kind in ("svg", "png")),
]


def metric(path: Path, name: str, **where: str) -> pd.Series:
    """One metric of the selected estimator."""
    table = read_table(path / "figures.tsv")
    where = {"validation": "cross-validation", "estimator": "selected", **where}
    for column, value in where.items():
        table = table[table[column] == value]
    return table.set_index("figure").loc[name]


def facts_of_doubt(path: Path) -> list[str]:
    """Warnings of uncertain intervals."""
    return [text for text in warnings(path) if "very uncertain" in text]


def warnings(path: Path) -> list[str]:
    """Warnings of the card."""
    return json.loads((path / "classifier.json").read_text())["Warnings"]


@pytest.mark.slow
def test_everything_on_a_simulated_cohort(
    options: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    groups, sites = {"AD": 24, "MCI": 5, "CN": 24}, {"sites": ("A", "B"), "site_shift": 150}
    frame = simulate(groups, {"AD": -2}, scans=2, missing=0.05, mmse_effect=2, **sites)
    frame.loc[frame["participant_id"] == "sub-0001", "status"] = "failed"
    frame.loc[4, "flags"] = "small_L"
    held_out = options.output_dir / "held_out.txt"
    held_out.parent.mkdir()
    held_out.write_text("sub-0003\n0005\nsub-0040\n0041\nsub-9999\n")
    by_site = replace(options, site="site", harmonize=True, leave_one_site_out=True)
    columns = {"covariates": ("age", "sex", "MMSE"), "controls": "diagnosis=CN"}
    chosen = replace(by_site, **columns, repeats=2, folds=2, permutations=1, held_out=str(held_out))
    assert train_classifiers(chosen, frame) == []
    out = folder(options)
    assert sorted(p.name for p in out.iterdir()) == sorted(FILES)

    # The unit is the subject; folds, held-out set and failures are respected.
    predictions = read_table(out / "predictions.tsv")
    volumes = predictions.query(
        "validation == 'cross-validation' and features == 'volumes' and repeat == 1"
    )
    assert len(volumes) == 24 + 24 - 1 - 4
    assert not set(volumes["participant_id"]) & {"sub-0001", "sub-0003", "sub-0040"}
    assert np.allclose(volumes["p_AD"] + volumes["p_CN"], 1, atol=1e-5)
    last = predictions.query("validation == 'held-out'")
    assert set(last["participant_id"]) == {"sub-0003", "sub-0005", "sub-0040", "sub-0041"}
    assert set(predictions["validation"]) == {"cross-validation", "leave-one-site-out", "held-out"}

    # The table has every set, validation and estimator, and intervals around the values.
    metrics = read_table(out / "figures.tsv")
    pairs = {"metadata", "both", "metadata_reduced", "both_reduced"}
    assert set(metrics["features"]) == {"volumes", *pairs}
    assert set(metrics["estimator"]) == {"selected", "logistic", "dummy"}
    area = metric(out, "auc", features="volumes")
    assert 0.4 < area["low"] < area["value"] <= area["high"] <= 1
    assert metric(out, "auc", features="both", estimator="dummy")["value"] == 0.5
    for name in TABLES:
        described = json.loads((out / f"{name}.json").read_text())
        assert list(read_table(out / f"{name}.tsv")) == list(described)
    comparisons = read_table(out / "comparisons.tsv")
    assert {"both", "volumes", "both_reduced"} == set(comparisons["first"])
    assert read_table(out / "confusion.tsv")[["AD", "CN"]].to_numpy().sum() == 43

    # The card says what was done, with which subjects and which doubts.
    card = json.loads((out / "classifier.json").read_text())
    assert card["Cohort"]["Subjects"] == {"AD": 21, "CN": 22}
    assert card["Cohort"]["Scans"] == 86
    test = card["PermutationTest"]["both"]
    assert test["P"] == pytest.approx(1 / 2)
    assert (test["Permutations"], test["StoppedEarly"], test["WithinSites"]) == (1, False, True)
    repeat = predictions.query(
        "validation == 'cross-validation' and features == 'both' and repeat == 1"
    )
    by_fold = [
        (len(one) - n) * n * roc_auc_score(one["true"] == "AD", one["p_AD"])
        for _, one in repeat.groupby("fold")
        if (n := int((one["true"] == "AD").sum()))
    ]
    pairs = [
        (one["true"] == "AD").sum() * (one["true"] == "CN").sum()
        for _, one in repeat.groupby("fold")
    ]
    assert test["AUC"] == pytest.approx(sum(by_fold) / sum(pairs), abs=1e-4)
    assert {"volumes", "both, leave-one-site-out", "both, held-out"} < set(card["PermutationTest"])
    assert set(card["AUCWithinSites"]) == set(metrics["features"])
    assert card["Estimator"] == "logistic"
    assert "fitted on the training subjects with diagnosis=CN" in card["IcvAdjustment"]
    assert "kept: age, sex" in card["Harmonization"]
    text = (out / "README.md").read_text()
    assert "1 of 94 scans" in card["Warnings"][0]
    assert "MMSE" in card["Warnings"][1]
    for expected in (*card["Warnings"], "| leave-one-site-out | both | metadata |"):
        assert expected in text
    for expected in card["Warnings"]:
        assert f"AD:CN: {expected}" in [r.getMessage() for r in caplog.records if r.levelno >= 30]


@pytest.mark.usefixtures("no_charts")
def test_contrasts_that_fail_do_not_stop_the_others(options: Settings) -> None:
    frame = simulate({"AD": 8, "CN": 9, "X": 1}, {"AD": -3})
    chosen = replace(options, contrast=("EMCI:CN", "X:CN", "AD+X:CN"))
    absent, small = train_classifiers(chosen, frame)
    assert "EMCI" in absent
    assert "X:CN" in small
    assert (folder(options, "AD+X-vs-CN") / "model.skops").is_file()
    assert not folder(options, "X-vs-CN").exists()


@pytest.mark.usefixtures("no_charts")
def test_sites_with_one_class_give_no_p_value(options: Settings) -> None:
    frame = simulate({"AD": 8, "CN": 8}, {"AD": -3}, site_of_group={"AD": "A", "CN": "B"})
    assert train_classifiers(replace(options, site="site", permutations=2), frame) == []
    card = json.loads((folder(options) / "classifier.json").read_text())
    assert card["PermutationTest"] == card["AUCWithinSites"] == {}
    assert any("no permutation p-value" in text for text in card["Warnings"])


@pytest.mark.usefixtures("no_charts")
def test_an_older_classifier_is_not_taken_for_a_new_one(options: Settings) -> None:
    frame = simulate({"AD": 8, "CN": 9, "X": 8}, {"AD": -3})
    folder(options).mkdir(parents=True)
    fewer = frame[~((frame["diagnosis"] == "AD") & (frame["participant_id"] > "sub-0001"))]
    (failure,) = train_classifiers(replace(options, contrast=("AD:CN", "X:CN")), fewer)
    assert str(folder(options)) in failure


@pytest.mark.usefixtures("no_charts")
def test_one_column_is_enough(options: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    half = replace(ESTIMATORS["logistic"], grid=({"C": 1.0, "percentile": 50},))
    monkeypatch.setitem(ESTIMATORS, "logistic", half)
    frame = simulate({"AD": 12, "CN": 12}, {"AD": -4})
    chosen = replace(options, covariates=("age",), features=("volume_mm3_L_whole",))
    assert train_classifiers(chosen, frame) == []
    assert metric(folder(options), "auc", features="volumes")["value"] > 0.7
    path = apply_classifier(folder(options), frame, options.output_dir)
    assert len(read_table(path)) == 24


@pytest.mark.usefixtures("no_charts")
def test_held_out_table_is_read_by_its_first_column(
    options: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    # The ages must not be taken for subjects.
    table = options.output_dir / "held_out.tsv"
    table.parent.mkdir()
    table.write_text("participant_id\tage\n1\t0002\nsub-0014\t0003\nsub-99\t0\n")
    frame = simulate({"AD": 8, "CN": 9}, {"AD": -3})
    assert train_classifiers(replace(options, held_out=str(table)), frame) == []
    last = read_table(folder(options) / "predictions.tsv").query("validation == 'held-out'")
    assert set(last["participant_id"]) == {"sub-0001", "sub-0014"}
    facts = [record.args for record in caplog.records]
    assert (str(table), 1, 3, "sub-99") in facts
    assert (str(table), "sub-1 for sub-0001") in facts
    table.write_bytes("sub-Zürich".encode("latin-1"))
    with raises(BadData, "no-contrast-possible", table):
        train_classifiers(replace(options, held_out=str(table)), frame)


@pytest.mark.usefixtures("no_charts")
def test_small_unbalanced_groups_say_how_uncertain_they_are(options: Settings) -> None:
    frame = simulate({"AD": 12, "CN": 9}, {"AD": -1}, seed=3)
    assert train_classifiers(replace(options, folds=10), frame) == []
    area = metric(folder(options), "auc", features="volumes")
    assert area["high"] - area["low"] > 0.3
    folds, doubt, *others = warnings(folder(options))
    assert "9 folds instead of 10" in folds
    assert doubt.startswith("volumes: very uncertain: with 12 AD, 9 CN")
    assert any("no better than chance" in text for text in others) == (area["low"] <= 0.5)
    assert doubt in (folder(options) / "README.md").read_text()


@pytest.mark.usefixtures("no_charts")
def test_confounded_site_is_detected_even_if_not_named(options: Settings) -> None:
    frame = simulate({"AD": 8, "CN": 8}, site_of_group={"AD": "A", "CN": "B"}, site_shift=500)
    # Both spellings are known.
    frame = frame.rename(columns={"site": "Centre"})
    assert train_classifiers(options, frame) == []
    assert "Centre" in warnings(folder(options))[0]
    chosen = replace(options, site="Centre", harmonize=True, leave_one_site_out=True)
    assert train_classifiers(chosen, frame) == []
    assert any("leave-one-site-out" in text for text in warnings(folder(options)))


@pytest.mark.usefixtures("no_charts")
def test_three_classes_and_no_contrast_named(options: Settings) -> None:
    frame = simulate({"AD": 9, "CN": 9, "MCI": 9}, {"AD": -4, "MCI": -2})
    assert train_classifiers(replace(options, contrast=()), frame) == []
    out = folder(options, "AD-vs-CN-vs-MCI")
    assert metric(out, "auc", features="volumes")["value"] > 0.7
    assert len(read_table(out / "confusion.tsv")) == 3
    assert set(read_table(out / "roc.tsv")["class"]) == {"AD", "CN", "MCI"}


@pytest.mark.usefixtures("no_charts")
def test_two_subjects_a_class_still_work(options: Settings) -> None:
    frame = simulate({"AD": 2, "CN": 5}, {"AD": -3})
    chosen = replace(options, estimators=("logistic", "linear_svm"))
    assert train_classifiers(chosen, frame) == []
    assert any("linear_svm" in text for text in warnings(folder(options)))
    # The training sets are too small for an inner cross-validation.
    assert read_table(folder(options) / "chosen.tsv")["inner_auc"].isna().all()
    assert read_table(folder(options) / "predictions.tsv")["p_AD"].notna().all()
    card = json.loads((folder(options) / "classifier.json").read_text())
    assert card["Validation"]["FoldsWithoutInner"] == {"cross-validation": [2, 2]}
    text = (folder(options) / "README.md").read_text()
    assert "nested" not in text
    assert "In 2 of 2 folds of cross-validation" in text


@pytest.mark.usefixtures("no_charts")
def test_the_card_counts_who_was_used_and_how(options: Settings) -> None:
    frame = simulate({"AD": 12, "CN": 14}, {"AD": -3}, scans=2).assign(image_contrast="T2w")
    frame.loc[[1, 27], "diagnosis"] = ["CN", "AD"]
    frame["role"] = [
        "test" if name in ("sub-0003", "sub-0004", "sub-0020") else "train"
        for name in frame["participant_id"]
    ]
    frame["code"] = (frame["diagnosis"] == "AD").astype(float)
    chosen = replace(options, held_out="role=test", covariates=("code",), site="site")
    assert train_classifiers(replace(chosen, suffix=("T2w",)), frame) == []
    made = folder(options, "AD-vs-CN_space-T2w")
    card = json.loads((made / "classifier.json").read_text())
    assert (card["Name"], card["ImageContrast"]) == ("AD-vs-CN_space-T2w", "T2w")
    facts = card["Cohort"]
    assert facts["HeldOutByClass"] == {"AD": 2, "CN": 1}
    assert facts["ScansByClass"] == {"AD": 2 * 10 - 1, "CN": 2 * 13 - 1}
    assert facts["Converters"] == {"AD": 1, "CN": 1}
    text = (made / "README.md").read_text()
    assert "| Scans | 44 (19 AD, 25 CN) |" in text
    assert "| Images | T2w;" in text
    # The only covariate is doubtful.
    assert "`…_reduced`" not in text
    assert "code: they may tell" in text
    assert {"both", "volumes"} == {one.split(":")[0] for one in facts_of_doubt(made)}


@pytest.mark.slow
@pytest.mark.usefixtures("no_charts")
def test_metrics_from_few_pairs_or_one_class_are_not_shown(
    options: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="hyps_bids")
    frame = simulate({"AD": 12, "CN": 12}, {"AD": -2})
    # Three subjects of one class are held out, and one site only has both classes.
    frame["site"] = [*"HHHAAAABBBBB", *"AAAACCCCCCCC"]
    chosen = replace(options, site="site", leave_one_site_out=True, held_out="site=H")
    assert train_classifiers(replace(chosen, covariates=("age",), permutations=1), frame) == []
    text = (folder(options) / "README.md").read_text()
    assert "AUC n/a (only 16 pairs at 1 site), balanced accuracy 0." in text
    assert "| leave-one-site-out | both | metadata | n/a | n/a |" in text
    assert "AUC n/a (one class only), balanced accuracy n/a (one class only), accuracy" in text
    assert "| held-out | both | metadata | n/a | n/a |" in text
    assert "slope and intercept of AD are not defined" in text
    assert "in each repeat, at 1 of 3 sites" in text
    card = json.loads((folder(options) / "classifier.json").read_text())
    assert card["AUCWithinSites"] == {}
    assert metric(folder(options), "auc", validation="leave-one-site-out", features="both")[
        ["pairs", "folds_with_pairs"]
    ].tolist() == [16, 1]
    messages = [record.getMessage() for record in caplog.records]
    for word in ("held-out", "leave-one-site-out"):
        assert sum(f"AD:CN: {word}: both: " in line for line in messages) == 1
    assert any("they are 3 AD, 0 CN" in one.getMessage() for one in caplog.records)
    chosen = replace(chosen, held_out="role=test", leave_one_site_out=False, permutations=1)
    role = np.where(
        frame["site"].isin(["B", "H"]) | (frame["participant_id"] > "sub-0021"), "test", ""
    )
    assert train_classifiers(chosen, frame.assign(role=role)) == []
    assert any("each of their sites has one class only" in one for one in warnings(folder(options)))


USAGE = [
    ({"target": "dx"}, "column-unknown", "--target"),
    ({"covariates": ("weight",)}, "column-unknown", "--covariates: no column weight"),
    ({"site": "center"}, "column-unknown", "--site"),
    ({"features": ("nosuch",)}, "column-unknown", "nosuch"),
    ({"estimators": ("magic",)}, "estimator-unknown", "magic"),
    ({"estimators": ("dummy",)}, "only-dummy", "dummy"),
    ({"contrast": ("AD",)}, "contrast-syntax", "AD"),
    ({"contrast": ("AD:CN", "AD:CN")}, "contrast-name-repeated", "AD-vs-CN"),
    ({"target": "age", "contrast": ()}, "target-levels-too-many", "age"),
    ({"held_out": "age"}, "held-out-unknown", "age"),
    ({"controls": "diagnosis"}, "controls-without-level", "diagnosis"),
]
DATA = [
    ({"held_out": "site=Z"}, "site=Z"),
    ({"held_out": "diagnosis=AD"}, "0 subjects"),
    ({"contrast": ("AD:EMCI", "EMCI:CN")}, "EMCI:CN"),
]


@pytest.mark.parametrize(
    ("change", "kind", "code", "fact"),
    [
        *((change, UsageError, code, fact) for change, code, fact in USAGE),
        *((change, BadData, "no-contrast-possible", fact) for change, fact in DATA),
    ],
)
def test_impossible_options_are_refused(
    options: Settings, change: dict, kind: type[HypsError], code: str, fact: str
) -> None:
    with raises(kind, code, fact):
        train_classifiers(replace(options, **change), simulate({"AD": 14, "CN": 14}))


def test_bad_tables_are_refused(options: Settings) -> None:
    frame = simulate({"AD": 4, "CN": 4})
    with raises(BadData, "scan-listed-twice", "sub-0001"):
        train_classifiers(options, pd.concat([frame, frame[:1]]))
    contrasts = frame.assign(image_contrast=["T1w", "T2w"] * 4)
    with raises(UsageError, "contrasts-pooled", "T1w (4 scans)", "T2w (4 scans)", "--suffix T1w"):
        train_classifiers(options, contrasts)
    with raises(BadData, "no-scan-done", options.output_dir):
        train_classifiers(options, frame.assign(status="failed"))
    with raises(BadData, "target-levels-too-few", "AD"):
        train_classifiers(replace(options, contrast=()), frame.assign(diagnosis="AD"))
    mixed = frame.copy()
    mixed.loc[:2, "models"] = "localizer:0 base:0 adapter-other:1 n4:none"
    with raises(BadData, "no-contrast-possible", "3 scans by 0.1.0", "5 scans by 0.1.0"):
        train_classifiers(options, mixed)
    empty = frame.assign(**dict.fromkeys((*PARTS, "volume_mm3_L_whole"), np.nan))
    with raises(BadData, "no-contrast-possible", "no feature is left"):
        train_classifiers(replace(options, features=("volume_mm3_L_*",)), empty)
