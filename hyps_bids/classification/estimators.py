"""The classifiers to choose from, and the settings that the search tries.

Stored models name `SelectShare` and `anova` by their path: do not move or rename them.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.feature_selection import SelectPercentile, f_classif
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline
from sklearn.svm import SVC, LinearSVC

Params = dict[str, Any]
Split = tuple[NDArray[np.int64], NDArray[np.int64]]


@dataclass(frozen=True)
class Estimator:
    """A kind of classifier."""

    name: str
    #: Settings to try, strongest regularization first; the first of equally good ones wins.
    grid: tuple[Params, ...]
    #: The classifier gives distances only: probabilities come from a logistic curve that is
    #: fitted to out-of-fold scores (Platt)
    calibrated: bool = False

    def scorer(self, params: Params, seed: int) -> Pipeline:
        """Make a classifier for the search; it may give probabilities or distances."""
        steps: list[tuple[str, Any]] = []
        rest = {key: value for key, value in params.items() if key != "percentile"}
        if params.get("percentile", 100) < 100:
            steps.append(("select", SelectShare(anova, percentile=params["percentile"])))
        return Pipeline([*steps, ("model", _model(self.name, rest, seed))])

    def final(self, params: Params, seed: int, splits: Sequence[Split]) -> ClassifierMixin:
        """Make a classifier that gives probabilities; `splits` are the folds of its calibration."""
        scorer = self.scorer(params, seed)
        if not self.calibrated:
            return scorer
        return CalibratedClassifierCV(scorer, cv=list(splits), ensemble=False)

    def probability(
        self, classifier: ClassifierMixin, scores: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Turn the scorer's scores of two classes into probabilities, as `classifier` does."""
        if not self.calibrated:
            return scores
        (curve,) = classifier.calibrated_classifiers_[0].calibrators
        first = curve.predict(scores[:, 1])
        return np.column_stack([1 - first, first])


class SelectShare(SelectPercentile):
    """Keep a percentage of the features, the best ones, and never fewer than one."""

    def _get_support_mask(self) -> NDArray[np.bool_]:
        mask = np.asarray(super()._get_support_mask(), dtype=bool)
        return mask if mask.any() else self.scores_ == self.scores_.max()


def anova(X: NDArray[np.float64], y: NDArray[np.int64]) -> NDArray[np.float64]:
    """Score features by the F statistic between classes; a constant feature has 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        varying = np.ptp(X, axis=0) > 0
        scores = np.zeros(X.shape[1])
        if varying.any():
            scores[varying] = f_classif(X[:, varying], y)[0]
    return np.nan_to_num(scores, nan=0.0, posinf=np.finfo(float).max)


def _grid(**values: Sequence[Any]) -> tuple[Params, ...]:
    return tuple(
        dict(zip(values, point, strict=True)) for point in itertools.product(*values.values())
    )


#: Estimators by name. The grids are small because a small cohort overfits a large grid.
ESTIMATORS = {
    one.name: one
    for one in (
        Estimator("logistic", _grid(C=(0.1, 1.0, 10.0), percentile=(100, 50))),
        Estimator("linear_svm", _grid(C=(0.001, 0.01, 0.1, 1.0), percentile=(100, 50)), True),
        Estimator("rbf_svm", _grid(C=(0.3, 1.0, 10.0), gamma=(0.01, "scale")), True),
        Estimator("random_forest", _grid(min_samples_leaf=(10, 3, 1))),
        Estimator("gradient_boosting", _grid(max_leaf_nodes=(3, 8), learning_rate=(0.03, 0.1))),
        Estimator("dummy", ({},)),
    )
}


def _model(name: str, params: Params, seed: int) -> ClassifierMixin:
    if name == "logistic":
        return LogisticRegression(solver="newton-cholesky", max_iter=200, **params)
    if name == "linear_svm":
        return LinearSVC(dual=False, max_iter=5000, random_state=seed, **params)
    if name == "rbf_svm":
        return SVC(cache_size=500, random_state=seed, **params)
    if name == "random_forest":
        return RandomForestClassifier(n_estimators=100, random_state=seed, n_jobs=1, **params)
    if name == "gradient_boosting":
        return HistGradientBoostingClassifier(
            max_iter=100,
            min_samples_leaf=5,
            l2_regularization=1.0,
            early_stopping=False,
            random_state=seed,
            **params,
        )
    return DummyClassifier(strategy="prior")
