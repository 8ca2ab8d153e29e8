"""Decide whether a GPU would finish a run earlier than the CPUs."""

from __future__ import annotations

import logging

from hyps_bids.messages import format_count
from hyps_bids.segmentation.devices import has_nvidia_driver

_LOG = logging.getLogger("hyps_bids")
#: Seconds until PyTorch, CUDA and the networks are loaded, and those of each scan afterwards.
GPU_START_S, GPU_SCAN_S = 8.0, 0.3
#: CPU seconds of a scan without a GPU, and of what remains for the CPUs with a GPU.
CPU_SCAN_S, CPU_REST_S = 2.5, 1.5


def faster_device(scans: int, cpus: int) -> str:
    """Decide what ``--device auto`` means, and log why.

    PyTorch is not imported: loading it may take longer than all scans.

    Parameters
    ----------
    scans, cpus : int
        Number of scans to do, and of CPUs that the run may use.

    Returns
    -------
    str
        ``cpu``, or ``auto`` if a GPU would be faster, should PyTorch find one.
    """
    if not has_nvidia_driver():
        _LOG.info("There is no NVIDIA GPU here; computing on the CPU.")
        return "cpu"
    on_gpu, on_cpu = estimate_seconds(scans, cpus)
    device = "GPU" if on_gpu < on_cpu else "CPU"
    _LOG.info(
        "%s would take about %.0f s with a GPU and %.0f s on %s; choosing the %s.",
        format_count(scans, "scan"),
        on_gpu,
        on_cpu,
        format_count(cpus, "CPU"),
        device,
    )
    return "auto" if device == "GPU" else "cpu"


def estimate_seconds(scans: int, cpus: int) -> tuple[float, float]:
    """Estimate how long scans take with a GPU and without, reports not included.

    Examples
    --------
    >>> estimate_seconds(1, 16)
    (8.3, 0.15625)
    >>> estimate_seconds(100, 4)
    (45.5, 62.5)
    """
    with_gpu = GPU_START_S + scans * max(GPU_SCAN_S, CPU_REST_S / cpus)
    return with_gpu, scans * CPU_SCAN_S / cpus
