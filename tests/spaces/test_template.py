from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from hyps_bids.errors import BadData, MissingInput
from hyps_bids.networks.cards import LOCALIZER, shipped_weights
from hyps_bids.outputs.spaces import Space
from hyps_bids.spaces.template import find_templates, load_template, templateflow_home
from tests.raising import raises


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(tmp_path / "flow"))
    (tmp_path / "flow" / "tpl-Demo").mkdir(parents=True)
    return tmp_path / "flow"


@pytest.mark.parametrize("state", ["no folder", "no file", "not fetched", "not in the annex"])
def test_a_missing_template_is_named_with_the_command_that_fetches_it(
    home: Path, state: str
) -> None:
    image = home / "tpl-Demo" / "tpl-Demo_res-02_T1w.nii.gz"
    if state == "no folder":
        shutil.rmtree(home)
    elif state == "not fetched":
        # TemplateFlow's client lists what it can fetch by empty files.
        image.touch()
    elif state == "not in the annex":
        image.symlink_to(".git/annex/objects/none")
    facts = (str(image), f"TEMPLATEFLOW_HOME={home} python", "get('Demo', resolution=2")
    with raises(MissingInput, "template-missing", *facts):
        find_templates([Space("Demo", "2")])
    assert not home.exists() or sorted(home.rglob("*")) == sorted(home.rglob("tpl*"))


def test_resolutions_and_templates_without_one_are_found(home: Path) -> None:
    for name in ("tpl-Demo_res-01_T1w", "tpl-Demo_res-02_T1w", "tpl-Demo_res-01_desc-brain_T1w"):
        (home / "tpl-Demo" / f"{name}.nii.gz").write_text(name)
    (home / "tpl-One").mkdir()
    (home / "tpl-One" / "tpl-One_T1w.nii.gz").write_text("one")
    found = find_templates([Space("Demo"), Space("Demo", "2"), Space("One")])
    assert [each.path.name.split(".")[0] for each in found] == [
        "tpl-Demo_res-01_T1w",
        "tpl-Demo_res-02_T1w",
        "tpl-One_T1w",
    ]
    assert found[0].url.endswith("amazonaws.com/tpl-Demo/tpl-Demo_res-01_T1w.nii.gz")


def test_resolutions_are_found_however_they_are_written(home: Path) -> None:
    # TemplateFlow has res-1 for MNI152NLin2009aSym and others.
    (home / "tpl-Demo" / "tpl-Demo_res-1_T1w.nii.gz").write_text("one")
    (home / "tpl-Demo" / "tpl-Demo_res-02_T1w.nii.gz").write_text("two")
    found = find_templates([Space("Demo"), Space("Demo", "1"), Space("Demo", "2")])
    assert [each.path.name[9:].split("_")[0] for each in found] == ["res-1", "res-1", "res-02"]
    (home / "tpl-Demo" / "tpl-Demo_res-1_T1w.nii.gz").unlink()
    # Another grid than the asked one is named, and never taken.
    facts = ("tpl-Demo_res-01_T1w.nii.gz", "tpl-Demo_res-02_T1w.nii.gz")
    with raises(MissingInput, "template-missing", *facts):
        find_templates([Space("Demo")])


def test_without_the_variable_the_folder_is_that_of_the_client(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("TEMPLATEFLOW_HOME", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("sys.platform", "linux")
    assert templateflow_home() == tmp_path / "templateflow"


def test_a_damaged_template_is_refused(home: Path) -> None:
    (home / "tpl-Demo" / "tpl-Demo_res-01_T1w.nii.gz").write_text("<Error>AccessDenied</Error>")
    (found,) = find_templates([Space("Demo")])
    with raises(BadData, "template-unusable", "tpl-Demo_res-01_T1w.nii.gz", "--output-spaces Demo"):
        load_template(found, shipped_weights(LOCALIZER))
