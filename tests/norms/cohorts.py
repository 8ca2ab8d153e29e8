"""Simulated controls whose distribution is known."""

from __future__ import annotations

import numpy as np

from hyps_bids.norms.sample import NormSample


def people(n, seed=0, *, sites=1, ages=(20, 80)):
    """Return controls, and the generator for their values."""
    rng = np.random.default_rng(seed)
    sample = NormSample(
        participant=np.array([f"sub-{k:04}" for k in range(n)], dtype=object),
        age=rng.uniform(*ages, n),
        sex=np.array(["F", "M"], dtype=object)[rng.integers(0, 2, n)],
        icv=1.45e6 * np.exp(rng.normal(0, 0.1, n)),
        site=np.array([f"site{k}" for k in range(sites)], dtype=object)[rng.integers(0, sites, n)],
    )
    return sample, rng


def change(sample, **columns):
    """Return the sample with other values in some columns, the same for all or one for each."""
    replaced = {
        name: np.broadcast_to(np.asarray(value, dtype=vars(sample)[name].dtype), len(sample)).copy()
        for name, value in columns.items()
    }
    return NormSample(**{**vars(sample), **replaced})


def line(sample, rng):
    """Return volumes with a slope of age and of ICV, a difference of sexes, and an SD of 300."""
    expected = 4000 - 10 * (sample.age - 50) + 2000 * np.log(sample.icv / 1.45e6)
    expected += 100 * (sample.sex == "M")
    return expected + rng.normal(0, 300, len(sample)), expected
