"""The table that an import follows: images, their participants and their label images."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from hyps_bids.errors import BadData, MissingInput, UsageError
from hyps_bids.labels.meanings import LabelMap, parse_label_map
from hyps_bids.outputs.reading import read_text_table

#: Columns that every line needs, and optional ones.
_REQUIRED = ("participant", "image", "label", "label_map")
_OPTIONAL = ("session", "acquisition", "crop", "split")
COLUMNS = ("participant", "session", "acquisition", "image", "label", "label_map", "crop", "split")


@dataclass(frozen=True)
class Row:
    """One image and all its label images, with paths relative to the source folder."""

    #: Name in the source; its letters and digits make the BIDS label.
    participant: str
    image: Path
    #: Label images on the grid of the image, and what their values mean.
    labels: tuple[tuple[Path, LabelMap], ...]
    session: str | None = None
    acquisition: str | None = None
    #: L or R: the image shows one hippocampus, in left orientation, and its affine has no meaning.
    crop: str | None = None
    #: Part of the dataset, such as train or test.
    split: str | None = None
    #: Refuse labels with left and right swapped.
    check_sides: bool = True

    @property
    def stem(self) -> str:
        """BIDS entities of the image.

        Examples
        --------
        >>> Row("002_S_0295", Path("a.nii"), (), session="M12").stem
        'sub-002S0295_ses-M12'
        >>> Row("sub7", Path("a.nii"), (), session="ses-1").stem
        'sub-7_ses-1'
        """
        named = (("sub", self.participant), ("ses", self.session), ("acq", self.acquisition))
        return "_".join(f"{key}-{_label(key, value)}" for key, value in named if value)

    @property
    def subject(self) -> str:
        """BIDS name of the participant, such as ``sub-01``."""
        return self.stem.split("_")[0]


def _label(key: str, text: str) -> str:
    """Keep letters and digits, and not the name of the entity in front of them."""
    return re.sub(r"[^A-Za-z0-9]", "", re.sub(rf"^{key}(-|(?=\d))", "", text))


def read_rows(table: Path) -> list[Row]:
    """Read a TSV file with the columns :data:`COLUMNS`; missing values are ``n/a`` or empty.

    Lines of the same participant, session and acquisition are one image. Images are in order of
    first appearance.
    """
    if not table.is_file():
        raise MissingInput(f"{table}: there is no such table.", code="table-missing")
    frame = read_text_table(table)
    missing = [name for name in _REQUIRED if name not in frame]
    unknown = [name for name in frame if name not in COLUMNS]
    if missing or unknown:
        raise BadData(
            f"{table}: the columns are {', '.join(frame)}. The table needs "
            f"{', '.join(_REQUIRED)} and may have {', '.join(_OPTIONAL)}, separated by tabs.",
            code="import-table-columns",
        )
    if frame.empty:
        raise BadData(f"{table}: the table has no lines.", code="import-table-empty")
    rows: dict[str, Row] = {}
    for number, line in enumerate(frame.to_dict("records"), start=2):
        values = {k: v.strip() for k, v in line.items() if v.strip() not in ("", "n/a")}
        try:
            row = _row(values)
            rows[row.stem] = _join(rows[row.stem], row) if row.stem in rows else row
        except (BadData, UsageError) as error:
            raise BadData(f"{table}, line {number}: {error}", code=error.code) from error
    return list(rows.values())


def _row(values: dict[str, str]) -> Row:
    missing = [name for name in _REQUIRED if name not in values]
    if missing:
        raise BadData(f"has no {' and no '.join(missing)}", code="import-line-incomplete")
    for key, name in (("sub", "participant"), ("ses", "session"), ("acq", "acquisition")):
        if name in values and not _label(key, values[name]):
            raise BadData(
                f"{name} {values[name]!r} has no letter or digit", code="import-label-invalid"
            )
    if values.get("crop") not in (None, "L", "R"):
        raise BadData(
            f"crop is {values['crop']!r}; write L or R, or leave it empty", code="import-crop-side"
        )
    labels = ((Path(values["label"]), parse_label_map(values["label_map"])),)
    session, acquisition, crop, split = map(values.get, _OPTIONAL)
    participant, image = values["participant"], Path(values["image"])
    return Row(participant, image, labels, session, acquisition, crop, split)


def _join(first: Row, second: Row) -> Row:
    """Put the label images of two lines together."""
    for name in ("participant", "image", "crop", "split"):
        values = [str(getattr(row, name)) for row in (first, second)]
        if values[0] != values[1]:
            raise BadData(
                f"{first.stem} has two values of {name} ({' and '.join(values)}); tell images of "
                "one participant apart by session or acquisition",
                code="import-lines-differ",
            )
    return replace(first, labels=first.labels + second.labels)


def rows_to_tsv(rows: Iterable[Row]) -> str:
    """Write rows as a table that :func:`read_rows` reads, a line for each label image.

    Examples
    --------
    >>> row = Row("01", Path("a.nii"), ((Path("b.nii"), parse_label_map("1:L")),))
    >>> print(rows_to_tsv([row]), end="")
    participant	session	acquisition	image	label	label_map	crop	split
    01	n/a	n/a	a.nii	b.nii	1:L	n/a	n/a
    """
    lines = [
        vars(row) | {"label": label, "label_map": label_map.line}
        for row in rows
        for label, label_map in row.labels
    ]
    frame = pd.DataFrame(lines, columns=list(COLUMNS))
    return frame.to_csv(sep="\t", index=False, na_rep="n/a", lineterminator="\n")
