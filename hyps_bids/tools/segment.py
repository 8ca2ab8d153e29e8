"""``hyps-tools segment``: segment images that are in no BIDS dataset."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from hyps_bids.settings import SUFFIXES, ParticipantSettings
from hyps_bids.tools.options import Parser, add_compute_options, add_parser

if TYPE_CHECKING:
    from hyps_bids.api.result import SegmentationResult
    from hyps_bids.errors import HypsError
    from hyps_bids.outputs.scan import Scan

_LOG = logging.getLogger("hyps_bids")


def add_command(commands: argparse._SubParsersAction[Parser]) -> None:
    """Add the command to the parser."""
    text = "Segment images that are in no BIDS dataset, and write the outputs of the app for them."
    parser = add_parser(commands, "segment", _segment, text)
    parser.add_argument(
        "images",
        type=Path,
        nargs="+",
        metavar="IMAGE",
        help="NIfTI or MGZ file of any name, folder with a DICOM series, or a file of this series",
    )
    parser.add_argument(
        "output", type=Path, metavar="OUT_DIR", help="new folder, or one of an earlier call"
    )
    parser.add_argument(
        "--suffix",
        choices=SUFFIXES,
        help="contrast of the images; by default what names end with, such as _T2w, or T1w",
    )
    parser.add_argument(
        "--adapter",
        default=ParticipantSettings.adapter,
        help="name of a shipped adapter, or file or folder of a trained one",
    )
    parser.add_argument("--n4", action="store_true", help="correct the bias field first")
    parser.add_argument(
        "--surfaces", action="store_true", help="also make a surface of each hippocampus (GIFTI)"
    )
    add_compute_options(parser)


def _segment(args: argparse.Namespace) -> int:
    from hyps_bids.api.names import name_scans
    from hyps_bids.api.saving import check_folder, complete, saved_scan
    from hyps_bids.api.segmenting import Options, segment_each, set_up
    from hyps_bids.messages import format_count
    from hyps_bids.progress import Progress

    check_folder(args.output)
    # An image that is given twice is segmented once.
    images = list({path.absolute(): path for path in args.images}.values())
    options = Options(args.suffix, args.adapter, args.n4, args.device, args.threads)
    scans = dict(zip(images, name_scans(images, args.suffix), strict=True))
    setup = set_up(options)
    failures: list[HypsError] = []
    before = {image: saved_scan(args.output, scans[image], image, setup) for image in images}
    to_do = [image for image, saved in before.items() if saved is None]
    count = format_count(len(images), "image")
    _LOG.info("%s: %d done before, %d to do", count, len(images) - len(to_do), len(to_do))
    for image, saved in before.items():
        if saved is not None:
            with _recorded(failures):
                done = complete(args.output, saved, options.settings(), surfaces=args.surfaces)
                _LOG.info("%s: done before, see %s", image, done)
    results = segment_each(to_do, options) if to_do else iter(())
    with Progress({"images": len(to_do)}) as progress:
        for image, result in zip(to_do, results, strict=True):
            known = len(failures)
            with _recorded(failures):
                _save(args, scans[image], image, result)
            progress.advance("images", failed=len(failures) > known)
    if failures:
        _LOG.error("%d of %s failed", len(failures), count)
    return failures[0].exit_code if len(images) == len(failures) == 1 else int(bool(failures))


@contextmanager
def _recorded(failures: list[HypsError]) -> Iterator[None]:
    """Log and keep the error of one image, so that others follow."""
    from hyps_bids.errors import HypsError

    try:
        yield
    except HypsError as error:
        failures.append(error)
        _LOG.error("%s [%s]", error, error.code)


def _save(
    args: argparse.Namespace, scan: Scan, image: Path, result: SegmentationResult | HypsError
) -> None:
    """Write a result, or leave no results of an earlier content of an image that has failed."""
    from hyps_bids.api.saving import record_failure
    from hyps_bids.errors import HypsError

    if isinstance(result, HypsError):
        record_failure(args.output, scan, image, str(result))
        raise result
    report = result.save(args.output, name=scan.path.name, surfaces=args.surfaces)
    state = "look at it, it is flagged" if result.needs_review else "no flags"
    _LOG.info("%s: done (%s), see %s", image, state, report)
