"""A learning rate that learns."""

from __future__ import annotations

import pytest
import torch

from limbeck.condensation.rates import LEAST, Rate, lesson


@pytest.mark.parametrize("form", ["plain", "softplus"])
@pytest.mark.parametrize("value", [1e-3, 0.3, 2.0])
def test_it_starts_at_its_value(form, value):
    assert Rate(value, form)().item() == pytest.approx(value, rel=1e-4)


def test_it_stays_above_zero():
    plain, soft = Rate(0.1), Rate(0.1, "softplus")
    for rate in (plain, soft):
        with torch.no_grad():
            rate.raw.sub_(5)
        rate.keep_positive_()
    assert plain().item() == pytest.approx(LEAST)
    assert 0 < soft().item() < 1e-2
    assert soft.raw.item() < -5


def test_a_lesson_is_of_classes_of_probabilities_or_of_numbers():
    z, y = torch.randn(4, 3), torch.tensor([0, 2, 1, 1])
    plain = -z.log_softmax(1)[torch.arange(4), y].mean()
    assert lesson(z, y).item() == pytest.approx(plain.item())
    p = torch.rand(4, 3)
    assert lesson(z, p).item() == pytest.approx(-(p * z.log_softmax(1)).sum(1).mean().item(), rel=1e-5)
    assert lesson(z, p, regression=True).item() == pytest.approx((z - p).square().mean().item(), rel=1e-5)
