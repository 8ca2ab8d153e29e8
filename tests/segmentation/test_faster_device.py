"""What ``--device auto`` means."""

from __future__ import annotations

import logging
from itertools import product

import pytest

from hyps_bids.segmentation import faster_device as device
from hyps_bids.segmentation.faster_device import estimate_seconds, faster_device


@pytest.mark.parametrize(
    ("scans", "cpus", "choice"), [(1, 2, "cpu"), (300, 2, "auto"), (10_000, 64, "cpu")]
)
def test_gpu_is_chosen_only_if_the_start_pays(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    scans: int,
    cpus: int,
    choice: str,
) -> None:
    monkeypatch.setattr(device, "has_nvidia_driver", lambda: True)
    caplog.set_level(logging.INFO)
    assert faster_device(scans, cpus) == choice
    assert len(caplog.records) == 1


def test_without_a_driver_nothing_is_estimated(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(device, "has_nvidia_driver", lambda: False)
    caplog.set_level(logging.INFO)
    assert faster_device(10_000, 1) == "cpu"
    assert "no NVIDIA GPU" in caplog.text


def test_more_scans_never_speak_against_a_gpu() -> None:
    for cpus, scans in product((1, 2, 4, 8, 16), (1, 10, 100)):
        gpu, cpu = estimate_seconds(scans, cpus)
        if gpu < cpu:
            more_gpu, more_cpu = estimate_seconds(10 * scans, cpus)
            assert more_gpu < more_cpu
