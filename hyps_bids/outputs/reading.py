"""Readers of JSON files and tables, ours and those of BIDS datasets."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyps_bids.errors import BadData, HypsError, MissingInput
from hyps_bids.outputs.names import T1W_ALONE, group_path

if TYPE_CHECKING:
    # Each function that makes tables imports it, because reading JSON files should not take long.
    import pandas as pd

#: Kinds of group tables: one row per scan, change over time, linear models, comparisons after them.
WIDE, CHANGE, LINEAR_MODELS = "desc-wide_morph", "desc-longitudinal_morph", "desc-models_morph"
#: One row per scan of the participants who have longitudinal results.
SERIES_QC = "desc-longitudinal_qc"
#: One row per scan and template.
SPACE_QC = "desc-affine_qc"
#: Measures harmonized by site, as they were used in linear models.
HARMONIZED = "desc-harmonized_morph"
POSTHOC = "desc-posthoc_morph"
#: Z-scores and centiles of each scan and measure.
NORMS = "desc-norms_morph"


def load_json(path: Path) -> Any:
    """Read a JSON file in UTF-8 or UTF-16, with or without a byte order mark.

    Editors on Windows add the mark, and PowerShell writes UTF-16.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is not valid JSON.
    """
    return json.loads(path.read_bytes())


def read_json_object(
    path: Path,
    *,
    error: type[HypsError] = BadData,
    unreadable: type[HypsError] | None = None,
    hint: str = "",
) -> dict[str, Any]:
    """Read a JSON file that holds an object. Byte order marks are allowed.

    Parameters
    ----------
    path : Path
        The file.
    error : type of HypsError
        What to raise if the content is not a JSON object.
    unreadable : type of HypsError, optional
        What to raise if the file cannot be read; the same as `error` if it is left out.
    hint : str
        What the user can do, added to the message.

    Raises
    ------
    HypsError
        An error of the kind asked for, with the code ``json-unreadable``, ``json-invalid`` or
        ``json-no-object``.
    """
    hint = f"; {hint}" if hint else ""
    try:
        content = load_json(path)
    except OSError as reason:
        raise (unreadable or error)(
            f"{path}: cannot be read ({reason.strerror}){hint}", code="json-unreadable"
        ) from reason
    except ValueError as reason:
        raise error(f"{path}: not valid JSON ({reason}){hint}", code="json-invalid") from reason
    if not isinstance(content, dict):
        raise error(f"{path}: not a JSON object{hint}", code="json-no-object")
    return content


def read_text_table(path: Path) -> pd.DataFrame:
    """Read a TSV file that a user or another program has written; every value is text.

    Raises
    ------
    BadData
        If it cannot be read as a tab-separated table in UTF-8.
    """
    import pandas as pd

    try:
        return pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise BadData(
            f"{path}: cannot be read as a tab-separated table in UTF-8 ({error})",
            code="table-unreadable",
        ) from error


def read_table(path: Path) -> pd.DataFrame:
    """Read a TSV file; ``n/a`` is a missing value, and labels such as ``01`` stay text."""
    import pandas as pd

    labels = {name: str for name in ("participant_id", "session_id", "scan", "run")}
    # Read as a whole, so that a column has one type even where its first texts come late.
    return pd.read_csv(
        path, sep="\t", na_values=["n/a"], keep_default_na=False, dtype=labels, low_memory=False
    )


def read_wide(output_dir: Path, suffixes: Collection[str] = T1W_ALONE) -> pd.DataFrame:
    """Read the wide table that the group level has written.

    Parameters
    ----------
    output_dir : Path
        The derivatives dataset.
    suffixes : collection of str
        Suffixes of the images that the table is about.

    Returns
    -------
    pandas.DataFrame
        One row per scan. Numbers are float; columns with levels are categorical, in their order;
        all else is text. Missing values are missing.

    Raises
    ------
    MissingInput
        If the table or its sidecar is not there.
    """
    import pandas as pd

    path = group_path(output_dir, WIDE, suffixes)
    try:
        columns = load_json(path.with_suffix(".json"))
        frame = pd.read_csv(path, sep="\t", dtype="str", na_values=["n/a"], keep_default_na=False)
    except OSError as error:
        raise MissingInput(
            f"{path}: cannot be read; run the group level first", code="wide-table-unreadable"
        ) from error
    typed_columns = {}
    for name, values in frame.items():
        described = columns.get(name, {})
        if described.get("Format") == "number":
            typed_columns[name] = values.astype("float64")
        elif described.get("Levels"):
            typed_columns[name] = values.astype(pd.CategoricalDtype(list(described["Levels"])))
        else:
            typed_columns[name] = values
    return pd.DataFrame(typed_columns)


def read_units(output_dir: Path, suffixes: Collection[str] = T1W_ALONE) -> dict[str, str]:
    """Read the units of the columns of the wide group table, where its sidecar states them."""
    path = group_path(output_dir, WIDE, suffixes).with_suffix(".json")
    columns = load_json(path) if path.is_file() else {}
    return {name: str(column["Units"]) for name, column in columns.items() if "Units" in column}
