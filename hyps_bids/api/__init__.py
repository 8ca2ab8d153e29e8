"""``hyps_bids.segment``, for images without a BIDS dataset; ``hyps-tools segment`` uses it, too."""

from hyps_bids.api.result import SegmentationResult
from hyps_bids.api.segmenting import segment, segment_each

__all__ = ["SegmentationResult", "segment", "segment_each"]
