"""Run HyPS-BIDS in a container of Docker, Podman or Apptainer, with the folders that it needs.

This file needs Python's standard library only, so it also works when it is copied alone:
``python hyps_docker.py BIDS_DIR OUT_DIR participant``. Folders have the same paths in the container
as outside, so that links and configuration files mean the same.
"""

from __future__ import annotations

import argparse
import errno
import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

#: Options of hyps-bids that name a file or folder that is read.
READ = (
    "--apply-classifier",
    "--apply-norms",
    "--base-model",
    "--bids-filter-file",
    "--config",
    "--edits",
    "--labels",
    "--use-plugin",
)
#: Options of hyps-bids whose value may be a file.
MAYBE_READ = ("--adapter", "--held-out", "--label-map")
#: Options of hyps-bids that name a folder that is written.
WRITTEN = ("--bids-database-dir", "--work-dir")
#: Folders that the container has itself; another folder in their place would hide them.
_OWN = (
    "/",
    "/bin",
    "/dev",
    "/etc",
    "/lib",
    "/lib64",
    "/opt",
    "/proc",
    "/run",
    "/sbin",
    "/sys",
    "/tmp",
)
_OWN_TREES = ("/usr", "/opt/hyps-bids", "/proc", "/sys", "/dev")
#: More folders than this are more likely a mistake than a dataset.
_MOST_FOLDERS = 100
_ENGINES = ("docker", "podman", "apptainer", "singularity")


class Problem(Exception):
    """Something that the user must change, with an exit code as those of hyps-bids."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


class Binds:
    """The folders and files of the host that the container sees.

    Attributes
    ----------
    writable : dict of str to bool
        Whether each path of the host may be written.
    """

    def __init__(self) -> None:
        self.writable: dict[str, bool] = {}

    def add(self, path: str, write: bool = False) -> None:
        """Show a path of the host, and what its links lead to."""
        self.writable[path] = self.writable.get(path, False) or write
        for place in _links(path):
            if _is_own(place):
                print(f"hyps-docker: warning: a link leads to {place}, which the container "
                      "has itself, so it will be broken there", file=sys.stderr)  # fmt: skip
            elif not self._has(place):
                self.writable[place] = False
            if len(self.writable) > _MOST_FOLDERS:
                raise Problem(
                    f"{path}: links lead to more than {_MOST_FOLDERS} folders. Name a folder that "
                    "holds them by --bind",
                    64,
                )

    def _has(self, path: str) -> bool:
        return any(_is_in(path, each) for each in self.writable)

    def needed(self) -> list[tuple[str, bool]]:
        """List what to bind, outer folders first, without what an outer folder shows as well."""
        kept: list[tuple[str, bool]] = []
        for path, write in sorted(self.writable.items()):
            outer = [mode for other, mode in kept if _is_in(path, other)]
            if not outer or outer[-1] != write:
                kept.append((path, write))
        return kept


def main(argv: Sequence[str] | None = None) -> int:
    """Run hyps-bids in a container and return its exit code.

    Parameters
    ----------
    argv : list of str, optional
        Arguments without the program's name; those of the process if None.
    """
    try:
        args = build_parser().parse_args(argv)
        command = _command(args)
        if args.dry_run:
            print(subprocess.list2cmdline(command) if os.name == "nt" else shlex.join(command))
            return 0
        return _run(command)
    except Problem as problem:
        print(f"hyps-docker: error: {problem}", file=sys.stderr)
        return problem.code


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):  # type: ignore[no-untyped-def]
        self.print_usage(sys.stderr)
        self.exit(64, f"hyps-docker: error: {message}\n")


def build_parser() -> argparse.ArgumentParser:
    """Build the parser; the documentation is made from it, too."""
    parser = _Parser(
        prog="hyps-docker",
        description="Run hyps-bids in a container of Docker, Podman or Apptainer.",
        usage="hyps-docker [options] BIDS_DIR OUT_DIR {participant,group} [options of hyps-bids]",
        epilog="All that follows the level goes to hyps-bids.",
        allow_abbrev=False,
    )
    parser.add_argument("bids_dir", metavar="BIDS_DIR")
    parser.add_argument("out_dir", metavar="OUT_DIR")
    parser.add_argument("level", metavar="LEVEL", choices=("participant", "group"))
    parser.add_argument("rest", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    parser.add_argument(
        "--image",
        default=os.environ.get("HYPS_IMAGE", "hyps-bids"),
        help="image, or .sif file (default: HYPS_IMAGE, or hyps-bids)",
    )
    parser.add_argument("--engine", choices=_ENGINES, help="default: the first that is here")
    parser.add_argument("--dry-run", action="store_true", help="print the command and stop")
    parser.add_argument(
        "--bind", action="append", default=[], metavar="PATH", help="show this path as well"
    )
    parser.add_argument(
        "--gpu", action="store_true", help="use NVIDIA GPUs; --device cuda implies it"
    )
    parser.add_argument("--user", help="user ID:group ID (default: yours; Docker, Podman)")
    return parser


def _command(args: argparse.Namespace) -> list[str]:
    """Write the command that starts the container."""
    engine = args.engine or _find_engine(args.image)
    binds = Binds()
    bids_dir, out_dir = _existing(args.bids_dir), _made(args.out_dir, args.dry_run)
    for each in args.bind:
        binds.add(_existing(each))
    binds.add(out_dir, write=True)
    binds.add(bids_dir)
    rest = _bind_options(args.rest, binds, args.dry_run)
    mounts = _templates(args.rest, binds)
    for path, write in binds.needed():
        mounts += ["--mount", _mount(path, write, engine)]
    gpu = args.gpu or _wants_gpu(args.rest)
    start = _start(engine, args.image, mounts, gpu, args.user)
    return [*start, _inside(bids_dir), _inside(out_dir), args.level, *rest]


def _templates(rest: Sequence[str], binds: Binds) -> list[str]:
    """Bind the folder of templates if there is one, and return the options that name it inside."""
    home = os.environ.get("TEMPLATEFLOW_HOME")
    # A configuration file may ask for templates as well.
    if not home and any(re.match("--output[-_]spaces|--config", word) for word in rest):
        home = _template_cache()
    if not home or not os.path.isdir(os.path.expanduser(home)):
        # hyps-bids says how to get templates if it needs them.
        return []
    path = _existing(home)
    binds.add(path)
    return ["--env", f"TEMPLATEFLOW_HOME={_inside(path)}"]


def _template_cache() -> str:
    """Return the folder of TemplateFlow's client for this user."""
    user = os.path.expanduser("~")
    if sys.platform == "win32":
        return os.path.join(user, "AppData", "Local", "templateflow", "templateflow", "Cache")
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(user, ".cache")
    if sys.platform == "darwin":
        cache = os.path.join(user, "Library", "Caches")
    return os.path.join(cache, "templateflow")


def _find_engine(image: str) -> str:
    is_file = image.endswith(".sif") or os.path.isdir(image)
    engines = _ENGINES[2:] if is_file else _ENGINES
    for engine in engines:
        if shutil.which(engine):
            return engine
    raise Problem(f"none of {', '.join(engines)} is on the search path; install one", 69)


def _start(engine: str, image: str, mounts: list[str], gpu: bool, user: str | None) -> list[str]:
    if engine in ("apptainer", "singularity"):
        if "://" not in image:
            image = _existing(image, "image; name the .sif file with --image or HYPS_IMAGE")
        flags = ["--cleanenv", "--containall", *(["--nv"] if gpu else [])]
        return [engine, "run", *flags, *mounts, image]
    flags = ["--rm", "--network", "none", "--read-only", "--tmpfs", "/tmp"]
    if os.path.isdir("/sys/fs/selinux"):
        # Otherwise SELinux would hide the folders.
        flags += ["--security-opt", "label=disable"]
    get_user, get_group = getattr(os, "getuid", None), getattr(os, "getgid", None)
    if user is None and get_user and get_group:
        user = f"{get_user()}:{get_group()}"
        if engine == "podman" and get_user() != 0:
            flags += ["--userns", "keep-id"]
    if user is not None:
        flags += ["--user", user]
    if gpu:
        flags += ["--gpus", "all"] if engine == "docker" else ["--device", "nvidia.com/gpu=all"]
    return [engine, "run", *flags, *mounts, image]


def _mount(path: str, write: bool, engine: str) -> str:
    """Describe a bind in the notation of --mount, in which commas and quotes must be quoted."""
    read_only = "ro" if engine in ("apptainer", "singularity") else "readonly"
    fields = ["type=bind", f"source={path}", f"target={_inside(path)}"]
    fields = [f'"{each.replace(chr(34), chr(34) * 2)}"' if set(each) & set(',"') else each
              for each in fields]  # fmt: skip
    return ",".join([*fields, *([] if write else [read_only])])


def _inside(path: str) -> str:
    r"""Return the path in the container of an absolute path of the host.

    Examples
    --------
    >>> _inside("/data/my study"), _inside(r"C:\my study\bids")
    ('/data/my study', '/c/my study/bids')
    """
    if path.startswith(("\\\\", "//")):
        raise Problem(f"{path}: containers cannot use network paths; give them a drive letter", 64)
    drive = re.match(r"([A-Za-z]):[\\/]*", path)
    if drive:
        path = f"/{drive[1].lower()}/" + path[drive.end() :].replace("\\", "/")
    path = str(PurePosixPath(path))
    if _is_own(path):
        raise Problem(
            f"{path}: this folder would hide one of the container; use a folder elsewhere", 64
        )
    return path


def _is_own(path: str) -> bool:
    """Tell whether a folder would hide one of the container."""
    return path in _OWN or any(_is_in(path, tree, "/") for tree in _OWN_TREES)


def _bind_options(rest: Sequence[str], binds: Binds, dry_run: bool) -> list[str]:
    """Bind the paths in options of hyps-bids; return the options with paths of the container."""
    written: list[str] = []
    current = ""
    for word in rest:
        name, equals, value = word.partition("=")
        if word.startswith("-w") and not word.startswith("--") and len(word) > 2:
            current, name, equals, value = "--work-dir", "--work-dir", "=", word[2:].lstrip("=")
        elif re.match(r"--?[A-Za-z]", word):
            current = "--work-dir" if name == "-w" else name.replace("_", "-")
        else:
            name, equals, value = "", "", word
        if not name or equals:
            word = f"{name}{equals}" + _bind_value(current, value, binds, dry_run)
        written.append(word)
    return written


def _bind_value(option: str, value: str, binds: Binds, dry_run: bool) -> str:
    """Bind the value of an option if it is a path, and return what it is in the container."""
    if option in WRITTEN:
        path = _made(value, dry_run)
        binds.add(path, write=True)
        return _inside(path)
    is_name = option in MAYBE_READ and not os.path.exists(os.path.expanduser(value))
    if is_name or option not in (*READ, *MAYBE_READ):
        return value
    path = _existing(value)
    binds.add(path)
    if os.path.isfile(path) and option.startswith("--apply"):
        # A model's description is beside it.
        binds.writable.setdefault(os.path.dirname(path), False)
    if option == "--config":
        _bind_configured(path, binds, dry_run)
    return _inside(path)


def _bind_configured(file: str, binds: Binds, dry_run: bool) -> None:
    """Bind the paths in a configuration file, which must be those in the container."""
    try:
        import tomllib
    except ImportError:
        raise Problem("--config needs Python 3.11 or newer here", 64) from None
    try:
        with open(file, "rb") as stream:
            content = tomllib.load(stream)
    except (OSError, ValueError):
        # hyps-bids says what is wrong with it.
        return
    for name, values in content.items():
        option = f"--{name.replace('_', '-')}"
        for value in values if isinstance(values, list) else [values]:
            if not isinstance(value, str) or option not in (*READ, *MAYBE_READ, *WRITTEN):
                continue
            there = _bind_value(option, value, binds, dry_run)
            if there != value:
                raise Problem(
                    f"{file}: {name} = {value!r} is {there!r} in the container. Write that, or "
                    f"give {option} on the command line",
                    64,
                )


def _wants_gpu(rest: Sequence[str]) -> bool:
    words = " ".join(rest).replace("=", " ").split()
    return any(a == "--device" and b.startswith("cuda") for a, b in itertools.pairwise(words))


def _existing(text: str, what: str = "file or folder") -> str:
    """Return the absolute path of what is there; a linked file keeps its name."""
    path = os.path.abspath(os.path.expanduser(text))
    if not os.path.lexists(path):
        if os.name != "nt" and re.match(r"[A-Za-z]:[\\/]", text):
            raise Problem(f"{text}: this is a path of Windows; under WSL, write /mnt/c/…", 66)
        raise Problem(f"{path}: there is no such {what}", 66)
    if os.path.isdir(path):
        return os.path.realpath(path)
    return os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))


def _made(text: str, dry_run: bool) -> str:
    """Make a folder for results; otherwise the engine would make it for root, or fail."""
    path = os.path.realpath(os.path.expanduser(text))
    if not text.strip():
        raise Problem("the path of a folder is empty", 64)
    try:
        if not dry_run:
            os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise Problem(f"{path}: cannot be made ({error.strerror})", 73) from error
    return path


def _is_in(path: str, folder: str, separator: str = os.sep) -> bool:
    return path == folder or path.startswith(folder.rstrip("/\\") + separator)


def _links(path: str) -> Iterator[str]:
    """List the folders outside a folder that links in it lead to."""
    for folder, folders, files in os.walk(path):
        found = folders + files
        # What git keeps is reached through the links of the dataset.
        folders[:] = [name for name in folders if name != ".git"]
        for name in found:
            link = os.path.join(folder, name)
            if os.path.islink(link):
                yield from _places(link, path)


def _places(link: str, within: str) -> Iterator[str]:
    """List the folders outside that a link leads to, step by step."""
    here = link
    for _ in range(40):
        if not os.path.islink(here):
            break
        here = os.path.normpath(os.path.join(os.path.dirname(here), _target(here)))
        if not _is_in(here, within) and os.path.exists(here):
            yield _folder_of(here)
    real = os.path.realpath(link)
    if not _is_in(real, within) and os.path.exists(real):
        yield _folder_of(real)


def _target(link: str) -> str:
    # Windows marks long paths.
    return os.readlink(link).replace("\\\\?\\", "")


def _folder_of(path: str) -> str:
    """Return the folder to bind for a target: all of an annex, or what holds a file."""
    annex = re.match(r"(.*[/\\]annex[/\\]objects)[/\\]", path)
    if annex:
        return annex[1]
    return path if os.path.isdir(path) else os.path.dirname(path)


def _run(command: list[str]) -> int:
    """Run the command: its exit code is ours, and signals reach it."""
    sys.stdout.flush()
    try:
        if os.name != "nt":
            # The engine takes the place of this process.
            os.execvp(command[0], command)
        process = subprocess.Popen(command)
    except OSError as error:
        text = os.strerror(error.errno or errno.ENOENT)
        raise Problem(f"{command[0]} cannot be started ({text})", 69) from error
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            # Control-C reaches the engine as well, which ends the container.
            continue


if __name__ == "__main__":
    sys.exit(main())
