"""Images of several contrasts in one dataset: what is in which table, and what is never mixed."""

from __future__ import annotations

import json
import logging

import numpy as np
import pandas as pd
import pytest

from hyps_bids.cohort.annual_change import annual_change
from hyps_bids.cohort.image_contrasts import refuse_several
from hyps_bids.cohort.statistics import fit_formulas
from hyps_bids.errors import MissingInput, UsageError
from hyps_bids.outputs.names import group_path
from hyps_bids.outputs.reading import CHANGE, WIDE, read_wide
from tests.cohort.study import MadeStudy
from tests.raising import raises

SIDES = {"T1w": 3000.0, "T2w": 2400.0}


@pytest.fixture(scope="module")
def contrasts(tmp_path_factory: pytest.TempPathFactory) -> MadeStudy:
    """Four participants with two sessions of T1w; the first three have a T2w in each as well."""
    study = MadeStudy.create(tmp_path_factory.mktemp("contrasts"))
    people = [f"sub-{n}" for n in range(1, 5)]
    study.table("participants.tsv", "participant_id age\n" + "\n".join(f"{p} 70" for p in people))
    for n, name in enumerate(people):
        rows = ["filename acq_time"]
        for s in (1, 2):
            icv = 1.4e6 + 1e5 * n + 1e4 * s
            for suffix, mm3 in SIDES.items():
                if suffix == "T2w" and n == 3:
                    continue
                space = "" if suffix == "T1w" else "_space-T2w"
                # The slopes over ICV differ between the contrasts: 1 mm³ and 2 mm³ per 1000 mm³.
                slope = 1e-3 if suffix == "T1w" else 2e-3
                study.scan(f"{name}_ses-{s}{space}", mm3 + slope * icv, mm3, icv=icv)
                # T2w images were made a year after those of T1w.
                year = 2000 + 3 * s + (suffix == "T2w")
                image = f"anat/{name}_ses-{s}_{suffix}.nii.gz"
                rows.append(f"{image} {year}-06-01T12:00:00")
            study.table(f"{name}/ses-{s}/{name}_ses-{s}_scans.tsv", "\n".join([rows[0], *rows[1:]]))
            rows = rows[:1]
    return study


def row_of(wide: pd.DataFrame, scan: str) -> pd.Series:
    (row,) = wide[wide["scan"] == scan].to_dict("records")
    return pd.Series(row)


@pytest.fixture(scope="module")
def both(contrasts: MadeStudy) -> pd.DataFrame:
    """Write the table of both contrasts."""
    return contrasts.write_tables(suffix=("T1w", "T2w"))


def test_each_contrast_has_its_own_tables(
    contrasts: MadeStudy, both: pd.DataFrame, caplog: pytest.LogCaptureFixture
) -> None:
    before = {p: p.read_bytes() for p in contrasts.output.glob("group_*")}
    t2w = contrasts.write_tables(suffix=("T2w",))
    assert group_path(contrasts.output, WIDE, ["T2w"]).name.startswith("group_space-T2w_seg-")
    assert t2w.loc[t2w["status"] == "done", "scan"].tolist() == [
        f"sub-{n}_ses-{s}_space-T2w" for n in (1, 2, 3) for s in (1, 2)
    ]
    assert not group_path(contrasts.output, WIDE).exists()
    missing = t2w[t2w["status"] == "missing"].iloc[0]
    assert (missing["participant_id"], missing["suffix"]) == ("sub-4", "T2w")
    assert "T2w" in missing["reason"]
    # Only T1w unless others are asked for, and a line says what else is there.
    before |= {p: p.read_bytes() for p in contrasts.output.glob("group_*")}
    caplog.set_level(logging.INFO)
    t1w = contrasts.write_tables()
    assert set(t1w["suffix"]) == set(t1w["image_contrast"]) == {"T1w"}
    assert len(t1w) == 8
    assert set(contrasts.group_table("morph")["suffix"]) == {"T1w"}
    (text,) = [r.getMessage() for r in caplog.records if "--suffix T2w" in r.getMessage()]
    assert "6 scans" in text
    # No table replaces another one, and the rows of a contrast are the same in each of them.
    assert {p: p.read_bytes() for p in before} == before
    pd.testing.assert_frame_equal(both, read_wide(contrasts.output, ["T2w", "T1w"]))
    assert both["suffix"].value_counts().to_dict() == {"T1w": 8, "T2w": 7}
    for alone in (t1w, t2w):
        part = both[both["suffix"] == alone["suffix"].iloc[0]].reset_index(drop=True)
        pd.testing.assert_frame_equal(part[list(alone)], alone)


def test_other_contrasts_are_no_further_times(contrasts: MadeStudy, both: pd.DataFrame) -> None:
    first, second = (row_of(both, f"sub-1_ses-{s}_space-T2w") for s in (1, 2))
    assert (first["scan_number"], second["scan_number"]) == (1, 2)
    assert first["years_since_first_scan"] == 0
    assert second["years_since_first_scan"] == pytest.approx(3, abs=0.01)
    assert row_of(both, "sub-1_ses-2")["acq_time"].startswith("2006")
    assert second["acq_time"].startswith("2007")
    path = group_path(contrasts.output, CHANGE, ["T1w", "T2w"])
    assert path.is_file()
    table = annual_change(both[both["status"] == "done"])
    left = table[table["measure"] == "volume_mm3_L_whole"]
    assert left["n_scans"].tolist() == [2] * 7
    assert left["image_contrast"].tolist() == ["T1w", "T2w"] * 3 + ["T1w"]
    slopes = left["mm3_per_year"].tolist()
    assert slopes == pytest.approx([10 / 3, 20 / 3] * 3 + [10 / 3], rel=1e-2)


def test_each_contrast_is_adjusted_by_its_own_line(
    contrasts: MadeStudy, both: pd.DataFrame
) -> None:
    path = group_path(contrasts.output, WIDE, ["T1w", "T2w"])
    described = json.loads(path.with_suffix(".json").read_text())["icv_residual_mm3_L_whole"]
    assert "ICVAdjustment" not in described
    found = described["ICVAdjustments"]
    assert found["T1w"]["Slope"] == pytest.approx(1e-3)
    assert found["T2w"]["Slope"] == pytest.approx(2e-3)
    assert (found["T1w"]["N"], found["T2w"]["N"]) == (4, 3)
    # The volumes are straight lines of ICV, so that nothing but the contrast's mean is left.
    for contrast, rows in both[both["status"] == "done"].groupby("image_contrast"):
        mean = SIDES[str(contrast)] + found[contrast]["Slope"] * found[contrast]["MeanICV"]
        assert np.allclose(rows["icv_residual_mm3_L_whole"], mean)


def test_outputs_of_other_contrasts_alone(study: MadeStudy) -> None:
    study.scan("sub-01_space-FLAIR")
    study.image("sub-01")
    with raises(MissingInput, "scan-tables-missing", "--suffix FLAIR"):
        study.write_tables()
    assert study.write_tables(suffix=("FLAIR",))["status"].tolist() == ["done"]


def test_contrast_agent_is_another_contrast(study: MadeStudy) -> None:
    for n in range(1, 4):
        study.scan(f"sub-{n}", 3000 + n, icv=1.4e6 + n)
        study.scan(f"sub-{n}_ce-gadolinium", 2000 + n, icv=1.3e6 + n)
        study.scan(f"sub-{n}_run-2", 3000 + n, icv=1.4e6 + n)
    wide = study.write_tables()
    assert set(wide["suffix"]) == {"T1w"}
    assert wide.loc[wide["ce"].notna(), "image_contrast"].unique() == ["ce-gadolinium_T1w"]
    # Runs are repeated scans, as before, and an enhanced image is not one of them.
    numbers = wide.set_index("scan")["scan_number"]
    stems = ["sub-1", "sub-1_run-2", "sub-1_ce-gadolinium"]
    assert numbers[stems].tolist() == [1, 2, 1]
    with raises(UsageError, "contrasts-pooled", "ce-gadolinium_T1w", '{"t1w": {"ceagent": null}}'):
        refuse_several(wide, "a classifier")
    # Two agents: leaving out both would leave nothing.
    agents = wide.assign(image_contrast=["ce-a_T1w", "ce-b_T1w", "echo-1_T2w"] * 3)
    with raises(UsageError, "contrasts-pooled", '--suffix T1w and {"t1w": {"ceagent": "a"}}'):
        refuse_several(agents, "a classifier")
    # The column suffix cannot tell them apart.
    with pytest.raises(UsageError):
        refuse_several(wide, "--model", ["suffix"])
    refuse_several(wide, "--model", ["image_contrast"])


def pooled(n: int = 24, *, seed: int = 0) -> pd.DataFrame:
    """Scans of two contrasts of each subject, whose volumes differ by 500 mm³."""
    rng = np.random.default_rng(seed)
    own = rng.normal(3000, 200, n)
    frames = [
        pd.DataFrame(
            {
                "participant_id": [f"sub-{i}" for i in range(n)],
                "scan": [f"sub-{i}{suffix}" for i in range(n)],
                "status": "done",
                "suffix": suffix,
                "image_contrast": suffix,
                "sick": ["yes", "no"] * (n // 2),
                "site": ["a", "a", "b", "b"] * (n // 4),
                "volume_mm3_L_whole": own - 500 * (suffix == "T2w") + rng.normal(0, 20, n),
            }
        )
        for suffix in ("T1w", "T2w")
    ]
    return pd.concat(frames, ignore_index=True)


def test_models_do_not_mix_contrasts_without_being_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    frame = pooled()
    fitted = fit_formulas(frame, ["volume ~ sick", "volume ~ sick + suffix"], posthoc=["suffix"])
    assert fitted.failed == ("volume ~ sick",)
    (error,) = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    for fact in ("T1w (24 scans)", "T2w (24 scans)", "--suffix T1w", "image_contrast"):
        assert fact in error
    rows = fitted.models[fitted.models["coefficient"] == "suffix[T.T2w]"]
    assert rows["estimate"].item() == pytest.approx(-500, abs=15)
    # The scans of a subject depend on each other, so that this is known to a few mm³.
    assert rows["method"].item().startswith("mixed")
    assert rows["se"].item() < 15
    assert rows["n_subjects"].item() == 24
    difference = fitted.posthoc[fitted.posthoc["kind"] == "mean_difference"]
    assert difference["estimate"].item() == pytest.approx(500, abs=15)
    one = frame[frame["suffix"] == "T2w"]
    assert fit_formulas(one, ["volume ~ sick"]).failed == ()
    refused = fit_formulas(frame, ["volume ~ sick + suffix"], site="site")
    assert refused.failed == ("volume ~ sick + suffix",)
    assert "--harmonize" in refused.models["warnings"].item()
