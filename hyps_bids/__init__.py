"""HyPS-BIDS: hippocampus segmentation in T1-weighted MRI as a BIDS App.

:func:`hyps_bids.segment` segments single images from Python.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hyps_bids.api import SegmentationResult, segment

__version__ = "0.2.0"
__all__ = ["SegmentationResult", "__version__", "segment"]


def __getattr__(name: str) -> Any:
    # Commands that need no images should not wait for the libraries that read them.
    if name in ("SegmentationResult", "segment"):
        from hyps_bids import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
