"""``hyps-tools import`` and ``import-base``: datasets and weights from elsewhere."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hyps_bids.errors import MissingInput, UsageError
from hyps_bids.settings import expand_home
from hyps_bids.tools.options import WEIGHTS_MARK, Parser, add_parser, make_folder, positive

if TYPE_CHECKING:
    from hyps_bids.labels.presets import Found, Preset


def add_command(commands: argparse._SubParsersAction[Parser]) -> None:
    """Add both commands to the parser."""
    text = "Bring a labeled dataset into BIDS."
    parser = add_parser(commands, "import", _import, text)
    parser.add_argument(
        "what",
        type=expand_home,
        metavar="PRESET|TABLE",
        help="msd-task04, harp, lpba40, hfh, a table (.tsv) or a preset of your own (.toml)",
    )
    parser.add_argument("source", type=Path, metavar="SOURCE", help="folder of the dataset")
    parser.add_argument("output", type=Path, metavar="OUT", help="BIDS dataset to write")
    parser.add_argument(
        "--orientation",
        default="LAS",
        metavar="CODES",
        help="where the axes point to in images that do not state it",
    )
    parser.add_argument(
        "--label-map",
        type=expand_home,
        metavar="MAP",
        help="replaces the label map of the preset or table: a line, aseg, whole, "
        "anteriorposterior or a TSV file",
    )
    parser.add_argument(
        "--include-mismatched",
        action="store_true",
        help="harp: keep the five subjects with labels that do not match, as they are",
    )
    parser.add_argument("--split", metavar="NAME", help="only this part, such as train")
    parser.add_argument("--first", type=positive, metavar="N", help="only the first N images")
    parser.add_argument(
        "--name", help="name of the dataset of a table; default: the name of the table"
    )
    parser.add_argument(
        "--license", default="unknown: see the source", help="license of the dataset of a table"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print the table of what would be imported"
    )

    text = "Turn a MONAI SwinUNETR checkpoint into a base to adapt."
    parser = add_parser(commands, "import-base", _import_base, text)
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help=".pt or .safetensors")
    parser.add_argument("output", type=Path, metavar="OUT.safetensors", help="base to write")
    parser.add_argument(
        "--channels",
        default="sum",
        metavar="sum|mean|N",
        help="how the kernels of several input channels become those of one",
    )


def _import(args: argparse.Namespace) -> int:
    from hyps_bids.labels.import_dataset import import_rows
    from hyps_bids.labels.import_descriptions import LABELS
    from hyps_bids.labels.import_images import check_orientation
    from hyps_bids.labels.import_table import rows_to_tsv

    orientation = check_orientation(args.orientation)
    about, found = _find(args)
    rows = [row for row in found.rows if args.split in (None, row.split)][: args.first]
    for message in found.left_out:
        print(f"hyps-tools: {message}", file=sys.stderr)
    if not rows and not found.problems:
        raise MissingInput(
            f"{args.source}: there is nothing to import with these options.",
            code="nothing-to-import",
        )
    if args.dry_run:
        print(rows_to_tsv(rows), end="")
        problems = tuple(found.problems)
    else:
        outcome = import_rows(rows, args.source, args.output, about, orientation=orientation)
        problems = (*found.problems, *outcome.problems)
        print(
            f"{args.output}: {outcome.written} images imported, {outcome.unchanged} were there, "
            f"{len(found.left_out)} left out, {len(problems)} problems"
        )
        if outcome.written or outcome.unchanged:
            print(f"labels: {args.output / LABELS}")
    for message in problems:
        print(f"hyps-tools: {message}", file=sys.stderr)
    return 1 if problems else 0


def _find(args: argparse.Namespace) -> tuple[Preset, Found]:
    """Find what to import, with a table or a preset."""
    from hyps_bids.labels.import_table import read_rows
    from hyps_bids.labels.meanings import parse_label_map
    from hyps_bids.labels.presets import Found, Preset, find_rows, load_presets, read_preset

    presets = load_presets()
    if args.what.endswith(".tsv"):
        table = Path(args.what)
        rows = read_rows(table)
        if not args.source.is_dir():
            raise MissingInput(f"{args.source}: there is no such folder.", code="folder-missing")
        if args.label_map:
            new = parse_label_map(args.label_map)
            rows = [replace(r, labels=tuple((path, new) for path, _ in r.labels)) for r in rows]
        return Preset(args.name or table.stem, args.license), Found(rows)
    if args.what in presets or args.what.endswith(".toml"):
        about = presets.get(args.what) or read_preset(Path(args.what))
        keep = args.include_mismatched
        return about, find_rows(about, args.source, label_map=args.label_map, keep_left_out=keep)
    raise UsageError(
        f"{args.what}: is none of {', '.join(sorted(presets))}, nor a .tsv or .toml file.",
        code="preset-unknown",
    )


def _import_base(args: argparse.Namespace) -> int:
    from hyps_bids.networks.monai_checkpoints import describe_import, import_swin_unetr
    from hyps_bids.outputs.ownership import refuse_foreign_file

    make_folder(args.output.parent)
    refuse_foreign_file(args.output, WEIGHTS_MARK)
    record = import_swin_unetr(args.checkpoint, args.output, args.channels)
    print(describe_import(record))
    print(args.output)
    return 0
