"""nipype interfaces around the steps of :mod:`hyps_bids.segmentation.pipeline`.

:class:`ProcessScan` does all of a scan, and its arrays stay in memory. With a GPU on this machine
three interfaces share the work, so that one process uses the GPU while others read and write.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    DynamicTraitedSpec,
    File,
    SimpleInterface,
    TraitedSpec,
    traits,
)
from nipype.interfaces.io import add_traits

from hyps_bids.errors import HypsError
from hyps_bids.imaging.conform import ConformedImage
from hyps_bids.outputs.completion import content_of
from hyps_bids.outputs.provenance import Provenance
from hyps_bids.outputs.scan import Scan
from hyps_bids.outputs.scan_files import write_result
from hyps_bids.outputs.surface_files import has_surfaces
from hyps_bids.segmentation.devices import prepare_process
from hyps_bids.segmentation.localize import Localization
from hyps_bids.segmentation.pipeline import (
    Pipeline,
    conform,
    correct_bias,
    label_image,
    measure_sides,
    native_images,
    run_networks,
)
from hyps_bids.segmentation.segment import Segmentation
from hyps_bids.workflows import exchange


def _read(scan: Scan, pipeline: Pipeline, threads: int) -> tuple[ConformedImage, str]:
    """Read, check and orient an image, correct its bias if asked, and return its file's sum too."""
    # The sum comes first, so that a file that changes from now on is noticed.
    content = content_of(scan)
    image = conform(scan.path)
    return correct_bias(image, threads=threads) if pipeline.n4 else image, content


def _write(
    given: Any, image: ConformedImage, content: str, found: Localization, sides: Segmentation
) -> dict[str, str]:
    """Bring the results to the image's grid, measure and write them."""
    provenance = cast(Provenance, dict(given.provenance))
    restored, measures = measure_sides(image, found, sides, provenance)
    images = native_images(image, restored, found.intracranial, found.affine, len(measures.parts))
    if given.edit is not None:
        # Runs without edits need not wait for this import.
        from hyps_bids.labels.edits import apply_edit, measure_edit

        edited = apply_edit(given.edit, image, restored, measures.parts)
        measures = measure_edit(measures, image, given.edit, edited, restored)
        images = replace(images, labels=label_image(image, edited, len(measures.parts)))
    output = Path(given.output_dir)
    # Scans that had surfaces keep having them.
    surfaces = given.surfaces or has_surfaces(given.scan, output)
    done = write_result(given.scan, output, images, measures, provenance, content)
    if surfaces:
        from hyps_bids.segmentation.surfaces import add_surfaces

        # The scan is done; what went wrong shows again when the app adds missing surfaces.
        with suppress(HypsError):
            add_surfaces(given.scan, output)
    return {"out_file": str(done)}


class _Step(SimpleInterface):
    """A step of a scan; scans that are done have no nodes, so every node runs."""

    _always_run = True

    def _run_interface(self, runtime: Any) -> Any:
        # Workers are shared by nodes, so each node sets what it needs.
        prepare_process(self.inputs.num_threads)
        self._results |= self._compute(Path(runtime.cwd))
        return runtime

    def _compute(self, folder: Path) -> dict[str, str]:
        raise TypeError(f"{type(self).__name__} must define _compute")


class _StepInput(BaseInterfaceInputSpec):
    num_threads = traits.Int(1, usedefault=True, nohash=True, desc="number of CPU threads")


class _ReadInput(_StepInput):
    # The file is part of the Scan, because nipype would resolve and hash a link to annexed content.
    scan = traits.Any(mandatory=True, desc="the Scan")
    pipeline = traits.Any(mandatory=True, desc="the Pipeline")


class _ProcessInput(_ReadInput):
    output_dir = traits.Str(mandatory=True, desc="derivatives dataset")
    provenance = traits.Dict(mandatory=True, desc="what decides the result, for the sidecars")
    edit = traits.Any(None, usedefault=True, desc="the Edit, if there is one")
    surfaces = traits.Bool(False, usedefault=True, desc="make surfaces, too")


class _WrittenOutput(TraitedSpec):
    # This is a plain string because another job may be about to write the same file anew.
    out_file = traits.Str(desc="QC sidecar, or QC table of a series")


class ProcessScan(_Step):
    """Do all of a scan, from the image to its derivatives."""

    input_spec = _ProcessInput
    output_spec = _WrittenOutput

    def _compute(self, folder: Path) -> dict[str, str]:
        given = self.inputs
        image, content = _read(given.scan, given.pipeline, given.num_threads)
        return _write(given, image, content, *run_networks(image, given.pipeline))


class _FollowInput(DynamicTraitedSpec, _StepInput):
    series = traits.Any(mandatory=True, desc="the Series")
    plan = traits.Any(mandatory=True, desc="the SeriesPlan")


class FollowSeries(_Step):
    """Follow a series (:func:`hyps_bids.series.follow.follow_series`).

    It waits for scans by its inputs ``scan0``, ``scan1``, ….
    """

    input_spec = _FollowInput
    output_spec = _WrittenOutput

    def __init__(self, scans: int = 0, **inputs: Any) -> None:
        super().__init__(**inputs)
        add_traits(self.inputs, [f"scan{i}" for i in range(scans)])

    def _compute(self, folder: Path) -> dict[str, str]:
        # Runs without series need not wait for this import.
        from hyps_bids.series.follow import follow_series

        given = self.inputs
        follow_series(given.series, given.plan, given.num_threads)
        return {"out_file": str(given.series.paths(given.plan.output_dir)["qc"])}


class _PlaceInput(_StepInput):
    scan = traits.Any(mandatory=True, desc="the Scan")
    plan = traits.Any(mandatory=True, desc="the SpacePlan")


class PlaceScan(_Step):
    """Bring a scan to the spaces of templates (:func:`hyps_bids.spaces.place.place_scan`)."""

    input_spec = _PlaceInput
    output_spec = _WrittenOutput

    def _compute(self, folder: Path) -> dict[str, str]:
        # Runs without templates need not wait for this import.
        from hyps_bids.reports.space_picture import draw_outlines
        from hyps_bids.spaces.place import place_scan

        place_scan(self.inputs.scan, self.inputs.plan, draw_outlines)
        return {"out_file": str(self.inputs.plan.output_dir)}


class _ArraysOutput(TraitedSpec):
    out_file = File(exists=True, desc="result of the step, .npz")


class ReadScan(_Step):
    """Read, check and orient an image, and correct its bias field if asked."""

    input_spec = _ReadInput
    output_spec = _ArraysOutput

    def _compute(self, folder: Path) -> dict[str, str]:
        given = self.inputs
        read = _read(given.scan, given.pipeline, given.num_threads)
        return {"out_file": str(exchange.save(folder / "image.npz", read))}


class _NetworksInput(_StepInput):
    image = File(exists=True, mandatory=True, desc="from ReadScan")
    pipeline = traits.Any(mandatory=True, desc="the Pipeline")


class RunNetworks(_Step):
    """Find both hippocampi and segment them."""

    input_spec = _NetworksInput
    output_spec = _ArraysOutput

    def _compute(self, folder: Path) -> dict[str, str]:
        image, _ = exchange.load(self.inputs.image)
        results = run_networks(image, self.inputs.pipeline)
        return {"out_file": str(exchange.save(folder / "networks.npz", results))}


class _WriteInput(_ProcessInput):
    image = File(exists=True, mandatory=True, desc="from ReadScan")
    networks = File(exists=True, mandatory=True, desc="from RunNetworks")


class WriteScan(_Step):
    """Bring results to the image's grid, measure and write them; remove intermediate files."""

    input_spec = _WriteInput
    output_spec = _WrittenOutput

    def _compute(self, folder: Path) -> dict[str, str]:
        given = self.inputs
        results = _write(given, *exchange.load(given.image), *exchange.load(given.networks))
        for path in (given.image, given.networks):
            # A file that cannot be removed now is removed with the work folder.
            with suppress(OSError):
                Path(path).unlink()
        return results
