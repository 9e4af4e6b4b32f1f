"""CDA: the curriculum of crops."""

from __future__ import annotations

import math

import pytest
import torch

from limbeck.condensation.methods.cda import CDA
from limbeck.condensation.methods.sre2l import SRe2L
from limbeck.engine.method import Clock
from limbeck.errors import UserError
from toolkit.decoupled import loss_of, set_up


@pytest.mark.parametrize("milestone", [1.0, 0.5])
def test_the_share_is_the_papers(milestone):
    total = 20
    for step in range(total):
        clock, over = Clock(step, total), step >= milestone * total
        time = step / (milestone * total)
        wanted = {
            "cosine": 0.08 + 0.92 * (1 + math.cos(math.pi * time)) / 2,
            "linear": 1 - 0.92 * time,
            "step": 1.0,
        }
        for name, value in wanted.items():
            found = CDA(curriculum=name, milestone=milestone).crop_at(clock)
            assert found == pytest.approx(0.08 if over else value), (name, step)


def test_reversed_goes_the_other_way():
    there, back = CDA(), CDA(curriculum="reversed")
    assert [there.crop_at(Clock(s, 8)) + back.crop_at(Clock(s, 8)) for s in range(8)] == pytest.approx([1.08] * 8)
    assert back.crop_at(Clock(0, 8)) == pytest.approx(0.08)


def test_at_the_end_of_the_curriculum_it_is_sre2l(data):
    late, plain = set_up(CDA(milestone=0.5), data), set_up(SRe2L(), data)
    for step, same in ((0, False), (7, True)):
        found, wanted = (loss_of(m, Clock(step, 10)) for m in (late, plain))
        assert all(torch.equal(found[name], wanted[name]) for name in found) == same


def test_mistakes_are_told():
    for wrong in (0.0, 1.5):
        with pytest.raises(UserError, match="milestone"):
            CDA(milestone=wrong)
