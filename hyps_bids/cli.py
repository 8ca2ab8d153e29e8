"""The command line of the BIDS App: arguments in, frozen settings out."""

from __future__ import annotations

import argparse
import json
import logging
import math
import signal
import sys
import threading
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, NoReturn

from hyps_bids import __version__
from hyps_bids.errors import (
    DISK_ERRORS,
    HypsError,
    MissingInput,
    Terminated,
    UsageError,
    WriteFailed,
)
from hyps_bids.settings import Settings

__all__ = ["build_parser", "main", "parse_settings", "settings_to_toml"]

_LEVELS = ("participant", "group")
_INTERRUPTED = 130
#: of numpy's random numbers
_LARGEST_SEED = 2**32 - 1


def main(argv: list[str] | None = None) -> int:
    """Run the BIDS App.

    Parameters
    ----------
    argv : list of str, optional
        Arguments without the program's name; those of the process if None.

    Returns
    -------
    int
        Exit code, as in the README.
    """
    try:
        settings = parse_settings(argv)
        _start_logging(settings.verbose)
        # imported late, so that --help and wrong usage answer at once
        with _terminable():
            from hyps_bids.app import run

            return run(settings)
    except HypsError as error:
        print(f"hyps-bids: error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        # not of one scan, which fails by itself: of a folder on the way, or the disk
        logging.getLogger("hyps_bids").debug("where it happened", exc_info=error)
        name = f"{error.filename}: " if error.filename else ""
        print(f"hyps-bids: error: {name}{error.strerror or error}", file=sys.stderr)
        return (WriteFailed if error.errno in DISK_ERRORS else MissingInput).exit_code
    except KeyboardInterrupt as end:
        print("hyps-bids: interrupted; what is done is kept, run again to go on", file=sys.stderr)
        return end.exit_code if isinstance(end, Terminated) else _INTERRUPTED


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM, and the terminal's end (SIGHUP), end the run as control-C does: cleanly."""
    # process 1 of a container would even ignore it; only the main thread may set handlers
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: object) -> NoReturn:
        raise Terminated

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    for number, handler in before.items():
        # nohup ignores SIGHUP, and so do we then
        if handler is not signal.SIG_IGN or number != signal.SIGHUP:
            signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def parse_settings(argv: Sequence[str] | None = None) -> Settings:
    """Parse the command line, on top of a ``--config`` file if there is one.

    Raises
    ------
    UsageError
        If the file has unknown keys or values of the wrong kind.
    MissingInput
        If it cannot be read.
    """
    values = vars(build_parser().parse_args(argv))
    config = values.pop("config", None)
    values.pop("notrack", None)
    given = {n: tuple(v) if isinstance(v, list) else v for n, v in values.items()}
    return Settings(**(_read_config(config) if config else {}) | given)


def settings_to_toml(settings: Settings) -> str:
    """Write settings as a file for ``--config``; positional arguments become comments.

    Examples
    --------
    >>> settings = Settings(
    ...     bids_dir=Path("in"), output_dir=Path("out"), analysis_level="group", nprocs=2
    ... )
    >>> print(settings_to_toml(settings))
    # hyps-bids in out group
    nprocs = 2
    <BLANKLINE>
    """
    lines = [f"# hyps-bids {settings.bids_dir} {settings.output_dir} {settings.analysis_level}"]
    for field in fields(Settings):
        value = getattr(settings, field.name)
        if field.default is not MISSING and value != field.default:
            lines.append(f"{field.name} = {_toml(value)}")
    return "\n".join(lines) + "\n"


class _Parser(argparse.ArgumentParser):
    """Ends with the exit code of BIDS Apps for wrong usage."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(UsageError.exit_code, f"{self.prog}: error: {message}\n")


def build_parser() -> argparse.ArgumentParser:
    """Build the parser; ``dest`` names are those of :class:`~hyps_bids.settings.Settings`."""
    parser = _Parser(
        prog="hyps-bids",
        description="Hippocampus segmentation of T1-weighted MRI in BIDS datasets.",
        allow_abbrev=False,
        # what is not given is not set: the defaults are those of Settings
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("bids_dir", type=Path, help="input dataset")
    parser.add_argument("output_dir", type=Path, help="derivatives dataset to write")
    parser.add_argument("analysis_level", choices=_LEVELS, help="each scan, or all together")
    parser.add_argument("--version", action="version", version=f"hyps-bids {__version__}")
    parser.add_argument("-v", "--verbose", action="count", help="twice for debugging")
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="TOML file of options; the command line wins"
    )
    _add_selection(parser.add_argument_group("which scans"))
    _add_processing(parser.add_argument_group("processing"))
    _add_resources(parser.add_argument_group("resources and execution"))
    _add_statistics(parser.add_argument_group("group level: statistics"))
    _add_classifiers(parser.add_argument_group("group level: classifiers"))
    _add_training(parser.add_argument_group("group level: training of an adapter"))
    _add_evaluation(parser.add_argument_group("group level: classifiers and adapters"))
    return parser


def _add_selection(group: argparse._ArgumentGroup) -> None:
    for name, prefix, text in (
        ("participant-label", "sub-", "only these participants"),
        ("exclude-participant-label", "sub-", "not these participants"),
        ("session-label", "ses-", "only these sessions"),
    ):
        group.add_argument(
            f"--{name}",
            f"--{name.replace('-', '_')}",
            action="extend",
            nargs="+",
            type=_label(prefix),
            metavar="LABEL",
            help=f"{text}; with or without {prefix}",
        )
    group.add_argument(
        "--bids-filter-file",
        type=Path,
        metavar="FILE",
        help="JSON with a pybids query 't1w', as in fMRIPrep",
    )
    group.add_argument(
        "--bids-database-dir", type=Path, metavar="DIR", help="keep the index here for later runs"
    )
    group.add_argument(
        "--skip-bids-validation",
        "--skip_bids_validation",
        action="store_true",
        help="do not check dataset_description.json",
    )


def _add_processing(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--adapter",
        metavar="NAME|PATH",
        help="segmentation protocol: a shipped adapter or a file (anteriorposterior)",
    )
    group.add_argument(
        "--base-model", type=Path, metavar="PATH", help="base of the adapter, if not the shipped"
    )
    group.add_argument("--device", help="auto, cpu, cuda or cuda:N (auto)")
    group.add_argument(
        "--n4",
        action=argparse.BooleanOptionalAction,
        help="correct the bias field first; the networks were trained with bias fields",
    )


def _add_resources(group: argparse._ArgumentGroup) -> None:
    group.add_argument("-w", "--work-dir", type=Path, metavar="DIR", help="intermediate files")
    group.add_argument("--clean-workdir", action="store_true", help="empty the work folder first")
    group.add_argument(
        "--nprocs", "--n-cpus", "--n_cpus", type=_positive, metavar="N", help="processes at a time"
    )
    group.add_argument("--omp-nthreads", type=_positive, metavar="N", help="threads of each")
    group.add_argument(
        "--mem-gb", "--mem_gb", type=_positive_float, metavar="GB", help="memory to use at most"
    )
    group.add_argument(
        "--use-plugin", type=Path, metavar="FILE", help="nipype plugin settings, YAML or TOML"
    )
    group.add_argument(
        "--stop-on-first-crash", action="store_true", help="end at the first scan that fails"
    )
    group.add_argument(
        "--dry-run", action="store_true", help="list the scans that would be processed"
    )
    group.add_argument(
        "--reports-only",
        action="store_true",
        help="build the HTML reports of what is there, compute nothing else",
    )
    group.add_argument("--notrack", action="store_true", help="accepted; there is no telemetry")


def _add_statistics(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--model",
        action="extend",
        nargs="+",
        metavar="FORMULA",
        help="linear model of every volume, such as 'volume ~ diagnosis + age + sex + icv'; "
        "with a random intercept for subjects of several scans",
    )
    group.add_argument(
        "--controls",
        metavar="COLUMN=LEVEL",
        help="whom the regression of volumes on ICV is fitted on; default: all",
    )


def _add_classifiers(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--target", metavar="COLUMN", help="what to predict, such as diagnosis")
    group.add_argument(
        "--contrast",
        action="extend",
        nargs="+",
        metavar="A:B",
        help="levels to tell apart, the positive one first; A+C:B joins levels, A:B:C is one "
        "classifier of three classes",
    )
    group.add_argument(
        "--features",
        action="extend",
        nargs="+",
        metavar="NAME",
        help="measures of the wide table to use, patterns allowed; metadata go to --covariates",
    )
    group.add_argument(
        "--covariates",
        action="extend",
        nargs="+",
        metavar="COLUMN",
        help="metadata to use, such as age sex",
    )
    group.add_argument("--site", metavar="COLUMN", help="column with the site or scanner")
    group.add_argument(
        "--harmonize", action="store_true", help="harmonize features by --site, within folds"
    )
    group.add_argument(
        "--leave-one-site-out", action="store_true", help="test on each site in turn as well"
    )
    group.add_argument(
        "--held-out",
        metavar="COLUMN=LEVEL|FILE",
        help="participants to test on only: a level, or a file of them, one a line, ID first",
    )
    group.add_argument(
        "--estimators",
        action="extend",
        nargs="+",
        metavar="NAME",
        help="classifiers to compare; default: all",
    )
    group.add_argument("--repeats", type=_positive, metavar="N", help="of cross-validation (5)")
    group.add_argument("--permutations", type=_positive, metavar="N", help="of the labels (200)")
    group.add_argument(
        "--apply-classifier", type=Path, metavar="PATH", help="predict with a trained classifier"
    )


def _add_training(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--train-adapter", metavar="NAME", help="train an adapter on --labels")
    group.add_argument(
        "--labels",
        action="extend",
        nargs="+",
        type=Path,
        metavar="DERIVATIVES",
        help="derivatives datasets with labeled hippocampi (dseg or mask)",
    )
    group.add_argument(
        "--label-map",
        metavar="NAME|FILE",
        help="what labels mean: aseg, whole, anteriorposterior, or a TSV with the columns index, "
        "hemi, part; default: the dseg.tsv of the labels",
    )
    group.add_argument("--peft", metavar="METHOD", help="method (hyps)")
    group.add_argument("--preset", metavar="NAME", help="settings of the adapter: paper")
    group.add_argument("--rank", type=_positive, metavar="R", help="of low-rank parts (8)")
    group.add_argument("--bottleneck", type=_positive, metavar="D", help="of bottlenecks (8)")
    group.add_argument("--scale", type=_positive_float, metavar="S", help="of bottlenecks (1)")
    group.add_argument(
        "--dropout", type=_positive_float, metavar="P", help="of the adapters' inputs (0)"
    )
    group.add_argument(
        "--layers",
        action="extend",
        nargs="+",
        metavar="KIND",
        help="layers to adapt: attention, mlp, merging, convolutions (the first three)",
    )
    group.add_argument(
        "--trainable",
        action="extend",
        nargs="+",
        metavar="MODULE",
        help="what else trains, by the start of its name (decoder out)",
    )
    group.add_argument("--steps", type=_positive, metavar="N", help="optimizer steps (300)")
    group.add_argument("--batch-size", type=_positive, metavar="N", help="crops a step (1)")
    group.add_argument("--learning-rate", type=_positive_float, metavar="X", help="at the start")
    group.add_argument(
        "--stratify", metavar="COLUMN", help="spread its levels evenly over the folds"
    )


def _add_evaluation(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--folds", type=_positive, metavar="K", help="of cross-validation (5)")
    group.add_argument("--seed", type=_seed, metavar="N", help="of folds and training")


def _label(prefix: str) -> Callable[[str], str]:
    """Make the reader of a label that may come with its prefix."""
    return lambda text: text.removeprefix(prefix)


def _positive(text: str) -> int:
    try:
        value = int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number") from error
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return value


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) > _LARGEST_SEED:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 0 to {_LARGEST_SEED}")
    return int(text)


def _positive_float(text: str) -> float:
    try:
        value = float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text} is not a number") from error
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not positive and finite")
    return value


_POSITIONAL = ("bids_dir", "output_dir", "analysis_level")


def _read_config(path: Path) -> dict[str, Any]:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise MissingInput(f"{path}: cannot be read ({error.strerror})") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{path}: not valid TOML ({error})") from error
    kinds = {f.name: str(f.type) for f in fields(Settings) if f.name not in _POSITIONAL}
    values = {key.replace("-", "_"): value for key, value in content.items()}
    unknown = sorted(set(values) - set(kinds))
    if unknown:
        raise UsageError(f"{path}: unknown options {', '.join(unknown)}; known: {sorted(kinds)}")
    return {name: _convert(path, name, value, kinds[name]) for name, value in values.items()}


def _convert(path: Path, name: str, value: Any, kind: str) -> Any:
    """Check a value of the configuration file against the type of its setting."""
    if kind.startswith("tuple"):
        texts = [value] if isinstance(value, str) else value
        if isinstance(texts, list) and all(isinstance(text, str) for text in texts):
            prefix = {"participant_label": "sub-", "exclude_participant_label": "sub-"}
            prefix |= {"session_label": "ses-"}
            return tuple(
                Path(text) if "Path" in kind else text.removeprefix(prefix.get(name, ""))
                for text in texts
            )
    elif kind.startswith("Path"):
        if isinstance(value, str):
            return Path(value)
    elif kind.startswith("float"):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if number and 0 < value < math.inf:
            return float(value)
    elif kind.startswith("int"):
        # as on the command line: one process or thread at least
        least, most = 0 if name in ("verbose", "seed") else 1, _LARGEST_SEED
        if isinstance(value, int) and not isinstance(value, bool) and least <= value <= most:
            return value
    elif type(value).__name__ == kind.split(" ")[0]:
        return value
    raise UsageError(f"{path}: {name} = {value!r} is not a {kind}")


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, int | float):
        return str(value)
    # strings of TOML are written like those of JSON
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")


def _start_logging(verbose: int) -> None:
    logger = logging.getLogger("hyps_bids")
    logger.setLevel(logging.DEBUG)
    logger.handlers.clear()
    handler = logging.StreamHandler()
    # progress is logged as a warning: it is meant to be seen
    handler.setLevel([logging.WARNING, logging.INFO, logging.DEBUG][min(verbose, 2)])
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    logger.addHandler(handler)
    logger.propagate = False
