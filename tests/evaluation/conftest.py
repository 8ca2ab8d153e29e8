"""A head of simple shapes, for the tests of spoiled images."""

from __future__ import annotations

import pytest

from hyps_bids.evaluation.heads import Head
from tests.evaluation import phantom


@pytest.fixture(scope="package")
def head() -> Head:
    return phantom.phantom()
