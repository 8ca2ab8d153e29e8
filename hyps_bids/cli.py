"""The command line of the BIDS App: arguments in, frozen settings out."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, NoReturn

from hyps_bids import __version__
from hyps_bids.errors import HypsError, MissingInput, UsageError
from hyps_bids.settings import Settings

__all__ = ["build_parser", "main", "parse_settings", "settings_to_toml"]

_LEVELS = ("participant", "group")
_INTERRUPTED = 130


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
        from hyps_bids.app import run

        return run(settings)
    except HypsError as error:
        print(f"hyps-bids: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("hyps-bids: interrupted; what is done is kept, run again to go on", file=sys.stderr)
        return _INTERRUPTED


def parse_settings(argv: Sequence[str] | None = None) -> Settings:
    """Parse the command line, on top of a ``--config`` file if there is one.

    Raises
    ------
    UsageError
        If the file has unknown keys or values of the wrong kind.
    MissingInput
        If it cannot be read.
    """
    parser = build_parser()
    first, _ = _config_parser().parse_known_args(argv)
    if first.config is not None:
        parser.set_defaults(**_read_config(first.config))
    values = vars(parser.parse_args(argv))
    names = {field.name for field in fields(Settings)}
    return Settings(**{name: value for name, value in values.items() if name in names})


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
        parents=[_config_parser()],
        allow_abbrev=False,
    )
    parser.add_argument("bids_dir", type=Path, help="input dataset")
    parser.add_argument("output_dir", type=Path, help="derivatives dataset to write")
    parser.add_argument("analysis_level", choices=_LEVELS, help="each scan, or all together")
    parser.add_argument("--version", action="version", version=f"hyps-bids {__version__}")
    parser.add_argument("-v", "--verbose", action="count", default=0, help="twice for debugging")
    _add_selection(parser.add_argument_group("which scans"))
    _add_processing(parser.add_argument_group("processing"))
    _add_resources(parser.add_argument_group("resources and execution"))
    return parser


def _config_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="hyps-bids", add_help=False, allow_abbrev=False)
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="TOML file of options; the command line wins"
    )
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
            action=_Labels,
            nargs="+",
            prefix=prefix,
            default=(),
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
        default="anteriorposterior",
        metavar="NAME|PATH",
        help="segmentation protocol: a shipped adapter or a file (default: %(default)s)",
    )
    group.add_argument(
        "--base-model", type=Path, metavar="PATH", help="base of the adapter, if not the shipped"
    )
    group.add_argument(
        "--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)"
    )
    group.add_argument(
        "--n4",
        action=argparse.BooleanOptionalAction,
        default=False,
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
    group.add_argument("--notrack", action="store_true", help="accepted; there is no telemetry")


class _Labels(argparse.Action):
    """Labels as a tuple, without their prefix."""

    def __init__(self, *args: Any, prefix: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.prefix = prefix

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Collect the labels."""
        setattr(namespace, self.dest, tuple(value.removeprefix(self.prefix) for value in values))


def _positive(text: str) -> int:
    try:
        value = int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number") from error
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return value


def _positive_float(text: str) -> float:
    try:
        value = float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text} is not a number") from error
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return value


_POSITIONAL = ("bids_dir", "output_dir", "analysis_level")


def _read_config(path: Path) -> dict[str, Any]:
    try:
        content = tomllib.loads(path.read_text())
    except OSError as error:
        raise MissingInput(f"{path}: cannot be read ({error.strerror})") from error
    except tomllib.TOMLDecodeError as error:
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
        labels = [value] if isinstance(value, str) else value
        if isinstance(labels, list) and all(isinstance(label, str) for label in labels):
            return tuple(label.removeprefix("sub-").removeprefix("ses-") for label in labels)
    elif kind.startswith("Path"):
        if isinstance(value, str):
            return Path(value)
    elif kind.startswith("float"):
        if isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
            return float(value)
    elif kind.startswith("int"):
        # as on the command line: one process or thread at least
        least = 0 if name == "verbose" else 1
        if isinstance(value, int) and not isinstance(value, bool) and value >= least:
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
