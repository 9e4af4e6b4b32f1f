"""The training of denoisers: its loss by definition, hidden classes, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from limbeck.diffusion import mixture
from limbeck.engine.method import Parts
from limbeck.errors import UserError
from limbeck.registry import Block, build, find
from toolkit.diffusion import CLOCK, batch, values


def method(student: nn.Module, **args):
    made = find("method", "edm").load()(**args)
    made.setup(Parts(student=student))
    return made


def rows(count: int, **more):
    x = mixture.ring(4, 2.0, 0.3, classes=2).float().sample(count, 0)
    return {**batch(0, count), "input": x.samples, "label": x.component % 2, **more}


class Ideal(nn.Module):
    """The exact denoiser of the ring, which notes the classes that it is asked for."""

    sigma_data, classes = 1.5, 2

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self.law, self.gain, self.seen = mixture.ring(4, 2.0, 0.3, classes=2).float(), gain, []

    def forward(self, x, sigma, label=None):
        self.seen.append(label)
        return self.gain * self.law(x, sigma, label)


def test_the_loss_is_the_weighted_error_of_the_denoised_sample():
    ideal = Ideal()
    (update,) = method(ideal, drop_label=0.0, std=1e-4, mean=0.3).updates(rows(64), CLOCK)
    found = values(update)["denoising"]
    sigma = torch.tensor(0.3).exp()
    x0 = rows(64)["input"]
    x = x0 + sigma * CLOCK.normal(torch.arange(64), (2,), "noise")
    error = (ideal.law(x, float(sigma), rows(64)["label"]) - x0).square().mean(dim=1).sum()
    weight = (sigma**2 + 1.5**2) / (sigma * 1.5) ** 2
    assert found == pytest.approx(float(weight * error), rel=1e-3)


def test_the_exact_denoiser_costs_least():
    def cost(gain):
        (update,) = method(Ideal(gain)).updates(rows(2000), CLOCK)
        return values(update)["denoising"]

    assert cost(1.0) < min(cost(0.9), cost(1.1))


def test_as_many_classes_are_hidden_as_asked():
    for share in (0.0, 0.3, 1.0):
        ideal = Ideal()
        (update,) = method(ideal, drop_label=share).updates(rows(4000), CLOCK)
        update.evaluate()
        hidden = float((ideal.seen[0] == -1).float().mean())
        assert hidden == pytest.approx(share, abs=0.03)


@pytest.mark.parametrize("args", [{"std": 0.0}, {"drop_label": 2.0}])
def test_settings_that_cannot_work_are_refused(args):
    with pytest.raises(UserError, match="edm"):
        method(Ideal(), **args)


def test_a_student_that_is_no_denoiser_is_refused():
    with pytest.raises(UserError, match="denoising network"):
        method(build("model", Block("one_step", {"net": Block("mlp_denoiser", {})})))
