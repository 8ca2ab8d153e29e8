"""OpenVINO, imported so that it keeps to itself.

If the package ``openvino_telemetry`` can be imported, each import of OpenVINO is reported to its
makers over the network. pip installs that package along with OpenVINO, so it is hidden meanwhile.
"""

from __future__ import annotations

import sys

_is_first = "openvino" not in sys.modules
if _is_first:
    # None makes Python raise an ImportError, for which OpenVINO has a stub.
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]

import openvino as ov  # noqa: E402
from openvino import opset13 as ops  # noqa: E402

if _is_first:
    del sys.modules["openvino_telemetry"]

__all__ = ["ops", "ov"]
