"""Choose where to compute, and set the process up for it."""

from __future__ import annotations

import logging
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from hyps_bids.errors import UsageError
from hyps_bids.system import keep_freed_memory

if TYPE_CHECKING:
    import torch

_LOG = logging.getLogger("hyps_bids")
#: Each exists where the driver of an NVIDIA GPU is: on Linux, and in the Windows Subsystem for it.
_DRIVER_FILES = (Path("/proc/driver/nvidia/version"), Path("/dev/nvidiactl"), Path("/dev/dxg"))


class _Process:
    """What this process was set up for; a forked process inherits it."""

    threads = 1
    #: The process in which PyTorch has computed with several threads, if any.
    has_torch_threads: int | None = None


def choose_device(name: str) -> str:
    """Turn a ``--device`` option into a device that exists.

    Parameters
    ----------
    name : str
        ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.

    Returns
    -------
    str
        ``cpu``, ``cuda:N`` or ``mps``. If ``auto`` means the CPU, the log says so.

    Raises
    ------
    UsageError
        If the name is unknown, or a GPU that was asked for is not there.

    Examples
    --------
    >>> choose_device("cpu")
    'cpu'
    """
    check_device_name(name)
    if name == "cpu":
        return name
    if name == "auto":
        if has_nvidia_driver():
            # Imported here, because it takes two seconds.
            import torch

            if torch.cuda.is_available():
                return f"cuda:{torch.cuda.current_device()}"
        _LOG.info("No CUDA device was found; computing on the CPU.")
        return "cpu"
    # Before PyTorch is imported, so that it computes single operations on the CPU if need be.
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")
    import torch

    if name == "mps":
        if torch.backends.mps.is_available():
            return name
        raise UsageError(
            f"--device mps: PyTorch {torch.__version__} sees no GPU of Apple here; use a Mac with "
            "Apple silicon, or --device auto or cpu",
            code="no-mps-device",
        )
    if not torch.cuda.is_available():
        raise UsageError(
            f"--device {name}: no CUDA device is visible to PyTorch {torch.__version__}; install "
            "a CUDA build and check nvidia-smi, or use --device auto or cpu",
            code="no-cuda-device",
        )
    index = int(name.partition(":")[2] or 0)
    if index >= (count := torch.cuda.device_count()):
        raise UsageError(
            f"--device {name}: there are only {count} CUDA devices here, numbered from 0",
            code="device-number-too-high",
        )
    return f"cuda:{index}"


def check_device_name(name: str) -> None:
    """Refuse a ``--device`` option that names no device, whether or not it will be used.

    Raises
    ------
    UsageError
        If it is none of ``auto``, ``cpu``, ``cuda``, ``cuda:N`` and ``mps``.
    """
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d*)?", name, re.ASCII):
        raise UsageError(
            f"--device {name}: use auto, cpu, cuda, cuda:N or mps", code="device-name-unknown"
        )


def has_nvidia_driver() -> bool:
    """Tell whether there may be a GPU, without importing PyTorch."""
    on_windows = sys.platform == "win32" and shutil.which("nvidia-smi") is not None
    return on_windows or any(path.exists() for path in _DRIVER_FILES)


def supports_bfloat16(device: torch.device) -> bool:
    """Tell whether bfloat16 autocast is worthwhile.

    On the CPU it is not: without AVX512-BF16 or AMX, convolutions are a hundred times slower.
    """
    import torch

    return device.type == "cuda" and torch.cuda.is_bf16_supported()


def prepare_process(threads: int | None = None) -> None:
    """Set this process up for computing: threads, deterministic kernels, reuse of memory.

    PyTorch is set up only where it is loaded; call this again after loading it.

    Parameters
    ----------
    threads : int, optional
        Number of CPU threads; unchanged if None.
    """
    if threads is not None:
        _Process.threads = threads
    _use_one_blas_thread()
    _prepare_torch()


def _prepare_torch() -> None:
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(_Process.threads)
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False
        keep_freed_memory()


def avoid_threads_of_parent() -> None:
    """Let PyTorch use one thread if others stayed in the process that this one was forked from.

    PyTorch would wait for them for ever. Call this before it computes on the CPU.
    """
    import torch

    if _Process.has_torch_threads not in (None, os.getpid()):
        torch.set_num_threads(1)
    elif torch.get_num_threads() > 1:
        _Process.has_torch_threads = os.getpid()


@contextmanager
def prepared_process(threads: int) -> Iterator[None]:
    """Set this process up as :func:`prepare_process` does, and leave it as it was in the end.

    For programs of others that call us: their threads are theirs. What other threads of such a
    program compute meanwhile uses these settings, too.
    """
    from threadpoolctl import threadpool_limits

    before = _Process.threads
    torch = sys.modules.get("torch")
    kept = torch and (
        torch.get_num_threads(),
        torch.backends.cudnn.deterministic,
        torch.backends.cudnn.benchmark,
    )
    with threadpool_limits(1, user_api="blas"):
        try:
            _Process.threads = threads
            _prepare_torch()
            yield
        finally:
            _Process.threads = before
            if torch is not None and kept:
                torch.set_num_threads(kept[0])
                torch.backends.cudnn.deterministic = kept[1]
                torch.backends.cudnn.benchmark = kept[2]


def threads_of_process() -> int:
    """Return the number of CPU threads that :func:`prepare_process` was given."""
    return _Process.threads


@cache
def _use_one_blas_thread() -> None:
    """Make NumPy's BLAS use one thread.

    The products by which images are sampled are bound by memory. More threads only wait for each
    other, which takes four times the CPU time.
    """
    from threadpoolctl import threadpool_limits

    threadpool_limits(1, user_api="blas")
