"""Random effects of subjects in formulas, in the notation of lme4."""

from __future__ import annotations

import pytest

from hyps_bids.cohort.random_effects import Block, split_random_effects


@pytest.mark.parametrize(
    ("formula", "fixed", "random"),
    [
        ("v ~ dx*time + (time | subject)", "v ~ dx*time", [Block(True, ("time",))]),
        ("v ~ a + (1 + time + b|participant_id)", "v ~ a", [Block(True, ("time", "b"))]),
        ("v ~ (1|subject) + a", "v ~ 1 + a", [Block(True)]),
        ("v ~ a + (0 + time|subject) - 1", "v ~ a - 1", [Block(False, ("time",))]),
        ("v ~ a + (time - 1|subject)", "v ~ a", [Block(False, ("time",))]),
        ("v ~ a + (`my time`||subject)", "v ~ a", [Block(True), Block(False, ("my time",))]),
        ("v ~ (a + b)**2 + C(x, levels=['a|b'])", "v ~ (a + b)**2 + C(x, levels=['a|b'])", []),
        (
            "v ~ a + (1 | subject) + (0 + time | subject) + b",
            "v ~ a + b",
            [Block(True), Block(False, ("time",))],
        ),
        ("v ~ a + (1|subject", "v ~ a + (1|subject", []),  # formulaic explains this one.
    ],
)
def test_random_effects_are_separated(formula: str, fixed: str, random: list[Block]) -> None:
    assert split_random_effects(formula) == (fixed, tuple(random))
