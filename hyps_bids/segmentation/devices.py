"""Where to compute, and how to keep memory cheap."""

from __future__ import annotations

import ctypes
import logging
import sys

import torch

from hyps_bids.errors import UsageError

__all__ = ["choose_device", "prepare_process", "supports_bfloat16"]

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
        The device; ``auto`` that falls to the CPU says so in the log.

    Raises
    ------
    UsageError
        If the name is unknown, or an explicit GPU is not there.

    Examples
    --------
    >>> choose_device("cpu")
    device(type='cpu')
    >>> choose_device("gpu")
    Traceback (most recent call last):
    hyps_bids.errors.UsageError: --device gpu: use auto, cpu, cuda or cuda:N
    """
    if name == "cpu":
        return torch.device("cpu")
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        _LOG.info("no CUDA device: computing on the CPU")
        return torch.device("cpu")
    kind, _, index = name.partition(":")
    if kind != "cuda" or (index and not index.isdigit()):
        raise UsageError(f"--device {name}: use auto, cpu, cuda or cuda:N")
    if not torch.cuda.is_available():
        raise UsageError(
            f"--device {name}: no CUDA device is visible to torch {torch.__version__}; install a "
            "CUDA build and check nvidia-smi, or use --device auto or cpu"
        )
    if int(index or 0) >= torch.cuda.device_count():
        raise UsageError(f"--device {name}: only {torch.cuda.device_count()} CUDA device(s) here")
    return torch.device("cuda", int(index or 0))


def supports_bfloat16(device: torch.device) -> bool:
    """Tell whether bfloat16 autocast is worthwhile.

    Never on the CPU: without AVX512-BF16 or AMX its convolutions are a hundred times slower.
    """
    return device.type == "cuda" and torch.cuda.is_bf16_supported()


def prepare_process(threads: int | None = None) -> None:
    """Set this process up for computing: threads, deterministic kernels, cheap memory.

    Parameters
    ----------
    threads : int, optional
        CPU threads of torch; unchanged if None.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Make glibc keep freed memory for reuse instead of giving it back.

    Each large tensor would else be mapped anew and faulted in page by page, which costs up to half
    of the CPU time of a network on virtual machines. Does nothing without glibc.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        # names and numbers from glibc's malloc.h
        m_trim_threshold, m_mmap_max = -1, -4
        mallopt(m_mmap_max, 0)
        mallopt(m_trim_threshold, 2**31 - 1)
