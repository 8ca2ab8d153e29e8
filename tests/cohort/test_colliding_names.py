"""Columns of the user may have any name, also one that we use ourselves."""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import hyps_bids
from hyps_bids.classification.contrast import Contrast
from hyps_bids.classification.features import Schema
from hyps_bids.classification.plan import done_scans, make_plan
from hyps_bids.classification.tables import confusion_table
from hyps_bids.reports.group_facts import describe_group
from tests.cohort.study import MadeStudy

ROOMS = ("cohort", "classification")
OTHER_ROOMS = ("reports", "outputs", "adaptation", "labels", "segmentation")
#: Names that are in no string of the code, or not as a whole.
FURTHER = {
    *(
        "volume_mm3_L_mine",
        "volume_mm3_R_whole",
        "icv_residual_mm3_L_whole",
        "icv_fraction_L_whole",
    ),
    *("asymmetry_whole", "Intercept", "participants_scan", "participants_status", "sessions_age"),
    *(
        "AGE",
        "Status",
        "p_ill",
        "p_rticipant",
        "np",
        "C",
        "hyps_column_0_",
        "x y",
        "a.b",
        "0",
        "True",
    ),
}
#: These say when scans were made, or name the groups of this test.
LEFT_OUT = {"participant_id", "session_id", "acq_time", "age", "group", "filename", "Age", "AGE"}


def names_in_the_code(rooms: tuple[str, ...]) -> list[str]:
    """List the strings of the package that are words in lower case, as names of columns are."""
    found = set()
    for room in rooms:
        for path in (Path(hyps_bids.__file__).parent / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.add(node.value)
                elif isinstance(node, ast.keyword) and node.arg:
                    found.add(node.arg)
    words = {word for word in found if word.isidentifier() and word == word.lower()}
    return sorted((words | FURTHER) - LEFT_OUT)


def write_cohort(study: Any, names: list[str]) -> None:
    rng = np.random.default_rng(0)
    sizes = rng.normal(1, 0.05, (8, 2))
    people = ["\t".join(["participant_id", "age", "group", *names])]
    for i in range(8):
        name, ill = f"sub-{i:02d}", i % 2
        values = "\t".join(map(str, rng.integers(1, 40, len(names))))
        people.append(f"{name}\t{60 + i}\t{('well', 'ill')[ill]}\t{values}")
        for year in (0, 1):
            left, right = (3000 - 300 * ill) * sizes[i] - 100 * year
            study.scan(f"{name}_ses-{year}", left, right, icv=1.5e6 * sizes[i, 0], parts={})
        dates = [f"{year}\t200{year}-01-01T00:00:00" for year in (0, 1)]
        path = study.raw / name / f"{name}_sessions.tsv"
        path.write_text("\n".join(["session_id\tacq_time", *dates]) + "\n")
    (study.raw / "participants.tsv").write_text("\n".join(people) + "\n")


@pytest.mark.parametrize("rooms", [ROOMS, pytest.param(OTHER_ROOMS, marks=pytest.mark.slow)])
def test_names_that_we_use_ourselves(study: Any, tmp_path: Path, rooms: tuple[str, ...]) -> None:
    names = sorted({*names_in_the_code(rooms), "years", "time_source", "order", "icv", "site"})
    assert len(names) > 300
    write_cohort(study, names)
    formula = "volume_mm3_L_whole ~ group + age + icv_mm3 + years"
    wide = study.write_tables(model=(formula,), controls="group=well")
    assert wide.columns.is_unique
    # What a user's column holds is there once, under its own name or with a prefix.
    origin = pd.read_csv(study.raw / "participants.tsv", sep="\t").set_index("participant_id")
    for name in names:
        expected = origin[name].reindex(wide["participant_id"]).tolist()
        candidates = [name, f"participants_{name}", f"participants_{name}_"]
        found = [column for column in candidates if column in wide]
        assert any(wide[column].tolist() == expected for column in found), name
    # Our own columns, the change and the model are as without them.
    other = MadeStudy.create(tmp_path / "plain")
    write_cohort(other, [])
    other.write_tables(controls="group=well")
    for kind in ("desc-wide_morph", "desc-longitudinal_morph"):
        ours = other.group_table(kind)
        pd.testing.assert_frame_equal(study.group_table(kind)[list(ours)], ours)
    assert study.group_table("desc-models_morph")["estimate"].notna().sum() >= 5
    settings = replace(
        study.settings(), target="group", covariates=("site", "icv", "years", "order")
    )
    plan = make_plan(settings, done_scans(wide), Contrast.parse("ill:well"))
    assert len(plan.subjects.ids) == 8
    facts = describe_group(
        wide, study.group_table("qc"), study.group_sidecar("desc-wide_morph"), ()
    )
    assert facts.counts["failed"] == 0
    assert max(year for year in facts.data["years"] or () if year is not None) == pytest.approx(
        366 / 365.25, abs=1e-3
    )


def test_features_that_are_called_like_our_own_columns() -> None:
    frame = pd.DataFrame({name: [float(i), i + 0.5] for i, name in enumerate(["icv", "site", "x"])})
    schema = Schema(ratios=("icv", "site"), numeric=("x",), icv=None)
    matrix = schema.matrix(frame)
    assert matrix.shape == (2, len(schema.columns))
    assert matrix[0, [0, 1, 5]].tolist() == [0.0, 1.0, 2.0]


def test_classes_that_are_called_like_our_own_columns() -> None:
    label = np.array([0, 0, 1])
    table = confusion_table(label, np.array([[0, 1, 1]]), ("true", "false"))
    assert table.iloc[:, 0].tolist() == ["true", "false"]
    assert table.iloc[:, 1:].to_numpy().tolist() == [[1, 1], [0, 1]]
