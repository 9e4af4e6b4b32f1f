"""Pipelines under FSDP2 with activation checkpointing: two real processes with gloo train what one does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from limbeck.diffusion.pipelines import quietly
from limbeck.run import run_recipe
from toolkit.pipelines import PROMPTS, dit, stable_diffusion

pytest.importorskip("diffusers")
pytest.importorskip("peft")
pytestmark = pytest.mark.slow  # starting the processes alone takes half of it

TESTS = Path(__file__).parents[1]
JOBS = ("sd-lora", "dit-whole")


def recipe(root: Path, job: str, *, shared: bool) -> dict:
    """A few steps of LCM with a slow copy, or of DMD on a DiT, on tiny pipelines."""
    name, what = job.split("-")
    text = {"prompts": PROMPTS, "negative": "bad"} if name == "sd" else {}
    base = {"name": "diffusers", "path": str(root / name), **text, "checkpointing": True}
    net = {**base, "floor": 0.0292} if name == "sd" else base
    if what == "lora":
        net = {"name": "lora", "rank": 2, "targets": ["to_q", "to_v"], "base": net}
    lcm = {"name": "lcm", "levels": 20, "skip": 5, "scale_min": 3.0, "scale_max": 3.0, "told": False, "momentum": 0.9}
    method = {**lcm, "pairs": 4, "pair_steps": 2} if name == "sd" else {"name": "dmd", "pairs": 4, "pair_steps": 2}
    optimizer = {"name": "sgd", "lr": 1e-2 if name == "sd" else 1e-5, "weight_decay": 0.0}
    return {
        "title": f"{job} {'shared' if shared else 'alone'}",
        "teacher": base,
        "student": {"name": "few_step", "nfe": 2 if name == "sd" else 1, "net": net},
        "method": method,
        "train": {"steps": 2, "batch_size": 4, "optimizer": optimizer,
                  **({"devices": 2, "strategy": "fsdp"} if shared else {})},
        "controls": False,
        "stages": ["teacher", "train"],
    }  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trainings of two processes, in one launch of them (starting is what takes long), and the pipelines."""
    root = tmp_path_factory.mktemp("sharded")
    with quietly():
        stable_diffusion(root / "sd")
        dit(root / "dit")
    files = [root / f"{job}.json" for job in JOBS]
    for file in files:
        file.write_text(json.dumps(recipe(root, file.stem, shared=True)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    done = subprocess.run(
        [*command, "-m", "toolkit.run_worker", str(root / "runs"), *map(str, files)],
        env=environment, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return root


@pytest.mark.parametrize("job", JOBS)
def test_two_processes_train_what_one_does(runs: Path, job: str) -> None:
    assert not (runs / f"{job}.error").exists(), (runs / f"{job}.error").read_text()
    (shared,) = (runs / "runs").glob(f"{job.replace('-', '_')}_shared-*")
    alone = run_recipe(recipe(runs, job, shared=False), runs=runs / "runs", quiet=True).folder
    found, expected = (load_file(next(f.glob("artifacts/student-*/model/model.safetensors"))) for f in (shared, alone))
    assert set(found) == set(expected)
    moved = {k: v - start for k, v, start in trained(runs, job, expected)}
    off = max(float((found[k] - expected[k]).abs().max()) for k in moved)
    assert off < 1e-3 * max(float(v.abs().max()) for v in moved.values())


def trained(runs: Path, job: str, weights: dict[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """Names of what trains, with its values at the end and at the start: the pipeline's, or 0 for adapters."""
    if job.endswith("lora"):
        yield from ((k, v, torch.zeros_like(v)) for k, v in weights.items() if ".lora_B." in k)
        return
    start = load_file(runs / "dit" / "transformer" / "diffusion_pytorch_model.safetensors")
    yield from ((k, v, start[k.removeprefix("net.network.")]) for k, v in weights.items() if ".row_" not in k)
