"""The last stage: the best of all adapters and of their averages, and the exchange of weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hyps_bids.errors import BadData, MissingInput, UsageError
from hyps_bids.networks.cards import read_card, shipped_weights
from hyps_bids.outputs.digests import sha256
from hyps_bids.outputs.writing import remove_file, write_json, write_text
from hyps_bids.recipe.judge import AdapterJudge, is_better, make_judge, score
from hyps_bids.recipe.soup import adapter_of, average_adapters, greedy_soup
from hyps_bids.recipe.stages import (
    RESULT,
    SHIPPED,
    Workshop,
    adapter_folder,
    adapter_recipe,
    claim,
    copy_file,
    is_adapter_of,
    read_result,
    write_adapter_card,
)
from hyps_bids.training.cards import describe_parts

_LICENSES = "LICENSE.md"
#: Name of the adapter before, as an ingredient.
_BEFORE = "before"

#: Names of adapters, with their shares.
_Mix = tuple[tuple[str, float], ...]


def choose_adapter(workshop: Workshop, seeds: Sequence[int], others: Sequence[Path] = ()) -> bool:
    """Compare all adapters and their averages, and write the best of them.

    ``OUT/soup`` receives the adapter, its card and ``result.json`` with the metrics of all.

    Parameters
    ----------
    workshop : Workshop
        Where the adapters are.
    seeds : sequence of int
        Seeds of the recipe's adapters; of those that are not finished, the averaged weights so far
        are taken.
    others : sequence of Path
        More adapters of the same base and start, or folders of their trainings. They must not have
        been trained on the validation subjects, which nothing can check.

    Returns
    -------
    bool
        Whether the stage is done; another process may have it.
    """
    workshop.check_time("soup")
    with claim(workshop.output / "soup") as is_free:
        if is_free:
            _choose(workshop, seeds, others)
        else:
            workshop.tell("soup: another process works on it")
        return is_free


def _choose(workshop: Workshop, seeds: Sequence[int], others: Sequence[Path]) -> None:
    base, folder = workshop.base(), workshop.output / "soup"
    # The verdict on an earlier adapter must not be taken for that on the one written below.
    remove_file(folder / RESULT)
    kitchen = _Kitchen(workshop, base, folder, _ingredients(workshop, base, seeds, others, folder))
    before = _metrics_before(workshop, kitchen.judge)
    names = tuple(kitchen.adapters)
    ranked = sorted(names, key=lambda name: -kitchen.score(_mean(name)))
    kitchen.score(_mean(*names))
    greedy_soup(ranked, lambda chosen: kitchen.score(_mean(*sorted(chosen, key=names.index))))
    _mix_with_before(workshop, kitchen)
    loss = workshop.plan.largest_loss
    tried = kitchen.metrics.items()
    good = [mix for mix, found in tried if not before or is_better(found, before, loss)]
    best = max(good or kitchen.metrics, key=kitchen.score)
    path = folder / f"{SHIPPED['adapter']}.safetensors"
    card = {"license": workshop.plan.adapter.license, "training": kitchen.describe(best)}
    kitchen.make(best, path, card)
    write_adapter_card(workshop, path, kitchen.hardware(best))
    table = {_describe_mix(mix): found for mix, found in kitchen.metrics.items()}
    result = {"best": _describe_mix(best), "better": bool(good), "before": before}
    write_json(folder / RESULT, result | {"base": sha256(base), "candidates": table})
    words = f"{kitchen.score(best):.4f}" + (f", before {score(before):.4f}" if before else "")
    verdict = "better" if good else "not better than the adapter before"
    workshop.tell(f"soup: {_describe_mix(best)} is best; score {words}: {verdict}")


def replace_weights(workshop: Workshop) -> None:
    """Exchange the weights that are there for those that validation has found better.

    A new base comes with the adapter that was trained on it, and only then.

    Raises
    ------
    UsageError
        If the weights that are there are no longer those that the new ones were compared with, or
        a better base was trained after the adapters.
    """
    folders = {name: workshop.output / name for name in ("localizer", "base", "soup")}
    results = {name: read_result(folder) for name, folder in folders.items()}
    better = {name for name, result in results.items() if result and result["better"]}
    new: dict[str, Path] = {}
    if "localizer" in better:
        new["localizer"] = folders["localizer"] / "localizer.safetensors"
    if "soup" in better:
        base = workshop.base()
        if (results["soup"] or {}).get("base") != sha256(base):
            raise UsageError(
                f"{folders['soup']}: its adapter belongs to another base than {base}; run the "
                "stages 'adapter' and 'soup' for this base in another output folder",
                code="soup-other-base",
            )
        if base.parent == folders["base"]:
            new["base"] = base
        # It comes last, because it does not work without its base.
        new["adapter"] = folders["soup"] / f"{SHIPPED['adapter']}.safetensors"
    for stage, path in new.items():
        _replace(workshop, stage, path)
    license_file = workshop.weights / _LICENSES
    if new and not license_file.is_file():
        copy_file(shipped_weights(SHIPPED["base"]).with_name(_LICENSES), license_file)
    if not new:
        workshop.tell("replace: nothing is better than the weights that are there")


@dataclass
class _Kitchen:
    """The ingredients, and the metrics of the mixtures that were tried so far."""

    workshop: Workshop
    base: Path
    folder: Path
    adapters: dict[str, Path]
    metrics: dict[_Mix, dict[str, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _, validation = self.workshop.crops
        contrasts = self.workshop.plan.adapter.contrasts
        self.judge: AdapterJudge = make_judge(
            validation, self.base, contrasts, self.workshop.device
        )

    def make(self, mix: _Mix, path: Path, card: Mapping[str, Any]) -> None:
        """Write a mixture."""
        paths = [self.adapters[name] for name, _ in mix]
        average_adapters(paths, self.base, path, card, shares=[share for _, share in mix])

    def score(self, mix: _Mix) -> float:
        """Return the score of a mixture."""
        if mix not in self.metrics:
            self.workshop.check_time("soup")
            candidate = self.folder / "candidate.safetensors"
            self.make(mix, candidate, {})
            self.metrics[mix] = self.judge.metrics(candidate, self.base)
            candidate.unlink()
        return score(self.metrics[mix])

    def describe(self, mix: _Mix) -> dict[str, Any]:
        """Collect the facts for the card of a mixture."""
        facts: dict[str, Any] = {
            "weights": _describe_mix(mix),
            "chosen from": f"{len(self.metrics)} adapters and weighted means of them, by the "
            "metrics below",
        }
        for name, _ in mix:
            training = dict(read_card(self.adapters[name]).get("training", {}))
            training.pop("validation", None)
            facts[name] = ", ".join(f"{key} {value}" for key, value in training.items())
        return facts | {"validation": self.metrics[mix]}

    def hardware(self, mix: _Mix) -> str:
        """Say where the steps of these adapters were taken."""
        words = []
        for name, _ in mix:
            result = read_result(self.adapters[name].parent) or {}
            parts = result.get("parts")
            words.append(f"{name}: {describe_parts(parts) if parts else 'not recorded'}")
        return "; ".join(words)


def _mean(*names: str) -> _Mix:
    return tuple((name, round(1 / len(names), 4)) for name in names)


def _describe_mix(mix: _Mix) -> str:
    """Name the adapters of a mixture and their shares.

    Examples
    --------
    >>> _describe_mix((("adapter-1", 0.3), ("before", 0.7)))
    '0.3 adapter-1 + 0.7 before'
    """
    return " + ".join(f"{share:g} {name}" if share < 1 else name for name, share in mix)


def _mix_with_before(workshop: Workshop, kitchen: _Kitchen) -> None:
    """Try mixtures of the best adapters with the one before, if these have the same start."""
    before = workshop.shipped("adapter")
    if before is None or not is_adapter_of(before, kitchen.base):
        return
    best = max(kitchen.metrics, key=kitchen.score)
    kitchen.adapters[_BEFORE] = before
    try:
        for share in workshop.plan.mixtures:
            new = tuple((name, round(share * part, 4)) for name, part in best)
            kitchen.score((*new, (_BEFORE, round(1 - share, 4))))
    except BadData as error:
        workshop.tell(f"soup: no mixture with the adapter before: {error}")


def _ingredients(
    workshop: Workshop, base: Path, seeds: Sequence[int], others: Sequence[Path], folder: Path
) -> dict[str, Path]:
    """Find the adapters, by name."""
    sources = {path.name: path for path in (adapter_folder(workshop, seed) for seed in seeds)}
    sources = {
        name: path
        for name, path in sources.items()
        if (path / "adapter.safetensors").is_file() or (path / "checkpoint.pt").is_file()
    }
    for path in others:
        name = path.parent.name if path.name == "adapter.safetensors" else path.stem
        if name in sources:
            raise UsageError(
                f"{path}: another adapter has the name {name} already", code="adapter-name-taken"
            )
        sources[name] = path
    if not sources:
        raise MissingInput(
            f"{workshop.output}: no adapter has been trained here; run the stage 'adapter' first",
            code="no-adapter-trained",
        )
    start = adapter_recipe(workshop, 0).start
    return {
        name: adapter_of(path, base, start, folder / f"unfinished-{name}.safetensors")
        for name, path in sources.items()
    }


def _metrics_before(workshop: Workshop, judge: AdapterJudge) -> dict[str, float] | None:
    """Measure the adapter that is there now, on its base; None if there is none that works."""
    adapter, base = workshop.shipped("adapter"), workshop.shipped("base")
    if adapter is None or base is None:
        return None
    if not is_adapter_of(adapter, base):
        return None
    return judge.metrics(adapter, base)


def _replace(workshop: Workshop, stage: str, path: Path) -> None:
    """Exchange one file of weights and its card."""
    target = workshop.weights / f"{SHIPPED[stage]}.safetensors"
    before = workshop.output / "before" / target.name
    known = [sha256(file) for file in (path, before) if file.is_file()]
    if target.is_file() and sha256(target) not in known:
        raise UsageError(
            f"{target}: these weights have changed since this run compared its own with them; "
            "give another output folder",
            code="weights-changed",
        )
    own = path.with_suffix(".md")
    card = own if own.is_file() else path.with_name(f"{stage}.md")
    text = card.read_text(encoding="utf-8").replace(f"`{stage}.safetensors`", f"`{target.name}`")
    copy_file(path, target)
    write_text(target.with_suffix(".md"), text)
    workshop.tell(f"{stage}: {target} is replaced")
