"""Compare the adapter methods on few labeled crops.

There are three steps, and each continues where it was stopped::

    python benchmarks/adapters.py tune IMAGES LABELS RESULTS        # learning rates, on validation
    python benchmarks/adapters.py run IMAGES LABELS RESULTS         # metrics on the test subjects
    python benchmarks/adapters.py report RESULTS                    # RESULTS/README.md and a chart

IMAGES and LABELS are the folders of MSD Task04. Only `run` uses its fixed test subjects (every
fifth). Learning rates are chosen on every 13th of the other subjects, which are never trained on.
N crops are the first N crops of the training subjects. All methods get the same number of steps,
the same batches and the same augmentation.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, fields
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from hyps_bids.adaptation.crops import Crops
    from hyps_bids.adaptation.fit import Recipe

CLASSES = {"anterior": ["hippocampus"], "posterior": ["hippocampus"]}
METRICS = ["dice_anterior", "dice_posterior", "dice_whole", "hd95_whole"]


@dataclass(frozen=True)
class Run:
    """One training, with everything that decides its result."""

    method: str
    crops: int
    seed: int
    learning_rate: float
    steps: int
    batch_size: int
    rank: int = 8
    bottleneck: int = 8
    trainable: str = "decoder out"
    split: str = "test"


def main() -> None:
    """Parse the command line and do one step."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    steps = parser.add_subparsers(dest="step", required=True)
    for name in ("tune", "run"):
        step = steps.add_parser(name)
        step.add_argument("images", type=Path)
        step.add_argument("labels", type=Path)
        step.add_argument("results", type=Path)
        step.add_argument("--methods", nargs="+", default=["hyps"])
        step.add_argument("--crops", nargs="+", type=int, default=[10], help="0 for all")
        step.add_argument("--seeds", nargs="+", type=int, default=[0])
        step.add_argument("--steps", type=int, default=120)
        step.add_argument("--batch-size", type=int, default=1)
        step.add_argument("--learning-rates", nargs="+", type=float, help="default: tuned")
        step.add_argument("--rank", nargs="+", type=int, default=[8])
        step.add_argument("--bottleneck", nargs="+", type=int, default=[8])
        step.add_argument("--trainable", default="decoder out", help="further modules to train")
        step.add_argument("--device", default="auto")
        step.add_argument("--threads", type=int, default=1, help="threads of each run")
        step.add_argument("--jobs", type=int, default=1, help="runs at the same time")
    steps.add_parser("report").add_argument("results", type=Path)
    args = parser.parse_args()
    if args.step == "report":
        report(args.results)
    else:
        train_all(args)


def train_all(args: argparse.Namespace) -> None:
    """Do the runs that are not in the results yet, each in a process of its own."""
    args.results.mkdir(parents=True, exist_ok=True)
    facts_path, crops_path = args.results / "runs.tsv", args.results / "crops.tsv"
    split = "validation" if args.step == "tune" else "test"
    wanted = [
        Run(
            method, crops, seed, rate, args.steps, args.batch_size, rank, width,
            args.trainable, split,
        )
        for seed, crops, method, rank, width in itertools.product(
            args.seeds, args.crops, args.methods, args.rank, args.bottleneck
        )
        for rate in args.learning_rates or [tuned(facts_path, method)]
    ]  # fmt: skip
    done = set() if not facts_path.is_file() else set(_runs(pd.read_csv(facts_path, sep="\t")))
    todo = [run for run in wanted if run not in done]
    print(f"{len(wanted)} runs, {len(wanted) - len(todo)} done before")
    with ProcessPoolExecutor(args.jobs, get_context("spawn"), max_tasks_per_child=1) as pool:
        futures = [
            pool.submit(train_and_test, run, args.images, args.labels, args.device, args.threads)
            for run in todo
        ]
        for future in futures:
            facts, crops = future.result()
            for path, rows in ((facts_path, [facts]), (crops_path, crops)):
                frame = pd.DataFrame(rows)
                frame.to_csv(path, sep="\t", index=False, mode="a", header=not path.is_file())
            print(json.dumps(facts), flush=True)


def tuned(path: Path, method: str) -> float:
    """Return the learning rate with the best validation Dice of a method, of the usual settings."""
    table = pd.read_csv(path, sep="\t") if path.is_file() else pd.DataFrame(columns=["split"])
    table = table[table["split"] == "validation"]
    table = table[_usual(table) & (table["method"] == method)] if len(table) else table
    if not len(table):
        raise SystemExit(f"{method}: tune it first, or give --learning-rates")
    return float(table.groupby("learning_rate")["dice_parts"].mean().idxmax())


def _usual(table: pd.DataFrame) -> pd.Series:
    """Mark the runs without changes to the adapter's settings."""
    return (
        (table["rank"] == Run.rank)
        & (table["bottleneck"] == Run.bottleneck)
        & (table["trainable"] == Run.trainable)
    )


def _runs(table: pd.DataFrame) -> list[Run]:
    names = [field.name for field in fields(Run)]
    return [Run(**row) for row in table[names].to_dict("records")]


def train_and_test(
    run: Run, images: Path, labels: Path, device_name: str, threads: int
) -> tuple[dict[str, object], list[dict[str, object]]]:
    """Train one adapter and measure it on crops it has not seen.

    Returns
    -------
    facts : dict
        The run, means of its metrics, sizes, seconds and memory.
    crops : list of dict
        The run and the metrics of each crop.
    """
    from hyps_bids.segmentation.devices import choose_device, prepare_process

    prepare_process(threads)
    import torch

    device = torch.device(choose_device(device_name))

    from hyps_bids.adaptation.crops import load_crops
    from hyps_bids.adaptation.fit import fit_adapter
    from hyps_bids.networks.adapters.network import adapter_state
    from hyps_bids.networks.checkpoints import load_adapted

    training, testing = split(load_crops(images, labels), run)
    recipe = recipe_of(run)
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        fitted = fit_adapter(recipe, training, None, Path(folder), device)
        seconds = time.perf_counter() - began
        model, _ = load_adapted(fitted.path, recipe.base)
    memory = (
        torch.cuda.max_memory_allocated(device) / 2**20
        if device.type == "cuda"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    )
    size = sum(tensor.numel() for tensor in adapter_state(model).values()) * 2 / 1e6
    rows = measure(model.to(device), testing.to(device))
    means = {name: float(np.mean([row[name] for row in rows])) for name in METRICS}
    facts = asdict(run) | {
        **{name: round(value, 4) for name, value in means.items()},
        "dice_parts": round((means["dice_anterior"] + means["dice_posterior"]) / 2, 4),
        "adapter_parameters": fitted.parameters["adapters"],
        "trained_parameters": fitted.parameters["trainable"],
        "total_parameters": fitted.parameters["total"],
        "file_mb": round(size, 2),
        "seconds": round(seconds, 1),
        "memory_mib": round(memory),
        "device": device.type,
        "threads": threads,
    }
    return facts, [asdict(run) | row for row in rows]


def split(crops: Crops, run: Run) -> tuple[Crops, Crops]:
    """Choose the crops to train on and those to measure on."""
    from hyps_bids.labels.msd import msd_subject, split_every_fifth

    kept, test = split_every_fifth([msd_subject(name) for name in crops.ids])
    validation = set(sorted(kept)[7::13])
    names = [name for name in crops.ids if msd_subject(name) in kept - validation]
    chosen = set(names[: run.crops] if run.crops else names)
    held_out = {"test": test, "validation": validation}[run.split]
    return crops.select(chosen.__contains__), crops.select(lambda n: msd_subject(n) in held_out)


def recipe_of(run: Run) -> Recipe:
    """Turn a run into the recipe of its fit."""
    from hyps_bids.adaptation.fit import Recipe
    from hyps_bids.networks.adapters.config import AdapterConfig
    from hyps_bids.networks.cards import BASE, shipped_weights
    from hyps_bids.training.loop import LoopSettings

    trainable = tuple(run.trainable.split())
    config = AdapterConfig(run.method, run.rank, run.bottleneck, trainable=trainable)
    loop = LoopSettings(
        steps=run.steps,
        learning_rate=run.learning_rate,
        head_learning_rate=1e-2,
        warmup=run.steps // 10,
        ema=0.98,
        evaluate_every=run.steps,
        checkpoint_every=run.steps,
        seed=run.seed,
    )
    return Recipe(shipped_weights(BASE), CLASSES, config, loop, batch_size=run.batch_size)


def measure(model: object, crops: object) -> list[dict[str, object]]:
    """Dice of both parts and the whole, and HD95 (mm) of the whole, of each crop."""
    import torch

    from hyps_bids.adaptation.crops import plain_batch
    from hyps_bids.adaptation.fit import predict_classes
    from hyps_bids.imaging.agreement import agreement, dice

    rows = []
    for i, name in enumerate(crops.ids):
        inputs, targets = plain_batch(crops, slice(i, i + 1))
        with torch.inference_mode():
            predicted = predict_classes(model(inputs))[0]
        target = targets[0, 0].cpu().numpy()
        whole = agreement(predicted > 0, target > 0, (1, 1, 1))
        rows.append(
            {
                "id": name,
                "dice_anterior": round(dice(predicted == 1, target == 1), 5),
                "dice_posterior": round(dice(predicted == 2, target == 2), 5),
                "dice_whole": round(whole["dice"], 5),
                "hd95_whole": round(whole["hd95_mm"], 4),
            }
        )
    return rows


def report(results: Path) -> None:
    """Write the tables, the paired tests and the chart of Dice against N."""
    runs = pd.read_csv(results / "runs.tsv", sep="\t")
    crops = pd.read_csv(results / "crops.tsv", sep="\t")
    test, tuning = runs[runs["split"] == "test"], runs[runs["split"] == "validation"]
    usual = _usual(test)
    sections = ["# Adapter methods on MSD Task04", __doc__.split("\n\n")[-1].strip()]
    for (count, steps), group in test[usual].groupby(["crops", "steps"]):
        title = f"## {count or 'All'} labeled crops, {steps} steps"
        sections.append(f"{title}\n\n{_method_table(group, crops)}")
    if len(test[~usual]):
        settings = ["rank", "bottleneck", "trainable"]
        rows = test[test["method"] == "hyps"].groupby(["crops", *settings]).agg(**_MEANS)
        sections.append("## Settings of HyPS\n\n" + _markdown(rows.reset_index()))
    rates = tuning[_usual(tuning)].groupby(["method", "learning_rate"])
    rates = rates[["dice_parts", "dice_whole"]].mean().reset_index()
    sections.append(
        "## Learning rates\n\nDice on the validation subjects after "
        f"{tuning['steps'].max()} steps; the rate with the best mean of the parts is taken.\n\n"
        + _markdown(rates)
    )
    others = tuning[~_usual(tuning)]
    if len(others):
        names = ["method", "learning_rate", "rank", "bottleneck", "trainable", "dice_parts"]
        names += ["dice_whole", "adapter_parameters", "trained_parameters", "file_mb"]
        sections.append("## Other settings, on validation\n\n" + _markdown(others[names]))
    (results / "README.md").write_text("\n\n".join(sections) + "\n")
    if test["crops"].nunique() > 1:
        _chart(test[usual]).savefig(results / "dice_against_crops.png", dpi=120)


_MEANS = {
    "seeds": ("seed", "nunique"),
    "anterior": ("dice_anterior", "mean"),
    "posterior": ("dice_posterior", "mean"),
    "whole": ("dice_whole", "mean"),
    "SD of whole": ("dice_whole", "std"),
    "HD95 mm": ("hd95_whole", "mean"),
    "adapter parameters": ("adapter_parameters", "first"),
    "trained": ("trained_parameters", "first"),
    "file MB": ("file_mb", "first"),
    "seconds": ("seconds", "median"),
    "memory MiB": ("memory_mib", "median"),
}


def _method_table(group: pd.DataFrame, crops: pd.DataFrame) -> str:
    keys = ["crops", "steps", "batch_size", "rank", "bottleneck", "trainable", "split"]
    crops = crops.merge(group[keys].drop_duplicates(), on=keys)
    table = group.groupby("method").agg(learning_rate=("learning_rate", "first"), **_MEANS)
    compared = {name: _against_hyps(crops, name) for name in table.index if name != "hyps"}
    table["hyps − it (SE)"] = {k: f"{d:+.4f} ({e:.4f})" for k, (d, e, _) in compared.items()}
    table["p"] = {name: p for name, (_, _, p) in compared.items()}
    first = group.iloc[0]
    note = (
        f"{first['batch_size']} crop a step, {first['device']}, {first['threads']} thread. "
        "Differences are of whole Dice, by subject over the seeds that both have; "
        "p of the Wilcoxon signed-rank test over subjects."
    )
    return note + "\n\n" + _markdown(table.sort_values("whole", ascending=False).reset_index())


def _against_hyps(crops: pd.DataFrame, method: str) -> tuple[float, float, float]:
    """Difference of hyps and a method by subject: mean, standard error, p."""
    from scipy.stats import wilcoxon

    from hyps_bids.labels.msd import msd_subject

    pair = crops[crops["method"].isin(["hyps", method])]
    seeds = pair.groupby("seed")["method"].nunique()
    pair = pair[pair["seed"].isin(seeds.index[seeds == 2])]
    pair = pair.assign(subject=pair["id"].map(msd_subject))
    wide = pair.groupby(["subject", "method"])["dice_whole"].mean().unstack()
    difference = wide["hyps"] - wide[method]
    return float(difference.mean()), float(difference.sem()), float(wilcoxon(difference).pvalue)


def _markdown(table: pd.DataFrame) -> str:
    def text(value: object) -> str:
        if isinstance(value, float):
            whole = value.is_integer() and abs(value) >= 1
            return "" if np.isnan(value) else f"{value:,.0f}" if whole else f"{value:.4g}"
        return f"{value:,}" if isinstance(value, int | np.integer) else str(value)

    head = [str(name).replace("_", " ") for name in table.columns]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    rows = table.itertuples(index=False)
    return "\n".join(lines + ["| " + " | ".join(map(text, row)) + " |" for row in rows])


def _chart(test: pd.DataFrame) -> object:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for method, group in test.groupby("method"):
        whole = group.groupby("crops")["dice_whole"].agg(["mean", "std"])
        if len(whole) > 1:
            axes.errorbar(
                whole.index, whole["mean"], whole["std"].fillna(0), label=method, capsize=2
            )
    axes.set(xscale="log", xlabel="labeled crops", ylabel="Dice of the whole hippocampus")
    axes.legend()
    return figure


if __name__ == "__main__":
    main()
