"""``hyps-tools adapt``: train an adapter on a folder of labeled crops."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from hyps_bids.errors import BadData, MissingInput, UsageError
from hyps_bids.settings import expand_home
from hyps_bids.tools.options import (
    Parser,
    add_parser,
    add_training_options,
    loop_settings,
    names,
    positive,
    prepare,
    training_folder,
)


def add_command(commands: argparse._SubParsersAction[Parser]) -> None:
    """Add the command to the parser."""
    parser = add_parser(commands, "adapt", _adapt, "Train an adapter on labeled crops.")
    parser.add_argument("images", type=Path, metavar="IMAGES", help="folder of left-oriented crops")
    parser.add_argument("labels", type=Path, metavar="LABELS", help="folder of their label images")
    parser.add_argument(
        "output", type=Path, metavar="OUT", help="folder of results; a stopped run is continued"
    )
    parser.add_argument(
        "--classes", type=names, required=True, help="names of the labels 1, 2, …, with commas"
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
        "--from", dest="start", type=Path, metavar="FILE", help="adapter whose training continues"
    )
    parser.add_argument(
        "--augmentation",
        type=float,
        default=1.0,
        help="strength of the augmentation, 0 to 1; a weaker one helps at the end of training",
    )
    parser.add_argument(
        "--contrasts",
        action="store_true",
        help="also train on random contrasts that are made from the crops, for images other than "
        "T1w; needs a base with the classes of the shipped one",
    )
    group = parser.add_argument_group("adapter")
    group.add_argument("--method", default="hyps", help="name of the adapter method")
    group.add_argument("--rank", type=positive, default=8, help="rank of low-rank parts")
    group.add_argument("--bottleneck", type=positive, default=8, help="width of bottleneck parts")
    group.add_argument("--scale", type=float, default=1.0, help="factor of bottleneck parts")
    group = parser.add_argument_group("crops")
    group.add_argument(
        "--subjects",
        type=expand_home,
        metavar="msd|TSV",
        help="msd: the two crops of each subject in MSD Task04, whose fixed test set is left out; "
        "or a table with the columns crop and subject; default: each crop is a subject",
    )
    group.add_argument("--crops", type=positive, metavar="N", help="train on the first N only")
    group.add_argument(
        "--validation",
        type=float,
        help="fraction of the subjects to validate on, or N ≥ 2 for every Nth (default: 10; of MSD "
        "without --crops, the subjects that validate the shipped weights)",
    )
    add_training_options(parser, steps=2000, learning_rate=1e-3)


def _adapt(args: argparse.Namespace) -> int:
    training_folder(args.output, "adapter")
    device = prepare(args)
    from hyps_bids.adaptation.crops import load_crops
    from hyps_bids.adaptation.fit import Recipe, fit_adapter, starting_points
    from hyps_bids.adaptation.folds import split_crops
    from hyps_bids.networks.adapters.config import AdapterConfig
    from hyps_bids.networks.cards import BASE, read_card, shipped_weights
    from hyps_bids.training.cards import describe_parts, hardware, write_model_card
    from hyps_bids.training.contrasts import ContrastSettings
    from hyps_bids.training.loop import Session

    base = args.base or shipped_weights(BASE)
    start_from = [] if args.start_from == ["none"] else args.start_from
    try:
        config = AdapterConfig(args.method, args.rank, args.bottleneck, args.scale)
    except ValueError as error:
        raise UsageError(str(error), code="adapter-settings-invalid") from error
    options = {} if args.batch_size is None else {"batch_size": args.batch_size}
    recipe = Recipe(
        base,
        starting_points(args.classes, start_from, read_card(base)["labels"]),
        config,
        loop_settings(args),
        augmentation=args.augmentation,
        contrasts=ContrastSettings() if args.contrasts else None,
        start=args.start,
        half=args.fp16,
        **options,
    )
    crops = load_crops(args.images, args.labels)
    highest = int(crops.labels.max())
    if highest > len(recipe.labels):
        raise UsageError(
            f"--classes names {len(recipe.labels)} labels, but the crops have labels up to "
            f"{highest}",
            code="too-few-classes",
        )
    training, validation = split_crops(
        crops,
        _subject_of(args.subjects),
        fixed_test=args.subjects == "msd",
        count=args.crops,
        validation=args.validation,
    )
    session = Session(hardware(device), recipe.batch_size)
    fitted = fit_adapter(recipe, training, validation, args.output, device, session=session)
    write_model_card(
        fitted.path,
        title=f"Adapter: {', '.join(recipe.labels)}",
        card=read_card(fitted.path),
        data=f"{len(training)} labeled crops; {len(validation)} of other subjects to validate.",
        license="that of the labeled crops and of the base, whichever is stricter",
        hardware=describe_parts(fitted.parts),
        notes="Research use. Works with the base named above only.",
    )
    print(fitted.path)
    return 0


def _subject_of(option: str | None) -> Callable[[str], int | str]:
    """Make the function that --subjects stands for; it returns the subject of a crop."""
    if option is None:
        return lambda name: name
    if option == "msd":
        from hyps_bids.labels.msd import msd_subject

        return msd_subject
    from hyps_bids.outputs.reading import read_text_table

    path = Path(option)
    if not path.is_file():
        raise MissingInput(f"--subjects {option}: there is no such table", code="no-subjects-table")
    table = read_text_table(path)
    if table.empty or not {"crop", "subject"} <= set(table):
        raise BadData(
            f"{path}: a table with the columns crop and subject is needed",
            code="subjects-table-columns",
        )
    subjects = dict(zip(table["crop"], table["subject"], strict=True))

    def subject_of(name: str) -> str:
        if name not in subjects:
            raise BadData(f"{path}: the table has no row for crop {name}", code="crop-not-in-table")
        return subjects[name]

    return subject_of
