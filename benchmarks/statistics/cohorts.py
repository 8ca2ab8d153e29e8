"""Made longitudinal cohorts with the variation of the hippocampus, for the programs beside this."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

MEASURE = "volume_mm3_L_whole"


@dataclass(frozen=True)
class Cohort:
    """How a cohort is made; volumes are in mm³ and times in years."""

    slope_sd: float
    subjects: int = 80
    patients: float = 0.5  # share
    visits: tuple[int, int] = (3, 4)  # fewest and most
    dropout: float = 0.0  # probability of each visit after the second to be the last
    jitter: float = 0.1  # largest deviation from the planned time
    along_age: bool = False  # whether slopes start at the age of 70 instead of the first scan
    level_sd: float = 350.0
    residual_sd: float = 50.0

    def make(self, seed: int) -> pd.DataFrame:
        """Return a wide table in which diagnoses differ neither in level nor in change."""
        rng = np.random.default_rng(seed)
        count = rng.integers(self.visits[0], self.visits[1] + 1, self.subjects)
        last = 1 + rng.geometric(self.dropout, self.subjects) if self.dropout else count
        count = np.minimum(count, np.maximum(last, 1))
        of = np.repeat(np.arange(self.subjects), count)
        visit = np.concatenate([np.arange(n) for n in count])
        time = visit + np.where(visit > 0, rng.uniform(-self.jitter, self.jitter, len(of)), 0.0)
        first_age = rng.uniform(55, 85, self.subjects)[of]
        slope = rng.normal(-40, self.slope_sd, self.subjects)[of]
        change = slope * (first_age + time - 70) if self.along_age else slope * time
        level = rng.normal(3500, self.level_sd, self.subjects)[of]
        patients = round(self.patients * self.subjects)
        return pd.DataFrame(
            {
                "participant_id": [f"sub-{i:04d}" for i in of],
                "scan": [f"sub-{i:04d}_ses-{v}" for i, v in zip(of, visit, strict=True)],
                "status": "done",
                "dx": np.where(of < patients, "patient", "control"),
                "visit": [f"M{12 * v:02d}" for v in visit],
                "time": time,
                "age": first_age + time,
                MEASURE: level + change + rng.normal(0, self.residual_sd, len(of)),
            }
        )
