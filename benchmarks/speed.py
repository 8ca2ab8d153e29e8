"""Measure the speed of whole commands and of training, alone or side by side with others.

    python benchmarks/speed.py ONE EIGHT RESULTS [--peer 'COMMAND {images}'] [--other PYTHONPATH]

ONE and EIGHT are BIDS datasets. Every command runs in fresh processes and writes to a fresh folder;
ours includes reports. A peer's command works on copies of the images of a dataset: ``{images}``
stands for these files, beside which a program may put others, and ``{out}`` for an empty folder.
``--other`` measures another version of our own code, which PYTHONPATH leads to. All contestants are
measured in turns, in an order that is reversed each time, and each ratio is the median of the
ratios within the rounds. CPU seconds are those of the whole tree of processes, user and system.

Memory is measured in runs of their own, because looking at it costs time. RESULTS receives
``speed.md`` and, with each single measurement, ``speed.tsv``.
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import json
import os
import resource
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OURS = "ours"
#: Steps of training before those that count, and those that count.
_WARM_UP, _STEPS = 2, 8
#: Seconds after which files count as settled.
_SETTLE_S = 65
#: Seconds between two looks at the memory.
_LOOK_S = 0.05
#: Number of the first made scan, and bytes of its report that are kept: only its head is read.
_FIRST, _REPORT = "000000", 16_384
_PACKAGES = ("hyps-bids", "torch", "monai", "openvino", "nipype", "pybids", "numpy")

#: Name → value
Figures = dict[str, float]


@dataclass(frozen=True)
class Contestant:
    """A version of ours, found in `python_path`, or a peer with its `command`."""

    name: str
    python_path: Path = ROOT
    command: str | None = None

    @property
    def environment(self) -> dict[str, str]:
        """The environment of its processes."""
        # In the safe mode, Python does not prefer what is in the current folder.
        own = {"PYTHONPATH": str(self.python_path), "PYTHONSAFEPATH": "1"}
        return {**os.environ} | ({} if self.command else own)

    def run_function(
        self, function: Callable[..., None], *arguments: object, core: int | None = None
    ) -> None:
        """Call a function of this module, in a process that imports this version of ours."""
        code = (
            f"import sys; sys.path.append({str(Path(__file__).parent)!r}); import speed; "
            f"speed.{function.__name__}(*sys.argv[1:])"
        )
        words = [str(argument) for argument in arguments]
        run([sys.executable, "-c", code, *words], self.environment, core=core)


@dataclass(frozen=True)
class Task:
    """One row of the table: `measure` returns the figures of a contestant."""

    name: str
    title: str
    measure: Callable[[Contestant, Path], Figures]
    #: Whether a peer can do it, too.
    has_peer: bool = False


def main() -> None:
    """Read the command line, measure, and write the results."""
    args = _parse()
    contestants = [Contestant(OURS)]
    contestants += [Contestant("other", Path(args.other).resolve())] if args.other else []
    contestants += [Contestant("peer", command=args.peer)] if args.peer else []
    tasks = [t for t in all_tasks(args) if not args.only or t.name in args.only]
    # Processes that their parents left behind are ours to wait for, and so their CPU seconds count.
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
    load, rows = os.getloadavg()[0], []
    with tempfile.TemporaryDirectory(prefix="speed-", dir=args.work_dir) as folder:
        for task in tasks:
            for row in rounds(task, contestants, args.repeats, Path(folder)):
                print(*row, sep="\t", flush=True)
                rows.append(row)
    write(rows, tasks, machine(contestants, load), args.results)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("one", type=Path, help="BIDS dataset of one scan")
    parser.add_argument("eight", type=Path, help="BIDS dataset of some scans")
    parser.add_argument("results", type=Path, help="folder")
    parser.add_argument("--peer", help="command of a peer, with {images} and, if needed, {out}")
    parser.add_argument("--other", metavar="PYTHONPATH", help="another version of ours")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=(), help="names of rows, as in speed.tsv")
    parser.add_argument("--scans", type=int, default=10_000, help="size of the made dataset")
    parser.add_argument("--work-dir", type=Path, help="folder for temporary files")
    return parser.parse_args()


def all_tasks(args: argparse.Namespace) -> list[Task]:
    """List the rows of the table that this machine can measure."""
    one, eight = args.one.resolve(), args.eight.resolve()
    count = len(images_of(eight))
    core = min(os.sched_getaffinity(0))
    tasks = []
    for key, title, bids in (("one", "one scan", one), ("some", f"{count} scans", eight)):
        tasks += [
            Task(key, title, partial(whole_command, bids), has_peer=True),
            Task(
                f"{key}-1-core",
                f"{title} on one core",
                partial(whole_command, bids, core=core),
                has_peer=True,
            ),
            Task(
                f"{key}-memory",
                f"memory for {title}",
                partial(whole_command, bids, memory=True),
                has_peer=True,
            ),
        ]
        if has_gpu():
            for device in ("cuda", "auto"):
                on_gpu = partial(whole_command, bids, device=device)
                tasks.append(Task(f"{key}-{device}", f"{title}, --device {device}", on_gpu))
    made = partial(made_before, args.one.resolve(), args.scans)
    return [
        *tasks,
        Task("again", f"{count} scans, nothing to do", partial(second_run, eight)),
        Task("again-made", f"{args.scans} made scans, nothing to do", made),
        Task("step", "training step of two boxes", partial(training_step, None)),
        Task("step-1-core", "training step of two boxes on one core", partial(training_step, core)),
    ]


def rounds(
    task: Task, contestants: list[Contestant], repeats: int, folder: Path
) -> Iterator[tuple[str, str, int, str, float]]:
    """Measure a task in turns; yield task, contestant, round, figure and value."""
    taking_part = [c for c in contestants if c.command is None or task.has_peer]
    for number in range(repeats):
        for contestant in taking_part if number % 2 == 0 else reversed(taking_part):
            own = folder / f"{task.name}-{contestant.name}"
            own.mkdir(exist_ok=True)
            for figure, value in task.measure(contestant, own).items():
                yield task.name, contestant.name, number, figure, round(value, 4)
    for contestant in taking_part:
        shutil.rmtree(folder / f"{task.name}-{contestant.name}")


def participant_level(bids: Path, out: Path, device: str = "cpu") -> list[str]:
    """Return our command line."""
    words = ["-m", "hyps_bids", str(bids), str(out), "participant", "--device", device]
    return [sys.executable, *words]


def whole_command(
    bids: Path,
    contestant: Contestant,
    folder: Path,
    *,
    device: str = "cpu",
    core: int | None = None,
    memory: bool = False,
) -> Figures:
    """Measure the command for all scans of a dataset."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        out = Path(name)
        if contestant.command is None:
            command = participant_level(bids, out, device)
        else:
            copies = Path(tempfile.mkdtemp(dir=folder))
            images = [shutil.copy(image, copies) for image in images_of(bids)]
            command = []
            for word in shlex.split(contestant.command):
                command += images if word == "{images}" else [word.replace("{out}", name)]
        return run(command, contestant.environment, core=core, memory=memory)


def second_run(bids: Path, contestant: Contestant, folder: Path) -> Figures:
    """Measure the command with the outputs of an earlier run; the first round makes them."""
    command = participant_level(bids, folder / "out")
    if not (folder / "out").exists():
        run(command, contestant.environment)
    return _idle_run(command, contestant, folder / "out")


def made_before(one: Path, scans: int, contestant: Contestant, folder: Path) -> Figures:
    """Measure the command on a made dataset with its outputs; the first round makes both."""
    bids, out = folder / "bids", folder / "out"
    command = participant_level(bids, out)
    if not bids.exists():
        (first := bids / f"sub-{_FIRST}" / "anat").mkdir(parents=True)
        shutil.copy(images_of(one)[0], first / f"sub-{_FIRST}_T1w.nii.gz")
        shutil.copy(one / "dataset_description.json", bids)
        run(command, contestant.environment)
        contestant.run_function(make_scans, bids, out, scans)
        # This run remembers what later ones need not read again, but not of files that have just
        # changed.
        time.sleep(_SETTLE_S)
        _idle_run(command, contestant, out)
    return _idle_run(command, contestant, out)


def _idle_run(command: list[str], contestant: Contestant, out: Path) -> Figures:
    """Measure a run that must not make any output."""
    before = _times(out)
    figures = run(command, contestant.environment)
    if before != _times(out):
        sys.exit(f"{out}: there was something to do, so this is no measurement of an idle run")
    return figures


def _times(out: Path) -> dict[Path, int]:
    found = [*out.glob("sub-*.html"), *out.glob("sub-*/**/*_qc.json")]
    return {path: path.stat().st_mtime_ns for path in found}


def make_scans(bids_dir: str, output_dir: str, scans: str) -> None:
    """Copy the only scan of a dataset, its outputs and its report under other names."""
    from hyps_bids.reports.state import state_of

    bids, out = Path(bids_dir), Path(output_dir)
    first = f"sub-{_FIRST}"
    files = [path for root in (bids, out) for path in root.glob(f"{first}/**/*") if path.is_file()]
    texts = {path: path.read_text() for path in files if path.suffix != ".gz"}
    report = (out / f"{first}.html").read_text()
    state = state_of(bids, out, _FIRST, with_settings=True)
    for number in range(1, int(scans)):
        label = f"{number:06d}"
        for path in files:
            target = Path(str(path).replace(first, f"sub-{label}"))
            target.parent.mkdir(parents=True, exist_ok=True)
            if path in texts:
                target.write_text(texts[path].replace(first, f"sub-{label}"))
            else:
                os.link(path, target)
        own = report.replace(state, state_of(bids, out, label, with_settings=True))
        (out / f"sub-{label}.html").write_text(own.replace(_FIRST, label)[:_REPORT])


def training_step(core: int | None, contestant: Contestant, folder: Path) -> Figures:
    """Measure a step of the training of an adapter, on all cores or on one."""
    result = folder / "step.json"
    contestant.run_function(time_training, result, core=core)
    figures: Figures = json.loads(result.read_text())
    return figures


def time_training(result: str) -> None:
    """Train an adapter on made crops; write the median seconds from one batch to the next."""
    import torch

    from hyps_bids.adaptation import fit
    from hyps_bids.adaptation.crops import FRAME, Crops
    from hyps_bids.segmentation.devices import prepare_process

    # Names that moved between versions are taken from where they are used.
    base = Path(fit.__file__).parents[1] / "data" / "weights" / "base-synthetic.safetensors"

    prepare_process(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    shape = (4, 1, *FRAME)
    labels = torch.zeros(shape, dtype=torch.int64)
    labels[..., 16:32, 16:32, 20:28], labels[..., 16:32, 32:48, 20:28] = 1, 2
    crops = Crops(tuple("abcd"), torch.randn(shape), torch.ones(shape, dtype=torch.bool), labels)
    marks = []
    make_batch = fit.augmented_batch

    def marked(*args: object, **options: object) -> object:
        marks.append((time.perf_counter(), time.process_time()))
        return make_batch(*args, **options)

    fit.augmented_batch = marked
    loop = fit.LoopSettings(_WARM_UP + _STEPS + 1, evaluate_every=10**6, checkpoint_every=10**6)
    names = {"anterior": ["hippocampus"], "posterior": ["hippocampus"]}
    recipe = fit.Recipe(base, names, fit.AdapterConfig(), loop, batch_size=2)
    with tempfile.TemporaryDirectory() as folder:
        fit.fit_adapter(recipe, crops, None, Path(folder), torch.device("cpu"))
    steps = [
        [after - before for before, after in zip(*pair, strict=True)]
        for pair in zip(marks[_WARM_UP:], marks[_WARM_UP + 1 :], strict=False)
    ]
    wall, cpu = map(statistics.median, zip(*steps, strict=True))
    Path(result).write_text(json.dumps({"wall s": wall, "CPU s": cpu}))


def run(
    command: list[str],
    environment: dict[str, str],
    *,
    core: int | None = None,
    memory: bool = False,
) -> Figures:
    """Run a command; return its wall and CPU seconds, or its memory in MB."""
    pin = None if core is None else partial(os.sched_setaffinity, 0, {core})
    with tempfile.TemporaryFile() as log:
        began, used = time.perf_counter(), _cpu_of_children()
        process = subprocess.Popen(
            command,
            env=environment,
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            preexec_fn=pin,
        )
        peaks: Figures = {}
        while memory and process.poll() is None:
            for name, value in look(process.pid).items():
                peaks[name] = max(value, peaks.get(name, 0))
            time.sleep(_LOOK_S)
        code = process.wait()
        wall = time.perf_counter() - began
        try:
            while True:
                os.wait()
        except ChildProcessError:
            pass
        if code:
            log.seek(0)
            print(log.read().decode(errors="replace")[-4000:], file=sys.stderr)
            sys.exit(f"{shlex.join(command)}: exit code {code}")
    return peaks if memory else {"wall s": wall, "CPU s": _cpu_of_children() - used}


def _cpu_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def look(pid: int) -> Figures:
    """Return the memory of a tree of processes now, in MB.

    Pages that processes share count in full for each of them in its resident set (RSS), and in
    parts in its proportional one (PSS). The first figure is the highest RSS so far.
    """
    highest, shares = [0.0], [0.0]
    for one in _tree(pid):
        try:
            highest.append(_kilobytes(Path(f"/proc/{one}/status"), "VmHWM:") / 1000)
            shares.append(_kilobytes(Path(f"/proc/{one}/smaps_rollup"), "Pss:") / 1000)
        except OSError:
            continue
    return {
        "largest RSS of a process MB": max(highest),
        "largest PSS of a process MB": max(shares),
        "PSS of all processes MB": sum(shares),
    }


def _tree(pid: int) -> Iterator[int]:
    """Yield a process and its descendants."""
    yield pid
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = path.read_text().split()
        except OSError:
            continue
        for child in children:
            yield from _tree(int(child))


def _kilobytes(path: Path, key: str) -> float:
    """Read an entry of a file in /proc, which gives it in units of 1024 bytes."""
    for line in path.read_text().splitlines():
        if line.startswith(key):
            return float(line.split()[1]) * 1.024
    return 0.0


def images_of(bids: Path) -> list[Path]:
    """Return the T1w images of a raw dataset."""
    return sorted(bids.glob("sub-*/**/anat/*_T1w.nii*"))


def has_gpu() -> bool:
    """Tell whether a GPU of NVIDIA is visible."""
    command = shutil.which("nvidia-smi")
    return command is not None and b"GPU" in subprocess.run([command, "-L"], stdout=-1).stdout


def machine(contestants: list[Contestant], load: float) -> list[str]:
    """Describe machine, threads, versions and commands."""
    cpu = next(
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith(("model name", "CPU part"))
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    facts = [
        f"{len(os.sched_getaffinity(0))} cores of {cpu}, {memory:.0f} GB of memory; "
        f"load {load:.1f} before and {os.getloadavg()[0]:.1f} after"
    ]
    if has_gpu():
        facts.append(subprocess.check_output(["nvidia-smi", "-L"], text=True).splitlines()[0])
    versions = []
    for package in _PACKAGES:
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    facts.append(f"Python {sys.version.split()[0]}, {', '.join(versions)}; threads by default")
    for contestant in contestants:
        done = subprocess.run(
            ["git", "-C", contestant.python_path, "describe", "--always", "--dirty"],
            capture_output=True,
            text=True,
        )
        what = contestant.command or f"commit {done.stdout.strip() or 'unknown'}"
        facts.append(f"{contestant.name}: `{what}`")
    return [*facts, f"command: `python {shlex.join(sys.argv)}`"]


def write(
    rows: list[tuple[str, str, int, str, float]],
    tasks: list[Task],
    facts: list[str],
    results: Path,
) -> None:
    """Write each measurement to speed.tsv, and the medians to speed.md."""
    results.mkdir(parents=True, exist_ok=True)
    with (results / "speed.tsv").open("w", newline="") as stream:
        writer = csv.writer(stream, delimiter="\t", lineterminator="\n")
        writer.writerows([("row", "contestant", "round", "figure", "value"), *rows])
    names = list(dict.fromkeys(contestant for _, contestant, *_ in rows))
    others = [name for name in names if name != OURS]
    head = ["what", "figure", *names, *(f"{OURS} / {name}" for name in others)]
    lines = [head, ["---"] * len(head)]
    values: dict[tuple[str, str], dict[str, list[float]]] = {}
    for task, contestant, _, figure, value in rows:
        values.setdefault((task, figure), {}).setdefault(contestant, []).append(value)
    titles = {task.name: task.title for task in tasks}
    for (task, figure), found in values.items():
        cells = [titles[task], figure]
        cells += [_number(found[name]) if name in found else "" for name in names]
        for name in others:
            pairs = zip(found[OURS], found.get(name, ()), strict=False)
            ratios = [ours / theirs for ours, theirs in pairs]
            cells.append(_number(ratios) if ratios else "")
        lines.append(cells)
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    about = "\n".join(f"- {fact}" for fact in facts)
    repeats = 1 + max(number for _, _, number, *_ in rows)
    text = f"# Speed\n\nMedians of {repeats} rounds.\n\n{table}\n\n{about}\n"
    (results / "speed.md").write_text(text)
    print(text)


def _number(values: list[float]) -> str:
    middle = statistics.median(values)
    return f"{middle:.0f}" if middle >= 100 else f"{middle:.2f}"


if __name__ == "__main__":
    main()
