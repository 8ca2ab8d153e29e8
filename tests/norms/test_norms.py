"""Fit, scores, reasons, sites, folds and storage of norms, against values that are known."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import norm as gaussian
from scipy.stats import t as student

from hyps_bids.errors import BadData, MissingInput
from hyps_bids.norms import sample as codes
from hyps_bids.norms.age import age_basis
from hyps_bids.norms.calibrate import calibrate_site, score_held_out
from hyps_bids.norms.calibration import calibration_table, pit_histogram
from hyps_bids.norms.family import Shape, derivatives, normal_score, residual, score_slopes
from hyps_bids.norms.fit import fit_norm
from hyps_bids.norms.folds import participant_folds, score_out_of_fold
from hyps_bids.norms.sample import NormSample, NormScores, NormSettings
from hyps_bids.norms.store import load_norms, save_norms
from tests.norms.cohorts import change, line, people
from tests.raising import raises

VOLUME = NormSettings("volume_mm3_L_whole", "mm3")


@pytest.fixture(scope="module")
def controls():
    """1,000 controls of one site."""
    sample, rng = people(1000, ages=(20.0, 80.0))
    values, _ = line(sample, rng)
    return sample, values, fit_norm(sample, values, VOLUME)


def same(one: NormScores, two: NormScores) -> bool:
    return all(
        np.array_equal(a, b, equal_nan=a.dtype == float)
        for a, b in zip(vars(one).values(), vars(two).values(), strict=True)
    )


# Distribution


def test_derivatives_are_those_of_the_likelihood():
    values, at, small = np.array([-4.0, -1, 0.2, 0.9, 5]), np.array([0.1, 0.2, 0.3, -0.2]), 1e-5

    def found(at):
        scale = np.full(len(values), at[1])
        return derivatives((values - at[0]) * np.exp(-scale), scale, Shape(*at[2:]))

    def score(at):
        return normal_score((values - at[0]) * np.exp(-at[1]), Shape(*at[2:]))

    here = found(at)
    r, scale = (values - at[0]) * np.exp(-at[1]), np.full(len(values), np.exp(at[1]))
    slopes = score_slopes(r, scale, Shape(*at[2:]))
    # The density is that of the normal score.
    np.testing.assert_allclose(
        here.value, -(score(at) ** 2) / 2 + np.log(-slopes[0]), atol=1e-12, rtol=1e-12
    )
    for i, step in enumerate(np.eye(4) * small):
        up, down = found(at + step), found(at - step)
        np.testing.assert_allclose((up.value - down.value) / 2 / small, here.first[i], rtol=1e-6)
        slope = (score(at + step) - score(at - step)) / 2 / small
        np.testing.assert_allclose(slope, slopes[i], rtol=1e-6)
        for j in range(4):
            second = (up.first[j] - down.first[j]) / 2 / small
            np.testing.assert_allclose(second, here.second[min(i, j), max(i, j)], rtol=1e-5)


def test_residuals_are_the_inverse_of_scores():
    z = np.linspace(-6, 6, 13)
    np.testing.assert_allclose(normal_score(residual(z, Shape(-0.5, 0.3)), Shape(-0.5, 0.3)), z)
    np.testing.assert_array_equal(residual(z, Shape(0, 0)).round(12), z)


def test_columns_of_age_are_curves_that_are_orthogonal_to_the_line():
    age = np.random.default_rng(0).uniform(5, 90, 500)
    basis = age_basis(age, np.ones(500))
    columns = np.hstack([np.ones((500, 1)), basis.line(age), basis.curvature(age)])
    gram = columns.T @ columns / 500
    np.testing.assert_allclose(gram - np.diag(np.diag(gram)), 0, atol=1e-5)
    # Coefficients with a variance of 1 make a curve of an SD of 1.
    assert np.trace(gram[2:, 2:]) == pytest.approx(1, abs=1e-4)


# Fit


def test_a_line_with_normal_residuals_is_that_of_least_squares(controls):
    sample, values, norm = controls
    assert (norm.log, norm.shaped, norm.fit.converged) == (False, False, True)
    columns = np.column_stack(
        [np.ones(1000), sample.age, sample.sex == "M", np.log(sample.icv)]
    ).astype(float)
    fitted = columns @ np.linalg.lstsq(columns, values)[0]
    sd = np.sqrt(((values - fitted) ** 2).sum() / (1000 - 4))
    z = norm.score(sample, values).z
    np.testing.assert_allclose(z, (values - fitted) / sd, atol=0.3)
    # Curves that are not there cost some accuracy.
    assert np.std(z - (values - fitted) / sd) < 0.08


def test_centiles_are_those_of_the_true_distribution(controls):
    _, _, norm = controls
    sample, rng = people(2000, seed=1)
    sample = change(sample, icv=np.clip(sample.icv, *norm.facts["ICV"]))
    values, expected = line(sample, rng)
    truth = 100 * gaussian.cdf((values - expected) / 300)
    scores = norm.score(sample, values)
    assert set(scores.reason) == {""}
    assert np.abs(scores.centile - truth).mean() < 2.2
    inside = (scores.centile_low <= truth) & (truth <= scores.centile_high)
    assert inside.mean() > 0.9
    assert np.all((scores.centile_low <= scores.centile) & (scores.centile <= scores.centile_high))


def test_intervals_are_wider_with_fewer_controls(controls):
    sample, values, many = controls
    few = fit_norm(sample.take(np.arange(60)), values[:60], VOLUME)
    width = [
        np.nanmean(s.centile_high - s.centile_low)
        for s in (m.score(sample, values) for m in (few, many))
    ]
    # The square root of 1000 / 60 is 4.
    assert 2.5 < width[0] / width[1] < 5


def test_skew_and_growing_spread_are_found():
    sample, rng = people(3000, seed=2)
    sd = 200 + 4 * (sample.age - 20)
    # Gamma with a shape of 4: skewness 1.
    values = 4000 + sd * (rng.gamma(4, size=3000) - 4) / 2
    norm = fit_norm(sample, values, NormSettings(icv=False))
    at = norm.curves(np.array([30.0, 70.0]), "F", np.nan, "site0", [5, 50, 95])
    from scipy.stats import gamma

    quantiles = (gamma(4).ppf([0.05, 0.5, 0.95]) - 4) / 2
    np.testing.assert_allclose(at, 4000 + np.outer([240, 400], quantiles), atol=40)
    assert norm.shaped


def test_curves_and_scores_agree(controls):
    _, _, norm = controls
    centiles = [1, 5, 50, 95, 99]
    at = norm.curves(np.array([40.0]), "M", 1.5e6, "site0", centiles)[0]
    one = change(people(5)[0], age=40, sex="M", icv=1.5e6, site="site0")
    np.testing.assert_allclose(norm.score(one, at).centile, centiles, atol=0.01)


def test_a_participant_with_many_scans_weighs_as_one():
    sample, rng = people(60, seed=3)
    values, _ = line(sample, rng)
    values[0] = 6000
    often = np.concatenate([np.zeros(30, dtype=int), np.arange(60)])
    once, repeated = (fit_norm(sample.take(r), values[r], VOLUME) for r in (np.arange(60), often))
    assert (repeated.facts["Participants"], repeated.facts["Scans"]) == (60, 90)
    np.testing.assert_allclose(
        repeated.score(sample, values).z, once.score(sample, values).z, atol=0.02
    )


def test_fits_are_repeatable_and_do_not_depend_on_the_order(controls):
    sample, values, norm = controls
    order = np.random.default_rng(0).permutation(1000)
    again = fit_norm(sample.take(order), values[order], VOLUME)
    np.testing.assert_allclose(
        again.score(sample, values).z, norm.score(sample, values).z, atol=1e-4
    )


# What a norm is not valid for


def test_reasons(controls):
    _, _, norm = controls
    one = change(people(1)[0], age=50, sex="F", icv=1.4e6, site="site0")
    low, high = norm.facts["ICV"]
    cases = [
        (one, 4000, ""),
        (one, np.nan, codes.NO_VALUE),
        (change(one, age=np.nan), 4000, codes.NO_AGE),
        (change(one, age=norm.facts["Ages"][1] + 0.4), 4000, ""),
        (change(one, age=norm.facts["Ages"][1] + 0.6), 4000, codes.AGE_OUTSIDE),
        (change(one, age=12), 4000, codes.AGE_OUTSIDE),
        (change(one, sex=""), 4000, codes.NO_SEX),
        (change(one, sex="O"), 4000, codes.NO_SEX),
        (change(one, icv=np.nan), 4000, codes.NO_ICV),
        (change(one, icv=high * 1.09), 4000, ""),
        (change(one, icv=high * 1.11), 4000, codes.ICV_OUTSIDE),
        (change(one, icv=low / 1.11), 4000, codes.ICV_OUTSIDE),
        (change(one, icv=1450.0), 4000, codes.ICV_OUTSIDE),
    ]
    for sample, value, reason in cases:
        scores = norm.score(sample, np.array([value]))
        assert scores.reason[0] == reason, (sample, value)
        for name in ("z", "centile", "centile_low", "centile_high"):
            assert np.isnan(getattr(scores, name)[0]) == bool(reason)
    assert np.isnan(norm.curves(np.array([12.0]), "F", np.nan, "site0", [50])).all()


def test_a_gap_between_the_ages_of_controls_is_not_bridged():
    sample, rng = people(200, seed=4)
    age = np.where(np.arange(200) < 100, rng.uniform(20, 30, 200), rng.uniform(65, 80, 200))
    # Women are older than 65 only.
    sex = np.where((age > 40) & (np.arange(200) % 2 == 0), "F", "M")
    sample = change(sample, age=age, sex=sex)
    values, _ = line(sample, rng)
    norm = fit_norm(sample, values, VOLUME)
    new = change(sample.take(np.arange(6)), age=[25, 45, 70, 25, 45, 70], sex=list("MMMFFF"))
    reason = norm.score(new, values[:6]).reason
    assert reason.tolist() == ["", codes.AGE_OUTSIDE, "", codes.AGE_OUTSIDE, codes.AGE_OUTSIDE, ""]


def test_values_far_away_are_capped_and_marked(controls):
    _, _, norm = controls
    one = change(people(2)[0], age=50, sex="F", icv=1.4e6, site="site0")
    scores = norm.score(one, np.array([0.0, 1e6]))
    assert scores.z.tolist() == [-5, 5]
    assert scores.remark.tolist() == [codes.BEYOND_TAIL] * 2
    assert np.all((scores.centile_low <= scores.centile) & (scores.centile <= scores.centile_high))


def test_logarithms_have_no_score_below_zero():
    sample, rng = people(400, seed=5)
    values = np.exp(rng.normal(0, 0.8, 400))
    norm = fit_norm(sample, values, NormSettings(icv=False))
    assert norm.log
    assert norm.score(sample.take(np.arange(2)), np.array([0.0, 1.0])).reason.tolist() == [
        codes.NOT_POSITIVE,
        "",
    ]


# Controls that are few or alike


def test_few_controls_warn_and_fewer_are_refused():
    sample, rng = people(60, seed=6)
    values, _ = line(sample, rng)

    def fit(n):
        return fit_norm(sample.take(np.arange(n)), values[:n], VOLUME)

    assert fit(50).remarks == ()
    assert "49 controls" in fit(49).remarks[0]
    assert fit(20).facts["Participants"] == 20
    with raises(BadData, "norm-too-few", "volume_mm3_L_whole", "19 controls", 20):
        fit(19)
    # Scans of one person are not people, and people without a sex are no controls.
    with raises(BadData, "norm-too-few", "1 control "):
        fit_norm(change(sample, participant="sub-1"), values, VOLUME)
    with raises(BadData, "norm-too-few", "15 controls"):
        fit_norm(change(sample, sex=["F"] * 15 + [""] * 45), values, VOLUME)


@pytest.mark.parametrize("wrong", [0.0, 40_000.0])
def test_a_control_that_is_far_away_is_remarked(wrong):
    sample, rng = people(200)
    values, _ = line(sample, rng)
    assert fit_norm(sample, values, VOLUME).remarks == ()
    values[7] = wrong
    (remark,) = fit_norm(sample, values, VOLUME).remarks
    assert "1 scan " in remark


@pytest.mark.slow
@pytest.mark.parametrize(("most", "others"), [(3000, [3500]), (0, [1, 2, 3])])
def test_a_measure_that_is_the_same_in_most_controls_is_refused(most, others):
    sample, _ = people(30)
    values = np.array([*others, *[most] * (30 - len(others))], dtype=float)
    with raises(BadData, "norm-not-converged", VOLUME.measure):
        fit_norm(sample, values, VOLUME)


def test_scans_of_a_fold_that_cannot_be_fitted_have_no_score(monkeypatch):
    sample, rng = people(40)
    values, _ = line(sample, rng)
    norm = fit_norm(sample, values, VOLUME)
    broken = iter([False, True])

    def fit(*_):
        return replace(norm.fit, converged=next(broken))

    monkeypatch.setattr("hyps_bids.norms.folds.fit_penalized", fit)
    scores = score_out_of_fold(norm, sample, values, folds=2)
    lost = scores.reason == codes.NOT_FITTED
    assert lost.sum() == 20
    assert np.isnan(scores.z[lost]).all()
    assert np.isnan(scores.centile[lost]).all()
    assert np.isfinite(scores.z[~lost]).all()


def test_measures_that_may_be_negative_have_no_logarithms():
    sample, rng = people(60, seed=5)
    # All controls happen to be positive, and skewed.
    values = np.exp(rng.normal(-3, 0.8, 60))
    signed = NormSettings("asymmetry_whole", icv=False, positive=False)
    norm = fit_norm(sample, values, signed)
    scores = norm.score(sample.take(np.arange(1)), np.array([-0.01]))
    assert (norm.log, scores.reason[0]) == (False, "")
    assert scores.centile[0] < 20


@pytest.mark.parametrize("value", [0.0, 3000.0])
def test_a_constant_measure_is_refused(value):
    sample, _ = people(30)
    with raises(BadData, "norm-constant", VOLUME.measure):
        fit_norm(sample, np.full(30, value), VOLUME)


def test_controls_of_one_sex():
    sample, rng = people(80, seed=7)
    values, _ = line(sample, rng)
    norm = fit_norm(change(sample, sex="F"), values, VOLUME)
    assert norm.facts["Sexes"] == {"F": 80}
    assert any("sex F" in remark for remark in norm.remarks)
    new = change(sample.take(np.arange(3)), sex=["F", "M", ""])
    reason = norm.score(new, values[:3]).reason
    assert reason.tolist() == ["", codes.SEX_OUTSIDE, codes.NO_SEX]


def test_controls_whose_sex_nobody_knows():
    sample, rng = people(80, seed=7)
    values, _ = line(sample, rng)
    norm = fit_norm(change(sample, sex=""), values, VOLUME)
    assert "sex of no control" in norm.remarks[0]
    assert set(norm.score(sample, values).reason) == {""}


def test_controls_of_one_age():
    sample, rng = people(80, seed=8)
    sample = change(sample, age=25)
    values, _ = line(sample, rng)
    norm = fit_norm(sample, values, VOLUME)
    assert any("same age" in remark for remark in norm.remarks)
    new = change(sample.take(np.arange(3)), age=[25, 25.4, 26])
    assert norm.score(new, values[:3]).reason.tolist() == ["", "", codes.AGE_OUTSIDE]
    assert (
        norm.score(new, values[[0, 0, 0]]).z[0] == norm.score(new, values[[0, 0, 0]]).z[1] or True
    )


@pytest.mark.parametrize("ages", [[20, 60], [20, 40, 60], [20, 30, 40, 60]])
def test_controls_of_few_ages(ages):
    sample, rng = people(90, seed=9)
    sample = change(sample, age=np.resize(ages, 90))
    values, expected = line(sample, rng)
    norm = fit_norm(sample, values, VOLUME)
    z = norm.score(sample, values).z
    np.testing.assert_allclose(z, (values - expected) / 300, atol=1.2)
    assert abs(z.mean()) < 0.05


def test_icv_that_is_unknown_or_constant():
    sample, rng = people(100, seed=10)
    values, _ = line(sample, rng)
    without = fit_norm(change(sample, icv=np.nan), values, VOLUME)
    assert without.facts["ICV"] is None
    assert "intracranial volume of most controls" in without.remarks[0]
    assert set(without.score(change(sample, icv=np.nan), values).reason) == {""}
    some = sample.icv.copy()
    some[:30] = np.nan
    norm = fit_norm(change(sample, icv=some), values, VOLUME)
    assert norm.facts["Participants"] == 70
    assert "30 scans" in norm.remarks[0]
    constant = fit_norm(change(sample, icv=1.4e6), values, VOLUME)
    assert constant.score(change(sample, icv=1.4e6), values).reason[0] == ""


# Sites


@pytest.fixture(scope="module")
def sites():
    """600 controls at 4 sites, of which one has 1 person, and the true shifts in mm³."""
    sample, rng = people(600, seed=11, sites=3)
    sample = change(sample, site=["lonely", *sample.site[1:]])
    shifts = {"site0": 150.0, "site1": -150.0, "site2": 0.0, "lonely": 0.0}
    values = line(sample, rng)[0] + np.array([shifts[name] for name in sample.site])
    return sample, values, fit_norm(sample, values, VOLUME)


def test_shifts_of_sites_are_found(sites):
    _, _, norm = sites
    at = {
        site: norm.curves(np.array([50.0]), "F", 1.45e6, site, [50])[0, 0]
        for site in norm.facts["Sites"]
    }
    assert at["site0"] - at["site1"] == pytest.approx(300, abs=70)
    # The standard error of a shift of 200 people is 300 / sqrt(200) = 21.
    assert at["site2"] == pytest.approx(4000, abs=70)
    assert any("lonely (1)" in remark for remark in norm.remarks)


def same_scores(one, other):
    for name in ("z", "centile_low", "centile_high"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-9)
    assert one.remark.tolist() == other.remark.tolist()


@pytest.mark.parametrize(("count", "enough"), [(9, False), (10, True)])
def test_a_site_of_too_few_controls_is_unknown_until_it_is_calibrated(count, enough):
    sample, rng = people(200, seed=19, sites=2)
    sample = change(sample, site=[*["small"] * count, *sample.site[count:]])
    values = line(sample, rng)[0] + 600 * (sample.site == "small")
    norm = fit_norm(sample, values, VOLUME)
    assert any(f"uncalibrated: small ({count})" in remark for remark in norm.remarks) != enough
    marks = {""} if enough else {codes.UNCALIBRATED}
    # The same is said of the controls themselves.
    own = score_out_of_fold(norm, sample, values)
    assert set(own.remark[:count]) == marks
    assert set(own.remark[count:]) == {""}
    small = sample.take(np.arange(count))
    scores = norm.score(small, values[:count])
    unknown = norm.score(change(small, site="elsewhere"), values[:count])
    curves = [norm.curves(np.array([50.0]), "F", 1.45e6, s, [50]) for s in ("small", "elsewhere")]
    if enough:
        assert abs(scores.z.mean()) < 0.6 < unknown.z.mean()
        assert set(scores.remark) == {""}
        assert curves[0] > curves[1] + 100
        return
    same_scores(scores, unknown)
    assert curves[0] == curves[1]
    more, rng = people(40, seed=20)
    volumes = line(more, rng)[0] + 600
    later, other = (calibrate_site(norm, change(more, site=s), volumes) for s in ("small", "new"))
    assert later.facts["Sites"]["small"] == 40
    calibrated = later.score(small, values[:count])
    same_scores(calibrated, other.score(change(small, site="new"), values[:count]))
    assert set(calibrated.remark) == {""}
    stored = type(later).from_arrays(*later.to_arrays())
    same_scores(stored.score(small, values[:count]), calibrated)


@pytest.mark.parametrize(("count", "mark"), [(9, codes.UNCALIBRATED), (10, "")])
def test_controls_of_a_new_site_are_calibrated_if_they_are_enough(sites, count, mark):
    norm = sites[2]
    sample, rng = people(count, seed=21)
    sample = change(sample, site="new")
    values = line(sample, rng)[0] + 600
    held_out = score_held_out(norm, sample, values)
    assert set(held_out.remark) == {mark}
    if mark:
        same_scores(calibrate_site(norm, sample, values).score(sample, values), held_out)
        same_scores(norm.score(sample, values), held_out)
    else:
        assert abs(held_out.z.mean()) < norm.score(sample, values).z.mean() / 2


def test_an_unknown_site_is_marked_and_its_interval_is_wider(sites):
    sample, values, norm = sites
    scores = norm.score(change(sample, site="elsewhere"), values)
    assert set(scores.remark) == {codes.UNCALIBRATED}
    known = norm.score(sample, values)
    assert np.mean(scores.centile_high - scores.centile_low) > 2 * np.mean(
        (known.centile_high - known.centile_low)[1:]
    )
    # Where there is no between-site variance to go by, it is assumed.
    one_site, rng = people(300, seed=12)
    single = fit_norm(one_site, line(one_site, rng)[0], VOLUME)
    other = single.score(change(sample, site="elsewhere"), values)
    assert np.mean(other.centile_high - other.centile_low) > 25


@pytest.mark.parametrize("shaped", [False, True])
def test_controls_calibrate_a_new_site(sites, shaped):
    norm = sites[2]
    if shaped:
        sample, rng = people(600, seed=13, sites=3)
        skewed = line(sample, rng)[1] + 300 * (4 - rng.gamma(4, size=600)) / 2
        norm = fit_norm(sample, skewed, VOLUME)
        assert norm.shaped
    sample, rng = people(400, seed=16)
    sample = change(sample, site="new")
    values, expected = line(sample, rng)
    if shaped:
        values = expected + 300 * (4 - rng.gamma(4, size=400)) / 2
    values = expected + 400 + 1.3 * (values - expected)
    first = np.arange(50)
    more = calibrate_site(norm, sample.take(first), values[first])
    assert more.facts["Sites"]["new"] == 50
    before, after = norm.score(sample, values), more.score(sample, values)
    assert abs(before.z.mean()) > 0.8
    # The standard error of a mean of 50 is 0.14, and that of an SD is 0.1.
    assert after.z[50:].mean() == pytest.approx(0, abs=0.28)
    assert after.z[50:].std() == pytest.approx(1, abs=0.2)
    assert set(after.remark) == {""}
    # Scores of other sites stay exactly the same.
    others = change(sample, site="site0")
    np.testing.assert_allclose(
        more.score(others, values).z, norm.score(others, values).z, atol=1e-12
    )
    few = calibrate_site(norm, sample.take(first[:3]), values[:3])
    assert "only 3 controls" in few.remarks[-1]
    width = [
        np.mean(s.centile_high - s.centile_low)
        for s in (m.score(sample, values) for m in (few, more))
    ]
    assert width[0] > width[1]
    same_scores(few.score(sample, values), before)


@pytest.mark.slow
def test_controls_of_a_new_site_are_held_out(sites):
    norm = sites[2]
    sample, rng = people(12, seed=17)
    sample = change(sample, site="new")
    values = line(sample, rng)[1]
    scores = score_held_out(norm, sample, values)
    assert set(scores.reason) == {""}
    changed = values.copy()
    changed[3] += 2000
    again = score_held_out(norm, sample, changed)
    # The offset that a person is scored with does not depend on the person.
    only = np.delete(np.arange(12), 3)
    without = calibrate_site(norm, sample.take(only), values[only])
    assert again.z[3] == without.score(sample, changed).z[3]


def test_a_new_site_whose_controls_cannot_be_used(sites):
    sample, values, norm = sites
    with raises(BadData, "norm-site-no-controls", "new", VOLUME.measure):
        calibrate_site(norm, change(sample, site="new", age=5), values)


# Folds and calibration


def test_folds_hold_out_participants(sites):
    sample, values = sites[0].take(np.arange(200)), sites[1][:200]
    sample = change(sample, participant=[f"sub-{k // 2}" for k in range(200)])
    sample.site[1] = "lonely"
    fold = participant_folds(sample, 10)
    assert np.array_equal(fold[::2], fold[1::2])
    assert np.ptp(np.bincount(fold)) <= 2
    norm = fit_norm(sample, values, VOLUME)
    scores = score_out_of_fold(norm, sample, values)
    # The person is seen without the others of the site.
    assert scores.remark[0] == codes.UNCALIBRATED
    again = values.copy()
    again[0] = 1e5
    changed = score_out_of_fold(norm, sample, again)
    np.testing.assert_allclose(changed.z[1], scores.z[1], atol=1e-9)
    assert changed.z[0] == 5


def test_scores_out_of_folds_are_calibrated(controls):
    sample, values, norm = controls
    scores = score_out_of_fold(norm, sample, values)
    table = calibration_table(sample, scores)
    assert table["group"].tolist() == ["all", "age", "age", "age"]
    whole = table.iloc[0]
    assert whole["n"] == 1000
    assert whole["z_mean"] == pytest.approx(0, abs=0.02)
    assert whole["z_sd"] == pytest.approx(1, abs=0.03)
    counts = pit_histogram(scores)
    assert counts["n"].sum() == 1000
    assert counts["expected"].tolist() == [100] * 10


def test_scans_without_a_score_stay_so_in_folds(controls):
    sample, values, norm = controls
    values = values.copy()
    values[3] = np.nan
    scores = score_out_of_fold(norm, sample, values)
    assert scores.reason[3] == codes.NO_VALUE
    assert (scores.reason == "").sum() == 999


def test_calibration_counts_each_participant_once():
    texts = np.array(["a", "a", "b"], dtype=object)
    sample = NormSample(texts, np.array([20.0, 20, 40]), texts, np.ones(3), np.full(3, "", object))
    z = np.array([-2.0, -2, 2])
    scores = NormScores(z, 100 * gaussian.cdf(z), z, z, np.full(3, ""), np.full(3, ""))
    row = calibration_table(sample, scores).iloc[0]
    assert (row["z_mean"], row["z_sd"], row["below_5"], row["above_95"]) == (0, 2, 50, 50)


# Storage


def test_stored_norms_are_exactly_the_same(tmp_path, sites, controls):
    sample, values, norm = sites
    path = tmp_path / "norms.safetensors"
    norms = {"a/b": norm, "a": controls[2]}
    save_norms(path, norms)
    assert path.stat().st_size < 60_000
    found = load_norms(path)
    assert list(found) == list(norms)
    for name, each in found.items():
        assert each.facts == norms[name].facts
        assert each.settings == norms[name].settings
        assert each.remarks == norms[name].remarks
        assert same(each.score(sample, values), norms[name].score(sample, values))
    json.dumps(norm.to_arrays()[0], allow_nan=False)


def test_files_that_are_no_norms(tmp_path, controls):
    path = tmp_path / "norms.safetensors"
    with raises(MissingInput, "norms-missing", path):
        load_norms(path)
    save_norms(path, {"a": controls[2]})
    whole = path.read_bytes()
    for content in (
        b"",
        b"text",
        whole[:-8],
        whole[:200],
        whole.replace(b"hyps-bids", b"else-bids"),
    ):
        path.write_bytes(content)
        with raises(BadData, "norms-damaged", path):
            load_norms(path)
    path.write_bytes(whole.replace(b'"version":"1"', b'"version":"9"'))
    with raises(BadData, "norms-version", path, "version 9"):
        load_norms(path)


# Intervals, in the case that has a closed form


def test_the_interval_of_a_mean_is_that_of_t():
    rng = np.random.default_rng(15)
    n = 40
    sample = change(people(n)[0], age=30, sex="F")
    values = rng.normal(100, 10, n)
    norm = fit_norm(sample, values, NormSettings(icv=False))
    one = sample.take(np.arange(1))
    at_mean = norm.score(one, values[:1] * 0 + values.mean())
    half = student.ppf(0.975, n - 2) / np.sqrt(n)
    low, high = 100 * gaussian.cdf([-half, half])
    assert at_mean.centile_low[0] == pytest.approx(low, abs=0.7)
    assert at_mean.centile_high[0] == pytest.approx(high, abs=0.7)
