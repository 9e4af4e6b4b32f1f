"""DMD: what its updates are, that they do not depend on how a batch is cut, and where its two terms pull."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from limbeck.diffusion import mixture
from limbeck.diffusion.methods.dmd import DMD
from limbeck.diffusion.mixture import GaussianMixture
from limbeck.engine.method import Clock, Parts
from limbeck.engine.teacher import Teacher
from limbeck.errors import UserError
from limbeck.registry import Block, build, find

CRITIC = Block("mlp_denoiser", {"width": 16, "depth": 1})
CLOCK = Clock(step=3, total=10, seed=1)


def batch(start: int = 0, stop: int = 64) -> dict:
    return {"id": torch.arange(start, stop), "view": 0}


def made(teacher: nn.Module | None = None, student: nn.Module | None = None, **args) -> DMD:
    torch.manual_seed(0)
    teacher = mixture.ring(4, 2.0, 0.3).float() if teacher is None else teacher
    if student is None:
        classes = getattr(teacher, "classes", None)
        net = Block("mlp_denoiser", {"width": 16, "depth": 1, "classes": classes, "sigma_data": 1.5})
        student = build("model", Block("one_step", {"net": net, "sigma": 10.0}))
    method = DMD(**{"critic": CRITIC, "sigma_min": 0.02, "sigma_max": 10.0, "pairs": 32, "pair_steps": 8, **args})
    method.setup(Parts(student=student, teachers={"teacher": Teacher(teacher, {"denoiser"}, "teacher")}))
    return method


def values(update) -> dict[str, float]:
    return {name: float(term.sum.detach()) for name, term in update.evaluate().items()}


class Affine(nn.Module):
    """x = a z + b in one dimension."""

    shape = (1,)

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.ones(1)), nn.Parameter(torch.zeros(1))

    def forward(self, noise):
        return self.a * noise + self.b


def gaussian() -> GaussianMixture:
    return GaussianMixture(torch.ones(1), torch.tensor([[1.0]]), torch.tensor([[0.25]]))


def test_the_generator_moves_first_and_then_its_critic():
    updates = list(made(critic_updates=3).updates(batch(), CLOCK))
    assert [u.role for u in updates] == ["student", "fake_score", "fake_score", "fake_score"]
    assert values(updates[0]).keys() == {"distribution", "regression"}
    assert values(updates[1]).keys() == {"denoising"}


def test_the_recipe_knows_without_importing_what_the_method_needs():
    facts = find("method", "dmd").facts
    assert facts["needs"] == {"teacher": {"denoiser"}}
    assert facts["data_free"] is True
    assert facts["controls"] == DMD.controls


def test_every_update_draws_its_own_noise():
    method = made(critic_updates=2)
    _, first, second = method.updates(batch(), CLOCK)
    assert values(first) != values(second)


def test_the_step_does_not_depend_on_how_the_batch_is_cut():
    method = made(critic_updates=1)
    whole = [values(u) for u in method.updates(batch(0, 64), CLOCK)]
    halves = [[values(u) for u in method.updates(batch(*cut), CLOCK)] for cut in ((0, 24), (24, 64))]
    for k, terms in enumerate(whole):
        assert {n: halves[0][k][n] + halves[1][k][n] for n in terms} == pytest.approx(terms, rel=1e-4)


def test_a_resumed_step_is_the_same_step():
    assert [values(u) for u in made().updates(batch(), CLOCK)] == [values(u) for u in made().updates(batch(), CLOCK)]


def test_a_learner_takes_no_gradient_from_the_others_update():
    method = made()
    for update in method.updates(batch(), CLOCK):
        for module in method.learners.values():
            module.zero_grad(set_to_none=True)
        sum(term.sum for term in update.evaluate().values()).backward()
        for role, module in method.learners.items():
            touched = any(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())
            assert touched == (role == update.role)


def test_the_regression_targets_are_the_end_of_the_teachers_flow():
    method = made(gaussian(), Affine(), sigma_max=10.0, pair_steps=40)
    start, _, target = method.pair(batch(), CLOCK)
    exact = gaussian().double().flow(10 * start.double(), 10.0, 0.0)
    torch.testing.assert_close(target.double(), exact, atol=5e-3, rtol=0)
    assert len(torch.unique(target)) <= 32


def test_regression_alone_pulls_an_affine_generator_to_the_flow_map():
    student = Affine()
    method = made(gaussian(), student, distribution_weight=0.0, critic_updates=0, pairs=512, pair_steps=40)
    assert set(method.learners) == {"student"}
    optimizer = torch.optim.Adam(student.parameters(), 0.05)
    for step in range(150):
        (update,) = method.updates(batch(), Clock(step, 150))
        term = update.evaluate()["regression"]
        optimizer.zero_grad()
        (term.sum / term.count).backward()
        optimizer.step()
    ratio = (0.25 / (0.25 + 100)) ** 0.5
    assert float(student.a.detach()) == pytest.approx(10 * ratio, abs=0.01)
    assert float(student.b.detach()) == pytest.approx(1 - ratio, abs=0.01)


def test_matching_with_the_exact_critic_pulls_an_affine_generator_to_the_teachers_law():
    class Exact(nn.Module):
        """The fake score of an affine generator, in closed form."""

        def __init__(self, student: Affine) -> None:
            super().__init__()
            self.of = [student]

        def forward(self, x, sigma):
            s, variance = self.of[0], self.of[0].a ** 2
            return s.b + variance / (variance + sigma[:, None] ** 2) * (x - s.b)

    student = Affine()
    method = made(gaussian(), student, regression_weight=0.0)
    method.learners["fake_score"] = Exact(student)
    optimizer = torch.optim.Adam(student.parameters(), 0.05, betas=(0.0, 0.999))
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, 200)
    for step in range(200):
        update = next(iter(method.updates(batch(0, 256), Clock(step, 200))))
        term = update.evaluate()["distribution"]
        optimizer.zero_grad()
        (term.sum / term.count).backward()
        optimizer.step()
        schedule.step()
    assert abs(float(student.a.detach())) == pytest.approx(0.5, abs=0.05)
    assert float(student.b.detach()) == pytest.approx(1.0, abs=0.05)


def test_noise_levels_stay_within_the_fractions_of_the_grid():
    method = made(t_min=0.02, t_max=0.98, sigma_min=0.002, sigma_max=80.0)
    at = method.noised(torch.zeros(4000, 2), None, batch(0, 4000), CLOCK, "x", low=method.t_min, high=method.t_max)
    low, high = 0.002 ** (1 / 7), 80 ** (1 / 7)
    position = (at.sigma.double() ** (1 / 7) - low) / (high - low)
    assert 0.02 <= position.min() < 0.03
    assert 0.97 < position.max() <= 0.98
    assert float(position.mean()) == pytest.approx(0.5, abs=0.02)
    assert float((at.x / at.sigma[:, None]).std()) == pytest.approx(1.0, abs=0.03)


def test_classes_and_guidance_reach_teacher_student_and_critic():
    critic = Block("mlp_denoiser", {"width": 16, "depth": 1})
    method = made(mixture.ring(4, 2.0, 0.3, classes=2).float(), critic=critic, guidance=2.0)
    assert method.learners["fake_score"].classes == 2
    assert all(torch.isfinite(torch.tensor(list(values(u).values()))).all() for u in method.updates(batch(), CLOCK))
    assert set(method.draw_label(torch.arange(100), CLOCK, "x").tolist()) == {0, 1}


def test_student_and_critic_start_as_the_teacher_where_they_can():
    teacher = build("model", CRITIC)
    student = build("model", Block("one_step", {"net": CRITIC}))
    assert not torch.equal(student.net.backbone.last.weight, teacher.backbone.last.weight)
    method = made(teacher, student)
    for net in (student.net, method.learners["fake_score"]):
        assert torch.equal(net.backbone.last.weight, teacher.backbone.last.weight)
    fresh = build("model", Block("one_step", {"net": CRITIC}))
    made(teacher, fresh, from_teacher=False)
    assert not torch.equal(fresh.net.backbone.last.weight, teacher.backbone.last.weight)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ({"critic_updates": 0}, "critic_updates"),
        ({"t_min": 0.9, "t_max": 0.1}, "t_min"),
        ({"sigma_min": 0.0}, "sigma_min"),
        ({"pairs": 0}, "pairs"),
        ({"guidance": 2.0}, "classes"),
    ],
)
def test_settings_that_cannot_work_are_refused(args, says):
    with pytest.raises(UserError, match=says):
        made(**args)


def test_a_student_of_another_shape_is_refused():
    with pytest.raises(UserError, match=r"\(1,\).*\(2,\)"):
        made(student=Affine())
