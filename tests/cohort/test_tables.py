"""Tables over all scans, of datasets that are not complete."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from hyps_bids.cohort.gather import gather
from hyps_bids.cohort.tables import write_group_tables
from hyps_bids.errors import HypsError, MissingInput, NothingMatches, UsageError
from hyps_bids.outputs.columns import MORPH_COLUMNS, qc_columns
from hyps_bids.outputs.dataset import write_dataset_files
from hyps_bids.outputs.labels import label_table
from hyps_bids.outputs.names import output_path
from hyps_bids.outputs.reading import read_table, read_wide
from hyps_bids.outputs.scan import Scan
from hyps_bids.outputs.scan_files import write_failure
from hyps_bids.outputs.writing import write_json, write_table
from hyps_bids.settings import Settings

NAMES = (
    "sub-01/anat/sub-01_T1w.nii.gz",
    "sub-02/ses-M00/anat/sub-02_ses-M00_run-01_T1w.nii.gz",
    "sub-02/ses-M12/anat/sub-02_ses-M12_T1w.nii.gz",
)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    raw, output = tmp_path / "raw", tmp_path / "out"
    for name in NAMES:
        (raw / name).parent.mkdir(parents=True)
        nib.save(nib.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4)), raw / name)
    content = {"Name": "x", "BIDSVersion": "1.10.0"}
    (raw / "dataset_description.json").write_text(json.dumps(content))
    output.mkdir()
    return Settings(bids_dir=raw, output_dir=output, analysis_level="group")


def scans(settings: Settings) -> list[Scan]:
    return [Scan.from_path(settings.bids_dir / name) for name in NAMES]


def write_scan(settings: Settings, scan: Scan, voxels: int | None) -> None:
    def path(kind: str) -> Path:
        return output_path(
            settings.output_dir, scan, seg="hippocampus", suffix=kind, extension=".tsv"
        )

    morph = pd.DataFrame(
        {
            "index": pd.array([1, None], dtype="Int64"),
            "name": ["Left hippocampus", "Left hippocampus"],
            "hemi": "L",
            "part": ["hippocampus", "whole"],
            "voxels": pd.array([voxels, voxels], dtype="Int64"),
            "volume_mm3": None if voxels is None else voxels * 0.5,
            "volume_soft_mm3": None if voxels is None else voxels * 0.51,
            "icv_mm3": 1_500_123.25,
        },
        columns=list(MORPH_COLUMNS),
    )
    write_table(path("morph"), morph)
    row: dict[str, Any] = {"status": "done", "confidence_L": 0.95}
    if voxels is None:
        row["flags"] = "missing_L"
    else:
        row["border_voxels_L"] = 1012
    write_table(path("qc"), pd.DataFrame([row], columns=list(qc_columns())))
    write_json(path("qc").with_suffix(".json"), {})


def group(settings: Settings, kind: str) -> pd.DataFrame:
    return read_table(settings.output_dir / f"group_seg-hippocampus_{kind}.tsv")


def test_complete(settings: Settings) -> None:
    for i, scan in enumerate(scans(settings)):
        write_scan(settings, scan, 2000 + i)
    write_group_tables(settings)
    morph = group(settings, "morph")
    assert list(morph.columns) == ["participant_id", "session_id", "scan", *MORPH_COLUMNS]
    assert morph["participant_id"].tolist() == ["sub-01"] * 2 + ["sub-02"] * 4
    assert morph["session_id"].fillna("none").tolist()[::2] == ["none", "ses-M00", "ses-M12"]
    assert morph["scan"].tolist()[::2] == ["sub-01", "sub-02_ses-M00_run-01", "sub-02_ses-M12"]
    assert morph["voxels"].tolist()[::2] == [2000, 2001, 2002]
    qc = group(settings, "qc")
    assert list(qc.columns) == ["participant_id", "session_id", "scan", *qc_columns()]
    assert qc["status"].tolist() == ["done"] * 3
    for kind, table in (("morph", morph), ("qc", qc)):
        path = settings.output_dir / f"group_seg-hippocampus_{kind}.json"
        assert set(json.loads(path.read_text())) == set(table.columns)


def test_missing_and_failed_scans_are_listed(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    first, second, third = scans(settings)
    write_scan(settings, first, None)
    write_failure(second, settings.output_dir, "all voxels\nare  zero")
    write_group_tables(settings)
    qc = group(settings, "qc")
    assert qc["scan"].tolist() == [first.stem, second.stem, third.stem]
    assert qc["status"].tolist() == ["done", "failed", "missing"]
    assert qc["reason"].tolist()[1] == "all voxels are zero"
    assert qc["session_id"].tolist()[1:] == ["ses-M00", "ses-M12"]
    assert qc["reason"].tolist()[2] == "no outputs yet"
    assert f"no outputs yet of 1 scan: {third.stem}" in caplog.text
    assert f"1 scan failed: {second.stem}" in caplog.text
    morph = group(settings, "morph")
    # a hippocampus that is not there has no volume, not one of zero
    assert morph["scan"].unique().tolist() == [first.stem]
    assert morph["voxels"].isna().all()


def test_counts_stay_whole_numbers(settings: Settings) -> None:
    first, second, _ = scans(settings)
    write_scan(settings, first, 2000)
    write_scan(settings, second, None)
    write_group_tables(settings)
    for kind, column, values in (
        ("morph", "voxels", ["2000", "2000", "n/a", "n/a"]),
        ("morph", "index", ["1", "n/a", "1", "n/a"]),
        ("qc", "border_voxels_L", ["1012", "n/a", "n/a"]),
    ):
        lines = (settings.output_dir / f"group_seg-hippocampus_{kind}.tsv").read_text().splitlines()
        place = lines[0].split("\t").index(column)
        assert [line.split("\t")[place] for line in lines[1:]] == values


def test_all_failed(settings: Settings) -> None:
    for scan in scans(settings):
        write_failure(scan, settings.output_dir, "no brain")
    write_group_tables(settings)
    assert group(settings, "qc")["status"].tolist() == ["failed"] * 3
    morph = group(settings, "morph")
    assert morph.empty
    assert list(morph.columns) == ["participant_id", "session_id", "scan", *MORPH_COLUMNS]


def test_nothing_to_gather(settings: Settings) -> None:
    assert gather(settings.output_dir).qc.empty
    with pytest.raises(MissingInput, match="participant level first"):
        write_group_tables(settings)
    assert list(settings.output_dir.iterdir()) == []


def test_images_need_not_be_there(settings: Settings) -> None:
    for scan in scans(settings):
        write_scan(settings, scan, 2000)
        scan.path.unlink()
        scan.path.symlink_to("nowhere")
    write_group_tables(settings)
    assert group(settings, "qc")["status"].tolist() == ["done"] * 3


def test_numeric_labels_stay_text(settings: Settings) -> None:
    write_scan(settings, scans(settings)[0], 2000)
    frame = gather(settings.output_dir).morph
    assert frame["participant_id"].tolist() == ["sub-01"] * 2


def test_second_time_gives_the_same(settings: Settings) -> None:
    for scan in scans(settings):
        write_scan(settings, scan, 2000)
    write_group_tables(settings)
    before = {path: path.read_bytes() for path in settings.output_dir.glob("group_*")}
    write_group_tables(settings)
    assert {path: path.read_bytes() for path in settings.output_dir.glob("group_*")} == before
    assert len(before) == 6


def test_unknown_participant(settings: Settings) -> None:
    write_scan(settings, scans(settings)[0], 2000)
    wrong = Settings(
        bids_dir=settings.bids_dir,
        output_dir=settings.output_dir,
        analysis_level="group",
        participant_label=("nobody",),
    )
    with pytest.raises(NothingMatches):
        write_group_tables(wrong)


WIDE = "group_seg-hippocampus_desc-wide_morph.tsv"
LONGITUDINAL = "group_seg-hippocampus_desc-longitudinal_morph.tsv"
MODELS = "group_seg-hippocampus_desc-models_morph.tsv"


def made_cohort(study: Any, n: int = 12) -> None:
    """Half of the made subjects are ill; each has two sessions a year apart."""
    rng = np.random.default_rng(0)
    people, levels = ["participant_id group site age"], {"well": "control", "ill": "patient"}
    for i in range(n):
        name, ill = f"sub-{i:02d}", i % 2
        people.append(f"{name} {('well', 'ill')[ill]} 0{i % 3} {60 + i}")
        size, icv = rng.normal(3000 - 300 * ill, 100), rng.normal(1.5e6, 1e5)
        for year in (0, 1):
            left, right = size * rng.normal(1, 0.02, 2) - 100 * year
            study.scan(f"{name}_ses-{year}", left, right, icv=icv)
        dates = [f"{year} 200{year}-01-01T00:00:00" for year in (0, 1)]
        study.table(f"{name}/{name}_sessions.tsv", "\n".join(["session_id acq_time", *dates]))
    study.table("participants.tsv", "\n".join(people))
    described = {"group": {"Description": "Who", "Levels": levels}}
    (study.raw / "participants.json").write_text(json.dumps(described))


def test_wide_table(study: Any) -> None:
    made_cohort(study)
    wide = write_group_tables(study.settings(controls="group=well"))
    pd.testing.assert_frame_equal(wide, read_wide(study.output))
    assert len(wide) == 24
    first = wide.iloc[0]
    assert list(wide.columns[:4]) == ["participant_id", "session_id", "scan", "status"]
    assert first["volume_mm3_bilateral_whole"] == pytest.approx(
        first["volume_mm3_L_whole"] + first["volume_mm3_R_whole"], abs=0.02
    )
    assert wide["group"].cat.categories.tolist() == ["well", "ill"]
    assert wide["site"].tolist()[:2] == ["00", "00"]
    assert wide["age"].dtype == "float64"
    assert (wide["adapter"] == "adapter-made").all()
    sidecar = json.loads((study.output / WIDE).with_suffix(".json").read_text())
    assert list(sidecar) == list(wide.columns)
    assert all(
        column.get("Description") or name in "site age acq_time" for name, column in sidecar.items()
    )
    assert sidecar["group"]["Levels"] == {"well": "control", "ill": "patient"}
    adjustment = sidecar["icv_residual_mm3_L_whole"]["ICVAdjustment"]
    assert (adjustment["FittedOn"], adjustment["N"]) == ("group=well", 6)
    change = read_table(study.output / LONGITUDINAL)
    assert len(change) == 12 * 18
    assert change["mm3_per_year"].notna().all()
    assert not (study.output / MODELS).exists()


def test_selections_are_respected(study: Any) -> None:
    made_cohort(study, 6)
    cases = {
        "participant_label": (("01", "04"), {"sub-01", "sub-04"}, {"ses-0", "ses-1"}),
        "exclude_participant_label": (
            ("00", "01", "02", "03"),
            {"sub-04", "sub-05"},
            {"ses-0", "ses-1"},
        ),
        "session_label": (("1",), {f"sub-0{i}" for i in range(6)}, {"ses-1"}),
    }
    filters = study.raw.parent / "filters.json"
    filters.write_text(json.dumps({"t1w": {"session": "0", "subject": "02"}}))
    cases["bids_filter_file"] = (filters, {"sub-02"}, {"ses-0"})
    for option, (value, participants, sessions) in cases.items():
        wide = write_group_tables(study.settings(**{option: value}))
        assert set(wide["participant_id"]) == participants, option
        assert set(wide["session_id"]) == sessions, option
        for kind in ("morph", "qc"):
            table = read_table(study.output / f"group_seg-hippocampus_{kind}.tsv")
            assert set(table["participant_id"]) == participants
    # the last had one session: the change over time of the run before is gone
    assert not (study.output / LONGITUDINAL).exists()


def test_participants_that_disagree(study: Any, caplog: pytest.LogCaptureFixture) -> None:
    study.scan("sub-1")
    study.scan("sub-2")
    study.image("sub-3")
    study.table("participants.tsv", "participant_id age\nsub-1 70\nsub-3 71\nsub-4 72")
    wide = write_group_tables(study.settings()).set_index("participant_id")
    assert wide["status"].to_dict() == {
        "sub-1": "done",
        "sub-2": "done",
        "sub-3": "missing",
        "sub-4": "missing",
    }
    assert wide.loc["sub-2", "remarks"] == "not in participants.tsv"
    assert wide.loc["sub-3", "reason"] == "no outputs yet"
    assert wide.loc["sub-4", "reason"] == "no T1w image in the dataset"
    assert wide["age"].fillna(-1).tolist() == [70, -1, 71, 72]
    assert "not in participants.tsv: sub-2" in caplog.text
    assert "in participants.tsv, but without a T1w image: sub-4" in caplog.text
    selected = write_group_tables(study.settings(participant_label=("1",)))
    assert selected["participant_id"].tolist() == ["sub-1"]


def test_mixed_adapters_are_named(study: Any, caplog: pytest.LogCaptureFixture) -> None:
    study.scan("sub-1")
    study.scan("sub-2", adapter="adapter-mine", parts={"hippocampus": 1.0})
    study.scan("sub-3", version="0.0.2")
    wide = write_group_tables(study.settings())
    assert wide["adapter"].tolist() == ["adapter-made", "adapter-mine", "adapter-made"]
    assert wide["volume_mm3_L_whole"].tolist() == [3000] * 3
    assert wide["volume_mm3_L_anterior"].fillna(0).tolist() == [1650, 0, 1650]
    (text,) = [r.getMessage() for r in caplog.records if "should not be mixed" in r.getMessage()]
    for word in ("adapter-made", "adapter-mine", "0.0.1", "0.0.2", "such as sub-2"):
        assert word in text


def test_a_single_part(study: Any) -> None:
    for i in range(4):
        study.scan(f"sub-{i}", 3000 + i**2, 2800 - i**3, icv=1e6 + i, parts={"hippocampus": 1.0})
    wide = write_group_tables(study.settings(model=("volume ~ icv",)))
    assert [name for name in wide if name.startswith("volume_mm3")] == [
        "volume_mm3_L_whole",
        "volume_mm3_R_whole",
        "volume_mm3_bilateral_whole",
    ]
    assert read_table(study.output / MODELS)["measure"].nunique() == 3


def test_models(study: Any) -> None:
    made_cohort(study)
    formula = "volume ~ group + age + icv"
    settings = study.settings(model=(formula, "asymmetry ~ group"), controls="group=ill")
    write_group_tables(settings)
    table = read_table(study.output / MODELS)
    assert table["model"].unique().tolist() == list(settings.model)
    assert set(table["method"].dropna()) <= {"mixed", "ols"}
    assert "group[T.well]" in set(table["coefficient"])
    write_group_tables(study.settings())
    assert not (study.output / MODELS).exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"controls": "diagnosis=CN"}, "no column diagnosis"),
        ({"controls": "group=CN"}, "group is ill, well"),
        ({"controls": "group"}, "COLUMN=LEVEL"),
        ({"model": ("volume ~ diagnosis",)}, "no column diagnosis; there are participant_id"),
    ],
)
def test_wrong_names(study: Any, options: dict[str, Any], message: str) -> None:
    made_cohort(study, 4)
    with pytest.raises(UsageError, match=message):
        write_group_tables(study.settings(**options))
    # what can be done is done
    assert len(group(study.settings(), "qc")) == 8


def test_phenotype_columns_on_request(study: Any) -> None:
    made_cohort(study, 4)
    study.table("phenotype/mmse.tsv", "participant_id session_id MMSE\nsub-00 ses-1 29")
    assert "MMSE" not in write_group_tables(study.settings())
    wide = write_group_tables(study.settings(covariates=("MMSE",)))
    assert wide["MMSE"].fillna(0).tolist()[:2] == [0, 29]


def test_no_wide_table(tmp_path: Path) -> None:
    with pytest.raises(MissingInput, match="run the group level first"):
        read_wide(tmp_path)


@pytest.mark.parametrize("broken", ["participants.tsv", "participants.json"])
def test_unreadable_metadata_stops_nothing(study: Any, broken: str) -> None:
    made_cohort(study, 4)
    (study.raw / broken).write_bytes(b"\xff\x00nonsense")
    assert len(write_group_tables(study.settings())) >= 8


def test_the_validator_accepts_the_tables(study: Any, validator: str) -> None:
    made_cohort(study, 4)
    labels = label_table(["anterior", "posterior"])
    write_dataset_files(study.settings(), labels=labels)
    write_group_tables(study.settings(model=("volume ~ age",)))
    assert {path.name for path in study.output.glob("group*tsv")} >= {WIDE, LONGITUDINAL, MODELS}
    result = subprocess.run(
        [validator, str(study.output), "--format", "json"], capture_output=True, text=True
    )
    issues = json.loads(result.stdout)["issues"]["issues"]
    assert [issue for issue in issues if issue.get("severity") == "error"] == []


def test_errors_are_ours(study: Any) -> None:
    with pytest.raises(HypsError):
        write_group_tables(study.settings())


def test_heads_that_are_cut_off_do_not_decide_the_adjustment(
    study: Any, caplog: pytest.LogCaptureFixture
) -> None:
    for k in range(6):
        study.scan(f"sub-0{k}", 3000 + 10 * k, 3100 + 11 * k, icv=1.4e6 + 1e4 * k)
    study.scan("sub-10", None, 1000.0, icv=1.5e6)
    study.scan("sub-11", 2000.0, 2000.0, icv=0.7e6, flags="low_icv_mm3")
    write_group_tables(study.settings())
    sidecar = json.loads((study.output / WIDE).with_suffix(".json").read_text())
    made = [about["ICVAdjustment"] for about in sidecar.values() if "ICVAdjustment" in about]
    assert {(one["N"], one["MeanICV"]) for one in made} == {(6, 1.425e6)}
    assert "ICV is flagged: sub-11" in caplog.text


def test_models_of_an_older_table_do_not_stay(study: Any) -> None:
    for k in range(6):
        study.scan(f"sub-0{k}", 3000 + 10 * k, 3100 + 11 * k, icv=1.4e6 + 1e4 * k)
    write_group_tables(study.settings(model=("volume ~ icv",)))
    assert (study.output / MODELS).exists()
    with pytest.raises(UsageError):
        write_group_tables(study.settings(model=("volume ~ nonsense",)))
    assert (study.output / WIDE).exists()
    assert not (study.output / MODELS).exists()
