"""What the values of a label image mean: one type, and one parser for every way to write it.

A meaning can be given as a preset name (``aseg``), as a line (``165:L,166:R,*:-``) or as a TSV
file with the columns index, hemi and part. The ``dseg.tsv`` of a BIDS dataset is such a file, too.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

from hyps_bids.errors import BadData, UsageError
from hyps_bids.outputs.reading import read_text_table

#: Preset name → whether a label image may have no other values than those of the preset
LABEL_MAPS = {"aseg": False, "whole": True, "anteriorposterior": True}
#: The part that is a whole hippocampus.
WHOLE_HIPPOCAMPUS = "hippocampus"
#: Ways to write a hemisphere, in lower case.
SIDES = {"l": "L", "lh": "L", "left": "L", "r": "R", "rh": "R", "right": "R"}
_PARTS = {name: name for name in ("anterior", "posterior", "head", "body", "tail")}
_PARTS |= {"ant": "anterior", "post": "posterior"}
#: Words of a name that change nothing.
_FILLERS = {"whole", "formation", "of", "the"}
#: VALUE:HEMISPHERE[:PART]
_ITEM = re.compile(r"(\d+|mask|\*):(LR|L|R|-)(?::((?:-*[^\W_])+-*)?)?")
_SYNTAX = (
    "Write VALUE:HEMISPHERE[:PART] with commas between, such as 1:L:anterior,2:L:posterior. VALUE "
    "is a whole number, 'mask' (the higher of two values) or '*' (all others); HEMISPHERE is L, R, "
    "LR (both, told apart by position) or - (not hippocampus)."
)


@dataclass(frozen=True, order=True)
class Structure:
    """What one value of a label image means."""

    #: The value, above 0; 1 stands for the foreground of a mask.
    index: int
    #: L, R, or LR for both, which are told apart by their position.
    hemi: str
    #: Part of the hippocampus; ``hippocampus`` if it is the whole.
    part: str


@dataclass(frozen=True)
class LabelMap:
    """Meaning of the values of a label image. Zero is always background."""

    #: Values that show a hippocampus; several values may mean the same.
    structures: tuple[Structure, ...]
    #: All values that may occur, including those that are not hippocampus: another value shows
    #: that the map does not fit the image. Any value may occur if None.
    listed: frozenset[int] | None = None
    #: The image is a mask: the higher of its two values is the only structure.
    is_mask: bool = False
    #: The map in one line, made from the other attributes if it is not given.
    line: str = ""

    def __post_init__(self) -> None:
        if not self.line:
            items = [
                f"{s.index}:{s.hemi}" + (f":{s.part}" if s.part != WHOLE_HIPPOCAMPUS else "")
                for s in self.structures
            ]
            others = set(self.listed or ()) - {0, *(s.index for s in self.structures)}
            items += ["*:-"] if self.listed is None else [f"{value}:-" for value in sorted(others)]
            object.__setattr__(self, "line", ",".join(items))


def parse_label_map(written: str) -> LabelMap:
    """Read what label values mean, in any of the forms in which it can be written.

    They are one of :data:`LABEL_MAPS`; the path of a TSV file (see :func:`read_label_table`),
    which leaves the meaning of other values open; and a line such as ``165:L,166:R,*:-``.

    Raises
    ------
    UsageError
        If it has none of these forms.
    BadData
        If the TSV file is not valid or names no hippocampus.

    Examples
    --------
    >>> parse_label_map("aseg").structures[1]
    Structure(index=53, hemi='R', part='hippocampus')
    >>> parse_label_map("17:L,53:R,*:-") == parse_label_map("aseg")
    True
    """
    if written in LABEL_MAPS:
        shipped = files("hyps_bids") / "data" / "label_maps" / f"{written}.tsv"
        preset = read_label_table(Path(str(shipped)))
        return preset if LABEL_MAPS[written] else _open(preset)
    if os.path.isfile(written):
        label_map = read_label_table(Path(written))
        if not label_map.structures:
            raise BadData(
                f"{written}: names no left or right hippocampus. Add a line for each with index, "
                "hemi (L or R) and part.",
                code="label-table-without-hippocampus",
            )
        return _open(label_map)
    if ":" not in written:
        raise UsageError(
            f"label map {written!r}: this is neither a file nor one of "
            f"{', '.join(sorted(LABEL_MAPS))}, nor a line of values. {_SYNTAX}",
            code="label-map-unknown",
        )
    return _parse_line(written)


def _open(label_map: LabelMap) -> LabelMap:
    """Allow any other value."""
    return replace(label_map, listed=None, line="")


def _parse_line(line: str) -> LabelMap:
    structures: list[Structure] = []
    values: list[str] = []
    others_ignored = False
    for item in map(str.strip, line.split(",")):
        match = _ITEM.fullmatch(item)
        value, hemi, part = match.groups() if match else ("0", "", "")
        number = int(value) if value.isdigit() else 1
        ignored = hemi == "-"
        if number < 1 or (value == "*" and not ignored) or (value == "mask" and ignored):
            raise UsageError(
                f"label map {line!r}: {item!r} is not understood. {_SYNTAX}",
                code="label-map-syntax",
            )
        if value == "*":
            others_ignored = True
            continue
        values.append(str(number) if value.isdigit() else value)
        if not ignored:
            structures.append(Structure(number, hemi, part or WHOLE_HIPPOCAMPUS))
    is_mask = "mask" in values
    alone = len(values) == 1 and not others_ignored
    if len(set(values)) < len(values) or not structures or (is_mask and not alone):
        raise UsageError(
            f"label map {line!r}: name each value once, name at least one hippocampus, and let a "
            "mask stand alone.",
            code="label-map-contradictory",
        )
    listed = None if is_mask or others_ignored else frozenset(map(int, values))
    return LabelMap(tuple(structures), listed, is_mask, line)


def read_label_table(path: Path) -> LabelMap:
    """Read a table of labels, such as the ``dseg.tsv`` of a dataset.

    It has the columns ``index`` and either ``hemi`` (and ``part``; the whole hippocampus if it is
    left out) or ``name``. The structures are the lines that speak of a hippocampus, if any; all
    values of the table are listed.
    """
    table = read_text_table(path)
    if "index" not in table or not {"name", "hemi"} & set(table):
        raise BadData(
            f"{path}: needs the columns index and name, or index and hemi.",
            code="label-table-columns",
        )
    structures: list[Structure] = []
    sideless: list[int] = []
    indices: set[int] = set()
    for row in table.to_dict("records"):
        value = row["index"].strip()
        if not re.fullmatch(r"\d+(\.0*)?", value):
            raise BadData(
                f"{path}: index '{value}' is not a whole number.", code="label-index-invalid"
            )
        index = int(float(value))
        indices.add(index)
        hemi, part = _row_meaning(row) if index else (None, None)
        if part and hemi:
            structures.append(Structure(index, hemi, part))
        elif part:
            sideless.append(index)
    if sideless and not structures:
        raise BadData(
            f"{path}: index {sideless[0]} is a hippocampus without a side. Add a column hemi with "
            "L or R.",
            code="label-without-side",
        )
    repeated = [i for i, count in Counter(s.index for s in structures).items() if count > 1]
    if repeated:
        raise BadData(f"{path}: index {min(repeated)} occurs twice.", code="label-index-repeated")
    return LabelMap(tuple(structures), frozenset(indices))


def _row_meaning(row: dict[str, str]) -> tuple[str | None, str | None]:
    """Return the side, if it is given, and the part; no part if it is no hippocampus."""
    given = {key: row.get(key, "").strip() for key in ("name", "hemi", "part", "abbreviation")}
    given = {key: "" if value == "n/a" else value for key, value in given.items()}
    mentioned, side, part = recognize(given["name"])
    if given["name"] and not (mentioned and (part or given["part"])):
        return None, None
    hemi = SIDES.get(given["hemi"].lower(), side) or recognize(given["abbreviation"])[1]
    return hemi, given["part"] or part or WHOLE_HIPPOCAMPUS


def recognize(name: str) -> tuple[bool, str | None, str | None]:
    """Tell whether a name speaks of a hippocampus, and find its side and part.

    Words may be in any order, separated by anything or run together as ``LeftHippocampus``. The
    part is None if the name has other words too, as "left hippocampal fissure" has.

    Examples
    --------
    >>> recognize("R hippocampus anterior")
    (True, 'R', 'anterior')
    >>> recognize("ctx-lh-parahippocampal")
    (False, 'L', None)
    """
    words = list(_words(name))
    about = [word for word in words if word in ("hip", "hipp") or word.startswith("hippoc")]
    sides = {SIDES[word] for word in words if word in SIDES}
    parts = {_PARTS[word] for word in words if word in _PARTS}
    rest = set(words) - {*about, *SIDES, *_PARTS, *_FILLERS}
    clear = not rest and len(parts) < 2 and len(sides) < 2
    part = (parts or {WHOLE_HIPPOCAMPUS}).pop() if clear else None
    return bool(about), sides.pop() if len(sides) == 1 else None, part


def _words(name: str) -> Iterable[str]:
    """Split a name into its words, in lower case; ``Lhippocampus`` has two."""
    for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name):
        together = re.fullmatch(
            r"(l|r|lh|rh|left|right)(hip.*|ant.*|post.*|head|body|tail)", word, re.I
        )
        for part in together.groups() if together else [word]:
            yield part.lower()
