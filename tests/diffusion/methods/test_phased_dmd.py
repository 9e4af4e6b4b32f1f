"""Phased DMD: which expert learns when, and where it is driven."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from limbeck.diffusion import mixture
from limbeck.diffusion.experts import ByLevel
from limbeck.diffusion.few_step import FewStep, few_levels
from limbeck.diffusion.losses import matching_direction
from limbeck.diffusion.steps import target_of
from limbeck.engine.method import Clock
from limbeck.errors import UserError
from limbeck.registry import Block, build
from toolkit.diffusion import MEAN, STD, batch, descend, gaussian, made, student, values

LEVELS = (*few_levels(2, 0.02, 10.0), 0.0)


class Expert(nn.Module):
    """The exact step of one Gaussian's flow from one level to the next; ``gain`` 1 is exact."""

    shape = (1,)
    sigma_data = STD
    classes = None

    def __init__(self, now: float, then: float, gain: float) -> None:
        super().__init__()
        self.now, self.then, self.gain = now, then, nn.Parameter(torch.tensor(gain))

    def forward(self, x, sigma, label=None):
        now, then = sigma, torch.full_like(sigma, self.then)
        ratio = torch.sqrt((STD**2 + then**2) / (STD**2 + now**2))[:, None]
        return target_of(x, MEAN + self.gain * ratio * (x - MEAN), now, then)


class Reached(nn.Module):
    """The score of what the experts up to the one that is trained make of noise, noised on, as a denoiser."""

    def __init__(self, experts) -> None:
        super().__init__()
        self.of, self.upto = (experts,), 0

    def forward(self, x, sigma):
        std, offset = LEVELS[0], 0.0
        for expert in list(self.of[0])[: self.upto + 1]:
            ratio = ((STD**2 + expert.then**2) / (STD**2 + expert.now**2)) ** 0.5 * float(expert.gain.detach())
            std, offset = ratio * std, MEAN + ratio * (offset - MEAN)
        then = LEVELS[self.upto + 1]
        return x - (sigma**2 / (std**2 + sigma**2 - then**2))[:, None] * (x - offset)


def test_each_expert_in_its_turn_is_driven_to_the_exact_step(monkeypatch):
    # In one dimension the samples' normaliser comes near zero: heavy tails, for which Adam takes long.
    monkeypatch.setattr(
        "limbeck.diffusion.methods.tdm.matching_direction", partial(matching_direction, normalise=False)
    )
    experts = [Expert(*LEVELS[k : k + 2], gain) for k, gain in ((0, 0.7), (1, 1.4))]
    critic = Reached(experts)
    monkeypatch.setattr("limbeck.diffusion.methods.phased_dmd.PhasedDMD.build_critic", lambda self, parts: critic)
    generator = FewStep(ByLevel(experts, LEVELS[:2]), LEVELS[:2], "ode", sigma_min=0.02)
    method = made("phased_dmd", gaussian(), generator, from_teacher=False, expert_start="own")
    for k in range(2):
        critic.upto = k
        method.phase = lambda progress, k=k: k
        before = [float(e.gain.detach()) for e in experts]
        descend(method, 80, lr=0.02)
        after = [float(e.gain.detach()) for e in experts]
        assert after[1 - k] == before[1 - k]
        assert after[k] == pytest.approx(1.0, abs=0.04)


def experts(**args):
    net = Block("mlp_denoiser", {"width": 16, "depth": 1, "sigma_data": 1.5})
    return build("model", Block("experts", {"net": net, "nfe": 3, "sigma_min": 0.02, "sigma_max": 10.0, **args}))


def test_experts_have_their_turn_and_begin_as_the_one_before_ended():
    generator = experts()
    method = made("phased_dmd", mixture.ring(4, 2.0, 0.3).float(), generator)
    assert [method.phase(k / 9) for k in range(10)] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 2]
    assert [round(method.pace(Clock(k, 9)), 6) for k in range(4)] == [0.0, round(1 / 3, 6), round(2 / 3, 6), 0.0]

    def alike() -> list[bool]:
        return [torch.equal(a.backbone.last.weight, b.backbone.last.weight) for a, b in ((nets[0], nets[1]), nets[1:])]

    nets = generator.net.nets
    method.after_step(Clock(1, 9))
    assert alike() == [False, False]
    method.after_step(Clock(2, 9))
    assert alike() == [True, False]
    for turn in range(3):
        generator.zero_grad()
        next(iter(method.updates(batch(), Clock(3 * turn, 9)))).evaluate()["trajectory"].sum.backward()
        assert [n.backbone.last.weight.grad is not None for n in nets] == [k == turn for k in range(3)]


def test_intervals_bound_the_levels_at_which_laws_are_compared():
    for intervals, top in (("nested", 10.0), ("disjoint", 0.0)):
        method = made("phased_dmd", mixture.ring(4, 2.0, 0.3).float(), experts(), intervals=intervals)
        for turn in range(3):
            clock = Clock(3 * turn, 9)
            at, _ = method.onwards(
                method.reach(batch(0, 512), clock, "x"), batch(0, 512), clock, "x", low=0.0, high=1.0
            )
            begins, ends = method.steps[turn : turn + 2]
            assert float(at.sigma.min()) > ends
            assert float(at.sigma.max()) == pytest.approx(max(begins, top), rel=0.1)


def test_a_generator_of_one_network_is_refused_and_the_last_phase_is_plain_matching():
    ring = mixture.ring(4, 2.0, 0.3).float()
    with pytest.raises(UserError, match="experts"):
        made("phased_dmd", ring, student(nfe=2, rule="ode"))
    # With a target that is clean, both targets of the critic are one.
    found = {}
    for target in ("score", "estimate"):
        torch.manual_seed(0)
        method = made("phased_dmd", ring, experts(), critic_target=target, importance=False)
        found[target] = [values(list(method.updates(batch(), Clock(3 * k, 9)))[1])["denoising"] for k in range(3)]
    assert found["score"][0] != pytest.approx(found["estimate"][0], rel=1e-3)
    assert found["score"][2] == pytest.approx(found["estimate"][2], rel=1e-3)
