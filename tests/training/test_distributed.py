"""Two processes on the CPU end with the weights of one process."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch

from hyps_bids.errors import UsageError
from hyps_bids.training.distributed import Processes
from tests.raising import raises
from tests.torchrun import launch

#: trains a small network on shared batches of three; every process saves its final weights
SCRIPT = """
import sys
from pathlib import Path

import torch
from monai.losses import DiceCELoss
from torch import nn

from hyps_bids.training.distributed import join_processes
from hyps_bids.training.loop import LoopSettings, Objective, run

torch.set_num_threads(1)
torch.manual_seed(0)
# no bias before the norm: its gradient would be nothing but rounding, which Adam scales up
model = nn.Sequential(
    nn.Conv3d(1, 4, 3, padding=1, bias=False), nn.InstanceNorm3d(4), nn.Conv3d(4, 3, 1)
)
settings = LoopSettings(
    steps=6, warmup=2, learning_rate=1e-2, checkpoint_every=2, evaluate_every=2, patience=1
)

def batches(generator):
    x = torch.rand(3, 1, 6, 6, 6, generator=generator)
    return x, (3 * x).long()

def validate(network):
    # best after four steps, so that all must stop after six
    validate.calls += 1
    return {"dice": {2: 0.4}.get(validate.calls, 0.3 + 0.01 * validate.calls)}

validate.calls = 0
with join_processes(torch.device("cpu")) as (processes, device):
    loss = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True)
    objective = Objective(batches, loss, validate)
    outcome = run(model, objective, settings, Path(sys.argv[1]), device, processes=processes)
    assert (outcome.step, outcome.steps) == (4, 6)
    assert validate.calls == (3 if processes.is_main_process else 0)
    torch.save(model.state_dict(), Path(sys.argv[1]) / f"end-{processes.rank}.pt")
"""


@pytest.mark.slow
def test_two_processes_end_where_one_does(tmp_path: Path) -> None:
    for name, count in (("one", 1), ("two", 2)):
        folder = tmp_path / name
        folder.mkdir()
        launch(SCRIPT, folder, folder=folder, count=count)
    one = torch.load(tmp_path / "one/end-0.pt", weights_only=True)
    for rank in (0, 1):
        two = torch.load(tmp_path / f"two/end-{rank}.pt", weights_only=True)
        for name, tensor in one.items():
            torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=1e-6)
    # one process wrote, and what another would resume from is the same
    for name in ("one", "two"):
        assert torch.load(tmp_path / name / "checkpoint.pt", weights_only=True)["step"] == 6
    losses = [pd.read_csv(tmp_path / name / "log.csv")["loss"].to_list() for name in ("one", "two")]
    assert [len(values) for values in losses] == [3, 3]
    assert losses[0] == pytest.approx(losses[1], abs=2e-4)


def test_more_processes_than_samples() -> None:
    batch = torch.zeros(2, 1), torch.zeros(2, 1)
    with raises(UsageError, "batch-too-small", "3 processes", "batch of 2"):
        Processes(0, 3).share(batch)
    assert Processes(1, 2).share(batch)[0].shape == (1, 1)
