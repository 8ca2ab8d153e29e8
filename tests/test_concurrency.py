"""Many processes share one output folder and are killed at random; the results stay the same."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

SUBJECTS = ("01", "02", "03")
PROCESSES = 7
SEED = 6
_PARTIAL = re.compile(r"\.[0-9a-f]{8}\..+")


def run(folder: Path, jobs: list[list[str]], kills: int = 0, pause: float = 0.1) -> dict[str, Any]:
    """Run all jobs at once by stampede.py, with its log beside the outputs."""
    task = folder / f"task-{len(list(folder.glob('task-*.json')))}.json"
    content = {"jobs": jobs, "kills": kills, "pause": pause, "seed": SEED}
    content["log"] = str(task.with_suffix(".log"))
    task.write_text(json.dumps(content))
    script = Path(__file__).with_name("stampede.py")
    done = subprocess.run(
        [sys.executable, script, task],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return dict(json.loads(done.stdout))


def tree(out: Path) -> dict[str, str]:
    """Return the digest of every file except logs and intermediate files."""
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.relative_to(out).parts[0] not in ("logs", "work")
    }


def partials(out: Path) -> list[Path]:
    return [path for path in out.rglob(".*") if _PARTIAL.fullmatch(path.name)]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory, coarse_head: nib.Nifti1Image) -> Path:
    """Four subjects made from one real head: cropped to be quick, each of another brightness."""
    root = tmp_path_factory.mktemp("stampede") / "raw"
    root.mkdir()
    (root / "dataset_description.json").write_text('{"Name": "test", "BIDSVersion": "1.9.0"}')
    brain = coarse_head.slicer[24:106, 14:112, 28:110]
    for i, subject in enumerate(SUBJECTS):
        path = root / f"sub-{subject}" / "anat" / f"sub-{subject}_T1w.nii.gz"
        path.parent.mkdir(parents=True)
        data = np.asarray(brain.dataobj) * (1 + i / 10)
        nib.save(nib.Nifti1Image(data.astype(np.int16), brain.affine), path)
    return root


@pytest.mark.slow
def test_killed_and_restarted_jobs_leave_what_a_quiet_run_leaves(dataset: Path) -> None:
    folder = dataset.parent
    quiet, wild = folder / "quiet", folder / "wild"
    alone = ["--nprocs", "1", "--omp-nthreads", "1"]
    assert run(folder, [[str(dataset), str(quiet), "participant", *alone]])["codes"] == [0]
    assert run(folder, [[str(dataset), str(quiet), "group"]])["codes"] == [0]

    level = [str(dataset), str(wild), "participant", *alone]
    index = ["--bids-database-dir", str(folder / "index")]
    work = ["-w", str(folder / "work")]
    jobs = []
    for i in range(PROCESSES - 2):
        subject = SUBJECTS[i % len(SUBJECTS)]
        # One job of each participant uses the common work folder; the others share participants.
        options = work if i < len(SUBJECTS) else []
        jobs.append([*level, "--participant-label", subject, *index, *options])
    # One job processes everybody, and the group level does not wait for the others.
    jobs.append([*level, *index])
    jobs.append([str(dataset), str(wild), "group", *index])
    done = run(folder, jobs, kills=6, pause=1)
    assert done["most"] == PROCESSES
    assert done["killed"] == 6
    *participants, group = done["codes"]
    assert participants == [0] * (PROCESSES - 1)
    # The code is 66 if no job had written a table yet.
    assert group in (0, 66)
    assert not list((folder / "index").glob("layout_index.sqlite-journal"))

    done = run(folder, [[str(dataset), str(wild), "group", *index]] * 3, kills=5, pause=0.03)
    assert done["codes"] == [0] * 3
    assert done["killed"] == 5

    left = partials(wild)
    long_ago = time.time() - 2 * 86400
    for path in left:
        os.utime(path, (long_ago, long_ago))
    assert run(folder, [[str(dataset), str(wild), "group"]])["codes"] == [0]
    assert partials(wild) == []
    assert tree(wild) == tree(quiet)
