"""Adapt to another protocol with few labeled heads, and compare with the shipped adapter.

    python benchmarks/protocol.py FOLDER RESULTS

FOLDER holds ``X_T1w.nii.gz``, ``X_dseg.nii.gz`` (1 left, 2 right hippocampus) and ``scans.tsv``
with the columns id and subject; it is laid out as a BIDS dataset in a temporary folder. Its
subjects, in order, are dealt into four groups. Rotation j trains on the groups j, j + 1, … and
tests on all others, end to end on whole heads. For evaluation only: no weights are kept.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    import torch

    from hyps_bids.adaptation.crops import Crops

GROUPS = 4
LABELS = {"hippocampus": ["hippocampus"]}


def main() -> None:
    """Parse the command line, do the runs that are missing, and write the summary."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("results", type=Path)
    parser.add_argument("--groups", nargs="+", type=int, default=[3, 2, 1], help="to train on")
    parser.add_argument("--rotations", type=int, default=GROUPS)
    parser.add_argument("--method", default="hyps")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        lay_out(args.folder, Path(folder))
        evaluate(args, Path(folder))
    summarize(args.results)


def lay_out(folder: Path, bids: Path) -> None:
    """Make a BIDS dataset with manual labels of the files, by links; rescans become runs."""
    scans = pd.read_csv(folder / "scans.tsv", sep="\t", dtype="str")
    for root, kind in ((bids, "raw"), (bids / "derivatives" / "manual", "derivative")):
        root.mkdir(parents=True, exist_ok=True)
        content = {"Name": "labeled heads", "BIDSVersion": "1.10.0", "DatasetType": kind}
        content |= {"GeneratedBy": [{"Name": "manual"}]} if kind == "derivative" else {}
        (root / "dataset_description.json").write_text(json.dumps(content))
    for subject, group in scans.groupby("subject"):
        for run, name in enumerate(group["id"], start=1):
            stem = f"sub-{subject}" + (f"_run-{run}" if len(group) > 1 else "")
            for root, source, suffix in (
                (bids, "T1w", "T1w"),
                (bids / "derivatives" / "manual", "dseg", "seg-hippocampus_dseg"),
            ):
                target = root / f"sub-{subject}" / "anat" / f"{stem}_{suffix}.nii.gz"
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to((folder / f"{name}_{source}.nii.gz").resolve())


def evaluate(args: argparse.Namespace, bids: Path) -> None:
    """Assess the shipped adapter on all scans, and each new one on those it has not seen."""
    from hyps_bids.adaptation.assess import assess_scans
    from hyps_bids.adaptation.labeled_crops import labeled_crops
    from hyps_bids.labels.find import find_labeled
    from hyps_bids.networks.cards import ADAPTER, BASE, LOCALIZER, shipped_weights
    from hyps_bids.segmentation.devices import choose_device, prepare_process
    from hyps_bids.segmentation.pipeline import Pipeline
    from hyps_bids.settings import Settings

    prepare_process(args.threads)
    device = torch.device(choose_device(args.device))
    settings = Settings(
        bids_dir=bids,
        output_dir=bids / "out",
        analysis_level="group",
        labels=(bids / "derivatives" / "manual",),
        label_map="whole",
    )
    labeled = find_labeled(settings)
    localizer, base = shipped_weights(LOCALIZER), shipped_weights(BASE)
    crops = labeled_crops(labeled, list(LABELS), localizer, str(device))
    subjects = sorted({item.scan.subject for item in labeled})
    path = args.results / "protocol.tsv"
    args.results.mkdir(parents=True, exist_ok=True)
    for facts in runs_to_do(args, path):
        first, count = facts["rotation"], facts["groups"]
        training = {s for i in range(first, first + count) for s in subjects[i % GROUPS :: GROUPS]}
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            adapter = shipped_weights(ADAPTER)
            if training:
                adapter = train(args, crops.of_subjects(training), Path(folder), device)
            facts["seconds"] = round(time.perf_counter() - began)
            tested = [item for item in labeled if item.scan.subject not in training]
            pipeline = Pipeline(localizer, base, adapter, str(device))
            table = assess_scans(pipeline, tested, crops, list(LABELS))
        table = table.drop(columns=["session_id", "fold"]).assign(**facts)
        table.to_csv(
            path, sep="\t", index=False, mode="a", header=not path.is_file(), float_format="%.4f"
        )
        print(facts, f"Dice {table['dice'].mean():.4f}", flush=True)


def runs_to_do(args: argparse.Namespace, path: Path) -> list[dict[str, Any]]:
    """List the runs that the table does not have yet; the first is the shipped adapter's."""
    names = ["method", "groups", "rotation", "steps"]
    done = set()
    if path.is_file():
        done = {*pd.read_csv(path, sep="\t")[names].itertuples(index=False, name=None)}
    every = [("shipped", 0, 0, 0)]
    for groups in args.groups:
        every += [(args.method, groups, rotation, args.steps) for rotation in range(args.rotations)]
    return [dict(zip(names, run, strict=True)) for run in every if run not in done]


def train(args: argparse.Namespace, crops: Crops, folder: Path, device: torch.device) -> Path:
    """Train an adapter on crops and return its weights."""
    from hyps_bids.adaptation.fit import Recipe, fit_adapter
    from hyps_bids.networks.adapters.config import AdapterConfig
    from hyps_bids.networks.cards import BASE, shipped_weights
    from hyps_bids.training.loop import LoopSettings

    loop = LoopSettings(
        steps=args.steps,
        learning_rate=args.learning_rate,
        head_learning_rate=1e-2,
        warmup=args.steps // 10,
        ema=0.98,
        checkpoint_every=args.steps,
    )
    config = AdapterConfig(args.method)
    recipe = Recipe(shipped_weights(BASE), LABELS, config, loop, batch_size=args.batch_size)
    return fit_adapter(recipe, crops, None, folder, device).path


def summarize(results: Path) -> None:
    """Write protocol.md: Dice for each number of training subjects, and the gain."""
    table = pd.read_csv(results / "protocol.tsv", sep="\t")
    shipped = table[table["method"] == "shipped"].set_index(["scan", "hemi"])
    lines = [
        "# Adapting to a protocol",
        "| method | training subjects | steps | rotations | Dice | minimum | HD95 mm "
        "| gain over shipped | volume ratio | r |",
        "|" + "---|" * 10,
    ]
    for (method, groups, steps), rows in table.groupby(["method", "groups", "steps"]):
        before = shipped.loc[list(zip(rows["scan"], rows["hemi"], strict=True)), "dice"]
        gain = rows["dice"].to_numpy() - before.to_numpy()
        ratio = (rows["volume_mm3"] / rows["reference_mm3"]).mean()
        r = rows["volume_mm3"].corr(rows["reference_mm3"])
        lines.append(
            f"| {method} | {groups * 3 or ''} | {steps or ''} | {rows['rotation'].nunique()} "
            f"| {rows['dice'].mean():.4f} | {rows['dice'].min():.3f} "
            f"| {rows['hd95_mm'].mean():.2f} | "
            f"{gain.mean():+.4f} | {ratio:.3f} | {r:.3f} |"
        )
    text = "\n".join(lines[1:]) + "\n"
    (results / "protocol.md").write_text(f"{lines[0]}\n\n{text}")
    print(text)


if __name__ == "__main__":
    main()
