"""Norms against simulated cohorts whose centiles are known, on a real table, and their speed.

Three kinds of cohorts, none of which is the model's own distribution:

``skewed``
    People of 6 to 90 years: growth, plateau, and loss that accelerates after 50; a small effect of
    sex, the intracranial volume to the power of 0.5, residuals that are skewed to small volumes
    (skew-normal, skewness -0.67), a spread that grows from 9 to 13 %, and three sites with shifts
    of 0.3 SD and factors of the spread of 10 % (SDs over sites).
``gamma``
    The same people with a gamma distribution, whose coefficient of variation grows from 8 to 14 %
    and whose median follows another curve of age; sites multiply the volume by about 3 %.
``normal``
    Adults of 20 to 80 years at one site: a straight line of age, constant spread, normal.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats
from scipy.special import ndtr

from hyps_bids.norms.calibrate import calibrate_site
from hyps_bids.norms.calibration import calibration_table
from hyps_bids.norms.fit import fit_norm
from hyps_bids.norms.folds import score_out_of_fold
from hyps_bids.norms.norm import Norm
from hyps_bids.norms.sample import Array, NormSample, NormScores, NormSettings
from hyps_bids.outputs.reading import read_table
from hyps_bids.system import peak_memory_gb

SIZES = (50, 100, 200, 500, 1000, 5000)
#: People on whom a norm is tried who were not among its controls.
_NEW = 4000
#: Controls of a new site.
_SITE_SIZES = (0, 1, 5, 10, 20, 30, 50, 100)
_SCANS, _MEASURES = 10_000, 12
_MEAN_ICV = 1.45e6

#: Draws people, their values, and their true centiles.
Draw = Callable[[int], tuple[NormSample, Array, Array]]


def evaluate_norms(
    table: Path | None = None, *, sizes: Sequence[int] = SIZES, seeds: int = 20, speed: bool = True
) -> pd.DataFrame:
    """Measure all that is promised about norms.

    Parameters
    ----------
    table : Path, optional
        TSV with ``participant_id``, ``age``, ``sex``, ``left_hippocampus_mm3``,
        ``right_hippocampus_mm3`` and ``etiv_mm3``.
    sizes : sequence of int
        Numbers of controls.
    seeds : int
        Cohorts of each kind and size.
    speed : bool
        Whether to time 10,000 scans.

    Returns
    -------
    pandas.DataFrame
        One row per cohort (``kind``, ``n``, ``seed``): ``mae`` (of the centile of new people, in
        points), ``known_form`` (the same of an unshrunk fit that knows curves and shape),
        ``z_mean``, ``z_sd``, ``below_5`` and ``above_95`` (percent of new people; with
        ``held_out_`` before it, of the controls out of folds), ``coverage`` and ``width`` of the
        interval, and ``seconds``. Its ``attrs`` hold the summary.
    """
    rows = []
    for kind in _KINDS:
        for n in sizes:
            rows += [_assess(kind, n, seed) for seed in range(seeds)]
    for n in _SITE_SIZES:
        rows += [_new_site(n, seed) for seed in range(seeds)]
    if table is not None:
        rows += _real(table)
    if speed:
        rows += [_speed()]
    frame = pd.DataFrame(rows)
    frame.attrs["summary"] = _summary(frame)
    return frame


def _people(rng: np.random.Generator, n: int, sites: int) -> tuple[NormSample, Array]:
    """Draw people of 6 to 90 years, and the logarithm of their ICV relative to the mean."""
    sex = np.where(rng.random(n) < 0.5, "F", "M").astype(object)
    log_icv = np.where(sex == "M", 0.06, -0.06) + rng.normal(0, 0.085, n)
    names = np.array([f"site{k}" for k in range(sites)], dtype=object)
    sample = NormSample(
        participant=np.array([f"sub-{k:05}" for k in range(n)], dtype=object),
        age=rng.uniform(6, 90, n),
        sex=sex,
        icv=_MEAN_ICV * np.exp(log_icv),
        site=names[rng.integers(0, sites, n)],
    )
    return sample, log_icv


def _place(sample: NormSample) -> np.ndarray:
    return np.array([int(name.removeprefix("site")) for name in sample.site])


def _skewed(seed: int, sites: int) -> Draw:
    rng = np.random.default_rng([seed, 1])
    shift, factor = rng.normal(0, 0.3, sites), np.exp(rng.normal(0, 0.1, sites))
    shape = stats.skewnorm(-3)

    def draw(n: int) -> tuple[NormSample, Array, Array]:
        sample, log_icv = _people(rng, n, sites)
        age, place = sample.age, _place(sample)
        center = 3900 * (1 - 0.18 * np.exp(-(age - 6) / 6)) - 0.75 * np.maximum(age - 50, 0) ** 2
        center = (center + 40 * (sample.sex == "M")) * np.exp(0.5 * log_icv)
        sd = 340 + 1.6 * age
        centile = rng.random(n)
        residual = (shape.ppf(centile) - shape.mean()) / shape.std()
        return sample, center + sd * (shift[place] + factor[place] * residual), 100 * centile

    return draw


def _gamma(seed: int, sites: int) -> Draw:
    rng = np.random.default_rng([seed, 2])
    shift = rng.normal(0, 0.03, sites)

    def draw(n: int) -> tuple[NormSample, Array, Array]:
        sample, log_icv = _people(rng, n, sites)
        age, place = sample.age, _place(sample)
        center = 3700 + 350 * np.tanh((age - 12) / 8) - 900 / (1 + np.exp(-(age - 72) / 9))
        center *= np.exp(0.6 * log_icv + 0.02 * (sample.sex == "M") + shift[place])
        variation = 0.08 + 0.06 * (age / 90) ** 2
        centile = rng.random(n)
        unit = stats.gamma(variation**-2.0)
        return sample, center * unit.ppf(centile) / unit.median(), 100 * centile

    return draw


def _normal(seed: int, sites: int) -> Draw:
    rng = np.random.default_rng([seed, 3])

    def draw(n: int) -> tuple[NormSample, Array, Array]:
        sample, log_icv = _people(rng, n, 1)
        age = 20 + (sample.age - 6) * 60 / 84
        sample = NormSample(**{**vars(sample), "age": age})
        z = rng.normal(size=n)
        values = 3800 - 8 * (age - 50) + 1900 * log_icv + 60 * (sample.sex == "M") + 380 * z
        return sample, values, 100 * ndtr(z)

    return draw


#: Kind → its cohorts by seed and number of sites, and that number.
_KINDS: dict[str, tuple[Callable[[int, int], Draw], int]] = {
    "skewed": (_skewed, 3),
    "gamma": (_gamma, 3),
    "normal": (_normal, 1),
}


def _known_form_error(n: int, sites: int) -> float:
    """Return the error of centiles of a fit that knows the curves of age, the spread and the shape.

    Its coefficients are a constant, sex, ICV and sites of the location, and a constant and sites of
    the scale. Each costs 1 / n of a variance in the location, and half as much in the scale.
    """
    z = np.linspace(-6, 6, 2001)
    error = np.sqrt((2 + sites) / n + z**2 * sites / (2 * n))
    density = np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
    return float(100 * np.sqrt(2 / np.pi) * np.trapezoid(density**2 * error, z))


def _tails(scores: NormScores) -> dict[str, float]:
    known = np.isfinite(scores.z)
    z, centile = scores.z[known], scores.centile[known]
    return {
        "z_mean": float(z.mean()),
        "z_sd": float(z.std()),
        "below_5": float(100 * (centile < 5).mean()),
        "above_95": float(100 * (centile > 95).mean()),
    }


def _against_truth(scores: NormScores, truth: Array) -> dict[str, float]:
    known = np.isfinite(scores.z)
    centile, true = scores.centile[known], truth[known]
    low, high = scores.centile_low[known], scores.centile_high[known]
    return {
        "scored": float(100 * known.mean()),
        "mae": float(np.abs(centile - true).mean()),
        "coverage": float(100 * ((low <= true) & (true <= high)).mean()),
        "width": float((high - low).mean()),
    }


def _assess(kind: str, n: int, seed: int) -> dict[str, float | str]:
    make, sites = _KINDS[kind]
    draw = make(seed, sites)
    controls, values, _ = draw(n)
    began = time.process_time()
    norm = fit_norm(controls, values, NormSettings(kind, "mm3"))
    held_out = score_out_of_fold(norm, controls, values)
    seconds = time.process_time() - began
    new, new_values, truth = draw(_NEW)
    scores = norm.score(new, new_values)
    return {
        **{"kind": kind, "n": n, "seed": seed, "known_form": _known_form_error(n, sites)},
        **_against_truth(scores, truth),
        **_tails(scores),
        **{f"held_out_{name}": value for name, value in _tails(held_out).items()},
        "seconds": seconds,
        "converged": float(norm.fit.converged),
    }


def _new_site(n: int, seed: int) -> dict[str, float | str]:
    """Score people of a fourth site, with `n` controls of its own, by a norm of 500 people."""
    draw = _skewed(1000 + seed, 4)
    sample, values, truth = draw(8000)
    old = sample.site != "site3"
    norm = fit_norm(
        sample.take(old).take(np.arange(500)), values[old][:500], NormSettings("new-site", "mm3")
    )
    sample, values, truth = sample.take(~old), values[~old], truth[~old]
    norm = _calibrated(norm, sample.take(np.arange(n)), values[:n])
    rest = np.arange(max(_SITE_SIZES), len(sample))
    scores = norm.score(sample.take(rest), values[rest])
    found = {**_against_truth(scores, truth[rest]), **_tails(scores)}
    return {"kind": "new site", "n": n, "seed": seed, **found}


def _calibrated(norm: Norm, sample: NormSample, values: Array) -> Norm:
    return calibrate_site(norm, sample, values) if len(sample) else norm


def _real(path: Path) -> list[dict[str, float | str]]:
    """Score the people of a table out of folds: each side, their sum, and the asymmetry."""
    table = read_table(path)
    sample = NormSample(
        participant=table["participant_id"].to_numpy(dtype=object),
        age=table["age"].to_numpy(dtype=np.float64),
        sex=table["sex"].fillna("").to_numpy(dtype=object),
        icv=table["etiv_mm3"].to_numpy(dtype=np.float64),
        site=np.full(len(table), "", dtype=object),
    )
    left, right = (
        table[f"{side}_hippocampus_mm3"].to_numpy(dtype=np.float64) for side in ("left", "right")
    )
    measures = {
        "left": left,
        "right": right,
        "sum": left + right,
        "asymmetry": 2 * (left - right) / (left + right),
    }
    rows: list[dict[str, float | str]] = []
    for name, values in measures.items():
        norm = fit_norm(sample, values, NormSettings(name, icv=name != "asymmetry"))
        scores = score_out_of_fold(norm, sample, values)
        of_all = calibration_table(sample, scores).iloc[0]
        row = {f"held_out_{key}": value for key, value in _tails(scores).items()}
        width = float(np.nanmean(scores.centile_high - scores.centile_low))
        shape = {"z_skew": float(of_all["z_skew"]), "z_kurtosis": float(of_all["z_kurtosis"])}
        people = norm.facts["Participants"]
        rows.append({"kind": f"table: {name}", "n": people, **row, "width": width, **shape})
    return rows


def _speed() -> dict[str, float | str]:
    """Time fit, folds and application of 12 measures of 10,000 scans at 20 sites."""
    began, computed = time.perf_counter(), time.process_time()
    for measure in range(_MEASURES):
        sample, values, _ = _skewed(2000 + measure, 20)(_SCANS)
        norm = fit_norm(sample, values, NormSettings("speed", "mm3"))
        score_out_of_fold(norm, sample, values)
        norm.score(sample, values)
    seconds = {
        "wall_seconds": time.perf_counter() - began,
        "seconds": time.process_time() - computed,
    }
    return {"kind": "speed", "n": _SCANS, **seconds, "memory_gb": peak_memory_gb()}


def _summary(frame: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Average the figures of each kind and size over the cohorts."""
    numbers = frame.drop(columns="seed", errors="ignore").groupby(["kind", "n"], sort=False).mean()
    return {
        f"{kind} {n}": {name: round(float(value), 3) for name, value in row.dropna().items()}
        for (kind, n), row in numbers.iterrows()
    }
