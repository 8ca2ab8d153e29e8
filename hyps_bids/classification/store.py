"""Trained classifiers on disk: skops instead of pickle, and a card of plain values beside it."""

from __future__ import annotations

import hashlib
import json
import logging
import zipfile
from pathlib import Path
from typing import Any

import sklearn
import skops.io
from sklearn.pipeline import Pipeline

from hyps_bids.errors import BadData, MissingInput
from hyps_bids.outputs.writing import write_bytes, write_json

__all__ = ["CARD", "MODEL", "TRUSTED", "load_classifier", "save_classifier"]

_LOG = logging.getLogger("hyps_bids")

MODEL = "model.skops"
CARD = "classifier.json"

#: the types that a file may hold beyond those that skops itself trusts; all else is refused
TRUSTED = (
    "hyps_bids.classification.estimators.SelectShare",
    "hyps_bids.classification.estimators.anova",
    "hyps_bids.classification.harmonize.IcvAdjuster",
    "hyps_bids.classification.harmonize.SiteHarmonizer",
    "numpy.dtype",
    "sklearn.calibration._CalibratedClassifier",
    "sklearn.calibration._SigmoidCalibration",
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.tree._tree.Tree",
)


def save_classifier(folder: Path, model: Pipeline, card: dict[str, Any]) -> None:
    """Write a trained pipeline and its card.

    Parameters
    ----------
    folder : Path
        Where ``model.skops`` and ``classifier.json`` go; made if it is not there.
    model : Pipeline
        Fitted.
    card : dict
        Plain values; versions, trusted types and the sha256 of the model are added.

    Raises
    ------
    CannotCreateOutput
        If the folder cannot be written.
    """
    content = skops.io.dumps(model, compression=zipfile.ZIP_DEFLATED)
    unknown = sorted(set(skops.io.get_untrusted_types(data=content)) - set(TRUSTED))
    if unknown:
        raise TypeError(f"types that could not be loaded again: {unknown}")
    write_bytes(folder / MODEL, content)
    facts = {
        "Model": {
            "File": MODEL,
            "SHA256": hashlib.sha256(content).hexdigest(),
            "TrustedTypes": list(TRUSTED),
            "ScikitLearn": sklearn.__version__,
        }
    }
    write_json(folder / CARD, card | facts)


def load_classifier(path: Path) -> tuple[Pipeline, dict[str, Any]]:
    """Read a pipeline and its card; nothing but the trusted types is ever made.

    Parameters
    ----------
    path : Path
        The folder, or the ``model.skops`` in it.

    Returns
    -------
    tuple of (Pipeline, dict)
        Model and card.

    Raises
    ------
    MissingInput
        If a file is not there.
    BadData
        If model and card do not belong together, or the model holds other types.
    """
    folder = path.parent if path.is_file() else path
    for name in (MODEL, CARD):
        if not (folder / name).is_file():
            raise MissingInput(f"{folder / name}: no such file; name a folder models/classifier-…")
    content = (folder / MODEL).read_bytes()
    try:
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
        expected = card["Model"]["SHA256"]
    except (ValueError, KeyError, TypeError) as error:
        raise BadData(f"{folder / CARD}: not the card of a classifier ({error})") from error
    if hashlib.sha256(content).hexdigest() != expected:
        raise BadData(f"{folder / MODEL}: not the model that {CARD} describes (sha256 differs)")
    unknown = sorted(set(skops.io.get_untrusted_types(data=content)) - set(TRUSTED))
    if unknown:
        raise BadData(f"{folder / MODEL}: holds types that are not trusted: {', '.join(unknown)}")
    if card["Model"]["ScikitLearn"] != sklearn.__version__:
        _LOG.warning(
            "%s: trained with scikit-learn %s, this is %s: predictions may differ",
            folder,
            card["Model"]["ScikitLearn"],
            sklearn.__version__,
        )
    return skops.io.loads(content, trusted=list(TRUSTED)), card
