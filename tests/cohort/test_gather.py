"""Gather complete and damaged outputs of the participant level."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from hyps_bids.cohort.gather import find_outputs, gather
from hyps_bids.outputs.columns import table_columns
from hyps_bids.outputs.reading import read_table
from hyps_bids.outputs.writing import write_table


def reason(study: Any, stem: str) -> str:
    qc = gather(find_outputs(study.output)).qc.set_index("scan")
    assert qc.loc[stem, "status"] == "failed"
    return qc.loc[stem, "reason"]


def test_all_scans_are_found_once(study: Any) -> None:
    for stem in ("sub-02", "sub-01_ses-B_run-1", "sub-01_ses-A_acq-x"):
        study.scan(stem)
    # An interrupted writer leaves a partial file; the other table is not ours.
    hidden = study.path("sub-02", "qc").with_name(".0123abcd.sub-02_seg-hippocampus_qc.tsv")
    hidden.write_text("half")
    study.path("sub-02", "qc").with_name("sub-02_seg-other_qc.tsv").write_text("x")
    (study.output / "sub-03").mkdir()
    found = gather(find_outputs(study.output))
    stems = ["sub-01_ses-A_acq-x", "sub-01_ses-B_run-1", "sub-02"]
    assert found.qc["scan"].tolist() == stems
    assert found.qc["session_id"].fillna("none").tolist() == ["ses-A", "ses-B", "none"]
    assert found.morph["scan"].tolist() == [stem for stem in stems for _ in range(6)]
    assert found.morph["volume_mm3"].dtype == "float64"
    assert list(found.qc.columns) == list(table_columns("qc"))
    # A recent partial file may belong to a writer that is still at work.
    assert hidden.exists()
    os.utime(hidden, (0, 0))
    gather(find_outputs(study.output))
    assert not hidden.exists()


def test_selection_is_by_name(study: Any) -> None:
    for stem in ("sub-1", "sub-11"):
        study.scan(stem)
    paths = find_outputs(study.output, lambda scan: scan.subject == "1")
    assert [list(files) for files in paths.tables.values()] == [["sub-1"], ["sub-1"]]


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        ("qc", b"", "empty"),
        ("qc", b"status\treason\n", "empty"),
        ("qc", b"state\ndone\n", "no column status"),
        ("qc", b"status\ndone\ndone\n", "more than one row"),
        ("qc", b"status\ticv_mm3\ndone\tlarge\n", "icv_mm3 is 'large', not a number"),
        ("morph", b"hemi\tpart\tvolume_mm3\tvolume_soft_mm3\nL\twhole\t1\n", "different lengths"),
        ("morph", "häß".encode("latin-1"), "not UTF-8"),
        ("morph", b"hemi\tpart\n", "empty"),
    ],
)
def test_damaged_tables(study: Any, kind: str, content: bytes, message: str) -> None:
    study.scan("sub-01")
    study.scan("sub-02")
    study.path("sub-01", kind).write_bytes(content)
    assert message in reason(study, "sub-01")
    assert "run the participant level again" in reason(study, "sub-01")
    assert study.path("sub-01", kind).name in reason(study, "sub-01")
    found = gather(find_outputs(study.output))
    assert set(found.morph["scan"]) == {"sub-02"}
    assert found.qc["status"].tolist() == ["failed", "done"]
    # Damage in one file does not turn the numbers of the others into text.
    assert found.morph["volume_mm3"].dtype == "float64"
    assert found.qc["icv_mm3"].tolist()[1] == 1.5e6


def test_incomplete_scans(study: Any) -> None:
    for stem in ("sub-01", "sub-02", "sub-03", "sub-04"):
        study.scan(stem)
    study.path("sub-01", "morph").unlink()
    study.path("sub-02", "qc").unlink()
    study.sidecar("sub-04").unlink()
    assert reason(study, "sub-01").startswith("no volume table")
    assert reason(study, "sub-02").startswith("no QC table")
    assert reason(study, "sub-04").startswith("no QC sidecar")
    assert set(gather(find_outputs(study.output)).morph["scan"]) == {"sub-03"}


def test_failed_scan_keeps_its_reason(study: Any) -> None:
    study.scan("sub-01")
    study.failed_scan("sub-01", 'file "x" is\nnot an image')
    found = gather(find_outputs(study.output))
    assert found.qc["reason"].tolist() == ['file "x" is not an image']
    assert found.morph.empty
    assert found.provenance.empty


def test_tables_of_other_versions(study: Any) -> None:
    study.scan("sub-01")
    study.scan("sub-02", version="9.9")
    path = study.path("sub-02", "morph")
    frame = read_table(path).drop(columns="voxels").assign(surface_mm2=7.5, method="new")
    write_table(path, frame)
    found = gather(find_outputs(study.output))
    morph = found.morph.set_index("scan")
    assert list(found.morph.columns) == [*table_columns("morph"), "surface_mm2", "method"]
    assert morph.loc["sub-01", "surface_mm2"].isna().all()
    assert morph.loc["sub-02", "voxels"].isna().all()
    assert morph.loc["sub-02", "surface_mm2"].tolist() == [7.5] * 6
    assert morph.loc["sub-02", "method"].tolist() == ["new"] * 6
    assert found.provenance["software_version"].tolist() == ["0.0.1", "9.9"]


def test_tables_that_do_not_say_what_to_review(study: Any) -> None:
    for stem, flags in {"sub-01": None, "sub-02": "low_confidence_L"}.items():
        study.scan(stem, confidence_L=0.7)
        path = study.path(stem, "qc")
        frame = read_table(path).drop(columns=["review", "reasons"], errors="ignore")
        write_table(path, frame.assign(flags=flags))
    study.failed_scan("sub-03", "not an image")
    found = gather(find_outputs(study.output)).qc
    assert found["review"].fillna("n/a").tolist() == ["no", "yes", "n/a"]
    assert found["reasons"].isna().tolist() == [True, False, True]
    for fact in ("(left)", "0.7", "0.8"):
        assert fact in found["reasons"][1]
    assert found["expected_dice_L"].isna().all()


def test_models_of_the_volumes(study: Any) -> None:
    for stem in ("sub-01", "sub-03"):
        study.scan(stem)
    study.sidecar("sub-03").write_text('{"Models": []}')
    made = gather(find_outputs(study.output)).provenance.set_index("scan")
    assert made.loc["sub-01"].tolist() == [
        "0.0.1",
        "adapter-made",
        "localizer-made:11111111 adapter-made:22222222 n4:none",
    ]
    assert made.loc["sub-03"].isna().all()


def test_nothing_there(tmp_path: Path) -> None:
    found = gather(find_outputs(tmp_path))
    assert found.qc.empty
    assert found.morph.empty
    assert list(found.morph.columns) == list(table_columns("morph"))
    assert found.provenance.empty
