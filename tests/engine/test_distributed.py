"""Two real processes with gloo: the step of a global batch does not depend on how many share it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from limbeck.engine.devices import repeated_blocks
from limbeck.registry import Block, build
from toolkit import set_up, toy_loop, toy_net, toy_teacher
from toolkit.worker import LEARNER

TESTS = Path(__file__).parents[1]
JOBS = ("ddp:kd:1:", "ddp:kd:2:", "ddp:dml:1:", "ddp:rkd:1:", "fsdp:kd:1:", "ddp:kd:1:resume", "fsdp:kd:1:resume")


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All distributed trainings, in one launch of two processes (starting them is what takes long)."""
    out = tmp_path_factory.mktemp("ddp")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    done = subprocess.run(
        [*command, str(TESTS / "toolkit" / "worker.py"), str(out), *JOBS],
        env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return out


def test_a_block_is_sharded_with_the_lists_that_are_in_it() -> None:
    def block() -> nn.Module:
        return nn.Sequential(nn.ModuleList([nn.Linear(1, 1), nn.Dropout()]))

    listed = [block(), block(), nn.Identity()]  # the last has nothing to shard
    deep = nn.ModuleList([nn.ModuleList([nn.Linear(1, 1)])])
    net = nn.ModuleDict({"body": nn.Sequential(nn.ModuleList(listed)), "tail": deep, "head": nn.Linear(1, 1)})
    assert list(repeated_blocks(net)) == [listed[0], listed[1], deep[0][0]]


def one_process(folder: Path, method: str, steps: int) -> dict[str, torch.Tensor]:
    teachers = {"teacher": toy_teacher()} if method != "dml" else {}
    made = set_up(build("method", Block(method)), torch.nn.Sequential(toy_net()), teachers)
    if method == "dml":
        made.learners["peer_1"].load_state_dict(torch.nn.Sequential(toy_net(7)).state_dict())
    outcome = toy_loop(folder, made, steps=steps, learner=LEARNER).fit()
    return {f"{k}.{n}": v for k, state in outcome.student.items() for n, v in state.items()}


@pytest.mark.parametrize(
    ("method", "strategy", "accumulate", "steps"),
    [
        ("kd", "ddp", 1, 3),
        ("kd", "ddp", 2, 3),
        ("dml", "ddp", 1, 3),
        ("rkd", "ddp", 1, 3),
        ("kd", "fsdp", 1, 3),
        pytest.param("kd", "ddp", 1, 6, id="kd-ddp-resumed"),
        pytest.param("kd", "fsdp", 1, 6, id="kd-fsdp-resumed"),
    ],
)
def test_two_processes_equal_one(
    outputs: Path, tmp_path: Path, method: str, strategy: str, accumulate: int, steps: int
) -> None:
    got = load_file(outputs / f"{method}-{strategy}-{accumulate}-{steps}.safetensors")
    expected = one_process(tmp_path, method, steps)
    assert set(got) == set(expected)
    assert all(torch.allclose(got[k], expected[k], atol=2e-5) for k in expected), {
        k: (got[k] - expected[k]).abs().max().item() for k in expected
    }
