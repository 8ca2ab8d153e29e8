from __future__ import annotations

import base64
import gzip
import json
import logging
import re
import shutil
import subprocess
import sys
from pathlib import Path

import html5lib
import nibabel as nib
import numpy as np
import pytest

from hyps_bids.outputs.digests import sha256
from hyps_bids.outputs.labels import label_table
from hyps_bids.outputs.names import scan_paths, sidecar_path
from hyps_bids.outputs.reading import read_table
from hyps_bids.outputs.scan import Scan
from hyps_bids.outputs.scan_files import ScanImages, ScanMeasures, write_failure, write_result
from hyps_bids.outputs.writing import write_table
from hyps_bids.reports import pictures, section
from hyps_bids.reports import subject as module
from hyps_bids.reports.scan_facts import facts_files, read_facts
from hyps_bids.reports.scan_images import read_images, read_raw
from hyps_bids.reports.state import is_current
from hyps_bids.reports.subject import LIMIT, write_subject_report
from tests.reports.conftest import FAILED, GOOD, HALF, SETTINGS, Study, change_sidecar, named

SIDECAR = "sub-02/anat/sub-02_seg-hippocampus_qc.json"


def report(study: Study, subject: str = "02", settings_text: str = SETTINGS) -> str:
    path = write_subject_report(study.raw, study.output, subject, settings_text=settings_text)
    assert path == study.output / f"sub-{subject}.html"
    assert path.stat().st_size <= LIMIT
    return path.read_text()


def check(html: str) -> str:
    """Check a page more strictly than a browser does, and return its text."""
    # Files within the page are nearly all of it, and their letters cannot break it.
    html = re.sub("[A-Za-z0-9+/]{200,}", "", html)
    tree = html5lib.HTMLParser(strict=True, namespaceHTMLElements=False).parse(html)
    identifiers = [e.get("id") for e in tree.iter() if e.get("id")]
    assert len(identifiers) == len(set(identifiers))
    for link in tree.iter("a"):
        target = str(link.get("href"))
        assert target[1:] in identifiers if target.startswith("#") else "://" in target
    assert {e.get("aria-labelledby", identifiers[0]) for e in tree.iter()} <= {*identifiers}
    main = tree.find(".//main")
    for script in [*main.iter("script"), *main.iter("style")]:
        script.text = ""
    return " ".join(" ".join(main.itertext()).split())


def test_a_subject_with_three_sessions(pages: dict[str, Path]) -> None:
    html = pages["001A"].read_text()
    text = check(html)
    assert len(html.encode()) <= LIMIT
    assert "<title>Hippocampus of sub-001A</title>" in html
    assert "1 of 3 scans failed or incomplete; 1 of 3 scans flagged" in text
    for stem in (GOOD, HALF, FAILED):
        assert f'id="scan-{stem}"' in html
    assert "ses-2020x, acq-2mmIso, run-01" in text
    assert "missing: not found in the field of view" in text
    assert not re.search(r">\s*0\s*</td>\s*<td[^>]*>\s*0\s*</td>\s*<td", html)
    # A whole head has both sides, half a head has one, and a failed scan only its image.
    titles = re.findall(r'<figure class="picture">\s*<h3>([^<]+)</h3>', html)
    assert titles == [
        *("Left hippocampus", "Right hippocampus", "Whole head"),
        *("Uncertainty, left", "Uncertainty, right"),
        *("Left hippocampus", "Whole head", "Uncertainty, left"),
        "T1w image",
    ]
    assert html.count('class="open-viewer"') == 2
    assert "it broke: &lt;script&gt;document.title" in html
    assert "<script>document.title" not in html
    assert "nprocs = 1 # &lt;&amp;&gt;" in html
    assert "adapter-anteriorposterior SHA-256" in text
    assert "et al. (2022)" in text


def test_every_picture_has_a_description_and_the_same_outputs_give_the_same_file(
    study: Study, pages: dict[str, Path]
) -> None:
    html = report(study)
    # Only the commands for viewers tell where the raw dataset is from here.
    pages_alike = [
        re.sub(r"(\.\./)+(\w+/)*raw/sub-", "raw/sub-", text)
        for text in (html, pages["02"].read_text())
    ]
    assert pages_alike[0] == pages_alike[1]
    labels = re.findall(r'<svg [^>]*role="img" aria-label="([^"]+)"', html)
    assert len(labels) == 5
    table = read_table(facts_files(study.output, named("sub-02"))["morph"])
    anterior, posterior = table["volume_mm3"][:2]
    assert f"anterior {anterior:,.0f} mm³, posterior {posterior:,.0f} mm³" in labels[0]


def test_images_without_outputs_are_named(study: Study, pages: dict[str, Path]) -> None:
    assert "sub-02_ses-late" not in check(pages["02"].read_text())
    folder = study.raw / "sub-02/ses-late/anat"
    folder.mkdir(parents=True)
    (folder / "sub-02_ses-late_T1w.nii.gz").touch()
    (folder / "sub-02_ses-late_T1w.nii.gz.bak").touch()
    (folder / "notes_T1w.nii").touch()
    assert not is_current(study.raw, study.output, "02")
    assert "not include: sub-02_ses-late_T1w." in check(report(study))
    assert is_current(study.raw, study.output, "02")


def test_contrasts_of_a_subject_have_a_section_each(study: Study) -> None:
    folder, raw = study.output / "sub-02/anat", study.raw / "sub-02/anat"
    for path in folder.glob("sub-02_[sl]*"):
        shutil.copy(path, path.with_name(path.name.replace("sub-02_", "sub-02_space-T2w_acq-x_")))
    # BIDS has another order of these entities.
    image = raw / "sub-02_desc-y_acq-x_T2w.nii.gz"
    shutil.copy(raw / "sub-02_T1w.nii.gz", image)
    for path in folder.glob("sub-02_space-T2w_acq-x_*"):
        name = path.name.removeprefix("sub-02_space-T2w_acq-x_")
        begin, _, end = name.rpartition("_")
        path.rename(folder / f"sub-02_acq-x_space-T2w_{begin}_desc-y_{end}")
    write_failure(Scan.from_stem("sub-02_ses-1_space-FLAIR"), study.output, "no brain")
    for name in ("FLAIR", "PDw"):
        (raw / f"sub-02_run-1_{name}.nii.gz").touch()
    html = report(study)
    text = check(html)
    assert re.findall(r'<h2 id="scan[^>]*>([^<]+)<', html) == [
        *("T1w image", "acq-x, desc-y, T2w", "ses-1, FLAIR")
    ]
    # In-plane images were not asked for.
    assert "not include: sub-02_run-1_FLAIR." in text
    assert "no longer used: sub-02_ses-1_FLAIR." in text
    assert html.count("slices of the T2w image with contours") == 2
    assert html.count("slices of the T1w image with contours") == 2
    assert "in each T1-weighted or T2-weighted image" in text


def test_outputs_without_image_are_named(study: Study, pages: dict[str, Path]) -> None:
    assert "no longer in the dataset" not in check(pages["001A"].read_text())
    for image in study.raw.glob(f"sub-001A/**/{HALF}_T1w.nii*"):
        image.unlink()
    text = check(report(study, "001A"))
    (warning,) = re.findall(r"no longer in the dataset[^.]*\.", text)
    assert HALF in warning
    assert GOOD not in warning


def test_a_report_without_settings_or_pictures_is_made_again(study: Study) -> None:
    assert "logs/*/settings.toml" in check(report(study, "02", ""))
    assert not is_current(study.raw, study.output, "02")
    raw = study.raw / "sub-02/anat/sub-02_T1w.nii.gz"
    content = raw.read_bytes()
    raw.unlink()
    raw.symlink_to("nowhere.nii.gz")
    assert "datalad get" in check(report(study))
    assert not is_current(study.raw, study.output, "02")
    raw.unlink()
    raw.write_bytes(content)
    assert SETTINGS in check(report(study))
    assert is_current(study.raw, study.output, "02")


def test_outputs_of_version_0_1_are_read(study: Study, pages: dict[str, Path]) -> None:
    assert "the boxes around them" in pages["02"].read_text()
    made = {"SoftwareVersion": "0.1.0", "Devices": {"localise": "cuda:1", "segment": "cpu"}}
    change_sidecar(study.output / SIDECAR, BoxCentres=None, **made)
    text = check(report(study))
    assert "boxes" not in text, "boxes are promised only if they are drawn"
    assert "localise: cuda:1" in text
    assert "HyPS-BIDS 0.1.0" in text
    assert "on cpu, cuda:1" in text


def test_a_subject_without_scans(study: Study) -> None:
    assert "No scan of this subject" in check(report(study, "none"))


@pytest.mark.parametrize(
    ("pattern", "content"),
    [
        ("raw/sub-02/anat/*_T1w.nii.gz", None),
        ("raw/sub-02/anat/*_T1w.nii.gz", b"no image"),
        ("out/sub-02/anat/*_dseg.nii.gz", None),
        ("out/sub-02/anat/*_probseg.nii.gz", b"no image"),
        ("out/sub-02/anat/*_qc.json", None),
        ("out/seg-hippocampus_dseg.tsv", None),
    ],
)
def test_what_is_damaged_is_said_in_the_report_and_logged(
    study: Study, caplog: pytest.LogCaptureFixture, pattern: str, content: bytes | None
) -> None:
    (path,) = study.raw.parent.glob(pattern)
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    text = check(report(study))
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert any(path.name in message for message in warnings)
    assert "✓" not in text
    # The scan's section says it, and so does the section of errors.
    assert text.count("run the participant level again") >= 2 or pattern.startswith("raw")
    assert path.name in text.split("Errors")[0]
    assert path.name in text.split("Errors")[-1]
    if pattern.startswith("out/sub-02/anat") and pattern.endswith(".nii.gz"):
        assert "incomplete" in text.split("Errors")[0]
        assert not is_current(study.raw, study.output, "02")


def test_a_bug_is_not_swallowed(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "mosaic", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        report(study)


def test_a_scan_that_ends_while_the_report_is_built(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    build, calls = module._build, []

    def slow(*arguments: object) -> str:
        html = build(*arguments)
        if not calls:
            scan = Scan.from_path(study.raw / "sub-02/ses-9/anat/sub-02_ses-9_T1w.nii.gz")
            write_failure(scan, study.output, "no such file")
        calls.append(html)
        return html

    monkeypatch.setattr(module, "_build", slow)
    html = report(study)
    assert len(calls) == 2
    assert "ses-9" in html


def test_detail_is_kept_where_better_compression_makes_room(processed: Study) -> None:
    scan = named("sub-02")
    facts = read_facts(processed.output, scan)
    images = read_images(processed.output, scan, read_raw(processed.raw, scan))
    hippocampi = section._read_hippocampi(images, facts)

    def pack(limit: int) -> tuple[int, list[int]]:
        made = section.Section(facts, "scan", "title")
        section._add_viewer(made, images, hippocampi, [0.0, 0.0, 0.0], limit)
        packs = re.findall(r">([^<]+)</script>", made.files)
        assert (made.viewer is None) == (packs == []) == bool(made.messages)
        return len(made.files), [len(gzip.decompress(base64.b64decode(pack))) for pack in packs]

    quick, files = pack(10**7)
    assert pack(quick) == (quick, files)
    well, same = pack(quick - 1)
    assert well < quick
    assert same == files
    # With fewer gray values, it is smaller even where it is packed quickly.
    assert 0 < pack(well - 1)[0] < well
    assert pack(1000) == (0, [])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("share", "pictures", "viewers"), [(400_000, 15, 3), (160_000, 3, 0), (39_000, 0, 0)]
)
def test_many_scans_share_the_bytes(
    study: Study, monkeypatch: pytest.MonkeyPatch, share: int, pictures: int, viewers: int
) -> None:
    for run in (1, 2):
        for path in (study.output / "sub-02/anat").glob("sub-02_[sl]*"):
            shutil.copy(path, path.with_name(path.name.replace("sub-02_", f"sub-02_run-{run}_")))
        raw = study.raw / "sub-02/anat/sub-02_T1w.nii.gz"
        shutil.copy(raw, raw.with_name(f"sub-02_run-{run}_T1w.nii.gz"))
    limit = module._PAGE + 3 * share
    monkeypatch.setattr(module, "LIMIT", limit)
    html = report(study)
    assert len(html.encode()) <= limit
    assert html.count('<figure class="picture">') == pictures
    assert html.count('class="open-viewer"') == viewers
    if not viewers:
        assert "too many scans" in check(html)


@pytest.mark.parametrize("parts", [["hippocampus"], ["head", "body", "tail", "subiculum"]])
def test_adapters_with_other_parts(study: Study, parts: list[str]) -> None:
    """The labels are made: the real hippocampus is cut into slabs."""
    scan = Scan.from_path(study.raw / "sub-02/anat/sub-02_T1w.nii.gz")
    paths = scan_paths(scan, study.output)
    provenance = json.loads(sidecar_path(paths["qc"]).read_text())
    old, mask = (nib.load(paths[kind]).dataobj.get_unscaled() for kind in ("dseg", "mask"))
    table = label_table(parts)
    new = np.zeros_like(old)
    volumes = {}
    for hemi, labels in (("L", (1, 2)), ("R", (3, 4))):
        where = np.argwhere(np.isin(old, labels))
        own = table.loc[table["hemi"] == hemi, "index"].to_numpy()
        order = np.argsort(np.argsort(where[:, 0]))
        new[tuple(where.T)] = own[order * len(parts) // len(where)]
        counts = [*((new == index).sum() for index in own), len(where)]
        volumes[hemi] = [(int(n), 8.0 * n, 8.0 * n) for n in counts]
    probabilities = [255 * (new == i).astype(np.uint8) for i in table["index"]]
    images = ScanImages(new, probabilities, mask)
    measures = ScanMeasures(tuple(parts), volumes, {"icv_mm3": 1.5e6}, (), (), {}, {})
    write_result(scan, study.output, images, measures, provenance, sha256(scan.path))
    write_table(study.output / "seg-hippocampus_dseg.tsv", table)
    html = report(study)
    text = check(html)
    for part in parts:
        assert f"Left {part}" in text
    assert html.count('class="open-viewer"') == 1
    for color in table["color"]:
        assert f'<path stroke="{color}"' in html


def test_scans_of_several_adapters_have_their_own_methods(study: Study) -> None:
    sidecar = facts_files(study.output, named(HALF))["sidecar"]
    models = json.loads(sidecar.read_text())["Models"]
    models["Adapter"]["Name"] = "adapter-<b>mine"
    change_sidecar(sidecar, Models=models)
    text = check(report(study, "001A"))
    assert "adapted with adapter-<b>mine" in text


def test_a_report_needs_no_network_library_and_little_memory(study: Study) -> None:
    code = (
        "import re, sys; from pathlib import Path\n"
        "from hyps_bids.reports.subject import write_subject_report\n"
        "write_subject_report(Path(sys.argv[1]), Path(sys.argv[2]), '02')\n"
        "assert 'pandas' not in sys.modules\n"
        "import hyps_bids.reports.group\n"
        "libraries = {'torch', 'monai', 'nipype', 'sklearn', 'statsmodels', 'matplotlib'}\n"
        "heavy = libraries & set(sys.modules)\n"
        "peak = re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1]\n"
        "print(sorted(heavy), int(peak) // 1024)\n"
    )
    # Unlike ru_maxrss, VmHWM does not start with the memory of this process.
    command = [sys.executable, "-c", code, study.raw, study.output]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    heavy, megabytes = done.stdout.split()
    assert heavy == "[]"
    assert int(megabytes) < 500
