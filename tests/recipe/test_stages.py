"""Stages go on where they were killed, and weights change only for better ones."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hyps_bids import tools
from hyps_bids.errors import MissingInput, NotFinished, UsageError
from hyps_bids.networks.cards import read_card
from hyps_bids.networks.checkpoints import load_adapted
from hyps_bids.outputs.digests import sha256
from hyps_bids.outputs.reading import read_json_object
from hyps_bids.outputs.writing import write_json
from hyps_bids.pretraining.pretrain import PretrainingTask, base_task
from hyps_bids.pretraining.synthesis import BOX
from hyps_bids.recipe.choose import choose_adapter, replace_weights
from hyps_bids.recipe.judge import is_better
from hyps_bids.recipe.plan import read_recipe
from hyps_bids.recipe.stages import Workshop, claim, finish, train_network
from tests.raising import raises

CPU = torch.device("cpu")


@pytest.fixture
def weights(small_base: Path, tmp_path: Path) -> Path:
    """A folder of weights with nothing but a base."""
    (tmp_path / "weights").mkdir()
    shutil.copy(small_base, tmp_path / "weights")
    return tmp_path / "weights"


@pytest.fixture
def workshop(data: Path, weights: Path, tmp_path: Path) -> Workshop:
    told: list[str] = []
    plan = read_recipe(data / "recipe.toml")
    return Workshop(plan, data, tmp_path / "out", weights, CPU, tell=told.append)


def told(workshop: Workshop) -> list[str]:
    return workshop.tell.__self__


def argv(data: Path, out: Path, weights: Path, *stages: str) -> list[str]:
    words = ["train", str(data), str(out), "--recipe", str(data / "recipe.toml")]
    words += ["--weights", str(weights), "--device", "cpu", "--threads", "1"]
    return [*words, "--stages", *stages]


def run_until(words: list[str], marker: Path) -> int:
    """Run the command, and kill it by force as soon as a file is there."""
    command = [sys.executable, "-m", "hyps_bids.tools", *words]
    with subprocess.Popen(command, cwd=Path(__file__).parents[2]) as child:
        while child.poll() is None and not marker.exists():
            time.sleep(0.02)
        child.kill()
    return child.returncode


@pytest.mark.slow
def test_killed_stages_give_the_weights_of_an_uninterrupted_run(
    data: Path, weights: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert tools.main(argv(data, whole, weights, "adapter", "soup")) == 0
    first = capfd.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in first] == ["adapter-1", "adapter-2", "soup"]

    again = argv(data, killed, weights, "adapter", "soup")
    for marker in (
        "adapter-1/checkpoint.pt",
        "adapter-1/adapter.safetensors",
        "soup/candidate.safetensors",
        "soup/adapter-anteriorposterior.safetensors",
    ):
        assert run_until(again, killed / marker) == -signal.SIGKILL
    assert tools.main(again) == 0
    files = ["adapter-1/adapter", "adapter-2/adapter", "soup/adapter-anteriorposterior"]
    for name in files:
        one, other = (folder / f"{name}.safetensors" for folder in (whole, killed))
        assert one.read_bytes() == other.read_bytes()
        assert sha256(one) in (whole / f"{name}.md").read_text(encoding="utf-8")
        assert (whole / f"{name}.md").read_text() == (killed / f"{name}.md").read_text()
    result = read_json_object(whole / "soup" / "result.json")
    assert set(result["candidates"]) == {"adapter-1", "adapter-2", "0.5 adapter-1 + 0.5 adapter-2"}
    assert result == read_json_object(killed / "soup" / "result.json")
    assert not list(killed.rglob("checkpoint.pt"))
    _, card = load_adapted(
        whole / "soup" / "adapter-anteriorposterior.safetensors",
        weights / "base-synthetic.safetensors",
    )
    assert card["license"] == "CC BY-SA 4.0"

    # There was no adapter before, so that the new one may take the place.
    assert tools.main([*argv(data, whole, weights, "soup"), "--replace"]) == 0
    assert "adapter:" in capfd.readouterr().out
    new = weights / "adapter-anteriorposterior.safetensors"
    assert sha256(new) in new.with_suffix(".md").read_text(encoding="utf-8")
    assert (weights / "LICENSE.md").is_file()
    # Now there is one; a mixture with it is a candidate, and the outcome is the same.
    later = tmp_path / "later"
    for folder in ("adapter-1", "adapter-2"):
        shutil.copytree(whole / folder, later / folder)
    assert tools.main(argv(data, later, weights, "soup")) == 0
    result = read_json_object(later / "soup" / "result.json")
    assert any(name.endswith("+ 0.5 before") for name in result["candidates"])
    assert result["before"] is not None
    # Another recipe does not mix with these results.
    other = tmp_path / "recipe.toml"
    text = (data / "recipe.toml").read_text(encoding="utf-8")
    other.write_text(text.replace("steps = 3", "steps = 4"), encoding="utf-8")
    changed = [str(other) if word.endswith("recipe.toml") else word for word in again]
    assert tools.main(changed) == 64


def small_task(_: str) -> PretrainingTask:
    box = replace(BOX, shape=(40, 40, 40))
    return replace(base_task(12), synthesis=box, validation_batches=1)


@pytest.mark.slow
def test_base_is_compared_with_the_one_before(workshop: Workshop, tmp_path: Path) -> None:
    hurried = replace(workshop, deadline=time.monotonic() - 1)
    with raises(NotFinished, "time-over", "base"):
        train_network(hurried, "base", small_task)
    assert train_network(workshop, "base", small_task)
    result = read_json_object(tmp_path / "out/base/result.json")
    new, old = (result[key]["dice_mean"] for key in ("metrics", "before"))
    assert result["better"] == (new > old)
    assert told(workshop)[-1].startswith("base: done; dice_mean")
    before = sha256(workshop.weights / "base-synthetic.safetensors")
    assert (sha256(workshop.base()) == before) == (not result["better"])
    card = read_card(tmp_path / "out/base/base.safetensors")
    assert before in card["training"]["start"]
    assert "2 steps of 1 on CPU" in card["training"]["steps were taken"]


def test_only_one_process_has_a_stage(workshop: Workshop, tmp_path: Path) -> None:
    folder = tmp_path / "out" / "base"
    with claim(folder) as is_free:
        assert is_free
        assert not train_network(workshop, "base", small_task)
    assert told(workshop) == ["base: another process trains it"]
    with claim(folder) as is_free:
        assert is_free


def made(workshop: Workshop, stage: str, name: str, *, better: bool) -> bytes:
    folder = workshop.output / stage
    folder.mkdir(parents=True)
    path = folder / f"{name}.safetensors"
    path.write_bytes(f"new {stage}".encode())
    path.with_suffix(".md").write_text(f"`{name}.safetensors`", encoding="utf-8")
    finish(folder, {"better": better, "base": sha256(workshop.base())})
    return path.read_bytes()


@pytest.mark.parametrize("better", [True, False])
def test_weights_are_replaced_by_better_ones_only(workshop: Workshop, better: bool) -> None:
    old = (workshop.weights / "base-synthetic.safetensors").read_bytes()
    adapter = workshop.weights / "adapter-anteriorposterior.safetensors"
    adapter.write_bytes(b"old adapter")
    for stage in ("base", "adapter"):
        workshop.shipped(stage)
    base = made(workshop, "base", "base", better=True)
    new = made(workshop, "soup", "adapter-anteriorposterior", better=better)
    for _ in range(2):
        replace_weights(workshop)
        # A new base is of no use without its adapter.
        found = (workshop.weights / "base-synthetic.safetensors").read_bytes()
        assert found == (base if better else old)
        assert adapter.read_bytes() == (new if better else b"old adapter")
    if better:
        card = (workshop.weights / "base-synthetic.md").read_text(encoding="utf-8")
        assert card == "`base-synthetic.safetensors`"
    else:
        assert told(workshop)[-1].startswith("replace: nothing")


def test_an_adapter_is_not_shipped_with_a_base_that_was_trained_later(workshop: Workshop) -> None:
    base = workshop.weights / "base-synthetic.safetensors"
    old = base.read_bytes()
    made(workshop, "soup", "adapter-anteriorposterior", better=True)
    made(workshop, "base", "base", better=True)
    made(workshop, "localizer", "localizer", better=True)
    with raises(UsageError, "soup-other-base", workshop.output / "soup"):
        replace_weights(workshop)
    assert base.read_bytes() == old
    assert [path.name for path in workshop.weights.iterdir()] == [base.name]


def test_an_earlier_verdict_does_not_count_for_a_later_adapter(workshop: Workshop) -> None:
    made(workshop, "soup", "adapter-anteriorposterior", better=True)
    # It ends early, as a process that is killed does.
    with raises(MissingInput, "no-adapter-trained"):
        choose_adapter(workshop, [1])
    replace_weights(workshop)
    assert told(workshop)[-1].startswith("replace: nothing")


def test_weights_that_changed_meanwhile_are_kept(workshop: Workshop) -> None:
    target = workshop.weights / "localizer-synthetic.safetensors"
    target.write_bytes(b"before")
    workshop.shipped("localizer")
    target.write_bytes(b"somebody else's, later")
    made(workshop, "localizer", "localizer", better=True)
    with raises(UsageError, "weights-changed", target):
        replace_weights(workshop)
    assert target.read_bytes() == b"somebody else's, later"


def test_better_must_not_cost_t1w() -> None:
    old = {"dice_whole": 0.9, "other contrasts: dice_whole": 0.4}
    assert is_better({**old, "other contrasts: dice_whole": 0.5}, old, 0.001)
    assert not is_better({"dice_whole": 0.89, "other contrasts: dice_whole": 0.9}, old, 0.001)
    assert not is_better(old, old, 0.001)


def test_result_of_another_recipe_is_refused(workshop: Workshop, tmp_path: Path) -> None:
    write_json(tmp_path / "out/base/result.json", {"identity": {"loop": {"steps": 7}}})
    with raises(UsageError, "stage-differs", tmp_path / "out/base", "loop (", "steps"):
        train_network(workshop, "base", small_task)
