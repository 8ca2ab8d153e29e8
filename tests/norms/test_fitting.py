"""Norms from a dataset's controls: who they are, what is stored, and who is compared with them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hyps_bids.app import run
from hyps_bids.errors import BadData, CannotCreateOutput, MissingInput, UsageError
from hyps_bids.norms import fitting
from hyps_bids.norms.folder import CARD, MODEL, README, load_folder
from hyps_bids.norms.measures import (
    flagged_rows,
    is_change,
    needs_icv,
    norm_measures,
    scored_rows,
)
from hyps_bids.norms.tables import Scored, score_table
from hyps_bids.outputs.reading import NORMS
from hyps_bids.outputs.writing import write_json
from hyps_bids.settings import check_combinations
from tests.cohort.study import MadeStudy
from tests.norms.conftest import OPTIONS
from tests.norms.made import make_people
from tests.raising import raises


def whole(study: MadeStudy) -> pd.DataFrame:
    table = study.group_table(NORMS)
    return table[table["measure"] == "volume_mm3_bilateral_whole"].set_index("scan")


def test_controls_are_scored_out_of_folds_and_patients_are_below(fitted: MadeStudy) -> None:
    rows = whole(fitted)
    controls = rows[rows["control"] == "yes"]
    assert len(rows) == 72
    # Two of the 60 controls are flagged.
    assert len(controls) == 58
    assert abs(controls["z"].mean()) < 0.3
    assert 0.7 < controls["z"].std() < 1.4
    patients = rows.iloc[60:]
    assert -2.8 < patients["z"].mean() < -1.3
    known = rows[rows["centile"].notna()]
    assert (known["centile_low"] <= known["centile"]).all()
    assert (known["centile"] <= known["centile_high"]).all()
    assert rows.loc[["sub-001", "sub-002"], "control"].tolist() == ["no", "no"]
    assert rows.loc["sub-001", "remarks"].count("flagged") == 1


def test_all_kinds_of_measures_have_norms(fitted: MadeStudy) -> None:
    measures = set(fitted.group_table(NORMS)["measure"])
    assert {"volume_mm3_L_anterior", "volume_mm3_R_whole", "asymmetry_whole"} <= measures
    assert {"anterior_posterior_ratio_L", "volume_mm3_bilateral_posterior"} <= measures
    # Volumes that are adjusted already would be adjusted twice.
    assert not {name for name in measures if name.startswith(("icv_", "volume_soft"))}


def test_the_card_says_who_the_controls_are(fitted: MadeStudy) -> None:
    folder = fitted.output / "models" / "norms-made"
    stored = load_folder(folder)
    card = stored.card
    assert card["Cohort"]["Participants"] == 58
    assert card["Cohort"]["LeftOut"] == {"flagged for review": 2}
    assert card["Cohort"]["Sites"] == {"A": 29, "B": 29}
    assert (card["Cohort"]["Age"]["Min"], card["Cohort"]["Age"]["Max"]) == (29, 81)
    assert card["Columns"] == {"age": "age", "sex": "sex", "site": "scanner"}
    assert card["ImageContrast"] == "T1w"
    assert "adapter-made:22222222" in card["Models"]
    assert stored.norms["volume_mm3_L_whole"].settings.icv
    assert not stored.norms["asymmetry_whole"].settings.icv
    assert "58 controls" in (folder / README).read_text()
    # Labels of participants are not stored in the clear.
    assert "sub-010" not in (folder / CARD).read_text()
    assert stored.known(["sub-010", "sub-001", "sub-070"], stored.card["Dataset"]) == {"sub-010"}


@pytest.mark.parametrize(
    ("change", "error", "code"),
    [
        ({"Format": 99}, BadData, "norms-version"),
        ({"Version": "0.1.7"}, BadData, "norms-version"),
        ({"Measures": {}}, BadData, "norms-card-damaged"),
        ({"Model": {"SHA256": "0"}}, BadData, "norms-digest-differs"),
        ({"Model": None}, BadData, "norms-card-damaged"),
    ],
)
def test_norms_that_are_not_what_the_card_says_are_refused(
    copied: MadeStudy, change: dict[str, object], error: type[BadData], code: str
) -> None:
    folder = copied.output / "models" / "norms-made"
    write_json(folder / CARD, json.loads((folder / CARD).read_text()) | change)
    with raises(error, code, folder):
        load_folder(folder)


def test_a_folder_without_card_or_models_has_no_norms(copied: MadeStudy) -> None:
    folder = copied.output / "models" / "norms-made"
    assert load_folder(folder / MODEL).folder == folder
    (folder / MODEL).unlink()
    with raises(MissingInput, "norms-missing", MODEL):
        load_folder(folder)


def fails(study: MadeStudy, error: type[BadData | UsageError], code: str, *facts: object) -> None:
    """Expect that no norms can be fitted, and that none are left behind."""
    with raises(error, code, *facts):
        run(study.settings(**OPTIONS))
    assert not (study.output / "models" / "norms-made" / CARD).exists()


@pytest.mark.slow
def test_too_few_controls_are_refused_with_their_number(tmp_path: Path) -> None:
    study = make_people(tmp_path / "few", controls=21, patients=0)
    fails(study, BadData, "norm-too-few", "19 participants", "2 because flagged")


@pytest.mark.slow
def test_ages_are_needed(tmp_path: Path) -> None:
    study = make_people(tmp_path / "young", controls=25, patients=0)
    table = study.raw / "participants.tsv"
    table.write_text(table.read_text().replace("age", "years", 1))
    fails(study, BadData, "norms-without-age")


@pytest.mark.slow
def test_columns_and_levels_that_do_not_exist_are_named(copied: MadeStudy) -> None:
    with raises(UsageError, "controls-level-unknown", "HC", "AD", "CN"):
        run(copied.settings(norms="other", controls="diagnosis=HC"))
    with raises(UsageError, "controls-column-unknown", "group"):
        run(copied.settings(norms="other", controls="group=HC"))
    with raises(UsageError, "column-unknown", "center", "scanner"):
        run(copied.settings(norms="other", controls="diagnosis=CN", site="center"))


@pytest.mark.slow
def test_controls_of_several_weights_are_not_mixed(tmp_path: Path) -> None:
    study = make_people(tmp_path / "mixed", controls=25, patients=0)
    path = study.sidecar("sub-010")
    path.write_text(path.read_text().replace("2" * 64, "3" * 64))
    fails(study, BadData, "volumes-not-comparable", "adapter-made:33333333")


@pytest.mark.slow
def test_flagged_scans_of_controls_say_that_the_person_was_one(tmp_path: Path) -> None:
    study = make_people(tmp_path / "twice", controls=30, patients=2, flagged=1)
    study.scan("sub-010_run-2", version="0.2.0", flags="low_confidence_L", review="yes")
    assert run(study.settings(**OPTIONS)) == 0
    rows = whole(study)
    assert rows.loc["sub-010_run-2", "control"] == "no"
    assert "among the controls" in rows.loc["sub-010_run-2", "remarks"]
    # The first person has no other scan, so no model has seen it.
    assert "among the controls" not in rows.loc["sub-001", "remarks"]


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    study = make_people(tmp_path / "file", controls=25, patients=0)
    folder = study.output / "models" / "norms-made"
    folder.parent.mkdir(parents=True)
    folder.write_text("not a folder")
    with raises(CannotCreateOutput, "not-writable", folder):
        run(study.settings(**OPTIONS))


@pytest.mark.slow
def test_files_of_others_are_not_written_over(tmp_path: Path) -> None:
    study = make_people(tmp_path / "foreign", controls=25, patients=0)
    folder = study.output / "models" / "norms-made"
    folder.mkdir(parents=True)
    (folder / README).write_text("My notes")
    fails(study, UsageError, "file-not-ours", folder / README)
    assert (folder / README).read_text() == "My notes"


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"norms": "a"}, "norms-without-controls"),
        ({"norms": "a/b", "controls": "dx=CN"}, "norms-name-invalid"),
        ({"norms": "a", "controls": "dx=CN", "apply_norms": Path("x")}, "two-norms"),
        (
            {"apply_norms": Path("x"), "train_adapter": "a", "labels": (Path("l"),)},
            "adapter-not-alone",
        ),
    ],
)
def test_options_that_contradict_each_other(
    fitted: MadeStudy, options: dict[str, object], code: str
) -> None:
    with raises(UsageError, code):
        check_combinations(fitted.settings(**options))


def test_the_report_and_the_methods_text_describe_the_norms(fitted: MadeStudy) -> None:
    text = (fitted.output / "logs" / "CITATION_group.md").read_text()
    assert "58 controls (diagnosis=CN) of 29 to 81 years" in text
    assert "offsets of 2 sites" in text
    assert "72 scans had a z-score" in text
    page = (fitted.output / "group_report.html").read_text()
    assert 'data-chart="norm-groups"' in page
    assert 'href="models/norms-made/README.md"' in page
    # Patients are a group of their own.
    assert "<td>AD</td><td>12</td>" in page


def test_change_is_one_value_of_a_participant_and_does_not_depend_on_head_size() -> None:
    frame = pd.DataFrame(
        {
            "participant_id": ["a", "a", "b", "b"],
            "image_contrast": "T1w",
            "scan_number": [2, 1, 1, 2],
            "percent_per_year_bsi_L_whole": [-1.0, -1.0, np.nan, -0.5],
            "volume_mm3_L_whole": 3000.0,
        }
    )
    change, volume = norm_measures(frame)
    assert (is_change(change), needs_icv(change)) == (True, False)
    assert (is_change(volume), needs_icv(volume)) == (False, True)
    assert scored_rows(frame, change).tolist() == [False, True, False, True]
    assert scored_rows(frame, volume).all()


def test_a_change_is_flagged_if_any_scan_that_is_used_for_it_is() -> None:
    change = "percent_per_year_bsi_L_whole"
    people = {"a": (None, None), "b": (None, "unlike_L"), "c": ("low_agreement_L", None)}
    rows = [
        {
            "participant_id": name,
            "longitudinal_status": "used",
            "flags": by_itself if second else None,
            "longitudinal_flags": in_series if second else None,
        }
        for name, (by_itself, in_series) in people.items()
        for second in (False, True)
    ]
    refused = {"longitudinal_status": "refused", "longitudinal_flags": "different-head"}
    rows.append({"participant_id": "a", "flags": "low_agreement_L"} | refused)
    frame = pd.DataFrame(rows).assign(image_contrast="T1w", **{change: -1.0})
    assert flagged_rows(frame, change).tolist() == [False] * 2 + [True] * 4 + [False]
    volume = flagged_rows(frame, "volume_mm3_L_whole")
    assert volume.tolist() == [False] * 5 + [True] * 2


def test_flagged_changes_are_no_controls_and_have_a_remark(
    fitted: MadeStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "_FOLDS", 2)
    change = "percent_per_year_bsi_L_whole"
    n = 30
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "participant_id": np.repeat([f"sub-{i}" for i in range(n)], 2),
            "session_id": ["ses-1", "ses-2"] * n,
            "scan": [f"sub-{i}_ses-{k}" for i in range(n) for k in (1, 2)],
            "image_contrast": "T1w",
            "suffix": "T1w",
            "scan_number": [1, 2] * n,
            "flags": None,
            "longitudinal_status": "used",
            "longitudinal_flags": None,
            change: np.repeat(rng.normal(-1, 0.5, n), 2),
        }
    )
    # The second scans of two people contradict their first ones.
    frame.loc[[1, 3], "longitudinal_flags"] = "methods-disagree_L"
    frame.loc[:3, change] = -30.0
    people = frame[["participant_id"]].assign(
        age=np.repeat(rng.uniform(50, 80, n), 2), sex="F", icv=1.5e6, site="A", doubt=None
    )
    every = np.ones(len(frame), dtype=bool)
    found = fitting._fit(frame, people, every, fitted.settings(**OPTIONS), {})
    assert found.norms[change].facts["Participants"] == n - 2
    assert found.norms[change].facts["Values"][0] > -4
    nothing = pd.Series("", index=frame.index)
    scored = Scored(frame, people, nothing, nothing == "?")
    table = score_table(scored, found.norms, "made", found.own).set_index("participant_id")
    assert set(table.index[table["remarks"].str.contains("change is flagged", na=False)]) == {
        "sub-0",
        "sub-1",
    }
    assert set(table.index[table["control"] == "no"]) == {"sub-0", "sub-1"}
