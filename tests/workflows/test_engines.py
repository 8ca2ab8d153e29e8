"""Workers killed from outside, as the kernel does when memory runs out."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from nipype import config
from nipype.interfaces.utility import Function
from nipype.pipeline import engine as pe
from nipype.pipeline.engine import nodes, utils
from nipype.pipeline.plugins import base

from hyps_bids.errors import UsageError
from hyps_bids.outputs.writing import write_nifti
from hyps_bids.workers import start_worker
from hyps_bids.workflows.crash_files import Failures
from hyps_bids.workflows.engines import (
    MultiProcPlugin,
    check_paths,
    engine,
)
from tests.raising import raises
from tests.workflows.test_crash_files import crash_reasons


def killed_once(folder: str, name: str) -> None:
    """Die by SIGKILL the first time, leave a file the second."""
    import os
    import signal
    from pathlib import Path

    tried = Path(folder) / f"{name}.tried"
    if not tried.exists():
        tried.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    (Path(folder) / f"{name}.done").touch()


def killed_always(folder: str, name: str) -> None:
    """Count the attempts."""
    import os
    import signal
    from pathlib import Path

    with (Path(folder) / f"{name}.tried").open("a") as file:
        file.write("x")
    os.kill(os.getpid(), signal.SIGKILL)


def waits(folder: str, name: str) -> None:
    """Be in flight while another worker dies."""
    import time
    from pathlib import Path

    time.sleep(0.5)
    with (Path(folder) / f"{name}.done").open("a") as file:
        file.write("x")


def warns(folder: str, name: str) -> None:
    """Log as a node does."""
    import logging

    logging.getLogger("hyps_bids").warning("heard of %s", name)


def fails(folder: str, name: str) -> None:
    raise ValueError("an ordinary failure")


def writes(folder: str, name: str, after: str = "") -> str:
    """Note when it runs."""
    import time
    from pathlib import Path

    (Path(folder) / name).write_text(str(time.monotonic()))
    return name


def run(
    tmp_path: Path,
    functions: dict[str, Any],
    n_procs: int = 2,
    mp_context: str = "fork",
    failures: Failures | None = None,
) -> dict[str, str]:
    """Run one node per function; return the reasons of those that failed."""
    crashes = tmp_path / "crashes"
    workflow = pe.Workflow(name="participant_wf", base_dir=str(tmp_path / "work"))
    for name, function in functions.items():
        interface = Function(function=function, input_names=["folder", "name"])
        interface.inputs.trait_set(folder=str(tmp_path), name=name)
        inner = pe.Workflow(name=name)
        inner.add_nodes([pe.Node(interface, name="segment")])
        workflow.add_nodes([inner])
    workflow.config["execution"] = {
        "crashdump_dir": str(crashes),
        "crashfile_format": "txt",
        "stop_on_first_crash": "false",
        "poll_sleep_duration": "0.05",
    }
    # As after the handler that the app sets for itself
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        plugin = MultiProcPlugin(
            {"n_procs": n_procs, "memory_gb": 4, "n_gpu_procs": 0, "mp_context": mp_context}
        )
        plugin.failures = failures
        # nipype raises at the end what failed
        with suppress(RuntimeError):
            workflow.run(plugin=plugin)
    finally:
        signal.signal(signal.SIGTERM, before)
    return crash_reasons(crashes)


@pytest.mark.parametrize("nested", [False, True], ids=["chain", "report after a scan"])
def test_chains_that_are_begun_are_finished_before_others_begin(
    nested: bool, tmp_path: Path
) -> None:
    workflow = pe.Workflow(name="chains", base_dir=str(tmp_path / "work"))
    for k in range(12):
        steps = [pe.Node(Function(function=writes), name=f"{step}{k}") for step in "abc"]
        for node in steps:
            node.inputs.trait_set(folder=str(tmp_path), name=node.name)
        inner = pe.Workflow(name=f"chain{k}")
        inner.connect([(a, b, [("out", "after")]) for a, b in pairwise(steps[: 3 - nested])])
        if nested:
            scan, inner = inner, pe.Workflow(name=f"subject{k}")
            inner.connect([(scan, steps[2], [(f"b{k}.out", "after")])])
        workflow.add_nodes([inner])
    workflow.config["execution"] = {"poll_sleep_duration": "0.05"}
    workflow.run(plugin=MultiProcPlugin({"n_procs": 2, "memory_gb": 4, "mp_context": "fork"}))
    times = {path.name: float(path.read_text()) for path in tmp_path.glob("[abc]*")}
    assert len(times) == 36
    under_way = [
        sum(times[f"a{k}"] <= now < times[f"c{k}"] for k in range(12)) for now in times.values()
    ]
    assert max(under_way) <= 4


def test_node_whose_worker_was_killed_runs_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # Alone in flight: nipype's own plugin waits for ever
    assert run(tmp_path, {"a": killed_once}) == {}
    assert (tmp_path / "a.done").exists()
    assert [r.levelname for r in caplog.records if r.name == "hyps_bids"] == ["WARNING"]
    # It was alone: fewer processes would not help
    assert "--nprocs" not in caplog.text


@pytest.mark.slow
def test_nodes_beside_it_run_again_and_those_after_it_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = ["a", "b", "c", "d"]
    functions = {"a": waits, "b": killed_once, "c": waits, "d": killed_once}
    assert run(tmp_path, functions) == {}
    assert "--nprocs 1" in caplog.text
    assert all((tmp_path / f"{name}.done").exists() for name in names)


def test_node_that_kills_its_worker_alone_fails_and_the_others_go_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reasons = run(tmp_path, {"a": killed_always, "b": waits, "c": waits, "d": fails})
    assert set(reasons) == {"a", "d"}
    assert "--mem-gb" in reasons["a"]
    assert (tmp_path / "a.tried").read_text() == "xx"
    # In flight the first time, or not even that
    assert (tmp_path / "b.done").read_text() == "x"
    assert "an ordinary failure" in reasons["d"]
    assert [(tmp_path / f"{name}.done").exists() for name in "bc"] == [True, True]
    # It was the node's own fault, not that of too many processes
    assert "--nprocs" not in caplog.text


@pytest.mark.parametrize("mp_context", ["fork", "forkserver"])
def test_workers_write_to_the_log_of_the_run(
    tmp_path: Path, capfd: pytest.CaptureFixture, mp_context: str
) -> None:
    """Also those that are not forked, as on a GPU."""
    logger, path = logging.getLogger("hyps_bids"), tmp_path / "run.log"
    logging.getLogger("nipype.workflow").setLevel(logging.CRITICAL)
    for handler in (logging.FileHandler(path), logging.StreamHandler(sys.__stderr__)):
        handler.setFormatter(logging.Formatter("at %(levelname)s: %(message)s"))
        logger.addHandler(handler)
    logger.propagate = False
    assert run(tmp_path, {"a": warns}, mp_context=mp_context) == {}
    assert path.read_text() == "at WARNING: heard of a\n"
    assert capfd.readouterr().err.count("at WARNING: heard of a") == 1


def test_result_that_cannot_be_sent_back_is_a_failure_too(tmp_path: Path) -> None:
    # nipype's own plugin waits for ever for any error outside the node
    plugin = MultiProcPlugin({"n_procs": 1, "memory_gb": 1, "mp_context": "fork"})
    plugin._submit_job(lambda: None)
    while (result := plugin._get_result(1)) is None:
        pass
    assert "pickle" in result["traceback"][-1]
    plugin._postrun_check()


def test_workers_end_with_a_run_that_is_killed() -> None:
    code = """
import os, signal, time
from hyps_bids.workflows.engines import MultiProcPlugin
plugin = MultiProcPlugin({"n_procs": 1, "memory_gb": 1, "mp_context": "fork"})
print(plugin.workers._pool.submit(os.getpid).result(), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == -signal.SIGKILL
    end = time.monotonic() + 10
    # A worker that lived on would also have kept the pipe open, and us waiting for its end
    while Path(f"/proc/{run.stdout.strip()}").exists():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_terminated_worker_leaves_no_partial_file(tmp_path: Path) -> None:
    def write_for_ever() -> None:
        # As inherited from the run's own handler
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        start_worker(str(tmp_path))
        image = nib.Nifti1Image(np.zeros((200, 200, 200), np.uint8), np.eye(4))
        while True:
            write_nifti(tmp_path / "x.nii.gz", image)

    context = multiprocessing.get_context("fork")
    worker = context.Process(target=write_for_ever)
    worker.start()
    # In the middle of writing
    while not list(tmp_path.glob(".*.x.nii.gz")):
        assert worker.is_alive()
    worker.terminate()
    worker.join(30)
    assert worker.exitcode == 143
    assert not list(tmp_path.glob(".*"))


def logs_what_was_said(folder: str, name: str) -> None:
    """End only when the failure of another node has been logged."""
    import time
    from pathlib import Path

    for _ in range(400):
        if (Path(folder) / "said").exists():
            (Path(folder) / f"{name}.done").touch()
            return
        time.sleep(0.05)


@pytest.mark.parametrize("crash_file", [True, False])
def test_failures_are_logged_while_others_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, crash_file: bool
) -> None:
    class Note(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno == logging.ERROR:
                (tmp_path / "said").write_text(record.getMessage())

    if not crash_file:
        # Recording the failure fails too.
        (tmp_path / "crashes").touch()
    note = Note()
    logging.getLogger("hyps_bids").addHandler(note)
    failures = Failures(tmp_path / "crashes", {"sub_01": "sub-01: failed"})
    run(tmp_path, {"sub_01": fails, "sub_02": logs_what_was_said}, failures=failures)
    logging.getLogger("hyps_bids").removeHandler(note)
    assert (tmp_path / "sub_02.done").exists()
    said = (tmp_path / "said").read_text()
    assert said.startswith("sub-01: failed: ValueError: an ordinary failure")
    assert ("traceback in logs/" in said) == crash_file
    assert list(failures.reasons) == ["sub_01"]


def test_nipypes_own_plugin_tells_of_failures(tmp_path: Path) -> None:
    failures = Failures(tmp_path / "50% [crashes]*?", {"sub_01": "sub-01: failed"})
    config.update_config({"execution": {"crashdump_dir": str(failures.folder)}})
    workflow = pe.Workflow(name="participant_wf", base_dir=str(tmp_path / "work"))
    interface = Function(function=fails, input_names=["folder", "name"])
    interface.inputs.trait_set(folder=str(tmp_path), name="x")
    inner = pe.Workflow(name="sub_01")
    inner.add_nodes([pe.Node(interface, name="segment")])
    workflow.add_nodes([inner])
    workflow.config["execution"] = {
        "crashdump_dir": str(failures.folder),
        "crashfile_format": "txt",
        "stop_on_first_crash": "false",
    }
    with pytest.raises(Exception, match="an ordinary failure"):
        workflow.run(**engine("Linear", {}, failures))
    assert "an ordinary failure" in failures.reasons["sub_01"]


@pytest.mark.parametrize("module", [nodes, utils, base])
def test_nipype_finds_results_in_a_folder_of_any_name(tmp_path: Path, module: Any) -> None:
    folder = tmp_path / "50% [a]*?{b}$HOME#"
    folder.mkdir()
    (folder / "_0x1.json").touch()
    assert module.glob(f"{folder}/_0x*.json") == [f"{folder}/_0x1.json"]


def test_nipype_starts_in_a_home_of_any_name(tmp_path: Path) -> None:
    home = tmp_path / "50% home"
    home.mkdir()
    subprocess.run(
        [sys.executable, "-c", "import hyps_bids.workflows.engines"],
        env=os.environ | {"HOME": str(home)},
        cwd=home,
        check=True,
    )


def test_paths_that_a_scheduler_would_misread_are_refused() -> None:
    check_paths("MultiProc", Path("/data/my study 50%"))
    check_paths("SLURM", Path("/data/Köln_1.0/ds-1"))
    for name in ("my study", "50%", "it's", "a$b", "[x]"):
        with raises(UsageError, "path-unfit-for-scheduler", name, "SLURM"):
            check_paths("SLURM", Path("/data"), Path("/data") / name)
