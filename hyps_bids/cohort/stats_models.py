"""Describe fitted linear models in JSON, as the BIDS Stats Models specification 1.0.0 has it."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from hyps_bids import __version__
from hyps_bids.cohort.random_effects import split_random_effects
from hyps_bids.messages import join_names
from hyps_bids.outputs.names import T1W_ALONE, group_path, group_space
from hyps_bids.outputs.reading import LINEAR_MODELS, WIDE
from hyps_bids.outputs.writing import write_json

_SPECIFICATION = "1.0.0"
#: A column of the design for one level of a categorical variable, such as ``C(group)[T.AD]``.
_LEVEL = re.compile(r"(?:C\()?`?(?P<name>[^`()\[\],]+)`?\)?\[T\.(?P<level>.+)\]")
_NUMBER = re.compile(r"`?(?P<name>[^`()\[\],]+)`?")


def write_stats_models(
    output_dir: Path,
    models: pd.DataFrame,
    harmonized: pd.DataFrame,
    suffixes: Collection[str] = T1W_ALONE,
) -> None:
    """Write ``models/model-linearN_smdl.json`` for each formula, and remove those of earlier runs.

    Models of other contrasts stay; theirs are other names, such as ``…_space-T2w_smdl.json``.

    Parameters
    ----------
    output_dir : Path
        The derivatives dataset.
    models, harmonized : pandas.DataFrame
        Of :class:`~hyps_bids.cohort.statistics.ModelTables`; both are empty without any model.
    suffixes : collection of str
        Suffixes of the images.
    """
    folder = output_dir / "models"
    tables = list(models.groupby("model", sort=False)) if len(models) else []
    paths = set()
    for number, (formula, rows) in enumerate(tables, 1):
        if rows["estimate"].notna().any():
            path = folder / f"model-linear{number}{group_space(suffixes)}_smdl.json"
            sites = harmonized[harmonized["model"] == formula] if len(harmonized) else harmonized
            write_json(path, describe_model(str(formula), number, rows, sites, suffixes))
            paths.add(path)
    ours = re.compile(rf"model-linear\d+{re.escape(group_space(suffixes))}_smdl\.json")
    for old in set(folder.glob("model-linear*_smdl.json")) - paths:
        if ours.fullmatch(old.name):
            old.unlink(missing_ok=True)


def describe_model(
    formula: str,
    number: int,
    rows: pd.DataFrame,
    harmonized: pd.DataFrame,
    suffixes: Collection[str],
) -> dict[str, Any]:
    """Describe one formula by the rows of its table.

    Columns that are numbers, levels or products of both become variables of ``X``, made by
    ``Factor`` and ``Product``. Other columns, such as splines, cannot be made by such
    transformations; ``X`` then has the variables' own columns of the formula's design, and
    ``Formula`` says how they are made.
    """
    fitted = rows[rows["estimate"].notna()]
    names = [str(name) for name in fitted["coefficient"].unique()]
    factors: dict[str, None] = {}
    products: list[dict[str, Any]] = []
    made = [_variable(name, factors, products) for name in names]
    is_plain = None not in made
    variables = made if is_plain else names
    columns = [1 if variable == "Intercept" else variable for variable in variables]
    instructions = [{"Name": "Factor", "Input": list(factors)}] if factors else []
    node: dict[str, Any] = {"Level": "Dataset", "Name": "dataset", "GroupBy": ["measure"]}
    if is_plain and (instructions or products):
        node["Transformations"] = {
            "Transformer": "pybids-transforms-v1",
            "Instructions": [*instructions, *products],
        }
    node["Model"] = {
        "Type": "glm",
        "X": columns,
        **({} if is_plain else {"Formula": _right_side(formula, names)}),
        "Software": {"hyps-bids": _software(formula, fitted, harmonized)},
    }
    node["Contrasts"] = list(_joint_tests(rows, dict(zip(names, columns, strict=True))))
    node["DummyContrasts"] = {"Contrasts": [c for c in columns if c != 1], "Test": "t"}
    return {
        "Name": f"linear{number}",
        "BIDSModelVersion": _SPECIFICATION,
        "Description": f"The formula '{formula}' as HyPS-BIDS {__version__} has fitted it to "
        f"{join_names(map(str, fitted['measure'].unique()))}, each by itself. Variables are "
        f"columns of {group_path(Path(), WIDE, suffixes).name}, where icv is icv_mm3 and time is "
        "years_since_first_scan unless there are columns of these names; results are in "
        f"{group_path(Path(), LINEAR_MODELS, suffixes).name}.",
        "Input": {"seg": ["hippocampus"], "suffix": ["morph"]},
        "Nodes": [node],
    }


def _variable(
    coefficient: str, factors: dict[str, None], products: list[dict[str, Any]]
) -> str | None:
    """Name the variable of a column as Factor and Product make it; None if they cannot."""
    if coefficient == "Intercept":
        return coefficient
    pieces = []
    for part in coefficient.split(":"):
        if level := _LEVEL.fullmatch(part):
            factors[level["name"]] = None
            pieces.append(f"{level['name']}.{level['level']}")
        elif number := _NUMBER.fullmatch(part):
            pieces.append(number["name"])
        else:
            return None
    if len(pieces) == 1:
        return pieces[0]
    name = "_x_".join(pieces)
    products.append({"Name": "Product", "Input": pieces, "Output": name})
    return name


def _right_side(formula: str, names: Sequence[str]) -> str:
    """Return what is after ~; the specification wants the intercept to be written out."""
    right = split_random_effects(formula).fixed.partition("~")[2].strip()
    has_intercept = "Intercept" in names
    starts = re.match(r"[01]\b", right) is not None
    return right if starts else f"{int(has_intercept)} + {right}"


def _software(formula: str, fitted: pd.DataFrame, harmonized: pd.DataFrame) -> dict[str, Any]:
    """State what the specification has no words for."""
    facts: dict[str, Any] = {
        "Version": __version__,
        "Formula": formula,
        "Measures": list(map(str, fitted["measure"].unique())),
        "Methods": sorted(map(str, fitted["method"].dropna().unique())),
        "RandomEffects": sorted(map(str, fitted["random"].dropna().unique())),
        "ReferenceLevels": {
            str(row["coefficient"]): str(row["reference"])
            for row in fitted.drop_duplicates("coefficient").to_dict("records")
            if pd.notna(row["reference"])
        },
        "Scans": int(fitted["n_scans"].max()),
        "Subjects": int(fitted["n_subjects"].max()),
    }
    if len(harmonized):
        facts["Harmonization"] = {
            "Method": "ComBat",
            "SiteColumn": str(fitted["harmonized"].dropna().iloc[0]),
            "Sites": sorted(map(str, harmonized["harmonized"].unique())),
            "SitesAreInTheModel": True,
        }
    return facts


def _joint_tests(rows: pd.DataFrame, columns: dict[str, Any]) -> Iterable[dict[str, Any]]:
    """Describe the test of all coefficients of each term that has several."""
    tested = rows.loc[rows["coefficient"] == "(all)", "term"].unique()
    single = rows[rows["coefficient"] != "(all)"].drop_duplicates("coefficient")
    for term in tested:
        conditions = [columns[str(n)] for n in single.loc[single["term"] == term, "coefficient"]]
        weights = [[int(i == j) for j in range(len(conditions))] for i in range(len(conditions))]
        yield {"Name": str(term), "ConditionList": conditions, "Weights": weights, "Test": "F"}
