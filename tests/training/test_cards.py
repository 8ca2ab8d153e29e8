"""Tests of :mod:`hyps_bids.training.cards`."""

from __future__ import annotations

import hashlib
from pathlib import Path

from hyps_bids.training.cards import write_model_card


def test_card_of_an_adapter(tmp_path: Path) -> None:
    weights = tmp_path / "adapter.safetensors"
    weights.write_bytes(b"weights")
    card = {
        "labels": ["anterior", "posterior"],
        "adapter": {"method": "hyps", "rank": 8, "bottleneck": 4, "scale": 1.0},
        "base": {"name": "base", "sha256": "abc"},
        "training": {"steps": 3, "validation": {"dice_anterior": 0.875}},
    }
    out = write_model_card(
        weights, title="T", card=card, data="D", license="L", hardware="H", notes="N"
    )
    text = out.read_text(encoding="utf-8")
    for part in ("# T\n", "rank 8", "`abc`", "| dice_anterior | 0.875 |", "| Hardware | H |"):
        assert part in text
    assert hashlib.sha256(b"weights").hexdigest() in text
    assert card["training"]["validation"], "the card itself stays as it was"
    card["adapter"]["method"] = "lora"
    write_model_card(weights, title="T", card=card, data="D", license="L", hardware="H", notes="N")
    text = out.read_text(encoding="utf-8")
    # Only the settings of LoRA are named, and the size of a small file is not 0.
    assert "| Adapter | lora (rank 8) |" in text
    assert ", 7e-06 MB" in text
