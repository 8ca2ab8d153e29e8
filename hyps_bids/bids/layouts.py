"""Index the files of a BIDS dataset with pybids, in memory or in a database."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from bids.config import get_option
from bids.layout import BIDSLayout, BIDSLayoutIndexer
from sqlalchemy.exc import SQLAlchemyError

from hyps_bids.errors import BadData, UsageError, cannot_write

__all__ = ["T1W", "index_files", "index_t1w"]

#: query for the images that we process
T1W = {"datatype": "anat", "suffix": "T1w", "extension": [".nii", ".nii.gz"]}


def index_files(
    root: Path, wanted: str, *, config: Sequence[str] = ("bids",), database: Path | None = None
) -> BIDSLayout:
    """Index some files of a dataset, without metadata.

    Parameters
    ----------
    root : Path
        The dataset.
    wanted : str
        Regular expression of the files to index and of the folders on the way to them, as paths
        below `root` that begin with a slash.
    config : sequence of str
        pybids' lists of entities.
    database : Path, optional
        Folder to write the index to; in memory if None.

    Returns
    -------
    BIDSLayout
        The index. Entities are those of the path below `root`.
    """
    indexer = BIDSLayoutIndexer(
        validate=False, index_metadata=False, ignore=[re.compile(rf"^(?!(?:{wanted})$).+")]
    )
    return BIDSLayout(
        root,
        validate=False,
        config=[_entities(root, name) for name in config],
        indexer=indexer,
        database_path=database,
    )


def index_t1w(root: Path, subjects: Collection[str], database: Path | None) -> BIDSLayout:
    """Index the T1w images of some participants.

    With a folder for a database, all participants are indexed, so that it serves any selection.
    A database that is there is used as it is.

    Raises
    ------
    BadData
        If the database cannot be read.
    CannotCreateOutput
        If it cannot be written.
    UsageError
        If it is that of another dataset or was made by another program.
    """
    labels = r"[^/]+" if database else "(?:" + "|".join(map(re.escape, sorted(subjects))) + ")"
    wanted = rf"/sub-{labels}(?:/ses-[^/]+)?(?:/anat(?:/[^/]+_T1w\.nii(?:\.gz)?)?)?"
    if database is None:
        return index_files(root, wanted)
    kept = database / "layout_index.sqlite"
    try:
        if not kept.exists():
            database.mkdir(parents=True, exist_ok=True)
            # Made in another folder and renamed, so that other jobs never see half an index.
            with tempfile.TemporaryDirectory(dir=database) as folder:
                index_files(root, wanted, database=Path(folder))
                (Path(folder) / kept.name).replace(kept)
        layout = BIDSLayout(root, validate=False, database_path=database)
        made = layout.connection_manager.layout_info
    except OSError as error:
        raise cannot_write(database, error) from error
    except SQLAlchemyError as error:
        raise BadData(
            f"{kept}: this is not an index of pybids. Remove it.", code="index-unreadable"
        ) from error
    if Path(made.root) != root.absolute():
        raise UsageError(
            f"{database}: this is an index of {made.root}. Choose another folder.",
            code="index-of-other-dataset",
        )
    if made.config != [_entities(root, "bids")]:
        raise UsageError(
            f"{kept}: the index was not made by this version of HyPS-BIDS. Remove it.",
            code="index-of-other-version",
        )
    return layout


def _entities(root: Path, name: str) -> dict[str, Any]:
    """Restrict pybids' entities to the part of a path below the dataset.

    pybids searches the whole path, so a dataset in a folder ``func/`` would have no anatomical
    image, and in ``run-03/`` every image would be a third run.
    """
    content = json.loads(Path(get_option("config_paths")[name]).read_text())
    below = f"^{re.escape(str(root.absolute()))}(?=/).*?"
    entities = [e | {"pattern": f"{below}(?:{e['pattern']})"} for e in content["entities"]]
    return {"name": name, "entities": entities}
