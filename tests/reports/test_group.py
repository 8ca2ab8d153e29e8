"""The group report says what the tables say, and it can always be made."""

from __future__ import annotations

import base64
import gzip
import json
import logging
import re
import shutil
from pathlib import Path
from typing import Any

import html5lib
import pandas as pd
import pytest

from hyps_bids.errors import MissingInput
from hyps_bids.outputs.columns import ADDED_CHANGE_COLUMNS, CHANGE_COLUMNS
from hyps_bids.outputs.names import group_path, sidecar_path
from hyps_bids.outputs.reading import CHANGE, WIDE
from hyps_bids.outputs.writing import write_table
from hyps_bids.reports.group import write_group_report
from hyps_bids.reports.group_facts import GroupFacts, describe_group
from hyps_bids.reports.models import TrainedModel, _add_metrics
from tests.cohort.study import MadeStudy
from tests.raising import raises
from tests.reports.simulated import NASTY, ODD_COLUMN, wide_table, write_derivatives, write_models


def unpacked(html: str, identifier: str) -> Any:
    """Return data as the page's script gets them."""
    found = re.search(f'id="{identifier}">([^<]*)<', html)
    assert found is not None
    return json.loads(gzip.decompress(base64.b64decode(found[1])))


def described(n: int = 40, reports: tuple[str, ...] = (), **cells: dict[int, object]) -> GroupFacts:
    """Describe simulated scans after changing cells of the wide table: column → row → value."""
    wide, qc = wide_table(n)
    for column, values in cells.items():
        for row, value in values.items():
            wide.loc[row, column] = value
    return describe_group(wide, qc, {}, reports)


def test_every_state_is_counted_and_reasons_are_words() -> None:
    group = described()
    assert group.counts == {"failed": 1, "absent": 1, "flagged": 2, "outlier": 1, "done": 35}
    notes = {one.scan: one.notes for one in group.conspicuous}
    assert [one.state for one in group.conspicuous][:2] == ["failed", "absent"]
    assert notes["sub-0001"][0].short == f"not an image: {NASTY}"
    flag = notes["sub-0005"][0]
    assert flag.short == "low confidence, left"
    assert "0.61, below the bound of 0.8" in flag.finding
    assert flag.advice
    assert notes["sub-0004"][0].short == "outlier: small left hippocampus"
    assert "robust z −" in notes["sub-0004"][0].finding


def test_missing_sides_unknown_flags_and_participants_without_a_scan() -> None:
    absent = {"status": {8: "missing"}, "reason": {8: "no T1w"}, "scan": {8: None}}
    group = described(9, flags={5: "missing_R low_asymmetry something_new"}, **absent)
    assert group.n_without_side == 1
    notes = {one.scan: one.notes for one in group.conspicuous}
    assert [note.short for note in notes["sub-0006"]] == [
        *("no right hippocampus", "left much smaller than right", "something_new")
    ]
    assert [note.short for note in notes["sub-0009"]] == ["no T1w"]
    assert group.counts["absent"] == 2
    # There are too few scans to look for outliers.
    assert (group.counts["outlier"], group.n_outlier_scans) == (0, 0)


def test_numbers_are_those_of_the_tables_and_links_those_of_reports() -> None:
    cells = {"icv_mm3": {2: 1_234_449.6}, "volume_mm3_L_whole": {2: 12_345.49}}
    data = described(12, ("sub-0003.html",), **cells).data
    # If they were rounded twice, they would be 1235 and 12,346.
    assert round(data["icv"][2] or 0) == 1234
    assert round(data["left"][2] or 0) == 12_345
    assert {i: href for i, href in enumerate(data["href"]) if href} == {
        2: "sub-0003.html#scan-sub-0003"
    }


def test_columns_to_compare_are_found() -> None:
    data = described().data
    labels = [c["label"] for c in data["categories"]]
    assert labels[data["defaults"]["group"]] == "diagnosis"
    assert labels[data["defaults"]["color"]] == "sex"
    assert data["numbers"][data["defaults"]["number"]]["label"] == "age"
    assert ODD_COLUMN in labels
    assert "education" not in labels
    group = described(street={i: f"street {i % 13}" for i in range(40)})
    assert group.not_offered == ["street (13 levels: too many)"]
    assert "street" not in [c["label"] for c in group.data["categories"]]


def test_the_report_of_everything_is_valid_and_escapes(everything: Path) -> None:
    text = everything.read_text()
    html5lib.HTMLParser(strict=True).parse(text)
    assert "<img src=x" not in text
    assert "Simulated &lt;b&gt;" in text
    assert not re.search(r'(src|href)="https?:', text)
    assert unpacked(text, "group-data")["notes"][0][0][0] == f"not an image: {NASTY}"
    targets = re.findall(r'(?:aria-labelledby="|href="#)([^"]+)"', text)
    assert len(targets) == 12 + 16
    assert all(f'id="{target}"' in text for target in targets)
    assert "volume ~ diagnosis + age + sex" in text
    assert "diagnosis: AD against CN" in text
    assert 'href="models/classifier-AD-vs-CN/README.md"' in text
    assert 'href="models/adapter-my%20protocol/adapter.md"' in text
    assert re.search(r"headline\">AUC 0\.\d\d \[", text)
    assert "12 hippocampi of 6 participants" in text
    assert "not shown" not in text
    specs = unpacked(text, "charts")
    for kind, n in (("classifier-0-", 5), ("adapter-0-", 5), ("forest-0-", 3)):
        assert sum(name.startswith(kind) for name in specs) == n


def test_a_copy_gives_the_same_report_and_damage_costs_only_its_own_part(
    everything: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(everything.parent, tmp_path, dirs_exist_ok=True)
    (tmp_path / everything.name).unlink()
    assert write_group_report(tmp_path).read_bytes() == everything.read_bytes()
    folder = tmp_path / "models" / "classifier-AD-vs-CN"
    (folder / "classifier.json").write_text("{")
    (folder / "roc.tsv").unlink()
    text = write_group_report(tmp_path).read_text()
    assert text.count("not shown") == 2
    assert re.search(r"not shown</span> classifier\.json", text)
    assert re.search(r"not shown</span> roc\.tsv", text)
    assert "Confusion matrix" in text
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert str(folder / "classifier.json") in record.getMessage()


def test_mixed_weights_are_warned_of(tmp_path: Path) -> None:
    write_derivatives(tmp_path, 12, mixed=True)
    assert "Mixed versions or weights" in write_group_report(tmp_path).read_text()
    write_derivatives(tmp_path, 12)
    assert "Mixed versions or weights" not in write_group_report(tmp_path).read_text()


def test_models_that_could_not_be_fitted_say_why(tmp_path: Path) -> None:
    write_derivatives(tmp_path, 12)
    write_models(tmp_path, "volume ~ C(noise)")
    text = write_group_report(tmp_path).read_text()
    assert "volume ~ C(noise)" in text
    assert "nan" not in text.split('id="models"')[1].split("</section>")[0]


@pytest.mark.parametrize("content", [None, "[", "[]"])
def test_a_table_without_its_sidecar_is_an_error(tmp_path: Path, content: str | None) -> None:
    write_derivatives(tmp_path, 12)
    path = group_path(tmp_path, WIDE)
    sidecar_path(path).unlink()
    if content is not None:
        sidecar_path(path).write_text(content)
    with raises(MissingInput, "group-tables-unreadable", path):
        write_group_report(tmp_path)


@pytest.mark.parametrize(
    ("kind", "content"),
    [("models", b"model\tmeasure\n"), ("models", b"\xff\xfe"), ("longitudinal", b"")],
)
def test_a_damaged_optional_table_is_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str, content: bytes
) -> None:
    write_derivatives(tmp_path, 12)
    path = group_path(tmp_path, f"desc-{kind}_morph")
    path.write_bytes(content)
    text = write_group_report(tmp_path).read_text()
    assert path.name in caplog.text
    assert 'id="scans"' in text
    assert 'id="models"' not in text
    assert 'id="change"' not in text


def test_change_of_an_earlier_version_is_of_t1w_images(tmp_path: Path) -> None:
    slopes = {"mm3_per_year": -20.0, "percent_per_year": -1.5}
    row = dict.fromkeys(CHANGE_COLUMNS, 1.0) | slopes | {"remarks": None}
    row |= {"participant_id": "sub-1", "measure": "volume_mm3_L_whole", "time_source": "age"}
    table = pd.DataFrame([row]).drop(columns=["image_contrast", *ADDED_CHANGE_COLUMNS])
    write_derivatives(tmp_path, 12)
    write_table(group_path(tmp_path, CHANGE), table)
    text = write_group_report(tmp_path).read_text()
    (shown,) = re.findall(
        r'<th scope="row">each scan alone</th><td>left.*?</tr>', text, re.IGNORECASE
    )
    assert "T1w" not in shown
    assert "1.50" in shown


def test_change_by_method_and_scans_to_look_at(tmp_path: Path) -> None:
    study = MadeStudy.create(tmp_path)
    for subject in ("sub-1", "sub-2"):
        stems = [f"{subject}_ses-{k}" for k in (1, 2, 3)]
        for stem in stems:
            study.scan(stem)
        dates = "session_id acq_time\nses-1 2001-01-01\nses-2 2002-01-01\nses-3 2002-01-01T06:00:00"
        study.table(f"{subject}/{subject}_sessions.tsv", dates)
        refused = {"sub-2_ses-2": f"Another head {NASTY}"} if subject == "sub-2" else {}
        used = [stem for stem in stems if stem != "sub-1_ses-2"]
        if subject == "sub-1":
            study.path("sub-1_ses-2", "qc").unlink()
        study.series(used, {"L": -2.0, "R": -1.0}, refused=refused, error=0.5)
    wide = study.write_tables()
    change = study.group_table(CHANGE)
    sidecar = study.group_sidecar("desc-wide_morph")
    group = describe_group(wide, study.group_table("qc"), sidecar, {"sub-2.html"}, change)
    annual = group.data["annual"]
    assert annual is not None
    assert annual["methods"] == ["longitudinal volumes", "boundary shift", "each scan alone"]
    by_subject = {wide["participant_id"][row["i"]]: row for row in annual["rows"]}
    assert by_subject["sub-2"]["L"][0] == pytest.approx([-2, -2.98, -1.02])
    assert by_subject["sub-2"]["R"][1][0] == -1
    # One scan of sub-2 is of another head, so there is no line through its own volumes.
    assert by_subject["sub-2"]["L"][2] is None
    assert by_subject["sub-1"]["L"][2][0] == pytest.approx(0, abs=1e-6)
    assert annual["t"][9] == pytest.approx(2.2281)
    assert group.n_followed == 2
    (one,) = group.followed
    assert (one.scan, one.state, one.href) == (
        "sub-2_ses-2",
        "refused",
        "sub-2.html#scan-sub-2_ses-2",
    )
    text = write_group_report(study.output).read_text()
    assert NASTY not in text
    assert "2 participants have longitudinal results" in text


def test_nothing_done_and_no_metadata(tmp_path: Path) -> None:
    wide = write_derivatives(tmp_path, 4)
    keys = ["participant_id", "session_id", "scan", "flags", "remarks"]
    failed = wide[keys].assign(status="failed", reason="no")
    made_by = {"software_version": None, "models": None, "adapter": None}
    write_table(group_path(tmp_path, WIDE), failed.assign(**made_by))
    text = write_group_report(tmp_path).read_text()
    assert re.search(r'class="total">4</span>\s*failed', text)
    assert "no volumes" in text


def test_a_thousand_scans_are_small(thousand: Path) -> None:
    assert thousand.stat().st_size < 2e6


@pytest.mark.parametrize(
    ("sets", "doubtful", "first"),
    [
        (("volumes", "both"), False, "both"),
        (("volumes", "both"), True, "volumes"),
        (("volumes", "both", "both_reduced"), True, "both_reduced"),
    ],
)
def test_the_headline_has_no_doubtful_covariates(
    tmp_path: Path, sets: tuple[str, ...], doubtful: bool, first: str
) -> None:
    rows = [
        {"validation": validation, "features": features, "estimator": "selected", "figure": "auc"}
        | {"value": value, "low": 0.5, "high": 0.9}
        for validation, value in (("cross-validation", 0.7), ("held-out", 0.8))
        for features in sets
    ]
    write_table(tmp_path / "figures.tsv", pd.DataFrame(rows))
    model = TrainedModel("a", "b", doubtful=doubtful)
    model.read(tmp_path / "figures.tsv", _add_metrics)
    assert model.headline == f"AUC 0.70 [0.50-0.90]; features: {first}"
