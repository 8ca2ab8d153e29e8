"""The examples for clusters: the scripts' logic anywhere, and all of it where Slurm runs."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml
from nipype import config
from nipype.pipeline import plugins

from hyps_bids import __version__
from hyps_bids.cli import parse_settings
from hyps_bids.errors import UsageError
from hyps_bids.outputs.reading import read_table
from hyps_bids.workflows.engines import engine, read_plugin
from tests.raising import raises

#: Seconds that anything on the cluster may take.
_PATIENCE_S = 240


def executable(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)
    return path


class TestJob:
    """job.sbatch as a plain shell script, with stand-ins for the app and scontrol."""

    @pytest.fixture
    def environment(self, tmp_path: Path) -> dict[str, str]:
        app = executable(
            tmp_path / "app", f'echo "$@" > {tmp_path}/arguments; eval "$APP"; exit "$CODE"'
        )
        executable(tmp_path / "bin/scontrol", f'echo "$@" >> {tmp_path}/requeued')
        (tmp_path / "list").write_text("sub-01\nsub-02\nsub-03\n")
        return {
            "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
            "TMPDIR": str(tmp_path),
            "HYPS_BIDS": str(app),
            "SLURM_JOB_ID": "77",
            "SLURM_ARRAY_TASK_ID": "2",
            "SLURM_CPUS_PER_TASK": "3",
            "SLURM_MEM_PER_NODE": "6144",
        }

    def start(
        self, root: Path, tmp_path: Path, environment: dict[str, str], *level: str
    ) -> subprocess.Popen[bytes]:
        script = root / "examples/slurm/job.sbatch"
        arguments = level or ("participant", str(tmp_path / "list"), "1", "--session-label", "a b")
        return subprocess.Popen(["bash", script, "/bids", "/out", *arguments], env=environment)

    def test_task_processes_its_participant(
        self, root: Path, tmp_path: Path, environment: dict[str, str]
    ) -> None:
        assert self.start(root, tmp_path, environment | {"CODE": "0"}).wait() == 0
        given = (tmp_path / "arguments").read_text().split()
        work = given[given.index("-w") + 1]
        # Offset 1 and task 2 mean the third line.
        assert " ".join(given) == (
            f"/bids /out participant -w {work} --participant-label sub-03 "
            "--nprocs 3 --omp-nthreads 3 --mem-gb 6.00 --session-label a b"
        )
        assert not Path(work).exists()

    def test_group_level(self, root: Path, tmp_path: Path, environment: dict[str, str]) -> None:
        environment |= {"CODE": "0"}
        assert self.start(root, tmp_path, environment, "group", "--site", "scanner").wait() == 0
        given = (tmp_path / "arguments").read_text()
        assert given.startswith("/bids /out group -w ")
        assert given.endswith("--site scanner\n")
        assert "participant" not in given

    @pytest.mark.parametrize(
        ("code", "restarts", "requeued"),
        [
            (0, 0, False),
            (1, 0, False),
            (66, 0, False),
            (137, 0, False),
            (143, 0, False),
            (74, 0, True),
            (74, 2, True),
            (74, 3, False),
            (75, 0, False),
        ],
    )
    def test_only_what_may_succeed_is_requeued(
        self,
        root: Path,
        tmp_path: Path,
        environment: dict[str, str],
        code: int,
        restarts: int,
        requeued: bool,
    ) -> None:
        environment |= {"CODE": str(code), "SLURM_RESTART_COUNT": str(restarts)}
        assert self.start(root, tmp_path, environment).wait() == code
        record = tmp_path / "requeued"
        assert (record.read_text() if record.exists() else "") == ("requeue 77\n" * requeued)

    @pytest.mark.parametrize(
        ("number", "requeued"), [(signal.SIGUSR1, True), (signal.SIGTERM, False)]
    )
    def test_signals_reach_the_app(
        self,
        root: Path,
        tmp_path: Path,
        environment: dict[str, str],
        number: signal.Signals,
        requeued: bool,
    ) -> None:
        # The app takes a while to stop.
        waiting = f"trap 'sleep 0.3; exit 143' TERM; touch {tmp_path}/ready; sleep 30 & wait"
        job = self.start(root, tmp_path, environment | {"CODE": "0", "APP": waiting})
        wait_until((tmp_path / "ready").exists)
        job.send_signal(number)
        assert job.wait(timeout=10) == 143
        # A canceled job is not requeued.
        assert (tmp_path / "requeued").exists() == requeued

    def test_node_without_room_is_left(
        self, root: Path, tmp_path: Path, environment: dict[str, str]
    ) -> None:
        environment |= {"TMPDIR": str(tmp_path / "nosuch")}
        assert self.start(root, tmp_path, environment).wait() == 74
        assert (tmp_path / "requeued").read_text() == "requeue 77\n"

    def test_container(self, root: Path, tmp_path: Path, environment: dict[str, str]) -> None:
        record = tmp_path / "container"
        executable(tmp_path / "bin/apptainer", f'echo "$@" > {record}')
        environment |= {"HYPS_IMAGE": "/images/hyps.sif", "SLURM_JOB_GPUS": "0"}
        assert self.start(root, tmp_path, environment).wait() == 0
        given = record.read_text()
        assert given.startswith("run --cleanenv --containall -B /bids:/bids:ro -B /out -B /")
        assert " --nv /images/hyps.sif /bids /out participant -w /" in given


class TestSubmit:
    """submit.sh with stand-ins of Slurm's commands."""

    def submit(self, root: Path, tmp_path: Path, **variables: str) -> list[str]:
        """Submit five participants; return the calls of sbatch."""
        calls = tmp_path / "calls"
        calls.unlink(missing_ok=True)
        executable(
            tmp_path / "bin/sbatch",
            f'echo "$@" >> {calls}; echo "${{!#}}" > {tmp_path}/last; echo "1$(wc -l < {calls})"',
        )
        executable(tmp_path / "bin/scontrol", 'echo "MaxArraySize            = 3"')
        for name in ("sub-01", "sub-02", "sub-03/ses-A", "sub-04", "sub-05"):
            folder = tmp_path / "raw" / name / "anat"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{name.replace('/', '_')}_T1w.nii.gz").touch()
        (tmp_path / "raw/sub-06/func").mkdir(parents=True, exist_ok=True)
        environment = os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
        subprocess.run(
            [root / "examples/slurm/submit.sh", "raw", "out", "--n4"],
            cwd=tmp_path,
            env=environment | variables,
            check=True,
        )
        return calls.read_text().splitlines()

    def participants(self, tmp_path: Path) -> list[str]:
        """Return, and remove, the list of participants that the last call has written."""
        (path,) = (tmp_path / "out/logs/slurm").glob("participants-*.txt")
        names = path.read_text().split()
        path.unlink()
        return names

    def finish(self, tmp_path: Path, *scans: str) -> None:
        """Make the sidecar and the report of scans, as a finished run leaves them."""
        for scan in scans:
            subject, *_, stem = scan.split("/")
            folder = tmp_path / "out" / Path(scan).parent / "anat"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{stem}_seg-hippocampus_qc.json").touch()
            (tmp_path / "out" / f"{subject}.html").write_text("report")

    def test_array_per_chunk_and_group_after_all(self, root: Path, tmp_path: Path) -> None:
        *arrays, group = self.submit(root, tmp_path, HYPS_GROUP_OPTIONS='--model "volume ~ age"')
        # MaxArraySize is one more than the largest index.
        indices = [call.split("--array=")[1].split()[0] for call in arrays]
        assert indices == ["1-2%50", "1-2%50", "1-1%50"]
        (path,) = (tmp_path / "out/logs/slurm").glob("participants-*.txt")
        assert self.participants(tmp_path) == [f"sub-0{i}" for i in range(1, 6)]
        for call, offset in zip(arrays, (0, 2, 4), strict=True):
            assert call.endswith(f"{tmp_path}/raw {tmp_path}/out participant {path} {offset} --n4")
        assert "--dependency=afterany:11:12:13 " in group
        assert group.endswith(f"{tmp_path}/raw {tmp_path}/out group --model volume ~ age")
        # The formula is one argument, quoted as for a shell.
        assert (tmp_path / "last").read_text() == "volume ~ age\n"

    def test_only_what_is_missing(self, root: Path, tmp_path: Path) -> None:
        self.finish(tmp_path, "sub-01/sub-01", "sub-03/ses-A/sub-03_ses-A", "sub-04/sub-04_run-1")
        # A failed scan has a report and a table, but no sidecar.
        failed = tmp_path / "out/sub-02/anat/sub-02_seg-hippocampus_qc.tsv"
        failed.parent.mkdir(parents=True)
        failed.touch()
        (tmp_path / "out/sub-02.html").write_text("report")
        self.submit(root, tmp_path)
        # sub-04 has results of an image that has another name now.
        assert self.participants(tmp_path) == ["sub-02", "sub-04", "sub-05"]
        # sub-01 was killed before its report was written.
        (tmp_path / "out/sub-01.html").unlink()
        self.submit(root, tmp_path)
        assert self.participants(tmp_path) == ["sub-01", "sub-02", "sub-04", "sub-05"]
        calls = self.submit(root, tmp_path, HYPS_ALL="1", HYPS_SBATCH="--partition=long")
        assert len(self.participants(tmp_path)) == 5
        assert all("--partition=long" in call for call in calls)

    @pytest.mark.parametrize("folder", ["nosuch", "empty"])
    def test_no_dataset(self, root: Path, tmp_path: Path, folder: str) -> None:
        (tmp_path / "empty").mkdir()
        script = root / "examples/slurm/submit.sh"
        done = subprocess.run([script, folder, "out"], cwd=tmp_path, capture_output=True)
        assert done.returncode != 0
        assert folder.encode() in done.stderr
        assert not (tmp_path / "out").exists()

    def test_nothing_to_do_but_the_group_level(self, root: Path, tmp_path: Path) -> None:
        names = [f"sub-0{i}/sub-0{i}" for i in (1, 2, 4, 5)]
        self.finish(tmp_path, *names, "sub-03/ses-A/sub-03_ses-A")
        (group,) = self.submit(root, tmp_path)
        assert "--dependency" not in group
        assert group.endswith("group")


class TestEngines:
    @pytest.fixture(autouse=True)
    def restore_configuration(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        names = ("poll_sleep_duration", "job_finished_timeout")
        before = {name: config.get("execution", name) for name in names}
        # Engines set it, and monkeypatch restores it.
        monkeypatch.setenv("LOGNAME", "someone")
        yield
        for name, value in before.items():
            config.set("execution", name, value)

    def test_every_example_is_an_engine_of_nipype(self, root: Path, tmp_path: Path) -> None:
        # The plugin of SGE asks its scheduler at once.
        qstat = str(executable(tmp_path / "qstat", 'echo "<job_info></job_info>"'))
        paths = sorted((root / "examples/nipype").glob("*.yml"))
        names = {yaml.safe_load(path.read_text())["plugin"] for path in paths}
        assert names == {"SLURM", "SLURMGraph", "SGE", "PBS", "LSF"}
        for path in paths:
            content = yaml.safe_load(path.read_text())
            assert hasattr(plugins, f"{content['plugin']}Plugin")
            chosen = engine(**content)
            if isinstance(chosen["plugin"], str):
                made = getattr(plugins, f"{chosen['plugin']}Plugin")(
                    plugin_args=chosen["plugin_args"]
                    | {"qstatProgramPath": qstat, "qstatCachedProgramPath": qstat}
                )
                arguments = next(iter(content["plugin_args"].values()))
                # nipype ignores arguments that it does not know, so check that it kept these.
                assert arguments in (
                    getattr(made, f"_{word}_args", None) for word in ("sbatch", "qsub", "bsub")
                )

    def test_schedulers_are_not_asked_all_the_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        config.set("execution", "poll_sleep_duration", "0.05")
        monkeypatch.delenv("LOGNAME")
        monkeypatch.delenv("USER", raising=False)
        engine("Linear", {})
        assert float(config.get("execution", "poll_sleep_duration")) == 0.05
        engine("SGE", {})
        assert float(config.get("execution", "poll_sleep_duration")) >= 2
        assert os.environ["LOGNAME"] == f"uid{os.getuid()}"

    def test_every_example_can_be_read_where_there_is_a_scheduler(
        self, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for command in ("sbatch", "squeue", "qsub", "qstat", "bsub", "bjobs"):
            executable(tmp_path / "bin" / command, "")
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
        for path in sorted((root / "examples/nipype").glob("*.yml")):
            assert read_plugin(path) == yaml.safe_load(path.read_text())
        monkeypatch.setenv("PATH", str(tmp_path))
        with raises(UsageError, "scheduler-command-missing", "slurm.yml", "sbatch"):
            read_plugin(root / "examples/nipype/slurm.yml")

    @pytest.mark.parametrize(
        ("content", "code", "fact"),
        [
            (b"plugin: PBSGraph", "plugin-does-not-wait", "PBSGraph"),
            (b"plugin: Multiproc", "plugin-unknown", "MultiProc"),
            (b"plugin: 3", "plugin-keys-wrong", "plugin"),
            (b"- SLURM", "plugin-keys-wrong", "plugin"),
            (b"plugin: MultiProc\nplugin_args: 4", "plugin-keys-wrong", "4"),
            (b"plugin: MultiProc\nn_procs: 4", "plugin-keys-wrong", "n_procs"),
            (b"plugin: [", "plugin-file-invalid", ""),
            (b"plugin: \xff", "plugin-file-invalid", ""),
        ],
    )
    def test_plugin_that_cannot_be_used_is_refused(
        self, tmp_path: Path, content: bytes, code: str, fact: str
    ) -> None:
        path = tmp_path / "plugin.yml"
        path.write_bytes(content)
        with raises(UsageError, code, path, fact):
            read_plugin(path)


def test_babs_configuration_fits_the_app(root: Path) -> None:
    content = yaml.safe_load((root / "examples/babs/hyps-bids.yaml").read_text())
    given = content["bids_app_args"]
    assert given.pop("$SUBJECT_SELECTION_FLAG") == "--participant-label"
    options = [word for pair in given.items() for word in pair]
    settings = parse_settings(["in", "out", "participant", *options])
    assert settings.work_dir == Path("$BABS_TMPDIR")
    assert str(settings.nprocs) == content["cluster_resources"]["number_of_cpus"]
    assert content["zip_foldernames"] == {"hyps-bids": __version__.replace(".", "-")}


def wait_until(condition: Callable[[], object], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


def slurm(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.slow
class TestSlurm:
    """On a real Slurm, with the images and networks that come with the package."""

    @pytest.fixture(autouse=True, scope="class")
    def has_slurm(self) -> None:
        if shutil.which("sinfo") is None:
            pytest.skip("no Slurm here: its commands are not installed")
        found = subprocess.run(["sinfo", "-h"], capture_output=True, timeout=60, check=False)
        if found.returncode or not found.stdout:
            pytest.skip("no Slurm here: it does not answer")

    @pytest.fixture(scope="class")
    def dataset(
        self, tmp_path_factory: pytest.TempPathFactory, coarse_head: nib.Nifti1Image
    ) -> Path:
        """Two good scans and a truncated one."""
        root = tmp_path_factory.mktemp("data") / "raw"
        root.mkdir()
        (root / "dataset_description.json").write_text('{"Name": "test", "BIDSVersion": "1.9.0"}')
        for subject in ("01", "02", "broken"):
            path = root / f"sub-{subject}" / "anat" / f"sub-{subject}_T1w.nii.gz"
            path.parent.mkdir(parents=True)
            nib.save(coarse_head, path)
        path.write_bytes(path.read_bytes()[:5000])
        return root

    @pytest.fixture(scope="class")
    def native(self, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
        out = tmp_path_factory.mktemp("native")
        assert run_app(dataset, out, "--nprocs", "1", "--omp-nthreads", "1").returncode == 1
        return out

    def submit(self, root: Path, dataset: Path, out: Path) -> tuple[str | None, str]:
        """Submit; return the numbers of the array, if there is one, and of the group job."""
        program = Path(sys.executable).with_name("hyps-bids")
        options = {"HYPS_BIDS": str(program), "HYPS_SBATCH": "--cpus-per-task=1 --mem=3G --time=30"}
        said = subprocess.run(
            [root / "examples/slurm/submit.sh", dataset, out],
            env=os.environ | options,
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        array = [line.split()[3].rstrip(",") for line in said.splitlines() if "tasks" in line]
        return (array[0] if array else None), said.split()[-1]

    def is_under_way(self, out: Path, task: str) -> bool:
        log = out / f"logs/slurm/hyps-participant_{task}.out"
        return log.exists() and " to do, " in log.read_text()

    def test_array_with_a_requeue_and_a_failure(
        self, root: Path, dataset: Path, native: Path, tmp_path: Path
    ) -> None:
        array, group = self.submit(root, dataset, tmp_path)
        first = f"{array}_1"
        wait_until(lambda: self.is_under_way(tmp_path, first), _PATIENCE_S)
        # This is what preemption does.
        slurm("scontrol", "requeue", first)
        wait_until(lambda: "PENDING" in slurm("squeue", "-h", "-j", first, "-o", "%T"), 60)
        slurm("scontrol", "update", f"JobId={first}", "StartTime=now")
        wait_until(lambda: ended(group), _PATIENCE_S)
        assert "Restarts=1" in slurm("scontrol", "show", "job", first)
        qc = read_table(tmp_path / "group_seg-hippocampus_qc.tsv").set_index("scan")
        assert qc["status"].to_dict() == {
            "sub-01": "done",
            "sub-02": "done",
            "sub-broken": "failed",
        }
        assert "truncated or damaged" in qc["reason"]["sub-broken"]
        assert_same_masks(tmp_path, native)
        # A second call submits the failed scan only.
        array, group = self.submit(root, dataset, tmp_path)
        slurm("scancel", f"{array}", group)
        newest = max(
            (tmp_path / "logs/slurm").glob("participants-*.txt"), key=lambda p: p.stat().st_mtime_ns
        )
        assert newest.read_text().split() == ["sub-broken"]

    def test_canceled_task_stays_canceled(self, root: Path, dataset: Path, tmp_path: Path) -> None:
        array, group = self.submit(root, dataset, tmp_path)
        first = f"{array}_1"
        wait_until(lambda: self.is_under_way(tmp_path, first), _PATIENCE_S)
        slurm("scancel", f"{array}", group)
        wait_until(lambda: ended(first), 60)
        shown = slurm("scontrol", "show", "job", first)
        assert "JobState=CANCELLED" in shown
        assert "Restarts=0" in shown

    @pytest.mark.parametrize("plugin", ["slurm", "slurmgraph"])
    def test_nipype_engine(
        self, plugin: str, dataset: Path, native: Path, tmp_path: Path, root: Path
    ) -> None:
        content = yaml.safe_load((root / f"examples/nipype/{plugin}.yml").read_text())
        content["plugin_args"]["sbatch_args"] = "--time=10 --cpus-per-task=1 --mem=3G"
        path = tmp_path / "plugin.yml"
        path.write_text(yaml.safe_dump(content))
        out = tmp_path / "out"
        selected = ["--participant-label", "01", "broken"]
        done = run_app(dataset, out, "--omp-nthreads", "1", "--use-plugin", path, *selected)
        assert done.returncode == 1, done.stderr
        assert "1 of 2 scans done" in done.stderr
        assert "truncated or damaged" in done.stderr
        assert_same_masks(out, native, "sub-01")


def ended(job: str) -> bool:
    state = slurm("scontrol", "show", "job", job).partition("JobState=")[2].split()[0]
    return state not in ("PENDING", "RUNNING", "COMPLETING", "REQUEUED")


def run_app(*arguments: object) -> subprocess.CompletedProcess[str]:
    bids, out, *options = map(str, arguments)
    return subprocess.run(
        [sys.executable, "-m", "hyps_bids", bids, out, "participant", *options],
        capture_output=True,
        text=True,
        check=False,
    )


def assert_same_masks(out: Path, native: Path, subject: str = "sub-*") -> None:
    paths = sorted(native.glob(f"{subject}/anat/*.nii.gz"))
    assert paths
    for path in paths:
        other = nib.load(out / path.relative_to(native))
        np.testing.assert_array_equal(np.asarray(other.dataobj), np.asarray(nib.load(path).dataobj))
