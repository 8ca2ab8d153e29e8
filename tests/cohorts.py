"""Simulated cohorts with a known effect, for tests, benchmarks and documentation only.

:func:`simulate` makes a wide table, and :func:`oasis_cross_sectional` and
:func:`oasis_longitudinal` make tables of a raw dataset as people write them. None of these numbers
belongs to a person. The hippocampus of both sides together has
7688 - 40 (age - 65) mm³ and a residual SD of 506 mm³, which its four parts share with a
correlation of 0.6; patients have it smaller by some of these SDs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import NormalDist

import numpy as np
import pandas as pd

__all__ = [
    "PARTS",
    "RESIDUAL_SD",
    "oasis_cross_sectional",
    "oasis_longitudinal",
    "simulate",
    "theoretical_auc",
]

PARTS = tuple(f"volume_mm3_{side}_{part}" for side in "LR" for part in ("anterior", "posterior"))
RESIDUAL_SD = 506.0
_SHARES = np.array([0.26, 0.24, 0.26, 0.24])
_CORRELATION = 0.6


def theoretical_auc(effect: float, extra_sd: float = 0.0) -> float:
    """Return the AUC of the best classifier when all parts shrink alike.

    `effect` is the difference between the groups in residual SDs of the whole hippocampus, and
    `extra_sd` the SD in mm³ due to causes that are not in the model, such as age.
    """
    inflation = np.hypot(1, extra_sd / RESIDUAL_SD)
    return NormalDist().cdf(abs(effect) / inflation / np.sqrt(2))


def simulate(
    groups: Mapping[str, int],
    effects: Mapping[str, float] | None = None,
    *,
    seed: int = 0,
    scans: int = 1,
    scan_sd: float = 40.0,
    sites: Sequence[str] = ("A",),
    site_of_group: Mapping[str, str] | None = None,
    site_shift: float = 0.0,
    site_scale: float = 1.0,
    missing: float = 0.0,
    mmse_effect: float = 0.0,
    noise_features: int = 0,
) -> pd.DataFrame:
    """Make a wide table like that of the group level.

    Parameters
    ----------
    groups, effects : mapping
        Level of ``diagnosis`` → number of subjects, and shift of the whole hippocampus in residual
        SDs.
    scans : int
        Sessions per subject, whose volumes differ by `scan_sd` per part only.
    sites : sequence of str
        Assigned at random, unless `site_of_group` names one per level.
    site_shift, site_scale : float
        The n-th site adds n shifts to the volume of every part, and multiplies residuals by
        scale to the power of n.
    missing : float
        Proportion of covariates and volumes that are missing.
    mmse_effect : float
        SDs by which MMSE differs per unit of effect.
    noise_features : int
        Number of columns ``noise_0`` … without any information.
    """
    rng = np.random.default_rng(seed)
    effects = effects or {}
    diagnosis = np.repeat(list(groups), list(groups.values()))
    effect = np.array([effects.get(level, 0.0) for level in diagnosis])
    n = len(diagnosis)
    age = rng.normal(72, 7, n).round(1)
    sex = rng.choice(["F", "M"], n)
    icv = rng.normal(1.45e6, 1.1e5, n) + 1.2e5 * (sex == "M")
    site = (
        np.array([site_of_group[level] for level in diagnosis])
        if site_of_group
        else rng.choice(list(sites), n)
    )
    names = sorted(set(site_of_group.values())) if site_of_group else list(sites)
    number = np.array([names.index(s) for s in site])
    # Variance of the sum of four equally correlated parts is RESIDUAL_SD squared
    part_sd = RESIDUAL_SD / np.sqrt(4 * (1 + 3 * _CORRELATION))
    common = np.sqrt(_CORRELATION) * rng.normal(size=(n, 1))
    residual = part_sd * (common + np.sqrt(1 - _CORRELATION) * rng.normal(size=(n, 4)))
    residual *= site_scale ** number[:, None]
    whole = 7688 - 40 * (age - 65) + 0.002 * (icv - 1.45e6)
    parts = np.outer(whole, _SHARES) + residual + site_shift * number[:, None]
    parts += np.outer(effect, np.full(4, RESIDUAL_SD / 4))
    mmse = np.clip((28 + mmse_effect * effect + rng.normal(0, 1, n)).round(), 0, 30)
    education = rng.normal(15, 3, n).round()
    noise = rng.normal(size=(n, noise_features))
    rows = []
    for i in range(n):
        for scan in range(scans):
            volumes = parts[i] + (rng.normal(0, scan_sd, 4) if scans > 1 else 0.0)
            subject, session = f"sub-{i + 1:04d}", f"ses-{scan + 1}"
            rows.append(
                {
                    "participant_id": subject,
                    "session_id": session if scans > 1 else None,
                    "scan": f"{subject}_{session}" if scans > 1 else subject,
                    "status": "done",
                    "reason": None,
                    "flags": None,
                    "software_version": "0.1.0",
                    "adapter": "adapter-simulated",
                    "models": "localizer-simulated:0 base-simulated:0 adapter-simulated:0 n4:none",
                    "icv_mm3": icv[i],
                    **dict(zip(PARTS, volumes, strict=True)),
                    "volume_mm3_L_whole": volumes[:2].sum(),
                    "volume_mm3_R_whole": volumes[2:].sum(),
                    "diagnosis": diagnosis[i],
                    "age": age[i],
                    "sex": sex[i],
                    "education": education[i],
                    "MMSE": mmse[i],
                    "site": site[i],
                    **{f"noise_{k}": noise[i, k] for k in range(noise_features)},
                }
            )
    frame = pd.DataFrame(rows)
    for name in ("age", "sex", "education", "MMSE", "icv_mm3", *PARTS):
        frame[name] = frame[name].mask(rng.random(len(frame)) < missing)
    return frame


def oasis_cross_sectional(n: int = 40, *, seed: int = 0, decimal: str = ".") -> pd.DataFrame:
    """Make a participants.tsv like that of OASIS-1, as text; None is n/a.

    Its columns are M/F, Hand (R in everybody), Age (whole years), Educ and SES (codes), MMSE, CDR
    (0, 0.5 or 1), eTIV (ml), nWBV and Delay. A quarter of the participants are young, and have
    neither cognitive tests nor CDR nor education. The others with a CDR above 0 have smaller nWBV.
    """
    rng = np.random.default_rng(seed)
    young = np.arange(n) % 4 == 3
    cdr = np.where(young, np.nan, rng.choice([0.0, 0.5, 1.0], n, p=[0.55, 0.35, 0.1]))
    age = np.where(young, rng.integers(18, 35, n), rng.integers(60, 95, n))
    male = rng.random(n) < 0.4
    etiv = rng.normal(1420, 110, n) + 130 * male
    mmse = np.clip(np.round(29 - 5 * np.nan_to_num(cdr) + rng.normal(0, 1, n)), 0, 30)
    nwbv = 0.86 - 0.0022 * (age - 20) - 0.02 * np.nan_to_num(cdr) + rng.normal(0, 0.012, n)
    numbers = {
        "Educ": (np.where(young, np.nan, rng.integers(1, 6, n)), "g"),
        "SES": (np.where(young, np.nan, rng.integers(1, 6, n)), "g"),
        "MMSE": (np.where(young, np.nan, mmse), "g"),
        "CDR": (cdr, "g"),
        "eTIV": (etiv, ".0f"),
        "nWBV": (nwbv, ".3f"),
        "Delay": (np.full(n, np.nan), "g"),
    }
    columns = {
        "participant_id": [f"sub-OAS1{i + 1:04d}" for i in range(n)],
        "M/F": np.where(male, "M", "F"),
        "Hand": "R",
        "Age": age.astype(str),
        **{name: _texts(values, spec, decimal) for name, (values, spec) in numbers.items()},
    }
    return pd.DataFrame(columns)


def oasis_longitudinal(
    n: int = 30, *, seed: int = 0, decimal: str = ".", names: Sequence[str] = ("MR1", "MR2", "MR3")
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Make a participants.tsv and the rows of all sessions.tsv like those of OASIS-2, as text.

    Participants have M/F, Hand and EDUC. Their first two or three sessions, with names in the order
    of time, have Group (Nondemented, Demented or Converted, the same at all visits), Visit,
    MR_Delay (days), Age (whole years), MMSE, CDR, eTIV and acq_time (moved to before 1925). Every
    fifth participant is a converter, whose CDR is 0 at first and 0.5 at the last visit.
    """
    rng = np.random.default_rng(seed)
    group = np.array(["Nondemented", "Demented", "Nondemented", "Demented", "Converted"])
    people, rows = [], []
    for i in range(n):
        name, kind = f"sub-OAS2{i + 1:04d}", group[i % 5]
        people.append([name, "FM"[int(rng.random() < 0.45)], "R", str(rng.integers(8, 21))])
        age, etiv, start = rng.uniform(62, 90), rng.normal(1450, 130), rng.integers(0, 700)
        count = 2 + int(rng.random() < 0.5)
        delay = np.cumsum([0, *rng.integers(400, 900, count - 1)])
        for k in range(count):
            ill = kind == "Demented" or (kind == "Converted" and k == count - 1)
            date = pd.Timestamp("1900-03-01T10:15:00") + pd.Timedelta(days=int(start + delay[k]))
            rows.append(
                {
                    "participant_id": name,
                    "session_id": f"ses-{names[k]}",
                    "Group": kind,
                    "Visit": str(k + 1),
                    "MR_Delay": str(delay[k]),
                    "Age": str(int(age + delay[k] / 365.25)),
                    "MMSE": str(min(30, round(28 - 4 * ill + rng.normal(0, 1)))),
                    "CDR": f"{0.5 * ill:g}".replace(".", decimal),
                    "eTIV": f"{etiv + rng.normal(0, 8):.1f}".replace(".", decimal),
                    "acq_time": date.isoformat(),
                }
            )
    return pd.DataFrame(people, columns=["participant_id", "M/F", "Hand", "EDUC"]), pd.DataFrame(
        rows
    )


def _texts(values: np.ndarray, spec: str, decimal: str) -> list[str | None]:
    return [None if np.isnan(v) else format(v, spec).replace(".", decimal) for v in values]
