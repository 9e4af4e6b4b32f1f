"""Two real processes measure the health of the whole batch, with whole networks and with sharded ones.

Sums agree over several steps, so that measuring leaves the training alone where networks are sharded, too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from limbeck.engine.devices import Placement
from toolkit.health import STEPS, train

TESTS = Path(__file__).parents[1]
METHODS = ("dmd2", "sid")
JOBS = [f"{strategy}-{name}" for strategy in ("ddp", "fsdp") for name in METHODS]


@pytest.mark.slow
def test_two_processes_see_what_one_does(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    done = subprocess.run(
        [*command, str(TESTS / "toolkit" / "health.py"), str(tmp_path), *JOBS],
        env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    for name in METHODS:
        alone = train(tmp_path / name, Placement(accelerator="cpu"), name).journal.health
        assert {key: len(series) for key, series in alone.items()} == dict.fromkeys(
            ("critic_lag", "gap", "diversity"), STEPS
        )
        for job in (job for job in JOBS if job.endswith(name)):
            found = json.loads((tmp_path / f"{job}.json").read_text())
            assert found.keys() == alone.keys()
            for key, series in alone.items():
                for seen, expected in zip(found[key], series, strict=True):
                    assert seen == pytest.approx(list(expected), rel=1e-3), (job, key)
