"""nipype interfaces around the steps of :mod:`hyps_bids.segmentation.pipeline`.

Each reads the results of earlier nodes, calls one step, and writes its result.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import torch
from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    SimpleInterface,
    TraitedSpec,
    traits,
)

from hyps_bids.outputs.provenance import Provenance
from hyps_bids.outputs.scan_files import write_result
from hyps_bids.segmentation.devices import prepare_process
from hyps_bids.segmentation.pipeline import (
    conform,
    correct_bias,
    localize,
    measure_scan,
    native_images,
    restore_sides,
    segment,
)
from hyps_bids.workflows import exchange


class _ImageInput(BaseInterfaceInputSpec):
    image = File(exists=True, mandatory=True, desc="conformed image, .npz")
    num_threads = traits.Int(1, usedefault=True, nohash=True, desc="number of CPU threads")


class _NetworkInput(_ImageInput):
    device = traits.Str("cpu", usedefault=True, desc="cpu or cuda[:N]")
    use_gpu = traits.Bool(False, usedefault=True, desc="take one of nipype's GPU slots")


class _Output(TraitedSpec):
    out_file = File(exists=True, desc="result of the step, .npz")


class _Step(SimpleInterface):
    """Write the result of a step to one file, named after the interface."""

    output_spec = _Output

    def _compute(self) -> object:
        raise TypeError(f"{type(self).__name__} must define _compute")

    def _run_interface(self, runtime: Any) -> Any:
        # Workers are shared by nodes, so each node sets what it needs.
        prepare_process(getattr(self.inputs, "num_threads", 1))
        path = Path(runtime.cwd) / f"{type(self).__name__.lower()}.npz"
        self._results["out_file"] = str(exchange.save(path, self._compute()))
        return runtime

    def _load(self, name: str) -> Any:
        """Load the result of another node that the input `name` points to."""
        return exchange.load(getattr(self.inputs, name))


class _ConformInput(BaseInterfaceInputSpec):
    # This is a plain string because nipype would resolve and hash a link to annexed content.
    in_file = traits.Str(mandatory=True, desc="T1w image of the dataset")
    fingerprint = traits.Str(mandatory=True, desc="digest by which a changed image is read again")


class Conform(_Step):
    """Read, check and orient an image."""

    input_spec = _ConformInput

    def _compute(self) -> object:
        return conform(Path(self.inputs.in_file))


class BiasCorrect(_Step):
    """Correct the bias field."""

    input_spec = _ImageInput

    def _compute(self) -> object:
        return correct_bias(self._load("image"), threads=self.inputs.num_threads)


class _LocalizeInput(_NetworkInput):
    weights = File(exists=True, mandatory=True, desc="localizer network")


class Localize(_Step):
    """Find the brain and both hippocampi."""

    input_spec = _LocalizeInput

    def _compute(self) -> object:
        return localize(
            self._load("image"),
            weights=Path(self.inputs.weights),
            device=torch.device(self.inputs.device),
        )


class _SegmentInput(_NetworkInput):
    localization = File(exists=True, mandatory=True, desc="from Localize")
    adapter = File(exists=True, mandatory=True, desc="adapter weights")
    base = File(exists=True, mandatory=True, desc="base network")


class Segment(_Step):
    """Segment both boxes."""

    input_spec = _SegmentInput

    def _compute(self) -> object:
        return segment(
            self._load("image"),
            self._load("localization").hippocampi,
            adapter=Path(self.inputs.adapter),
            base=Path(self.inputs.base),
            device=torch.device(self.inputs.device),
        )


class _RestoreInput(_ImageInput):
    segmentation = File(exists=True, mandatory=True, desc="from Segment")


class Restore(_Step):
    """Bring probabilities to the image's grid and label it."""

    input_spec = _RestoreInput

    def _compute(self) -> object:
        return restore_sides(self._load("image"), self._load("segmentation"))


class _MeasureInput(_RestoreInput):
    localization = File(exists=True, mandatory=True, desc="from Localize")
    restored = File(exists=True, mandatory=True, desc="from Restore")


class Measure(_Step):
    """Compute volumes, quality measures and flags."""

    input_spec = _MeasureInput

    def _compute(self) -> object:
        return measure_scan(
            self._load("image"),
            self._load("localization"),
            self._load("segmentation"),
            self._load("restored"),
        )


class _WriteInput(BaseInterfaceInputSpec):
    image = File(exists=True, mandatory=True, desc="conformed image, .npz")
    scan = traits.Any(mandatory=True, desc="the Scan")
    output_dir = traits.Str(mandatory=True, desc="derivatives dataset")
    provenance = traits.Dict(mandatory=True, desc="what decides the result, for the sidecars")
    localization = File(exists=True, mandatory=True, desc="from Localize")
    restored = File(exists=True, mandatory=True, desc="from Restore")
    measures = File(exists=True, mandatory=True, desc="from Measure")


class _WriteOutput(TraitedSpec):
    # This is a plain string because another job may be about to write the same file anew.
    out_file = traits.Str(desc="QC sidecar")


class Write(SimpleInterface):
    """Write the derivatives of a scan."""

    input_spec = _WriteInput
    output_spec = _WriteOutput
    # The outputs lie outside the work folder, so they may be gone although the inputs are the same.
    _always_run = True

    def _run_interface(self, runtime: Any) -> Any:
        given = self.inputs
        image, found, restored, measures = (
            exchange.load(path)
            for path in (given.image, given.localization, given.restored, given.measures)
        )
        images = native_images(
            image, restored, found.intracranial, found.affine, len(measures.parts)
        )
        provenance = cast(Provenance, dict(given.provenance))
        done = write_result(given.scan, Path(given.output_dir), images, measures, provenance)
        self._results["out_file"] = str(done)
        return runtime


class _DiscardInput(BaseInterfaceInputSpec):
    written = traits.Str(mandatory=True, desc="from Write")
    conformed = File(exists=True, mandatory=True, desc="from Conform")
    image = File(exists=True, mandatory=True, desc="the image that the networks saw")
    localization = File(exists=True, mandatory=True, desc="from Localize")
    segmentation = File(exists=True, mandatory=True, desc="from Segment")
    restored = File(exists=True, mandatory=True, desc="from Restore")


class Discard(SimpleInterface):
    """Remove the intermediate files of a scan that is written."""

    input_spec = _DiscardInput
    output_spec = TraitedSpec

    def _run_interface(self, runtime: Any) -> Any:
        for name in ("conformed", "image", "localization", "segmentation", "restored"):
            # A file that cannot be removed now is removed with the work folder.
            with suppress(OSError):
                Path(getattr(self.inputs, name)).unlink()
        return runtime
