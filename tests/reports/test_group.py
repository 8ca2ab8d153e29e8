"""What the group report says, and that it can always be made."""

from __future__ import annotations

import base64
import gzip
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import html5lib
import numpy as np
import pandas as pd
import pytest

from hyps_bids.errors import MissingInput
from hyps_bids.outputs.writing import write_table
from hyps_bids.reports.cohort import describe_cohort, robust_z
from hyps_bids.reports.group import write_group_report
from tests.reports.simulated import (
    NASTY,
    ODD_COLUMN,
    START,
    wide_table,
    write_adapter,
    write_change,
    write_classifier,
    write_derivatives,
    write_models,
)


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset with all there can be."""
    output = tmp_path_factory.mktemp("everything")
    write_derivatives(output, 40, sessions=2)
    write_models(output)
    write_classifier(output)
    write_adapter(output)
    write_change(output)
    return output


def unpacked(path: Path, identifier: str):
    """What the page's script gets."""
    text = re.search(f'id="{identifier}">([^<]*)<', path.read_text()).group(1)
    return json.loads(gzip.decompress(base64.b64decode(text)))


def described(n: int = 40, reports: tuple[str, ...] = ()):
    wide, qc = wide_table(n)
    return describe_cohort(wide, qc, {}, reports)


def test_every_state_is_counted_and_reasons_are_words() -> None:
    cohort = described()
    assert cohort.counts == {"failed": 1, "absent": 1, "flagged": 2, "outlier": 1, "done": 35}
    by_scan = {one["scan"]: one for one in cohort.conspicuous}
    assert [one["state"] for one in cohort.conspicuous][:2] == ["failed", "absent"]
    assert by_scan["sub-0001"]["notes"][0][0] == f"not an image: {NASTY}"
    short, got, meaning = by_scan["sub-0005"]["notes"][0]
    assert short == "low confidence, left"
    assert got == "0.61, below 0.8."
    assert meaning.startswith("The network was unsure")
    outlier = by_scan["sub-0004"]["notes"]
    assert outlier[0][0] == "outlier: small left hippocampus"
    assert "robust z −" in outlier[0][1]


def test_a_side_that_was_not_found_is_said() -> None:
    wide, qc = wide_table(12)
    wide.loc[5, "flags"] = "missing_R low_asymmetry something_new"
    cohort = describe_cohort(wide, qc, {}, ())
    assert cohort.n_without_side == 1
    notes = {one["scan"]: one["notes"] for one in cohort.conspicuous}
    assert [short for short, *_ in notes["sub-0006"]] == [
        *("no right hippocampus", "left much smaller than right", "something_new")
    ]


def test_participants_without_a_scan_are_absent() -> None:
    wide, qc = wide_table(12)
    for name in ("sub-x", "sub-y"):
        wide.loc[len(wide)] = {"participant_id": name, "status": "missing", "reason": "no T1w"}
    cohort = describe_cohort(wide, qc, {}, ())
    assert cohort.counts["absent"] == 3
    assert [one["scan"] for one in cohort.conspicuous if one["state"] == "absent"][1] == "sub-x"


def test_few_scans_have_no_outliers() -> None:
    cohort = described(8)
    assert cohort.counts["outlier"] == 0
    assert cohort.n_outlier_scans == 0


def test_robust_z_is_that_of_a_normal_distribution() -> None:
    values = pd.Series(np.random.default_rng(0).normal(10, 3, 20_000))
    assert robust_z(values).std() == pytest.approx(1, abs=0.03)
    assert robust_z(pd.Series([1.0, 1.0, 1.0, 5.0])).isna().all(), "no spread, no outliers"


def test_only_reports_that_exist_are_linked() -> None:
    data = described(reports=("sub-0003.html",)).data
    assert data["href"][2] == "sub-0003.html#scan-sub-0003"
    assert [href for href in data["href"] if href] == ["sub-0003.html#scan-sub-0003"]


def test_numbers_are_those_of_the_tables() -> None:
    wide, qc = wide_table(12)
    wide.loc[2, "icv_mm3"] = 1_234_449.6
    wide.loc[2, "volume_mm3_L_whole"] = 12_345.49
    data = describe_cohort(wide, qc, {}, ()).data
    # rounded twice, they would be 1235 and 12,346
    assert round(data["icv"][2]) == 1234
    assert round(data["left"][2]) == 12_345


def test_columns_to_compare_are_found() -> None:
    data = described().data
    labels = [c["label"] for c in data["categories"]]
    assert labels[data["defaults"]["group"]] == "diagnosis"
    assert labels[data["defaults"]["color"]] == "sex"
    assert data["numbers"][data["defaults"]["number"]]["label"] == "age"
    assert ODD_COLUMN in labels
    assert "education" not in labels
    wide, qc = wide_table(40)
    wide["street"] = [f"street {i % 13}" for i in range(40)]
    cohort = describe_cohort(wide, qc, {}, ())
    assert cohort.not_offered == ["street (13 levels: too many)"]
    assert "street" not in [c["label"] for c in cohort.data["categories"]]


def test_the_report_is_valid_html_and_escapes(everything: Path) -> None:
    path = write_group_report(everything)
    text = path.read_text()
    html5lib.HTMLParser(strict=True).parse(text)
    assert "<img src=x" not in text
    assert "Simulated &lt;b&gt;" in text
    assert not re.search(r'(src|href)="https?:', text)
    assert unpacked(path, "cohort")["notes"][0][0][0] == f"not an image: {NASTY}"


def test_the_same_tables_give_the_same_report(everything: Path) -> None:
    first = write_group_report(everything).read_bytes()
    (everything / "group_report.html").unlink()
    assert write_group_report(everything).read_bytes() == first


def test_models_are_all_there(everything: Path) -> None:
    text = write_group_report(everything).read_text()
    assert "volume ~ diagnosis + age + sex" in text
    assert "diagnosis: AD against CN" in text
    assert 'href="models/classifier-AD-vs-CN/README.md"' in text
    assert 'href="models/adapter-my%20protocol/adapter.md"' in text
    assert re.search(r"headline\">AUC 0\.\d\d \[", text)
    assert "12 hippocampi of 6 participants" in text
    assert "not shown" not in text
    specs = unpacked(everything / "group_report.html", "charts")
    for kind, n in (("classifier-0-", 5), ("adapter-0-", 5), ("forest-0-", 3)):
        assert sum(name.startswith(kind) for name in specs) == n


def test_adapters_alone_make_a_report(tmp_path: Path) -> None:
    write_adapter(tmp_path)
    text = write_group_report(tmp_path).read_text()
    html5lib.HTMLParser(strict=True).parse(text)
    assert "no group tables" in text
    assert "adapter-my protocol" in text


def test_a_damaged_folder_is_said_and_costs_nothing_else(
    everything: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(everything, tmp_path, dirs_exist_ok=True)
    folder = tmp_path / "models" / "classifier-AD-vs-CN"
    (folder / "classifier.json").write_text("{")
    (folder / "roc.tsv").unlink()
    text = write_group_report(tmp_path).read_text()
    assert "classifier.json cannot be shown" in text
    assert "roc.tsv is not there" in text
    assert "Confusion matrix" in text
    assert "classifier.json" in caplog.text


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


def test_a_table_without_its_sidecar_is_an_error_with_advice(tmp_path: Path) -> None:
    write_derivatives(tmp_path, 12)
    (tmp_path / f"{START}desc-wide_morph.json").unlink()
    with pytest.raises(MissingInput, match="run the group level again"):
        write_group_report(tmp_path)


@pytest.mark.parametrize(
    ("kind", "content"),
    [("models", b"model\tmeasure\n"), ("models", b"\xff\xfe"), ("longitudinal", b"")],
)
def test_a_damaged_optional_table_is_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str, content: bytes
) -> None:
    write_derivatives(tmp_path, 12)
    path = tmp_path / f"{START}desc-{kind}_morph.tsv"
    path.write_bytes(content)
    text = write_group_report(tmp_path).read_text()
    assert path.name in caplog.text
    assert 'id="scans"' in text
    assert 'id="models"' not in text
    assert 'id="change"' not in text


def test_nothing_done_and_no_metadata(tmp_path: Path) -> None:
    wide = write_derivatives(tmp_path, 4)
    keys = ["participant_id", "session_id", "scan", "flags", "remarks"]
    failed = wide[keys].assign(status="failed", reason="no")
    made_by = {"software_version": None, "models": None, "adapter": None}
    write_table(tmp_path / f"{START}desc-wide_morph.tsv", failed.assign(**made_by))
    text = write_group_report(tmp_path).read_text()
    assert "No volumes." in text


def test_a_thousand_scans_are_small(tmp_path: Path) -> None:
    write_derivatives(tmp_path, 1000)
    assert write_group_report(tmp_path).stat().st_size < 2e6


def test_making_a_report_needs_nothing_heavy() -> None:
    code = (
        "import sys, hyps_bids.reports.group; "
        "print({'torch', 'sklearn', 'nipype', 'statsmodels', 'matplotlib'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"
