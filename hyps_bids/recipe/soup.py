"""Averages of adapters that were trained from the same start ("model soups").

Wortsman et al. 2022, https://arxiv.org/abs/2203.05482.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from hyps_bids.errors import BadData, MissingInput, UsageError
from hyps_bids.networks.adapters.config import AdapterConfig
from hyps_bids.networks.adapters.network import (
    adapter_state,
    add_adapters,
    load_adapter_state,
)
from hyps_bids.networks.cards import GRID
from hyps_bids.networks.checkpoints import (
    load_adapted,
    load_network,
    replace_head,
    save_adapter,
)
from hyps_bids.outputs.digests import sha256
from hyps_bids.training.checkpoint import read_unfinished

#: How the names of the tensors end that are set by the start, and never trained.
_INITIAL = ("lora_A_init", "lora_B_init")


def average_adapters(
    paths: Sequence[Path],
    base: Path,
    out: Path,
    card: Mapping[str, Any],
    *,
    shares: Sequence[float] | None = None,
    half: bool = True,
) -> Path:
    """Write the mean of adapters of one base that were trained from the same start.

    Parameters
    ----------
    paths : sequence of Path
        At least one adapter.
    base : Path
        Their base.
    out : Path
        The adapter to write.
    card : mapping
        Facts for its card, besides those that all adapters share.
    shares : sequence of float, optional
        Share of each adapter in the mean; by default the same.
    half : bool
        Write it in half precision.

    Raises
    ------
    BadData
        If the adapters differ in classes or settings, or were not trained from the same start.
    """
    model, first = load_adapted(paths[0], base)
    config = AdapterConfig.from_card(first["adapter"])
    states = [_copy(adapter_state(model))]
    for path in paths[1:]:
        other, other_card = load_adapted(path, base)
        same_config = AdapterConfig.from_card(other_card["adapter"]) == config
        if not same_config or other_card["labels"] != first["labels"]:
            raise BadData(
                f"{path}: has other classes or settings than {paths[0]}; adapters that are "
                "averaged must be alike",
                code="soup-unlike",
            )
        states.append(_copy(adapter_state(other)))
        # The same adapter has many forms, and the mean of two of them is none.
        for name in (n for n in states[0] if n.endswith(_INITIAL)):
            if not torch.allclose(states[0][name], states[-1][name], atol=1e-2):
                raise BadData(
                    f"{path}: was not trained from the same start as {paths[0]}, so that their "
                    "mean makes no sense",
                    code="soup-other-start",
                )
    weights = torch.tensor(shares or [1.0] * len(states))
    weights = weights / weights.sum()
    mean = {
        name: torch.tensordot(weights, torch.stack([state[name] for state in states]), dims=1)
        for name in states[0]
    }
    load_adapter_state(model, mean)
    complete = {"labels": first["labels"], "grid": first.get("grid", list(GRID)), **card}
    dtype = torch.float16 if half else torch.float32
    save_adapter(out, model, config, base, complete, dtype=dtype)
    return out


def greedy_soup(
    ranked: Sequence[str], score: Callable[[tuple[str, ...]], float]
) -> tuple[str, ...]:
    """Choose what to average: each one in turn is added if the mean does not become worse.

    Parameters
    ----------
    ranked : sequence of str
        Names, the best one first.
    score : callable
        Returns the score of the mean of these.

    Examples
    --------
    >>> greedy_soup(["a", "b", "c"], lambda names: 1 - 0.1 * ("b" in names))
    ('a', 'c')
    """
    chosen: tuple[str, ...] = (ranked[0],)
    best = score(chosen)
    for name in ranked[1:]:
        value = score((*chosen, name))
        if value >= best:
            chosen, best = (*chosen, name), value
    return chosen


def adapter_of(source: Path, base: Path, start: Path | None, out: Path) -> Path:
    """Find the adapter that a file or the folder of a training holds.

    Of a training that is not finished, the averaged weights so far are written to `out`.

    Raises
    ------
    MissingInput, UsageError
        If there is neither an adapter nor a checkpoint, or it is one of another base or start.
    """
    path = source / "adapter.safetensors" if source.is_dir() else source
    checkpoint = source / "checkpoint.pt"
    if path.is_file() or not source.is_dir():
        return path
    if not checkpoint.is_file():
        raise MissingInput(
            f"{source}: there is neither an adapter.safetensors nor a checkpoint.pt",
            code="no-adapter-in-folder",
        )
    content = read_unfinished(checkpoint)
    identity = content["identity"]
    expected = {"base": sha256(base), "start": sha256(start) if start else None}
    if wrong := [name for name, value in expected.items() if identity.get(name) != value]:
        raise UsageError(
            f"{checkpoint}: was trained with another {' and another '.join(wrong)} than this run",
            code="checkpoint-other-start",
        )
    config = AdapterConfig.from_card(identity["adapter"])
    if start is None:
        model, card = load_network(base)
        replace_head(model, card["labels"], {name: [] for name in identity["classes"]})
        add_adapters(model, config)
    else:
        model, _ = load_adapted(start, base)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in content["average"]:
                parameter.copy_(content["average"][name])
    facts = {"steps": f"{content['step']} of {identity['settings']['steps']}"}
    card_facts = {"labels": identity["classes"], "grid": list(GRID), "training": facts}
    save_adapter(out, model, config, base, card_facts)
    return out


def _copy(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in state.items()}
