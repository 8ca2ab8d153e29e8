"""The demo: both levels on the three participants that come with the package."""

from __future__ import annotations

import shutil
from importlib.resources import files
from pathlib import Path

from hyps_bids import cli
from hyps_bids.errors import BadData, UsageError, cannot_write
from hyps_bids.outputs.ownership import find_foreign
from hyps_bids.outputs.reading import read_json_object

_DESCRIPTION = "dataset_description.json"


def demo_dataset() -> Path:
    """Return the folder of the BIDS dataset that comes with the package."""
    return Path(str(files("hyps_bids") / "data" / "demo"))


def run_demo(output: Path) -> int:
    """Run both levels on a copy of the demo dataset.

    Parameters
    ----------
    output : Path
        Receives the dataset in ``bids`` and the results in ``derivatives``; it may exist.

    Returns
    -------
    int
        The higher of the two exit codes.

    Raises
    ------
    CannotCreateOutput
        If `output` cannot be written.
    UsageError
        If the folders hold files of another origin.
    """
    bids, derivatives = output / "bids", output / "derivatives"
    try:
        occupied = bids if _is_other_dataset(bids) else derivatives
        if occupied == bids or find_foreign(derivatives):
            raise UsageError(
                f"{occupied}: holds files of another origin. Choose another folder for the demo.",
                code="demo-folder-occupied",
            )
        bids.mkdir(parents=True, exist_ok=True)
        # First of all, so that a copy that was interrupted is recognized.
        shutil.copy(demo_dataset() / _DESCRIPTION, bids)
        shutil.copytree(demo_dataset(), bids, dirs_exist_ok=True)
    except OSError as error:
        raise cannot_write(bids, error) from error
    code = max(cli.main([str(bids), str(derivatives), level]) for level in ("participant", "group"))
    print(f"Images: {bids}\nResults: {derivatives}")
    return code


def _is_other_dataset(folder: Path) -> bool:
    """Tell whether files of the demo would replace those of another dataset."""
    demo = demo_dataset()
    try:
        name = read_json_object(folder / _DESCRIPTION).get("Name")
    except BadData:
        name = None
    files = [path.relative_to(demo) for path in demo.rglob("*") if path.is_file()]
    return name != read_json_object(demo / _DESCRIPTION)["Name"] and any(
        (folder / file).exists() for file in files
    )
