"""Tests of :mod:`hyps_bids.hyps_docker` with engines that only write down how they were called.

No container is started here, so that the engines understand the commands is not tested.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import pytest

from hyps_bids import hyps_docker
from hyps_bids.hyps_docker import MAYBE_READ, READ, WRITTEN, Problem, _inside, _mount
from hyps_bids.settings import all_options
from hyps_bids.spaces.template import templateflow_home

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the engines here are scripts of a shell")

ENGINE = """#!{python} -I
import json, pathlib, signal, sys, time
pathlib.Path("{calls}").write_text(json.dumps(sys.argv))
if "--wait" in sys.argv:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    pathlib.Path("{calls}.ready").touch()
    time.sleep(30)
sys.exit(18)
"""


@dataclass
class Host:
    """A machine with engines, a copy of the program and a dataset."""

    path: Path
    bids: Path
    out: Path
    program: Path
    variables: dict[str, str] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        own = {"PATH": str(self.path / "bin"), "HOME": str(self.path / "home")}
        return own | self.variables

    def run(self, *args: str | Path, code: int = 18) -> str:
        command = [sys.executable, "-I", str(self.program), *map(str, args)]
        done = subprocess.run(
            command,
            env=self.environment,
            cwd=self.path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, done.stderr
        return done.stdout + done.stderr

    def call(self, *args: str | Path) -> list[str]:
        self.run(*args)
        called: list[str] = json.loads((self.path / "calls").read_text())
        return called


def mounts(command: list[str]) -> list[str]:
    return [after for word, after in pairwise(command) if word == "--mount"]


def mount(path: Path, read_only: str = ",readonly") -> str:
    return f"type=bind,source={path},target={path}{read_only}"


@pytest.fixture
def host(tmp_path: Path) -> Host:
    path = tmp_path.resolve() / "a b"
    bids = path / "my study"
    for folder in (bids / "sub-01" / "anat", path / "bin", path / "home"):
        folder.mkdir(parents=True)
    program = path / "copied.py"
    shutil.copy(str(hyps_docker.__file__), program)
    install(path, "docker")
    return Host(path, bids, path / "results" / "new", program)


def install(path: Path, name: str) -> None:
    engine = path / "bin" / name
    # A shebang cannot have spaces, and this interpreter's path has none.
    engine.write_text(ENGINE.format(python=sys.executable, calls=path / "calls"))
    engine.chmod(0o755)


def test_tables_of_options_are_those_of_the_settings() -> None:
    paths = {o.flags[0] for o in all_options() if o.kind is Path}
    assert {*READ, *WRITTEN} == paths | {"--config"}
    assert set(MAYBE_READ) == {o.flags[0] for o in all_options() if o.maybe_file}


def test_paths_that_are_relative_or_have_spaces(host: Host) -> None:
    command = host.call("my study", "results/new", "participant", "--n4", "--nprocs", "2")
    assert Path(command[0]).name == "docker"
    assert command[1:3] == ["run", "--rm"]
    assert mounts(command) == [mount(host.bids), mount(host.out, "")]
    image = command.index("hyps-bids")
    after = [str(host.bids), str(host.out), "participant", "--n4", "--nprocs", "2"]
    assert command[image + 1 :] == after
    # The engine would make it for root.
    assert host.out.is_dir()
    assert command[command.index("--user") + 1] == f"{os.getuid()}:{os.getgid()}"


def test_dry_run_prints_what_a_shell_runs(host: Host) -> None:
    printed = host.run("--dry-run", host.bids, host.out, "group", "--model", "volume ~ a", code=0)
    assert not (host.path / "calls").exists()
    assert not host.out.exists()
    called = host.call(host.bids, host.out, "group", "--model", "volume ~ a")
    assert shlex.split(printed)[1:] == called[1:]


def test_every_option_with_a_path_is_bound(host: Host) -> None:
    here = host.path / "elsewhere"
    here.mkdir()
    written = {}
    args: list[str] = []
    for option in (*READ, *MAYBE_READ):
        if option in ("--labels", "--config"):
            continue
        name = f"{option[2:]}/a file"
        (here / name).parent.mkdir()
        (here / name).touch()
        # Underscores and = are allowed as well.
        args += [f"{option.replace('-', '_').replace('__', '--')}=elsewhere/{name}"]
        written[option] = here / name
    for name in ("one", "two"):
        (here / name).mkdir()
    args += ["--labels", "elsewhere/one", "elsewhere/two", "-w", "work", "--bids-database-dir=db"]
    command = host.call(host.bids, host.out, "group", *args)
    found = mounts(command)
    for option, path in written.items():
        # What describes a model is beside it.
        assert mount(path.parent if option.startswith("--apply") else path) in found, option
        assert any(word.endswith(f"={path}") for word in command), option
    assert {mount(host.path / "work", ""), mount(host.path / "db", "")} <= set(found)
    at = command.index("--labels")
    assert command[at + 1 : at + 3] == [str(here / "one"), str(here / "two")]
    assert command[command.index("-w") + 1] == str(host.path / "work")


def test_the_folder_of_templates_is_bound_and_named(host: Host) -> None:
    usual, chosen = host.path / "home/.cache/templateflow", host.path / "my templates"
    usual.mkdir(parents=True)
    install(host.path, "apptainer")
    (host.path / "hyps.sif").touch()
    asked = (host.bids, host.out, "participant", "--output-spaces", "MNI152NLin2009cAsym")
    for engine, read_only in (("docker", ",readonly"), ("apptainer", ",ro")):
        start = ("--engine", engine) + (("--image", "hyps.sif") if engine == "apptainer" else ())
        command = host.call(*start, *asked)
        assert mount(usual, read_only) in mounts(command)
        assert command[command.index("--env") + 1] == f"TEMPLATEFLOW_HOME={usual}"
    assert "--env" not in host.call("--engine", "docker", *asked[:3])
    host.variables["TEMPLATEFLOW_HOME"] = str(chosen)
    # The program in the container says that there are no templates.
    assert "--env" not in host.call("--engine", "docker", *asked)
    chosen.mkdir()
    command = host.call("--engine", "docker", *asked)
    assert mount(chosen) in mounts(command)
    assert command[command.index("--env") + 1] == f"TEMPLATEFLOW_HOME={chosen}"


def test_names_are_no_paths(host: Host) -> None:
    args = ("--adapter", "whole", "--held-out", "site=B", "--label-map", "17:L,53:R")
    command = host.call(host.bids, host.out, "group", *args)
    assert command[-6:] == list(args)
    assert len(mounts(command)) == 2


def test_home_in_paths(host: Host) -> None:
    (host.path / "home" / "filter.json").touch()
    file = host.path / "home" / "filter.json"
    command = host.call(host.bids, host.out, "participant", "--bids-filter-file=~/filter.json")
    assert command[-1] == f"--bids-filter-file={file}"
    assert mount(file) in mounts(command)


def test_results_within_the_dataset_can_be_written(host: Host) -> None:
    out = host.bids / "derivatives" / "hyps"
    assert mounts(host.call(host.bids, out, "participant")) == [mount(host.bids), mount(out, "")]


def test_links_out_of_the_dataset(host: Host) -> None:
    store = host.path / "store"
    (store / "deep").mkdir(parents=True)
    (store / "deep" / "image.nii.gz").touch()
    second = host.path / "second"
    second.mkdir()
    (second / "hop.nii.gz").symlink_to("../store/deep/image.nii.gz")
    anat = host.bids / "sub-01" / "anat"
    (anat / "sub-01_T1w.nii.gz").symlink_to("../../../second/hop.nii.gz")
    (anat / "sub-01_T2w.nii.gz").symlink_to("sub-01_T1w.nii.gz")
    (host.bids / "sub-02").symlink_to(store)
    (anat / "broken.nii.gz").symlink_to("/no/such/file")
    (anat / "system.json").symlink_to("/etc/passwd")
    output = host.run(host.bids, host.out, "participant")
    assert "/etc" in output
    command = json.loads((host.path / "calls").read_text())
    expected = {mount(host.bids), mount(host.out, ""), mount(second), mount(store)}
    assert set(mounts(command)) == expected


def test_annex_of_a_dataset_above(host: Host) -> None:
    """A DataLad subdataset, whose .git is a link into the dataset that holds it."""
    modules = host.path / ".git" / "modules" / "study" / "annex" / "objects"
    for name in ("k1", "k2"):
        (modules / name / name).mkdir(parents=True)
        (modules / name / name / name).touch()
        link = host.bids / "sub-01" / "anat" / f"sub-01_run-{name[1]}_T1w.nii.gz"
        link.symlink_to(f"../../.git/annex/objects/{name}/{name}/{name}")
    (host.bids / ".git").symlink_to("../.git/modules/study")
    found = mounts(host.call(host.bids, host.out, "participant"))
    # The folder of .git is bound as well, which holds the objects.
    assert any(modules.is_relative_to(each.split("source=")[1].split(",")[0]) for each in found)
    assert all(each.endswith("readonly") for each in found if str(host.out) not in each)


def test_links_to_too_many_folders(host: Host) -> None:
    for number in range(101):
        (host.path / f"s{number}").mkdir()
        (host.bids / f"l{number}").symlink_to(host.path / f"s{number}")
    assert "--bind" in host.run(host.bids, host.out, "participant", code=64)
    bind = ("--bind", host.path, host.bids)
    found = mounts(host.call(*bind, host.out, "participant"))
    assert found == [mount(host.path), mount(host.out, "")]


def test_paths_in_a_configuration_file(host: Host) -> None:
    config, filters = host.path / "c.toml", host.path / "f.json"
    filters.touch()
    config.write_text(f'bids_filter_file = "{filters}"\nn4 = true\nwork-dir = "{host.path}/w"\n')
    found = mounts(host.call(host.bids, host.out, "participant", "--config", config))
    assert {mount(config), mount(filters), mount(host.path / "w", "")} <= set(found)
    config.write_text('bids_filter_file = "f.json"\n')
    assert str(filters) in host.run(host.bids, host.out, "participant", "--config", config, code=64)


@pytest.mark.parametrize(
    ("args", "code", "fact"),
    [
        (["nothing", "out", "participant"], 66, "nothing"),
        (["my study", "out", "session"], 64, "session"),
        (["my study", "/usr/share/x", "group", "--x"], 64, "/usr/share/x"),
        (["my study", "copied.py", "group"], 73, "copied.py"),
        (["my study", "", "group"], 64, "empty"),
        (["my study", "out", "group", "--labels", "gone"], 66, "gone"),
        ([r"C:\data", "out", "group"], 66, "/mnt/c"),
        (["--engine", "apptainer", "my study", "out", "group"], 66, "hyps-bids"),
        (["--engine", "podman", "my study", "out", "group"], 69, "podman"),
        (["--unknown", "my study", "out", "group"], 64, "--unknown"),
    ],
)
def test_what_cannot_work_is_said(host: Host, args: list[str], code: int, fact: str) -> None:
    assert fact in host.run("--dry-run" if "/usr" in args[1] else "--bind=.", *args, code=code)


def test_no_engine(host: Host) -> None:
    (host.path / "bin" / "docker").unlink()
    assert "apptainer" in host.run(host.bids, host.out, "group", code=69)


def test_apptainer_and_podman(host: Host) -> None:
    install(host.path, "apptainer")
    install(host.path, "podman")
    (host.path / "hyps.sif").touch()
    command = host.call("--image", "hyps.sif", host.bids, host.out, "group", "--device", "cuda:1")
    assert Path(command[0]).name == "apptainer"
    assert command[1:5] == ["run", "--cleanenv", "--containall", "--nv"]
    assert mounts(command) == [mount(host.bids, ",ro"), mount(host.out, "")]
    assert str(host.path / "hyps.sif") in command
    command = host.call("--engine", "podman", "--gpu", host.bids, host.out, "group")
    assert command[command.index("--device") + 1] == "nvidia.com/gpu=all"
    assert ("keep-id" in command) == (os.getuid() != 0)
    command = host.call("--user", "0:0", host.bids, host.out, "group", "--device=cuda")
    assert command[command.index("--gpus") + 1] == "all"
    assert command[command.index("--user") + 1] == "0:0"


def test_signals_and_exit_code_are_those_of_the_engine(host: Host) -> None:
    command = [sys.executable, "-I", str(host.program), str(host.bids), str(host.out), "group"]
    process = subprocess.Popen([*command, "--wait"], env=host.environment)
    ready = host.path / "calls.ready"
    while not ready.exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 143


def test_where_a_process_cannot_be_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows."""
    monkeypatch.setattr(os, "name", "nt")
    assert hyps_docker._run([sys.executable, "-c", "raise SystemExit(18)"]) == 18


def test_windows_and_special_characters() -> None:
    assert _inside(r"D:\Study 1\bids") == "/d/Study 1/bids"
    assert _inside("c:/x") == "/c/x"
    with pytest.raises(Problem, match="drive"):
        _inside(r"\\server\share")
    text = _mount(r"C:\a,b", True, "docker")
    assert text == r'type=bind,"source=C:\a,b","target=/c/a,b"'
    assert _mount('/a"b', False, "podman") == 'type=bind,"source=/a""b","target=/a""b",readonly'


def test_the_cache_of_templates_is_where_hyps_bids_looks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("TEMPLATEFLOW_HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    for platform in ("linux", "darwin", "win32"):
        monkeypatch.setattr("sys.platform", platform)
        assert Path(hyps_docker._template_cache()) == templateflow_home()
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert Path(hyps_docker._template_cache()) == templateflow_home() == tmp_path / "templateflow"
