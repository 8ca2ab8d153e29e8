from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.metadata import entry_points, version
from pathlib import Path

import pytest
import yaml

import hyps_bids

MB = 1_000_000
TEXTS = (".css", ".j2", ".jinja", ".js", ".json", ".md", ".py", ".toml", ".tsv")


def test_versions_agree(root: Path) -> None:
    citation = (root / "CITATION.cff").read_text()
    changelog = (root / "CHANGELOG.md").read_text()

    assert re.findall(r"^version: (\S+)$", citation, re.MULTILINE) == [hyps_bids.__version__]
    assert f"## [{hyps_bids.__version__}]" in changelog
    assert version("hyps-bids") == hyps_bids.__version__


def test_recipe_of_conda_is_that_of_the_package(root: Path) -> None:
    recipe = yaml.safe_load((root / "recipe" / "recipe.yaml").read_text())
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]

    assert recipe["context"]["version"] == hyps_bids.__version__
    scripts = [f"{name} = {entry}" for name, entry in project["scripts"].items()]
    assert recipe["build"]["python"]["entry_points"] == scripts
    # Some packages have other names there.
    bounds = [re.split(r"[\w-]+ ?", each, maxsplit=1)[1] for each in project["dependencies"]]
    found = [each.split(" ")[1] for each in recipe["requirements"]["run"]]
    assert found == [f">={project['requires-python'][2:]}", *bounds]


def test_package_file_is_the_only_source_of_the_version(root: Path) -> None:
    settings = tomllib.loads((root / "pyproject.toml").read_text())

    assert settings["project"]["dynamic"] == ["version"]
    assert settings["tool"]["hatch"]["version"]["path"] == "hyps_bids/__init__.py"


def test_importing_the_package_loads_no_library() -> None:
    code = "import sys, hyps_bids; print({'torch', 'numpy', 'nipype', 'bids'} & set(sys.modules))"

    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )

    assert printed.stdout.strip() == "set()"


@pytest.mark.parametrize("command", ["hyps-bids", "hyps-tools"])
def test_commands_exist(command: str) -> None:
    (entry,) = entry_points(group="console_scripts", name=command)

    assert callable(entry.load())


def test_every_direct_dependency_is_pinned(root: Path) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["test"], *extras["docs"]]
    lines = (root / "constraints" / "cpu.txt").read_text().splitlines()

    names = {re.split(r"[>=<\[ ]", requirement)[0].lower() for requirement in wanted} - {
        "hyps-bids"
    }
    pinned = {line.split("==")[0].lower() for line in lines if "==" in line}

    assert names == pinned


def test_weights_are_small_and_have_a_license() -> None:
    folder = Path(hyps_bids.__file__).parent / "data" / "weights"
    weights = sorted(folder.glob("*.safetensors"))
    licenses = (folder / "LICENSE.md").read_text()

    assert weights
    for path in weights:
        assert path.stat().st_size < 40 * MB
        assert f"`{path.name}`" in licenses


def test_ci_runs_the_test_command_of_the_readme(root: Path) -> None:
    last = (root / ".ci" / "run").read_text().splitlines()[-1]

    assert "pytest" in last
    assert last in (root / "README.md").read_text().splitlines()


def test_no_file_has_both_sides_of_a_merge() -> None:
    folder = Path(hyps_bids.__file__).parent
    texts = [p for p in folder.rglob("*.*") if p.suffix in {*TEXTS}]

    assert {p.suffix for p in texts} >= {".py", ".j2", ".json"}
    for path in texts:
        assert not re.search(r"^(<{7}|>{7}) ", path.read_text(), re.MULTILINE), path
