"""Model cards: what a person should know about weights before using them."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import torch

from hyps_bids.outputs.digests import sha256
from hyps_bids.outputs.writing import write_text
from hyps_bids.training.checkpoint import Part

_LOW_RANK, _BOTTLENECK = ("rank",), ("bottleneck", "scale")
#: Method of an adapter → names of the settings that matter for it
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


def describe_parts(parts: Sequence[Part]) -> str:
    """Say where the steps of a training were taken, and with how many samples each.

    Examples
    --------
    >>> describe_parts([{"hardware": "CPU", "batch_size": 2, "steps": 1200}])
    '1,200 steps of 2 on CPU'
    """
    words = []
    for part in parts:
        size = f" of {part['batch_size']}" if part["batch_size"] else ""
        words.append(f"{part['steps']:,} steps{size} on {part['hardware'] or 'unknown hardware'}")
    return ", then ".join(words)


def fill_template(package: str, name: str, facts: Mapping[str, Any]) -> str:
    """Fill in a Markdown text of the folder ``templates`` of a package."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(package),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name).render(facts)


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
    if "adapter" in card:
        names = _SETTINGS.get(card["adapter"]["method"], ())
        settings = {name: card["adapter"][name] for name in names}
    else:
        settings = card["architecture"]["kwargs"]
    facts = {
        "title": title,
        "card": card,
        "settings": [f"{name} {value}" for name, value in settings.items()],
        "hardware": hardware,
        "license": license,
        "file": path.name,
        "megabytes": path.stat().st_size / 1e6,
        "sha256": sha256(path),
        "data": data,
        "training": training,
        "checked": checked,
        "metrics": metrics,
        "notes": notes,
    }
    out = path.with_suffix(".md")
    write_text(out, fill_template("hyps_bids.training", "model_card.md", facts) + "\n")
    return out
