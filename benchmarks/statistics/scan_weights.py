"""Whether the number of visits of a class changes its classifiers.

    python benchmarks/statistics/scan_weights.py --replicates 12 --nprocs 1

Simulates 80 + 80 people, without covariates, whose hippocampi differ by d = 1 or not at all. The
same people are classified with one scan each, with six scans of each patient, and with six scans of
each control. Prints means over replicates as rows of a Markdown table, and writes the figures of
each replicate to a TSV file. The standard error of a mean is its SD / sqrt(replicates).
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from hyps_bids.classification.contrast import Contrast
from hyps_bids.classification.cross_validation import (
    nested_cv,
    stratified_folds,
)
from hyps_bids.classification.metrics import metrics
from hyps_bids.classification.plan import make_plan
from hyps_bids.classification.processes import Computing
from hyps_bids.settings import Settings
from tests.cohorts import simulate

_FIGURES = ("accuracy", "sensitivity", "specificity", "balanced_accuracy", "auc")
_DESIGNS = {"1 : 1": (), "6 : 1": ("AD",), "1 : 6": ("CN",)}
_SETTINGS = Settings(
    bids_dir=Path("bids"), output_dir=Path("out"), analysis_level="group", target="diagnosis"
)


def classify(frame: pd.DataFrame, estimators: list[str], nprocs: int, seed: int) -> list[dict]:
    """Cross-validate the classifiers of a table of scans, calling the most probable class."""
    settings = replace(_SETTINGS, contrast=("AD:CN",))
    plan = make_plan(settings, frame, Contrast.parse("AD:CN"))
    data = plan.subjects
    folds = stratified_folds(data.label, 5, 1, seed)
    computing = Computing(seed, nprocs)
    found = nested_cv(data, plan.sets, folds, estimators, computing, rule="0.5")["volumes"]
    rows = []
    for name, probability in found.probability.items():
        values = metrics(data.label, probability[0], folds[0], called=found.called[name][0])
        rows.append({"estimator": name, **{key: float(values[key][0]) for key in _FIGURES}})
    return rows


def main() -> None:
    """Run all designs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--replicates", type=int, default=12)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--people", type=int, default=80, help="of each class")
    parser.add_argument("--effects", type=float, nargs="+", default=[1.0, 0.0])
    parser.add_argument(
        "--estimators",
        nargs="+",
        default=["logistic", "linear_svm", "rbf_svm", "random_forest", "gradient_boosting"],
    )
    parser.add_argument("--nprocs", type=int, default=1)
    parser.add_argument("--out", type=Path, help="TSV file for the figures of each replicate")
    options = parser.parse_args()
    rows = []
    for seed in range(options.first_seed, options.first_seed + options.replicates):
        for effect in options.effects:
            groups = {"AD": options.people, "CN": options.people}
            frame = simulate(groups, {"AD": -effect}, scans=6, seed=seed)
            for design, often in _DESIGNS.items():
                take = frame["diagnosis"].isin(often) | (frame["session_id"] == "ses-1")
                scans = frame[take].reset_index(drop=True)
                for row in classify(scans, options.estimators, options.nprocs, seed):
                    rows.append({"d": effect, "visits": design, "seed": seed, **row})
        print(f"replicate {seed} done", file=sys.stderr, flush=True)
    table = pd.DataFrame(rows)
    if options.out:
        table.to_csv(options.out, sep="\t", index=False, float_format="%.4f")
    means = table.groupby(["d", "estimator", "visits"], sort=False)[list(_FIGURES)].mean()
    print(f"| d | estimator | visits AD : CN | {' | '.join(_FIGURES)} |")
    print("|---|---|---|" + "---|" * len(_FIGURES))
    for (d, estimator, visits), row in means.sort_index(ascending=[False, True, True]).iterrows():
        values = " | ".join(f"{value:.3f}" for value in np.asarray(row))
        print(f"| {d:g} | {estimator} | {visits} | {values} |")


if __name__ == "__main__":
    main()
