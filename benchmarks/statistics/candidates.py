"""Whether fewer estimators, fewer settings and a smaller search lose anything.

    python benchmarks/statistics/candidates.py --cohorts 16 --out FILE.tsv

Trains on cohorts of a size, with three covariates, as a fold does: every estimator is tuned by the
inner cross-validation, and the best one is fitted. Its AUC is that among 1,000 other people. In the
scenario "linear" patients are smaller by one SD, and in "both ways" half of them are larger and
half smaller by 1.8 SD, which only the methods that are not linear can find. Prints the mean AUC of
the searches of version 0.1, and the paired difference of others from it, with its standard error.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from hyps_bids.classification import cross_validation
from hyps_bids.classification.contrast import Contrast
from hyps_bids.classification.cross_validation import choose, fit_each, predict_subjects, tune
from hyps_bids.classification.estimators import ESTIMATORS, TREES
from hyps_bids.classification.metrics import metrics
from hyps_bids.classification.plan import make_plan
from hyps_bids.settings import Settings
from tests.cohorts import PARTS, RESIDUAL_SD, simulate

_OTHERS = 1000
_NOW = [one for name, one in ESTIMATORS.items() if name != "dummy"]
#: Grids of version 0.1.
_BEFORE = {
    "random_forest": tuple({"min_samples_leaf": n} for n in (10, 3, 1)),
    "gradient_boosting": tuple(
        {"max_leaf_nodes": n, "learning_rate": rate} for n in (3, 8) for rate in (0.03, 0.1)
    ),
}
_FULL = [replace(one, grid=_BEFORE.get(one.name, one.grid)) for one in _NOW]
#: Name, estimators with their grids, and most scans of a class in the search.
_SEARCHES = (
    ("as in version 0.1", _FULL, sys.maxsize),
    ("one setting of forests, two of boosting", _NOW, sys.maxsize),
    ("the same, 500 scans per class", _NOW, 500),
    ("the same, without trees", [one for one in _NOW if one.name not in TREES], 500),
)


def main() -> None:
    """Run all sizes and scenarios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[40, 100, 3000])
    parser.add_argument("--cohorts", type=int, default=16)
    parser.add_argument("--seed", type=int, default=10_000)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    logging.getLogger("hyps_bids").setLevel(logging.ERROR)
    rows = []
    print(
        "| people | scenario | search | AUC | difference ± SE | CPU s |\n|---|---|---|---|---|---|"
    )
    for size in options.sizes:
        # Large cohorts differ little from each other.
        cohorts = max(2, min(options.cohorts, 20_000 // size // 10))
        for scenario in ("linear", "both ways"):
            seeds = range(options.seed, options.seed + cohorts)
            rows += [row for seed in seeds for row in one_cohort(size, scenario, seed)]
            table = pd.DataFrame(rows)
            table.to_csv(options.out, sep="\t", index=False, float_format="%.4f")
            summarize(table[(table["people"] == size) & (table["scenario"] == scenario)])


def one_cohort(size: int, scenario: str, seed: int) -> list[dict[str, float | str]]:
    """Do all searches on one cohort."""
    half = (size + _OTHERS) // 2
    linear = scenario == "linear"
    frame = simulate({"AD": half, "CN": half}, {"AD": -1.0 if linear else 0.0}, seed=seed)
    if not linear:
        rng, patient = np.random.default_rng(seed), (frame["diagnosis"] == "AD").to_numpy()
        shift = rng.choice([-1, 1], patient.sum()) * 1.8 * RESIDUAL_SD / len(PARTS)
        frame.loc[patient, list(PARTS)] += shift[:, None]
    settings = Settings(
        bids_dir=Path("bids"),
        output_dir=Path("out"),
        analysis_level="group",
        target="diagnosis",
        covariates=("age", "sex", "education"),
    )
    plan = make_plan(settings, frame, Contrast.parse("AD:CN"))
    data, steps = plan.subjects, plan.sets["both"].preprocessing()
    trains = (frame.groupby("diagnosis").cumcount() < size // 2).to_numpy()
    train, test = np.flatnonzero(trains), np.flatnonzero(~trains)
    rows: list[dict[str, float | str]] = []
    for name, estimators, most in _SEARCHES:
        cross_validation._INNER_SCANS = most
        began = time.process_time()
        best = choose(tune(data, steps, estimators, train, seed))
        (fitted,) = fit_each(data, steps, [best], train, seed)
        seconds = time.process_time() - began
        probability = predict_subjects(data, fitted.model, test)
        area = metrics(data.label[test], probability, np.zeros(len(test), dtype=np.int64))["auc"]
        rows.append(
            {
                "people": size,
                "scenario": scenario,
                "seed": seed,
                "search": name,
                "selected": best.estimator,
                "auc": float(area[0]),
                "cpu_s": seconds,
            }
        )
    return rows


def summarize(table: pd.DataFrame) -> None:
    """Print one row per search."""
    by_search = table.pivot_table(index="seed", columns="search", values="auc")
    people, scenario = table.iloc[0][["people", "scenario"]]
    for name, _, _ in _SEARCHES:
        gain = by_search[name] - by_search[_SEARCHES[0][0]]
        error = gain.std(ddof=1) / np.sqrt(len(gain))
        seconds = table.loc[table["search"] == name, "cpu_s"].mean()
        print(
            f"| {people} | {scenario} | {name} | {by_search[name].mean():.3f} | "
            f"{gain.mean():+.3f} ± {error:.3f} | {seconds:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
