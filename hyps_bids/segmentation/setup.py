"""The networks that a run uses, and everything else besides an image that decides its result.

Nothing is loaded here, so that a run with nothing to do knows that at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hyps_bids import __version__
from hyps_bids.errors import MissingInput, UsageError
from hyps_bids.networks.cards import BASE, LOCALIZER, read_adapter_card, shipped_weights
from hyps_bids.outputs.completion import find_undone
from hyps_bids.outputs.digests import Digests, sha256
from hyps_bids.outputs.edits import Edit, with_edit
from hyps_bids.outputs.provenance import Provenance
from hyps_bids.outputs.scan import Scan
from hyps_bids.segmentation.devices import check_device_name
from hyps_bids.settings import Settings


@dataclass(frozen=True)
class Setup:
    """Everything besides the images that decides the results of all scans.

    Attributes
    ----------
    localizer, base, adapter : Path
        Weights files.
    n4 : bool
        Correct the bias field first.
    labels : sequence of str
        The adapter's classes in order, background left out.
    provenance : Provenance
        Facts for the sidecars.
    edits : mapping of str to Edit
        Stem of a scan → labels that replace the networks'.
    """

    localizer: Path
    base: Path
    adapter: Path
    n4: bool
    labels: Sequence[str]
    provenance: Provenance
    edits: Mapping[str, Edit] = field(default_factory=dict)

    def provenance_of(self, scan: Scan) -> Provenance:
        """Return what decides the result of a scan, beside its image."""
        return with_edit(self.provenance, self.edits.get(scan.stem))

    def find_undone(self, scans: Sequence[Scan], settings: Settings) -> list[Scan]:
        """Return the scans of which a run would give other outputs than those that are there."""
        output = settings.output_dir
        digests = Digests(output / "logs" / "digests", settings.bids_dir)
        return find_undone(scans, output, self.provenance_of, digests)


def choose_networks(settings: Settings) -> Setup:
    """Find the files of weights that the settings ask for, and read their cards.

    Raises
    ------
    MissingInput
        If a file of weights does not exist.
    UsageError
        If there can be no such device, there is no such adapter, or it does not belong to the base.
    BadData
        If a file of weights cannot be used.
    """
    check_device_name(settings.device)
    localizer = shipped_weights(LOCALIZER)
    base = (settings.base_model or shipped_weights(BASE)).absolute()
    adapter = _find_adapter(settings.adapter)
    card = read_adapter_card(adapter, base)
    # Every trained adapter is in a file called adapter.safetensors, so its card names it.
    name = f"adapter-{card['name']}" if "name" in card else adapter.stem
    provenance: Provenance = {
        "SoftwareVersion": __version__,
        "Models": {
            "Localizer": {"Name": localizer.stem, "SHA256": sha256(localizer)},
            "Base": {"Name": base.stem, "SHA256": sha256(base)},
            "Adapter": {
                "Name": name,
                "SHA256": sha256(adapter),
                "License": card.get("license", "n/a"),
            },
        },
        "BiasFieldCorrection": "N4" if settings.n4 else "none",
    }
    return Setup(localizer, base, adapter, settings.n4, card["labels"], provenance)


def _find_adapter(name: str) -> Path:
    """Find the weights of an adapter by its name, its file or the folder of a trained one."""
    path = Path(name)
    if path.suffix == ".safetensors" or path.exists():
        if path.is_dir():
            path = path / "adapter.safetensors"
        if not path.is_file():
            raise MissingInput(f"{path}: there is no such adapter file.", code="adapter-missing")
        return path.absolute()
    shipped = shipped_weights(f"adapter-{name}")
    if not shipped.is_file():
        names = sorted(
            p.stem.removeprefix("adapter-") for p in shipped.parent.glob("adapter-*.safetensors")
        )
        raise UsageError(
            f"--adapter {name}: this is neither a file nor a shipped adapter; the shipped adapters "
            f"are {', '.join(names)}.",
            code="adapter-unknown",
        )
    return shipped
