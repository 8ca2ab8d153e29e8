"""Index the images of a BIDS dataset with pybids, in memory or in a database."""

from __future__ import annotations

import json
import logging
import os
import re
import sqlite3
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from bids.config import get_option
from bids.layout import BIDSLayout, BIDSLayoutIndexer

from hyps_bids.errors import BadData, CannotCreateOutput, MissingInput, UsageError
from hyps_bids.messages import format_count
from hyps_bids.outputs.reading import load_json
from hyps_bids.outputs.writing import write_with

_LOG = logging.getLogger("hyps_bids")
#: pybids' lists of entities; derivatives have more entities.
_ENTITIES = ("bids", "derivatives")


def index_images(root: Path, images: Sequence[str]) -> BIDSLayout:
    """Index images, given as paths below `root`, in memory and without metadata.

    Entities are those of the paths below `root`.
    """
    return _layout(root, _ImagesIndexer(images))


def image_query(suffixes: Iterable[str]) -> dict[str, str | list[str]]:
    """Return the query for the images with these suffixes."""
    return {"datatype": "anat", "suffix": [*suffixes], "extension": [".nii", ".nii.gz"]}


def query_images(layout: BIDSLayout, query: Mapping[str, Any]) -> list[str]:
    """Return the images that fit a query of pybids, as paths below the dataset.

    Paths are cut here, because pybids asks the database again for the relative path of each file.
    """
    start = len(layout.root) + 1
    found: list[str] = layout.get(return_type="filename", **query)
    return [path[start:] for path in found]


class _ImagesIndexer(BIDSLayoutIndexer):
    """Index the given files instead of walking through all folders, which takes much longer."""

    def __init__(self, images: Sequence[str]) -> None:
        super().__init__(validate=False, index_metadata=False)
        self._images = images

    def _index_dir(self, path: Any, config: Any, force: Any = None) -> tuple[list[Any], list[Any]]:
        entities = {name: entity for each in config for name, entity in each.entities.items()}
        rows = [self._index_file(path / image, entities) for image in self._images]
        return [file for file, _ in rows], [tag for _, tags in rows for tag in tags]


def _layout(root: Path, indexer: Callable[[BIDSLayout], None]) -> BIDSLayout:
    return BIDSLayout(root, validate=False, config=_entities(root), indexer=indexer)


@dataclass(frozen=True)
class StoredIndex:
    """An index in a file, which may be older than the dataset.

    It is read and written with :mod:`sqlite3`, because pybids turns the path into a URL, in which
    ``?``, ``%`` and ``#`` mean something else.

    Attributes
    ----------
    path : Path
        The file.
    root : Path
        The dataset.
    images : frozenset of str
        The images in the index, as paths below `root`; empty if there is no index yet.
    is_current : bool
        Whether this version indexes the same entities.
    """

    path: Path
    root: Path
    images: frozenset[str] = frozenset()
    is_current: bool = False

    @classmethod
    def open(cls, folder: Path, root: Path) -> StoredIndex:
        """Read which images an index has.

        Raises
        ------
        MissingInput
            If it may not be read.
        BadData
            If it cannot be read as an index.
        UsageError
            If it is that of another dataset or was made by another program.
        """
        path = folder / "layout_index.sqlite"
        try:
            path.open("rb").close()
        except (FileNotFoundError, NotADirectoryError):
            return cls(path, root)
        except OSError as error:
            raise MissingInput(
                f"{path}: cannot be read ({error.strerror}).", code="index-locked"
            ) from error
        try:
            with closing(_open(path)) as connection:
                made_for, config = connection.execute(
                    "SELECT root, _config FROM layout_info"
                ).fetchone()
                found = connection.execute("SELECT path FROM files").fetchall()
            entities = json.loads(config)
        except (sqlite3.Error, ValueError, TypeError, AttributeError) as error:
            raise _unreadable(path) from error
        if Path(made_for) != root.absolute():
            raise UsageError(
                f"{folder}: this is an index of {made_for}. Choose another folder.",
                code="index-of-other-dataset",
            )
        if not all(isinstance(each, dict) for each in entities):
            raise UsageError(
                f"{path}: the index was made by another program. Remove it, or choose another "
                "folder.",
                code="index-of-other-version",
            )
        start = len(made_for) + 1
        images = frozenset(file[start:] for (file,) in found)
        return cls(path, root, images, entities == _entities(root))

    def differs(self, images: Collection[str], is_listed: Callable[[str], bool]) -> str:
        """Say in which images the index differs from the dataset; nothing if it does not.

        Parameters
        ----------
        images : collection of str
            The images that are in the folders that were listed, as paths below the dataset.
        is_listed : callable
            Tells whether an image of the index would be among `images` if it was there.
        """
        lacks = sorted(set(images) - self.images)
        gone = sorted(path for path in self.images.difference(images) if is_listed(path))
        return " and ".join(
            f"{what} {format_count(len(paths), 'image')}, such as {paths[0]}"
            for what, paths in (("lacks", lacks), ("has, but the dataset has not,", gone))
            if paths
        ) or ("" if self.is_current else "is from another version of HyPS-BIDS")

    def renew(self, images: Sequence[str], why: str) -> BIDSLayout:
        """Index all images anew, replace the file if that is possible, and return the index.

        Raises
        ------
        CannotCreateOutput
            If there is no index yet, and none can be written.
        """
        layout = index_images(self.root, images)
        exists = self.path.exists()
        made = (
            f"{datetime.fromtimestamp(self.path.stat().st_mtime):%Y-%m-%d %H:%M}" if exists else ""
        )
        try:
            write_with(self.path, lambda partial: _save(layout, partial), failures=(sqlite3.Error,))
        except CannotCreateOutput as error:
            if not exists:
                raise
            _LOG.warning(
                "The index of %s (%s) %s. It could not be renewed, so this run has searched the "
                "dataset without it: %s",
                *(made, self.path, why, error),
            )
        else:
            if exists:
                _LOG.info("The index of %s (%s) was renewed: it %s", made, self.path, why)
        return layout

    def load(self) -> BIDSLayout:
        """Load the index into memory.

        Raises
        ------
        BadData
            If it is damaged.
        """

        def copy(layout: BIDSLayout) -> None:
            layout.session.close()
            with closing(_open(self.path)) as stored:
                stored.backup(_connection(layout))

        try:
            return _layout(self.root, copy)
        except sqlite3.Error as error:
            raise _unreadable(self.path) from error


def _open(path: Path) -> sqlite3.Connection:
    """Open an index without locks, which not all network disks have: it is never changed."""
    name = quote(os.fsencode(path.absolute()))
    return sqlite3.connect(f"file:{name}?immutable=1", uri=True)


def _unreadable(path: Path) -> BadData:
    return BadData(f"{path}: this is not an index of pybids. Remove it.", code="index-unreadable")


def _save(layout: BIDSLayout, path: Path) -> None:
    layout.session.close()
    with closing(sqlite3.connect(path)) as stored:
        _connection(layout).backup(stored)


def _connection(layout: BIDSLayout) -> sqlite3.Connection:
    connection: sqlite3.Connection = (
        layout.connection_manager.engine.raw_connection().driver_connection
    )
    return connection


def _entities(root: Path) -> list[dict[str, Any]]:
    """Restrict pybids' entities to the part of a path below the dataset.

    pybids searches the whole path, so a dataset in a folder ``func/`` would have no anatomical
    image, and in ``run-03/`` every image would be a third run.
    """
    below = f"^{re.escape(str(root.absolute()))}(?=/).*?"
    return [
        {
            "name": name,
            "entities": [
                entity | {"pattern": f"{below}(?:{entity['pattern']})"}
                for entity in load_json(Path(get_option("config_paths")[name]))["entities"]
            ],
        }
        for name in _ENTITIES
    ]
