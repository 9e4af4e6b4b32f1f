"""What the number of calls sets, as a run says it when it starts and ``limbeck check`` before."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from limbeck.diffusion import mixture
from limbeck.diffusion.few_step import few_levels
from limbeck.planning import estimate_run
from limbeck.recipe import load_recipe
from limbeck.registry import Block, build
from limbeck.run import run_recipe
from limbeck.training import what_follows
from toolkit.diffusion import made, student

NET = Block("mlp_denoiser", {"width": 16, "depth": 1, "sigma_data": 1.5})
RENOISE = "nfe 2: levels 10, 0.872 (rule renoise, rho 7)"
ODE = RENOISE.replace("renoise", "ode")


def said(name, model=None, **args) -> str:
    model = model or student(NET, nfe=2, rule="ode")
    return what_follows(made(name, mixture.ring(4, 2.0, 0.3).float(), model, from_teacher=False, **args))


@pytest.mark.parametrize(
    ("name", "args", "expected"),
    [
        ("sid", {}, "trained after a random one of its 2 calls"),
        ("tdm", {}, "laws are matched at 0.872, 0"),
        ("pcm", {}, "phases: 2"),
        ("progressive_distillation", {"rounds": 3}, "rounds of 8, 4, 2 steps"),
        ("mlcm", {"segments": (8, 2)}, "stages of 8, 2 segments"),
    ],
)
def test_a_method_says_what_it_takes_from_the_number_of_calls(name, args, expected):
    assert said(name, **args) == f"{ODE}; noise from 0.02 to 10; {expected}"


def test_experts_are_phases():
    model = build("model", Block("experts", {"net": NET, "nfe": 2, "sigma_min": 0.02, "sigma_max": 10.0}))
    expected = "phases: 2, an expert in each; laws are matched at 0.872, 0"
    assert said("phased_dmd", model) == f"{ODE}; noise from 0.02 to 10; {expected}"


def test_the_levels_are_said_with_where_they_come_from():
    assert student(NET, nfe=2).says() == [RENOISE]
    assert student(NET, nfe=2, rho=5.0).says()[0].endswith("(rule renoise, rho 5)")
    assert student(NET, nfe=2, levels=[3.0, 1.0]).says() == ["nfe 2: levels 3, 1 (rule renoise, levels as given)"]
    assert student(NET).says() == ["nfe 1: level 10"]

    class Scheduled(torch.nn.Module):
        shape = (2,)

        def levels_for(self, nfe, rule):
            return few_levels(nfe, 0.1, 5.0)

    assert "levels of the network's scheduler" in _with(Scheduled(), nfe=3).says()[0]


def _with(net, **args):
    from limbeck.diffusion.models import generators

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(generators, "build", lambda *a, **k: net)
        return generators.few_step(net=NET, **args)


RECIPE = {
    "title": "Two calls",
    "teacher": {"name": "gaussian_ring", "modes": 4},
    "student": {
        "name": "few_step", "nfe": 2, "sigma_min": 0.02, "sigma_max": 10.0,
        "net": {"name": "mlp_denoiser", "width": 8, "depth": 1},
    },
    "method": {"name": "dmd2", "gan_weight": 0.0, "discriminator_weight": 0.0},
    "train": {"steps": 2, "batch_size": 4},
    "controls": False,
    "evaluate": [],
}  # fmt: skip
FOLLOWS = f"{RENOISE}; noise from 0.02 to 10; trained after a random one of its 2 calls"


def test_a_run_says_it_when_it_starts(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run_recipe(RECIPE, runs=tmp_path)
    assert f"student: {FOLLOWS}\n" in capsys.readouterr().err


def test_the_plan_says_it_before():
    assert estimate_run(load_recipe(RECIPE))["sets"] == FOLLOWS
    phases = [{"name": "one", "method": {"guidance": 1.0}}, {"name": "two"}]
    facts = estimate_run(load_recipe({**RECIPE, "phases": phases}))
    assert facts["one sets"] == facts["two sets"] == FOLLOWS and "sets" not in facts
