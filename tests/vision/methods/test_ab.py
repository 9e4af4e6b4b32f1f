"""Activation boundaries as a method; the loss and the search for layers have their own tests."""

from __future__ import annotations

from typing import Any

import torch

from limbeck.engine.method import Clock
from limbeck.vision.losses.maps import activation_boundary
from toolkit import image_batch, image_method, value

CLOCK = Clock(0, 10)


def unactivated(net: Any, x: torch.Tensor) -> list[torch.Tensor]:
    """What the two stages give before ReLU and pooling."""
    first = net.stages[0][1](net.stages[0][0](x))
    return [first, net.stages[1][1](net.stages[1][0](net.stages[0][3](first.relu())))]


def test_the_term_halves_earlier_layers() -> None:
    batch, method = image_batch(), image_method("ab", beta=0.5, margin=0.7)
    assert list(method.learners) == ["student", "projectors"]
    terms = method.terms(batch, CLOCK)
    maps = method.learners["projectors"].maps
    s, t = (unactivated(m, batch["input"]) for m in (method.student, method.teacher.module))
    parts = [activation_boundary(maps[str(i)](s[i]), t[i], margin=0.7).mean() for i in range(2)]
    torch.testing.assert_close(value(terms["ab"]), parts[0] / 2 + parts[1])
    assert terms["ab"].weight == 0.5 and set(terms) == {"ce", "ab"} and terms["ab"].sum.requires_grad


def test_the_first_phase_has_no_labels_and_named_layers_are_taken_as_they_are() -> None:
    layers = {"student_layers": ["stages.1.0"], "teacher_layers": ["stages.1.1"]}
    method = image_method("ab", ce_weight=0.0, **layers)
    assert method._own.paths == ["stages.1.0"] and set(method.terms(image_batch(), CLOCK)) == {"ab"}
