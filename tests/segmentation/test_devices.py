"""Tests of :mod:`hyps_bids.segmentation.devices`."""

from __future__ import annotations

import logging
import os
import subprocess
import sys

import pytest
import torch

from hyps_bids.errors import UsageError
from hyps_bids.segmentation.devices import choose_device, prepare_process, supports_bfloat16
from tests.raising import raises

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


@NO_GPU
def test_auto_that_falls_to_the_cpu_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="hyps_bids"):
        assert choose_device("auto") == "cpu"
    assert "CPU" in caplog.text


@NO_GPU
@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:7"])
def test_gpu_that_is_not_there_is_an_error(name: str) -> None:
    with raises(UsageError, "no-cuda-device", name):
        choose_device(name)


@GPU
def test_gpu_by_number() -> None:
    count = torch.cuda.device_count()
    assert choose_device("auto").startswith("cuda:")
    assert choose_device("cuda") == "cuda:0"
    assert choose_device(f"cuda:{count - 1}") == f"cuda:{count - 1}"
    with raises(UsageError, "device-number-too-high", count):
        choose_device(f"cuda:{count}")


@pytest.mark.skipif(not torch.backends.mps.is_available(), reason="no GPU of Apple here")
def test_gpu_of_apple() -> None:
    assert choose_device("mps") == "mps"


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="there is a GPU of Apple here")
def test_gpu_of_apple_that_is_not_there_is_an_error() -> None:
    with raises(UsageError, "no-mps-device", "mps"):
        choose_device("mps")


@pytest.mark.parametrize("name", ["gpu", "", "CPU", "cuda:x", "cuda:-1", "mps:0", "cpu:0"])
def test_other_names_are_refused(name: str) -> None:
    with raises(UsageError, "device-name-unknown", name):
        choose_device(name)


def test_no_bfloat16_on_the_cpu() -> None:
    assert not supports_bfloat16(torch.device("cpu"))


def test_keeping_freed_memory_changes_no_result() -> None:
    before = torch.arange(10.0).sum()
    prepare_process()
    prepare_process()
    assert torch.arange(10.0).sum() == before


def test_images_are_sampled_by_one_thread() -> None:
    code = (
        "import numpy, threadpoolctl; from hyps_bids.segmentation.devices import prepare_process;"
        "prepare_process(2); print(*(pool['num_threads'] for pool in"
        " threadpoolctl.threadpool_info() if pool['user_api'] == 'blas'))"
    )
    environment = {k: v for k, v in os.environ.items() if "NUM_THREADS" not in k}
    environment["OPENBLAS_NUM_THREADS"] = "2"
    out = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert set(out.stdout.split()) == {"1"}
