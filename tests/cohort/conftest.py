"""A made dataset with made volumes, for the group level."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from hyps_bids.outputs.columns import MORPH_COLUMNS, qc_columns
from hyps_bids.outputs.names import output_path
from hyps_bids.outputs.scan import Scan
from hyps_bids.outputs.writing import write_json, write_table
from hyps_bids.settings import Settings

PARTS = {"anterior": 0.55, "posterior": 0.45}


@dataclass(frozen=True)
class MadeStudy:
    """A raw dataset and its derivatives, filled scan by scan."""

    folder: Path

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

    def table(self, name: str, text: str) -> Path:
        """Write a table of the raw dataset; columns are separated by spaces here."""
        path = self.raw / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace(" ", "\t") + "\n")
        return path

    def image(self, stem: str) -> Scan:
        """Add an empty file with the name of an image."""
        scan = Scan.from_path(Path(f"{stem}_T1w.nii.gz"))
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
        flags: str | None = None,
    ) -> None:
        """Add an image and what the participant level leaves of it; None is a missing side."""
        scan = self.image(stem)
        rows = []
        for hemi, volume in (("L", left), ("R", right)):
            for part, share in (parts | {"whole": 1.0}).items():
                mm3 = None if volume is None else volume * share
                soft = None if mm3 is None else mm3 * 1.01
                voxels = None if mm3 is None else round(mm3)
                index = None if part == "whole" else 1
                rows.append([index, part, hemi, part, voxels, mm3, soft, icv])
        write_table(self.path(scan, "morph"), pd.DataFrame(rows, columns=list(MORPH_COLUMNS)))
        row = {"status": "done", "flags": flags, "icv_mm3": icv}
        write_table(self.path(scan, "qc"), pd.DataFrame([row], columns=list(qc_columns())))
        made = {
            "SoftwareVersion": version,
            "Models": {
                "Localizer": {"Name": "localizer-made", "SHA256": "1" * 64},
                "Adapter": {"Name": adapter, "SHA256": "2" * 64},
            },
            "BiasFieldCorrection": "none",
        }
        write_json(self.path(scan, "qc").with_suffix(".json"), made)

    def path(self, scan: Scan | str, kind: str) -> Path:
        if isinstance(scan, str):
            scan = Scan.from_path(Path(f"{scan}_T1w.nii.gz"))
        return output_path(self.output, scan, seg="hippocampus", suffix=kind, extension=".tsv")


@pytest.fixture
def study(tmp_path: Path) -> MadeStudy:
    made = MadeStudy(tmp_path)
    made.raw.mkdir()
    made.output.mkdir()
    description = {"Name": "Made", "BIDSVersion": "1.10.0"}
    (made.raw / "dataset_description.json").write_text(json.dumps(description))
    return made
