"""Check a container of HyPS-BIDS as its users run it: no network, read-only, as any user.

    python tests/container/acceptance.py hyps-bids
    python tests/container/acceptance.py hyps-bids --engine "podman --runtime runc" --flags "..."
    python tests/container/acceptance.py --prefix "apptainer run --containall {binds} hyps-bids.sif"

The first form uses docker or podman, whichever is installed. The last form uses any command that
takes binds as ``-B HOST:INSIDE[:ro]`` in place of ``{binds}`` and the arguments of the container
at its end. The script needs only Python 3.11 and the demo images of the package. It prints one line
per check and exits with 1 if a check failed.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

DEMO = Path(__file__).resolve().parents[2] / "hyps_bids" / "data" / "demo"
SCANS = ("sub-0001", "sub-05", "sub-55")
ANNEXED = "sub-55/anat/sub-55_T1w.nii.gz"
LONGEST_RUN, SHORT_RUN = 900, 300
LARGEST_IMAGE = 2_000_000_000


class Skipped(Exception):
    """A check that this engine or machine does not allow."""


@dataclass(frozen=True)
class Bind:
    """A folder of the host inside the container."""

    host: Path
    inside: str
    writable: bool = False

    def __str__(self) -> str:
        return f"{self.host}:{self.inside}" + ("" if self.writable else ":ro")


@dataclass(frozen=True)
class Run:
    """One call of the container: arguments, binds, and special settings of its environment."""

    args: tuple[str, ...]
    binds: tuple[Bind, ...] = ()
    entrypoint: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    home: Path | None = None
    tmp: str = "/tmp"
    limits: tuple[str, ...] = ()
    name: str = field(default_factory=lambda: f"hyps-bids-acceptance-{uuid.uuid4().hex[:8]}")


@dataclass(frozen=True)
class Image:
    """An image of docker or podman, run with as few rights as it can have.

    Attributes
    ----------
    engine : tuple of str
        Command of the engine, such as ``("podman", "--runtime", "runc")``.
    name : str
        Name of the image.
    flags : tuple of str
        Further options of ``run``.
    """

    engine: tuple[str, ...]
    name: str
    flags: tuple[str, ...] = ()

    @contextlib.contextmanager
    def start(self, run: Run) -> Iterator[subprocess.Popen[str]]:
        """Start a container in the background; its process is the engine's client."""
        command = [*self.engine, "run", "--rm", "--network", "none", "--read-only"]
        command += ["--tmpfs", run.tmp, "--user", "12345:12345", "--cap-drop", "ALL"]
        command += ["--security-opt", "no-new-privileges"]
        if Path(self.engine[0]).name == "podman":
            # Podman would otherwise add a passwd entry for the user.
            command += ["--passwd=false"]
        environment = {"HOME": "/nonexistent", **run.environment}
        binds = run.binds
        if run.home is not None:
            environment["HOME"] = "/home/someone"
            binds = (*binds, Bind(run.home, "/home/someone"))
        for key, value in environment.items():
            command += ["--env", f"{key}={value}"]
        for bind in binds:
            command += ["--volume", str(bind)]
        if run.entrypoint is not None:
            command += ["--entrypoint", run.entrypoint]
        command += ["--name", run.name, *run.limits, *self.flags, self.name, *run.args]
        process = _popen(command)
        try:
            yield process
        finally:
            if process.poll() is None:
                subprocess.run([*self.engine, "rm", "--force", run.name], stdout=subprocess.DEVNULL)
            process.communicate()

    def stop(self, run: Run, process: subprocess.Popen[str]) -> None:
        """Send SIGTERM to the container's first process."""
        command = [*self.engine, "kill", "--signal", "TERM", run.name]
        subprocess.run(command, check=True, timeout=60, stdout=subprocess.DEVNULL)


@dataclass(frozen=True)
class Prefix:
    """A command that runs the app in some container, such as ``apptainer run {binds} F.sif``."""

    template: str

    @contextlib.contextmanager
    def start(self, run: Run) -> Iterator[subprocess.Popen[str]]:
        """Start the command in the background, with the caller's environment."""
        if run.entrypoint is not None or run.limits or run.tmp != "/tmp":
            raise Skipped("a command prefix does not allow this check")
        binds = shlex.join(part for bind in run.binds for part in ("-B", str(bind)))
        command = [*shlex.split(self.template.replace("{binds}", binds)), *run.args]
        environment = dict(os.environ)
        for key, value in run.environment.items():
            # The prefixed names also work where the command drops the caller's environment.
            environment |= {
                key: value,
                f"APPTAINERENV_{key}": value,
                f"SINGULARITYENV_{key}": value,
            }
        if run.home is not None:
            environment["HOME"] = str(run.home)
        process = _popen(command, env=environment, cwd=run.home)
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.communicate()

    def stop(self, run: Run, process: subprocess.Popen[str]) -> None:
        """Send SIGTERM to the command."""
        process.send_signal(signal.SIGTERM)


@dataclass(frozen=True)
class Bench:
    """An engine and a scratch folder with the datasets that the checks share."""

    engine: Image | Prefix
    folder: Path

    @property
    def raw(self) -> Path:
        """The demo dataset, one file of it annexed as datalad does."""
        return self.folder / "raw"

    @property
    def derivatives(self) -> Path:
        """Output of the two levels."""
        return self.folder / "derivatives"

    def output(self, name: str) -> Path:
        """Make a folder that any user may write to."""
        folder = self.folder / name
        folder.mkdir()
        folder.chmod(0o777)
        return folder

    def app(self, *args: str, output: Path, raw: Path | None = None, **options: object) -> Run:
        """Describe a run of the app on a dataset, the shared one by default."""
        binds = (Bind(raw or self.raw, "/data"), Bind(output, "/out", writable=True))
        return Run(("/data", "/out", *args), binds, **options)  # type: ignore[arg-type]

    def call(self, run: Run, *, code: int = 0) -> str:
        """Run to the end and return what was printed; the exit code has to be `code`."""
        with self.engine.start(run) as process:
            printed, _ = process.communicate(timeout=LONGEST_RUN)
        assert process.returncode == code, f"exit code {process.returncode}, not {code}\n{printed}"
        return printed


def version(bench: Bench) -> str:
    """The image prints its version, as its health check does."""
    printed = bench.call(Run(("--version",)))
    assert printed.splitlines()[-1].startswith("hyps-bids "), printed
    return printed.splitlines()[-1]


def contents(bench: Bench) -> str:
    """The image is small and contains neither pip nor tests nor caches."""
    if not isinstance(bench.engine, Image):
        raise Skipped("a command prefix does not allow this check")
    query = ["image", "inspect", "--format", "{{.Size}}", bench.engine.name]
    shown = subprocess.run([*bench.engine.engine, *query], stdout=subprocess.PIPE, check=True)
    size = int(shown.stdout)
    assert size < LARGEST_IMAGE, f"{size} bytes"
    names = "-name pip -o -name setuptools -o -name tests -o -name .cache"
    script = f"find / -xdev -type d '(' {names} ')' -print -prune 2>/dev/null || true"
    found = bench.call(Run(("-c", script), entrypoint="sh"))
    assert "/" not in found, found
    return f"{size / 1e9:.2f} GB"


def participant_level(bench: Bench) -> str:
    """All scans are done, and nothing temporary is left behind."""
    bench.call(bench.app("participant", output=bench.output("derivatives")))
    _whole(bench.derivatives)
    assert len(_masks(bench.derivatives)) == 2 * len(SCANS)
    return f"{len(SCANS)} scans"


def group_level(bench: Bench) -> str:
    """The group tables list all scans."""
    bench.call(bench.app("group", output=bench.derivatives))
    table = bench.derivatives / "group_seg-hippocampus_desc-wide_morph.tsv"
    rows = table.read_text().splitlines()[1:]
    assert len(rows) == len(SCANS), table.read_text()
    return f"{len(rows)} rows"


def provenance(bench: Bench) -> str:
    """The derivatives name the container that made them."""
    described = json.loads((bench.derivatives / "dataset_description.json").read_text())
    container = described["GeneratedBy"][0].get("Container")
    if isinstance(bench.engine, Prefix) and container is None:
        raise Skipped("the command is not Apptainer, which names its image")
    assert container, described
    return f"{container['Type']} {container['Tag']}"


def native_run(bench: Bench) -> str:
    """Masks equal those of a run without a container, voxel by voxel."""
    scripts = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    app = shutil.which("hyps-bids", path=scripts)
    if app is None:
        raise Skipped("no hyps-bids on the PATH to compare with")
    output = bench.folder / "native"
    process = _popen([app, str(bench.raw), str(output), "participant"])
    printed, _ = process.communicate(timeout=LONGEST_RUN)
    assert process.returncode == 0, printed
    ours, theirs = _masks(bench.derivatives), _masks(output)
    assert ours.keys() == theirs.keys(), sorted(ours.keys() ^ theirs.keys())
    different = [name for name, content in ours.items() if content != theirs[name]]
    assert not different, different
    return f"{len(ours)} images identical"


def tools(bench: Bench) -> str:
    """``hyps-tools demo`` runs both levels."""
    output = bench.output("tools")
    binds = (Bind(output, "/out", writable=True),)
    bench.call(Run(("demo", "/out/demo"), binds, entrypoint="hyps-tools"))
    assert _masks(output / "demo" / "derivatives") == _masks(bench.derivatives)
    return "same masks"


def host_python(bench: Bench) -> str:
    """PYTHON* variables and packages in the home folder are ignored."""
    home = bench.folder / "home"
    site = home / ".local" / "lib" / "python3.11" / "site-packages"
    site.mkdir(parents=True)
    for folder in (home, site):
        for name in ("numpy", "json", "sitecustomize", "usercustomize"):
            (folder / f"{name}.py").write_text("raise SystemExit('poisoned')\n")
    inside = "/home/someone" if isinstance(bench.engine, Image) else str(home)
    variables = {"PYTHONPATH": inside, "PYTHONHOME": inside, "PYTHONSTARTUP": f"{inside}/numpy.py"}
    run = bench.app(
        *("participant", "--dry-run"),
        output=bench.output("poisoned"),
        environment=variables,
        home=home,
    )
    printed = bench.call(run)
    assert "poisoned" not in printed
    assert all(scan in printed for scan in SCANS), printed
    return ""


def unwritable_output(bench: Bench) -> str:
    """An output folder that is bound read-only gives exit code 73."""
    output = bench.output("unwritable")
    binds = (Bind(bench.raw, "/data"), Bind(output, "/out"))
    printed = bench.call(Run(("/data", "/out", "participant"), binds), code=73)
    return _message(printed, "/out", "cannot be written")


def missing_input(bench: Bench) -> str:
    """A dataset that is not bound gives exit code 66."""
    binds = (Bind(bench.output("missing"), "/out", writable=True),)
    printed = bench.call(Run(("/data", "/out", "participant"), binds), code=66)
    return _message(printed, "/data")


def dangling_link(bench: Bench) -> str:
    """An annexed image without content gives exit code 66."""
    raw = bench.folder / "dangling"
    shutil.copytree(bench.raw, raw, symlinks=True)
    shutil.rmtree(raw / ".git")
    run = bench.app(
        *("participant", "--participant-label", "55"), output=bench.output("linked"), raw=raw
    )
    return _message(bench.call(run, code=66), "sub-55_T1w.nii.gz")


def no_gpu(bench: Bench) -> str:
    """A requested GPU that is not visible gives exit code 64."""
    run = bench.app("participant", "--device", "cuda", output=bench.output("gpu"))
    return _message(bench.call(run, code=64), "--device cuda")


def tiny_tmp(bench: Bench) -> str:
    """The app runs with a temporary folder of 1 MB."""
    run = bench.app(
        *("participant", "--participant-label", "05"),
        output=bench.output("tiny"),
        tmp="/tmp:size=1m",
    )
    bench.call(run)
    return "1 MB"


def limits(bench: Bench) -> str:
    """The app sees the limits of CPUs and memory that the container has."""
    code = (
        "from hyps_bids.resources import available_cpus, available_memory_gb as memory;"
        "print(available_cpus(), round(memory(), 2))"
    )
    run = Run(
        ("-I", "-c", code),
        entrypoint="/opt/hyps-bids/bin/python",
        limits=("--cpus", "1", "--memory", "1500m"),
    )
    printed = bench.call(run).splitlines()[-1]
    assert printed == "1 1.46", printed
    return "1 CPU, 1.46 GB seen"


def little_memory(bench: Bench) -> str:
    """With 1 GB of memory, a run succeeds or says that memory is short."""
    run = bench.app(
        *("participant", "--participant-label", "0001"),
        output=bench.output("memory"),
        limits=("--memory", "1g", "--memory-swap", "1g"),
    )
    with bench.engine.start(run) as process:
        printed, _ = process.communicate(timeout=SHORT_RUN)
    code = process.returncode
    said = "memory" in printed.lower()
    assert code == 0 or (code in (1, 75) and said), f"exit code {code}\n{printed}"
    return f"exit code {code}"


def termination(bench: Bench) -> str:
    """SIGTERM ends a run with exit code 143 and no partial file; the next run finishes the work."""
    output = bench.output("terminated")
    run = bench.app("participant", "--nprocs", "1", output=output)
    with bench.engine.start(run) as process:
        end = time.monotonic() + LONGEST_RUN
        while not _masks(output):
            assert process.poll() is None, "ended before a scan was done"
            assert time.monotonic() < end, "no scan was done"
            time.sleep(0.2)
        stopped = time.monotonic()
        bench.engine.stop(run, process)
        printed, _ = process.communicate(timeout=SHORT_RUN)
    seconds = time.monotonic() - stopped
    code = process.returncode
    done = sum((output / scan / "anat").is_dir() for scan in SCANS)
    assert code in (143, -signal.SIGTERM), f"exit code {code}\n{printed}"
    # A command that does not forward the signal kills its container, which cannot clean up.
    if code == 143:
        _whole(output)
    bench.call(bench.app("participant", output=output))
    assert _masks(output) == _masks(bench.derivatives)
    return f"exit code {code} within {seconds:.0f} s, {done} of {len(SCANS)} begun; then finished"


CHECKS: tuple[Callable[[Bench], str], ...] = (
    version,
    contents,
    participant_level,
    group_level,
    provenance,
    native_run,
    tools,
    host_python,
    unwritable_output,
    missing_input,
    dangling_link,
    no_gpu,
    tiny_tmp,
    limits,
    little_memory,
    termination,
)


def prepare(folder: Path) -> None:
    """Copy the demo dataset and annex one image: a link to content in ``.git/annex/objects``."""
    raw = folder / "raw"
    shutil.copytree(DEMO, raw)
    # Other users must be able to read it, whatever the permissions of the checkout.
    for path in [folder, raw, *raw.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    image = raw / ANNEXED
    key = Path(".git/annex/objects/Zm/7k/SHA256E-s1--0.nii.gz/SHA256E-s1--0.nii.gz")
    (raw / key).parent.mkdir(parents=True)
    image.rename(raw / key)
    image.symlink_to(Path("../..") / key)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the checks and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("image", nargs="?", help="image of docker or podman")
    parser.add_argument("--engine", help="command of the engine; default: docker, else podman")
    parser.add_argument("--flags", default="", help="further options of the engine's run")
    parser.add_argument("--prefix", help="command that runs the app, with {binds} in it")
    names = [check.__name__ for check in CHECKS]
    parser.add_argument("--skip", nargs="+", default=[], choices=names, help="checks to leave out")
    args = parser.parse_args(argv)
    if (args.image is None) == (args.prefix is None):
        parser.error("give an image, or --prefix COMMAND")
    engine: Image | Prefix
    if args.prefix is not None:
        engine = Prefix(args.prefix)
    else:
        found = args.engine or shutil.which("docker") or shutil.which("podman")
        if found is None:
            parser.error("neither docker nor podman is installed; --prefix takes other engines")
        engine = Image(tuple(shlex.split(found)), args.image, tuple(shlex.split(args.flags)))
    folder = Path(tempfile.mkdtemp(prefix="hyps-bids-acceptance-"))
    try:
        prepare(folder)
        checks = [check for check in CHECKS if check.__name__ not in args.skip]
        outcomes = [_report(check, Bench(engine, folder)) for check in checks]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    counts = {outcome: outcomes.count(outcome) for outcome in ("ok", "failed", "skipped")}
    print(", ".join(f"{count} {outcome}" for outcome, count in counts.items()))
    return 1 if counts["failed"] else 0


def _report(check: Callable[[Bench], str], bench: Bench) -> str:
    began = time.monotonic()
    try:
        outcome, remark = "ok", check(bench)
    except Skipped as reason:
        outcome, remark = "skipped", str(reason)
    except Exception:
        # The other checks run, whatever the error is.
        outcome, remark = "failed", traceback.format_exc(limit=-1)
    seconds = time.monotonic() - began
    print(f"{outcome:8}{check.__name__:18}{seconds:5.0f} s  {remark}", flush=True)
    return outcome


def _popen(command: Sequence[str], **options: object) -> subprocess.Popen[str]:
    return subprocess.Popen(  # type: ignore[call-overload, no-any-return]
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **options,
    )


def _masks(output: Path) -> dict[str, bytes]:
    """Return the content of all masks and label images, by path."""
    found = [
        *output.glob("sub-*/anat/sub-*_dseg.nii.gz"),
        *output.glob("sub-*/anat/sub-*_mask.nii.gz"),
    ]
    return {
        path.relative_to(output).as_posix(): gzip.decompress(path.read_bytes()) for path in found
    }


def _whole(output: Path) -> None:
    """Fail if any file is partial or temporary."""
    for path in output.rglob("*"):
        assert path.name == ".bidsignore" or not path.name.startswith("."), f"left behind: {path}"
        if path.suffix == ".gz":
            gzip.decompress(path.read_bytes())
        elif path.suffix == ".json":
            json.loads(path.read_text())
    assert not (output / "work").exists(), "the work folder was left behind"


def _message(printed: str, *words: str) -> str:
    """Return the line that states the error; it must contain all `words`."""
    assert "Traceback" not in printed, printed
    line = printed.strip().splitlines()[-1]
    assert all(word in line for word in words), printed
    return line.split("error: ")[-1]


if __name__ == "__main__":
    sys.exit(main())
