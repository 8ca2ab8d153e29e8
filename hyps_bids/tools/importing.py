"""``hyps-tools import`` and ``import-base``: datasets and weights from elsewhere."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hyps_bids.errors import MissingInput, UsageError
from hyps_bids.tools.options import Parser, add_parser, make_folder, positive

if TYPE_CHECKING:
    from hyps_bids.labels.presets import Found, Preset

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
              are left out because their labels do not match: see --include-mismatched.
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
  label images. Optional columns: acquisition; split (any word, goes to participants.tsv); crop (L
  or R: a crop around one hippocampus, stored in left orientation; its affine is ignored).
  --dry-run prints the table of a preset, to be edited. A file ending with .toml is a preset of
  your own, in the form of presets.toml in the package.

label maps
  VALUE:HEMISPHERE[:PART] with commas between. VALUE: a whole number, 'mask' (the higher of the
  two values of a mask) or '*' (all others). HEMISPHERE: L, R, LR (both; told apart by position)
  or - (not hippocampus). PART: hippocampus if not given; anterior, posterior, … Values that the
  map does not name are an error, unless '*:-' is in it. Instead of a line, give aseg, whole,
  anteriorposterior or a TSV file with the columns index, hemi and part.

orientation
  Analyze files do not state how their axes lie, nor do NIfTI files with sform_code and qform_code
  0. They are taken as LAS (the first axis points to the left), as in nibabel and SPM, with a
  warning. Labels with left and right swapped are refused: give another --orientation, or correct
  the label map. Look at some images: up and down, front and back cannot be checked in this way.

exit code
  0: all images were imported; 1: some could not be; others as in the README. Running the command
  again adds missing images. A dataset of another kind is never overwritten.
"""

_BASE_DETAILS = """\
Reads SwinUNETR version 1 of MONAI with its default depths, heads and window, such as the BraTS21
models (4 inputs, 3 outputs, feature_size 48). Names may have a prefix such as 'module.', and
weights may lie under 'state_dict'. No code in the file is run.

  hyps-tools import-base fold1_f48_ep300_4gpu_dice1_9059.pt brats21.safetensors
  hyps-tools adapt IMAGES LABELS OUT --base brats21.safetensors --classes NAMES --start-from none
  hyps-bids BIDS_DIR RESULTS participant --adapter OUT/adapter.safetensors \\
      --base-model brats21.safetensors

channels
  Our network has one input, a z-scored T1w image. Kernels with several input channels are reduced:
    sum    adds the channels, which is what the network computes if all show the same image.
           Responses stay about as large as in pre-training, since channels of a head correlate.
    mean   averages them. With 4 channels, responses are 4 times smaller: too small beside the bias
           of the patch embedding.
    N      takes channel N, counted from 0. MONAI's BraTS21 models have FLAIR, T1c, T1, T2, so T1 is
           2; models of MSD Task01 have FLAIR, T1, T1c, T2, so T1 is 1.

The head is not taken, because its classes differ from ours. The weights that were taken, reduced,
re-initialized and ignored are printed and recorded in the file.
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
        help="where the axes point to in images that do not state it",
    )
    parser.add_argument(
        "--label-map",
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

    make_folder(args.output.parent)
    record = import_swin_unetr(args.checkpoint, args.output, args.channels)
    print(describe_import(record))
    print(args.output)
    return 0
