"""Tests of :mod:`hyps_bids.pretraining.distill` and of its examples, with a small teacher."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from hyps_bids.errors import UsageError
from hyps_bids.networks.cards import BASE, LOCALIZER, read_network_card, shipped_weights
from hyps_bids.networks.checkpoints import build_network, load_network, save_network
from hyps_bids.pretraining.distill import (
    DistillationPlan,
    distill,
    distillation_loss,
    draw_probabilities,
    feature_loss,
    take_over,
)
from hyps_bids.pretraining.examples import (
    SYNTHESIS,
    Sources,
    make_example,
    make_examples,
    read_example,
    read_heads,
)
from hyps_bids.pretraining.label_maps import HEAD_CLASSES, LabelMaps
from hyps_bids.training.loop import LoopSettings
from tests.raising import raises

CPU = torch.device("cpu")
#: Few voxels; the localizer's window pads them.
COARSE = replace(SYNTHESIS, shape=(24, 28, 24), voxel=8.0)


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A localizer with random weights and few features."""
    card = dict(read_network_card(shipped_weights(LOCALIZER)))
    architecture = json.loads(json.dumps(card["architecture"]))
    architecture["kwargs"]["features"] = [2, 4, 4, 4, 4, 2]
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    save_network(path, build_network(architecture), card | {"architecture": architecture})
    return path


@pytest.fixture
def plan(teacher: Path, labelmaps: Path) -> DistillationPlan:
    return DistillationPlan(
        teacher,
        labelmaps,
        features=(1, 2, 4, 4, 4, 1),
        examples=1,
        held_out=1,
        encoder_steps=1,
        synthesis=COARSE,
    )


@pytest.mark.slow
def test_student_is_written_and_a_second_run_continues(
    plan: DistillationPlan, tmp_path: Path
) -> None:
    settings = LoopSettings(steps=1, warmup=1)
    path = distill(plan, tmp_path, settings, CPU)
    student, card = load_network(path)
    teacher_card = read_network_card(plan.teacher)
    kwargs = teacher_card["architecture"]["kwargs"] | {"features": [1, 2, 4, 4, 4, 1]}
    assert card["architecture"] == {"name": "BasicUNet", "kwargs": kwargs}
    assert card["labels"] == list(HEAD_CLASSES)
    assert card["training"]["held out"] == "02.nii.gz, 03.nii.gz"
    assert card["training"]["real images"] == "none"
    assert card["training"]["validation"]["loss"] > 0
    original, _ = load_network(plan.teacher)
    for name in ("down_4.convs.conv_0.conv.weight", "upcat_3.convs.conv_1.conv.weight"):
        assert torch.equal(student.get_parameter(name), original.get_parameter(name))
    assert plan.teacher.name in path.with_suffix(".md").read_text(encoding="utf-8")
    written = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.npz")}
    assert len(written) == 2
    again, _ = load_network(distill(plan, tmp_path, settings, CPU))
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.npz")} == written
    for name, tensor in student.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor)
    with raises(UsageError, "checkpoint-other-run", "features"):
        distill(replace(plan, features=(2, 2, 4, 4, 4, 2)), tmp_path, settings, CPU)


def test_teacher_must_be_a_localizer(plan: DistillationPlan, tmp_path: Path) -> None:
    base = shipped_weights(BASE)
    with raises(UsageError, "teacher-no-localizer", base, "left hippocampus"):
        distill(replace(plan, teacher=base), tmp_path, LoopSettings(steps=1), CPU)


def test_student_takes_over_what_fits(teacher: Path) -> None:
    whole, card = load_network(teacher)
    deep = {"down_3", "down_4", "upcat_4", "upcat_3"}
    for features, frozen in (
        ([1, 2, 4, 4, 4, 1], deep),
        ([1, 2, 4, 4, 6, 1], {"down_3", "upcat_3"}),
    ):
        kwargs = card["architecture"]["kwargs"] | {"features": features}
        student = build_network({"name": "BasicUNet", "kwargs": kwargs})
        take_over(student, whole)
        fixed = {n for n, p in student.named_parameters() if not p.requires_grad}
        assert {name.split(".")[0] for name in fixed} == frozen
        for name in fixed:
            assert torch.equal(student.state_dict()[name], whole.state_dict()[name])
        assert student.get_parameter("down_2.convs.conv_0.conv.weight").shape == (4, 2, 3, 3, 3)


def test_examples_keep_what_the_teacher_says(
    teacher: Path, maps: LabelMaps, coarse_head: nib.Nifti1Image, tmp_path: Path
) -> None:
    head = tmp_path / "head.nii"
    nib.save(coarse_head, head)
    network, _ = load_network(teacher)
    sources = Sources(maps, read_heads([head]), COARSE)
    paths = make_examples(network, sources, tmp_path / "examples", 2)
    kept = [read_example(path, CPU) for path in paths]
    for example in kept:
        assert example.image.shape == (1, 1, 72, 88, 72)
        assert example.features.shape == (1, 4, 18, 22, 18)
        # A head is in the window, not only air.
        assert 0.005 < float((example.image > 0.1).float().mean()) < 0.9
    # The second example is of the real head.
    made = make_example(network, sources, 1)
    with torch.inference_mode():
        answer = network(made.image).softmax(dim=1)
    torch.testing.assert_close(made.probabilities, answer)
    torch.testing.assert_close(kept[1].image, made.image, atol=1e-3, rtol=0)
    torch.testing.assert_close(kept[1].features, made.features, atol=1e-2, rtol=1e-2)
    torch.testing.assert_close(kept[1].probabilities, answer, atol=0.006, rtol=0)


def test_mirrored_examples_exchange_the_hippocampi(tmp_path: Path) -> None:
    probabilities = np.zeros((3, 8, 4, 4), np.uint8)
    probabilities[1, 0], probabilities[2, 7] = 255, 102
    image = np.arange(8, dtype=np.float16)[:, None, None] * np.ones((1, 4, 4), np.float16)
    features = np.zeros((1, 2, 1, 1), np.float16)
    path = tmp_path / "0.npz"
    np.savez(path, image=image, probabilities=probabilities, features=features)
    seen = set()
    for seed in range(8):
        shown, target = draw_probabilities([path], torch.Generator().manual_seed(seed))
        mirrored = float(shown[0, 0, 0, 0, 0]) == 7
        seen.add(mirrored)
        left, right = target[0, 2:, :, 0, 0].tolist()
        expected = [1.0, 0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0, pytest.approx(0.4)]
        if mirrored:
            expected = [pytest.approx(0.4), 0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0, 1.0]
        assert (left, right) == expected
        torch.testing.assert_close(target.sum(dim=1), torch.ones(1, 8, 4, 4))
    assert seen == {True, False}


def test_losses_are_least_at_the_teachers_answer() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 4, 4, 4, 4, generator=generator)
    target = logits.softmax(dim=1)
    assert float(distillation_loss(logits, target)) == pytest.approx(0, abs=1e-4)
    # The arg-max of the teacher is not its answer.
    assert float(distillation_loss(logits * 3, target)) > 0.1
    assert float(feature_loss(logits, logits)) == 0
    constant = torch.full_like(logits, float(logits.mean()))
    assert float(feature_loss(constant, logits)) == pytest.approx(1, rel=0.01)


def test_mistakes_in_the_hippocampi_cost_more() -> None:
    target = torch.zeros(1, 4, 10, 10, 10)
    target[:, 1] = 1
    target[:, 1, 0, 0, 0], target[:, 2, 0, 0, 0] = 0, 1
    right = (target.clamp(0.01, 0.97)).log()

    def wrong_at(x: int) -> float:
        logits = right.clone()
        logits[0, :, x, 0, 0] = logits[0, [0, 2, 1, 3], x, 0, 0]
        return float(distillation_loss(logits, target))

    assert wrong_at(0) > wrong_at(5) > float(distillation_loss(right, target))
