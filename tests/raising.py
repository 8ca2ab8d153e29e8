"""How tests state which error they expect: by kind, code and facts, never by its prose."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from hyps_bids.errors import HypsError


@contextmanager
def raises(
    kind: type[HypsError], code: str, *facts: object
) -> Iterator[pytest.ExceptionInfo[HypsError]]:
    """Expect an error of exactly this kind and code whose message states each of the facts."""
    with pytest.raises(kind) as caught:
        yield caught
    assert type(caught.value) is kind
    assert caught.value.code == code
    for fact in facts:
        assert str(fact) in str(caught.value)
