"""A made dataset with made volumes, for tests and benchmarks of the group level."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hyps_bids.cohort.tables import write_group_tables
from hyps_bids.outputs.columns import (
    ANNUAL_CHANGE_COLUMNS,
    LONGITUDINAL_COLUMNS,
    MORPH_COLUMNS,
    SERIES_QC_COLUMNS,
    qc_columns,
)
from hyps_bids.outputs.names import group_path, scan_paths, sidecar_path
from hyps_bids.outputs.reading import read_table
from hyps_bids.outputs.scan import Scan
from hyps_bids.outputs.scan_files import write_failure
from hyps_bids.outputs.series import Series
from hyps_bids.outputs.writing import write_json, write_table
from hyps_bids.settings import Settings

__all__ = ["MadeStudy"]

PARTS = {"anterior": 0.55, "posterior": 0.45}


@dataclass(frozen=True)
class MadeStudy:
    """A raw dataset and its derivatives, filled scan by scan."""

    folder: Path

    @classmethod
    def create(cls, folder: Path) -> MadeStudy:
        study = cls(folder)
        study.raw.mkdir(parents=True)
        study.output.mkdir()
        description = {"Name": "Made", "BIDSVersion": "1.10.0"}
        (study.raw / "dataset_description.json").write_text(json.dumps(description))
        return study

    @property
    def raw(self) -> Path:
        return self.folder / "raw"

    @property
    def output(self) -> Path:
        return self.folder / "out"

    def settings(self, **options: Any) -> Settings:
        return Settings(
            bids_dir=self.raw, output_dir=self.output, analysis_level="group", **options
        )

    def write_tables(self, **options: Any) -> pd.DataFrame:
        return write_group_tables(self.settings(**options)).wide

    def group_table(self, kind: str) -> pd.DataFrame:
        return read_table(group_path(self.output, kind))

    def group_sidecar(self, kind: str) -> dict[str, Any]:
        return json.loads(sidecar_path(group_path(self.output, kind)).read_text())

    def table(self, name: str, text: str) -> Path:
        """Write a table of the raw dataset; columns are separated by spaces here."""
        path = self.raw / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace(" ", "\t") + "\n")
        return path

    def cohort(self, participants: pd.DataFrame, sessions: pd.DataFrame | None = None) -> None:
        """Add the tables of a cohort of OASIS, see :mod:`tests.cohorts`, and made scans.

        Each hippocampus has 3500 mm³ at 65 years and loses 15 mm³ per year; a CDR above 0 takes 300
        mm³ away. There is one scan per session.
        """
        rng = np.random.default_rng(1)
        self._write_table("participants.tsv", participants)
        scans = participants if sessions is None else sessions
        for name, rows in [] if sessions is None else sessions.groupby("participant_id"):
            table = rows.drop(columns="participant_id")
            self._write_table(f"{name}/{name}_sessions.tsv", table)
        numbers = scans[["Age", "CDR", "eTIV"]].apply(
            lambda c: c.str.replace(",", ".").str.extract(r"(\d+(?:\.\d+)?)")[0].astype(float)
        )
        whole = 3500 - 15 * (numbers["Age"] - 65) - 300 * (numbers["CDR"] > 0)
        for row, name in scans["participant_id"].items():
            session = "" if sessions is None else f"_{scans['session_id'][row]}"
            left, right = whole[row] + rng.normal(0, 40, 2)
            self.scan(f"{name}{session}", left, right, icv=1000 * numbers["eTIV"][row])

    def _write_table(self, name: str, table: pd.DataFrame) -> None:
        (self.raw / name).parent.mkdir(parents=True, exist_ok=True)
        table.to_csv(self.raw / name, sep="\t", index=False, na_rep="n/a")

    def image(self, stem: str) -> Scan:
        """Add an empty file with the name of an image."""
        scan = Scan.from_stem(stem)
        path = self.raw / scan.folder / scan.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        return scan

    def scan(
        self,
        stem: str,
        left: float | None = 3000.0,
        right: float | None = 2800.0,
        *,
        icv: float = 1.5e6,
        parts: Mapping[str, float] = PARTS,
        adapter: str = "adapter-made",
        version: str = "0.0.1",
        **quality: Any,
    ) -> None:
        """Add an image and its outputs of the participant level; None is a missing side."""
        suffix = self.image(stem).suffix
        rows = []
        for hemi, volume in (("L", left), ("R", right)):
            for part, share in (parts | {"whole": 1.0}).items():
                mm3 = None if volume is None else volume * share
                soft = None if mm3 is None else mm3 * 1.01
                voxels = None if mm3 is None else round(mm3)
                index = None if part == "whole" else 1
                rows.append([suffix, index, part, hemi, part, voxels, mm3, soft, icv])
        write_table(self.path(stem, "morph"), pd.DataFrame(rows, columns=list(MORPH_COLUMNS)))
        row = {"suffix": suffix, "status": "done", "icv_mm3": icv} | quality
        write_table(self.path(stem, "qc"), pd.DataFrame([row], columns=list(qc_columns())))
        made = {
            "SoftwareVersion": version,
            "Models": {
                "Localizer": {"Name": "localizer-made", "SHA256": "1" * 64},
                "Adapter": {"Name": adapter, "SHA256": "2" * 64},
            },
            "BiasFieldCorrection": "none",
            "Fingerprint": f"{stem} {left} {right} {adapter} {version}",
        }
        write_json(self.sidecar(stem), made)

    def series(
        self,
        stems: Sequence[str],
        change: Mapping[str, float],
        *,
        volume: float = 3000.0,
        years: float = 1.0,
        error: float = 0.3,
        parts: Sequence[str] = (*PARTS, "whole"),
        refused: Mapping[str, str] | None = None,
        **sidecar: Any,
    ) -> None:
        """Add the longitudinal results of scans that are there already.

        The change of each side is in percent of `volume` per year, by both methods; a side that is
        left out is missing. The scans are `years` apart, and `error` is the standard error of the
        change in percent per year. `refused` scans have a reason.
        """
        refused = refused or {}
        scans = [Scan.from_stem(stem) for stem in stems]
        used = [stem for stem in stems if stem not in refused]
        span = years * (len(used) - 1)
        shares = PARTS | {"whole": 1.0}
        long, annual = [], []
        for hemi, part in product("LR", parts):
            base, slope = volume * shares[part], change.get(hemi, np.nan)
            keys = {"suffix": scans[0].suffix, "hemi": hemi, "part": part}
            for visit, stem in enumerate(used):
                moved = base * slope / 100 * visit * years
                mm3 = {"volume_mm3": base + moved, "change_mm3": moved, "bsi_mm3": moved}
                when = {"scan": stem, "visit": visit + 1, "years": visit * years}
                long.append(keys | when | mm3)
            for method in ("volume", "bsi") if np.isfinite(slope) else ():
                figures = {"percent_per_year": slope, "percent_per_year_se": error}
                figures["percent_per_year_low"] = slope - 1.96 * error
                figures["percent_per_year_high"] = slope + 1.96 * error
                figures["mm3_per_year"] = base * slope / 100
                figures["mm3_per_year_se"] = base * error / 100
                facts = {"n_scans": len(used), "span_years": span, "time_source": "acq_time"}
                annual.append(keys | {"method": method, "baseline_mm3": base} | facts | figures)
        rows = [
            {"scan": stem, "suffix": scans[0].suffix, "status": "refused" if bad else "used"}
            | {"reason": bad, "flags": "different-head" if bad else None}
            for stem in stems
            for bad in [refused.get(stem)]
        ]
        paths = Series.of(scans[0]).paths(self.output)
        for kind, columns, body in (
            ("morph", LONGITUDINAL_COLUMNS, long),
            ("annual", ANNUAL_CHANGE_COLUMNS, annual),
            ("qc", SERIES_QC_COLUMNS, rows),
        ):
            write_table(paths[kind], pd.DataFrame(body, columns=list(columns)))
        made = json.loads(self.sidecar(stems[0]).read_text())
        made["Scans"] = {
            stem: json.loads(self.sidecar(stem).read_text())["Fingerprint"] for stem in stems
        }
        made["Used"] = used
        write_json(sidecar_path(paths["qc"]), made | sidecar)

    def failed_scan(self, stem: str, reason: str) -> None:
        write_failure(self.image(stem), self.output, reason)

    def path(self, stem: str, kind: str) -> Path:
        return scan_paths(Scan.from_stem(stem), self.output)[kind]

    def sidecar(self, stem: str) -> Path:
        return sidecar_path(self.path(stem, "qc"))
