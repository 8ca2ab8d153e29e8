"""BIDS Stats Models JSON of fitted formulas.

The files were validated once with bsmschema 0.1.1, the schema of the specification; here, what the
schema cannot know is checked.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from hyps_bids.cohort.statistics import fit_formulas
from hyps_bids.cohort.stats_models import write_stats_models
from tests.cohorts import simulate


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    frame = simulate({"AD": 20, "CN": 20, "MCI": 20}, {"AD": -1.0}, sites=("A", "B"))
    return frame.assign(stage=(frame.index % 3).astype(float))


def written(output: Path, frame: pd.DataFrame, *formulas: str, site: str | None = None) -> Any:
    fitted = fit_formulas(frame, formulas, ("diagnosis", "CN"), site)
    write_stats_models(output, fitted.models, fitted.harmonized)
    return [json.loads(p.read_text()) for p in sorted((output / "models").glob("*_smdl.json"))]


def test_levels_and_products_are_transformations(tmp_path: Path, frame: pd.DataFrame) -> None:
    (model,) = written(tmp_path, frame, "volume ~ diagnosis * age + icv")
    assert {"Name", "BIDSModelVersion", "Description", "Input", "Nodes"} == set(model)
    assert model["BIDSModelVersion"] == "1.0.0"
    (node,) = model["Nodes"]
    assert (node["Level"], node["Model"]["Type"]) == ("Dataset", "glm")
    factor, *products = node["Transformations"]["Instructions"]
    assert factor == {"Name": "Factor", "Input": ["diagnosis"]}
    assert [one["Input"] for one in products] == [
        ["diagnosis.AD", "age"],
        ["diagnosis.MCI", "age"],
    ]
    x = node["Model"]["X"]
    assert x[:5] == [1, "diagnosis.AD", "diagnosis.MCI", "age", "icv"]
    assert x[5:] == [one["Output"] for one in products]
    joint = {one["Name"]: one for one in node["Contrasts"]}
    assert joint["diagnosis"]["ConditionList"] == ["diagnosis.AD", "diagnosis.MCI"]
    assert joint["diagnosis"]["Weights"] == [[1, 0], [0, 1]]
    assert set(node["DummyContrasts"]["Contrasts"]) == set(x) - {1}
    facts = node["Model"]["Software"]["hyps-bids"]
    assert facts["Subjects"] == 60
    assert facts["Methods"] == ["ols"]
    assert facts["ReferenceLevels"]["diagnosis[T.AD]"] == "CN"


def test_what_is_no_transformation_is_a_formula(tmp_path: Path, frame: pd.DataFrame) -> None:
    (model,) = written(tmp_path, frame, "volume ~ C(stage) + bs(age, df=4) - 1")
    fitted = model["Nodes"][0]["Model"]
    assert fitted["Formula"] == "0 + C(stage) + bs(age, df=4) - 1"
    assert "bs(age, df=4)[4]" in fitted["X"]
    assert "Transformations" not in model["Nodes"][0]


def test_only_fitted_formulas_of_this_run_are_described(
    tmp_path: Path, frame: pd.DataFrame
) -> None:
    flat = frame.assign(flat=1.0)
    models = written(tmp_path, flat, "volume ~ flat", "volume ~ C(stage)", site="site")
    assert [model["Name"] for model in models] == ["linear2"]
    node = models[0]["Nodes"][0]
    assert node["Transformations"]["Instructions"] == [{"Name": "Factor", "Input": ["stage"]}]
    assert node["Model"]["Software"]["hyps-bids"]["Harmonization"] == {
        "Method": "ComBat",
        "SiteColumn": "site",
        "Sites": ["A", "B"],
        "SitesAreInTheModel": True,
    }
    (tmp_path / "models" / "model-mine_smdl.json").write_text("{}")
    write_stats_models(tmp_path, pd.DataFrame(), pd.DataFrame())
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["model-mine_smdl.json"]
