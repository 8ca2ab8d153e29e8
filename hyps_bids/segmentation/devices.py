"""Choose where to compute, and set the process up for it."""

from __future__ import annotations

import ctypes
import logging
import sys

import torch

from hyps_bids.errors import UsageError

_LOG = logging.getLogger("hyps_bids")


def choose_device(name: str) -> torch.device:
    """Turn a ``--device`` option into a device that exists.

    Parameters
    ----------
    name : str
        ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Returns
    -------
    torch.device
        The device. If ``auto`` means the CPU, the log says so.

    Raises
    ------
    UsageError
        If the name is unknown, or a GPU that was asked for is not there.

    Examples
    --------
    >>> choose_device("cpu")
    device(type='cpu')
    """
    if name == "cpu":
        return torch.device("cpu")
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        _LOG.info("No CUDA device was found; computing on the CPU.")
        return torch.device("cpu")
    kind, _, index = name.partition(":")
    if kind != "cuda" or (index and not index.isdigit()):
        raise UsageError(
            f"--device {name}: use auto, cpu, cuda or cuda:N", code="device-name-unknown"
        )
    if not torch.cuda.is_available():
        raise UsageError(
            f"--device {name}: no CUDA device is visible to PyTorch {torch.__version__}; install "
            "a CUDA build and check nvidia-smi, or use --device auto or cpu",
            code="no-cuda-device",
        )
    if int(index or 0) >= (count := torch.cuda.device_count()):
        raise UsageError(
            f"--device {name}: there are only {count} CUDA devices here, numbered from 0",
            code="device-number-too-high",
        )
    return torch.device("cuda", int(index or 0))


def supports_bfloat16(device: torch.device) -> bool:
    """Tell whether bfloat16 autocast is worthwhile.

    On the CPU it is not: without AVX512-BF16 or AMX, convolutions are a hundred times slower.
    """
    return device.type == "cuda" and torch.cuda.is_bf16_supported()


def prepare_process(threads: int | None = None) -> None:
    """Set this process up for computing: threads, deterministic kernels, reuse of memory.

    Parameters
    ----------
    threads : int, optional
        Number of PyTorch's CPU threads; unchanged if None.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Make glibc keep freed memory for reuse instead of giving it back to the system.

    Otherwise each large tensor is mapped anew and faulted in page by page, which costs up to half
    of a network's CPU time on virtual machines. Without glibc this does nothing.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        # The names and numbers are those of glibc's malloc.h.
        m_trim_threshold, m_mmap_max = -1, -4
        mallopt(m_mmap_max, 0)
        mallopt(m_trim_threshold, 2**31 - 1)
