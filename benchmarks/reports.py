"""Measure what reports cost: seconds, memory and size, each in a process of its own.

    python benchmarks/reports.py BIDS_DIR OUT_DIR [SUBJECT …]

OUT_DIR holds the outputs of both levels; its reports are made again. The first number of seconds is
for building, the second one includes the start of the process and its imports. Both are medians of
three runs.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

_REPEATS = 3


def main() -> None:
    """Measure each report and print a line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bids_dir", type=Path)
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("subjects", nargs="*", help="labels without sub- (default: all)")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one is not None:
        print(json.dumps(build(args.bids_dir, args.output_dir, args.one)))
        return
    found = sorted(p.name.removeprefix("sub-") for p in args.output_dir.glob("sub-*/"))
    for name in [*(args.subjects or found), "group"]:
        results = []
        for _ in range(_REPEATS):
            began = time.perf_counter()
            command = [sys.executable, __file__, args.bids_dir, args.output_dir, "--one", name]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            results.append(json.loads(done.stdout) | {"all": time.perf_counter() - began})
        seconds, everything, memory = (
            statistics.median(r[key] for r in results) for key in ("seconds", "all", "memory")
        )
        print(
            f"{name}: {seconds:.2f} s ({everything:.2f} s), {memory / 1e6:.0f} MB of memory, "
            f"{results[0]['size'] / 1e6:.2f} MB"
        )


def build(bids_dir: Path, output_dir: Path, name: str) -> dict[str, float]:
    """Build one report; return seconds, peak memory in bytes and size of the file in bytes."""
    if name == "group":
        from hyps_bids.reports.group import write_group_report

        began = time.perf_counter()
        path = write_group_report(output_dir)
    else:
        from hyps_bids.reports.subject import write_subject_report

        began = time.perf_counter()
        path = write_subject_report(bids_dir, output_dir, name)
    return {
        "seconds": time.perf_counter() - began,
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "size": path.stat().st_size,
    }


if __name__ == "__main__":
    main()
