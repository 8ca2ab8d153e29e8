"""From one image, or several, to results in memory."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TypeAlias, overload

import nibabel as nib
import numpy as np

from hyps_bids.api.names import name_scan
from hyps_bids.api.result import SegmentationResult
from hyps_bids.errors import HypsError, UsageError
from hyps_bids.imaging.bias import correct_bias
from hyps_bids.imaging.conform import conform, conform_image
from hyps_bids.imaging.sources import read_source
from hyps_bids.outputs.digests import sha256
from hyps_bids.resources import available_cpus
from hyps_bids.segmentation.devices import choose_device, prepared_process
from hyps_bids.segmentation.faster_device import faster_device
from hyps_bids.segmentation.inference import cached_adapted, cached_network
from hyps_bids.segmentation.pipeline import Pipeline, measure_sides, run_networks
from hyps_bids.segmentation.setup import Setup, choose_networks
from hyps_bids.settings import SUFFIXES, ParticipantSettings, Settings, Suffix
from hyps_bids.system import call_at_forks

_LOG = logging.getLogger("hyps_bids")
#: What :func:`segment` takes as one image.
Image: TypeAlias = str | os.PathLike[str] | nib.spatialimages.SpatialImage
#: The networks compute one image at a time, in whatever thread they are called.
_ONE_AT_A_TIME = threading.RLock()
# A process that is forked meanwhile would have locks and networks that are in use by nobody.
call_at_forks(_ONE_AT_A_TIME.acquire, _ONE_AT_A_TIME.release)


@overload
def segment(
    images: Image,
    *,
    suffix: Suffix | None = None,
    adapter: str | os.PathLike[str] = ...,
    n4: bool = False,
    device: str = "auto",
    threads: int | None = None,
) -> SegmentationResult: ...


@overload
def segment(
    images: Sequence[Image],
    *,
    suffix: Suffix | None = None,
    adapter: str | os.PathLike[str] = ...,
    n4: bool = False,
    device: str = "auto",
    threads: int | None = None,
) -> list[SegmentationResult | HypsError]: ...


def segment(
    images: Image | Sequence[Image],
    *,
    suffix: Suffix | None = None,
    adapter: str | os.PathLike[str] = ParticipantSettings.adapter,
    n4: bool = False,
    device: str = "auto",
    threads: int | None = None,
) -> SegmentationResult | list[SegmentationResult | HypsError]:
    """Segment the hippocampi of one image, or of several.

    The results are those of the BIDS App. No file is written. The networks are loaded by the first
    call and kept for later ones, so several images in one call, or in a loop, load them once.

    Parameters
    ----------
    images : path or nibabel image, or a sequence of these
        A NIfTI or MGH/MGZ file of any name, a folder with a DICOM series, one file of a DICOM
        series, or an image in memory. It shows a whole head, or a part of it with the hippocampi.
    suffix : {"T1w", "T2w", "FLAIR", "UNIT1", "PDw"}, optional
        Contrast of the images; by default the one that the name of the file ends with, or else T1w.
        It changes the names of outputs, but not what the networks do.
    adapter : str or path
        A shipped adapter, by its name, or the file or folder of a trained one.
    n4 : bool
        Correct the bias field first.
    device : str
        ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
    threads : int, optional
        Number of CPU threads; by default, all CPUs that this process may use.

    Returns
    -------
    SegmentationResult or list
        The result; for a sequence, one for each image in order. In a list, an image that cannot be
        segmented has its :class:`~hyps_bids.errors.HypsError` instead of a result, and the others
        are segmented all the same.

    Raises
    ------
    UsageError
        If there is no such adapter, device or suffix.
    MissingInput, BadData
        If a single image is not there or cannot be segmented.
    TypeError
        If something is neither a path nor a nibabel image.

    Notes
    -----
    Several threads may call this function; they take turns. So may processes, however they are
    started. A fork waits for the image that another thread segments.

    Examples
    --------
    >>> import hyps_bids
    >>> from hyps_bids.demo import demo_dataset
    >>> image = demo_dataset() / "sub-05/anat/sub-05_T1w.nii.gz"
    >>> result = hyps_bids.segment(image, device="cpu", threads=1)
    >>> result.label_names[1], result.labels.shape == result.probabilities.shape[:3]
    ('Left anterior hippocampus', True)
    >>> volumes = result.volumes
    >>> whole = volumes[volumes["part"] == "whole"].set_index("hemi")["volume_mm3"]
    >>> bool((whole > 1000).all())
    True
    >>> sorted(result.expected_dice)
    ['L', 'R']
    """
    is_one = isinstance(images, (str, os.PathLike, nib.spatialimages.SpatialImage))
    several: Sequence[Image] = [images] if is_one else list(images)  # type: ignore[arg-type]
    options = Options(suffix, os.fspath(adapter), n4, device, threads)
    results: list[SegmentationResult | HypsError] = []
    for result in segment_each(several, options):
        if isinstance(result, HypsError):
            if is_one:
                raise result
            _LOG.error("%s", result)
        results.append(result)
    return results[0] if is_one else results  # type: ignore[return-value]


@dataclass(frozen=True)
class Options:
    """How to segment images; the fields are the parameters of :func:`segment`."""

    suffix: str | None = None
    adapter: str = ParticipantSettings.adapter
    n4: bool = False
    device: str = "auto"
    threads: int | None = None

    def settings(self) -> Settings:
        """Make the settings of a run of the app; its folders are not used."""
        return Settings(
            bids_dir=Path(),
            output_dir=Path(),
            analysis_level="participant",
            adapter=self.adapter,
            n4=self.n4,
            device=self.device,
        )


def segment_each(
    images: Sequence[Image], options: Options
) -> Iterator[SegmentationResult | HypsError]:
    """Segment images one after the other, each when it is asked for.

    Parameters
    ----------
    images, options : sequence of images, Options
        The parameters of :func:`segment`.

    Yields
    ------
    SegmentationResult or HypsError
        The result, or why there is none.

    Raises
    ------
    UsageError, MissingInput, BadData
        If the options or the networks cannot be used; see :func:`segment`.
    """
    if options.threads is not None and options.threads < 1:
        raise UsageError(f"threads={options.threads}: use 1 or more", code="threads-too-few")
    if options.suffix is not None and options.suffix not in SUFFIXES:
        raise UsageError(
            f"suffix={options.suffix!r}: use one of {', '.join(SUFFIXES)}", code="suffix-unknown"
        )
    cpus = options.threads or available_cpus()
    device = options.device
    with _ONE_AT_A_TIME, prepared_process(cpus):
        setup = set_up(options)
        device = choose_device(faster_device(len(images), cpus) if device == "auto" else device)
        # Networks that cannot be loaded are no fault of an image.
        cached_network(setup.localizer, device)
        cached_adapted(setup.adapter, setup.base, device)
    pipeline = Pipeline(setup.localizer, setup.base, setup.adapter, device, options.n4)
    for image in images:
        result: SegmentationResult | HypsError
        try:
            with _ONE_AT_A_TIME, prepared_process(cpus):
                result = _segment(image, options, pipeline, setup, cpus)
        except HypsError as error:
            result = error
        yield result


def _segment(
    image: Image, options: Options, pipeline: Pipeline, setup: Setup, threads: int
) -> SegmentationResult:
    source = read_source(image)
    # The sum comes first, so that a file that changes from now on is noticed.
    content = None if source.path is None else sha256(source.path)
    if source.path is None:
        conformed = conform_image(source.image, source.name)
    else:
        conformed = conform(source.path)
    if pipeline.n4:
        conformed = correct_bias(conformed, threads=threads)
    found, sides = run_networks(conformed, pipeline)
    restored, measures = measure_sides(conformed, found, sides, setup.provenance)
    return SegmentationResult(
        name=str(source.name),
        suffix=options.suffix or name_scan(source.name.name).suffix,
        flags=measures.flags,
        remarks=measures.remarks,
        _source=source,
        _content=content,
        _settings=options.settings(),
        _setup=setup,
        _measures=measures,
        _found=found,
        _restored=restored,
        _grid=replace(conformed, data=np.empty(0, np.float32)),
    )


def set_up(options: Options) -> Setup:
    """Find the networks; see :func:`~hyps_bids.segmentation.setup.choose_networks` for errors."""
    return _set_up(replace(options, suffix=None), _stamp(Path(options.adapter)))


@lru_cache(maxsize=8)
def _set_up(options: Options, stamp: object) -> Setup:
    """Read the cards of the networks; a file that was replaced since is loaded anew."""
    cached_network.cache_clear()
    cached_adapted.cache_clear()
    return choose_networks(options.settings())


def _stamp(adapter: Path) -> tuple[int, int] | None:
    """Tell when the file of an adapter was changed; None for a shipped one."""
    path = adapter / "adapter.safetensors" if adapter.is_dir() else adapter
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size
