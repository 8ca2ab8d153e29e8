"""What decides the results of a run, known before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hyps_bids.errors import MissingInput, UsageError
from hyps_bids.networks.cards import BASE, shipped_weights
from hyps_bids.segmentation.setup import choose_networks
from hyps_bids.settings import Settings
from tests.raising import raises


@pytest.mark.parametrize(
    ("options", "error", "code"),
    [
        ({"device": "gpu"}, UsageError, "device-name-unknown"),
        ({"device": "cuda:x"}, UsageError, "device-name-unknown"),
        ({"adapter": "nobody"}, UsageError, "adapter-unknown"),
        ({"adapter": "nobody.safetensors"}, MissingInput, "adapter-missing"),
        ({"adapter": str(shipped_weights(BASE))}, UsageError, "network-not-adapter"),
    ],
)
def test_what_cannot_be_used_is_refused(
    options: dict[str, Any], error: type[Exception], code: str, tmp_path: Path
) -> None:
    folders = {"bids_dir": tmp_path, "output_dir": tmp_path / "out"}
    with raises(error, code, next(iter(options.values()))):
        choose_networks(Settings(**folders, analysis_level="participant", **options))
