"""DisBack: the path from the teacher's law to the first one of the generator, and the way back along it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from limbeck.diffusion import mixture
from limbeck.engine.method import Clock
from limbeck.errors import UserError
from toolkit.diffusion import MEAN, STD, Affine, FakeScore, batch, gaussian, made, student

FIRST_STD, FIRST_MEAN, STEPS = 0.3, -2.0, 200


class Normal(nn.Module):
    """The denoiser of a Gaussian whose mean and deviation can be learnt; it starts as :func:`gaussian`'s."""

    def __init__(self) -> None:
        super().__init__()
        self.mean, self.log_std = nn.Parameter(torch.tensor(MEAN)), nn.Parameter(torch.tensor(STD).log())

    def forward(self, x, sigma):
        variance = (2 * self.log_std).exp()
        return self.mean + (variance / (variance + sigma**2))[:, None] * (x - self.mean)


@pytest.fixture
def exact(monkeypatch):
    def build(self, parts):
        self.critic_sigma_data = 1.0
        return Normal()

    monkeypatch.setattr("limbeck.diffusion.generators.GeneratorMethod.build_critic", build)
    generator = Affine(FIRST_STD, FIRST_MEAN)
    args = {"sigma_min": 0.02, "sigma_max": 5.0, "learn": 0.001, "record": 0.35, "backtrack": 0.3, "checkpoints": 4}
    return made("disback", gaussian(), generator, **args)


def walk(method, total: int, rates: dict[str, float]) -> list[tuple[float, ...]]:
    """Train the critic while it is recorded, then the generator beside an exact one; both and the goal at each step."""
    optimizers = {r: torch.optim.Adam(method.learners[r].parameters(), v, betas=(0.5, 0.999)) for r, v in rates.items()}
    seen = []
    for k in range(total):
        clock = Clock(k, total)
        for update in method.updates(batch(0, 128), clock):
            if update.role == "student":
                method.learners["fake_score"] = FakeScore(method.student)
            elif isinstance(method.learners["fake_score"], FakeScore):
                continue
            optimizers[update.role].zero_grad()
            sum(t.weight * t.sum / t.count for t in update.evaluate().values()).backward()
            optimizers[update.role].step()
        goal = float(method.real(torch.zeros(1, 1), torch.ones(1)).detach())
        seen.append((*(float(p.detach()) for p in method.student.parameters()), goal))
        method.after_step(clock)
    return seen


def test_the_generator_waits_for_the_path_and_comes_to_the_teachers_law_along_it(exact):
    seen = walk(exact, STEPS, {"student": 0.05, "fake_score": 0.1})
    means = [float(s["mean"]) for s in exact.path.states()]
    assert means == sorted(means, reverse=True) and means[-1] == pytest.approx(FIRST_MEAN, abs=0.5)
    waiting = seen[:71]  # of 200 steps, those before 0.351
    assert {row[:2] for row in waiting} == {seen[0][:2]} and seen[0][0] == pytest.approx(FIRST_STD)
    goals = list(dict.fromkeys(row[2] for row in seen[len(waiting) :]))
    assert len(goals) == 4 and goals == sorted(goals)  # three of the path, then the teacher
    assert goals[-1] == pytest.approx(float(gaussian()(torch.zeros(1, 1), torch.ones(1))))
    a, b, _ = seen[-1]
    assert abs(a) == pytest.approx(STD, abs=0.08) and b == pytest.approx(MEAN, abs=0.08)


def test_a_path_of_one_heads_for_the_teacher_at_once(exact):
    exact.checkpoints = 1
    walk(exact, 20, {"student": 0.05, "fake_score": 0.1})
    assert len(exact.path) == 1 and exact.target is None


def test_an_exact_teacher_has_to_be_learnt_first_and_a_network_is_copied():
    generator = student()
    ring = mixture.ring(4, 2.0, 0.3).float()
    with pytest.raises(UserError, match="learn"):
        made("disback", ring, generator)
    method = made("disback", student().net, generator)
    for name, value in method.teacher.module.state_dict().items():
        assert torch.equal(method.learners["fake_score"].state_dict()[name], value)
    learning = made("disback", ring, generator, learn=0.5, record=0.1)
    (update,) = learning.updates(batch(), Clock(0, 10))
    assert update.role == "fake_score" and update.evaluate().keys() == {"teacher"}
