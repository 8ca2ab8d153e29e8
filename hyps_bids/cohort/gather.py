"""Collect what the participant level left of every scan."""

from __future__ import annotations

import csv
import io
import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from hyps_bids.outputs.columns import KEYS, table_columns
from hyps_bids.outputs.names import SEG_PREFIX
from hyps_bids.outputs.scan import Scan
from hyps_bids.outputs.writing import remove_stale

__all__ = ["Gathered", "gather", "outputs_of"]

_TEXT = {"name", "hemi", "part", "status", "reason", "flags", "remarks"}
#: what a table cannot do without
_NEEDED = {"morph": ("hemi", "part", "volume_mm3", "volume_soft_mm3"), "qc": ("status",)}
_ENDING = f"_{SEG_PREFIX}_{{}}.tsv"
#: files are small and may be on a network: waiting for one must not hold up the others
_READERS = 8

Rows = list[list[str]]


@dataclass(frozen=True)
class Gathered:
    """The outputs of all scans.

    Attributes
    ----------
    morph : pandas.DataFrame
        Volumes of the scans that are done: :data:`KEYS`, then the columns of the volume tables.
    qc : pandas.DataFrame
        One row per scan: :data:`KEYS`, then the columns of the QC tables. ``status`` is ``done``
        or ``failed``; a scan whose tables are incomplete or damaged has failed, and ``reason``
        says how.
    provenance : pandas.DataFrame
        One row per scan that is done: scan, software_version, adapter, models; missing where the
        sidecar is damaged.
    """

    morph: pd.DataFrame
    qc: pd.DataFrame
    provenance: pd.DataFrame


def outputs_of(output: Path, keep: Callable[[Scan], bool]) -> dict[str, dict[str, Path]]:
    """Find the tables of the scans; what killed writers left beside them goes.

    Parameters
    ----------
    output : Path
        The derivatives dataset.
    keep : callable
        Whether a scan is wanted; it is given the scan's name only, not a real path.

    Returns
    -------
    dict
        By kind, ``morph`` and ``qc``, then by the scan's name, sorted.
    """
    found: dict[str, dict[str, Path]] = {"morph": {}, "qc": {}}
    for folder in _anat_folders(output):
        remove_stale(folder)
        for name in sorted(os.listdir(folder)):
            for kind, paths in found.items():
                ending = _ENDING.format(kind)
                # hidden names are those of files that are being written
                if name.endswith(ending) and not name.startswith("."):
                    stem = name.removesuffix(ending)
                    if keep(_scan(stem)):
                        paths[stem] = folder / name
    return {kind: dict(sorted(paths.items())) for kind, paths in found.items()}


def gather(output: Path, keep: Callable[[Scan], bool] = lambda scan: True) -> Gathered:
    """Stack the tables of all scans.

    Tables of several versions may differ in their columns; what one of them lacks is missing.

    Parameters
    ----------
    output : Path
        The derivatives dataset.
    keep : callable
        Which scans.

    Returns
    -------
    Gathered
        Sorted by scan; empty tables if there are no outputs.
    """
    paths = outputs_of(output, keep)
    tables, problems = {}, {}
    for kind, files in paths.items():
        tables[kind], problems[kind] = _stack(kind, files)
    qc, morph = tables["qc"], tables["morph"]
    done = set(qc.loc[qc["status"] == "done", "scan"])
    with_volumes = set(morph["scan"])
    reasons = {stem: reason for stem, reason in problems["morph"].items() if stem in done}
    for stem in sorted(done - with_volumes - set(reasons)):
        reasons[stem] = "no volume table; run the participant level again"
    sidecars = {stem: paths["qc"][stem].with_suffix(".json") for stem in sorted(done)}
    with ThreadPoolExecutor(_READERS) as pool:
        there = dict(zip(sidecars, pool.map(Path.is_file, sidecars.values()), strict=True))
    for stem in done - set(reasons):
        if not there[stem]:
            # written last: the tables may be of different runs
            reasons[stem] = "no QC sidecar, interrupted; run the participant level again"
    for stem in sorted(set(paths["morph"]) - set(paths["qc"])):
        reasons[stem] = "no QC table, interrupted; run the participant level again"
    reasons |= problems["qc"]
    kept = qc[~qc["scan"].isin(reasons.keys())]
    failed = pd.DataFrame(
        [[*_keys(stem), "failed", reason] for stem, reason in reasons.items()],
        columns=[*KEYS, "status", "reason"],
    )
    qc = _concat([kept, failed]).sort_values("scan", kind="stable", ignore_index=True)
    done -= set(reasons)
    # volumes count only with a QC row that says done
    morph = morph[morph["scan"].isin(done)].reset_index(drop=True)
    made = _provenance({stem: path for stem, path in sidecars.items() if stem in done})
    return Gathered(morph, qc, made)


def _anat_folders(output: Path) -> Iterable[Path]:
    for subject in _folders(output, "sub-"):
        yield from _folders(subject, "anat")
        for session in _folders(subject, "ses-"):
            yield from _folders(session, "anat")


def _folders(parent: Path, start: str) -> list[Path]:
    with os.scandir(parent) as entries:
        return sorted(Path(e.path) for e in entries if e.name.startswith(start) and e.is_dir())


def _scan(stem: str) -> Scan:
    return Scan.from_path(Path(f"{stem}_T1w.nii.gz"))


def _keys(stem: str) -> list[str | None]:
    scan = _scan(stem)
    return [f"sub-{scan.subject}", f"ses-{scan.session}" if scan.session else None, stem]


def _stack(kind: str, paths: dict[str, Path]) -> tuple[pd.DataFrame, dict[str, str]]:
    """Stack one kind of table; those that cannot be used come back with the reason."""
    with ThreadPoolExecutor(_READERS) as pool:
        contents = list(pool.map(lambda path: _read(path, kind), paths.values()))
    rows: dict[tuple[str, ...], list[list[str | None]]] = defaultdict(list)
    problems = {}
    for (stem, path), content in zip(paths.items(), contents, strict=True):
        if isinstance(content, str):
            problems[stem] = f"{path.name}: {content}; run the participant level again"
            continue
        keys = _keys(stem)
        header, *body = content
        # one table per distinct header, whatever the number of files
        rows[tuple(header)].extend([*keys, *line] for line in body)
    frames = [pd.DataFrame(body, columns=[*KEYS, *header]) for header, body in rows.items()]
    frame = _concat([pd.DataFrame(columns=list(table_columns(kind))), *frames])
    frame = frame.replace({"n/a": None, "": None})
    for column in frame.columns.difference([*KEYS, *_TEXT]):
        numbers = pd.to_numeric(frame[column], errors="coerce").astype("float64")
        odd = numbers.isna() & frame[column].notna()
        if odd.any() and column not in table_columns(kind):
            # of another version, and text
            continue
        for stem, value in frame.loc[odd, ["scan", column]].itertuples(index=False):
            problems[stem] = (
                f"{paths[stem].name}: {column} is '{value}', not a number; "
                "run the participant level again"
            )
        frame[column] = numbers
    frame = frame[~frame["scan"].isin(problems.keys())]
    return frame.sort_values("scan", kind="stable", ignore_index=True), problems


def _read(path: Path, kind: str) -> Rows | str:
    """Read a table as text, header first, or say why it cannot be."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    except UnicodeDecodeError:
        return "not UTF-8 text"
    lines = [line for line in csv.reader(io.StringIO(text), delimiter="\t") if line]
    if len(lines) < 2:
        return "empty"
    lacking = [name for name in _NEEDED[kind] if name not in lines[0]]
    if lacking:
        return f"no column {', '.join(lacking)}"
    if len(set(map(len, lines))) > 1:
        return "rows of different lengths"
    if kind == "qc" and len(lines) > 2:
        return "more than one row"
    return lines


def _provenance(sidecars: dict[str, Path]) -> pd.DataFrame:
    with ThreadPoolExecutor(_READERS) as pool:
        made = list(pool.map(_made_by, sidecars.values()))
    columns = ["software_version", "adapter", "models"]
    frame = pd.DataFrame(made, columns=columns, dtype="str")
    frame.insert(0, "scan", list(sidecars))
    return frame


def _made_by(sidecar: Path) -> tuple[str | None, str | None, str | None]:
    """Read version, adapter, and all weights and corrections that decide the volumes."""
    try:
        content: dict[str, Any] = json.loads(sidecar.read_text(encoding="utf-8"))
        models = {role: (m["Name"], m["SHA256"][:8]) for role, m in content["Models"].items()}
        words = [f"{name}:{digest}" for name, digest in models.values()]
        words.append(f"n4:{content['BiasFieldCorrection']}")
        return str(content["SoftwareVersion"]), models["Adapter"][0], " ".join(words)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        # damaged; reported by whoever needs to know: what made these volumes is not known
        return None, None, None


def _concat(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Concatenate; columns of the first frame first, empty frames only for their columns."""
    columns = list(dict.fromkeys(name for frame in frames for name in frame.columns))
    filled = [frame for frame in frames if len(frame)]
    if not filled:
        return pd.DataFrame(columns=columns)
    return pd.concat(filled, ignore_index=True).reindex(columns=columns)
