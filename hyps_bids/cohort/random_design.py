"""Which random effects of subjects a model gets, and their columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from hyps_bids.cohort.design import CannotFit, Design
from hyps_bids.cohort.random_effects import Block

#: The volume inside the skull does not change in adults, so its change is error of measurement.
_CONSTANT = frozenset({"icv", "icv_mm3", "icv_longitudinal_mm3"})
#: Largest number of random slopes that are added without being asked for.
_MOST_SLOPES = 2
#: Subjects with more scans than random effects that are needed to estimate the residual variance.
_ENOUGH_SUBJECTS = 10
#: Share of a column's variation within subjects that its random slopes may leave unexplained.
_UNEXPLAINED = 0.1
#: Share of the sum of squares below which variation is that of rounding.
_ROUNDING = 1e-10


@dataclass(frozen=True)
class RandomPlan:
    """The random effects of a model.

    Attributes
    ----------
    steps : tuple of tuple of Block
        The random effects to try, one after the other until a fit converges. It may be empty.
    uncovered : tuple of str
        Variables that change within subjects and enter the formula in a way that the random slopes
        do not cover. The errors of the mixed model may be too small for their terms.
    refused : str
        Why there are fewer random effects than asked for, or an empty text.
    """

    steps: tuple[tuple[Block, ...], ...]
    uncovered: tuple[str, ...]
    refused: str = ""


def plan_random_effects(design: Design, requested: Sequence[Block]) -> RandomPlan:
    """Choose the random effects of subjects.

    Without a request, these are an intercept and the slope of each number that changes within
    subjects, as long as at least ten subjects have more scans than random effects. The most
    time-like numbers, of which the largest share varies within subjects, come first. What follows
    from the slopes so far, such as age beside time, gets none.

    Parameters
    ----------
    design : Design
        A model of one measure in subjects with several scans.
    requested : sequence of Block
        The random effects in the formula, if there are any.
    """
    codes = pd.factorize(design.subjects)[0]
    if requested:
        blocks, refused = tuple(requested), ""
        if not _is_estimable(design, codes, _slopes(blocks)):
            refused = (
                f"{_text(blocks)} cannot be estimated: fewer than {_ENOUGH_SUBJECTS} subjects have "
                "more scans than random effects, at different values of these variables"
            )
            blocks = ()
    else:
        slopes: list[str] = []
        for name in _changing_numbers(design, codes):
            values = _numbers(design, name)
            explained = _unexplained(values, design, codes, slopes) <= _UNEXPLAINED
            if (
                not explained
                and len(slopes) < _MOST_SLOPES
                and _is_estimable(design, codes, [*slopes, name])
            ):
                slopes.append(name)
        blocks, refused = (Block(True, tuple(slopes)),), ""
    steps = [blocks] if blocks else []
    if any(block.intercept and block.slopes for block in blocks):
        # Without covariances there are fewer parameters.
        steps.append((Block(True), *(Block(False, (name,)) for name in _slopes(blocks))))
    return RandomPlan(tuple(steps), _uncovered(design, codes, _slopes(blocks)), refused)


def random_columns(design: Design, blocks: Iterable[Block]) -> np.ndarray:
    """Build the columns that have random effects (scans, effects), each of about unit size.

    Slopes that covary with an intercept refer to the mean of their variable, which leaves the model
    as it is and makes it easier to fit; ages are far from zero.
    """
    columns = []
    for block in blocks:
        if block.intercept:
            columns.append(np.ones(len(design.outcome)))
        for name in block.slopes:
            values = _numbers(design, name)
            values = values - values.mean() if block.intercept else values
            columns.append(values / (np.abs(values).max() if not values.std() else values.std()))
    return np.column_stack(columns)


def _text(blocks: Iterable[Block]) -> str:
    return " + ".join(map(str, blocks))


def _slopes(blocks: Iterable[Block]) -> list[str]:
    return [name for block in blocks for name in block.slopes]


def _numbers(design: Design, name: str) -> np.ndarray:
    column = design.data[name]
    if not pd.api.types.is_numeric_dtype(column) or pd.api.types.is_bool_dtype(column):
        raise CannotFit(f"{name} has a random slope, but is no column of numbers")
    return column.to_numpy(dtype=np.float64)


def _changing_numbers(design: Design, codes: np.ndarray) -> list[str]:
    """Name the numbers of the formula that change within subjects, the most time-like first."""
    assert design.parsed is not None
    shares = {}
    for safe in sorted(design.parsed.predictors - design.parsed.groups):
        name = design.parsed.columns[safe]
        column = design.data[name]
        is_number = pd.api.types.is_numeric_dtype(column)
        if is_number and not pd.api.types.is_bool_dtype(column) and name not in _CONSTANT:
            values = _numbers(design, name)
            total = ((values - values.mean()) ** 2).sum()
            shares[name] = (_within(values, codes) ** 2).sum() / total
    changing = [name for name, share in shares.items() if share > _ROUNDING]
    return sorted(changing, key=lambda name: -shares[name])


def _uncovered(design: Design, codes: np.ndarray, slopes: Sequence[str]) -> tuple[str, ...]:
    """Name what changes within subjects and has columns that random slopes do not cover."""
    changing = {
        str(name)
        for name, values in design.variables.items()
        if values.groupby(codes, observed=True).nunique().max() > 1
    } - _CONSTANT
    found: dict[str, None] = {}
    for where, names in _term_variables(design):
        if not changing.isdisjoint(names) and any(
            _unexplained(column, design, codes, slopes) > _UNEXPLAINED
            for column in design.matrix[:, where].T
        ):
            found |= dict.fromkeys(sorted(changing & names))
    return tuple(found)


def _term_variables(design: Design) -> list[tuple[slice, set[str]]]:
    """List the columns of each term with the variables that it is made of."""
    assert design.parsed is not None
    known = design.parsed.columns
    spec = design.spec
    return [
        (spec.term_slices[term], {known[str(v)] for v in variables if str(v) in known})
        for term, variables in spec.term_variables.items()
    ]


def _within(values: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Subtract the means of subjects."""
    return np.asarray(values - (np.bincount(codes, values) / np.bincount(codes))[codes])


def _unexplained(
    values: np.ndarray, design: Design, codes: np.ndarray, slopes: Sequence[str]
) -> float:
    """Return the share of the variation within subjects that lines on the slopes do not explain.

    Only subjects with more scans than random effects can tell.
    """
    y = _within(values, codes)
    if not (y**2).sum() > _ROUNDING * (values**2).sum():
        return 0.0
    telling = np.bincount(codes) > 1 + len(slopes)
    left = total = np.bincount(codes, y**2)
    if slopes:
        cross, x = _crossed(design, codes, slopes)
        xy = np.stack([np.bincount(codes, column * y) for column in x.T], axis=1)
        beta = np.linalg.pinv(cross, hermitian=True, rcond=1e-8) @ xy[..., None]
        left = total - (xy * beta[..., 0]).sum(axis=1)
    return float(left[telling].sum() / total[telling].sum()) if total[telling].any() else 0.0


def _crossed(
    design: Design, codes: np.ndarray, slopes: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the cross products within each subject of the slopes' centered, scaled columns."""
    x = np.column_stack([_within(_numbers(design, name), codes) for name in slopes])
    x = x / np.sqrt((x**2).mean(axis=0)).clip(min=np.finfo(float).tiny)
    pairs = x[:, :, None] * x[:, None, :]
    cross = np.zeros((codes.max() + 1, *pairs.shape[1:]))
    np.add.at(cross, codes, pairs)
    return cross, x


def _is_estimable(design: Design, codes: np.ndarray, slopes: Sequence[str]) -> bool:
    """Tell whether enough subjects have more scans than random effects, at different values."""
    enough = np.bincount(codes) > 1 + len(slopes)
    if slopes:
        cross, _ = _crossed(design, codes, slopes)
        enough &= np.linalg.eigvalsh(cross)[:, 0] > _ROUNDING
    return not slopes or int(enough.sum()) >= _ENOUGH_SUBJECTS
