"""Tables over all scans, of datasets that are not complete."""

from __future__ import annotations

import json
import logging
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from hyps_bids.app import _analyze
from hyps_bids.cohort.tables import write_group_tables
from hyps_bids.errors import MissingInput, NothingMatches, UsageError
from hyps_bids.outputs.columns import KEYS, table_columns
from hyps_bids.outputs.dataset import write_dataset_files
from hyps_bids.outputs.names import group_path, sidecar_path
from hyps_bids.outputs.reading import POSTHOC, WIDE, read_wide
from tests.raising import raises

LONGITUDINAL, MODELS = "desc-longitudinal_morph", "desc-models_morph"
STEMS = ["sub-01", "sub-02_ses-M00_run-01", "sub-02_ses-M12"]


def warnings_of(caplog: pytest.LogCaptureFixture, *facts: str) -> list[str]:
    """Return the warnings that state all facts."""
    texts = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    return [text for text in texts if all(fact in text for fact in facts)]


def test_complete(study: Any) -> None:
    for i, stem in enumerate(STEMS):
        study.scan(stem, 2000 + i, parts={})
    study.write_tables()
    morph, qc = study.group_table("morph"), study.group_table("qc")
    assert list(morph.columns) == list(table_columns("morph"))
    assert morph["participant_id"].tolist() == ["sub-01"] * 2 + ["sub-02"] * 4
    assert morph["session_id"].fillna("none").tolist()[::2] == ["none", "ses-M00", "ses-M12"]
    assert morph["scan"].tolist()[::2] == STEMS
    assert morph["voxels"].tolist()[::2] == [2000, 2001, 2002]
    assert list(qc.columns) == list(table_columns("qc"))
    assert qc["status"].tolist() == ["done"] * 3
    assert read_wide(study.output)["run"].fillna("none").tolist() == ["none", "01", "none"]
    for kind, table in (("morph", morph), ("qc", qc)):
        assert list(study.group_sidecar(kind)) == list(table.columns)
    # A second run writes the same files.
    before = {path: path.read_bytes() for path in study.output.glob("group_*")}
    study.write_tables()
    assert {path: path.read_bytes() for path in study.output.glob("group_*")} == before
    assert len(before) == 6


def test_missing_and_failed_scans_are_listed(study: Any, caplog: pytest.LogCaptureFixture) -> None:
    first, second, third = STEMS
    study.scan(first, None, None, flags="missing_L missing_R")
    study.failed_scan(second, "all voxels\nare  zero")
    study.image(third)
    study.write_tables()
    qc = study.group_table("qc")
    assert qc["scan"].tolist() == STEMS
    assert qc["status"].tolist() == ["done", "failed", "missing"]
    assert qc["reason"].tolist()[1:] == ["all voxels are zero", "no outputs yet"]
    assert qc["session_id"].tolist()[1:] == ["ses-M00", "ses-M12"]
    assert warnings_of(caplog, "1 scan", "failed", second)
    assert warnings_of(caplog, "1 scan", "without outputs", third)
    morph = study.group_table("morph")
    # A hippocampus that is not there has no volume, which is not a volume of zero.
    assert morph["scan"].unique().tolist() == [first]
    assert morph["voxels"].isna().all()


def test_counts_stay_whole_numbers(study: Any) -> None:
    study.scan("sub-01", 2000, 2000, parts={"hippocampus": 1.0}, border_voxels_L=1012)
    study.scan("sub-02", None, None, parts={"hippocampus": 1.0})
    study.write_tables()
    for kind, column, values in (
        ("morph", "voxels", ["2000"] * 4 + ["n/a"] * 4),
        ("morph", "index", ["1", "n/a"] * 4),
        ("qc", "border_voxels_L", ["1012", "n/a"]),
    ):
        header, *lines = group_path(study.output, kind).read_text().splitlines()
        place = header.split("\t").index(column)
        assert [line.split("\t")[place] for line in lines] == values


def test_all_failed(study: Any) -> None:
    for stem in STEMS:
        study.failed_scan(stem, "no brain")
    study.write_tables()
    assert study.group_table("qc")["status"].tolist() == ["failed"] * 3
    morph = study.group_table("morph")
    assert morph.empty
    assert list(morph.columns) == list(table_columns("morph"))


def test_nothing_to_gather(study: Any) -> None:
    study.image("sub-01")
    with raises(MissingInput, "scan-tables-missing", study.output):
        study.write_tables()
    assert list(study.output.iterdir()) == []
    with pytest.raises(NothingMatches):
        study.write_tables(participant_label=("nobody",))


def test_images_need_not_be_there(study: Any) -> None:
    study.scan("sub-01")
    image = study.raw / "sub-01/anat/sub-01_T1w.nii.gz"
    image.unlink()
    image.symlink_to("nowhere")
    assert study.write_tables()["status"].tolist() == ["done"]


def made_cohort(study: Any, n: int) -> None:
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
    made_cohort(study, 8)
    wide = study.write_tables(controls="group=well")
    pd.testing.assert_frame_equal(wide, read_wide(study.output))
    assert len(wide) == 16
    first = wide.iloc[0]
    assert list(wide.columns[:6]) == [*KEYS, "image_contrast", "status"]
    assert first["volume_mm3_bilateral_whole"] == pytest.approx(
        first["volume_mm3_L_whole"] + first["volume_mm3_R_whole"], abs=0.02
    )
    assert wide["group"].cat.categories.tolist() == ["well", "ill"]
    assert wide["site"].tolist()[:2] == ["00", "00"]
    assert wide["age"].dtype == "float64"
    assert (wide["adapter"] == "adapter-made").all()
    sidecar = study.group_sidecar(WIDE)
    assert list(sidecar) == list(wide.columns)
    without = [name for name, column in sidecar.items() if not column.get("Description")]
    assert sorted(without) == ["acq_time", "age", "site"]
    assert sidecar["group"]["Levels"] == {"well": "control", "ill": "patient"}
    adjustment = sidecar["icv_residual_mm3_L_whole"]["ICVAdjustment"]
    assert (adjustment["FittedOn"], adjustment["N"]) == ("group=well", 4)
    change = study.group_table(LONGITUDINAL)
    assert len(change) == 8 * 18
    assert change["mm3_per_year"].notna().all()
    assert not group_path(study.output, MODELS).exists()


def test_selections_are_respected(study: Any) -> None:
    made_cohort(study, 4)
    filters = study.raw.parent / "filters.json"
    filters.write_text(json.dumps({"t1w": {"session": "0", "subject": "02"}}))
    both = {"ses-0", "ses-1"}
    for option, value, participants, sessions in (
        ("participant_label", ("01", "03"), {"sub-01", "sub-03"}, both),
        ("exclude_participant_label", ("00", "01"), {"sub-02", "sub-03"}, both),
        ("session_label", ("1",), {f"sub-0{i}" for i in range(4)}, {"ses-1"}),
        ("bids_filter_file", filters, {"sub-02"}, {"ses-0"}),
    ):
        wide = study.write_tables(**{option: value})
        assert set(wide["participant_id"]) == participants, option
        assert set(wide["session_id"]) == sessions, option
        for kind in ("morph", "qc"):
            assert set(study.group_table(kind)["participant_id"]) == participants
    # The last selection has one session, so the change over time of the run before is removed.
    assert not group_path(study.output, LONGITUDINAL).exists()


def test_participants_that_disagree(study: Any, caplog: pytest.LogCaptureFixture) -> None:
    study.scan("sub-1")
    study.scan("sub-2")
    study.image("sub-3")
    study.table("participants.tsv", "participant_id age\nsub-1 70\nsub-3 71\nsub-4 72")
    wide = study.write_tables().set_index("participant_id")
    assert wide["status"].tolist() == ["done", "done", "missing", "missing"]
    assert wide.loc["sub-2", "remarks"] == "not in participants.tsv"
    assert wide.loc["sub-3", "reason"] == "no outputs yet"
    assert wide.loc["sub-4", "reason"] == "no T1w image in the dataset"
    assert wide["age"].fillna(-1).tolist() == [70, -1, 71, 72]
    assert len(warnings_of(caplog, "participants.tsv", "metadata", "sub-2")) == 1
    assert len(warnings_of(caplog, "participants.tsv", "T1w", "sub-4 ", "sub-2")) == 1
    selected = study.write_tables(participant_label=("1",))
    assert selected["participant_id"].tolist() == ["sub-1"]


def test_mixed_adapters_are_named(study: Any, caplog: pytest.LogCaptureFixture) -> None:
    study.scan("sub-1")
    study.scan("sub-2", adapter="adapter-mine", parts={"hippocampus": 1.0})
    study.scan("sub-3", version="0.0.2")
    wide = study.write_tables()
    assert wide["adapter"].tolist() == ["adapter-made", "adapter-mine", "adapter-made"]
    assert wide["volume_mm3_L_whole"].tolist() == [3000] * 3
    assert wide["volume_mm3_L_anterior"].fillna(0).tolist() == [1650, 0, 1650]
    assert warnings_of(caplog, "adapter-made", "adapter-mine", "0.0.1", "0.0.2", "sub-2")


def test_models(study: Any) -> None:
    made_cohort(study, 6)
    formulas = ("volume_mm3_L_whole ~ group", "asymmetry_whole ~ group")
    study.write_tables(model=formulas, controls="group=ill")
    table = study.group_table(MODELS)
    assert table["model"].unique().tolist() == list(formulas)
    assert set(table["method"]) == {"mixed"}
    assert "group[T.well]" in set(table["coefficient"])


def test_failing_models_stop_neither_each_other_nor_other_tables(
    study: Any, caplog: pytest.LogCaptureFixture
) -> None:
    made_cohort(study, 6)
    good, wrong = "volume_mm3_L_whole ~ group", ("volume ~ nonsense", "volume ~ age +")
    settings = study.settings(model=(wrong[0], good, wrong[1]), posthoc=("group",))
    assert set(write_group_tables(settings).failed_models) == {*wrong}
    table = study.group_table(MODELS).set_index("model")
    assert set(table.index) == {good, *wrong}
    # The reasons are in the table, where the report finds them.
    assert table.loc[list(wrong), "estimate"].isna().all()
    assert "nonsense" in table.loc[wrong[0], "warnings"]
    assert set(study.group_table(POSTHOC)["kind"]) == {"mean", "mean_difference"}
    assert set(study.group_sidecar(POSTHOC)) == set(study.group_table(POSTHOC))
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert [text for text in errors if "nonsense" in text]
    assert [text for text in errors if "age +" in text]
    # Models of an earlier table do not stay beside a new one, even if its formula is wrong.
    assert write_group_tables(study.settings(model=wrong[:1])).failed_models == wrong[:1]
    assert group_path(study.output, WIDE).exists()
    assert set(study.group_table(MODELS)["model"]) == {wrong[0]}
    assert not group_path(study.output, POSTHOC).exists()
    assert not sidecar_path(group_path(study.output, POSTHOC)).exists()


def test_a_model_that_cannot_be_fitted_ends_with_1(study: Any) -> None:
    made_cohort(study, 3)
    participants = study.raw / "participants.tsv"
    rows = participants.read_text().splitlines()
    constant = [rows[0] + "\tconstant", *(row + "\t1" for row in rows[1:])]
    participants.write_text("\n".join(constant) + "\n")
    settings = study.settings(model=("volume_mm3_L_whole ~ constant",))
    assert _analyze(settings) == 1
    table = study.group_table(MODELS)
    assert table["warnings"].str.contains("constant is 1", na=False).all()
    assert _analyze(study.settings(model=("volume_mm3_L_whole ~ 1",))) == 0


@pytest.mark.parametrize(
    ("options", "code", "facts"),
    [
        ({"controls": "diagnosis=CN"}, "controls-column-unknown", ("diagnosis", "group")),
        ({"controls": "group=CN"}, "controls-level-unknown", ("group", "ill, well")),
        ({"controls": "group"}, "controls-syntax", ("COLUMN=LEVEL",)),
    ],
)
def test_wrong_names(
    study: Any, options: dict[str, Any], code: str, facts: tuple[str, ...]
) -> None:
    made_cohort(study, 2)
    with raises(UsageError, code, *facts):
        study.write_tables(**options)
    # The other tables are written all the same.
    assert len(study.group_table("qc")) == 4


def test_phenotype_columns_on_request(study: Any) -> None:
    made_cohort(study, 2)
    study.table("phenotype/mmse.tsv", "participant_id session_id MMSE\nsub-00 ses-1 29")
    assert "MMSE" not in study.write_tables()
    wide = study.write_tables(covariates=("MMSE",))
    assert wide["MMSE"].fillna(0).tolist()[:2] == [0, 29]


def test_no_wide_table(tmp_path: Path) -> None:
    with pytest.raises(MissingInput):
        read_wide(tmp_path)


@pytest.mark.parametrize("broken", ["participants.tsv", "participants.json"])
def test_unreadable_metadata_stops_nothing(study: Any, broken: str) -> None:
    made_cohort(study, 2)
    (study.raw / broken).write_bytes(b"\xff\x00nonsense")
    assert len(study.write_tables()) >= 4


@pytest.mark.slow
def test_the_validator_accepts_the_tables(study: Any, validator: str) -> None:
    made_cohort(study, 4)
    write_dataset_files(study.settings(), labels=["anterior", "posterior"])
    study.write_tables(model=("volume_mm3_L_whole ~ age",), posthoc=("age",))
    names = {path.name for path in study.output.glob("group*tsv")}
    kinds = (WIDE, LONGITUDINAL, MODELS, POSTHOC)
    assert names >= {group_path(study.output, kind).name for kind in kinds}
    result = subprocess.run(
        [validator, str(study.output), "--format", "json"], capture_output=True, text=True
    )
    issues = json.loads(result.stdout)["issues"]["issues"]
    assert [issue for issue in issues if issue.get("severity") == "error"] == []


def test_heads_that_are_cut_off_do_not_decide_the_adjustment(
    study: Any, caplog: pytest.LogCaptureFixture
) -> None:
    for k in range(6):
        study.scan(f"sub-0{k}", 3000 + 10 * k, 3100 + 11 * k, icv=1.4e6 + 1e4 * k)
    study.scan("sub-10", None, 1000.0, icv=1.5e6)
    study.scan("sub-11", 2000.0, 2000.0, icv=0.7e6, flags="low_icv_mm3")
    study.write_tables()
    columns = study.group_sidecar(WIDE).values()
    made = [column["ICVAdjustment"] for column in columns if "ICVAdjustment" in column]
    assert {(one["N"], one["MeanICV"]) for one in made} == {(6, 1.425e6)}
    assert warnings_of(caplog, "ICV", "flagged", "sub-11")
    assert warnings_of(caplog, "ICV", "6 subjects", "all")
