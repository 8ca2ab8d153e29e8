"""The columns of a classifier, and how a table becomes the input of an estimator."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from hyps_bids.classification.harmonize import IcvAdjuster, SiteHarmonizer

#: Matches the names of tests, scales and codes by which diagnoses are made.
_CIRCULAR = re.compile(
    r"(^|[^a-z])(mmse|mms|cdr|cdglobal|adas|moca|faq|ecog|npi|ravlt|avlt|ldel|lmem|gds|bdi|beck|madrs|hamd"
    r"|hdrs|ham|phq|hads|zung|panss|bprs|updrs|icd|dsm)"
    r"|^(mmscore|diagnosis|dx)",
    re.IGNORECASE,
)

#: Steps of the preprocessing that are fitted with ``per_subject``, the number of rows per subject.
COUNT_SUBJECTS = ("harmonize", "icv")


@dataclass(frozen=True, kw_only=True)
class Schema:
    """The columns of a classifier by their use.

    Examples
    --------
    >>> schema = Schema(volumes=("volume",), numeric=("age",), categories={"sex": ("F", "M")})
    >>> schema.columns
    ('volume', '(no ICV)', '(control)', '(no site)', 'age', 'sex')
    >>> schema.matrix(pd.DataFrame({"volume": [3000.0], "age": ["n/a"], "sex": ["M"]})).tolist()
    [[3000.0, nan, 0.0, nan, nan, 1.0]]
    """

    #: Features in mm³, which are harmonized and adjusted for ICV.
    volumes: tuple[str, ...] = ()
    #: Features without a unit, or adjusted already, which are only harmonized.
    ratios: tuple[str, ...] = ()
    #: Column of the intracranial volume in mm³; no adjustment if None.
    icv: str | None = None
    #: Covariates that are numbers.
    numeric: tuple[str, ...] = ()
    #: Covariates that are levels, with their levels.
    categories: dict[str, tuple[str, ...]] | None = None
    #: Covariates whose effect on the volumes is kept by harmonization.
    preserve: tuple[str, ...] = ()
    #: Column of the site; no harmonization if None.
    site: str | None = None
    #: The known sites.
    sites: tuple[str, ...] = ()
    #: Features and covariates that the classifier sees; all if empty.
    use: tuple[str, ...] = ()

    @property
    def features(self) -> tuple[str, ...]:
        """Features: volumes, then ratios."""
        return self.volumes + self.ratios

    @property
    def covariates(self) -> tuple[str, ...]:
        """Covariates: numbers, then levels."""
        return self.numeric + tuple(self.categories or ())

    @property
    def used(self) -> tuple[str, ...]:
        """The features and covariates that the classifier sees."""
        return self.use or self.features + self.covariates

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of :meth:`matrix` in their order."""
        fixed = (self.icv or "(no ICV)", "(control)", self.site or "(no site)")
        return self.features + fixed + self.covariates

    def only(self, names: Sequence[str]) -> Schema:
        """Let the classifier see only some features and covariates."""
        return replace(self, use=tuple(names))

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Schema:
        """Make a schema from the plain values that :func:`dataclasses.asdict` makes of one."""
        values: dict[str, Any] = {
            key: tuple(v) if isinstance(v, list) else v for key, v in content.items()
        }
        values["categories"] = {k: tuple(v) for k, v in (content["categories"] or {}).items()}
        return cls(**values)

    def matrix(
        self, frame: pd.DataFrame, control: NDArray[np.bool_] | None = None
    ) -> NDArray[np.float64]:
        """Make the matrix that a pipeline takes: numbers as they are, levels as their positions.

        The rows are scans, the columns are :attr:`columns`. Nothing is learned here. Missing
        values and unknown levels become NaN. `control` marks the scans on which the adjustment
        for ICV is fitted, if the training set has enough.
        """
        numbers = [pd.to_numeric(frame[name], errors="coerce") for name in self.features]
        missing = pd.Series(np.nan, index=frame.index)
        icv = pd.to_numeric(frame[self.icv], errors="coerce") if self.icv else missing
        flags = np.zeros(len(frame)) if control is None else control.astype(float)
        site = _codes(frame[self.site], self.sites) if self.site else missing
        numbers += [icv, pd.Series(flags, index=frame.index), site]
        numbers += [pd.to_numeric(frame[name], errors="coerce") for name in self.numeric]
        numbers += [_codes(frame[name], known) for name, known in (self.categories or {}).items()]
        matrix = np.column_stack([np.asarray(column, dtype=float) for column in numbers])
        matrix[~np.isfinite(matrix)] = np.nan
        return matrix

    def preprocessing(self) -> Pipeline:
        """Make the steps before the classifier: impute, encode, harmonize, adjust, scale.

        All are fitted on the rows given to ``fit`` only. Missing numbers become the median,
        missing levels the most frequent one. Unused columns are dropped at the end, because
        earlier steps need them as ICV, site or preserved covariate.
        """
        features = range(len(self.features))
        icv, control, site = (len(features) + i for i in range(3))
        covariates = range(site + 1, site + 1 + len(self.covariates))
        numbers, levels = [*covariates[: len(self.numeric)]], [*covariates[len(self.numeric) :]]
        encode = ColumnTransformer(
            [
                ("numbers", _median(), [*features, icv]),
                ("as they are", "passthrough", [control, site]),
                ("covariates", _median(), numbers),
                ("levels", _one_hot((self.categories or {}).values()), levels),
            ]
        )
        widths = [1] * len(numbers) + [len(known) for known in (self.categories or {}).values()]
        ends = site + 1 + np.cumsum(widths, dtype=int)
        spans = {
            name: tuple(range(end - width, end))
            for name, width, end in zip(self.covariates, widths, ends.tolist(), strict=True)
        }
        volumes = [i for i, name in enumerate(self.features) if name in self.volumes]
        keep = [i for i in features if self.features[i] in self.used]
        seen = keep + [i for name, span in spans.items() if name in self.used for i in span]
        steps: list[tuple[str, Any]] = [("encode", encode)]
        if self.site and keep:
            columns = (*features, icv) if self.icv else tuple(features)
            design = tuple(i for name in self.preserve for i in spans[name])
            steps.append(("harmonize", SiteHarmonizer(columns, site, design)))
        if self.icv and volumes and keep:
            steps.append(("icv", IcvAdjuster(tuple(volumes), icv, control)))
        steps.append(("keep", ColumnTransformer([("seen", "passthrough", seen)])))
        steps.append(("scale", StandardScaler()))
        return Pipeline(steps)


def circular(names: Sequence[str]) -> list[str]:
    """Find columns from which diagnoses are made: cognitive tests, symptom scales, codes."""
    return [name for name in names if _CIRCULAR.search(name)]


def levels_of(column: pd.Series) -> tuple[str, ...]:
    """List the levels that occur in a column, in their declared order or sorted."""
    found = set(text_levels(column).dropna())
    if isinstance(column.dtype, pd.CategoricalDtype):
        declared = text_levels(pd.Series(column.cat.categories))
        return tuple(level for level in declared if level in found)
    return tuple(sorted(found))


def text_levels(column: pd.Series) -> pd.Series:
    """Write levels as text, whole numbers without a point; missing values stay missing."""
    return column.astype(object).map(_level, na_action="ignore")


def _level(value: object) -> str:
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def _codes(column: pd.Series, levels: Sequence[str]) -> pd.Series:
    codes = {level: float(i) for i, level in enumerate(levels)}
    return text_levels(column).map(codes).astype(float)


def _median() -> SimpleImputer:
    return SimpleImputer(strategy="median", keep_empty_features=True)


def _one_hot(levels: Iterable[Sequence[str]]) -> Pipeline:
    known = [np.arange(len(names), dtype=float) for names in levels]
    return Pipeline(
        [
            ("impute", SimpleImputer(strategy="most_frequent", keep_empty_features=True)),
            ("encode", OneHotEncoder(categories=known, sparse_output=False)),
        ]
    )
