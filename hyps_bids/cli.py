"""The command line of the BIDS App: parse it, run it, and turn errors into exit codes."""

from __future__ import annotations

import argparse
import codecs
import io
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import MISSING
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
from hyps_bids.progress import ConsoleHandler
from hyps_bids.settings import GROUPS, Option, OptionGroup, Settings, read_path, read_toml
from hyps_bids.system import ending_signals, is_closed_pipe

_INTERRUPTED = 130
#: As shells report a process that SIGPIPE has ended.
_READER_GONE = 141
#: Name of the error handler of standard output.
_ANY_TEXT = "hyps_bids.any_text"


def main(argv: list[str] | None = None) -> int:
    """Run the BIDS App.

    Parameters
    ----------
    argv : list of str, optional
        Arguments without the program's name; those of the process if None.

    Returns
    -------
    int
        Exit code, as in docs/bids-dataset.md.
    """
    return run_command("hyps-bids", lambda: _run(argv))


def _run(argv: list[str] | None) -> int:
    settings = parse_settings(argv)
    check_working_folder()
    start_logging(settings.verbose)
    with _terminable():
        # Import the app late, so that --help and usage errors answer at once.
        from hyps_bids.app import run

        return run(settings)


def run_command(program: str, command: Callable[[], int]) -> int:
    """Run a command and turn its errors into a message and an exit code.

    Parameters
    ----------
    program : str
        Name of the program, for the message.
    command : callable
        Returns the exit code if nothing goes wrong.
    """
    _allow_any_text()
    try:
        try:
            return command()
        finally:
            # Otherwise Python would report a closed pipe when it is too late to handle.
            if sys.stdout is not None:
                sys.stdout.flush()
    except KeyboardInterrupt as end:
        _tell(
            f"{program}: interrupted; finished results are kept, run the command again to continue"
        )
        return end.exit_code if isinstance(end, Terminated) else _INTERRUPTED
    except OSError as problem:
        if isinstance(problem, BrokenPipeError) and _reader_is_gone():
            return _READER_GONE
        logging.getLogger("hyps_bids").debug("The error was raised here:", exc_info=problem)
        error = _explain(problem)
    except HypsError as problem:
        error = problem
    _tell(f"{program}: error: {error} [{error.code}]")
    return error.exit_code


def _tell(text: str) -> None:
    """Print a message, unless nobody reads the standard error any more."""
    with suppress(OSError):
        print(text, file=sys.stderr)


def _allow_any_text() -> None:
    """Let standard output show texts that the terminal's encoding or UTF-8 cannot."""
    codecs.register_error(_ANY_TEXT, _replace_character)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors=_ANY_TEXT)


def _replace_character(error: UnicodeError) -> tuple[str | bytes, int]:
    """Write a byte of a file name as it is, so that other programs find the file, or escape it."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    character, end = error.object[error.start], error.start + 1
    if "\udc80" <= character <= "\udcff":
        return character.encode("ascii", "surrogateescape"), end
    return character.encode("ascii", "backslashreplace").decode("ascii"), end


def _reader_is_gone() -> bool:
    """Tell whether the pipe of standard output is closed; if so, write nothing more to it."""
    try:
        number = sys.stdout.fileno()
    except (AttributeError, OSError):
        return False
    closed = is_closed_pipe(number)
    if closed:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, number)
        os.close(null)
    return closed


def check_working_folder() -> None:
    """Check that the current folder exists, which the libraries that we use rely on.

    Raises
    ------
    MissingInput
        If it was deleted.
    """
    try:
        os.getcwd()
    except OSError as error:
        raise MissingInput(
            f"The current folder is gone ({error.strerror}). Change to a folder that exists and "
            "run the command again.",
            code="current-folder-gone",
        ) from error


def _explain(error: OSError) -> HypsError:
    """Make one of our errors of one that concerns the run as a whole, not a single scan."""
    name = f"{error.filename}: " if error.filename else ""
    message = f"{name}{error.strerror or error}"
    if error.errno in DISK_ERRORS:
        return WriteFailed(message, code="disk-failure")
    return MissingInput(message, code="file-unusable")


@contextmanager
def _terminable() -> Iterator[None]:
    """End the run on SIGTERM, and on SIGHUP when the terminal closes, as cleanly as on control-C.

    Without a handler, process 1 of a container would ignore these signals.
    """
    # Python lets only the main thread set handlers.
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: object) -> NoReturn:
        raise Terminated

    before = {number: signal.getsignal(number) for number in ending_signals()}
    for number, handler in before.items():
        # Under nohup SIGHUP is ignored, and it must stay so.
        if handler is not signal.SIG_IGN or number == signal.SIGTERM:
            signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def start_logging(verbose: int = 0) -> None:
    """Show progress on the console, and details for debugging if `verbose` is positive."""
    logger = logging.getLogger("hyps_bids")
    logger.setLevel(logging.DEBUG)
    logger.handlers.clear()
    handler = ConsoleHandler()
    handler.setLevel(logging.DEBUG if verbose else logging.INFO)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    logger.addHandler(handler)
    logger.propagate = False


def parse_settings(argv: Sequence[str] | None = None) -> Settings:
    """Parse the command line, on top of a ``--config`` file if there is one.

    Raises
    ------
    UsageError
        If the file has unknown options or values of the wrong kind.
    MissingInput
        If the file cannot be read.
    """
    given = vars(build_parser().parse_args(argv))
    config = given.pop("config", None)
    given.pop("notrack", None)
    values = {n: tuple(v) if isinstance(v, list) else v for n, v in given.items()}
    return Settings(**(read_toml(config) if config else {}) | values)


class Parser(argparse.ArgumentParser):
    """A parser with the exit code of BIDS Apps for wrong usage, and ``~`` in all its paths."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Arguments declared with the type Path are read so.
        self.register("type", Path, _showing_errors(read_path))

    def error(self, message: str) -> NoReturn:
        """Print the usage and the message, and end the process."""
        self.print_usage(sys.stderr)
        self.exit(UsageError.exit_code, f"{self.prog}: error: {message} [wrong-usage]\n")


class _HelpFormatter(argparse.HelpFormatter):
    """Shows the value once after all names, and no names with underscores."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings:
            return super()._format_action_invocation(action)
        names = ", ".join(name for name in action.option_strings if "_" not in name)
        metavar = self._get_default_metavar_for_optional(action)
        return f"{names} {self._format_args(action, metavar)}".rstrip()


class _HelpAction(argparse.Action):
    """Prints the options of the level that stands before ``--help``, or those of both."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> NoReturn:
        build_parser(getattr(namespace, "analysis_level", None)).print_help()
        parser.exit()


def build_parser(level: str | None = None) -> argparse.ArgumentParser:
    """Build the parser from the declared options; only those of `level` if it is given."""
    arguments, *groups = GROUPS
    parser = Parser(
        prog="hyps-bids",
        usage="hyps-bids BIDS_DIR OUTPUT_DIR {participant,group} [options]",
        description="Segment the hippocampus in the T1w or other images of a BIDS dataset.",
        epilog="Give a level before --help to see the options of that level only.",
        formatter_class=_HelpFormatter,
        add_help=False,
        allow_abbrev=False,
        # An option that is not given must not hide the value of the configuration file.
        argument_default=argparse.SUPPRESS,
    )
    _add_options(parser, arguments)
    general = parser.add_argument_group("general options")
    general.add_argument(
        "-h", "--help", action=_HelpAction, nargs=0, help="Show this help and exit."
    )
    general.add_argument(
        "--version",
        action="version",
        version=f"hyps-bids {__version__}",
        help="Show the version and exit.",
    )
    general.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="Read options from this TOML file; options on the command line take precedence.",
    )
    general.add_argument(
        "--notrack",
        action="store_true",
        help="Accepted for compatibility; there is no telemetry.",
    )
    for group in groups:
        if level in (None, group.level) or group.level is None:
            _add_options(parser, group)
    return parser


def _add_options(parser: argparse.ArgumentParser, group: OptionGroup) -> None:
    section = parser.add_argument_group(group.title)
    for declared in group.options:
        text = option_help(declared).replace("%", "%%")
        names = sorted(declared.flags, key=lambda name: name.startswith("--"))
        common: dict[str, Any] = {"dest": declared.name, "help": text}
        read = _showing_errors(declared.parse)
        valued = common | {"type": read, "metavar": declared.metavar}
        if declared.default is MISSING:
            section.add_argument(
                declared.name,
                type=read,
                choices=declared.choices or None,
                metavar=declared.metavar,
                help=text,
            )
        elif declared.counted:
            section.add_argument(*names, action="count", **common)
        elif declared.negatable:
            section.add_argument(*names, action=argparse.BooleanOptionalAction, **common)
        elif declared.kind is bool:
            section.add_argument(*names, action="store_true", **common)
        elif declared.several:
            section.add_argument(*names, action="extend", nargs="+", **valued)
        else:
            section.add_argument(*names, **valued)


def option_help(declared: Option) -> str:
    """Write the help of an option with its default, if that is a value."""
    if declared.kind is bool or declared.counted or declared.default in (MISSING, None, ()):
        return declared.help
    default = " ".join(declared.default) if declared.several else declared.default
    return f"{declared.help.removesuffix('.')} (default: {default})."


def _showing_errors(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """Make argparse show what is wrong with a value."""

    def read(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return read
