"""What a command imports: it must not wait for libraries that it does not use."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hyps_bids.outputs.completion import fingerprint
from hyps_bids.outputs.names import scan_paths, sidecar_path
from hyps_bids.outputs.scan import Scan
from hyps_bids.reports.state import report_path, state_of
from hyps_bids.segmentation.setup import choose_networks
from hyps_bids.settings import Settings

#: Libraries of the networks, the images, the reports and the statistics.
_HEAVY = {
    *("PIL", "SimpleITK", "contourpy", "einops", "formulaic", "jinja2", "joblib", "matplotlib"),
    *("monai", "nibabel", "nipype", "openvino", "pandas", "scipy", "skimage", "sklearn", "skops"),
    *("statsmodels", "torch"),
}
#: What only commands need that look at a dataset.
_OF_DATASETS = {"bids", "numpy", "safetensors", "sqlalchemy"}
_PROGRAM = """
import sys
from hyps_bids.cli import main
try:
    code = main(sys.argv[1:])
except SystemExit as end:
    code = end.code
print("\\n".join(["LOADED", *{name.partition(".")[0] for name in sys.modules}]))
sys.exit(code)
"""


def loaded_by(*arguments: object) -> set[str]:
    """Run the app in a new process, and return the packages that it has imported."""
    ended = subprocess.run(
        [sys.executable, "-c", _PROGRAM, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=True,
    )
    packages = set(ended.stdout.rpartition("LOADED\n")[2].split())
    assert "hyps_bids" in packages
    return packages


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_answers_at_once(option: str) -> None:
    assert not loaded_by(option) & (_HEAVY | _OF_DATASETS)


def make_done(settings: Settings) -> int:
    """Write what a run looks at to know that scans are done and reports current; count scans."""
    provenance = choose_networks(settings).provenance
    images = [*settings.bids_dir.glob("sub-*/anat/*_T1w.nii.gz")]
    for image in images:
        scan = Scan.from_path(image)
        paths = scan_paths(scan, settings.output_dir)
        paths["qc"].parent.mkdir(parents=True)
        for path in paths.values():
            path.touch()
            sidecar_path(path).touch()
        mark = {"Fingerprint": fingerprint(scan, provenance)}
        sidecar_path(paths["qc"]).write_text(json.dumps(mark))
        folders = settings.bids_dir, settings.output_dir
        state = state_of(*folders, scan.subject, with_settings=True)
        report = f'<meta name="hyps-bids-state" content="{state}">HyPS-BIDS'
        report_path(settings.output_dir, scan.subject).write_text(report)
    return len(images)


def test_second_run_imports_only_the_index(demo_bids: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    settings = Settings(bids_dir=demo_bids, output_dir=output, analysis_level="participant")
    scans = make_done(settings)
    before = {path: path.stat().st_mtime_ns for path in output.rglob("sub-*") if path.is_file()}
    assert len(before) == 11 * scans
    loaded = loaded_by(demo_bids, output, "participant")
    assert not loaded & _HEAVY
    assert "bids" in loaded
    assert {path: path.stat().st_mtime_ns for path in before} == before
    (log,) = output.glob("logs/*/hyps-bids.log")
    assert f"{scans} done before, 0 to do" in log.read_text()
