"""The methods text says what was used, and every work that it cites is listed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from hyps_bids.outputs.provenance import Provenance
from hyps_bids.reports.citation import (
    bibtex,
    methods_html,
    methods_markdown,
    references,
    write_methods,
)


@pytest.fixture
def provenance() -> Provenance:
    names = {"Localizer": "localizer-synthetic", "Base": "base-synthetic"}
    names["Adapter"] = "adapter-anteriorposterior"
    return {
        "SoftwareVersion": "1.2.3",
        "Models": {role: {"Name": name, "SHA256": "ab" * 32} for role, name in names.items()},
        "BiasFieldCorrection": "none",
    }


def test_text_names_version_weights_and_what_was_run(provenance: Provenance) -> None:
    text = methods_markdown(provenance)
    for fact in ("HyPS-BIDS 1.2.3", "adapter-anteriorposterior, SHA-256 abababab", "Decathlon"):
        assert fact in text
    assert "N4" not in text
    provenance["BiasFieldCorrection"] = "N4"
    provenance["Models"]["Adapter"]["Name"] = "adapter-mine"
    text = methods_markdown(provenance)
    assert "N4 [@n4]" in text
    assert "adapter-mine" in text
    assert "Decathlon" not in text, "another adapter was not trained on the Decathlon"


def test_text_names_the_contrasts(provenance: Provenance) -> None:
    assert "in each T1-weighted image" in methods_markdown(provenance)
    text = methods_markdown(provenance, {"FLAIR", "T2w", "T1w"})
    assert "in each T1-weighted, T2-weighted or FLAIR image" in text


def test_every_key_is_in_the_bibliography(provenance: Provenance) -> None:
    provenance["BiasFieldCorrection"] = "N4"
    text = methods_markdown(provenance, followed=True, surfaces=True)
    keys = set(re.findall(r"@(\w+)", text))
    assert {"midway", "lewiner"} <= keys
    entries = re.findall(r"^@\w+\{(\w+),$", bibtex(), re.MULTILINE)
    assert keys
    assert keys <= set(entries)
    assert len(entries) == len(set(entries)) == len(references())
    assert bibtex().count("{") == bibtex().count("}")


def test_text_also_tells_of_earlier_runs(provenance: Provenance, tmp_path: Path) -> None:
    write_methods(tmp_path, provenance, ["T1w"], surfaces=True)
    write_methods(tmp_path, provenance, ["T2w"], followed=True)
    text = (tmp_path / "logs" / "CITATION.md").read_text()
    assert "T1-weighted or T2-weighted" in text
    assert {"lewiner", "midway"} <= set(re.findall(r"@(\w+)", text))
    assert (tmp_path / "logs" / "CITATION.bib").read_text() == bibtex()


def test_html_links_to_its_list_and_escapes_odd_names(provenance: Provenance) -> None:
    html = str(methods_html(provenance))
    targets = set(re.findall(r'href="#([\w-]+)"', html))
    assert targets == set(re.findall(r'id="([\w-]+)"', html))
    assert "@" not in html
    provenance["Models"]["Adapter"]["Name"] = "<b>[@nobody]</b>"
    html = str(methods_html(provenance))
    assert "&lt;b&gt;[@nobody]&lt;/b&gt;" in html


def test_works_are_those_of_the_citation_file(root: Path, provenance: Provenance) -> None:
    cited = yaml.safe_load((root / "CITATION.cff").read_text())["references"]
    in_file = {work.get("doi") or work["identifiers"][0]["value"] for work in cited}
    keys = re.findall(r"@(\w+)", methods_markdown(provenance))
    ours = {w.get("doi") or f"arXiv:{w['eprint']}" for w in map(references().get, keys) if w}
    # The citation file is about the segmentation, not about the options of the group level.
    assert in_file == ours
