"""Which scans norms are valid for: those of the same weights, protocol and contrast."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from hyps_bids.cohort.gather import name_models
from hyps_bids.cohort.image_contrasts import contrasts_of, count_contrasts, how_to_select
from hyps_bids.errors import BadData
from hyps_bids.messages import join_names
from hyps_bids.norms.folder import StoredNorms
from hyps_bids.norms.words import OTHER_CONTRAST, OTHER_WEIGHTS
from hyps_bids.outputs.names import SEG_PREFIX
from hyps_bids.outputs.provenance import Provenance
from hyps_bids.outputs.reading import read_text_table

_LOG = logging.getLogger("hyps_bids")


def check_run(stored: StoredNorms, provenance: Provenance) -> None:
    """Refuse norms that cannot be valid for any scan of a run, before it begins.

    Raises
    ------
    BadData
        ``weights-differ``.
    """
    _refuse_weights(stored, {name_models(provenance)})


def check_scans(
    stored: StoredNorms, frame: pd.DataFrame, units: Mapping[str, str], labels: list[str]
) -> pd.Series:
    """Tell which scans norms are not valid for, and why; an empty text where they are.

    Parameters
    ----------
    stored : StoredNorms
        The norms.
    frame : pandas.DataFrame
        Scans that are done.
    units : mapping
        Units of their measures, where they are known.
    labels : list of str
        Names of the labels of their segmentations; empty if they are not known.

    Raises
    ------
    BadData
        If they are valid for none: ``weights-differ``, ``image-contrast-differs``,
        ``labels-differ`` or ``units-differ``.
    """
    card = stored.card
    if labels and card["Labels"] and labels != card["Labels"]:
        raise BadData(
            f"{stored.folder}: made for segmentations with the labels {join_names(card['Labels'])};"
            f" here they are {join_names(labels)}.",
            code="labels-differ",
        )
    for name, facts in card["Measures"].items():
        if units.get(name, "n/a") not in ("n/a", facts["Units"]):
            raise BadData(
                f"{stored.folder}: {name} was in {facts['Units']}, and here it is in "
                f"{units[name]}.",
                code="units-differ",
            )
    contrast = contrasts_of(frame) != card["ImageContrast"]
    if contrast.all():
        found = list(count_contrasts(frame))
        raise BadData(
            f"{stored.folder}: made for {card['ImageContrast']} images; these are of "
            f"{join_names(found)} images, whose volumes are not comparable. Use images of its "
            f"contrast: {how_to_select(card['ImageContrast'], [card['ImageContrast'], *found])}.",
            code="image-contrast-differs",
        )
    models = frame["models"].fillna("n/a").astype(str)
    weights = models != card["Models"]
    if weights[~contrast].all():
        _refuse_weights(stored, set(models[~contrast]))
    versions = sorted(set(frame["software_version"].dropna()) - {card["SoftwareVersion"]})
    if versions:
        _LOG.warning(
            "%s: made for volumes of HyPS-BIDS %s, and these are of %s.",
            *(stored.folder, card["SoftwareVersion"], join_names(versions)),
        )
    why = np.select([contrast, weights], [OTHER_CONTRAST, OTHER_WEIGHTS], "")
    return pd.Series(why, index=frame.index, dtype="object")


def read_labels(output_dir: Path) -> list[str]:
    """Read the names of the labels of a dataset's segmentations; empty if there is no table."""
    path = output_dir / f"{SEG_PREFIX}_dseg.tsv"
    if not path.is_file():
        return []
    table = read_text_table(path)
    return table["name"].tolist() if "name" in table else []


def _refuse_weights(stored: StoredNorms, here: set[str]) -> None:
    if stored.card["Models"] not in here:
        raise BadData(
            f"{stored.folder}: made for volumes of other weights: {stored.card['Models']}. These "
            f"are made with: {sorted(here)[0]}.",
            code="weights-differ",
        )
