"""The command line: every option, the configuration file and the exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest

from hyps_bids import __version__
from hyps_bids.cli import build_parser, main, parse_settings, settings_to_toml
from hyps_bids.errors import MissingInput, UsageError
from hyps_bids.settings import Settings

BASIC = ["in", "out", "participant"]
POSITIONAL = {"bids_dir", "output_dir", "analysis_level"}

#: one value that is not the default, as it is written in a file, for every setting
OTHER: dict[str, Any] = {
    "participant_label": ["01", "b"],
    "exclude_participant_label": ["02"],
    "session_label": ["M00"],
    "bids_filter_file": "filter.json",
    "bids_database_dir": "db",
    "skip_bids_validation": True,
    "work_dir": "work",
    "clean_workdir": True,
    "nprocs": 3,
    "omp_nthreads": 2,
    "mem_gb": 7.5,
    "device": "cuda:1",
    "adapter": "mine.safetensors",
    "base_model": "base.safetensors",
    "n4": True,
    "use_plugin": "slurm.yml",
    "stop_on_first_crash": True,
    "dry_run": True,
    "reports_only": True,
    "verbose": 2,
    "model": ["volume ~ age"],
    "controls": "diagnosis=CN",
    "target": "diagnosis",
    "contrast": ["AD:CN"],
    "features": ["icv_mm3"],
    "covariates": ["age", "sex"],
    "site": "scanner",
    "harmonize": True,
    "leave_one_site_out": True,
    "held_out": "cohort=B",
    "estimators": ["svm"],
    "folds": 3,
    "repeats": 2,
    "permutations": 10,
    "apply_classifier": "models/classifier",
    "train_adapter": "mine",
    "labels": ["derivatives/manual"],
    "label_map": "aseg",
    "peft": "lora",
    "preset": "paper",
    "rank": 4,
    "bottleneck": 3,
    "scale": 0.5,
    "dropout": 0.1,
    "layers": ["mlp"],
    "trainable": ["out"],
    "steps": 7,
    "batch_size": 2,
    "learning_rate": 0.01,
    "stratify": "sex",
    "seed": 3,
}


def parse(*options: str) -> Settings:
    return parse_settings([*BASIC, *options])


def test_defaults_are_those_of_the_settings() -> None:
    expected = Settings(bids_dir=Path("in"), output_dir=Path("out"), analysis_level="participant")
    assert parse() == expected


@pytest.mark.parametrize(
    ("options", "name", "value"),
    [
        (["--participant-label", "01", "sub-02"], "participant_label", ("01", "02")),
        (["--participant_label", "sub-sub"], "participant_label", ("sub",)),
        (
            ["--exclude-participant-label", "sub-01", "02"],
            "exclude_participant_label",
            ("01", "02"),
        ),
        (["--exclude_participant_label", "x"], "exclude_participant_label", ("x",)),
        (["--session-label", "ses-M00", "M12"], "session_label", ("M00", "M12")),
        (["--session_label", "M00"], "session_label", ("M00",)),
        (["--bids-filter-file", "f.json"], "bids_filter_file", Path("f.json")),
        (["--bids-database-dir", "db"], "bids_database_dir", Path("db")),
        (["--skip-bids-validation"], "skip_bids_validation", True),
        (["--skip_bids_validation"], "skip_bids_validation", True),
        (["-w", "work"], "work_dir", Path("work")),
        (["--work-dir", "work"], "work_dir", Path("work")),
        (["--clean-workdir"], "clean_workdir", True),
        (["--nprocs", "4"], "nprocs", 4),
        (["--n-cpus", "4"], "nprocs", 4),
        (["--n_cpus", "4"], "nprocs", 4),
        (["--omp-nthreads", "2"], "omp_nthreads", 2),
        (["--mem-gb", "2.5"], "mem_gb", 2.5),
        (["--mem_gb", "2"], "mem_gb", 2.0),
        (["--device", "cuda:0"], "device", "cuda:0"),
        (["--adapter", "a.safetensors"], "adapter", "a.safetensors"),
        (["--base-model", "b.safetensors"], "base_model", Path("b.safetensors")),
        (["--n4"], "n4", True),
        (["--n4", "--no-n4"], "n4", False),
        (["--model", "volume ~ a", "--model", "volume ~ b"], "model", ("volume ~ a", "volume ~ b")),
        (["--contrast", "A:B", "C:D"], "contrast", ("A:B", "C:D")),
        (["--labels", "a", "--labels", "b"], "labels", (Path("a"), Path("b"))),
        (["--rank", "2"], "rank", 2),
        (["--learning-rate", "1e-4"], "learning_rate", 1e-4),
        (["--seed", "0"], "seed", 0),
        (["--layers", "attention", "mlp"], "layers", ("attention", "mlp")),
        (
            ["--participant-label", "01", "--participant-label", "02"],
            "participant_label",
            ("01", "02"),
        ),
        (["--use-plugin", "p.yml"], "use_plugin", Path("p.yml")),
        (["--stop-on-first-crash"], "stop_on_first_crash", True),
        (["--dry-run"], "dry_run", True),
        (["-v"], "verbose", 1),
        (["-vv"], "verbose", 2),
        (["--verbose", "-v"], "verbose", 2),
    ],
)
def test_option(options: list[str], name: str, value: object) -> None:
    settings = parse(*options)
    assert getattr(settings, name) == value
    changed = {key for key, entry in asdict(settings).items() if entry != asdict(parse())[key]}
    assert changed <= {name}


def test_every_option_has_a_setting_and_every_setting_an_option() -> None:
    names = {action.dest for action in build_parser()._actions}
    # not of one run: help and version; --notrack does nothing
    assert names - {"help", "version", "config", "notrack"} == {f.name for f in fields(Settings)}
    assert set(OTHER) | POSITIONAL == {f.name for f in fields(Settings)}


def test_notrack_does_nothing() -> None:
    assert parse("--notrack") == parse()


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["in", "out"],
        ["in", "out", "both"],
        [*BASIC, "--unknown"],
        # no abbreviations: they change their meaning when options are added
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
    ],
)
def test_wrong_usage_is_64(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(argv)
    assert end.value.code == 64
    assert "hyps-bids: error:" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_are_0(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([option])
    assert end.value.code == 0
    assert "hyps-bids" in capsys.readouterr().out


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
    ("text", "message"),
    [
        ("nprocs = ", "not valid TOML"),
        ("procs = 2", "unknown options procs"),
        ('bids_dir = "x"', "unknown options bids_dir"),
        (
            'output-dir = "x"\nanalysis_level = "group"',
            "unknown options analysis_level, output_dir",
        ),
        ("notrack = true", "unknown options notrack"),
        ('nprocs = "2"', "nprocs = '2' is not a int"),
        ("nprocs = 2.0", "nprocs"),
        ("nprocs = true", "nprocs"),
        ("nprocs = 0", "nprocs"),
        ("omp_nthreads = -2", "omp_nthreads"),
        ("verbose = -1", "verbose"),
        ("n4 = 1", "n4"),
        ('mem_gb = "2"', "mem_gb"),
        ("mem_gb = -1", "mem_gb"),
        ("mem_gb = nan", "mem_gb"),
        ("mem_gb = true", "mem_gb"),
        ("work_dir = 1", "work_dir"),
        ("adapter = 1", "adapter"),
        ("participant_label = 1", "participant_label"),
        ("participant_label = [1, 2]", "participant_label"),
        ("[participant]\nnprocs = 2", "unknown options participant"),
    ],
)
def test_bad_config_file(
    tmp_path: Path, text: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = config(tmp_path, text)
    with pytest.raises(UsageError, match=message):
        parse(*options)
    assert main([*BASIC, *options]) == 64
    assert "hyps.toml" in capsys.readouterr().err


def test_missing_config_file(tmp_path: Path) -> None:
    with pytest.raises(MissingInput, match=r"nowhere\.toml"):
        parse("--config", str(tmp_path / "nowhere.toml"))
    assert main([*BASIC, "--config", str(tmp_path)]) == 66


@pytest.mark.parametrize("names", [[], *([name] for name in OTHER), list(OTHER)])
def test_settings_come_back_from_their_file(tmp_path: Path, names: list[str]) -> None:
    paths = {f.name for f in fields(Settings) if "Path" in str(f.type)}
    values: dict[str, Any] = {}
    for name in names:
        value = OTHER[name]
        read = Path if name in paths else lambda x: x
        values[name] = tuple(map(read, value)) if isinstance(value, list) else read(value)
    settings = Settings(
        bids_dir=Path("in"), output_dir=Path("out"), analysis_level="participant", **values
    )
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


@pytest.fixture
def raw(tmp_path: Path) -> Path:
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
    assert "hyps-bids: error:" in message
    assert "Traceback" not in message


def test_dry_run_lists_the_scans(
    demo_bids: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [str(demo_bids), str(tmp_path / "out"), "participant", "--dry-run"]
    assert main([*argv, "--participant-label", "sub-05"]) == 0
    expected = demo_bids / "sub-05" / "anat" / "sub-05_T1w.nii.gz"
    assert capsys.readouterr().out.split() == [str(expected)]


def test_group_without_participants_is_66(raw: Path, tmp_path: Path) -> None:
    assert main([str(raw), str(tmp_path / "out"), "group"]) == 66


def test_module_tells_its_version() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hyps_bids", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == f"hyps-bids {__version__}"


def test_parsing_imports_nothing_slow() -> None:
    code = (
        "import sys; from hyps_bids.cli import parse_settings; "
        f"parse_settings({BASIC!r}); "
        "print({'torch', 'nipype', 'bids', 'nibabel', 'pandas', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--train-adapter", "mine"], "belong together"),
        (["--labels", "manual"], "belong together"),
        (["--contrast", "AD:CN"], "--contrast needs --target"),
        (["--train-adapter", "mine", "--labels", "m", "--target", "dx"], "a run of its own"),
        (["--harmonize"], "need --site"),
        (["--leave-one-site-out"], "need --site"),
    ],
)
def test_group_options_that_contradict(
    raw: Path, tmp_path: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(raw), str(tmp_path / "out"), "group", *options]) == 64
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
