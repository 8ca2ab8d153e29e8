"""``hyps-tools import`` and ``import-base``: datasets and weights from elsewhere."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from hyps_bids.errors import MissingInput, UsageError
from hyps_bids.tools.options import Parser, add_parser, make_folder, positive

__all__ = ["add_command"]

_IMPORT_DETAILS = """\
Writes OUT, a BIDS dataset of the images, and OUT/derivatives/manual with a label image for each.
Then train an adapter on them:

  hyps-bids OUT RESULTS group --train-adapter NAME --labels OUT/derivatives/manual

presets (SOURCE is the folder of the download, at any depth)
  msd-task04  imagesTr/hippocampus_NNN.nii.gz, labelsTr/hippocampus_NNN.nii.gz. Crops of one
              hippocampus each: NNN = 2k-1 is the left, 2k the right one of subject k. Written as
              sub-k acq-left and acq-right, right ones un-mirrored by their affine. participants.tsv
              has the fixed test set (every fifth subject) in its column split.
  harp        ADNI_002_S_0295_NNNN_ACPC.nii with ADNI_002_S_0295_NNNN_L.nii and _R.nii (convert the
              MINC images first), or subN/subN_img.nii.gz with subN_mask.nii.gz. Five subjects
              whose labels do not match are left out: see --include-mismatched.
  lpba40      delineation space: SNN.delineation.skullstripped.img (or .nii.gz) with
              SNN.delineation.structure.label.img; 165 left, 166 right hippocampus.
  hfh         Train/HFH_NNN.img with HFH_NNN_Hipp_Labels.img; 1 left, 2 right.

tables
  For any other dataset, or a copy with other names, give a tab-separated table ending with .tsv:

    participant  session  image           label            label_map
    01           n/a      01/t1.nii.gz    01/left.nii.gz   mask:L
    01           n/a      01/t1.nii.gz    01/right.nii.gz  mask:R
    02           n/a      02/t1.nii.gz    02/seg.nii.gz    17:L,53:R,*:-

  Paths are relative to SOURCE. Lines of one participant and session are one image with several
  label images. More columns, if needed: acquisition; split (any word, goes to participants.tsv);
  crop (L or R: a crop around one hippocampus that is stored in left orientation, its affine
  without meaning). --dry-run writes the table of a preset, to be edited. A file ending with .toml
  is a preset of your own, written as presets.toml in the package.

label maps
  VALUE:HEMISPHERE[:PART] with commas between. VALUE: a whole number, 'mask' (the higher of the
  two values of a mask) or '*' (all others). HEMISPHERE: L, R, LR (both; told apart by where they
  lie) or - (not hippocampus). PART: hippocampus if not given; anterior, posterior, … Values that
  the map does not name are an error, unless '*:-' is in it.

orientation
  NIfTI files say how their axes lie. Analyze files do not, nor do NIfTI files with sform_code and
  qform_code 0: they are taken as LAS (the first axis points to the left), as nibabel and SPM do,
  with a warning. Labels of which the left would lie right of the right are refused: then give
  --orientation RAS, for example, or correct the label map. Up and down, front and back cannot be
  checked in this way: look at some images.

exit code
  0 all imported; 1 some could not be, the others are there; others as in the README.
  Running it again adds what is missing. A dataset of another kind is never overwritten.
"""

_BASE_DETAILS = """\
For SwinUNETR version 1 of MONAI with its default depths, heads and window, such as the BraTS21
models (4 inputs, 3 outputs, feature_size 48). Names may have a prefix such as 'module.', weights
may lie under 'state_dict'. No code in the file is run.

  hyps-tools import-base fold1_f48_ep300_4gpu_dice1_9059.pt brats21.safetensors
  hyps-tools adapt IMAGES LABELS OUT --base brats21.safetensors --classes NAMES --start-from none
  hyps-bids BIDS_DIR RESULTS participant --adapter OUT/adapter.safetensors \\
      --base-model brats21.safetensors

channels
  Ours is a network of one z-scored T1w image. Of kernels with several input channels,
    sum    adds them: what the network computes if all channels show the same image. Responses
           stay about as large as in pre-training, since channels of one head are correlated
    mean   makes them 4 times smaller: too small beside the bias of the patch embedding
    N      takes channel N, from 0, the others being zero. MONAI's BraTS21 models have FLAIR, T1c,
           T1, T2, so T1 is 2; models of MSD Task01 have FLAIR, T1, T1c, T2, so T1 is 1

The head is not taken, its classes are not ours. What was taken, reduced, re-initialized and
ignored is printed and recorded in the file.
"""


def add_command(commands: argparse._SubParsersAction[Parser]) -> None:
    """Add both commands to the parser."""
    text = "Bring a labeled dataset into BIDS."
    parser = add_parser(commands, "import", _import, text, details=_IMPORT_DETAILS)
    parser.add_argument(
        "what",
        metavar="PRESET|TABLE",
        help="msd-task04, harp, lpba40, hfh, a table (.tsv) or a preset of your own (.toml)",
    )
    parser.add_argument("source", type=Path, metavar="SOURCE", help="folder of the dataset")
    parser.add_argument("output", type=Path, metavar="OUT", help="BIDS dataset to write")
    parser.add_argument(
        "--orientation",
        default="LAS",
        metavar="CODES",
        help="where the axes of images point to that do not say it",
    )
    parser.add_argument(
        "--label-map", metavar="MAP", help="replaces the label map of the preset or table"
    )
    parser.add_argument(
        "--include-mismatched",
        action="store_true",
        help="harp: keep the five subjects whose labels do not match, as they are",
    )
    parser.add_argument("--split", metavar="NAME", help="only this part, such as train")
    parser.add_argument("--first", type=positive, metavar="N", help="only the first N images")
    parser.add_argument("--name", help="of a table's dataset; default: the name of the table")
    parser.add_argument("--license", default="unknown: see the source", help="of a table's dataset")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the table of what would be imported"
    )

    text = "Turn a MONAI SwinUNETR checkpoint into a base to adapt."
    parser = add_parser(commands, "import-base", _import_base, text, details=_BASE_DETAILS)
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help=".pt or .safetensors")
    parser.add_argument("output", type=Path, metavar="OUT.safetensors", help="base to write")
    parser.add_argument(
        "--channels",
        default="sum",
        metavar="sum|mean|N",
        help="how the kernels of several input channels become those of one",
    )


def _import(args: argparse.Namespace) -> int:
    from dataclasses import replace

    from hyps_bids.labels.import_dataset import LABELS, import_rows
    from hyps_bids.labels.import_images import check_orientation
    from hyps_bids.labels.import_table import read_rows, rows_to_tsv
    from hyps_bids.labels.meanings import LabelMap
    from hyps_bids.labels.presets import Found, Preset, find_rows, load_presets, read_preset

    orientation = check_orientation(args.orientation)
    presets = load_presets()
    if args.what.endswith(".tsv"):
        table = Path(args.what)
        about = Preset(args.name or table.stem, args.license)
        found = Found(read_rows(table))
        if not args.source.is_dir():
            raise MissingInput(f"{args.source}: no such folder")
        if args.label_map:
            new = LabelMap.parse(args.label_map)
            found.rows[:] = [
                replace(row, labels=tuple((path, new) for path, _ in row.labels))
                for row in found.rows
            ]
    elif args.what in presets or args.what.endswith(".toml"):
        about = presets.get(args.what) or read_preset(Path(args.what))
        found = find_rows(
            about, args.source, label_map=args.label_map, keep_left_out=args.include_mismatched
        )
    else:
        raise UsageError(
            f"{args.what}: is none of {', '.join(sorted(presets))}, nor a .tsv or .toml file"
        )
    rows = [row for row in found.rows if args.split in (None, row.split)][: args.first]
    for message in found.left_out:
        print(f"hyps-tools: {message}", file=sys.stderr)
    if not rows and not found.problems:
        raise MissingInput(f"{args.source}: nothing to import with these options")
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


def _import_base(args: argparse.Namespace) -> int:
    from hyps_bids.networks.foreign import describe_import, import_swin_unetr

    make_folder(args.output.parent)
    card = import_swin_unetr(args.checkpoint, args.output, args.channels)
    print(describe_import(card))
    print(args.output)
    return 0
