"""Compare the group level's mixed models with those of lme4 and lmerTest in R.

    cd benchmarks/statistics && python compare_lmer.py --output results/compare_lmer.tsv

Both fit the same made tables by REML with Satterthwaite's degrees of freedom: cohorts of
``type_one.py``, and one with participants and visits like those of OASIS-2. R gets the random
effects that ours has chosen, with the mean subtracted from their variables, without which lmer does
not converge for ages; the model is the same. A row is one coefficient. The
program fails if R is not there, or if a standard error differs by more than 1 % where lmer
converges.
"""

from __future__ import annotations

import argparse
import logging
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.statistics.cohorts import MEASURE, Cohort
from hyps_bids.cohort.statistics import fit_models
from tests.cohorts import oasis_longitudinal

_SCRIPT = Path(__file__).with_suffix(".R")


def oasis_like() -> pd.DataFrame:
    """Make a wide table of 150 participants with two or three visits, like those of OASIS-2."""
    people, sessions = oasis_longitudinal(150)
    table = sessions.merge(people, on="participant_id").rename(columns={"M/F": "sex"})
    numbers = table[["MR_Delay", "Age", "eTIV"]].astype(float)
    rng = np.random.default_rng(0)
    subject = pd.factorize(table["participant_id"])[0]
    level, slope = rng.normal(3500, 350, 150)[subject], rng.normal(-40, 40, 150)[subject]
    ill = table["Group"] == "Demented"
    time = numbers["MR_Delay"] / 365.25
    volume = level + (slope - 30 * ill) * time - 400 * ill - 15 * (numbers["Age"] - 76)
    return pd.DataFrame(
        {
            "participant_id": table["participant_id"],
            "scan": table["participant_id"] + table["session_id"],
            "status": "done",
            "group": table["Group"],
            "sex": table["sex"],
            "time": time,
            "age": numbers["Age"],
            "eTIV": numbers["eTIV"].groupby(subject).transform("mean"),
            MEASURE: volume + rng.normal(0, 50, len(table)),
        }
    )


def tables() -> Iterator[tuple[str, pd.DataFrame, str]]:
    """Yield names, tables and formulas."""
    for name, cohort, formula in (
        ("slope SD 0, 3-4 visits", Cohort(0), "dx*time"),
        ("slope SD 30, 3-4 visits", Cohort(30), "dx*time"),
        ("slope SD 60, 3-4 visits", Cohort(60), "dx*time"),
        ("slope SD 60, 6 visits", Cohort(60, visits=(6, 6)), "dx*time"),
        ("slope SD 60, 1-6 visits", Cohort(60, visits=(1, 6)), "dx*time"),
        ("slope SD 30, dropout", Cohort(30, visits=(6, 6), dropout=0.3), "dx*time"),
        ("slope SD 30, 12 subjects", Cohort(30, subjects=12), "dx*time"),
        ("age, slope SD 60", Cohort(60), "dx*age"),
        ("independent slopes", Cohort(60), "dx*time + (time || subject)"),
        ("random intercept", Cohort(30), "dx*time + (1 | subject)"),
    ):
        for seed in range(3):
            yield f"{name}, seed {seed}", cohort.make(seed), formula
    yield "like OASIS-2", oasis_like(), "group*time + sex + eTIV"
    yield "like OASIS-2, by age", oasis_like(), "group*age + sex + eTIV"


def fit_in_r(program: str, table: pd.DataFrame, formula: str, random: str) -> pd.DataFrame:
    """Fit the fixed effects of `formula` with `random` effects by lmer."""
    changing = [name for name in ("time", "age") if name in random]
    centered = {f"{name}_centered": table[name] - table[name].mean() for name in changing}
    # Without a covariance, zero is part of the model.
    if ") + (" not in random:
        random = re.sub(r"\b(time|age)\b", r"\1_centered", random)
    fixed = formula.partition(" + (")[0]
    table = table.assign(subject=table["participant_id"], **centered)
    with tempfile.TemporaryDirectory() as folder:
        source, result = Path(folder, "table.csv"), Path(folder, "result.csv")
        table.to_csv(source, index=False)
        command = [program, str(_SCRIPT), str(source), f"{MEASURE} ~ {fixed} + {random}"]
        subprocess.run([*command, str(result)], check=True)
        return pd.read_csv(result)


def compare(program: str) -> pd.DataFrame:
    """Fit all tables by both."""
    parts = []
    for name, table, formula in tables():
        ours = fit_models(table, [f"{MEASURE} ~ {formula}"])
        ours = ours[ours["coefficient"] != "(all)"].assign(df=ours["df"].astype(str))
        assert set(ours["method"]) == {"mixed"}, name
        theirs = fit_in_r(program, table, formula, ours["random"].iloc[0])
        key = ours["coefficient"].str.replace(r"\[T\.(.*?)\]", r"\1", regex=True)
        key = key.replace("Intercept", "(Intercept)")
        both = ours.assign(key=key).merge(
            theirs, left_on="key", right_on="coefficient", suffixes=("", "_lmer"), validate="1:1"
        )
        both["table"], both["se_ratio"] = name, both["se"] / both["se_lmer"]
        parts.append(both)
    columns = ["table", "random", "coefficient"]
    columns += [f"{n}{end}" for n in ("estimate", "se", "df", "p") for end in ("", "_lmer")]
    result = pd.concat(parts, ignore_index=True)[[*columns, "se_ratio", "messages"]]
    return result.astype({"df": float})


def main() -> int:
    """Print the largest differences and the interactions, and write all coefficients as TSV."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="write all coefficients to this TSV file")
    arguments = parser.parse_args()
    logging.getLogger("hyps_bids").setLevel(logging.ERROR)
    program = shutil.which("Rscript")
    check = ["-e", "library(lmerTest)"]
    if not program or subprocess.run([program, *check], capture_output=True).returncode:
        print("R with the package lmerTest is not there, so nothing was compared.")
        return 1
    table = compare(program)
    if arguments.output:
        table.to_csv(arguments.output, sep="\t", index=False, float_format="%.6g")
    for row in table[table["coefficient"].str.contains(":")].to_dict("records"):
        cells = [row["table"], row["coefficient"]]
        cells += [f"{row[n]:.4g} / {row[n + '_lmer']:.4g}" for n in ("estimate", "se", "df", "p")]
        print("|", " | ".join(cells), "|")
    # A singular fit has converged.
    converged = ~table["messages"].fillna("").str.contains("converge|gradient|Hessian")
    error = (table.loc[converged, "se_ratio"] - 1).abs().max()
    shift = ((table["estimate"] - table["estimate_lmer"]) / table["se_lmer"])[converged].abs().max()
    p = (table["p"] - table["p_lmer"])[converged].abs().max()
    print(
        f"{converged.sum()} of {len(table)} coefficients are from fits of lmer that converged; the "
        f"largest differences are {100 * error:.3f} % of a standard error, {shift:.5f} standard "
        f"errors of an estimate, and {p:.5f} of a p-value."
    )
    return int(error > 0.01)


if __name__ == "__main__":
    sys.exit(main())
