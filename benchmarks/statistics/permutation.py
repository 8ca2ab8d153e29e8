"""How often the permutation test of a classifier rejects: its level, its power, and sites.

    python benchmarks/statistics/permutation.py --cohorts 80 --seed 0 --out FILE.tsv

Each cohort has 20 + 20 people with four volumes. The test is that of the app: nested
cross-validation with the choice among estimators and their settings, all of it done again for each
shuffle, with early ends. To keep it affordable there are two estimators with two settings each, two
outer and two inner folds, and 19 shuffles. The scenarios are

- no effect;
- no effect, but two scanners that go with the diagnosis (Cramér's V about 0.45) and differ by
  0.8 SD of the volumes, tested without and with `--site`;
- an effect of 0.5 SD.
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

from hyps_bids.classification import cross_validation
from hyps_bids.classification.contrast import Contrast, site_association
from hyps_bids.classification.cross_validation import nested_cv
from hyps_bids.classification.estimators import ESTIMATORS
from hyps_bids.classification.plan import make_plan
from hyps_bids.classification.processes import Computing
from hyps_bids.classification.validate import (
    CROSS_VALIDATION,
    _fold_makers,
    _permutation_tests,
)
from hyps_bids.settings import Settings
from tests.cohorts import PARTS, simulate

#: Name, effect in SD, whether scanners go with the diagnosis, and whether --site is given.
SCENARIOS = (
    ("no effect", 0.0, False, False),
    ("scanner, without --site", 0.0, True, False),
    ("scanner, with --site", 0.0, True, True),
    ("effect 0.5 SD", -0.5, False, False),
)


def main() -> None:
    """Run all scenarios, write one row per cohort, and print the rates."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cohorts", type=int, default=80)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--people", type=int, default=20, help="of each class")
    parser.add_argument("--shuffles", type=int, default=19)
    parser.add_argument("--folds", type=int, default=2)
    parser.add_argument("--estimators", nargs="+", default=["linear_svm", "rbf_svm"])
    parser.add_argument("--nprocs", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    logging.getLogger("hyps_bids").setLevel(logging.ERROR)
    cross_validation._INNER_FOLDS = 2
    for name in options.estimators:
        grid = ESTIMATORS[name].grid
        ESTIMATORS[name] = replace(ESTIMATORS[name], grid=(grid[0], grid[-1]))
    rows = []
    print("| scenario | cohorts | AUC | rejected at 0.05 | at 0.2 | shuffles done | V |")
    print("|---|---|---|---|---|---|---|")
    for number, scenario in enumerate(SCENARIOS):
        found = [
            one_cohort(options, scenario, options.seed + 1000 * number + i)
            for i in range(options.cohorts)
        ]
        rows += found
        pd.DataFrame(rows).to_csv(options.out, sep="\t", index=False, float_format="%.4f")
        summarize(scenario[0], pd.DataFrame(found))


def one_cohort(
    options: argparse.Namespace, scenario: tuple[str, float, bool, bool], seed: int
) -> dict[str, float | str]:
    """Simulate a cohort and test it as the app does."""
    name, effect, scanners, by_site = scenario
    frame = simulate(dict.fromkeys(("AD", "CN"), options.people), {"AD": effect}, seed=seed)
    rng = np.random.default_rng(seed)
    likely = np.where(frame["diagnosis"] == "AD", 0.725, 0.275)
    frame["site"] = np.where(rng.random(len(frame)) < likely, "B", "A")
    if scanners:
        volumes = list(PARTS)
        frame.loc[frame["site"] == "B", volumes] -= 0.8 * frame[volumes].std()
    settings = Settings(
        bids_dir=Path("bids"),
        output_dir=Path("out"),
        analysis_level="group",
        target="diagnosis",
        contrast=("AD:CN",),
        site="site" if by_site else None,
        estimators=tuple(options.estimators),
        folds=options.folds,
        repeats=1,
        permutations=options.shuffles,
        seed=seed,
    )
    plan = make_plan(settings, frame, Contrast.parse("AD:CN"))
    computing = Computing(seed, options.nprocs)
    makers, _ = _fold_makers(settings, plan)
    folds = makers[CROSS_VALIDATION](plan.subjects.label)
    predictions = nested_cv(plan.subjects, plan.sets, folds, plan.estimators, computing)
    tests, _ = _permutation_tests(
        plan, options.shuffles, {CROSS_VALIDATION: predictions}, makers, computing
    )
    test = tests[CROSS_VALIDATION, "volumes"]
    strength, _, _ = site_association(plan.subjects.label, list(frame["site"]))
    return {
        "scenario": name,
        "seed": seed,
        "auc": test.auc,
        "p": test.p,
        "null_mean": test.null.mean(),
        "done": len(test.null),
        "v": strength,
    }


def summarize(name: str, table: pd.DataFrame) -> None:
    """Print one row of the table."""
    rates = []
    for level in (0.05, 0.2):
        rate = float((table["p"] <= level + 1e-9).mean())
        rates.append(f"{rate:.3f} ± {1.96 * np.sqrt(rate * (1 - rate) / len(table)):.3f}")
    print(
        f"| {name} | {len(table)} | {table['auc'].mean():.2f} | {rates[0]} | {rates[1]} | "
        f"{table['done'].mean():.0f} | {table['v'].mean():.2f} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
