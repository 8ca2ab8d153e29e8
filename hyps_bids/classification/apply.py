"""Predict new subjects with a stored classifier."""

from __future__ import annotations

import logging
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pandas as pd

from hyps_bids.classification.card import Card
from hyps_bids.classification.contrast import mean_by_subject
from hyps_bids.classification.cross_validation import predict_scans
from hyps_bids.classification.features import Schema, levels_of
from hyps_bids.classification.plan import done_scans
from hyps_bids.classification.remarks import count_remarks, find_remarks, join_remarks
from hyps_bids.classification.store import load_classifier
from hyps_bids.classification.threshold import call_classes
from hyps_bids.classification.training_set import describe_outside, far_outside
from hyps_bids.cohort.image_contrasts import contrasts_of, how_to_select
from hyps_bids.cohort.label_hashes import known_labels
from hyps_bids.cohort.own_columns import users_first
from hyps_bids.errors import BadData, MissingInput
from hyps_bids.messages import format_count, join_names, suggest_names
from hyps_bids.outputs.columns import described
from hyps_bids.outputs.names import T1W_ALONE, sidecar_path
from hyps_bids.outputs.reading import read_units
from hyps_bids.outputs.scan import DEFAULT_SUFFIX
from hyps_bids.outputs.writing import write_json, write_table

_LOG = logging.getLogger("hyps_bids")


def apply_classifier(
    classifier: Path,
    wide: pd.DataFrame,
    output_dir: Path,
    suffixes: Collection[str] = T1W_ALONE,
) -> Path:
    """Predict new subjects with a stored classifier.

    `wide` is the wide table of the new subjects and of the images with these suffixes, whose
    derivatives are in `output_dir`. Returns the path of ``group_classifier-NAME_predictions.tsv``
    there, with one row per subject.

    Raises
    ------
    MissingInput, BadData
        If the classifier cannot be read; if columns are missing or have other units, or if the
        volumes were made with other weights or from images of another contrast than those of
        training.
    UsageError
        If the images are of several contrasts.
    """
    model, card = load_classifier(classifier)
    schema = Schema.from_json(card["Schema"])
    frame = done_scans(wide)
    if frame.empty:
        raise MissingInput(
            f"{output_dir}: no scan is done, so there is nothing to predict", code="no-scan-done"
        )
    _check_contrast(frame, card, classifier)
    _check_columns(frame, schema, classifier)
    _check_units(read_units(output_dir, suffixes), card, classifier)
    _check_weights(frame, card, classifier)
    ids, subject = np.unique(frame["participant_id"].astype(str), return_inverse=True)
    probability = mean_by_subject(predict_scans(model, schema.matrix(frame)), subject, len(ids))
    classes = list(card["Classes"])
    # Classifiers of version 0.1 call the most probable class.
    cuts = card.get("Threshold", {}).get("Cuts") or dict.fromkeys(classes, 1 / len(classes))
    called = call_classes(probability, np.array([cuts[name] for name in classes]))
    owner = frame["participant_id"].astype(str)
    outside = {
        name: pd.DataFrame({"participant_id": owner, "value": frame[name]})[far]
        for name, (low, high) in card.get("Ranges", {}).items()
        if (far := far_outside(frame[name], low, high)).any()
    }
    facts = card["Model"]
    trained = known_labels(ids.tolist(), facts.get("ParticipantHashes", ()), facts["SHA256"])
    remarks = list(find_remarks(model, schema, frame))
    if counts := count_remarks(remarks, len(ids)):
        _LOG.warning("%s: %s", classifier, "; ".join(counts))
    _warn(classifier, describe_outside(outside, card.get("Ranges", {})), trained, len(ids))
    table = pd.DataFrame(
        {
            "participant_id": ids,
            "predicted": [classes[k] for k in called],
            **{f"p_{name}": probability[:, k] for k, name in enumerate(classes)},
            "scans": np.bincount(subject),
            "remarks": join_remarks(ids.tolist(), remarks, outside, trained),
        }
    )
    columns = {
        "predicted": "Class with the largest ratio of probability to cut; cuts: "
        + ", ".join(f"{name} {cut:.3g}" for name, cut in cuts.items()),
        **{f"p_{name}": f"Probability of {name}." for name in classes},
        "scans": "Number of scans whose probabilities were averaged.",
        "remarks": "Values that were imputed; values outside the range of training by more than "
        "10 % of this range (others have no remark); levels that are unknown; why measures were "
        "not harmonized; and participants whose name was in the training set, which in another "
        "dataset may be somebody else's.",
    }
    path = output_dir / f"group_classifier-{card['Name']}_predictions.tsv"
    write_table(path, table)
    source = {"Name": card["Name"], "SHA256": card["Model"]["SHA256"]}
    write_json(sidecar_path(path), {**described(columns), "Classifier": source})
    _LOG.info("%d subjects predicted with %s: %s", len(ids), classifier, path)
    return path


def _check_contrast(frame: pd.DataFrame, card: Card, classifier: Path) -> None:
    """Refuse images of another contrast than those of training."""
    here = contrasts_of(frame).iloc[0]
    trained = card.get("ImageContrast", DEFAULT_SUFFIX)
    # Earlier versions trained on T1w images, with a contrast agent or without.
    comparable = here if "ImageContrast" in card else here.rpartition("_")[2]
    if comparable != trained:
        raise BadData(
            f"{classifier}: trained on volumes of {trained} images; these are of {here} images, "
            "whose volumes are not comparable. Use images of its contrast: "
            f"{how_to_select(trained, [trained, here])}.",
            code="image-contrast-differs",
        )


def _check_columns(frame: pd.DataFrame, schema: Schema, classifier: Path) -> None:
    """Check that columns exist and hold numbers or levels as in training."""
    icv = [schema.icv] if schema.icv else []
    site = [schema.site] if schema.site else []
    wanted = [*schema.features, *schema.covariates, *icv, *site]
    missing = [name for name in wanted if name not in frame]
    if missing:
        raise BadData(
            f"{classifier}: needs columns that the group table lacks: {', '.join(missing)}; "
            f"there are: {suggest_names(missing, users_first(frame))}",
            code="column-missing",
        )
    for name in (*schema.features, *schema.numeric, *icv):
        if not pd.api.types.is_numeric_dtype(frame[name]) and frame[name].notna().any():
            odd = frame[name].dropna().iloc[0]
            raise BadData(
                f"{classifier}: {name} was a number, here it is text such as '{odd}'",
                code="column-not-numeric",
            )
    for name, levels in (schema.categories or {}).items():
        here = levels_of(frame[name])
        if here and not set(here) & set(levels):
            raise BadData(
                f"{classifier}: {name} was one of {', '.join(levels)}; here it is "
                f"{', '.join(here[:10])}",
                code="levels-unknown",
            )


def _check_units(units: dict[str, str], card: Card, classifier: Path) -> None:
    for name, facts in (card["Features"] | card["Covariates"]).items():
        here = units.get(name, "n/a")
        if "n/a" not in (here, facts["Units"]) and here != facts["Units"]:
            raise BadData(
                f"{classifier}: {name} was in {facts['Units']}, here it is in {here}",
                code="units-differ",
            )


def _check_weights(frame: pd.DataFrame, card: Card, classifier: Path) -> None:
    """Refuse volumes that were made with other weights, and warn of other versions."""
    others = sorted(set(frame["models"].fillna("n/a")) - {card["Models"]})
    if others:
        raise BadData(
            f"{classifier}: trained on volumes of other weights: {card['Models']}; here: "
            f"{others[0]}",
            code="weights-differ",
        )
    versions = sorted(set(frame["software_version"].fillna("n/a")) - {card["SoftwareVersion"]})
    if versions:
        _LOG.warning(
            "%s: trained on volumes of HyPS-BIDS %s, here: %s",
            *(classifier, card["SoftwareVersion"], ", ".join(versions)),
        )


def _warn(classifier: Path, outside: list[str], trained: set[str], subjects: int) -> None:
    """Warn of subjects about whom the classifier knows too little or too much."""
    if outside:
        _LOG.warning(
            "%s: values far outside the range of training, where predictions are guesses: %s",
            *(classifier, "; ".join(outside)),
        )
    if trained:
        _LOG.warning(
            "%s: %d of %s have the name of a participant of the training set: %s. If they are the "
            "same people, their predictions say nothing about the accuracy for new people.",
            *(classifier, len(trained), format_count(subjects, "subject")),
            join_names(sorted(trained)),
        )
