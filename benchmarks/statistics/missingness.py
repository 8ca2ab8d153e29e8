"""What classifiers learn from missing values alone, and whether there is a warning.

    python benchmarks/statistics/missingness.py --replicates 6 --alarms 300

Simulates cohorts of 60 + 60 people without any difference between the groups, with 8 covariates of
which 10 % are missing at random. In some, values of one or two covariates are missing otherwise:

- all: no control has the first covariate
- 60 / 10: 60 % of patients and 10 % of controls lack it
- joint: half of each group lack the first covariate; patients lack the second one when they lack
  the first, and controls when they do not
- none: only values at random are missing

Prints rows of a Markdown table: the AUC of a random forest with all covariates, and of what the
app shows beside it if there is a warning, otherwise again with all; and the share of cohorts with a
warning, which is the share of false alarms for "none".
"""

from __future__ import annotations

import argparse
import logging
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from hyps_bids.classification.contrast import Contrast
from hyps_bids.classification.cross_validation import Computing, nested_cv, stratified_folds
from hyps_bids.classification.metrics import metrics
from hyps_bids.classification.plan import Plan, make_plan
from hyps_bids.settings import Settings
from tests.cohorts import simulate

_PATTERNS = ("all", "60 / 10", "joint", "none")
_COVARIATES = ("age", "education", *(f"noise_{k}" for k in range(6)))
_SETTINGS = Settings(
    bids_dir=Path("bids"),
    output_dir=Path("out"),
    analysis_level="group",
    target="diagnosis",
    contrast=("AD:CN",),
    covariates=_COVARIATES,
)


def cohort(pattern: str, people: int, seed: int) -> pd.DataFrame:
    """Simulate a cohort with a pattern of missing values."""
    frame = simulate({"AD": people, "CN": people}, seed=seed, noise_features=6)
    rng = np.random.default_rng(seed)
    patient = (frame["diagnosis"] == "AD").to_numpy()
    columns = list(_COVARIATES)
    missing = rng.random((len(frame), len(columns))) < 0.1
    if pattern == "all":
        missing[:, 0] = ~patient
    elif pattern == "60 / 10":
        missing[:, 0] = rng.random(len(frame)) < np.where(patient, 0.6, 0.1)
    elif pattern == "joint":
        missing[:, 0] = rng.random(len(frame)) < 0.5
        missing[:, 1] = missing[:, 0] == patient
    frame[columns] = frame[columns].mask(missing)
    return frame


def plan_of(frame: pd.DataFrame) -> Plan:
    """Plan the classifier of a cohort."""
    return make_plan(replace(_SETTINGS), frame, Contrast.parse("AD:CN"))


def areas(plan: Plan, seed: int, nprocs: int) -> tuple[float, float]:
    """Return the AUC with all covariates, and without the doubtful ones."""
    last = "both"
    if plan.doubtful:
        last = "both_reduced" if "both_reduced" in plan.sets else "volumes"
    sets = {name: plan.sets[name] for name in ("both", last)}
    data = plan.subjects
    folds = stratified_folds(data.label, 5, 1, seed)
    found = nested_cv(data, sets, folds, ["random_forest"], Computing(seed, nprocs))
    values = {
        name: metrics(data.label, one.probability["random_forest"][0], folds[0])["auc"][0]
        for name, one in found.items()
    }
    return float(values["both"]), float(values[last])


def main() -> None:
    """Run all patterns."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--replicates", type=int, default=6, help="cohorts to classify")
    parser.add_argument("--alarms", type=int, default=300, help="cohorts to look for warnings in")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--people", type=int, default=60, help="of each class")
    parser.add_argument("--nprocs", type=int, default=1)
    parser.add_argument("--out", type=Path, help="TSV file for each cohort")
    options = parser.parse_args()
    logging.getLogger("hyps_bids").setLevel(logging.ERROR)
    rows = []
    for pattern in _PATTERNS:
        for seed in range(options.first_seed, options.first_seed + options.alarms):
            plan = plan_of(cohort(pattern, options.people, seed))
            row = {"pattern": pattern, "seed": seed, "warned": bool(plan.doubtful)}
            row["with_all"] = row["shown_beside"] = np.nan
            if seed < options.first_seed + options.replicates:
                row["with_all"], row["shown_beside"] = areas(plan, seed, options.nprocs)
            rows.append({**row, "doubtful": " ".join(plan.doubtful)})
        print(f"pattern {pattern} done", file=sys.stderr, flush=True)
    table = pd.DataFrame(rows)
    if options.out:
        table.to_csv(options.out, sep="\t", index=False, float_format="%.4f", na_rep="n/a")
    print("| missing | AUC with all | AUC shown beside | cohorts with a warning |")
    print("|---|---|---|---|")
    columns = ["with_all", "shown_beside", "warned"]
    for pattern, row in table.groupby("pattern", sort=False)[columns].mean().iterrows():
        print(f"| {pattern} | " + " | ".join(f"{value:.3f}" for value in np.asarray(row)) + " |")


if __name__ == "__main__":
    main()
