"""Train on a machine that can be had for minutes and reached by small files only.

    python benchmarks/gpu_training.py pack DATA pack.tar.xz     # here: code, data and weights
    python gpu_training.py run pack.tar.xz OUT --minutes 14     # there: only this file and the pack
    python benchmarks/gpu_training.py join OUT RESULTS          # here: what the training has left

``run`` calls ``hyps-tools train`` on the GPU, ends before the time is over, and leaves its results,
checkpoints last, in parts of at most 15 MiB. The joined results are an output folder of
``hyps-tools train``, which goes on there, on a CPU or a GPU; ``pack --results RESULTS`` takes them
along again. There, Python needs PyTorch and the other dependencies of HyPS-BIDS, but no network.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

MIB = 2**20
#: Folders of the archive.
CODE, DATA, WEIGHTS, RESULTS = "code", "data", "weights", "results"
#: Stage → weights that it may start from, and is compared with
_NEEDED = {
    "localizer": ("localizer-synthetic",),
    "base": ("base-synthetic",),
    "adapter": ("base-synthetic", "adapter-anteriorposterior"),
    "soup": ("base-synthetic", "adapter-anteriorposterior"),
}
#: Minutes that a run keeps back for validation and for its parts.
_RESERVE = 0.75


def pack(args: argparse.Namespace) -> None:
    """Write the archive."""
    import hyps_bids
    from hyps_bids.recipe.plan import read_recipe

    package = Path(hyps_bids.__file__).parent
    weights = args.weights or package / "data" / "weights"
    plan = read_recipe(args.recipe).data
    with tarfile.open(args.archive, "w:xz", preset=args.preset) as archive:
        for path in sorted(package.rglob("*")):
            inner = path.relative_to(package)
            if path.is_file() and not {"__pycache__", "weights", "demo"} & set(inner.parts):
                archive.add(path, f"{CODE}/hyps_bids/{inner}")
        licenses = package / "data" / "weights" / "LICENSE.md"
        archive.add(licenses, f"{CODE}/hyps_bids/data/weights/LICENSE.md")
        if args.recipe:
            archive.add(args.recipe, "recipe.toml")
        for name in sorted({name for stage in args.stages for name in _NEEDED[stage]}):
            if (weights / f"{name}.safetensors").is_file():
                archive.add(weights / f"{name}.safetensors", f"{WEIGHTS}/{name}.safetensors")
        if {"localizer", "base"} & set(args.stages):
            for path in sorted((args.data / plan.labelmaps).glob("*.nii*")):
                _add_labelmap(archive, path, f"{DATA}/{plan.labelmaps}")
        if {"adapter", "soup"} & set(args.stages):
            for folder in (plan.images, plan.labels):
                _add_crops(archive, args.data / folder, f"{DATA}/{folder}")
        if args.results:
            archive.add(args.results, RESULTS)
    size = args.archive.stat().st_size / MIB
    print(f"{args.archive}: {size:.1f} MiB for the stages {', '.join(args.stages)}")
    if size > args.limit:
        sys.exit(f"The archive is larger than {args.limit} MiB; pack fewer stages")


def _add_crops(archive: tarfile.TarFile, source: Path, folder: str) -> None:
    """Add all crops, those of the test set too, as they are.

    The split depends on which subjects there are, and a training goes on with the same crops only.
    """
    for path in sorted(source.glob("[!.]*.nii*")):
        archive.add(path, f"{folder}/{path.name}")


def _add_labelmap(archive: tarfile.TarFile, path: Path, folder: str) -> None:
    """Add a label map as integers of 16 bits; the archive as a whole compresses them better."""
    import nibabel as nib
    import numpy as np

    image = nib.load(path)
    values = np.round(image.get_fdata(dtype=np.float32)).astype(np.int16)
    content = nib.Nifti1Image(values, image.affine).to_bytes()
    info = tarfile.TarInfo(f"{folder}/{path.name.removesuffix('.gz')}")
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


def run(args: argparse.Namespace) -> int:
    """Unpack, train until the time is over, and write the parts."""
    began = time.monotonic()
    work = Path(args.work or tempfile.mkdtemp(prefix="hyps-"))
    with tarfile.open(args.archive) as archive:
        archive.extractall(work, filter="data")
    results = work / RESULTS
    left = args.minutes - (time.monotonic() - began) / 60 - _RESERVE
    command = [sys.executable, "-m", "hyps_bids.tools", "train", str(work / DATA), str(results)]
    command += ["--weights", str(work / WEIGHTS), "--stages", *args.stages]
    command += ["--device", args.device, "--minutes", f"{max(left, 0.01):.2f}", *args.options]
    if (work / "recipe.toml").is_file():
        command += ["--recipe", str(work / "recipe.toml")]
    code = subprocess.run(command, cwd=work / CODE, check=False).returncode
    count = write_parts(results, args.output, args.part * MIB, args.most * MIB)
    print(f"{args.output}: {count} parts; hyps-tools train ended with {code}")
    return code


def write_parts(folder: Path, output: Path, part: float, most: float) -> int:
    """Write a folder as parts of an archive: results first, checkpoints as far as there is room.

    Copies of the weights before are left out. Returns the number of parts.
    """
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    files = [path for path in files if "before" not in path.parts and path.name != ".lock"]
    files.sort(key=lambda path: (path.name == "checkpoint.pt", path.stat().st_size))
    packed = output / ".results.tar"
    output.mkdir(parents=True, exist_ok=True)
    total = 0
    with tarfile.open(packed, "w") as archive:
        for path in files:
            # Headers and padding take up to 1.5 KB a file, and 10 KB at the end.
            total += path.stat().st_size + 2048
            if total + 10240 > most:
                print(f"{path.relative_to(folder)} is left out for want of room")
                total -= path.stat().st_size + 2048
                continue
            archive.add(path, path.relative_to(folder))
    count = 0
    with packed.open("rb") as stream:
        while content := stream.read(int(part)):
            (output / f"results.tar.{count:02}").write_bytes(content)
            count += 1
    packed.unlink()
    return count


def join(args: argparse.Namespace) -> None:
    """Put the parts together again."""
    parts = sorted(args.parts.glob("results.tar.[0-9][0-9]"))
    if not parts:
        sys.exit(f"{args.parts}: there are no parts")
    stream = io.BytesIO(b"".join(path.read_bytes() for path in parts))
    with tarfile.open(fileobj=stream) as archive:
        archive.extractall(args.results, filter="data")
    print(args.results)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    for name, function, paths in _commands():
        command = commands.add_parser(name)
        command.set_defaults(function=function)
        for path in paths:
            command.add_argument(path, type=Path)
        if name != "join":
            command.add_argument(
                "--stages", nargs="+", choices=list(_NEEDED), default=["base", "adapter", "soup"]
            )
        if name == "pack":
            command.add_argument("--weights", type=Path)
            command.add_argument("--recipe", type=Path)
            command.add_argument("--results", type=Path, help="results of an earlier run to go on")
            command.add_argument("--limit", type=float, default=64, help="MiB")
            command.add_argument("--preset", type=int, default=4, help="of the compression, 0 to 9")
        if name == "run":
            command.add_argument("--minutes", type=float, required=True)
            command.add_argument("--device", default="cuda")
            command.add_argument("--work", type=Path, help="folder of the training")
            command.add_argument("--part", type=float, default=15, help="size of a part, MiB")
            command.add_argument("--most", type=float, default=60, help="size of all parts, MiB")
            command.add_argument("--options", nargs=argparse.REMAINDER, default=[])
    return parser.parse_args()


def _commands() -> Iterator[tuple[str, object, tuple[str, ...]]]:
    yield "pack", pack, ("data", "archive")
    yield "run", run, ("archive", "output")
    yield "join", join, ("parts", "results")


if __name__ == "__main__":
    options = _parse()
    sys.exit(options.function(options))
