"""Heads whose hippocampus is removed, destroyed or deformed."""

from __future__ import annotations

from hyps_bids.evaluation.heads import Kind

DAMAGES: dict[str, Kind] = {}
