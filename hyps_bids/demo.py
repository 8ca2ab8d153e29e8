"""The demo: both levels on the three participants that come with the package."""

from __future__ import annotations

import shutil
from importlib.resources import files
from pathlib import Path

from hyps_bids import cli
from hyps_bids.errors import cannot_write

__all__ = ["demo_dataset", "run_demo"]


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
    """
    bids, derivatives = output / "bids", output / "derivatives"
    try:
        shutil.copytree(demo_dataset(), bids, dirs_exist_ok=True)
    except OSError as error:
        raise cannot_write(bids, error) from error
    code = max(cli.main([str(bids), str(derivatives), level]) for level in ("participant", "group"))
    print(f"Images: {bids}\nResults: {derivatives}")
    return code
