"""``hyps-tools``: everything around the BIDS App. One small function per subcommand.

Imports are lazy, so that ``--help`` and usage errors come at once.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from hyps_bids.errors import BadData, CannotCreateOutput, HypsError, MissingInput, UsageError

if TYPE_CHECKING:
    import torch
    from matplotlib.figure import Figure

    from hyps_bids.training.datasets import Crops
    from hyps_bids.training.loop import LoopSettings

__all__ = ["choose_crops", "main", "sample_figure"]

#: a crop's subject, by name of the crop
SubjectOf = Callable[[str], int | str]


def main(argv: list[str] | None = None) -> int:
    """Run one subcommand.

    Parameters
    ----------
    argv : list of str, optional
        Arguments without the program's name; those of the process if None.

    Returns
    -------
    int
        Exit code: 0, or that of a :class:`~hyps_bids.errors.HypsError`.
    """
    args = _parser().parse_args(argv)
    try:
        return args.run(args)
    except HypsError as error:
        print(f"hyps-tools: {error}", file=sys.stderr)
        return error.exit_code
    except FloatingPointError as error:
        print(f"hyps-tools: {error}", file=sys.stderr)
        return 1


class _Parser(argparse.ArgumentParser):
    """Ends with the exit code that BIDS Apps use for wrong usage."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(UsageError.exit_code, f"{self.prog}: {message}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="hyps-tools", description="Tools around the BIDS App hyps-bids.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for add in (_add_demo, _add_pretrain, _add_adapt, _add_synthesize, _add_import, _add_evaluate):
        add(commands)
    return parser


def _add(
    commands: argparse._SubParsersAction[_Parser],
    name: str,
    run: Callable[[argparse.Namespace], int],
    text: str,
) -> _Parser:
    """Add a subcommand."""
    formatter = argparse.ArgumentDefaultsHelpFormatter
    parser = commands.add_parser(name, help=text, description=text, formatter_class=formatter)
    parser.set_defaults(run=run)
    return parser


def _add_training_options(
    parser: argparse.ArgumentParser, *, steps: int, learning_rate: float
) -> None:
    group = parser.add_argument_group("training")
    group.add_argument("--steps", type=_positive, default=steps, help="optimiser steps in all")
    group.add_argument("--batch-size", type=_positive, help="default: fits the network")
    group.add_argument("--learning-rate", type=float, default=learning_rate, help="at the start")
    group.add_argument("--seed", type=int, default=0, help="of weights and images")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    group.add_argument("--threads", type=_positive, help="CPU threads; default: torch's choice")
    group.add_argument("--fp16", action="store_true", help="write the weights in half precision")


# demo


def _add_demo(commands: argparse._SubParsersAction[_Parser]) -> None:
    parser = _add(commands, "demo", _demo, "Run the app on the small dataset shipped with it.")
    parser.add_argument("output", type=Path, metavar="OUT", help="folder to write")


def _demo(args: argparse.Namespace) -> int:
    from hyps_bids.demo import run_demo

    return run_demo(args.output)


# pretrain


def _add_pretrain(commands: argparse._SubParsersAction[_Parser]) -> None:
    parser = _add(commands, "pretrain", _pretrain, "Train a network on synthetic images.")
    parser.add_argument("network", choices=("localizer", "base"), help="which network")
    parser.add_argument("labelmaps", type=Path, metavar="LABELMAPS", help="folder of label maps")
    parser.add_argument("output", type=Path, metavar="OUT", help="folder; continued if it exists")
    parser.add_argument("--from", dest="start", type=Path, metavar="FILE", help="weights to start")
    _add_training_options(parser, steps=4000, learning_rate=1e-3)


def _pretrain(args: argparse.Namespace) -> int:
    _make_folder(args.output)
    device = _prepare(args)
    from hyps_bids.training.pretrain import pretrain_base, pretrain_localizer

    train = {"localizer": pretrain_localizer, "base": pretrain_base}[args.network]
    options = {} if args.batch_size is None else {"batch_size": args.batch_size}
    path = train(
        args.labelmaps,
        args.output,
        _loop_settings(args),
        device,
        args.start,
        half=args.fp16,
        **options,
    )
    print(path)
    return 0


# adapt


def _add_adapt(commands: argparse._SubParsersAction[_Parser]) -> None:
    parser = _add(commands, "adapt", _adapt, "Train an adapter on labelled crops.")
    parser.add_argument("images", type=Path, metavar="IMAGES", help="folder of left-oriented crops")
    parser.add_argument("labels", type=Path, metavar="LABELS", help="folder of their label images")
    parser.add_argument("output", type=Path, metavar="OUT", help="folder; continued if it exists")
    parser.add_argument(
        "--classes", type=_names, required=True, help="names of labels 1, 2, …, with commas"
    )
    parser.add_argument(
        "--start-from",
        type=_names,
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
    group.add_argument("--rank", type=_positive, default=8, help="of low-rank parts")
    group.add_argument("--bottleneck", type=_positive, default=8, help="width of bottleneck parts")
    group.add_argument("--scale", type=float, default=1.0, help="factor of bottleneck parts")
    group = parser.add_argument_group("crops")
    group.add_argument(
        "--subjects",
        metavar="msd|TSV",
        help="msd: MSD Task04's two crops a subject and its fixed test set, left out; or a table "
        "with the columns crop and subject; default: each crop is a subject",
    )
    group.add_argument("--crops", type=_positive, metavar="N", help="train on the first N only")
    group.add_argument(
        "--validation",
        type=float,
        default=10,
        help="fraction of the subjects, or N ≥ 2 for every Nth, to validate on",
    )
    _add_training_options(parser, steps=2000, learning_rate=1e-3)


def _adapt(args: argparse.Namespace) -> int:
    _make_folder(args.output)
    device = _prepare(args)
    from hyps_bids.networks.adapters import AdapterConfig
    from hyps_bids.networks.checkpoints import BASE, read_card, shipped_weights
    from hyps_bids.training.adapt import adapt
    from hyps_bids.training.cards import write_model_card
    from hyps_bids.training.datasets import load_crops
    from hyps_bids.training.pretrain import hardware

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
        training, validation, labels, base, config, _loop_settings(args), args.output, device,
        augmentation=args.augmentation, start=args.start, **options,
    )  # fmt: skip
    if args.fp16:
        _halve(path)
    write_model_card(
        path,
        title=f"Adapter: {', '.join(labels)}",
        card=read_card(path),
        data=f"{len(training)} labelled crops; {len(validation)} of other subjects to validate.",
        license="that of the labelled crops and of the base, whichever is stricter",
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
    from hyps_bids.training.datasets import split_every_fifth

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
        from hyps_bids.training.datasets import msd_subject

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


# synthesize


def _add_synthesize(commands: argparse._SubParsersAction[_Parser]) -> None:
    parser = _add(commands, "synthesize", _synthesize, "Draw synthetic training images.")
    parser.add_argument("labelmaps", type=Path, metavar="LABELMAPS", help="folder of label maps")
    parser.add_argument("output", type=Path, metavar="OUT.png", help="picture to write")
    parser.add_argument("--kind", choices=("head", "box"), default="head", help="what to draw")
    parser.add_argument("-n", type=_positive, default=8, help="number of samples")
    parser.add_argument("--seed", type=int, default=0, help="of the samples")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--threads", type=_positive, help="CPU threads; default: torch's choice")


def _synthesize(args: argparse.Namespace) -> int:
    device = _prepare(args)
    import torch

    from hyps_bids.training import synthesis

    maps = synthesis.load_labelmaps(args.labelmaps).to(device)
    generator = torch.Generator(device).manual_seed(args.seed)
    if args.kind == "head":
        images, targets = synthesis.head_batch(maps, synthesis.HEAD, args.n, generator)
        shown, limits = targets >= 2, (0.0, 1.0)
    else:
        images, targets = synthesis.box_batch(maps, synthesis.BOX, args.n, generator)
        shown, limits = targets == synthesis.BASE_CLASSES.index("hippocampus"), (-2.5, 2.5)
    figure = sample_figure(images.cpu(), shown.cpu(), limits)
    try:
        figure.savefig(args.output, dpi=80)
    except (OSError, ValueError) as error:
        raise CannotCreateOutput(f"{args.output}: cannot be written ({error})") from error
    return 0


def sample_figure(
    images: torch.Tensor, outlined: torch.Tensor, limits: tuple[float, float]
) -> Figure:
    """Draw sagittal, coronal and axial slices through the outlined part of each sample.

    Parameters
    ----------
    images : torch.Tensor
        Shape ``(n, 1, x, y, z)``, RAS axes.
    outlined : torch.Tensor
        Boolean, same shape.
    limits : tuple of float
        Intensities of black and white.

    Returns
    -------
    matplotlib.figure.Figure
        One column for each sample.
    """
    from matplotlib.figure import Figure

    n = len(images)
    figure = Figure(figsize=(1.6 * n, 4.8), facecolor="black", layout="constrained")
    axes = figure.subplots(3, n, squeeze=False)
    for i in range(n):
        image, mask = images[i, 0], outlined[i, 0]
        hit = mask.nonzero().float()
        centre = hit.mean(dim=0) if len(hit) else [side // 2 for side in image.shape]
        for axis in range(3):
            at = int(centre[axis])
            ax = axes[axis, i]
            picture, outline = image.select(axis, at).T, mask.select(axis, at).T.float()
            ax.imshow(picture, origin="lower", cmap="gray", vmin=limits[0], vmax=limits[1])
            if outline.any():
                ax.contour(outline, [0.5], colors="tab:red", linewidths=0.7)
            ax.set_axis_off()
    return figure


# import


def _add_import(commands: argparse._SubParsersAction[_Parser]) -> None:
    parser = _add(commands, "import", _import, "Convert a MONAI SwinUNETR checkpoint to a base.")
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help=".pt or .safetensors")
    parser.add_argument("output", type=Path, metavar="OUT.safetensors", help="base to write")


def _import(args: argparse.Namespace) -> int:
    from hyps_bids.networks.foreign import import_swin_unetr

    _make_folder(args.output.parent)
    import_swin_unetr(args.checkpoint, args.output)
    print(args.output)
    return 0


# evaluate


def _add_evaluate(commands: argparse._SubParsersAction[_Parser]) -> None:
    parser = _add(commands, "evaluate", _evaluate, "Measure weights on labelled or real images.")
    what = parser.add_subparsers(title="what", required=True, metavar="WHAT", dest="what")
    crops = what.add_parser("crops", help="Dice on the fixed test split of MSD Task04")
    crops.add_argument("images", type=Path, metavar="IMAGES")
    crops.add_argument("labels", type=Path, metavar="LABELS")
    images = what.add_parser("images", help="whole images against references, end to end")
    images.add_argument("image", type=Path, help="a T1w image, or a folder of *_T1w and *_dseg")
    images.add_argument("reference", type=Path, nargs="?", help="label image of a single image")
    images.add_argument(
        "--values", type=int, nargs=2, default=(1, 2), metavar=("LEFT", "RIGHT"), help="labels"
    )
    retest = what.add_parser("retest", help="agreement under shifts and rotations")
    retest.add_argument("images", type=Path, nargs="+")
    retest.add_argument("--moves", type=_positive, default=4, help="per image")
    orientation = what.add_parser("orientation", help="all 48 axis orders and flips of a head")
    orientation.add_argument("image", type=Path)
    speed = what.add_parser("speed", help="seconds of each step, without start and reading")
    speed.add_argument("images", type=Path, nargs="+")
    for sub in (crops, images, retest, orientation, speed):
        sub.add_argument("--output", type=Path, metavar="TSV", help="table with all rows")
        sub.add_argument("--adapter", type=Path, help="default: the shipped one")
        sub.add_argument("--base", type=Path, help="default: the shipped one")
        sub.add_argument("--localizer", type=Path, help="default: the shipped one")
        sub.add_argument("--n4", action="store_true", help="correct the bias field first")
        sub.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
        sub.add_argument("--threads", type=_positive, help="CPU threads; default: torch's choice")


def _evaluate(args: argparse.Namespace) -> int:
    device = _prepare(args)
    import tempfile

    from hyps_bids import evaluate
    from hyps_bids.networks.checkpoints import ADAPTER, BASE, LOCALIZER, shipped_weights

    pipeline = evaluate.Pipeline(
        localizer=args.localizer or shipped_weights(LOCALIZER),
        base=args.base or shipped_weights(BASE),
        adapter=args.adapter or shipped_weights(ADAPTER),
        device=device,
        n4=args.n4,
    )
    if args.what == "crops":
        table = evaluate.evaluate_crops(pipeline, args.images, args.labels)
    elif args.what == "images":
        pairs = [(args.image, args.reference)] if args.reference else evaluate.pairs_in(args.image)
        table = evaluate.evaluate_images(pipeline, pairs, tuple(args.values))
    elif args.what == "retest":
        table = evaluate.evaluate_retest(pipeline, args.images, moves=args.moves)
    elif args.what == "orientation":
        with tempfile.TemporaryDirectory() as folder:
            table = evaluate.evaluate_orientation(pipeline, args.image, Path(folder))
    else:
        table = evaluate.evaluate_speed(pipeline, args.images)
    evaluate.report(table, args.output)
    return 0


# what subcommands share


def _prepare(args: argparse.Namespace) -> torch.device:
    """Set threads and memory up, and choose the device."""
    from hyps_bids.segmentation.devices import choose_device, prepare_process

    prepare_process(args.threads)
    return choose_device(args.device)


def _loop_settings(args: argparse.Namespace) -> LoopSettings:
    from hyps_bids.training.loop import LoopSettings

    return LoopSettings(steps=args.steps, learning_rate=args.learning_rate, seed=args.seed)


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CannotCreateOutput(f"{path}: cannot be made ({error})") from error


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise argparse.ArgumentTypeError(f"{text!r} has an empty name")
    return names


if __name__ == "__main__":
    sys.exit(main())
