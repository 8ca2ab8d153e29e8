"""The folder ``models/norms-NAME``: models without pickles, and their card in JSON."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, cast

from hyps_bids import __version__
from hyps_bids.cohort.label_hashes import hash_labels, known_labels
from hyps_bids.errors import BadData, MissingInput
from hyps_bids.norms.norm import Norm
from hyps_bids.norms.store import load_norms, save_norms
from hyps_bids.outputs.reading import load_json
from hyps_bids.outputs.writing import write_json

MODEL, CARD, README = "norms.safetensors", "norms.json", "README.md"
#: Version of the content of the card, which this version reads and writes.
FORMAT = 1


class _Facts(TypedDict):
    """What every card has."""

    Name: str
    Format: int
    Version: str
    Dataset: str
    Controls: str
    ImageContrast: str
    Adapter: str
    Labels: list[str]
    Models: str
    SoftwareVersion: str
    Columns: dict[str, str]
    Measures: dict[str, dict[str, Any]]
    Cohort: dict[str, Any]
    Validation: dict[str, Any]
    Warnings: list[str]


class Card(_Facts, total=False):
    """Content of ``norms.json``."""

    Model: dict[str, Any]
    Calibrated: list[dict[str, Any]]


@dataclass(frozen=True)
class StoredNorms:
    """The content of a folder.

    Attributes
    ----------
    folder : Path
        Where it lies.
    card : Card
        Facts.
    norms : mapping of str to Norm
        Column of the wide table → its model.
    """

    folder: Path
    card: Card
    norms: Mapping[str, Norm]

    @property
    def digest(self) -> str:
        """SHA-256 sum of the file of the models."""
        return str(self.card.get("Model", {}).get("SHA256", ""))

    def known(self, labels: list[str], dataset: str) -> set[str]:
        """Return the labels of a dataset's participants who were controls, at later sites as well.

        In another dataset, the same labels mean other people.
        """
        first = {"Dataset": self.card["Dataset"], "Salt": self.digest, **self.card.get("Model", {})}
        found: set[str] = set()
        for controls in (first, *self.card.get("Calibrated", ())):
            if controls["Dataset"] == dataset:
                hashes = controls.get("ParticipantHashes", ())
                found |= known_labels(labels, hashes, controls["Salt"])
        return found


def save_folder(
    folder: Path, norms: Mapping[str, Norm], card: Card, participants: Collection[str]
) -> StoredNorms:
    """Write the models, and the card with the facts about their file as ``Model``.

    Of the labels of the controls only hashes are stored, whose salt is the digest of the models.
    """
    save_norms(folder / MODEL, norms)
    digest = hashlib.sha256((folder / MODEL).read_bytes()).hexdigest()
    facts = {"ParticipantHashes": hash_labels(participants, digest), "Salt": digest}
    return _write_card(folder, norms, card, digest, facts)


def save_calibrated(
    folder: Path,
    stored: StoredNorms,
    norms: Mapping[str, Norm],
    card: Card,
    controls: Mapping[str, Any],
    participants: Collection[str],
) -> StoredNorms:
    """Write norms to which sites were added, with what is known of the `controls` there.

    Parameters
    ----------
    folder : Path
        Where to write them.
    stored : StoredNorms
        The norms as they were.
    norms, card
        The same with the sites.
    controls : mapping
        Dataset, Controls and Sites of the controls of the new sites.
    participants : collection of str
        Their labels.
    """
    save_norms(folder / MODEL, norms)
    digest = hashlib.sha256((folder / MODEL).read_bytes()).hexdigest()
    hashes = hash_labels(participants, stored.digest)
    added = {**controls, "ParticipantHashes": hashes, "Salt": stored.digest}
    card = cast(Card, {**card, "Calibrated": [*stored.card.get("Calibrated", ()), added]})
    # The labels of the first controls are known as hashes only, which keep their salt.
    facts = {"Salt": stored.digest, **stored.card.get("Model", {})}
    return _write_card(folder, norms, card, digest, facts)


def _write_card(
    folder: Path, norms: Mapping[str, Norm], card: Card, digest: str, facts: Mapping[str, Any]
) -> StoredNorms:
    card = cast(Card, {**card, "Model": {**facts, "File": MODEL, "SHA256": digest}})
    write_json(folder / CARD, card)
    return StoredNorms(folder, card, norms)


def load_folder(path: Path) -> StoredNorms:
    """Read norms; `path` is the folder or a file in it.

    Raises
    ------
    MissingInput
        ``norms-missing``: a file is not there.
    BadData
        ``norms-card-damaged``, ``norms-digest-differs``, ``norms-damaged`` or ``norms-version``,
        which stands for norms that another major version of HyPS-BIDS has fitted.
    """
    folder = path.parent if path.is_file() else path
    for name in (MODEL, CARD):
        if not (folder / name).is_file():
            raise MissingInput(
                f"{folder / name}: there is no such file. Name a folder models/norms-….",
                code="norms-missing",
            )
    try:
        card = cast(Card, load_json(folder / CARD))
        format_, digest = card["Format"], card["Model"]["SHA256"]
        version = card["Version"]
        lacking = sorted(Card.__required_keys__ - card.keys())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadData(
            f"{folder / CARD}: this is not the card of norms ({error}).", code="norms-card-damaged"
        ) from error
    if format_ != FORMAT or _major(version) != _major(__version__):
        raise BadData(
            f"{folder}: these norms were made with HyPS-BIDS {version}, and this is {__version__}, "
            "which may differ in what they mean. Fit them again with this version.",
            code="norms-version",
        )
    if lacking:
        raise BadData(
            f"{folder / CARD}: the card lacks {', '.join(lacking)}.", code="norms-card-damaged"
        )
    if hashlib.sha256((folder / MODEL).read_bytes()).hexdigest() != digest:
        raise BadData(
            f"{folder / MODEL}: these are not the models that {CARD} describes (sha256 differs).",
            code="norms-digest-differs",
        )
    norms = load_norms(folder / MODEL)
    if set(norms) != set(card["Measures"]):
        raise BadData(
            f"{folder / CARD}: the card and {MODEL} have different measures.",
            code="norms-card-damaged",
        )
    return StoredNorms(folder, card, norms)


def _major(version: str) -> tuple[str, ...]:
    """Return the part of a version within which volumes are compatible.

    Examples
    --------
    >>> _major("0.2.0.dev0"), _major("1.4.2")
    (('0', '2'), ('1',))
    """
    parts = str(version).split(".")
    return tuple(parts[:2] if parts[0] == "0" else parts[:1])
