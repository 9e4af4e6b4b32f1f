"""The overhaul of feature distillation as a method; the loss and the margins have their own tests."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from limbeck.engine.method import Clock
from limbeck.errors import UserError
from limbeck.vision.activations import margins
from limbeck.vision.losses.maps import partial_l2
from limbeck.vision.methods.ofd import margin_relu
from toolkit import image_batch, image_method, value

CLOCK = Clock(0, 10)


def unactivated(net: Any, x: torch.Tensor) -> list[torch.Tensor]:
    """What the two stages give before ReLU and pooling."""
    first = net.stages[0][1](net.stages[0][0](x))
    return [first, net.stages[1][1](net.stages[1][0](net.stages[0][3](first.relu())))]


def test_the_term_is_the_partial_distance_to_the_cut_teacher() -> None:
    batch, method = image_batch(), image_method("ofd", alpha=0.3)
    teacher = method.teacher.module
    terms = method.terms(batch, CLOCK)
    maps = method.learners["projectors"].maps
    s, t = (unactivated(m, batch["input"]) for m in (method.student, teacher))
    cut = margins(teacher, ["stages.0.1", "stages.1.1"])
    wanted = torch.zeros(())
    for i in range(2):
        target = torch.stack([t[i][:, c].clamp(min=float(m)) for c, m in enumerate(cut[i])], 1)
        wanted = wanted + partial_l2(maps[str(i)](s[i]), target).mean() / (2 - i)
    torch.testing.assert_close(value(terms["ofd"]), wanted)
    assert terms["ofd"].weight == 0.3 and set(terms) == {"ce", "ofd"}


def test_the_cut_keeps_what_is_positive() -> None:
    x = torch.tensor([[[[3.0, -0.1]], [[-5.0, -0.4]]]])
    torch.testing.assert_close(
        margin_relu(x, torch.tensor([-0.5, -0.2])), torch.tensor([[[[3.0, -0.1]], [[-0.2, -0.2]]]])
    )


def test_a_teacher_without_batch_norm_there_is_refused() -> None:
    with pytest.raises(UserError, match="no batch norm"):
        image_method("ofd", student_layers=["stages.1.0"], teacher_layers=["stages.1.0"])
