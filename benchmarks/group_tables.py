"""Time the group level on a made dataset.

    python benchmarks/group_tables.py make FOLDER --subjects 5000 --sessions 2
    python benchmarks/group_tables.py time FOLDER [--model FORMULA …]

``make`` writes FOLDER/raw, a BIDS dataset of empty images with participants.tsv and sessions.tsv,
and FOLDER/derivatives with the tables that the participant level would leave: all numbers are
made. ``time`` runs ``hyps-bids raw derivatives group`` in a process of its own and prints seconds
and peak memory; the search for images is timed by itself too.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from hyps_bids.bids.index import find_scans
from hyps_bids.cohort.tables import write_group_tables
from hyps_bids.outputs.columns import MORPH_COLUMNS, qc_columns
from hyps_bids.outputs.scan import Scan
from hyps_bids.settings import Settings

PARTS = ("anterior", "posterior")
MODELS = {
    "SoftwareVersion": "0.0.0-made",
    "Models": {
        role: {"Name": f"{role.lower()}-made", "SHA256": "0" * 64}
        for role in ("Localizer", "Base", "Adapter")
    },
    "BiasFieldCorrection": "none",
}


def make(folder: Path, subjects: int, sessions: int) -> None:
    """Write the made dataset and its derivatives."""
    rng = np.random.default_rng(0)
    raw, output = folder / "raw", folder / "derivatives"
    raw.mkdir(parents=True)
    description = {"Name": "Made dataset", "BIDSVersion": "1.10.0"}
    (raw / "dataset_description.json").write_text(json.dumps(description))
    levels = {"diagnosis": {"Levels": {"CN": "control", "AD": "Alzheimer's disease"}}}
    (raw / "participants.json").write_text(json.dumps(levels))
    described = {
        **{name: {"Description": text} for name, text in qc_columns().items()},
        **MODELS,
    }
    sidecar = json.dumps(described, indent=2)
    people = ["participant_id\tage\tsex\tdiagnosis"]
    for i in range(subjects):
        subject = f"sub-{i:05d}"
        age, sick = rng.uniform(55, 85), i % 2
        people.append(f"{subject}\t{age:.1f}\t{'MF'[i // 2 % 2]}\t{('CN', 'AD')[sick]}")
        icv = rng.normal(1.45e6, 1.3e5)
        size = 3300 - 20 * (age - 65) + 0.001 * (icv - 1.45e6) - 600 * sick + rng.normal(0, 300)
        visits = ["session_id\tacq_time"]
        for year in range(sessions):
            session = f"ses-{year:02d}"
            visits.append(f"{session}\t{2000 + year}-06-15T10:00:00")
            scan = Scan.from_path(Path(f"{subject}_{session}_T1w.nii.gz"))
            image = raw / scan.folder / scan.path
            image.parent.mkdir(parents=True)
            image.touch()
            volume = size - 80 * year + rng.normal(0, 40)
            write_outputs(output / scan.folder, scan.stem, volume, icv, sidecar)
        (raw / subject / f"{subject}_sessions.tsv").write_text("\n".join(visits) + "\n")
    (raw / "participants.tsv").write_text("\n".join(people) + "\n")


def write_outputs(folder: Path, stem: str, volume: float, icv: float, sidecar: str) -> None:
    """Write one scan's tables; `volume` is that of one whole hippocampus, mm³."""
    folder.mkdir(parents=True)
    lines = ["\t".join(MORPH_COLUMNS)]
    index = 0
    for hemi in "LR":
        for part, share in (*zip(PARTS, (0.52, 0.48), strict=True), ("whole", 1.0)):
            index += part != "whole"
            number = "n/a" if part == "whole" else str(index)
            mm3 = f"{share * volume:.2f}"
            name = f"{hemi} {part}"
            lines.append("\t".join([number, name, hemi, part, "3000", mm3, mm3, f"{icv:.2f}"]))
    start = folder / f"{stem}_seg-hippocampus_"
    Path(f"{start}morph.tsv").write_text("\n".join(lines) + "\n")
    row = {name: "0.95" for name in qc_columns()} | {"status": "done", "icv_mm3": f"{icv:.2f}"}
    row |= {name: "n/a" for name in ("reason", "flags", "remarks")}
    Path(f"{start}qc.tsv").write_text("\t".join(row) + "\n" + "\t".join(row.values()) + "\n")
    Path(f"{start}qc.json").write_text(sidecar)


def run(folder: Path, models: list[str]) -> None:
    """Run the group level, search for images and tables timed apart."""
    settings = Settings(
        bids_dir=folder / "raw",
        output_dir=folder / "derivatives",
        analysis_level="group",
        bids_database_dir=folder / "index",
    )
    for name in ("first search for images", "second search, with its index"):
        with timed(name):
            find_scans(settings, need_content=False)
    with timed("tables, search included"):
        write_group_tables(settings)
    for model in models:
        with timed(f"tables and '{model}'"):
            write_group_tables(dataclasses.replace(settings, model=(model,)))


@contextmanager
def timed(name: str) -> Iterator[None]:
    """Print how long something took: by the clock, and of this process alone."""
    wall, own = time.perf_counter(), time.process_time()
    yield
    wall, own = time.perf_counter() - wall, time.process_time() - own
    print(f"{name}: {wall:.1f} s, {own:.1f} s of CPU", flush=True)


def measure(folder: Path, models: list[str]) -> None:
    """Run :func:`run` in a process of its own and print its peak memory."""
    command = [sys.executable, __file__, "run", str(folder), "--model", *models]
    subprocess.run(command, check=True)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024**2
    print(f"peak memory {peak:.2f} GiB; {os.cpu_count()} cores, {platform.processor()}")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=("make", "time", "run"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--subjects", type=int, default=5000)
    parser.add_argument("--sessions", type=int, default=2)
    parser.add_argument("--model", nargs="*", default=[])
    options = parser.parse_args()
    if options.action == "make":
        make(options.folder, options.subjects, options.sessions)
    else:
        {"time": measure, "run": run}[options.action](options.folder, options.model)


if __name__ == "__main__":
    main()
