"""Facts about how a result was made, as they stand in every sidecar."""

from __future__ import annotations

from typing import NotRequired, TypedDict


class ModelRecord(TypedDict):
    """One file of weights."""

    Name: str
    SHA256: str
    License: NotRequired[str]


class EditRecord(TypedDict):
    """Corrected labels that replace the networks': the file below ``--edits``, and its sum."""

    File: str
    SHA256: str


class Provenance(TypedDict):
    """What decides the result of a scan, beside its image.

    Attributes
    ----------
    SoftwareVersion : str
        Version of HyPS-BIDS.
    Models : dict of str to ModelRecord
        Keys are ``Localizer``, ``Base`` and ``Adapter``.
    BiasFieldCorrection : str
        ``N4`` or ``none``.
    EditedLabels : EditRecord
        Only where labels were edited.
    """

    SoftwareVersion: str
    Models: dict[str, ModelRecord]
    BiasFieldCorrection: str
    EditedLabels: NotRequired[EditRecord]
