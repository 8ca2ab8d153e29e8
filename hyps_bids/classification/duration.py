"""Say beforehand how long a contrast will take, and how many shuffles are affordable."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from joblib import delayed
from sklearn.pipeline import Pipeline

from hyps_bids.classification.contrast import Bools, Ints, LabeledSubjects
from hyps_bids.classification.cross_validation import predict_fold, predict_selected
from hyps_bids.classification.features import Schema
from hyps_bids.classification.processes import Computing, run_tasks
from hyps_bids.messages import format_count, format_duration

#: Numbers of shuffles to choose from; with each, p-values have round steps.
_NUMBERS = (199, 99, 39, 19)
#: Seconds that the shuffles may take in any case, and at most. Between these bounds they may take
#: four times as long as everything else.
_LEAST_S, _MOST_S = 40.0, 900.0
#: A fit that is faster than this is timed again, because the first one also loads libraries.
_FAST_S = 1.0


@dataclass(frozen=True)
class Forecast:
    """Expected wall time in seconds."""

    cross_validation: float
    #: Including the importance of columns.
    final_fits: float
    #: Time of one shuffle of the labels with all sets of features.
    shuffle: float

    @property
    def affordable(self) -> int:
        """Number of shuffles for which there is time, at least 19.

        Examples
        --------
        >>> Forecast(cross_validation=10, final_fits=5, shuffle=1).affordable
        39
        """
        rest = self.cross_validation + self.final_fits
        budget = min(_MOST_S, max(_LEAST_S, 4 * rest))
        return next((n for n in _NUMBERS if n * self.shuffle <= budget), _NUMBERS[-1])

    def text(self, shuffles: int) -> str:
        """Describe the expected time in one line.

        Examples
        --------
        >>> Forecast(cross_validation=100, final_fits=20, shuffle=10).text(39)
        'about 8 min: cross-validation 2 min, final fits 20 s, 39 shuffles of labels 6 min at most'
        """
        last = shuffles * self.shuffle
        total = self.cross_validation + self.final_fits + last
        validation, final = map(format_duration, (self.cross_validation, self.final_fits))
        text = f"about {format_duration(total)}: cross-validation {validation}, final fits {final}"
        if not shuffles:
            return text
        count = format_count(shuffles, "shuffle")
        return f"{text}, {count} of labels {format_duration(last)} at most"


def forecast(
    data: LabeledSubjects,
    sets: Mapping[str, Schema],
    estimators: Sequence[str],
    folds: Sequence[Ints],
    computing: Computing,
) -> Forecast:
    """Time one fold of each set of features, and add up all that is to do.

    `folds` has an array (repeats, subjects) for each validation. Labels are shuffled before, so
    that nothing is learned about the result.
    """
    # Folds move along with the labels, so that they stay stratified.
    order = np.random.default_rng(computing.seed).permutation(data.everybody)
    blind, test = replace(data, label=data.label[order]), (folds[0][0] == 0)[order]
    quiet = replace(computing, title=None)
    tasks = [
        delayed(_seconds)(blind, schema.preprocessing(), estimators, test, computing.seed)
        for schema in sets.values()
    ]
    seconds, selected = np.transpose(run_tasks(tasks, "timed fits", quiet))
    each = seconds.sum() / computing.nprocs
    tested = [[len(np.unique(one[one >= 0])) for one in array] for array in folds]
    return Forecast(
        cross_validation=each * sum(map(sum, tested)),
        # The longest of them takes its time even with many processes.
        final_fits=max(each, seconds.max()) * 1.25 + each / len(sets) * tested[0][0],
        shuffle=selected.sum() / computing.nprocs * sum(counts[0] for counts in tested),
    )


def _seconds(
    data: LabeledSubjects,
    preprocessing: Pipeline,
    estimators: Sequence[str],
    test: Bools,
    seed: int,
) -> tuple[float, float]:
    """Time one fold with all estimators, and with the selected one only, as for a shuffle."""

    def took(predict: Callable[..., object]) -> float:
        began = time.monotonic()
        predict(data, preprocessing, estimators, test, seed)
        return time.monotonic() - began

    whole = took(predict_fold)
    if whole < _FAST_S:
        whole = took(predict_fold)
    return whole, took(predict_selected)
