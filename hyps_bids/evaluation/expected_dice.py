"""Fit the expected Dice to the table of :mod:`hyps_bids.evaluation.calibration`, and check it.

Everything is checked on predictions for subjects and kinds of spoiled images that the forest has
not seen. The bound below which scans are flagged is chosen on these, so that counts of flagged and
missed scans need a check on other heads (``hyps-tools evaluate robustness`` and ``healthy``). The
lower bound is conformal (Vovk 2015, cross-conformal prediction): the margin is the 90th percentile
of how far these predictions were too high, in units of what is usual for such an expected Dice.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors.numpy import save

from hyps_bids.evaluation.calibration import KEYS, UNSPOILED
from hyps_bids.evaluation.damage import LOSSES
from hyps_bids.outputs.quality import EXPECTED_LOW, quality_bounds
from hyps_bids.outputs.writing import write_bytes, write_text
from hyps_bids.segmentation.expected import KIND, QualityModel
from hyps_bids.training.cards import fill_template

#: Inputs → 1 if the Dice can only rise with them, -1 if it can only fall, else 0.
INPUTS = {
    "confidence": 1,
    "entropy": -1,
    "uncertain": -1,
    "soft_dice": 1,
    "part_confidence": 1,
    "component_fraction": 1,
    "disagreement": -1,
    "agreement": 1,
    "localizer_inside": 1,
    "center_distance_mm": -1,
    "localiser_confidence": 1,
    "soft_ratio": 0,
    "localizer_volume_ratio": 0,
    "compactness": 0,
    "flatness": 0,
    "contrast": 0,
    "level": 0,
    "core_sd": 0,
    "ring_skew": 0,
    "noise": 0,
    "least_noise": 0,
    "slope": 0,
    "least_slope": 0,
    "largest_voxel_mm": -1,
}
#: Share of hippocampi whose Dice is at least the lower bound.
COVERAGE = 0.9
#: Below this, a segmentation is wrong.
WRONG = 0.75
#: Number of trees, depth and smallest number of hippocampi in a leaf.
_TREES, _DEPTH, _LEAF = 200, 12, 3
#: Bounds to choose from, and the figures that decide.
_BOUNDS = (0.7, 0.72, 0.74, 0.75, 0.76, 0.77, 0.78, 0.8)
_DECIDING = ("healthy_flagged", "wrong_not_flagged", "removed_not_flagged")
#: Sources that are whole heads.
_HEADS = ("head", "manual")
#: Folds of subjects, and of kinds of spoiled images.
_SUBJECTS, _KINDS = 5, 4


def describe(table: pd.DataFrame, checked: pd.DataFrame) -> dict[str, Any]:
    """Collect the facts of the card of a fitted model."""
    heads = sorted(table.loc[table["source"] == "head", "subject"].unique())
    crops = table.loc[table["source"].isin(["training", "validation"]), "subject"].nunique()
    return {
        "factor": targets(table)[1],
        "heads": heads,
        "subjects": {"head": len(heads), "crops": int(crops)},
        "figures": figures(checked, table),
        "by_bound": [
            {"bound": bound} | {name: found[name] for name in _DECIDING}
            for bound in _BOUNDS
            for found in [figures(checked, table, bound)]
        ],
    }


def targets(table: pd.DataFrame) -> tuple[pd.Series, float]:
    """Return the true Dice of each row, and the mean Dice with a rater on good crops.

    Heads are compared with their own unspoiled result, which is itself no better than that mean.
    """
    good = table[(table["source"] == "validation") & (table["kind"] == UNSPOILED)]
    factor = float(good["dice"].mean())
    return table["dice"].where(table["source"] != "head", factor * table["dice"]), factor


def fit(table: pd.DataFrame, networks: Mapping[str, str]) -> tuple[QualityModel, pd.DataFrame]:
    """Fit the model to all rows but those of test subjects and of hippocampi that are lost.

    Parameters
    ----------
    table : pandas.DataFrame
        From :func:`hyps_bids.evaluation.calibration.collect`.
    networks : mapping of str to str
        SHA-256 sums of the networks by their role.

    Returns
    -------
    model : QualityModel
        The model.
    checked : pandas.DataFrame
        The rows that it was fitted to, with ``true``, and with ``expected`` and ``low`` by models
        that have seen neither the subject nor the kind; ``known_kinds`` is the expected Dice by
        models that have not seen the subject, but know all kinds.
    """
    table = table.assign(true=targets(table)[0])
    rows = table[table["found"] & (table["source"] != "test")].reset_index(drop=True)
    names = [name for name in INPUTS if name in rows and rows[name].notna().any()]
    usual = rows[names].median().to_numpy(np.float64)
    inputs = rows[names].fillna(dict(zip(names, usual, strict=True))).to_numpy(np.float64)
    true, weights = rows["true"].to_numpy(), _weights(rows)
    expected, known = np.full(len(rows), np.nan), np.full(len(rows), np.nan)
    # The Dice of what is not there says nothing about the image; other measures look for losses.
    kept = ~rows["kind"].isin(LOSSES).to_numpy()
    for kinds, estimates in ((True, expected), (False, known)):
        for others, asked in left_out(rows, kinds=kinds):
            seen = others & kept
            forest = _forest(names).fit(inputs[seen], true[seen], weights[seen])
            estimates[asked] = forest.predict(inputs[asked])
    rows["expected"], rows["known_kinds"] = expected, known
    rows["low"] = np.nan
    for subject in rows["subject"].unique():
        mine = (rows["subject"] == subject).to_numpy()
        margins = _margins(*(array[kept & ~mine] for array in (expected, true, weights)))
        rows.loc[mine, "low"] = np.clip(expected[mine] - np.interp(expected[mine], *margins), 0, 1)
    forest = _forest(names).fit(inputs[kept], true[kept], weights[kept])
    model = QualityModel(
        networks=(dict(networks),),
        features=tuple(names),
        usual=usual,
        trees=export(forest),
        margins=_margins(expected[kept], true[kept], weights[kept]),
    )
    return model, rows


def left_out(rows: pd.DataFrame, *, kinds: bool) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Leave out subjects, and kinds if asked; yield which rows are seen, and which predicted.

    Unspoiled images are in all training sets but those of their subjects.
    """
    subjects = _folds(rows["subject"], _SUBJECTS)
    kind = _folds(rows["kind"].where((rows["kind"] != UNSPOILED) & kinds), _KINDS)
    for k in range(_SUBJECTS):
        for j in range(_KINDS):
            seen = (subjects != k) & (kind != j)
            asked = (subjects == k) & (kind == j)
            if asked.any():
                yield seen, asked
        asked = (subjects == k) & (kind < 0)
        if asked.any():
            yield subjects != k, asked


def _folds(names: pd.Series, count: int) -> np.ndarray:
    """Tell the fold of each name by its number; -1 for missing ones."""
    numbers = {name: i % count for i, name in enumerate(sorted(names.dropna().unique()))}
    return names.map(numbers).fillna(-1).to_numpy(int)


def _weights(rows: pd.DataFrame) -> np.ndarray:
    """Give all heads together the weight of all validation crops, and training crops a quarter."""
    share = rows.groupby("source")["dice"].transform("size")
    weights = 1 / share.to_numpy(float)
    weights[rows["source"].to_numpy() == "training"] /= 4
    return weights / weights.mean()


def _forest(names: Sequence[str]) -> Any:
    from sklearn.ensemble import ExtraTreesRegressor

    return ExtraTreesRegressor(
        _TREES,
        max_depth=_DEPTH,
        min_samples_leaf=_LEAF,
        max_features=0.7,
        monotonic_cst=[INPUTS[name] for name in names],
        random_state=0,
    )


def export(forest: Any) -> dict[str, np.ndarray]:
    """Put the arrays of the trees of a fitted forest of scikit-learn side by side."""
    trees = [tree.tree_ for tree in forest.estimators_]
    most = max(tree.node_count for tree in trees)

    def pad(arrays: Sequence[np.ndarray], dtype: type, fill: float = 0) -> np.ndarray:
        out = np.full((len(arrays), most), fill, dtype)
        for row, array in zip(out, arrays, strict=True):
            row[: len(array)] = array
        return out

    return {
        "feature": pad([np.maximum(tree.feature, -1) for tree in trees], np.int8, -1),
        "threshold": pad([_rounded_down(tree.threshold) for tree in trees], np.float32),
        "left": pad([np.maximum(tree.children_left, 0) for tree in trees], np.int16),
        "right": pad([np.maximum(tree.children_right, 0) for tree in trees], np.int16),
        "value": pad([tree.value[:, 0, 0] for tree in trees], np.float32),
    }


def _rounded_down(thresholds: np.ndarray) -> np.ndarray:
    """Round to single precision such that single-precision inputs take the same branch."""
    near = thresholds.astype(np.float32)
    return np.where(near > thresholds, np.nextafter(near, np.float32(-np.inf)), near)


def _margins(expected: np.ndarray, true: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return knots of the expected Dice, and how far the lower bound is below each of them."""
    order = np.argsort(expected)
    expected, true, weights = expected[order], true[order], weights[order]
    groups = np.array_split(np.arange(len(expected)), max(2, min(8, len(expected) // 60)))
    knots = np.array([expected[group].mean() for group in groups])
    usual = np.array([np.abs(expected[group] - true[group]).mean() for group in groups])
    # A hippocampus that looks worse is never known better.
    usual = np.maximum.accumulate(np.maximum(usual, 0.005)[::-1])[::-1]
    scores = (expected - true) / np.interp(expected, knots, usual)
    ranked = np.argsort(scores)
    reached = np.cumsum(weights[ranked]) / (weights.sum() + weights.mean())
    place = min(int(np.searchsorted(reached, COVERAGE)), len(scores) - 1)
    return np.stack((knots, scores[ranked][place] * usual))


def figures(
    checked: pd.DataFrame, table: pd.DataFrame, bound: float | None = None
) -> dict[str, float]:
    """Say how good the model is, on subjects and kinds of images that it has not seen.

    Parameters
    ----------
    checked : pandas.DataFrame
        From :func:`fit` or :func:`apply`, with ``true``.
    table : pandas.DataFrame
        The whole table, with the sides that were not found.
    bound : float, optional
        Lower bounds of the expected Dice below this are flagged; by default, that of the QC table.

    Returns
    -------
    dict of str to float
        For heads and crops: number of hippocampi, mean of ``|expected - true|`` (also with kinds
        that are known) and share of true Dice at or above the lower bound; lost hippocampi do not
        count. Then numbers of scans:
        unspoiled heads, and those that are flagged; hippocampi with a true Dice below
        :data:`WRONG`, and those without a flag; removed hippocampi that were segmented, and those
        without a flag.
    """
    found: dict[str, float] = {}
    is_head = checked["source"].isin(_HEADS)
    there = ~checked["kind"].isin(LOSSES)
    for group, of in (("heads", is_head), ("crops", ~is_head)):
        rows = checked[of & there]
        found[f"{group}_n"] = len(rows)
        found[f"{group}_mean_error"] = float((rows["expected"] - rows["true"]).abs().mean())
        if "known_kinds" in rows:
            error = float((rows["known_kinds"] - rows["true"]).abs().mean())
            found[f"{group}_mean_error_known_kinds"] = error
        found[f"{group}_coverage"] = float((rows["true"] >= rows["low"]).mean())
    bound = quality_bounds()[EXPECTED_LOW]["low"] if bound is None else bound
    scan = ["subject", "kind", "strength"]
    doubtful = set(checked.loc[checked["low"] < bound, scan].itertuples(index=False, name=None))
    low = [name in doubtful for name in table[scan].itertuples(index=False, name=None)]
    heads = table.assign(flagged=(table["flags"].to_numpy() != "") | low)
    heads = heads[heads["source"].isin(_HEADS)].merge(
        checked[[*KEYS, "true"]], on=[*KEYS], how="left"
    )
    healthy = heads[heads["kind"] == UNSPOILED].groupby("subject")["flagged"].any()
    wrong = heads[heads["found"] & (heads["true"] < WRONG)]
    removed = heads[heads["found"] & (heads["removed"] == 1)]
    for name, rows in (("wrong", wrong), ("removed", removed)):
        found[name] = len(rows)
        found[f"{name}_not_flagged"] = int((~rows["flagged"]).sum())
    return found | {"healthy": len(healthy), "healthy_flagged": int(healthy.sum())}


def apply(model: QualityModel, table: pd.DataFrame) -> pd.DataFrame:
    """Predict the sides that were found in a table that the model was not fitted to.

    Their Dice is taken as it was measured.
    """
    rows = table[table["found"]].reset_index(drop=True)
    rows["true"] = rows["dice"]
    estimates = [model.predict(row) for row in rows.to_dict("records")]
    return rows.assign(
        expected=[one.expected for one in estimates], low=[one.low for one in estimates]
    )


def write_model(model: QualityModel, folder: Path, facts: Mapping[str, Any]) -> Path:
    """Write the model, with its card in the header and as a text beside it."""
    path = folder / "expected-dice.safetensors"
    card = {
        "kind": KIND,
        "networks": model.networks,
        "features": model.features,
        "license": "CC-BY-SA-4.0",
        **facts,
    }
    arrays = {"usual": model.usual, "margins": model.margins, **model.trees}
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    write_bytes(path, save(contiguous, metadata={"hyps": json.dumps(card)}))
    networks = [f"{role} {sha}" for each in model.networks for role, sha in each.items()]
    text = fill_template(
        "hyps_bids.evaluation",
        "expected_dice.md",
        {"file": path.name, "networks": networks, "features": model.features, **facts},
    )
    write_text(path.with_suffix(".md"), text + "\n")
    return path
