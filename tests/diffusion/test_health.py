"""The health of generators: the lag against closed forms, the variety against its definition, and what sets alarms off.

Gauss and Hermite's nodes, repeated by their weights, make sums over samples exact integrals: with an affine generator
and affine denoisers everything is a polynomial of degree two.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from limbeck.data.stream import NoData
from limbeck.diffusion import mixture
from limbeck.diffusion.generators import CRITIC
from limbeck.diffusion.health import diversity, diversity_alarms, matching_alarms, matching_health
from limbeck.engine.devices import Placement, launch
from limbeck.engine.health import Seen
from limbeck.engine.learner import LearnerSettings
from limbeck.engine.loop import Loop, LoopSettings
from limbeck.engine.method import Clock
from limbeck.registry import Block
from toolkit.diffusion import CLOCK, MEAN, STD, Affine, FakeScore, batch, gaussian, made, student, values

A, B, SIGMA = 0.7, -0.4, 0.9
"""Of the generator ``a z + b``, and the noise level."""


def nodes() -> tuple[torch.Tensor, torch.Tensor]:
    """Noise of the generator and of the level, [36, 1] each, whose means are those of standard normal ones."""
    once = torch.tensor([0.0, 0.0, 0.0, 0.0, 3**0.5, -(3**0.5)], dtype=torch.float64)
    z, eps = torch.cartesian_prod(once, once).unbind(dim=1)
    return z[:, None], eps[:, None]


def denoiser(x: torch.Tensor, a: float, b: float) -> torch.Tensor:
    """Of the law N(b, a^2), at the level."""
    return b + a**2 / (a**2 + SIGMA**2) * (x - b)


def of(error) -> dict[str, float]:
    """What is measured where the critic is the exact denoiser plus an error, a function of x."""
    z, eps = nodes()
    samples = A * z + B
    x = samples + SIGMA * eps
    found = matching_health(samples, denoiser(x, STD, MEAN), denoiser(x, A, B) + error(x))
    return {name: float(term.sum / term.count) for name, term in found.items()}


def exact(c0: float, c1: float) -> dict[str, float]:
    """The same in closed form for the error ``c0 + c1 (x - B)``, by moments of ``u = x - B`` ~ N(0, A^2 + SIGMA^2)."""
    second = A**2 + SIGMA**2
    gain, ours = STD**2 / (STD**2 + SIGMA**2), A**2 / (A**2 + SIGMA**2)
    d0, d1 = (B - MEAN) * (1 - gain) + c0, ours - gain + c1
    squares = d0**2 + d1**2 * second
    # x0 - D_r = (A - gain A) z - gain SIGMA eps + (B - MEAN) (1 - gain)
    theirs = ((1 - gain) * A) ** 2 + (gain * SIGMA) ** 2 + ((B - MEAN) * (1 - gain)) ** 2
    return {"critic_lag": (c0 * d0 + c1 * d1 * second) / squares, "gap": squares / theirs}


@pytest.mark.parametrize("c", [(0.0, 0.0), (0.3, 0.0), (0.0, -0.2), (-1.0, 0.5)])
def test_the_lag_is_the_share_of_the_direction_that_is_the_critics_error(c):
    found = of(lambda x: c[0] + c[1] * (x - B))
    assert found == pytest.approx(exact(*c), rel=1e-12, abs=1e-12)
    if c == (0.0, 0.0):
        assert abs(found["critic_lag"]) < 1e-12 and 0 < found["gap"] < 1


def test_above_a_half_the_teacher_denoises_the_generators_samples_better():
    z, eps = nodes()
    samples = A * z + B
    x = samples + SIGMA * eps
    real, fake = denoiser(x, STD, MEAN), denoiser(x, A, B) + 2.0
    lag = of(lambda x: 2.0)["critic_lag"]
    ours, theirs, apart = (float(v.square().mean()) for v in (fake - samples, real - samples, fake - real))
    assert lag == pytest.approx(0.5 + (ours - theirs) / (2 * apart), rel=1e-12)
    assert lag > 0.5 and ours > theirs


def test_half_way_from_the_teacher_the_lag_is_minus_one():
    gain, ours = STD**2 / (STD**2 + SIGMA**2), A**2 / (A**2 + SIGMA**2)
    back = (MEAN - B) * (1 - gain) / 2, (gain - ours) / 2
    assert of(lambda x: back[0] + back[1] * (x - B))["critic_lag"] == pytest.approx(-1.0, rel=1e-12)


def method(name="diff_instruct", *, a=A, b=B, critic=None, **args):
    ours = made(name, gaussian(), Affine(a, b), critic=Block("mlp_denoiser", {"width": 8, "depth": 1}), **args)
    ours.learners[CRITIC] = FakeScore(ours.learners["student"]) if critic is None else critic
    next(ours.updates(batch(0, 1), CLOCK))
    return ours


@torch.no_grad()
def measured(ours, rows=50_000, clock=CLOCK) -> dict[str, float]:
    return {name: float(term.sum / term.count) for name, term in ours.health(batch(0, rows), clock).items()}


@pytest.mark.parametrize("name", ["diff_instruct", "sid", "dmd2"])
def test_a_method_with_a_perfect_critic_has_no_lag(name):
    found = measured(method(name, **({"gan_weight": 0.0, "discriminator_weight": 0.0} if name == "dmd2" else {})))
    assert found["critic_lag"] == pytest.approx(0.0, abs=0.04)
    assert found["diversity"] == pytest.approx(A**2 / STD**2, rel=0.02)


def test_a_critic_of_where_the_generator_was_lags():
    assert measured(method(critic=FakeScore(Affine(A, B - 0.5))))["critic_lag"] > 0.1


def test_what_is_measured_is_not_what_is_trained_on():
    """As many draws again under the names of the step would find a critic that knows its samples by heart faultless."""
    drawn = []

    class Listens(Clock):
        def normal(self, ids, shape, name):
            drawn.append(name)
            return super().normal(ids, shape, name)

    ours, clock = method(), Listens(step=3, total=10, seed=1)
    for update in ours.updates(batch(), clock):
        values(update)
    trained, drawn[:] = set(drawn), []
    ours.health(batch(), clock)
    assert drawn and trained and not trained & set(drawn)


@torch.no_grad()
def test_the_sums_do_not_depend_on_how_a_batch_is_cut():
    ours = method()
    whole, *parts = (ours.health(batch(*cut), CLOCK) for cut in ((0, 64), (0, 24), (24, 64)))
    for name, term in whole.items():
        assert float(sum(p[name].sum for p in parts)) == pytest.approx(float(term.sum), rel=1e-5)
        assert float(sum(p[name].count for p in parts)) == pytest.approx(float(term.count), rel=1e-5)


def test_of_several_steps_the_estimates_after_each_are_measured_as_often():
    class Steps(Affine):
        nfe, rule, levels, seen = 3, "renoise", (10.0, 1.0, 0.1), []

        def forward(self, noise, steps=None):
            self.seen.append((steps, len(noise)))
            return super().forward(noise)

    ours = made(
        "sid_few_step", gaussian(), Steps(), critic=Block("mlp_denoiser", {"width": 8, "depth": 1, "shape": [1]})
    )
    next(ours.updates(batch(0, 1), CLOCK))
    Steps.seen.clear()
    ours.health(batch(0, 8), CLOCK)
    assert Steps.seen == [(1, 8), (2, 8), (3, 8), (3, 8), (3, 8)]  # the lag, and two samples of three steps


def test_there_is_no_lag_without_a_critic_that_is_followed_and_learns_the_generators_law():
    net = {"critic": Block("mlp_denoiser", {"width": 8, "depth": 1})}
    assert set(made("dmd", gaussian(), Affine(), distribution_weight=0.0, critic_updates=0).health(batch(), CLOCK)) == {
        "diversity"
    }
    plane = mixture.ring(4, 2.0, 0.3).float()
    for name, args in (("tdm", {}), ("scott", {"gan_weight": 0.0}), ("hyper_sd", {"finish": 0.2, "segments": (1,)})):
        floor = {"floor": 0.02} if name == "scott" else {}
        net = Block("mlp_denoiser", {"width": 8, "depth": 1, "sigma_data": 1.5, **floor})
        ours = made(name, plane, student(net), **args)
        for update in ours.updates(batch(), CLOCK):
            values(update)
        assert set(ours.health(batch(), CLOCK)) == {"diversity"}, name


# -- variety -----------------------------------------------------------------------------------------------------------


def test_a_diversity_of_one_is_that_of_the_data_within_classes():
    law = mixture.ring(4, 2.0, 0.3, classes=2)  # opposite modes share a class
    label = torch.arange(2).repeat(20_000)
    one, other = (law.draw(torch.arange(len(label)), name, label).samples for name in ("one", "other"))
    term = diversity(one, other, law.variance(label))
    assert float(term.sum / term.count) == pytest.approx(1.0, abs=0.02)
    term = diversity(one, one, law.variance(label))
    assert float(term.sum) == 0 and float(term.count) > 0


def test_the_variance_given_a_class_is_that_of_its_draws():
    law = mixture.GaussianMixture(
        torch.tensor([1.0, 2.0, 1.0], dtype=torch.float64),
        torch.tensor([[0.0, 1.0], [3.0, 1.0], [5.0, 5.0]], dtype=torch.float64),
        torch.tensor([[0.1, 0.2], [0.3, 0.4], [2.0, 1.0]], dtype=torch.float64),
        torch.tensor([0, 0, 1]),
    )
    first = (torch.tensor([0.1, 0.2]) / 3 + torch.tensor([0.3, 0.4]) * 2 / 3 + torch.tensor([2.0, 0.0])).mean()
    expected = [float(first), 1.5, float(law.sigma_data) ** 2]
    assert law.variance(torch.tensor([0, 1, -1])).tolist() == pytest.approx(expected)
    assert law.variance().tolist() == pytest.approx([law.sigma_data**2])


# -- alarms ------------------------------------------------------------------------------------------------------------


def history(lag=(), gap=0.2, varied=()) -> dict[str, list[Seen]]:
    count = 100.0
    return {
        "critic_lag": [Seen(10 * k, v * count, count) for k, v in enumerate(lag)],
        "gap": [Seen(10 * k, gap * count, count) for k in range(len(lag))],
        "diversity": [Seen(10 * k, v * count, count) for k, v in enumerate(varied)],
    }


def sounded(seen, *, known=True) -> list[str]:
    alarms = [*matching_alarms(), *diversity_alarms(exact=known)]
    return [says for alarm in alarms if (says := alarm(seen)) is not None]


def test_a_high_lag_is_told_with_its_steps_and_what_to_do():
    (says,) = sounded(history([0.0] * 10 + [0.7, 0.9, 0.7, 0.8, 0.9]))
    assert says.startswith("critic_lag is 0.8 from step 100 to 140") and "raise critic_updates" in says
    assert "\n" not in says


@pytest.mark.parametrize(
    "seen",
    [
        history([0.9] * 4),  # too few
        history([0.9] * 10 + [0.1] * 5),  # it is over
        history([0.0] * 14 + [2.0]),  # once
        history([0.9] * 15, gap=0.02),  # what is left when the laws are the same
        history([-2.0] * 15),  # a short direction is no wrong one
        history([]),
    ],
)
def test_no_alarm_where_the_lag_says_nothing_bad(seen):
    assert sounded(seen) == []


def test_a_lag_that_swings_is_told():
    (says,) = sounded(history([-0.8, 0.9] * 8))
    assert says.startswith("critic_lag goes up and down by 1.7 from step 60 to 150") and "learning rate" in says
    assert sounded(history([-0.8, 0.9] * 8, gap=0.005)) == []
    assert sounded(history([-4 + 0.6 * k for k in range(10)])) == []  # it only rises
    assert sounded(history([-6.0, -1.0] * 8)) == []  # a critic that starts as the teacher, in a small batch
    assert sounded(history([0.1, -0.1] * 8)) == []


def test_a_collapse_is_told_from_the_step_on_from_which_it_lasts():
    (says,) = sounded(history(varied=[0.02, 0.5, 0.9, 0.05, 0.4, 0.05, 0.02, 0.01]))
    assert says.startswith("diversity is 0.02 since step 50") and "all the same; lower the student's" in says
    (says,) = sounded(history(varied=[0.01, 0.02, 0.03]))  # it never was varied
    assert "train longer" in says
    assert sounded(history(varied=[0.01, 0.02, 0.3, 0.6, 0.5])) == []  # it starts so
    assert sounded(history(varied=[0.9, 0.8, 0.9, 0.9, 0.01])) == []  # once


def test_where_the_variety_within_classes_is_not_known_only_a_fall_is_a_collapse():
    assert sounded(history(varied=[0.01, 0.04, 0.05, 0.05, 0.05]), known=False) == []
    assert sounded(history(varied=[0.4, 0.5, 0.5, 0.02, 0.02, 0.02]), known=False)


def test_samples_that_leave_the_range_of_the_data_are_told():
    (says,) = sounded(history(varied=[1.0, 5.0, 40.0, 300.0, 2e4]))
    assert says.startswith("diversity is 3e+02 since step 20") and "leave the range" in says


# -- trainings ---------------------------------------------------------------------------------------------------------


def train(folder: Path, steps=100, *, rate=3e-3, critic=3e-3, name="diff_instruct", **args):
    """A small generator of four Gaussians on a ring; learners' rates are the student's and the critic's."""
    torch.manual_seed(0)
    net = Block("mlp_denoiser", {"width": 32, "depth": 2, "sigma_data": 1.5, "activation": "relu"})
    ours = made(name, mixture.ring(4, 2.0, 0.5).float(), student(net), **args)
    rates = {"student": rate, CRITIC: critic}
    learners = {
        role: LearnerSettings(optimizer=Block("adam", {"lr": lr, "betas": [0.5, 0.99]})) for role, lr in rates.items()
    }
    settings = LoopSettings(steps=steps, learners=learners, log_every=1, quiet=True)
    loop = Loop(ours, NoData(128), settings, folder, launch(Placement(accelerator="cpu")))
    return loop, loop.fit()


def test_a_healthy_training_sets_off_nothing(tmp_path: Path):
    loop, outcome = train(tmp_path, 150, critic_updates=2)
    assert outcome.warnings == []
    last = {name: series[-1].value for name, series in loop.journal.health.items()}
    assert last["diversity"] > 0.4 and last["gap"] < 0.5 * loop.journal.health["gap"][0].value


def test_a_critic_that_does_not_learn_lags(tmp_path: Path):
    _, outcome = train(tmp_path, 60, critic=0.0)
    assert any(w.startswith("critic_lag is ") for w in outcome.warnings)


def test_a_huge_learning_rate_collapses_the_generator(tmp_path: Path):
    _, outcome = train(tmp_path, 60, rate=0.05)
    assert any("all the same" in w for w in outcome.warnings)


def test_an_alpha_that_is_too_large_bursts_it(tmp_path: Path):
    _, outcome = train(tmp_path, name="sid", alpha=1.5)
    assert any("leave the range" in w for w in outcome.warnings)


def test_the_weights_are_the_same_to_the_last_bit_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from limbeck.diffusion.methods.diff_instruct import DiffInstruct

    _, looked = train(tmp_path / "a", 12)
    monkeypatch.setattr(DiffInstruct, "health", lambda self, batch, clock: {})
    loop, plain = train(tmp_path / "b", 12)
    assert loop.journal.health == {}
    for role, state in looked.learners.items():
        assert all(torch.equal(v, plain.learners[role][k]) for k, v in state.items()), role


def test_classes_and_a_teacher_that_is_no_law_take_the_networks_own_unit():
    teacher = nn.Module()
    teacher.shape, teacher.sigma_data = (2,), 3.0
    teacher.forward = lambda x, sigma, label=None: x
    net = Block("mlp_denoiser", {"width": 8, "depth": 1, "classes": 2})
    ours = made("diff_instruct", teacher, student(net), from_teacher=False)
    term = ours.health(batch(0, 8), CLOCK)["diversity"]
    assert float(term.count) == 2 * 2 * 8 * 9.0
    assert len(ours.alarms()) == 4
