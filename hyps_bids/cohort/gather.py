"""Collect the tables that the participant level has left for every scan."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from hyps_bids.cohort.stacking import READERS, RUN_AGAIN, TableKind, concat, stack_tables
from hyps_bids.errors import MissingInput
from hyps_bids.outputs.columns import KEYS, table_columns
from hyps_bids.outputs.flags import reasons as reasons_of
from hyps_bids.outputs.names import parse_output, sidecar_path
from hyps_bids.outputs.reading import load_json
from hyps_bids.outputs.scan import Scan
from hyps_bids.outputs.series import Series, parse_series
from hyps_bids.outputs.writing import remove_stale

#: Kind of table of a scan → columns without which it is useless
_REQUIRED = {"morph": ("hemi", "part", "volume_mm3", "volume_soft_mm3"), "qc": ("status",)}


@dataclass(frozen=True)
class Gathered:
    """The outputs of all scans.

    Attributes
    ----------
    morph, qc : pandas.DataFrame
        :data:`KEYS`, then the columns of the volume and QC tables. Only scans that are done have
        volumes. ``status`` is ``done`` or ``failed``; a scan whose tables are incomplete or damaged
        has failed, and ``reason`` says how.
    provenance : pandas.DataFrame
        scan, software_version, adapter and models of the scans that are done; missing where the
        sidecar is damaged.
    unreadable : dict of Path to str
        Folders and files that cannot be read, and why.
    fingerprints : dict of str to str
        Scans that are done → digest of the image, weights and options that made their volumes.
    """

    morph: pd.DataFrame
    qc: pd.DataFrame
    provenance: pd.DataFrame
    unreadable: dict[Path, str]
    fingerprints: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class FoundOutputs:
    """The tables of the participant level.

    Attributes
    ----------
    tables : dict of str to dict of str to Path
        Kind of table (``morph``, ``qc``) → name of the scan → file, sorted.
    unreadable : dict of Path to str
        Folders that cannot be read, and why.
    series : frozenset of Series
        Series that have a table, whether it is complete or not.
    """

    tables: dict[str, dict[str, Path]]
    unreadable: dict[Path, str]
    series: frozenset[Series] = frozenset()

    @property
    def stems(self) -> list[str]:
        """Names of all scans, sorted."""
        return sorted(set().union(*self.tables.values()))

    def without(self, stems: Collection[str]) -> FoundOutputs:
        """Leave out the tables of some scans."""
        left = set(stems)
        tables = {
            kind: {stem: path for stem, path in paths.items() if stem not in left}
            for kind, paths in self.tables.items()
        }
        return replace(self, tables=tables)


class _MadeBy(NamedTuple):
    software_version: str | None = None
    adapter: str | None = None
    models: str | None = None
    fingerprint: str | None = None


def find_outputs(output: Path, keep: Callable[[Scan], bool] = lambda scan: True) -> FoundOutputs:
    """Find the tables of the scans, and the folders in which nothing can be found.

    Partial files of writers that were killed are removed. `keep` tells whether a scan is wanted;
    it is given the scan's name only, not a real path.

    Raises
    ------
    MissingInput
        If `output` itself cannot be read.
    """
    found: dict[str, dict[str, Path]] = {"morph": {}, "qc": {}}
    unreadable: dict[Path, str] = {}
    series = set()
    for folder in _anat_folders(output, unreadable):
        try:
            names = os.listdir(folder)
        except OSError as error:
            unreadable[folder] = error.strerror or str(error)
            continue
        remove_stale(folder)
        for name in names:
            stem, kind = parse_output(name) or ("", "")
            kind, _, extension = kind.partition(".")
            if extension == "tsv" and kind in found and keep(Scan.from_stem(stem)):
                found[kind][stem] = folder / name
            elif not stem and (one := parse_series(name)):
                series.add(one)
    if output in unreadable:
        raise MissingInput(
            f"{output}: the folder cannot be read ({unreadable[output]}).", code="output-unreadable"
        )
    return FoundOutputs(
        {kind: dict(sorted(paths.items())) for kind, paths in found.items()},
        unreadable,
        frozenset(series),
    )


def gather(found: FoundOutputs) -> Gathered:
    """Stack the tables of all scans.

    Tables of several versions may differ in their columns; a column that a table lacks is missing
    for its scans. The result is sorted by scan, and has empty tables if there are no outputs.
    """
    paths, unreadable = found.tables, dict(found.unreadable)
    qc, qc_problems = _stack("qc", paths["qc"], unreadable)
    morph, morph_problems = _stack("morph", paths["morph"], unreadable)
    done = qc.loc[qc["status"] == "done", "scan"].tolist()
    with ThreadPoolExecutor(READERS) as pool:
        made_by = dict(
            zip(done, pool.map(_made_by, (sidecar_path(paths["qc"][s]) for s in done)), strict=True)
        )
    with_volumes = set(morph["scan"])
    reasons = {}
    for stem in done:
        if stem in morph_problems:
            reasons[stem] = morph_problems[stem]
        elif stem not in with_volumes:
            reasons[stem] = f"no volume table; {RUN_AGAIN}"
        elif made_by[stem] is None:
            # The sidecar is written last: without it, the tables may be from different runs.
            reasons[stem] = f"no QC sidecar, interrupted; {RUN_AGAIN}"
    for stem in set(paths["morph"]) - set(paths["qc"]):
        reasons[stem] = f"no QC table, interrupted; {RUN_AGAIN}"
    reasons |= qc_problems
    failed = pd.DataFrame(
        [[*scan_keys(stem), "failed", reason] for stem, reason in reasons.items()],
        columns=[*KEYS, "status", "reason"],
    )
    qc = _with_review(concat([qc[~qc["scan"].isin(reasons)], failed]))
    made = {stem: facts for stem, facts in made_by.items() if facts and stem not in reasons}
    names = list(_MadeBy._fields)
    provenance = pd.DataFrame(list(made.values()), columns=names, dtype="str")[names[:-1]]
    provenance.insert(0, "scan", list(made))
    return Gathered(
        # Volumes count only together with a QC row that says done.
        morph=morph[morph["scan"].isin(made)].reset_index(drop=True),
        qc=qc.sort_values("scan", kind="stable", ignore_index=True),
        provenance=provenance,
        unreadable=unreadable,
        fingerprints={s: facts.fingerprint for s, facts in made.items() if facts.fingerprint},
    )


def _with_review(qc: pd.DataFrame) -> pd.DataFrame:
    """Say which scans to review, also for those of versions that wrote their flags only."""
    unsaid = qc[(qc["status"] == "done") & qc["review"].isna()]
    flagged = unsaid[unsaid["flags"].notna()]
    texts = {
        row: " ".join(reasons_of(values["flags"].split(), values))
        for row, values in flagged.to_dict("index").items()
    }
    qc = qc.astype({"review": "object", "reasons": "object"})
    qc.loc[unsaid.index, "review"] = "no"
    qc.loc[flagged.index, "review"] = "yes"
    qc.loc[flagged.index, "reasons"] = pd.Series(texts, dtype="object")
    return qc.astype({"review": "str", "reasons": "str"})


def scan_keys(stem: str) -> list[str | None]:
    """Return the values of :data:`KEYS` for a scan."""
    scan = Scan.from_stem(stem)
    session = f"ses-{scan.session}" if scan.session else None
    return [f"sub-{scan.subject}", session, stem, scan.suffix]


def _anat_folders(output: Path, unreadable: dict[Path, str]) -> Iterator[Path]:
    """Yield the folders in which tables may be."""
    for subject in _folders(output, "sub-", unreadable):
        for folder in _folders(subject, ("anat", "ses-"), unreadable):
            if folder.name == "anat":
                yield folder
            else:
                yield from _folders(folder, "anat", unreadable)


def _folders(
    parent: Path, starts: str | tuple[str, ...], unreadable: dict[Path, str]
) -> list[Path]:
    """List folders by the start of their names; what cannot be read is added to `unreadable`."""
    try:
        with os.scandir(parent) as entries:
            # Files such as sub-01.html have an extension.
            found = sorted(
                (Path(entry.path), entry)
                for entry in entries
                if entry.name.startswith(starts) and "." not in entry.name
            )
    except OSError as error:
        unreadable[parent] = error.strerror or str(error)
        return []
    folders = []
    for path, entry in found:
        try:
            if entry.is_dir():
                folders.append(path)
            else:
                unreadable[path] = "a link to nowhere" if entry.is_symlink() else "not a folder"
        except OSError as error:
            unreadable[path] = error.strerror or str(error)
    return folders


def _stack(
    kind: str, paths: dict[str, Path], unreadable: dict[Path, str]
) -> tuple[pd.DataFrame, dict[str, str]]:
    """Stack one kind of table of all scans, see :func:`~hyps_bids.cohort.stacking.stack_tables`."""
    about = TableKind(
        table_columns(kind), _REQUIRED[kind], tuple(KEYS), scan_keys, "scan", kind == "qc"
    )
    return stack_tables(about, paths, unreadable)


def name_models(sidecar: Mapping[str, Any]) -> str:
    """Name all weights, with the first digits of their sums, and the bias field correction."""
    words = [f"{model['Name']}:{model['SHA256'][:8]}" for model in sidecar["Models"].values()]
    return " ".join([*words, f"n4:{sidecar['BiasFieldCorrection']}"])


def _made_by(sidecar: Path) -> _MadeBy | None:
    """Read what decided the volumes; None without a sidecar, and nothing from a damaged one."""
    try:
        content: dict[str, Any] = load_json(sidecar)
        version, adapter = str(content["SoftwareVersion"]), content["Models"]["Adapter"]["Name"]
        return _MadeBy(version, adapter, name_models(content), content.get("Fingerprint"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return _MadeBy()
