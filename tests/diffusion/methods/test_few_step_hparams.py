"""Searched sampler settings: the best single level in closed form, other noise, guidance, and what is counted."""

from __future__ import annotations

import pytest
import torch

from limbeck.diffusion import mixture, samplers
from limbeck.diffusion.preset import Preset
from limbeck.engine.method import Clock
from limbeck.errors import UserError
from toolkit.diffusion import MEAN, STD, gaussian, made, student

LOW, HIGH = 0.02, 10.0


def preset(net=None, calls: int = 4, **args) -> Preset:
    levels = samplers.karras_grid(calls, LOW, HIGH)[:-1].tolist()
    return Preset(net or gaussian(), levels, sigma_min=LOW, sigma_max=HIGH, **args)


def searched(model: Preset, steps: int, teacher=None, **args):
    method = made("few_step_hparams", teacher or gaussian(), model, **{"samples": 64, **args})
    for k in range(steps):
        method.before_step(Clock(k, steps, seed=3))
    return method


def test_the_best_single_level_is_that_of_the_closed_form():
    """One call names ``m + w (s z - m)`` with ``w = v / (v + s^2)``; the flow ends at ``m + sqrt(v) z``, but for its
    own ends."""
    model = preset(calls=1)
    searched(model, 40, samples=2048)
    level = torch.linspace(0.05, HIGH, 20_000, dtype=torch.float64)
    share = STD**2 / (STD**2 + level**2)
    stretch = (STD**2 / (STD**2 + HIGH**2)) ** 0.5
    cost = ((share - stretch) * MEAN) ** 2 + (stretch * HIGH - share * level) ** 2
    assert float(model.levels[0]) == pytest.approx(float(level[cost.argmin()]), rel=0.05)


@pytest.mark.parametrize("grid", ["free", "karras"])
def test_what_is_found_is_better_on_other_noise(grid):
    z = torch.randn(500, 1)
    exact = gaussian().flow(HIGH * z, HIGH, LOW)
    error = lambda model: float((model(z) - exact).square().mean())  # noqa: E731
    model, first = preset(), preset()
    method = searched(model, 25, grid=grid)
    assert error(model) < error(first) / 10
    assert bool((model.levels.diff() < 0).all()) and float(model.levels[0]) <= HIGH
    assert method.lowest == pytest.approx(method.loss(method.best, Clock(9, 10, seed=3)))


def test_without_proposals_the_settings_stay_and_every_other_one_is_of_another_order():
    model = preset()
    searched(model, 3, proposals=0)
    torch.testing.assert_close(model.levels, preset().levels)
    assert int(model.order) == 2
    method = searched(preset(), 1)
    orders = [method.proposal(method.first(), Clock(0, 1), k).order for k in range(6)]
    assert orders == [2, 1, 2, 3, 2, 1]
    assert searched(preset(), 1, highest_order=1).best.order == 1


def test_the_objective_decides():
    found = []
    for objective in ("map", "law"):
        model = preset()
        searched(model, 6, objective=objective)
        found.append(model.levels.clone())
    assert not torch.allclose(*found)


def test_guidance_is_searched_at_each_call_and_counts_twice():
    law = mixture.ring(4, 1.0, 0.2, classes=2).float()
    model = preset(law, guidance=2.0)
    assert model.nfe == 8
    method = searched(model, 8, teacher=law, guidance=2.0)
    assert len(set(model.scales.tolist())) == 4
    z, label = torch.randn(6, 2), torch.arange(6) % 2
    plain = preset(law)
    assert plain.nfe == 4
    expected = samplers.dpmpp_2m(law, HIGH * z, samplers.karras_grid(4, LOW, HIGH), label=label).samples
    torch.testing.assert_close(plain(z, label), expected)
    start, classes = method.starts(Clock(0, 1, seed=3))
    assert classes is not None and float((model(start, classes) - method.long_run(start, classes)).abs().mean()) < 0.05


def test_a_resumed_search_goes_on_as_one_that_was_not_stopped():
    whole, cut = preset(), preset()
    method = searched(whole, 6)
    first = searched(cut, 3)
    again = made("few_step_hparams", gaussian(), preset(), samples=64)
    again.load_state_dict(first.state_dict())
    for k in range(3, 6):
        again.before_step(Clock(k, 6, seed=3))
    assert again.lowest == method.lowest
    assert torch.equal(again.preset.levels, whole.levels)


def test_another_student_is_refused():
    with pytest.raises(UserError, match="preset"):
        made("few_step_hparams", mixture.ring(4, 1.0, 0.2).float(), student())
