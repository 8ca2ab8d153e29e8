"""Time nested cross-validation on a simulated cohort.

    python benchmarks/classifiers.py --subjects 5000 --features 25 --nprocs 2

Prints wall and CPU seconds and peak memory. Compare CPU seconds if the machine does something else
at the same time.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hyps_bids.classification.contrast import LabeledSubjects
from hyps_bids.classification.cross_validation import (
    SELECTED,
    nested_cv,
    stratified_folds,
)
from hyps_bids.classification.estimators import ESTIMATORS
from hyps_bids.classification.features import Schema
from hyps_bids.classification.intervals import metric_rows
from hyps_bids.classification.processes import Computing
from tests.cohorts import PARTS, simulate


def main() -> None:
    """Run one nested cross-validation."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--subjects", type=int, default=5000)
    parser.add_argument("--features", type=int, default=25, help="volumes and covariates, > 8")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--nprocs", type=int, default=2)
    parser.add_argument("--estimators", nargs="+", default=list(ESTIMATORS))
    options = parser.parse_args()
    half = options.subjects // 2
    extra = options.features - 8
    frame = simulate(
        {"AD": half, "CN": half},
        {"AD": -1},
        sites=("A", "B", "C"),
        site_shift=100,
        missing=0.02,
        noise_features=extra,
    )
    schema = Schema(
        volumes=PARTS,
        ratios=tuple(f"noise_{i}" for i in range(extra)),
        icv="icv_mm3",
        numeric=("age", "education", "MMSE"),
        categories={"sex": ("F", "M")},
        preserve=("age", "sex"),
        site="site",
        sites=("A", "B", "C"),
    )
    label = (frame["diagnosis"] == "CN").to_numpy().astype(np.int64)
    ids = tuple(frame["participant_id"])
    data = LabeledSubjects(schema.matrix(frame), np.arange(len(ids)), label, ids, ("AD", "CN"))
    print(f"load before: {os.getloadavg()[0]:.1f}")
    began = time.monotonic()
    folds = stratified_folds(label, options.folds, options.repeats, 0)
    computing = Computing(nprocs=options.nprocs, progress=lambda text: print(text, flush=True))
    found = nested_cv(data, {"all": schema}, folds, options.estimators, computing)["all"]
    fitted = time.monotonic()
    area = {
        (name, row["figure"]): row["value"]
        for name, probability in found.probability.items()
        for row in metric_rows(label, probability, folds)
    }
    done = time.monotonic()
    print(f"AUC of selected: {area[SELECTED, 'auc']:.3f}")
    print(f"fits {fitted - began:.0f} s, intervals {done - fitted:.0f} s (wall)")
    # The resources of idle workers are counted only after they have ended.
    from joblib.externals.loky import get_reusable_executor

    get_reusable_executor().shutdown(wait=True)
    usage = [resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu = sum(u.ru_utime + u.ru_stime for u in usage)
    print(f"CPU {cpu:.0f} s; peak of a process {max(u.ru_maxrss for u in usage) / 1024**2:.2f} GB")
    print(f"load after: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
