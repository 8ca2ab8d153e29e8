"""Bias, errors and coverage of the difference between groups in change per year.

    python benchmarks/statistics/annual_change.py --replicates 300

Cohorts are those of tests/cohort/test_change_models.py: 60 people with two scans half a year to
four years apart, an error of 0.5 % per scan, true change of -1 % per year (SD 0.8) in controls, and
as much or 1.5 % more in patients. The last rows have an error of 1.1 %, that of scans segmented
each by itself. Coverage is that of the mean estimate where the truth is not in percent.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from hyps_bids.cohort.statistics import fit_model
from tests.cohort import test_change_models as made

LEVEL = ("diagnosis", "CN")


def main() -> None:
    """Print one line per model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--replicates", type=int, default=300)
    count = parser.parse_args().replicates
    logging.disable()
    print("scan SD | true | model | mean | SD | mean SE | coverage | power")
    for scan_sd, difference in ((0.5, -1.5), (0.5, 0.0), (1.1, -1.5)):
        made.SCAN_SD = scan_sd
        found: dict[str, list[tuple[float, float, float, float]]] = {}
        for seed in range(count):
            wide, errors = made.followed(60, 5000 + seed, difference=difference)
            # In percent of 2,700 mm³, the patients' mean at the first scan.
            wide[made.VOLUME] *= 100 / 2700
            change, mixed = f"{made.CHANGE} ~ diagnosis", f"{made.VOLUME} ~ diagnosis * time"
            for name, formula, weights, term in (
                ("change, weighted", change, errors, "diagnosis[T.AD]"),
                ("change, not weighted", change, None, "diagnosis[T.AD]"),
                ("mixed model of volumes", mixed, None, "diagnosis[T.AD]:time"),
            ):
                table = fit_model(wide, formula, LEVEL, errors=weights).models
                found.setdefault(name, []).append(made.difference_of(table, term))
        for name, rows in found.items():
            estimate, se, low, high = np.array(rows, dtype=float).T
            true = difference if "mixed" not in name else estimate.mean()
            covered, sure = (low <= true) & (true <= high), (low > 0) | (high < 0)
            figures = estimate.mean(), estimate.std(ddof=1), se.mean(), covered.mean(), sure.mean()
            print(f"{scan_sd} | {difference} | {name} |", " | ".join(f"{x:.3f}" for x in figures))


if __name__ == "__main__":
    main()
