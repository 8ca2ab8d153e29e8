"""Measure the coverage of the classifiers' intervals, and the type-I error of comparisons.

    python benchmarks/statistics/coverage.py --cohorts 100 --out coverage.tsv

Every cohort has as many subjects of AD as of CN, whose hippocampi differ by some SDs. The truth of
a metric is its expected value: the mean over all simulated cohorts. With --held-out, the final
model of each cohort is tested on as many new subjects, and the truth is the metric of this very
model among 4,000 subjects. With --noise, the four volumes with so many columns of noise are
compared with the four volumes alone. One row per metric: coverage of the 95 % interval, its mean
width, and the width of an interval that knows the true SD (2 x 1.96 SD).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from hyps_bids.classification.contrast import LabeledSubjects
from hyps_bids.classification.cross_validation import (
    SELECTED,
    choose,
    nested_cv,
    predict_subjects,
    search_all,
    stratified_folds,
)
from hyps_bids.classification.features import Schema
from hyps_bids.classification.intervals import compare, metric_rows
from hyps_bids.classification.recalibration import recalibration_rows
from tests.cohorts import PARTS, simulate

Row = dict[str, float | str]
_CLASSES = ("AD", "CN")


def main() -> None:
    """Simulate the cohorts of each cell and print its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cohorts", type=int, default=120)
    parser.add_argument("--sizes", type=int, nargs="+", default=[15, 40, 100], help="per class")
    parser.add_argument("--effects", type=float, nargs="+", default=[0.45, 1.0])
    parser.add_argument("--estimators", nargs="+", default=["logistic"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--noise", type=int, default=0, help="columns without information")
    parser.add_argument("--held-out", action="store_true")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first cohort")
    parser.add_argument("--out", type=Path, help="TSV to which the rows are added")
    options = parser.parse_args()
    for size in options.sizes:
        for effect in options.effects:
            began = time.monotonic()
            rows = [
                row
                for seed in range(options.seed, options.seed + options.cohorts)
                for row in _one_cohort(size, effect, seed, options)
            ]
            table = _summary(pd.DataFrame(rows))
            table.insert(0, "subjects", f"{size}+{size}")
            table.insert(1, "d", effect)
            table.insert(2, "estimators", " ".join(options.estimators))
            table.insert(3, "repeats", 1 if options.held_out else options.repeats)
            _print_markdown(table.drop(columns="estimators"))
            print(f"{options.cohorts} cohorts in {time.monotonic() - began:.0f} s", flush=True)
            if options.out:
                header = not options.out.exists()
                options.out.parent.mkdir(parents=True, exist_ok=True)
                table.round(4).to_csv(
                    options.out, sep="\t", index=False, mode="a", header=header, na_rep="n/a"
                )


def _one_cohort(size: int, effect: float, seed: int, options: argparse.Namespace) -> list[Row]:
    data, sets = _subjects(size, effect, seed, options.noise)
    if options.held_out:
        return _held_out(data, sets["volumes"], size, effect, seed, options)
    folds = stratified_folds(data.label, 5, options.repeats, seed)
    found = nested_cv(data, sets, folds, options.estimators)
    one = found["volumes"]
    rows: list[Row] = []
    shown = options.estimators if len(options.estimators) == 1 else [SELECTED]
    for name in shown:
        probability = one.probability[name]
        rows += _named(name, metric_rows(data.label, probability, folds, one.called[name]))
        rows += _calibration(name, data.label, probability)
    if options.noise:
        sides = [found["volumes and noise"], one]
        first, second = (side.probability[SELECTED] for side in sides)
        calls = (sides[0].called[SELECTED], sides[1].called[SELECTED])
        rows += _named("difference", compare(data.label, first, second, folds, calls))
    return rows


def _subjects(
    size: int, effect: float, seed: int, noise: int
) -> tuple[LabeledSubjects, dict[str, Schema]]:
    groups = dict.fromkeys(_CLASSES, size)
    frame = simulate(groups, {"AD": -effect}, seed=seed, noise_features=noise)
    names = tuple(f"noise_{i}" for i in range(noise))
    schema = Schema(volumes=PARTS, ratios=names, icv="icv_mm3")
    label = (frame["diagnosis"] == "CN").to_numpy().astype(np.int64)
    ids = tuple(frame["participant_id"])
    data = LabeledSubjects(schema.matrix(frame), np.arange(len(ids)), label, ids, _CLASSES)
    sets = {"volumes": schema.only(PARTS)}
    return data, sets | ({"volumes and noise": schema} if noise else {})


def _held_out(
    data: LabeledSubjects,
    schema: Schema,
    size: int,
    effect: float,
    seed: int,
    options: argparse.Namespace,
) -> list[Row]:
    """Test the final model on new subjects, and on many more to know the truth."""
    final = choose(search_all(data, {"all": schema}, options.estimators)["all"].values())
    rows: list[list[Row]] = []
    for number, other in ((size, seed + 10**6), (2000, seed + 2 * 10**6)):
        new, _ = _subjects(number, effect, other, 0)
        probability = predict_subjects(new, final.model, new.everybody)[None]
        fold = np.zeros((1, len(new.ids)), dtype=np.int64)
        call = final.call(probability)
        one = metric_rows(new.label, probability, fold, call, trained_on=False)
        slopes = _calibration("held-out", new.label, probability, trained_on=False)
        rows.append(_named("held-out", one) + slopes)
    return [small | {"truth": large["value"]} for small, large in zip(*rows, strict=True)]


def _named(what: str, rows: list[Row]) -> list[Row]:
    return [{"of": what, "value": row.get("difference", float("nan")), **row} for row in rows]


def _calibration(
    what: str, label: np.ndarray, probability: np.ndarray, *, trained_on: bool = True
) -> list[Row]:
    (row,) = recalibration_rows(label, probability, _CLASSES, trained_on=trained_on)
    return [
        {
            "of": what,
            "figure": f"calibration {name}",
            "value": row[name],
            "low": row[f"{name}_low"],
            "high": row[f"{name}_high"],
        }
        for name in ("slope", "intercept")
    ]


def _summary(rows: pd.DataFrame) -> pd.DataFrame:
    out = defaultdict(list)
    for (what, name), one in rows.groupby(["of", "figure"], sort=False):
        known = one.dropna(subset=["value", "low", "high"])
        truth = known["truth"] if "truth" in known else known["value"].mean()
        covered = (known["low"] <= truth) & (truth <= known["high"])
        p = known.get("p", pd.Series(np.nan, known.index))
        better = (known["value"] > 0) & (p < 0.05)
        if name == "brier":
            better = (known["value"] < 0) & (p < 0.05)
        for key, value in {
            "of": what,
            "metric": name,
            "mean": known["value"].mean(),
            "coverage": covered.mean(),
            "width": (known["high"] - known["low"]).mean(),
            "ideal_width": 2 * 1.96 * (known["value"] - (truth if "truth" in known else 0)).std(),
            "p_below_0.05": (p < 0.05).mean() if p.notna().any() else np.nan,
            "noise_is_better": better.mean() if p.notna().any() else np.nan,
            "cohorts": len(known),
        }.items():
            out[key].append(value)
    return pd.DataFrame(out)


def _print_markdown(table: pd.DataFrame) -> None:
    print("| " + " | ".join(table) + " |\n" + "|---" * len(table.columns) + "|")
    for row in table.itertuples(index=False):
        cells = (f"{x:.3f}" if isinstance(x, float) else str(x) for x in row)
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
