"""A made dataset of controls and patients, in numbers only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from tests.cohort.study import MadeStudy

__all__ = ["SD", "expected", "make_people"]

#: SD of the volume of one side among controls, mm3.
SD = 250.0


def expected(age: np.ndarray, male: np.ndarray, icv: np.ndarray) -> np.ndarray:
    """Mean volume of one side among controls, mm3."""
    return 3600 - 12 * (age - 50) + 80 * male + 0.001 * (icv - 1.5e6)


def make_people(
    folder: Path,
    controls: int = 60,
    patients: int = 12,
    *,
    seed: int = 0,
    sites: tuple[str, ...] = ("A", "B"),
    shift: float = 0.0,
    flagged: int = 2,
) -> MadeStudy:
    """Make scans of controls (diagnosis CN) and then of patients (AD), whose volume is 2 SD less.

    `shift` is added to all volumes, and the first `flagged` controls are flagged for review.
    """
    study = MadeStudy.create(folder)
    rng = np.random.default_rng(seed)
    n = controls + patients
    age, male = rng.uniform(30, 80, n).round(1), rng.random(n) < 0.5
    # The extremes of age are controls of both sexes, so that nobody is outside.
    age[flagged : flagged + 4] = 29.0, 81.0, 29.0, 81.0
    male[flagged : flagged + 4] = False, False, True, True
    icv = np.clip(rng.normal(1.45e6, 8e4, n), 1.3e6, 1.6e6) + 1e5 * male
    site = np.array(sites)[np.arange(n) % len(sites)]
    volume = expected(age, male, icv) + shift - 2 * SD * (np.arange(n) >= controls)
    volume = volume + rng.normal(0, SD, n)
    rows = []
    for i in range(n):
        name = f"sub-{i + 1:03d}"
        difference = rng.normal(0, 60)
        shares = {"anterior": 0.55 + rng.normal(0, 0.02)}
        flags = {"flags": "low_confidence_L", "review": "yes"} if i < flagged else {}
        study.scan(
            name,
            volume[i] + difference,
            volume[i] - difference,
            icv=float(icv[i]),
            parts={**shares, "posterior": 1 - shares["anterior"]},
            version="0.2.0",
            **flags,
        )
        level = "CN" if i < controls else "AD"
        rows.append([name, age[i], "FM"[int(male[i])], level, site[i]])
    columns = ["participant_id", "age", "sex", "diagnosis", "scanner"]
    table = pd.DataFrame(rows, columns=columns)
    table.to_csv(study.raw / "participants.tsv", sep="\t", index=False)
    return study
