"""Model cards: what a person should know about weights before using them."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hyps_bids.outputs.digests import sha256
from hyps_bids.outputs.writing import write_text

_LOW_RANK, _BOTTLENECK = ("rank",), ("bottleneck", "scale")
#: method of an adapter → names of the settings that matter for it
_SETTINGS = {
    **dict.fromkeys(("lora", "dora", "pissa"), _LOW_RANK),
    **dict.fromkeys(("parallel", "serial", "cps"), _BOTTLENECK),
    "hyps": _LOW_RANK + _BOTTLENECK,
}


def hardware(device: torch.device) -> str:
    """Describe a device, without anything that names the machine.

    Examples
    --------
    >>> hardware(torch.device("cpu"))
    'CPU (...), ... threads'
    """
    if device.type == "cuda":
        return f"1 × {torch.cuda.get_device_name(device)}"
    return f"CPU ({platform.machine()}), {torch.get_num_threads()} threads"


def write_model_card(
    path: Path,
    *,
    title: str,
    card: Mapping[str, Any],
    data: str,
    license: str,
    hardware: str,
    notes: str,
) -> Path:
    """Write a model card next to a weights file, with the extension ``.md``.

    `card` is the one in the header of the weights: under ``training`` it has plain facts and the
    metrics of the ``validation``, which those of a ``cross-validation`` replace if present. `data`
    describes the data of training and validation with source and license, `notes` the intended use
    and limits; `hardware` comes from :func:`hardware`.
    """
    training = dict(card.get("training", {}))
    checked, metrics = "validation", training.pop("validation", {})
    if "cross-validation" in card:
        checked, metrics = "cross-validation", card["cross-validation"]
    facts = _network_facts(card) | {
        "Classes": ", ".join(card["labels"]),
        "Hardware": hardware,
        "License": license,
        "File": f"`{path.name}`, {path.stat().st_size / 1e6:.3g} MB",
        "sha256": f"`{sha256(path)}`",
    }
    sections = [
        f"# {title}",
        _table(("", ""), facts),
        f"## Data\n\n{data}",
        "## Training\n\n" + _table(("setting", "value"), training),
        f"## {checked.capitalize()}\n\n" + _table(("metric", "value"), metrics),
        f"## Use and limits\n\n{notes}",
    ]
    out = path.with_suffix(".md")
    write_text(out, "\n\n".join(sections) + "\n")
    return out


def _network_facts(card: Mapping[str, Any]) -> dict[str, str]:
    if "adapter" in card:
        adapter, base = card["adapter"], card["base"]
        names = _SETTINGS.get(adapter["method"], ())
        settings = ", ".join(f"{name} {adapter[name]}" for name in names)
        return {
            "Adapter": adapter["method"] + (f" ({settings})" if settings else ""),
            "Base": f"{base['name']}, sha256 `{base['sha256']}`",
        }
    architecture = card["architecture"]
    settings = ", ".join(f"{k} {v}" for k, v in architecture["kwargs"].items())
    return {"Network": f"{architecture['name']} ({settings})"}


def _table(head: tuple[str, str], rows: Mapping[str, Any]) -> str:
    lines = [f"| {head[0]} | {head[1]} |", "|---|---|"]
    for name, value in rows.items():
        text = f"{value:.4g}" if isinstance(value, float) else str(value)
        lines.append(f"| {name} | {text} |".replace("\n", " "))
    return "\n".join(lines)
