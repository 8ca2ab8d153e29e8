"""Stored norms, applied to the scans of other datasets and to single scans."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest

from hyps_bids.app import run
from hyps_bids.cohort.gather import find_outputs
from hyps_bids.errors import BadData
from hyps_bids.norms.apply import apply_to_scans
from hyps_bids.norms.checks import check_run
from hyps_bids.norms.folder import load_folder
from hyps_bids.outputs.names import norms_path, sidecar_path
from hyps_bids.outputs.reading import NORMS, read_table
from hyps_bids.outputs.scan import Scan
from hyps_bids.outputs.scan_files import write_failure
from hyps_bids.outputs.writing import write_json, write_table
from hyps_bids.reports.norms import NormSection, build_norm_sections
from hyps_bids.reports.scan_facts import find_scans_of
from tests.cohort.study import MadeStudy
from tests.norms.made import make_people
from tests.raising import raises

BOTH = "volume_mm3_bilateral_whole"
#: A man of 60 with a volume that is that of the controls' mean.
PARTICIPANT = "participant_id age sex scanner\nsub-x 60 M A"


@pytest.fixture
def other(tmp_path: Path) -> MadeStudy:
    """Another dataset, of one man whose hippocampi are about as large as those of controls."""
    study = MadeStudy.create(tmp_path / "other")
    (study.raw / "dataset_description.json").write_text('{"Name": "Other", "BIDSVersion": "1.8.0"}')
    study.table("participants.tsv", PARTICIPANT)
    study.scan("sub-x", 3570, 3550, icv=1.5e6, version="0.2.0")
    return study


def apply(study: MadeStudy, norms: Path, stems: Sequence[str] = ("sub-x",)) -> pd.DataFrame:
    """Apply norms as the participant level does; returns the table of the first scan."""
    settings = study.settings(apply_norms=norms)
    scans = [Scan.from_stem(stem) for stem in stems]
    assert apply_to_scans(settings, load_folder(norms), scans) == []
    return read_table(norms_path(scans[0], study.output)).set_index("measure")


def sections(study: MadeStudy, stems: Sequence[str] = ("sub-x",)) -> list[NormSection]:
    return build_norm_sections(
        study.raw, study.output, [(Scan.from_stem(stem), stem) for stem in stems]
    )


def test_a_scan_is_compared_with_controls_and_shown(other: MadeStudy, norms: Path) -> None:
    row = apply(other, norms).loc[BOTH]
    assert 25 < row["centile"] < 75
    assert row["centile_low"] < row["centile"] < row["centile_high"]
    assert (row["age"], row["sex"], row["site"], row["control"]) == (60, "M", "A", "no")
    (section,) = sections(other)
    assert [chart.title for chart in section.charts] == [
        "Left hippocampus",
        "Right hippocampus",
        "Both hippocampi",
    ]
    text = section.charts[2].sentences[0]
    assert text.startswith("7,120 mm³, larger than ")
    assert "% of controls of this age, sex and head size (95 % interval " in text
    svg = str(section.charts[2].svg)
    # The person is the only dot, and five curves have their labels.
    assert svg.count("<circle") == 1
    assert all(f">{centile}<" in svg for centile in (5, 25, 50, 75, 95))


def test_tables_follow_the_scan_and_the_dataset(other: MadeStudy, norms: Path) -> None:
    before = apply(other, norms).loc[BOTH, "centile"]
    path = norms_path(Scan.from_stem("sub-x"), other.output)
    when = path.stat().st_mtime_ns, sidecar_path(path).stat().st_mtime_ns
    apply(other, norms)
    assert when == (path.stat().st_mtime_ns, sidecar_path(path).stat().st_mtime_ns)
    other.table("participants.tsv", PARTICIPANT.replace("60", "35"))
    younger = apply(other, norms).loc[BOTH, "centile"]
    # The same volume is less for a younger man.
    assert younger < before - 10
    other.scan("sub-x", 2500, 2500, icv=1.5e6, version="0.2.0")
    assert apply(other, norms).loc[BOTH, "centile"] < 1
    write_failure(Scan.from_stem("sub-x"), other.output, "broken")
    assert not path.exists()
    assert not sidecar_path(path).exists()


def test_norms_of_earlier_results_are_not_shown(
    other: MadeStudy, norms: Path, caplog: pytest.LogCaptureFixture
) -> None:
    apply(other, norms)
    mark = other.sidecar("sub-x")
    mark.write_text(json.dumps(json.loads(mark.read_text()) | {"Fingerprint": "new"}))
    assert sections(other) == []
    assert "--apply-norms" in caplog.text


@pytest.mark.parametrize(
    ("table", "shown"),
    [
        (PARTICIPANT + "\nsub-y 30 F B", True),
        (PARTICIPANT.replace("60", "61"), False),
        (PARTICIPANT.replace("M", "F"), False),
    ],
)
def test_norms_for_another_age_or_sex_are_not_shown(
    other: MadeStudy, norms: Path, table: str, shown: bool, caplog: pytest.LogCaptureFixture
) -> None:
    apply(other, norms)
    other.table("participants.tsv", table)
    assert bool(sections(other)) == shown
    assert ("another age or sex" in caplog.text) != shown


def test_centiles_of_earlier_changes_are_not_shown(
    other: MadeStudy, norms: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The table of norms of a first scan gets a change, whose series is then made again."""
    stems = ["sub-x_ses-1", "sub-x_ses-2"]
    for stem in stems:
        other.scan(stem, 3570, 3550, icv=1.5e6, version="0.2.0")
    other.series(stems, {"L": -1.0, "R": -1.0}, Fingerprint="series")
    apply(other, norms, stems)
    path = norms_path(Scan.from_stem(stems[0]), other.output)
    table = read_table(path)
    row = table[table["measure"] == "volume_mm3_L_whole"]
    change = "percent_per_year_bsi_L_whole"
    write_table(path, pd.concat([table, row.assign(measure=change)]))
    sidecar = json.loads(sidecar_path(path).read_text())
    about = sidecar["Measures"]["volume_mm3_L_whole"]
    sidecar["Measures"][change] = about | {"Title": "change", "Units": "%/year", "Change": True}
    sidecar["Curves"][change] = sidecar["Curves"]["volume_mm3_L_whole"]
    write_json(sidecar_path(path), sidecar)

    def titles() -> list[str]:
        (section,) = sections(other, stems[:1])
        return [chart.title for chart in section.charts]

    assert titles()[-1] == "Change"
    assert "not shown" not in caplog.text
    other.series(stems, {"L": -3.0, "R": -1.0}, Fingerprint="later")
    assert "Change" not in titles()
    assert len(titles()) == 3
    assert "sub-x_ses-1 over time" in caplog.text
    # A series whose other scan was made again is of earlier results, too.
    other.series(stems, {"L": -1.0, "R": -1.0}, Fingerprint="series")
    assert titles()[-1] == "Change"
    other.scan(stems[1], 3000, 3000, icv=1.5e6, version="0.2.0")
    assert "Change" not in titles()


def test_a_dataset_that_stands_for_its_scanner_is_named(
    other: MadeStudy, norms: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other.table("participants.tsv", "participant_id age sex\nsub-x 60 M")
    apply(other, norms)
    assert "called Other after the dataset" in caplog.text


@pytest.mark.parametrize("damage", ["", "suffix\tmeasure\n1", "measure\tcentile\nx\t1\t2\n"])
def test_damaged_tables_are_not_shown(other: MadeStudy, norms: Path, damage: str) -> None:
    apply(other, norms)
    norms_path(Scan.from_stem("sub-x"), other.output).write_text(damage)
    assert sections(other) == []


def test_tables_of_norms_are_no_scans(other: MadeStudy, norms: Path) -> None:
    apply(other, norms)
    assert find_outputs(other.output).stems == ["sub-x"]
    assert [scan.stem for scan in find_scans_of(other.output, "x")] == ["sub-x"]


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        (PARTICIPANT.replace(" 60", " n/a"), "age is not known"),
        (PARTICIPANT.replace(" 60", " 95"), "age is outside"),
        (PARTICIPANT.replace(" M", " n/a"), "sex is not known"),
        ("participant_id\nsub-y", "is not known"),
    ],
)
def test_what_is_not_known_of_a_person_gives_no_centile(
    other: MadeStudy, norms: Path, table: str, reason: str
) -> None:
    other.table("participants.tsv", table)
    rows = apply(other, norms)
    assert rows["centile"].isna().all()
    assert rows["reason"].str.contains(reason).all()
    (section,) = sections(other)
    assert section.charts == []
    assert any(reason in text for text in section.cautions)


def test_a_flagged_head_size_leaves_only_what_does_not_need_it(
    other: MadeStudy, norms: Path
) -> None:
    other.scan("sub-x", 3570, 3550, version="0.2.0", flags="high_icv_cut", review="yes")
    rows = apply(other, norms)
    assert rows.loc[BOTH, "reason"] == "the intracranial volume is flagged"
    assert rows.loc["asymmetry_whole", "centile"] > 0
    assert "flagged" in rows.loc["asymmetry_whole", "remarks"]


@pytest.mark.slow
def test_other_weights_and_contrasts_have_no_centile(other: MadeStudy, norms: Path) -> None:
    other.scan("sub-x_run-2", adapter="adapter-new", version="0.2.0")
    other.scan("sub-x_space-T2w", version="0.2.0")
    apply(other, norms, ["sub-x", "sub-x_run-2", "sub-x_space-T2w"])
    for stem, reason in (("sub-x_run-2", "other weights"), ("sub-x_space-T2w", "another contrast")):
        rows = read_table(norms_path(Scan.from_stem(stem), other.output))
        assert rows["centile"].isna().all()
        assert rows["reason"].str.contains(reason).all()
    with raises(BadData, "weights-differ", "adapter-new"):
        apply(other, norms, ["sub-x_run-2"])
    with raises(BadData, "image-contrast-differs", "T2w"):
        apply(other, norms, ["sub-x_space-T2w"])


def test_weights_of_a_run_are_checked_before_it_begins(other: MadeStudy, norms: Path) -> None:
    stored = load_folder(norms)
    provenance = json.loads(other.sidecar("sub-x").read_text())
    check_run(stored, provenance)
    provenance["Models"]["Adapter"]["SHA256"] = "3" * 64
    with raises(BadData, "weights-differ", "33333333"):
        check_run(stored, provenance)


@pytest.mark.slow
def test_other_labels_and_units_are_refused(other: MadeStudy, copied: MadeStudy) -> None:
    norms = copied.output / "models" / "norms-made"
    card = json.loads((norms / "norms.json").read_text())
    changed = card | {"Labels": ["Left head"]}
    (norms / "norms.json").write_text(json.dumps(changed))
    (other.output / "seg-hippocampus_dseg.tsv").write_text("index\tname\n1\tLeft hippocampus\n")
    with raises(BadData, "labels-differ", "Left head", "Left hippocampus"):
        apply(other, norms)
    card["Measures"][BOTH]["Units"] = "ml"
    (norms / "norms.json").write_text(json.dumps(card))
    with raises(BadData, "units-differ", BOTH, "ml"):
        apply(other, norms)


@pytest.mark.slow
def test_scans_of_an_unknown_site_are_marked(
    other: MadeStudy, norms: Path, caplog: pytest.LogCaptureFixture
) -> None:
    apply(other, norms)
    # The site has the name of one of the norms, in another dataset.
    assert "same names" in caplog.text
    other.table("participants.tsv", PARTICIPANT.replace(" A", " Z"))
    rows = apply(other, norms)
    assert rows["centile"].notna().all()
    assert rows["remarks"].str.contains("uncalibrated").all()
    (section,) = sections(other)
    assert "Uncalibrated" in section.cautions[0].capitalize()
    # Without a column of sites, the dataset is the site.
    other.table("participants.tsv", "participant_id age sex\nsub-x 60 M")
    rows = apply(other, norms)
    assert set(rows["site"]) == {"Other"}
    assert rows["remarks"].str.contains("uncalibrated").all()


@pytest.mark.slow
def test_a_new_site_is_calibrated_by_its_own_controls(
    tmp_path: Path, norms: Path, caplog: pytest.LogCaptureFixture
) -> None:
    study = make_people(tmp_path / "new", 40, 10, seed=3, sites=("N",), shift=-400)
    (study.raw / "dataset_description.json").write_text('{"Name": "New", "BIDSVersion": "1.8.0"}')
    caplog.set_level("INFO", "hyps_bids")

    def z_of_controls(**options: object) -> pd.DataFrame:
        assert run(study.settings(apply_norms=norms, **options)) == 0
        rows = study.group_table(NORMS)
        return rows[(rows["measure"] == BOTH) & (rows["scan"] < "sub-041")]

    before = z_of_controls()
    assert before["remarks"].str.contains("uncalibrated").all()
    # The shift of both sides is 800 mm3, and the SD 500 mm3.
    assert -2.2 < before["z"].mean() < -1.1
    after = z_of_controls(controls="diagnosis=CN", site="scanner")
    assert abs(after["z"].mean()) < 0.25
    assert not after["remarks"].str.contains("uncalibrated", na=False).any()
    # Those who measured the offset are held out one by one.
    assert set(after["control"].iloc[2:]) == {"yes"}
    assert "N was measured from 38 controls" in caplog.text
    # The same norms serve single scans, of patients and of the controls who calibrated them.
    calibrated = study.output / "models" / f"{norms.name}-calibrated"
    rows = apply(study, calibrated, ["sub-045", "sub-010"])
    group = study.group_table(NORMS).set_index(["scan", "measure"])
    assert rows.loc[BOTH, "centile"] == pytest.approx(group.loc[("sub-045", BOTH), "centile"])
    assert rows["remarks"].isna().all()
    control = read_table(norms_path(Scan.from_stem("sub-010"), study.output))
    assert control["remarks"].str.contains("among the controls").all()
    assert "N (38)" in (calibrated / "README.md").read_text()
    assert load_folder(calibrated).card["Dataset"] == load_folder(norms).card["Dataset"]


@pytest.mark.slow
def test_a_new_site_with_few_controls_stays_uncalibrated(
    tmp_path: Path, norms: Path, caplog: pytest.LogCaptureFixture
) -> None:
    study = make_people(tmp_path / "new", 8, 4, sites=("N",), flagged=0)
    settings = study.settings(apply_norms=norms, controls="diagnosis=CN", site="scanner")
    assert run(settings) == 0
    assert study.group_table(NORMS)["remarks"].str.contains("uncalibrated").all()
    assert "N (8)" in caplog.text


@pytest.mark.slow
def test_only_controls_that_can_be_used_calibrate_a_site(
    tmp_path: Path, norms: Path, caplog: pytest.LogCaptureFixture
) -> None:
    study = make_people(tmp_path / "new", 14, 4, sites=("N",), flagged=0)
    path = study.raw / "participants.tsv"
    table = pd.read_csv(path, sep="\t")
    # Enough controls are there, but the age of most is not known.
    table.loc[5:11, "age"] = None
    table.to_csv(path, sep="\t", index=False, na_rep="n/a")
    settings = study.settings(apply_norms=norms, controls="diagnosis=CN", site="scanner")
    assert run(settings) == 0
    rows = study.group_table(NORMS)
    known = rows[rows["centile"].notna()]
    assert known["remarks"].str.contains("uncalibrated").all()
    assert "N (7)" in caplog.text


@pytest.mark.slow
def test_controls_of_the_norms_are_recognized_in_their_dataset(
    fitted: MadeStudy, copied: MadeStudy, norms: Path
) -> None:
    rows = apply(copied, norms, ["sub-010", "sub-065"])
    assert rows["remarks"].str.contains("among the controls").all()
    rows = read_table(norms_path(Scan.from_stem("sub-065"), copied.output))
    assert rows["remarks"].isna().all()
