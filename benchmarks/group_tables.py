"""Time the group level on a made dataset.

    python benchmarks/group_tables.py make FOLDER --subjects 5000 --sessions 2 [--longitudinal]
    python benchmarks/group_tables.py time FOLDER [--model FORMULA …]

``make`` writes FOLDER/raw, a BIDS dataset of empty images with participants.tsv and sessions.tsv,
and FOLDER/out with the tables that the participant level would write, those of the series of each
participant with ``--longitudinal``. All numbers are made up.
``time`` runs the group level in a process of its own and prints seconds and peak memory; the
search for images is also timed on its own.
"""

from __future__ import annotations

import argparse
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

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hyps_bids.bids.index import find_scans
from hyps_bids.outputs.columns import qc_columns
from tests.cohort.study import MadeStudy


def make(folder: Path, subjects: int, sessions: int, *, longitudinal: bool) -> None:
    """Write the made dataset and its derivatives."""
    rng = np.random.default_rng(0)
    study = MadeStudy.create(folder)
    quality = {name: 0.95 for name in qc_columns() if name.endswith(("_L", "_R"))}
    levels = '{"diagnosis": {"Levels": {"CN": "control", "AD": "patient"}}}'
    (study.raw / "participants.json").write_text(levels)
    people = ["participant_id age sex diagnosis"]
    for i in range(subjects):
        subject = f"sub-{i:05d}"
        age, sick = rng.uniform(55, 85), i % 2
        people.append(f"{subject} {age:.1f} {'MF'[i // 2 % 2]} {('CN', 'AD')[sick]}")
        icv = rng.normal(1.45e6, 1.3e5)
        size = 3300 - 20 * (age - 65) + 0.001 * (icv - 1.45e6) - 600 * sick + rng.normal(0, 300)
        visits = ["session_id acq_time"]
        for year in range(sessions):
            visits.append(f"ses-{year:02d} {2000 + year}-06-15T10:00:00")
            left, right = size - 80 * year + rng.normal(0, 40, 2)
            study.scan(f"{subject}_ses-{year:02d}", left, right, icv=icv, **quality)
        study.table(f"{subject}/{subject}_sessions.tsv", "\n".join(visits))
        if longitudinal:
            stems = [f"{subject}_ses-{year:02d}" for year in range(sessions)]
            loss = {"L": -1.0 - sick + rng.normal(0, 0.8), "R": -1.0 - sick + rng.normal(0, 0.8)}
            study.series(stems, loss, volume=size)
    study.table("participants.tsv", "\n".join(people))


def run(folder: Path, models: list[str]) -> None:
    """Run the group level, with the search for images timed separately."""
    study = MadeStudy(folder)
    index = {"bids_database_dir": folder / "index"}
    for name in ("first search for images", "second search, with its index"):
        with timed(name):
            find_scans(study.settings(**index), need_content=False)
    with timed("tables, including the search"):
        study.write_tables(**index)
    for model in models:
        with timed(f"tables and '{model}'"):
            study.write_tables(model=(model,), **index)


@contextmanager
def timed(name: str) -> Iterator[None]:
    """Print the seconds that something took, by the clock and by the CPU time of this process."""
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
    parser.add_argument("--longitudinal", action="store_true")
    parser.add_argument("--model", nargs="*", default=[])
    options = parser.parse_args()
    if options.action == "make":
        make(options.folder, options.subjects, options.sessions, longitudinal=options.longitudinal)
    else:
        {"time": measure, "run": run}[options.action](options.folder, options.model)


if __name__ == "__main__":
    main()
