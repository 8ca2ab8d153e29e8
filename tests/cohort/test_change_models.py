"""Models of change per year: weights by its errors, the rows they use, and known differences."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.stats.meta_analysis import combine_effects

from hyps_bids.cohort.models import between_subjects
from hyps_bids.cohort.statistics import fit_model

CHANGE = "percent_per_year_longitudinal_L_whole"
VOLUME = "volume_longitudinal_mm3_L_whole"
#: SD of one scan without change, in percent of the volume.
SCAN_SD = 0.5


def followed(
    n: int, seed: int, difference: float = -1.5, spread: float = 0.8
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Make a wide table of `n` people with two scans, and the errors of their change.

    Controls lose 1 % per year, patients `difference` more; true change differs by `spread` within
    the groups. Scans are half a year to four years apart.
    """
    rng = np.random.default_rng(seed)
    patient = np.arange(n) % 2 == 1
    age, span = rng.uniform(55, 80, n), rng.uniform(0.5, 4, n)
    volume = rng.normal(3000 - 10 * (age - 65), 300, n) - 300 * patient
    change = -1.0 + difference * patient + rng.normal(0, spread, n)
    noise = rng.normal(0, SCAN_SD, (2, n))
    seen = change + (noise[1] - noise[0]) / span
    rows = []
    for visit, years in enumerate((np.zeros(n), span)):
        true = volume * (1 + change / 100 * years)
        rows.append(
            pd.DataFrame(
                {
                    "participant_id": [f"sub-{i}" for i in range(n)],
                    "scan": [f"sub-{i}_ses-{visit}" for i in range(n)],
                    "image_contrast": "T1w",
                    "status": "done",
                    "scan_number": visit + 1,
                    "order_source": "acq_time",
                    "years_since_first_scan": years,
                    "diagnosis": np.where(patient, "AD", "CN"),
                    "age": age + years,
                    CHANGE: seen,
                    VOLUME: true + volume * noise[visit] / 100,
                    "error": SCAN_SD * 2**0.5 / span,
                }
            )
        )
    wide = pd.concat(rows, ignore_index=True)
    return wide, wide[["error"]].rename(columns={"error": CHANGE})


def test_weights_are_those_of_a_random_effects_meta_analysis() -> None:
    """The reference is statsmodels' meta-analysis by Paule & Mandel, with errors of Hartung."""
    wide, errors = followed(40, 3)
    first = wide["scan_number"] == 1
    values, known = wide.loc[first, CHANGE].to_numpy(), errors.loc[first, CHANGE].to_numpy()
    reference = combine_effects(values, known**2, method_re="iterated", use_t=True)
    between = between_subjects(values, np.ones((len(values), 1)), known)
    assert between == pytest.approx(reference.tau2, rel=1e-3)
    (row,) = fit_model(wide, f"{CHANGE} ~ 1", errors=errors).models.to_dict("records")
    assert row["estimate"] == pytest.approx(reference.mean_effect_re, rel=1e-4)
    assert row["se"] == pytest.approx(reference.sd_eff_w_re_hksj, rel=1e-3)
    assert (row["method"], row["n_scans"], row["n_subjects"]) == ("wls", 40, 40)


def test_errors_that_explain_all_differences() -> None:
    """Without true differences, standard errors are those of the known errors, not smaller."""
    values, known = np.array([1.0, 1.1, 0.9, 1.05, 0.95]), np.array([0.5, 1, 1, 2, 0.5])
    assert between_subjects(values, np.ones((5, 1)), known) == 0
    frame = pd.DataFrame({"participant_id": list("abcde"), "scan": list("abcde"), "status": "done"})
    frame = frame.assign(scan_number=1, order_source="age", years_since_first_scan=0.0)
    frame[CHANGE] = values
    errors = pd.DataFrame({CHANGE: known})
    (row,) = fit_model(frame, f"{CHANGE} ~ 1", errors=errors).models.to_dict("records")
    assert row["se"] == pytest.approx((known**-2.0).sum() ** -0.5)
    assert row["estimate"] == pytest.approx(np.average(values, weights=known**-2.0))


def test_rows_and_ages_are_those_of_the_first_scan() -> None:
    wide, errors = followed(30, 4)
    table = fit_model(wide, f"{CHANGE} ~ diagnosis + age", errors=errors).models
    assert (table["n_scans"] == 30).all()
    # Ages at the second scan would give another coefficient.
    same = fit_model(wide[wide["scan_number"] == 1], f"{CHANGE} ~ diagnosis + age", errors=errors)
    assert table["estimate"].tolist() == same.models["estimate"].tolist()
    mixed = fit_model(wide, f"{VOLUME} ~ diagnosis * time + baseline_age").models
    assert "baseline_age" in mixed["coefficient"].tolist()
    assert set(mixed["method"]) == {"mixed_cr2"}


def test_without_known_errors_nobody_weighs_more() -> None:
    wide, errors = followed(30, 5)
    plain = fit_model(wide, f"{CHANGE} ~ diagnosis").models
    errors.iloc[0] = np.nan
    table = fit_model(wide, f"{CHANGE} ~ diagnosis", errors=errors).models
    assert set(table["method"]) == {"ols"}
    assert table["estimate"].tolist() == plain["estimate"].tolist()
    assert table["notes"].str.contains("1 participants have no standard error").all()
    other = fit_model(wide, f"{{-{CHANGE}}} ~ diagnosis", errors=errors).models
    assert set(other["method"]) == {"ols"}


def difference_of(table: pd.DataFrame, coefficient: str) -> tuple[float, float, float, float]:
    row = table.set_index("coefficient").loc[coefficient]
    return row["estimate"], row["se"], row["ci_low"], row["ci_high"]


@pytest.mark.slow
def test_known_differences_are_found_with_honest_errors() -> None:
    """Over cohorts: no bias, standard errors equal to the spread of estimates, coverage 95 %."""
    count, truth = 200, -1.5
    change, mixed = [], []
    for seed in range(count):
        wide, errors = followed(60, 1000 + seed)
        table = fit_model(wide, f"{CHANGE} ~ diagnosis", ("diagnosis", "CN"), errors=errors).models
        change.append(difference_of(table, "diagnosis[T.AD]"))
        formula = f"{VOLUME} ~ diagnosis * time + baseline_age"
        table = fit_model(wide, formula, ("diagnosis", "CN")).models
        mixed.append(difference_of(table, "diagnosis[T.AD]:time"))
    # In mm³: patients are 300 mm³ smaller at the same age, and lose 2.5 % instead of 1 %.
    in_mm3 = 0.01 * (-2.5 * (3000 - 25 - 300) + 1.0 * (3000 - 25))
    for found, expected in ((np.array(change), truth), (np.array(mixed), in_mm3)):
        estimate, se, low, high = found.T
        spread = estimate.std(ddof=1)
        assert abs(estimate.mean() - expected) < 3 * spread / count**0.5
        assert se.mean() / spread == pytest.approx(1, abs=0.12)
        covered = int(((low <= expected) & (expected <= high)).sum())
        assert stats.binomtest(covered, count, 0.95).pvalue > 0.001
    assert np.array(change)[:, 1].mean() < 0.3
