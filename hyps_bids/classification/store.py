"""Store and load trained classifiers: a skops file instead of a pickle, and a card in JSON."""

from __future__ import annotations

import hashlib
import logging
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import cast

import sklearn
import skops.io
from sklearn.pipeline import Pipeline

from hyps_bids.classification.card import Card
from hyps_bids.cohort.label_hashes import hash_labels
from hyps_bids.errors import BadData, MissingInput
from hyps_bids.outputs.reading import load_json
from hyps_bids.outputs.writing import write_bytes, write_json

_LOG = logging.getLogger("hyps_bids")

MODEL = "model.skops"
CARD = "classifier.json"

#: Types that a file may hold in addition to those that skops trusts; other types are refused.
TRUSTED = (
    "hyps_bids.classification.estimators.SelectShare",
    "hyps_bids.classification.estimators.WeightedPipeline",
    "hyps_bids.classification.estimators.anova",
    "hyps_bids.classification.harmonize.IcvAdjuster",
    "hyps_bids.classification.harmonize.SiteHarmonizer",
    "numpy.dtype",
    "sklearn.calibration._CalibratedClassifier",
    "sklearn.calibration._SigmoidCalibration",
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.tree._tree.Tree",
)


def save_classifier(
    folder: Path, model: Pipeline, card: Card, participants: Collection[str] = ()
) -> None:
    """Write ``model.skops``, and ``classifier.json`` with the facts about it as ``Model``.

    Of the labels of the participants of training only hashes are stored. Their salt is the digest
    of the model, so that no two models have the same hashes.
    """
    content = skops.io.dumps(model, compression=zipfile.ZIP_DEFLATED)
    if unknown := _untrusted_types(content):
        raise TypeError(f"types that could not be loaded again: {unknown}")
    write_bytes(folder / MODEL, content)
    digest = hashlib.sha256(content).hexdigest()
    facts = {
        "File": MODEL,
        "SHA256": digest,
        "ParticipantHashes": hash_labels(participants, digest),
        "TrustedTypes": list(TRUSTED),
        "ScikitLearn": sklearn.__version__,
    }
    write_json(folder / CARD, {**card, "Model": facts})


def load_classifier(path: Path) -> tuple[Pipeline, Card]:
    """Read a pipeline and its card; objects of other than the trusted types are never made.

    `path` is the folder, or the ``model.skops`` in it.
    """
    folder = path.parent if path.is_file() else path
    for name in (MODEL, CARD):
        if not (folder / name).is_file():
            raise MissingInput(
                f"{folder / name}: there is no such file; name a folder models/classifier-…",
                code="classifier-missing",
            )
    content = (folder / MODEL).read_bytes()
    try:
        card = cast(Card, load_json(folder / CARD))
        facts = card["Model"]
        digest, version = facts["SHA256"], facts["ScikitLearn"]
    except (ValueError, KeyError, TypeError) as error:
        raise BadData(
            f"{folder / CARD}: this is not the card of a classifier ({error})",
            code="classifier-card-damaged",
        ) from error
    if hashlib.sha256(content).hexdigest() != digest:
        raise BadData(
            f"{folder / MODEL}: this is not the model that {CARD} describes (sha256 differs)",
            code="classifier-digest-differs",
        )
    if unknown := _untrusted_types(content):
        raise BadData(
            f"{folder / MODEL}: the file holds types that are not trusted: {', '.join(unknown)}",
            code="classifier-type-untrusted",
        )
    if version != sklearn.__version__:
        _LOG.warning(
            "%s: trained with scikit-learn %s, this is %s: predictions may differ",
            *(folder, version, sklearn.__version__),
        )
    return skops.io.loads(content, trusted=list(TRUSTED)), card


def _untrusted_types(content: bytes) -> list[str]:
    return sorted(set(skops.io.get_untrusted_types(data=content)) - set(TRUSTED))
