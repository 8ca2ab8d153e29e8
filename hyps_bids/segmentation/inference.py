"""Networks for inference, loaded once per process: OpenVINO on a CPU, PyTorch on a GPU."""

from __future__ import annotations

import logging
import platform
import re
from functools import cache
from pathlib import Path
from typing import Protocol

import numpy as np

from hyps_bids.networks.cards import GRID

_LOG = logging.getLogger("hyps_bids")
_CPU_INFO = Path("/proc/cpuinfo")
#: Shape of the localizer's input, voxels of 2.5 mm; larger for larger heads.
WINDOW = (72, 88, 72)


class Network(Protocol):
    """A network that is ready for inference.

    Attributes
    ----------
    labels : tuple of str
        Names of the classes, as on the card of the weights.
    """

    labels: tuple[str, ...]

    def predict(self, batch: np.ndarray) -> tuple[np.ndarray, str]:
        """Compute class probabilities.

        Parameters
        ----------
        batch : numpy.ndarray
            Volumes, float32, shape ``(n, 1, x, y, z)``.

        Returns
        -------
        probabilities : numpy.ndarray
            float32, shape ``(n, classes, x, y, z)``, sum 1.
        used : str
            The device that computed them, and PyTorch if it replaced OpenVINO.
        """
        ...


@cache
def cached_network(path: Path, device: str) -> Network:
    """Load a localizer once per process.

    Parameters
    ----------
    path : Path
        The weights.
    device : str
        ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.

    Raises
    ------
    MissingInput, UsageError, BadData
        If there is no such file, it holds an adapter, or its tensors do not fit.
    """
    if _uses_openvino(device):
        from hyps_bids.segmentation.openvino_inference import OpenVinoNetwork

        return OpenVinoNetwork.of_network(path, WINDOW)
    from hyps_bids.segmentation.torch_inference import TorchNetwork

    return TorchNetwork.of_network(path, device)


@cache
def cached_adapted(adapter: Path, base: Path, device: str) -> Network:
    """Load an adapter on its base once per process, merged.

    The parameters and errors are those of :func:`cached_network`; besides, the adapter must have
    been trained on this base.
    """
    if _uses_openvino(device):
        from hyps_bids.segmentation.openvino_inference import OpenVinoNetwork

        return OpenVinoNetwork.of_adapter(adapter, base, GRID)
    from hyps_bids.segmentation.torch_inference import TorchNetwork

    return TorchNetwork.of_adapter(adapter, base, device)


def _uses_openvino(device: str) -> bool:
    if device != "cpu":
        return False
    problem = openvino_problem()
    if problem is not None:
        _LOG.info("PyTorch computes the networks on the CPU, which is slower: %s.", problem)
    return problem is None


def openvino_problem(cpu_info: Path = _CPU_INFO) -> str | None:
    """Say why OpenVINO cannot be used here; None if it can.

    Parameters
    ----------
    cpu_info : Path
        The kernel's description of the processor. Where it is missing, nothing is wrong.
    """
    try:
        import hyps_bids.networks.openvino  # noqa: F401
    except (ImportError, OSError) as error:
        return f"OpenVINO cannot be loaded ({error})"
    try:
        text = cpu_info.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # Without these instructions OpenVINO works, but slower than PyTorch.
    has_avx2 = re.search(r"^flags\s*:.*\bavx2\b", text, re.MULTILINE)
    if platform.machine() == "x86_64" and not has_avx2:
        return "this processor has no AVX2 instructions"
    return None
