"""``hyps-tools adapt``: train an adapter on labeled crops."""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from hyps_bids.errors import BadData, MissingInput, UsageError
from hyps_bids.tools.options import (
    Parser,
    add_parser,
    add_training_options,
    loop_settings,
    make_folder,
    names,
    positive,
    prepare,
)

if TYPE_CHECKING:
    from hyps_bids.adaptation.crops import Crops

__all__ = ["add_command", "choose_crops"]

#: a crop's subject, by name of the crop
SubjectOf = Callable[[str], int | str]


def add_command(commands: argparse._SubParsersAction[Parser]) -> None:
    """Add the command to the parser."""
    parser = add_parser(commands, "adapt", _adapt, "Train an adapter on labeled crops.")
    parser.add_argument("images", type=Path, metavar="IMAGES", help="folder of left-oriented crops")
    parser.add_argument("labels", type=Path, metavar="LABELS", help="folder of their label images")
    parser.add_argument("output", type=Path, metavar="OUT", help="folder; continued if it exists")
    parser.add_argument(
        "--classes", type=names, required=True, help="names of labels 1, 2, …, with commas"
    )
    parser.add_argument(
        "--start-from",
        type=names,
        default=["hippocampus"],
        help="class of the base that all classes start from, or one for each, with commas; "
        "'none' for a base without such a class",
    )
    parser.add_argument("--base", type=Path, help="pre-trained weights; default: the shipped ones")
    parser.add_argument(
        "--from", dest="start", type=Path, metavar="FILE", help="adapter to go on from"
    )
    parser.add_argument(
        "--augmentation", type=float, default=1.0, help="strength, 0 to 1; weaker at the end helps"
    )
    group = parser.add_argument_group("adapter")
    group.add_argument("--method", default="hyps", help="name of the adapter method")
    group.add_argument("--rank", type=positive, default=8, help="of low-rank parts")
    group.add_argument("--bottleneck", type=positive, default=8, help="width of bottleneck parts")
    group.add_argument("--scale", type=float, default=1.0, help="factor of bottleneck parts")
    group = parser.add_argument_group("crops")
    group.add_argument(
        "--subjects",
        metavar="msd|TSV",
        help="msd: MSD Task04's two crops a subject and its fixed test set, left out; or a table "
        "with the columns crop and subject; default: each crop is a subject",
    )
    group.add_argument("--crops", type=positive, metavar="N", help="train on the first N only")
    group.add_argument(
        "--validation",
        type=float,
        default=10,
        help="fraction of the subjects, or N ≥ 2 for every Nth, to validate on",
    )
    add_training_options(parser, steps=2000, learning_rate=1e-3)


def _adapt(args: argparse.Namespace) -> int:
    make_folder(args.output)
    device = prepare(args)
    from hyps_bids.adaptation.crops import load_crops
    from hyps_bids.adaptation.fit import adapt
    from hyps_bids.networks.adapters import AdapterConfig
    from hyps_bids.networks.checkpoints import BASE, read_card, shipped_weights
    from hyps_bids.training.cards import hardware, write_model_card

    base = args.base or shipped_weights(BASE)
    labels = _starting_points(args.classes, args.start_from, read_card(base)["labels"])
    try:
        config = AdapterConfig(args.method, args.rank, args.bottleneck, args.scale)
    except ValueError as error:
        raise UsageError(str(error)) from error
    crops = load_crops(args.images, args.labels)
    highest = int(crops.labels.max())
    if highest > len(labels):
        raise UsageError(f"--classes names {len(labels)} labels, the crops have up to {highest}")
    training, validation = choose_crops(
        crops, _subject_of(args.subjects), args.subjects == "msd", args.crops, args.validation
    )
    if not 0 <= args.augmentation <= 1:
        raise UsageError("--augmentation must lie between 0 and 1")
    options = {} if args.batch_size is None else {"batch_size": args.batch_size}
    path = adapt(
        training, validation, labels, base, config, loop_settings(args), args.output, device,
        augmentation=args.augmentation, start=args.start, **options,
    )  # fmt: skip
    if args.fp16:
        _halve(path)
    write_model_card(
        path,
        title=f"Adapter: {', '.join(labels)}",
        card=read_card(path),
        data=f"{len(training)} labeled crops; {len(validation)} of other subjects to validate.",
        license="that of the labeled crops and of the base, whichever is stricter",
        hardware=hardware(device),
        notes="Research use. Works with the base named above only.",
    )
    print(path)
    return 0


def choose_crops(
    crops: Crops,
    subject_of: SubjectOf,
    fixed_test: bool,
    count: int | None,
    validation: float,
) -> tuple[Crops, Crops]:
    """Split crops by subject into those to train and those to validate on.

    Parameters
    ----------
    crops : Crops
        All crops, in order of name.
    subject_of : callable
        Subject of a crop.
    fixed_test : bool
        Leave out every fifth subject, the test set of every reported figure.
    count : int or None
        Train on the first so many crops. Validation is then on other subjects.
    validation : float
        Fraction of the subjects if below 1, else every so many-th subject, to validate on.

    Returns
    -------
    training, validation : Crops
        No subject is in both, none of the test set in either.

    Raises
    ------
    UsageError
        If either would be empty.
    """
    from hyps_bids.labels.msd import split_every_fifth

    order = list(dict.fromkeys(sorted(subject_of(name) for name in crops.ids)))
    if fixed_test:
        kept, _ = split_every_fifth([int(subject) for subject in order])
        order = [subject for subject in order if subject in kept]
    names = [name for subject in order for name in crops.ids if subject_of(name) == subject]
    first = set(names[:count]) if count else set()
    free = [s for s in order if s not in {subject_of(name) for name in first}]
    every = round(1 / validation) if 0 < validation < 1 else round(validation)
    if every < 1 or (count and count >= len(names)):
        raise UsageError("--validation and --crops leave no crop to validate on")
    held_out = set(free[every - 1 :: every] or free[-1:])
    training = crops.select(
        lambda name: name in first if count else subject_of(name) in set(order) - held_out
    )
    validating = crops.select(lambda name: subject_of(name) in held_out)
    if not len(training) or not len(validating):
        raise UsageError("--validation and --crops leave no crop to train or to validate on")
    return training, validating


def _subject_of(option: str | None) -> SubjectOf:
    """Make the function that --subjects stands for."""
    if option is None:
        return lambda name: name
    if option == "msd":
        from hyps_bids.labels.msd import msd_subject

        return msd_subject
    path = Path(option)
    if not path.is_file():
        raise MissingInput(f"--subjects {option}: no such table")
    with open(path, newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    if not rows or not {"crop", "subject"} <= rows[0].keys():
        raise BadData(f"{path}: a table with the columns crop and subject is needed")
    table = {row["crop"]: row["subject"] for row in rows}

    def subject_of(name: str) -> str:
        if name not in table:
            raise BadData(f"{path}: has no row for crop {name}")
        return table[name]

    return subject_of


def _starting_points(
    classes: list[str], start_from: list[str], base_labels: list[str]
) -> dict[str, list[str]]:
    """Map each class to the base's class it starts from.

    Examples
    --------
    >>> _starting_points(["anterior", "posterior"], ["hippocampus"], ["background", "hippocampus"])
    {'anterior': ['hippocampus'], 'posterior': ['hippocampus']}
    """
    if start_from == ["none"]:
        return {name: [] for name in classes}
    unknown = [name for name in start_from if name not in base_labels]
    if unknown:
        raise UsageError(f"--start-from {', '.join(unknown)}: the base knows {base_labels}")
    if len(start_from) == 1:
        start_from = start_from * len(classes)
    if len(start_from) != len(classes) or len(set(classes)) != len(classes):
        raise UsageError("--classes must be distinct, --start-from one name or one for each")
    return {name: [source] for name, source in zip(classes, start_from, strict=True)}


def _halve(path: Path) -> None:
    """Store the tensors of a weights file in half precision."""
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    with safe_open(path, "pt") as weights:
        metadata = weights.metadata()
    partial = path.with_suffix(".partial")
    save_file({k: t.half() for k, t in load_file(path).items()}, partial, metadata=metadata)
    partial.replace(path)
