"""The classifiers to choose from, and the settings that the search tries.

Stored models name `WeightedPipeline`, `SelectShare` and `anova` by their path: do not move or
rename them.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import logit
from sklearn.base import ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.feature_selection import SelectPercentile, f_classif
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline
from sklearn.svm import SVC, LinearSVC

from hyps_bids.classification.weights import one_scan_each, scan_weights

#: Estimators that count and draw rows, and therefore are fitted on one scan of each subject.
TREES = ("random_forest", "gradient_boosting")

#: Slope of a logistic curve where there is no evidence that the score means anything.
_LEAST_SLOPE = 1e-3

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
        return WeightedPipeline([*steps, ("model", _model(self.name, rest, seed))])

    def final(self, params: Params, seed: int, splits: Sequence[Split]) -> ClassifierMixin:
        """Make a classifier that gives probabilities; `splits` are the folds of its calibration."""
        scorer = self.scorer(params, seed)
        if not self.calibrated:
            return scorer
        return CalibratedClassifierCV(scorer, cv=list(splits), ensemble=False)

    def fit(
        self,
        classifier: ClassifierMixin,
        X: NDArray[np.float64],
        y: NDArray[np.int64],
        subject: NDArray[np.int64],
    ) -> None:
        """Fit a classifier so that each subject weighs the same; `subject` is that of each row."""
        if self.name in TREES:
            rows = np.sort(one_scan_each(subject))
            classifier.fit(X[rows], y[rows])
        else:
            weight = scan_weights(subject)
            classifier.fit(X, y, sample_weight=weight)
            if isinstance(classifier, CalibratedClassifierCV):
                _keep_direction(classifier, y, weight)

    def probability(
        self, classifier: ClassifierMixin, scores: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Turn the scorer's scores of two classes into probabilities, as `classifier` does."""
        if not self.calibrated:
            return scores
        (curve,) = classifier.calibrated_classifiers_[0].calibrators
        first = curve.predict(scores[:, 1])
        return np.column_stack([1 - first, first])


def _keep_direction(
    classifier: CalibratedClassifierCV, y: NDArray[np.int64], weight: NDArray[np.float64] | None
) -> None:
    """Level out logistic curves that fall with the score, as they do by chance in small cohorts.

    Such a curve would call the opposite of what the classifier has learned. The best curve that
    does not fall is level, at the share of the class; a tiny slope keeps the order of the scores.
    """
    curves = classifier.calibrated_classifiers_[0].calibrators
    # Of two classes, the only curve is that of the second one.
    for k, curve in enumerate(curves, start=1 if len(curves) == 1 else 0):
        if curve.a_ > -_LEAST_SLOPE:
            share = np.average(y == classifier.classes_[k], weights=weight)
            curve.a_, curve.b_ = -_LEAST_SLOPE, -float(logit(share))


class WeightedPipeline(Pipeline):
    """A pipeline that hands the weights of rows to each of its steps."""

    def fit(
        self,
        X: NDArray[np.float64],
        y: NDArray[np.int64],
        sample_weight: NDArray[np.float64] | None = None,
    ) -> WeightedPipeline:
        """Fit all steps; without weights, each row weighs the same."""
        if sample_weight is None:
            return super().fit(X, y)
        return super().fit(
            X, y, **{f"{name}__sample_weight": sample_weight for name, _ in self.steps}
        )


class SelectShare(SelectPercentile):
    """Keep a percentage of the features, the best ones, and never fewer than one."""

    def fit(
        self,
        X: NDArray[np.float64],
        y: NDArray[np.int64],
        sample_weight: NDArray[np.float64] | None = None,
    ) -> SelectShare:
        """Score the features."""
        super().fit(X, y)
        if sample_weight is not None:
            self.scores_ = anova(X, y, sample_weight)
        return self

    def _get_support_mask(self) -> NDArray[np.bool_]:
        mask = np.asarray(super()._get_support_mask(), dtype=bool)
        return mask if mask.any() else self.scores_ == self.scores_.max()


def anova(
    X: NDArray[np.float64], y: NDArray[np.int64], weight: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """Score features by the F statistic between classes; a constant feature has 0.

    The sum of the weights, if given, is the number of observations.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        # The columns are scaled, so that less than this is the rounding error of a constant one.
        varying = np.ptp(X, axis=0) > 1e-9
        scores = np.zeros(X.shape[1])
        if varying.any():
            used = X[:, varying]
            scores[varying] = (
                f_classif(used, y)[0] if weight is None else _weighted_f(used, y, weight)
            )
    return np.nan_to_num(scores, nan=0.0, posinf=np.finfo(float).max)


def _weighted_f(
    X: NDArray[np.float64], y: NDArray[np.int64], weight: NDArray[np.float64]
) -> NDArray[np.float64]:
    member = (y[:, None] == np.unique(y)).astype(float) * weight[:, None]
    sizes = member.sum(axis=0)
    means = member.T @ X / sizes[:, None]
    between = sizes @ (means - sizes @ means / sizes.sum()) ** 2
    within = weight @ (X - (member > 0).astype(float) @ means) ** 2
    classes = len(sizes)
    return np.asarray(between / (classes - 1) / (within / (sizes.sum() - classes)))


def _grid(**values: Sequence[Any]) -> tuple[Params, ...]:
    return tuple(
        dict(zip(values, point, strict=True)) for point in itertools.product(*values.values())
    )


#: Estimators of trees take nine tenths of the time in small cohorts, and gain nothing there. They
#: are tried by default if each class has at least this many subjects.
FEWEST_FOR_TREES = 40

#: Estimators by name. The grids are small because a small cohort overfits a large grid.
ESTIMATORS = {
    one.name: one
    for one in (
        Estimator("logistic", _grid(C=(0.1, 1.0, 10.0), percentile=(100, 50))),
        Estimator("linear_svm", _grid(C=(0.001, 0.01, 0.1, 1.0), percentile=(100, 50)), True),
        Estimator("rbf_svm", _grid(C=(0.3, 1.0, 10.0), gamma=(0.01, "auto")), True),
        Estimator("random_forest", _grid(min_samples_leaf=(5,))),
        Estimator(
            "gradient_boosting",
            (
                {"max_leaf_nodes": 3, "learning_rate": 0.1},
                {"max_leaf_nodes": 8, "learning_rate": 0.03},
            ),
        ),
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
