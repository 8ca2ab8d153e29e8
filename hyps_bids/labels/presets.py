"""Presets: known datasets, described well enough to find their images and labels."""

from __future__ import annotations

import functools
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from hyps_bids.errors import BadData, MissingInput, UsageError
from hyps_bids.labels.import_table import Row
from hyps_bids.labels.meanings import LabelMap, parse_label_map
from hyps_bids.labels.msd import split_every_fifth
from hyps_bids.outputs.labels import SIDE_NAMES

_PLACEHOLDERS = {
    "number": r"\d+",
    "participant": r"[A-Za-z0-9-]+",
    "adni": r"\d{3}_S_\d{4}",
    "scan": r"\d+",
    "session": r"[A-Za-z0-9]+",
    "ext": r"(?:nii\.gz|nii|img)",
}


@dataclass(frozen=True)
class Layout:
    """One way in which copies of a dataset are laid out: templates of paths and names."""

    image: str
    #: Templates of the label images' paths, and their label maps.
    labels: tuple[tuple[str, str], ...]
    participant: str = "{participant}"


@dataclass(frozen=True)
class Preset:
    """A dataset that can be imported by name; ``presets.toml`` describes the attributes."""

    name: str
    license: str
    citation: str = ""
    authors: tuple[str, ...] = ()
    links: tuple[str, ...] = ()
    layouts: tuple[Layout, ...] = ()
    pairs: bool = False
    left_out: tuple[str, ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class Found:
    """What a preset found in a folder."""

    #: Complete images with labels, in order of their path.
    rows: list[Row] = field(default_factory=list)
    #: A message for each participant that is left out on purpose.
    left_out: list[str] = field(default_factory=list)
    #: A message for each image with missing or ambiguous labels.
    problems: list[str] = field(default_factory=list)


def load_presets() -> dict[str, Preset]:
    """Return the presets that come with the package, by name.

    Examples
    --------
    >>> sorted(load_presets())
    ['harp', 'hfh', 'lpba40', 'msd-task04']
    """
    text = (files("hyps_bids.labels") / "presets.toml").read_text(encoding="utf-8")
    return {name: _preset(table) for name, table in tomllib.loads(text).items()}


def read_preset(path: Path) -> Preset:
    """Read a preset of the user's own: a TOML file with one table."""
    if not path.is_file():
        raise MissingInput(f"{path}: there is no such preset.", code="preset-missing")
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8-sig"))
        (table,) = tables.values()
        return _preset(table)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BadData(
            f"{path}: this is not a preset ({error!r}). See presets.toml of the package.",
            code="preset-invalid",
        ) from error


def _preset(table: Mapping[str, Any]) -> Preset:
    layouts = tuple(
        Layout(
            layout["image"],
            tuple((label["file"], label["map"]) for label in layout["labels"]),
            layout.get("participant", "{participant}"),
        )
        for layout in table["layouts"]
    )
    left_out = table.get("left_out", {})
    return Preset(
        name=table["name"],
        license=table["license"],
        citation=table.get("citation", ""),
        authors=tuple(table.get("authors", ())),
        links=tuple(table.get("links", ())),
        layouts=layouts,
        pairs=table.get("pairs", False),
        left_out=tuple(left_out.get("participants", ())),
        reason=left_out.get("reason", ""),
    )


def find_rows(
    preset: Preset, source: Path, *, label_map: str | None = None, keep_left_out: bool = False
) -> Found:
    """Find images and labels, at any depth of a folder, with the first layout that fits.

    Parameters
    ----------
    preset, source : Preset, Path
        What to look for, and in which folder.
    label_map : str, optional
        Replaces the map of every label image.
    keep_left_out : bool
        Take the participants that are left out by default; their sides are then not checked.

    Raises
    ------
    MissingInput
        If there is no such folder, or it has no image of the dataset.
    UsageError
        If a label map is not understood.
    """
    if not source.is_dir():
        raise MissingInput(f"{source}: there is no such folder.", code="folder-missing")
    paths = _walk(source)
    for layout in preset.layouts:
        pattern = _regex(layout.image, {})
        images = [(path, match) for path in paths if (match := pattern.fullmatch(path))]
        if images:
            return _collect(preset, layout, images, paths, label_map, keep_left_out)
    hint = ""
    if any(path.endswith((".mnc", ".mnc.gz")) for path in paths):
        hint = " MINC images must be converted to NIfTI first, for example with mnc2nii."
    templates = " or ".join(layout.image for layout in preset.layouts)
    raise MissingInput(
        f"{source}: there is no file named {templates}.{hint} For other names write a table (see "
        "--help).",
        code="preset-not-found",
    )


def _collect(
    preset: Preset,
    layout: Layout,
    images: list[tuple[str, re.Match[str]]],
    paths: list[str],
    label_map: str | None,
    keep_left_out: bool,
) -> Found:
    found = Found()
    left_out = {_plain(name) for name in preset.left_out}
    seen: dict[str, str] = {}
    parse = functools.cache(parse_label_map)
    for path, match in images:
        values = match.groupdict()
        participant = layout.participant.format(**values)
        known_bad = _plain(participant) in left_out
        if known_bad and not keep_left_out:
            found.left_out.append(f"{participant}: left out, {preset.reason} ({path})")
            continue
        row = Row(participant, Path(path), (), values.get("session"), check_sides=not known_bad)
        if preset.pairs:
            row = _one_of_a_pair(row, int(values["number"]))
        labels: list[tuple[Path, LabelMap]] = []
        for template, text in layout.labels:
            pattern = _regex(template, values)
            candidates = [other for other in paths if pattern.fullmatch(other)]
            if len(candidates) == 1:
                meaning = (label_map or text).replace("{crop}", str(row.crop))
                labels.append((Path(candidates[0]), parse(meaning)))
            else:
                what = "no label image" if not candidates else f"{len(candidates)} label images"
                found.problems.append(f"{path}: {what} named {_fill(template, values)}")
        if row.stem in seen:
            found.problems.append(f"{path}: is {row.stem}, and so is {seen[row.stem]}")
        elif len(labels) == len(layout.labels):
            seen[row.stem] = path
            found.rows.append(replace(row, labels=tuple(labels)))
    if preset.pairs:
        # Every fifth subject is in the fixed test set.
        _, test = split_every_fifth([int(row.participant) for row in found.rows])
        found.rows[:] = [
            replace(row, split="test" if int(row.participant) in test else "train")
            for row in found.rows
        ]
    return found


def _one_of_a_pair(row: Row, number: int) -> Row:
    """Name a crop by the subject that it shares with its partner, and by its side."""
    side = "L" if number % 2 else "R"
    subject = f"{(number + 1) // 2:03d}"
    return replace(row, participant=subject, acquisition=SIDE_NAMES[side], crop=side)


def _walk(source: Path) -> list[str]:
    """List all files below a folder, links followed, hidden ones not, relative and sorted."""
    found = []
    for folder, subfolders, names in os.walk(source, followlinks=True):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        base = Path(folder).relative_to(source)
        found += [(base / name).as_posix() for name in names if not name.startswith(".")]
    return sorted(found)


def _regex(template: str, values: Mapping[str, str]) -> re.Pattern[str]:
    """Make a pattern of a template, in which known values replace their placeholders."""
    out = []
    named: set[str] = set()
    for piece in re.split(r"(\{\w+\})", template):
        name = piece.strip("{}")
        if not piece.startswith("{"):
            out.append(re.escape(piece))
        elif name in values:
            out.append(re.escape(values[name]))
        elif name == "ext":
            out.append(_PLACEHOLDERS[name])
        elif name in named:
            out.append(f"(?P={name})")
        elif name in _PLACEHOLDERS:
            named.add(name)
            out.append(f"(?P<{name}>{_PLACEHOLDERS[name]})")
        else:
            raise UsageError(
                f"{template}: {piece} is none of {', '.join(_PLACEHOLDERS)}.",
                code="preset-placeholder",
            )
    return re.compile("(?:.*/)?" + "".join(out))


def _fill(template: str, values: Mapping[str, str]) -> str:
    for name, value in values.items():
        template = template.replace(f"{{{name}}}", value)
    return template


def _plain(name: str) -> str:
    """Name without zeros in front of numbers: sub008 and sub8 are the same."""
    return re.sub(r"(?<!\d)0+(?=\d)", "", name)
