"""Type-I error, coverage and power of the group level's models of repeated scans.

    python benchmarks/statistics/type_one.py --replicates 400
    python benchmarks/statistics/type_one.py --only "6 visits" --first-seed 10000

Each replicate makes a cohort without any effect of the diagnosis and fits the model that a user
would write, with the code of the app. A row is one coefficient of one setting: the share of
p < 0.05 with its Monte Carlo error, which is also one minus the coverage of the 95 % interval, and
the power at a true effect. Adding a multiple of a column of the design matrix to the volumes
adds it to the estimate and changes neither errors nor degrees of freedom, so the power follows from
the same fits. "method" has the shares of the fits that were not plain mixed models.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.statistics.cohorts import MEASURE, Cohort
from hyps_bids.cohort.statistics import fit_models


class Setting(NamedTuple):
    """One row of the simulation for each coefficient."""

    name: str
    cohort: Cohort
    formula: str = "dx*time"
    effects: tuple[tuple[str, float], ...] = (
        ("dx[T.patient]:time", -25.0),
        ("dx[T.patient]", -250.0),
    )


_AGE = (("dx[T.patient]:age", -25.0),)
_VISIT = (("(all) dx:visit", 0.0),)
SETTINGS = (
    Setting("slope SD 0, 3-4 visits", Cohort(0)),
    Setting("slope SD 30, 3-4 visits", Cohort(30)),
    Setting("slope SD 60, 3-4 visits", Cohort(60)),
    Setting("slope SD 60, 6 visits", Cohort(60, visits=(6, 6))),
    Setting(
        "slope SD 60, 6 visits, random intercept only",
        Cohort(60, visits=(6, 6)),
        "dx*time + (1 | subject)",
    ),
    Setting("slope SD 60, 1-6 visits", Cohort(60, visits=(1, 6))),
    Setting("slope SD 60, 6 visits with dropout", Cohort(60, visits=(6, 6), dropout=0.3)),
    Setting("slope SD 30, 6 visits with dropout", Cohort(30, visits=(6, 6), dropout=0.3)),
    Setting("slope SD 60, 2 visits", Cohort(60, visits=(2, 2))),
    Setting("slope SD 60, 2 visits, unequal", Cohort(60, visits=(2, 2), jitter=0.7)),
    Setting("slope SD 60, 12 patients of 80", Cohort(60, patients=0.15)),
    Setting("slope SD 60, 12 subjects", Cohort(60, subjects=12)),
    Setting("slope SD 30, 12 subjects", Cohort(30, subjects=12)),
    Setting("slope SD 60, 8 subjects", Cohort(60, subjects=8)),
    Setting("age, slope SD 30, 3-4 visits", Cohort(30), "dx*age", _AGE),
    Setting("age, slope SD 60, 3-4 visits", Cohort(60), "dx*age", _AGE),
    Setting("age, slope SD 60 along age", Cohort(60, along_age=True), "dx*age", _AGE),
    Setting("visits as groups, slope SD 60", Cohort(60, visits=(4, 4)), "dx*visit", _VISIT),
    Setting(
        "visits as groups, 16 subjects",
        Cohort(60, subjects=16, visits=(4, 4)),
        "dx*visit",
        _VISIT,
    ),
)


def simulate(setting: Setting, seeds: range) -> list[dict[str, object]]:
    """Fit the model of a setting to each cohort, and summarize each coefficient."""
    fits = []
    for seed in seeds:
        table = fit_models(setting.cohort.make(seed), [f"{MEASURE} ~ {setting.formula}"])
        joint = table["coefficient"] == "(all)"
        table.loc[joint, "coefficient"] = "(all) " + table["term"]
        fits.append(table.set_index("coefficient").astype({"p": float}))
    rows = []
    for name, effect in setting.effects:
        chosen = pd.DataFrame([fit.loc[name] for fit in fits])
        error = float((chosen["p"] < 0.05).mean())
        row = {
            "setting": setting.name,
            "coefficient": name,
            "type I": round(error, 4),
            "± SE": round(np.sqrt(max(error, 0.05) * (1 - error) / len(fits)), 4),
            "coverage": round(1 - error, 4),
        }
        if effect:
            df = chosen["df"].astype(float)
            shifted = stats.t.sf(abs(chosen["estimate"] + effect) / chosen["se"], df) * 2
            row |= {"true effect": effect, "power": round(float((shifted < 0.05).mean()), 4)}
            row |= {"median df": round(float(df.median()), 1)}
        methods = Counter(chosen["method"] + " " + chosen["random"])
        row["method"] = ", ".join(f"{n / len(fits):.2f} {text}" for text, n in methods.items())
        rows.append(row)
    return rows


def main() -> None:
    """Print a table in Markdown, and write it as TSV."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--replicates", type=int, default=400)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--only", default="", help="part of the names of settings")
    parser.add_argument("--output", type=Path, help="write the rows to this TSV file")
    arguments = parser.parse_args()
    logging.getLogger("hyps_bids").setLevel(logging.ERROR)
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.replicates)
    rows = []
    for setting in SETTINGS:
        if arguments.only in setting.name:
            start = time.monotonic()
            new = simulate(setting, seeds)
            rows += new
            for row in new:
                print("|", " | ".join(map(str, row.values())), "|", flush=True)
            print(f"{time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    if arguments.output:
        pd.DataFrame(rows).to_csv(arguments.output, sep="\t", index=False)


if __name__ == "__main__":
    main()
