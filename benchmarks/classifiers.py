"""Time a classifier with the defaults of the app on a simulated cohort.

    python benchmarks/classifiers.py --subjects 5000 --scans 10000 --nprocs 2
    python benchmarks/classifiers.py --subjects 40 --scans 40 --nprocs 2

With three covariates there are three sets of features. The whole of `validate` is run: forecast,
cross-validation, final fits, permutation tests and importance. Prints wall and CPU seconds and peak
memory. Compare CPU seconds if the machine does something else at the same time, because both the
forecast and the number of shuffles follow from the wall time. `--forecast` only says how long it
would take.
"""

from __future__ import annotations

import argparse
import logging
import os
import resource
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from joblib.externals.loky import get_reusable_executor

from hyps_bids.classification.contrast import Contrast
from hyps_bids.classification.duration import forecast
from hyps_bids.classification.plan import make_plan
from hyps_bids.classification.processes import Computing
from hyps_bids.classification.validate import _fold_makers, validate
from hyps_bids.cli import start_logging
from hyps_bids.settings import Settings
from tests.cohorts import simulate


def main() -> None:
    """Time one contrast."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--subjects", type=int, default=5000)
    parser.add_argument("--scans", type=int, default=10000, help="in all")
    parser.add_argument("--effect", type=float, default=-1.0, help="in SD")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--permutations", type=int)
    parser.add_argument("--nprocs", type=int, default=2)
    parser.add_argument("--estimators", nargs="+", default=())
    parser.add_argument("--forecast", action="store_true")
    options = parser.parse_args()
    start_logging()
    logging.captureWarnings(True)
    half = options.subjects // 2
    frame = simulate(
        {"AD": half, "CN": half},
        {"AD": options.effect},
        scans=options.scans // options.subjects,
        missing=0.02,
    )
    settings = Settings(
        bids_dir=Path("bids"),
        output_dir=Path("out"),
        analysis_level="group",
        target="diagnosis",
        contrast=("AD:CN",),
        covariates=("age", "sex", "education"),
        estimators=tuple(options.estimators),
        repeats=options.repeats,
        permutations=options.permutations,
        nprocs=options.nprocs,
    )
    plan = make_plan(settings, frame, Contrast.parse("AD:CN"))
    print(f"load before: {os.getloadavg()[0]:.1f}")
    began = time.monotonic()
    if options.forecast:
        makers, _ = _fold_makers(settings, plan)
        folds = [make(plan.subjects.label) for make in makers.values()]
        computing = Computing(settings.seed, options.nprocs)
        expected = forecast(plan.subjects, plan.sets, plan.estimators, folds, computing)
        print(expected.text(expected.affordable))
    else:
        found = validate(settings, plan).metrics
        chosen = (found["estimator"] == "selected") & (found["figure"] == "auc")
        print(found.loc[chosen, ["features", "value", "low", "high"]].to_string(index=False))
    print(f"wall {time.monotonic() - began:.0f} s")
    # The resources of idle workers are counted only after they have ended.
    get_reusable_executor().shutdown(wait=True)
    usage = [resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu = sum(u.ru_utime + u.ru_stime for u in usage)
    print(f"CPU {cpu:.0f} s; peak of a process {max(u.ru_maxrss for u in usage) / 1024**2:.2f} GB")
    print(f"load after: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
