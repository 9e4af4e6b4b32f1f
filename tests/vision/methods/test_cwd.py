"""Channel-wise distillation as a method; the loss has its own tests."""

from __future__ import annotations

import torch

from limbeck.engine.method import Clock
from limbeck.vision.losses.maps import cwd
from toolkit import features_of, image_batch, image_method, value

CLOCK = Clock(0, 10)


def test_the_term_is_the_loss_of_the_last_map() -> None:
    batch, method = image_batch(), image_method("cwd", beta=3.0, channel_temperature=2.0)
    assert list(method.learners) == ["student", "projectors"]
    terms = method.terms(batch, CLOCK)
    s, t = features_of(method.student, batch)[1], features_of(method.teacher.module, batch)[1]
    wanted = cwd(method.learners["projectors"].maps["0"](s), t, temperature=2.0).mean()
    torch.testing.assert_close(value(terms["cwd"]), wanted)
    assert terms["cwd"].weight == 3.0 and set(terms) == {"ce", "cwd"}


def test_named_layers_add_up() -> None:
    layers = ["stages.0", "stages.1"]
    batch, method = image_batch(), image_method("cwd", student_layers=layers, teacher_layers=layers)
    maps = method.learners["projectors"].maps
    s, t = features_of(method.student, batch)[:2], features_of(method.teacher.module, batch)[:2]
    wanted = sum(cwd(maps[str(i)](s[i]), t[i]).mean() for i in range(2))
    torch.testing.assert_close(value(method.terms(batch, CLOCK)["cwd"]), wanted)
