"""Thin nipype interfaces: files in, a pure function, files out."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    SimpleInterface,
    TraitedSpec,
    traits,
)

from hyps_bids.imaging import quality
from hyps_bids.imaging.bias import correct_bias
from hyps_bids.imaging.conform import ConformedImage, conform
from hyps_bids.imaging.volumes import RestoredSide, measure, restore
from hyps_bids.outputs.labels import HEMISPHERES
from hyps_bids.outputs.provenance import Provenance
from hyps_bids.outputs.quality import flags as flags_of
from hyps_bids.outputs.scan import Scan
from hyps_bids.outputs.scan_files import ScanMeasures, write_result
from hyps_bids.segmentation import devices, inference
from hyps_bids.segmentation.localize import Location, localize
from hyps_bids.segmentation.pipeline import native_images
from hyps_bids.segmentation.segment import segment
from hyps_bids.workflows import exchange

__all__ = [
    "BiasCorrect",
    "Conform",
    "Discard",
    "Localize",
    "Measure",
    "Restore",
    "Segment",
    "Write",
]


class _ImageInput(BaseInterfaceInputSpec):
    image = File(exists=True, mandatory=True, desc="conformed image, .npz")


class _NetworkInput(_ImageInput):
    device = traits.Str("cpu", usedefault=True, desc="cpu or cuda[:N]")
    use_gpu = traits.Bool(False, usedefault=True, desc="take one of nipype's GPU slots")
    num_threads = traits.Int(1, usedefault=True, nohash=True, desc="CPU threads")


class _Output(TraitedSpec):
    out_file = File(exists=True, desc="arrays and facts, .npz")


class _Interface(SimpleInterface):
    """Writes its arrays and facts to one file named after itself."""

    output_spec = _Output

    def _compute(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        raise TypeError(f"{type(self).__name__} must define _compute")

    def _run_interface(self, runtime: Any) -> Any:
        # each interface sets what it needs: workers are shared by nodes
        devices.prepare_process(getattr(self.inputs, "num_threads", 1))
        arrays, facts = self._compute()
        name = f"{type(self).__name__.lower()}.npz"
        self._results["out_file"] = str(exchange.save(Path(runtime.cwd) / name, arrays, facts))
        return runtime


class _ConformInput(BaseInterfaceInputSpec):
    # a plain string: nipype would resolve and hash an annexed link
    in_file = traits.Str(mandatory=True, desc="T1w image of the dataset")
    fingerprint = traits.Str(mandatory=True, desc="of its content: a changed image is read again")


class Conform(_Interface):
    """Read, check and orient an image (:func:`hyps_bids.imaging.conform.conform`)."""

    input_spec = _ConformInput

    def _compute(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        image = conform(Path(self.inputs.in_file))
        return {
            "data": image.data,
            "affine": image.affine,
            "orientation": image.orientation,
        }, {"native_shape": image.native_shape, "remarks": image.remarks}


class _BiasInput(_ImageInput):
    num_threads = traits.Int(1, usedefault=True, nohash=True, desc="CPU threads")


class BiasCorrect(_Interface):
    """N4 (:func:`hyps_bids.imaging.bias.correct_bias`)."""

    input_spec = _BiasInput

    def _compute(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        arrays, facts = exchange.load(self.inputs.image)
        corrected = correct_bias(arrays["data"], arrays["affine"], threads=self.inputs.num_threads)
        return arrays | {"data": corrected}, facts


class _LocalizeInput(_NetworkInput):
    weights = File(exists=True, mandatory=True, desc="localizer network")


class Localize(_Interface):
    """Find brain and hippocampi (:func:`hyps_bids.segmentation.localize.localize`)."""

    input_spec = _LocalizeInput

    def _compute(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        arrays, _ = exchange.load(self.inputs.image)
        model, _ = inference.cached_network(Path(self.inputs.weights))
        device = torch.device(self.inputs.device)
        found = localize(arrays["data"], arrays["affine"], model, device)
        locations = {
            hemi: None if place is None else [place.center, place.volume_mm3, place.confidence]
            for hemi, place in found.hippocampi.items()
        }
        return {
            "intracranial": found.intracranial,
            "hippocampus": found.hippocampus,
            "affine": found.affine,
        }, {"locations": locations, "icv_mm3": found.icv_mm3, "device": found.device}


class _SegmentInput(_NetworkInput):
    localization = File(exists=True, mandatory=True, desc="from Localize")
    adapter = File(exists=True, mandatory=True, desc="adapter weights")
    base = File(exists=True, mandatory=True, desc="base network")


class Segment(_Interface):
    """Segment both boxes (:func:`hyps_bids.segmentation.segment.segment`)."""

    input_spec = _SegmentInput

    def _compute(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        image, _ = exchange.load(self.inputs.image)
        _, facts = exchange.load(self.inputs.localization)
        adapter, base = Path(self.inputs.adapter), Path(self.inputs.base)
        model, card = inference.cached_adapted(adapter, base)
        locations = {
            hemi: None if place is None else Location(tuple(place[0]), *place[1:])
            for hemi, place in facts["locations"].items()
        }
        device = torch.device(self.inputs.device)
        sides, used = segment(image["data"], image["affine"], locations, model, device)
        arrays = {}
        for hemi, side in sides.items():
            arrays[f"{hemi}_probabilities"] = side.probabilities
            arrays[f"{hemi}_box"] = side.affine
            arrays[f"{hemi}_inside"] = side.inside
        return arrays, {"labels": card["labels"], "found": list(sides), "device": used}


class _RestoreInput(_ImageInput):
    segmentation = File(exists=True, mandatory=True, desc="from Segment")


class Restore(_Interface):
    """Bring probabilities to the image's grid (:func:`hyps_bids.imaging.volumes.restore`)."""

    input_spec = _RestoreInput

    def _compute(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        image, _ = exchange.load(self.inputs.image)
        boxes, facts = exchange.load(self.inputs.segmentation)
        arrays, sides = {}, {}
        for hemi in facts["found"]:
            side = restore(
                boxes[f"{hemi}_probabilities"],
                boxes[f"{hemi}_box"],
                image["data"].shape,
                image["affine"],
            )
            arrays[f"{hemi}_probabilities"] = side.probabilities
            arrays[f"{hemi}_labels"] = side.labels
            sides[hemi] = {
                "region": [[part.start, part.stop] for part in side.region],
                "component_fraction": side.component_fraction,
            }
        return arrays, {"sides": sides}


class _MeasureInput(_RestoreInput):
    localization = File(exists=True, mandatory=True, desc="from Localize")
    restored = File(exists=True, mandatory=True, desc="from Restore")


class Measure(_Interface):
    """Volumes, QC figures and flags."""

    input_spec = _MeasureInput

    def _compute(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        image, image_facts = exchange.load(self.inputs.image)
        localized, where = exchange.load(self.inputs.localization)
        boxes, segmented = exchange.load(self.inputs.segmentation)
        restored = load_restored(self.inputs.restored)
        volumes: dict[str, list[list[float]]] = {}
        figures: dict[str, float] = {}
        wholes: dict[str, float] = {}
        flags = [f"missing_{hemi}" for hemi in HEMISPHERES if hemi not in restored]
        for hemi, side in restored.items():
            rows = measure(side, image["affine"])
            found = quality.side_quality(
                boxes[f"{hemi}_probabilities"],
                boxes[f"{hemi}_inside"],
                boxes[f"{hemi}_box"],
                side,
                image["data"].shape,
                localized["hippocampus"][HEMISPHERES.index(hemi)],
                localized["affine"],
            )
            if rows[-1].voxels:
                volumes[hemi] = [[row.voxels, row.volume_mm3, row.volume_soft_mm3] for row in rows]
                found["volume_mm3"] = wholes[hemi] = rows[-1].volume_mm3
            else:
                # located, but the network saw no hippocampus there: missing, not 0 mm³
                flags.append(f"missing_{hemi}")
            found["localiser_confidence"] = where["locations"][hemi][2]
            figures |= {f"{name}_{hemi}": value for name, value in found.items()}
        figures["asymmetry"] = quality.asymmetry(wholes)
        figures["icv_mm3"] = where["icv_mm3"]
        return {}, {
            "parts": segmented["labels"],
            "volumes": volumes,
            "figures": figures,
            "flags": flags + flags_of(figures),
            "remarks": image_facts["remarks"],
            "box_centers": {
                hemi: place[0] for hemi, place in where["locations"].items() if place is not None
            },
            "devices": {"localize": where["device"], "segment": segmented["device"]},
        }


class _WriteInput(_ImageInput):
    scan = traits.Any(mandatory=True, desc="the Scan")
    output_dir = traits.Str(mandatory=True, desc="derivatives dataset")
    provenance = traits.Dict(mandatory=True, desc="what was used, for the sidecars")
    localization = File(exists=True, mandatory=True, desc="from Localize")
    restored = File(exists=True, mandatory=True, desc="from Restore")
    measures = File(exists=True, mandatory=True, desc="from Measure")


class _WriteOutput(TraitedSpec):
    # a plain string: another job may be about to write the same file anew
    out_file = traits.Str(desc="QC sidecar")


class Write(SimpleInterface):
    """Write the derivatives (:func:`hyps_bids.outputs.scan_files.write_result`)."""

    input_spec = _WriteInput
    output_spec = _WriteOutput
    # the outputs lie outside the work folder: they may be gone although the inputs are the same
    _always_run = True

    def _run_interface(self, runtime: Any) -> Any:
        image, facts = exchange.load(self.inputs.image)
        localized, _ = exchange.load(self.inputs.localization)
        _, measures = exchange.load(self.inputs.measures)
        scan: Scan = self.inputs.scan
        conformed = ConformedImage(
            image["data"], image["affine"], tuple(facts["native_shape"]), image["orientation"]
        )
        images = native_images(
            conformed,
            load_restored(self.inputs.restored),
            localized["intracranial"],
            localized["affine"],
            len(measures["parts"]),
        )
        done = write_result(
            scan,
            Path(self.inputs.output_dir),
            images,
            ScanMeasures(**measures),
            cast(Provenance, dict(self.inputs.provenance)),
        )
        self._results["out_file"] = str(done)
        return runtime


class _DiscardInput(BaseInterfaceInputSpec):
    written = traits.Str(mandatory=True, desc="from Write")
    conformed = File(exists=True, mandatory=True, desc="from Conform")
    image = File(exists=True, mandatory=True, desc="what the networks saw")
    localization = File(exists=True, mandatory=True, desc="from Localize")
    segmentation = File(exists=True, mandatory=True, desc="from Segment")
    restored = File(exists=True, mandatory=True, desc="from Restore")


class Discard(SimpleInterface):
    """Remove the intermediate files of a scan that is written."""

    input_spec = _DiscardInput
    output_spec = TraitedSpec

    def _run_interface(self, runtime: Any) -> Any:
        given = self.inputs
        for path in (
            *(given.conformed, given.image, given.localization),
            *(given.segmentation, given.restored),
        ):
            # what cannot be removed goes with the work folder
            with suppress(OSError):
                Path(path).unlink()
        return runtime


def load_restored(path: str) -> dict[str, RestoredSide]:
    """Rebuild the restored sides from the file of :class:`Restore`."""
    arrays, facts = exchange.load(path)
    sides = {}
    for hemi, side in facts["sides"].items():
        x, y, z = (slice(*ends) for ends in side["region"])
        sides[hemi] = RestoredSide(
            (x, y, z),
            arrays[f"{hemi}_probabilities"],
            arrays[f"{hemi}_labels"],
            side["component_fraction"],
        )
    return sides
