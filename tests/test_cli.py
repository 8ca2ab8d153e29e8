"""The command line: every option, the configuration file and the exit codes."""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hyps_bids import __version__
from hyps_bids.cli import main, parse_settings
from hyps_bids.errors import MissingInput, UsageError
from hyps_bids.networks.adapters.config import METHODS, PRESETS, AdapterConfig
from hyps_bids.outputs.writing import write_text
from hyps_bids.settings import GROUPS, Option, Settings, all_options, settings_to_toml
from tests.raising import raises

BASIC = ["in", "out", "participant"]
OPTIONS = {option.name: option for option in all_options()}


def parse(*options: str) -> Settings:
    return parse_settings([*BASIC, *options])


def other_value(option: Option) -> Any:
    """Return a value that is no option's default."""
    values = {bool: True, int: 3, float: 0.25, str: "x", Path: Path("x")}
    first, second = option.choices[-2:] if option.choices else (values[option.kind], "y")
    value: Any = first
    return (value, option.kind(second)) if option.several else value


def with_values(*names: str) -> Settings:
    values = {name: other_value(OPTIONS[name]) for name in names}
    return Settings(
        bids_dir=Path("in"), output_dir=Path("out"), analysis_level="participant", **values
    )


def test_no_shuffles_can_be_asked_for() -> None:
    assert parse("--permutations", "0").permutations == 0
    with pytest.raises(SystemExit):
        parse("--permutations=-1")


def test_defaults_are_those_of_the_settings() -> None:
    assert parse() == with_values()
    assert parse("--notrack") == with_values()


@pytest.mark.parametrize(
    ("name", "flag"), [(each.name, flag) for each in all_options() for flag in each.flags]
)
def test_every_spelling_of_every_option_sets_its_setting(name: str, flag: str) -> None:
    value = other_value(OPTIONS[name])
    if OPTIONS[name].counted:
        words = [flag] * value
    elif value is True:
        words = [flag]
    else:
        words = [flag, *(map(str, value) if isinstance(value, tuple) else [str(value)])]
    assert parse(*words) == with_values(name)


@pytest.mark.parametrize(
    ("options", "name", "value"),
    [
        (["--participant-label", "01", "sub-02"], "participant_label", ("01", "02")),
        (["--participant_label", "sub-sub"], "participant_label", ("sub",)),
        (["--session_label", "ses-M00", "M12"], "session_label", ("M00", "M12")),
        (["-w", "work"], "work_dir", Path("work")),
        (["--n_cpus", "4"], "nprocs", 4),
        (["--mem_gb", "2"], "mem_gb", 2.0),
        (["--n4", "--no-n4"], "n4", False),
        (["--model", "volume ~ a", "--model", "volume ~ b"], "model", ("volume ~ a", "volume ~ b")),
        (["--learning-rate", "1e-4"], "learning_rate", 1e-4),
        (["--seed", "0"], "seed", 0),
        (["-vv"], "verbose", 2),
        (["--verbose", "-v"], "verbose", 2),
    ],
)
def test_option(options: list[str], name: str, value: object) -> None:
    assert getattr(parse(*options), name) == value


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["in", "out"],
        ["in", "out", "both"],
        [*BASIC, "--unknown"],
        # Abbreviations would change their meaning when options are added.
        [*BASIC, "--participant", "01"],
        [*BASIC, "--conf", "x.toml"],
        [*BASIC, "--config"],
        [*BASIC, "--participant-label"],
        [*BASIC, "--nprocs", "0"],
        [*BASIC, "--nprocs", "two"],
        [*BASIC, "--omp-nthreads", "-1"],
        [*BASIC, "--mem-gb", "0"],
        [*BASIC, "--mem-gb", "nan"],
        [*BASIC, "--mem-gb", "much"],
        [*BASIC, "--learning-rate", "inf"],
        [*BASIC, "--seed", "-1"],
        [*BASIC, "--seed", "4294967296"],
        [*BASIC, "--threshold", "half"],
        [*BASIC, "--suffix"],
        [*BASIC, "--suffix", "T1w", "bold"],
        [*BASIC, "--suffix", "t2w"],
        [*BASIC, "--suffix", "T1w,T2w"],
    ],
)
def test_wrong_usage_is_64(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(argv)
    assert end.value.code == 64
    assert re.search(r"^hyps-bids: error: .* \[wrong-usage\]$", capsys.readouterr().err, re.M)


def shown_help(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    with pytest.raises(SystemExit) as end:
        main([*argv, "--help"])
    assert end.value.code == 0
    return " ".join(capsys.readouterr().out.split())


def test_help_shows_every_option_and_default_once(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown_help(capsys)
    for group in GROUPS:
        assert f"{group.title}:" in text
    for option in all_options():
        sentence = option.help.removesuffix(".")
        assert text.count(sentence) == 1
        default = re.escape(sentence) + r" \(default: (.+?)\)\."
        has_value = option.default not in (None, ()) and option.kind is not bool
        assert bool(re.search(default, text)) == (has_value and not option.counted)


@pytest.mark.parametrize("level", ["participant", "group"])
def test_help_of_a_level_shows_its_options_only(
    level: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = shown_help(capsys, "in", "out", level)
    for group in GROUPS:
        assert (f"{group.title}:" in text) == (group.level in (None, level))


def test_help_names_the_methods_and_defaults_of_adapters() -> None:
    for name in METHODS:
        assert re.search(rf"\b{name}\b", OPTIONS["peft"].help)
    for name in PRESETS:
        assert name in OPTIONS["preset"].help
    for name in ("rank", "bottleneck", "scale", "dropout"):
        assert f"{name} {getattr(AdapterConfig(), name):g}" in OPTIONS["preset"].help
    assert ", ".join(AdapterConfig().layers) in OPTIONS["layers"].help
    assert " and ".join(AdapterConfig().trainable) in OPTIONS["trainable"].help


def test_pages_explain_every_option(root: Path) -> None:
    text = "".join(page.read_text() for page in (root / "docs").glob("*.md"))
    named = set(re.findall(r"--?[a-z][a-z0-9-]*", text))
    missing = {name for name, option in OPTIONS.items() if not named.intersection(option.flags)}
    assert not missing


def config(tmp_path: Path, text: str) -> list[str]:
    path = tmp_path / "hyps.toml"
    path.write_text(text)
    return ["--config", str(path)]


def test_config_file_is_below_the_command_line(tmp_path: Path) -> None:
    options = config(
        tmp_path,
        'participant-label = ["sub-01", "02"]\nnprocs = 3\nmem_gb = 2\nn4 = true\ndevice = "cpu"\n'
        'work-dir = "w"\nsession_label = "ses-M00"\nskip-bids-validation = true\n',
    )
    settings = parse(*options)
    assert settings.participant_label == ("01", "02")
    assert settings.session_label == ("M00",)
    assert (settings.nprocs, settings.mem_gb, settings.n4) == (3, 2.0, True)
    assert settings.work_dir == Path("w")
    assert settings.skip_bids_validation
    for where in (0, 1):
        both = [["--participant-label", "03", "--nprocs", "5", "--no-n4"], options]
        settings = parse(*both[where], *both[1 - where])
        assert settings.participant_label == ("03",)
        assert (settings.nprocs, settings.n4, settings.device) == (5, False, "cpu")


@pytest.mark.parametrize(
    ("text", "code", "names"),
    [
        ("nprocs = ", "config-not-toml", ""),
        ("procs = 2", "config-option-unknown", "procs"),
        ('bids_dir = "x"', "config-option-unknown", "bids_dir"),
        (
            'output-dir = "x"\nanalysis_level = "group"',
            "config-option-unknown",
            "analysis_level, output_dir",
        ),
        ("notrack = true", "config-option-unknown", "notrack"),
        ("[participant]\nnprocs = 2", "config-option-unknown", "participant"),
        ('nprocs = "2"', "config-value-invalid", "nprocs: '2'"),
        ("nprocs = 2.0", "config-value-invalid", "nprocs"),
        ("nprocs = true", "config-value-invalid", "nprocs"),
        ("nprocs = 0", "config-value-invalid", "nprocs"),
        ("omp_nthreads = -2", "config-value-invalid", "omp_nthreads"),
        ("verbose = -1", "config-value-invalid", "verbose"),
        ("seed = 4294967296", "config-value-invalid", "seed"),
        ("n4 = 1", "config-value-invalid", "n4"),
        ('mem_gb = "2"', "config-value-invalid", "mem_gb"),
        ("mem_gb = -1", "config-value-invalid", "mem_gb"),
        ("mem_gb = nan", "config-value-invalid", "mem_gb"),
        ("mem_gb = true", "config-value-invalid", "mem_gb"),
        ("work_dir = 1", "config-value-invalid", "work_dir"),
        ("adapter = 1", "config-value-invalid", "adapter"),
        ('suffix = ["T1w", "dwi"]', "config-value-invalid", "suffix: 'dwi'"),
        ("suffix = []", "config-value-invalid", "suffix"),
        ("participant_label = 1", "config-value-invalid", "participant_label"),
        ("participant_label = [1, 2]", "config-value-invalid", "participant_label"),
    ],
)
def test_bad_config_file(
    tmp_path: Path, text: str, code: str, names: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = config(tmp_path, text)
    with raises(UsageError, code, "hyps.toml", names):
        parse(*options)
    assert main([*BASIC, *options]) == 64
    assert capsys.readouterr().err.endswith(f"[{code}]\n")


def test_missing_config_file(tmp_path: Path) -> None:
    with raises(MissingInput, "config-unreadable", "nowhere.toml"):
        parse("--config", str(tmp_path / "nowhere.toml"))
    assert main([*BASIC, "--config", str(tmp_path)]) == 66


@pytest.mark.parametrize("names", [[], *([name] for name in OPTIONS), list(OPTIONS)])
def test_settings_come_back_from_their_file(tmp_path: Path, names: list[str]) -> None:
    settings = with_values(*names)
    assert parse(*config(tmp_path, settings_to_toml(settings))) == settings


@pytest.mark.parametrize("name", ['a "b"\\c', "tab\there", "ü → 海馬", "line\nbreak", "del\x7f"])
def test_odd_file_names_come_back(tmp_path: Path, name: str) -> None:
    settings = Settings(
        bids_dir=Path("in"),
        output_dir=Path("out"),
        analysis_level="participant",
        work_dir=Path(name),
        adapter=name,
    )
    assert parse(*config(tmp_path, settings_to_toml(settings))) == settings


PATHS = [each.name for each in all_options() if each.kind is Path or each.maybe_file]


@pytest.mark.parametrize("name", PATHS)
def test_home_is_expanded_in_every_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    option = OPTIONS[name]
    expected = option.kind(tmp_path / "a b")
    value = (expected,) if option.several else expected
    flag = option.flags[0]
    assert getattr(parse(f"{flag}=~/a b"), name) == value
    assert getattr(parse(*config(tmp_path, f'{name} = "~/a b"')), name) == value


def test_home_is_expanded_in_arguments_and_for_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "x.toml").write_text("nprocs = 3\n")
    settings = parse_settings(["~/in", "~", "participant", "--config=~/x.toml"])
    assert (settings.bids_dir, settings.output_dir) == (tmp_path / "in", tmp_path)
    assert settings.nprocs == 3
    assert parse("-w", "~root/w").work_dir == Path(os.path.expanduser("~root")) / "w"
    # Only the beginning of a path means a home folder, and ./ protects it.
    assert parse("-w", "a/~").work_dir == Path("a/~")
    work = parse("-w", "./~").work_dir
    assert work == Path("~")
    assert parse(*config(tmp_path, settings_to_toml(parse("-w", "./~")))).work_dir == work


@pytest.mark.parametrize("text", ["", " ", "~nosuchuser/x"])
def test_what_is_no_path_is_wrong_usage(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main([*BASIC, f"--work-dir={text}"])
    assert end.value.code == 64
    assert repr(text) in capsys.readouterr().err
    with raises(UsageError, "config-value-invalid", "work_dir"):
        parse(*config(tmp_path, f"work_dir = {text!r}"))


def test_settings_with_a_name_that_is_not_unicode_are_valid_toml(tmp_path: Path) -> None:
    settings = with_values("nprocs", "work_dir")
    odd = replace(settings, work_dir=Path(os.fsdecode(b"K\xf6ln")))
    path = tmp_path / "settings.toml"
    write_text(path, settings_to_toml(odd))
    assert parse("--config", str(path)) == replace(settings, work_dir=None)


@pytest.mark.parametrize("program", ["hyps_bids", "hyps_bids.tools"])
def test_help_on_any_terminal(program: str) -> None:
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", program, *(["import"] if "tools" in program else []), "--help"]
    subprocess.run(command, env=environment, check=True, capture_output=True)


def test_names_are_printed_as_they_are_and_the_end_is_quiet_without_a_reader() -> None:
    code = (
        "import sys; from hyps_bids import cli; "
        "names = ['K\\udcf6ln', 'Köln', '海'] * int(sys.argv[1]); "
        "run = lambda: [print(name) for name in names] and 0; "
        "sys.exit(cli.run_command('hyps-bids', run))"
    )
    environment = os.environ | {"PYTHONIOENCODING": "latin-1"}
    command = [sys.executable, "-c", code]
    done = subprocess.run([*command, "1"], env=environment, capture_output=True, check=True)
    assert done.stdout.splitlines() == [b"K\xf6ln", b"K\xf6ln", rb"\u6d77"]
    closed = subprocess.run(
        ["bash", "-c", '"$@" | true; exit ${PIPESTATUS[0]}', "-", *command, "100000"],
        env=environment,
        capture_output=True,
    )
    assert (closed.returncode, closed.stderr) == (141, b"")


def test_deleted_working_folder_is_one_clear_error(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert main([str(raw), str(tmp_path / "out"), "participant"]) == 66
    assert capsys.readouterr().err.endswith("[current-folder-gone]\n")


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A dataset whose only image is a link to nowhere."""
    folder = tmp_path / "raw"
    (folder / "sub-01" / "anat").mkdir(parents=True)
    (folder / "sub-01" / "anat" / "sub-01_T1w.nii.gz").symlink_to("nowhere")
    content = {"Name": "x", "BIDSVersion": "1.10.0"}
    (folder / "dataset_description.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("bids_dir", "output_dir", "options", "code"),
    [
        ("nowhere", "out", [], 66),
        ("raw", "out", [], 66),
        ("raw", "out", ["--bids-filter-file", "nowhere.json"], 66),
        (".", "../{name}_out", [], 16),
        ("raw", "out", ["--participant-label", "02"], 18),
        ("raw", "out", ["--session-label", "M00"], 18),
        ("raw", "raw", [], 64),
        ("raw", "raw/out", [], 64),
        ("raw", "out", ["-w", "raw", "--clean-workdir"], 64),
        ("raw", "file", [], 73),
        ("raw", "file/out", [], 73),
    ],
)
def test_exit_codes(
    raw: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    bids_dir: str,
    output_dir: str,
    options: list[str],
    code: int,
) -> None:
    monkeypatch.chdir(raw.parent)
    Path("file").touch()
    output = output_dir.format(name=raw.parent.name)
    assert main([bids_dir, output, "participant", "--dry-run", *options]) == code
    message = capsys.readouterr().err
    assert re.search(r"^hyps-bids: error: .* \[[a-z-]+\]$", message, re.M)
    assert "Traceback" not in message


@pytest.mark.parametrize(
    ("error", "exit_code", "code"),
    [
        (OSError(28, "full", "x"), 74, "disk-failure"),
        (OSError(2, "gone", "x"), 66, "file-unusable"),
    ],
)
def test_errors_of_the_system_name_their_file(
    raw: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: OSError,
    exit_code: int,
    code: str,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("hyps_bids.app.find_images", fail)
    assert main([str(raw), str(tmp_path / "out"), "participant", "--dry-run"]) == exit_code
    assert capsys.readouterr().err.endswith(f"x: {error.strerror} [{code}]\n")


def test_dry_run_lists_the_scans(
    demo_bids: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [str(demo_bids), str(tmp_path / "out"), "participant", "--dry-run"]
    assert main([*argv, "--participant-label", "sub-05"]) == 0
    expected = demo_bids / "sub-05" / "anat" / "sub-05_T1w.nii.gz"
    assert capsys.readouterr().out.split() == [str(expected)]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("level", "options", "unused"),
    [
        ("participant", ["--target", "diagnosis", "--n4", "--seed", "1"], ["--target", "--seed"]),
        ("group", ["--adapter", "mine", "--nprocs", "1"], ["--adapter"]),
    ],
)
def test_options_that_a_level_does_not_use_are_named(
    demo_bids: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    level: str,
    options: list[str],
    unused: list[str],
) -> None:
    assert main([str(demo_bids), str(tmp_path / "out"), level, "--dry-run", *options]) == 0
    named = [re.findall(r"--[a-z0-9-]+", line) for line in capsys.readouterr().err.splitlines()]
    assert unused in named


def test_group_without_participants_is_66(raw: Path, tmp_path: Path) -> None:
    assert main([str(raw), str(tmp_path / "out"), "group"]) == 66


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--train-adapter", "mine"], "adapter-without-labels"),
        (["--labels", "manual"], "adapter-without-labels"),
        (["--contrast", "AD:CN"], "contrast-without-target"),
        (["--train-adapter", "mine", "--labels", "m", "--target", "dx"], "adapter-not-alone"),
        (["--target", "dx", "--folds", "1"], "too-few-folds"),
        (["--harmonize"], "site-missing"),
        (["--harmonize", "--site", "scanner"], "nothing-to-harmonize"),
        (["--leave-one-site-out"], "site-missing"),
        (["--robust-errors"], "robust-errors-without-model"),
        (["--model", "volume ~ age", "--site", "scanner"], "site-unused"),
    ],
)
def test_group_options_that_contradict(
    raw: Path, tmp_path: Path, options: list[str], code: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(raw), str(tmp_path / "out"), "group", *options]) == 64
    assert capsys.readouterr().err.endswith(f"[{code}]\n")
    assert not (tmp_path / "out").exists()


def test_module_tells_its_version() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hyps_bids", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == f"hyps-bids {__version__}"


@pytest.mark.parametrize(
    "statement",
    [
        "import hyps_bids.tools",
        f"from hyps_bids.cli import parse_settings; parse_settings({BASIC})",
    ],
)
def test_parsing_imports_nothing_slow(statement: str) -> None:
    code = (
        f"import sys; {statement}; "
        "print({'torch', 'nipype', 'bids', 'nibabel', 'pandas', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    assert done.stdout.strip() == "set()"


def test_errors_keep_their_code_in_another_process() -> None:
    error = pickle.loads(pickle.dumps(UsageError("x.tsv: wrong", code="some-code")))
    assert (type(error), str(error), error.code) == (UsageError, "x.tsv: wrong", "some-code")
