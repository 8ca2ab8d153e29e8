"""Count how often harmonized linear models find a diagnosis that has no effect.

    python benchmarks/statistics/harmonize.py --table benchmarks/statistics/results/harmonize.tsv

Sites add to volumes and multiply them, and AD may be more frequent at every other site. Prints for
each setting the share of p < 0.05 for the diagnosis (and for diagnosis:time where scans are
repeated) of three ways: ComBat alone, whose harmonized volumes are fitted as if they had been
measured so; --harmonize; and the site as a term of the formula.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from hyps_bids.cohort.combat import harmonize
from hyps_bids.cohort.statistics import fit_models
from tests.cohorts import simulate

_MEASURE = "volume_mm3_L_whole"


class Setting(NamedTuple):
    """A study: subjects per site, share of AD at even and odd sites, visits per subject."""

    sites: int
    each: int
    share: float
    visits: int


SETTINGS = (
    Setting(3, 20, 0.5, 1),
    Setting(3, 20, 0.8, 1),
    Setting(6, 8, 0.5, 1),
    Setting(6, 8, 0.75, 1),
    Setting(6, 4, 0.5, 1),
    Setting(6, 20, 0.8, 1),
    Setting(3, 16, 0.5, 3),
    Setting(3, 16, 0.75, 3),
    Setting(6, 8, 0.75, 3),
)


def study(setting: Setting, seed: int) -> pd.DataFrame:
    """Simulate one study without an effect of the diagnosis; a fifth change the site at the end."""
    rng = np.random.default_rng([seed, 1])
    frames = []
    for s in range(setting.sites):
        share = setting.share if s % 2 else 1 - setting.share
        patients = round(share * setting.each)
        groups = {"AD": patients, "CN": setting.each - patients}
        one = simulate(groups, seed=int(rng.integers(2**31)), scans=setting.visits)
        for name in ("participant_id", "scan"):
            one[name] = one[name].str.replace("sub-", f"sub-{s}")
        frames.append(one.assign(place=s))
    frame = pd.concat(frames, ignore_index=True)
    frame["time"] = frame.groupby("participant_id").cumcount().astype(float)
    if setting.visits > 1:
        moved = frame["participant_id"].str[-1].isin(["0", "5"])
        last = frame["time"] == setting.visits - 1
        frame.loc[moved & last, "place"] = (frame["place"] + 1) % setting.sites
    gain = np.exp(rng.normal(0, 0.05, setting.sites))[frame["place"]]
    shift = rng.normal(0, 100, setting.sites)[frame["place"]]
    for name in [n for n in frame if n.startswith("volume")]:
        frame[name] = frame[name] * gain + shift
    return frame.assign(site=frame["place"].map(lambda s: f"site{s}"))


def combat_alone(frame: pd.DataFrame) -> pd.DataFrame:
    """Harmonize the volumes as neuroCombat and longCombat do."""
    columns = [n for n in frame if n.startswith("volume")]
    patient, repeated = frame["diagnosis"] == "AD", frame["time"].max() > 0
    design = pd.DataFrame({"dx": patient, "age": frame["age"], "time": frame["time"]})
    design = design.assign(both=design["dx"] * design["time"]).astype(float)
    subjects = frame["participant_id"].to_numpy() if repeated else None
    place = frame["place"].to_numpy()
    values = harmonize(frame[columns].to_numpy(), place, design.to_numpy(), subjects)
    return frame.assign(**dict(zip(columns, values.T, strict=True)))


def p_values(frame: pd.DataFrame) -> dict[tuple[str, str], float]:
    """Fit one study in the three ways."""
    terms = "diagnosis * time + age" if frame["time"].max() > 0 else "diagnosis + age"
    formula = f"{_MEASURE} ~ {terms}"
    tables = {
        "ComBat alone": fit_models(combat_alone(frame), [formula]),
        "--harmonize": fit_models(frame, [formula], None, "site"),
        "site as a term": fit_models(frame, [f"{formula} + site"]),
    }
    return {
        (way, term): row["p"]
        for way, table in tables.items()
        for term in ("diagnosis", "diagnosis:time")
        for row in table[table["term"] == term].to_dict("records")
    }


def main() -> None:
    """Run all settings."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=200, help="of one scan per subject")
    parser.add_argument("--repeated", type=int, default=80, help="studies of repeated scans")
    parser.add_argument("--seed", type=int, default=0, help="of the first study")
    numbers = range(len(SETTINGS))
    parser.add_argument("--settings", type=int, nargs="+", choices=numbers, default=list(numbers))
    parser.add_argument("--table", type=Path)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    rows = []
    print("| sites | subjects each | AD at odd sites | visits | term | way | p < 0.05 | studies |")
    print("|---|---|---|---|---|---|---|---|")
    for setting in (SETTINGS[number] for number in options.settings):
        count = options.studies if setting.visits == 1 else options.repeated
        found = pd.DataFrame(
            [p_values(study(setting, options.seed + i)) for i in range(count)]
        ).agg(lambda p: (p < 0.05).mean())
        for (way, term), share in found.items():
            rows.append([*setting, term, way, round(float(share), 3), count])
            print("|", " | ".join(map(str, rows[-1])), "|", flush=True)
    if options.table:
        names = ["sites", "each", "share", "visits", "term", "way", "found", "studies"]
        pd.DataFrame(rows, columns=names).to_csv(options.table, sep="\t", index=False)


if __name__ == "__main__":
    main()
