"""The reused classifier as a method: its term, its last layer, and what it asks of student and teacher."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from limbeck.engine.method import Clock, Method, Parts
from limbeck.engine.teacher import Teacher
from limbeck.registry import Block, build
from limbeck.vision.methods.simkd import last_map
from toolkit import IMAGES, features_of, image_batch, image_net, image_source, value

CLOCK = Clock(0, 10)


def student(width: int = 4, channels: int = 12, **more: object) -> nn.Module:
    torch.manual_seed(0)
    block = Block("reused_classifier", {"net": Block("cnn", {"width": width}), "channels": channels, **more})
    return build("model", block, offers=IMAGES.offers())


def method(network: nn.Module, teacher: nn.Module | None = None, **arguments: object) -> Method:
    made = build("method", Block("simkd", arguments))
    teachers = {"teacher": Teacher(teacher or image_net(6, seed=5), {"logits", "features"}, "teacher")}
    made.setup(Parts(network, teachers, IMAGES, IMAGES.offers(), {"data": image_source()}))
    return made


def test_the_only_term_is_the_mean_square_through_the_projector() -> None:
    batch, made = image_batch(), method(student(), beta=3.0)
    terms = made.terms(batch, CLOCK)
    mapped = made.student.pool.projector(made.student.stages(batch["input"]))
    wanted = (mapped - features_of(made.teacher.module, batch)[1]).square().mean()
    torch.testing.assert_close(value(terms["simkd"]), wanted)
    assert set(terms) == {"simkd"} and terms["simkd"].weight == 3.0
    assert set(method(student(), ce_weight=0.5).terms(batch, CLOCK)) == {"simkd", "ce"}


def test_the_last_layer_is_a_copy_that_does_not_learn() -> None:
    batch, made = image_batch(), method(student())
    own, theirs = made.student.head, made.teacher.module.head
    assert own is not theirs and torch.equal(own.weight, theirs.weight) and torch.equal(own.bias, theirs.bias)
    value(made.terms(batch, CLOCK)["simkd"]).backward()
    assert all(p.grad is None and not p.requires_grad for p in own.parameters())
    assert all(p.grad is not None for n, p in made.student.named_parameters() if not n.startswith("head"))


def test_features_that_are_the_teachers_give_its_logits() -> None:
    batch, made = image_batch(), method(student())
    teacher = made.teacher.module

    class Aligned(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return teacher.stages(batch["input"])

    made.student.pool.projector = Aligned()
    torch.testing.assert_close(made.student(batch["input"]), teacher(batch["input"]))


def test_the_student_is_built_from_its_block_alone() -> None:
    one, two = student(reduction=3), student(reduction=3)
    two.load_state_dict(one.state_dict())
    batch = image_batch()
    torch.testing.assert_close(one.eval()(batch["input"]), two.eval()(batch["input"]))
    assert one.pool.projector[1][0].in_channels == 4 and one.head.in_features == 12
    with pytest.raises(ValueError, match="reduction"):
        student(reduction=13)


def test_teachers_of_vectors_and_finer_grids_are_taken() -> None:
    batch = image_batch()
    mlp = build("model", Block("mlp", {"hidden": 12}), offers=IMAGES.offers())
    assert last_map(mlp, batch) == (["head"], "input")
    made = method(student(), mlp)
    pooled = made.student.pool(made.student.stages(batch["input"])).flatten(1)
    wanted = (pooled - mlp.stages(batch["input"].flatten(1))).square().mean()
    torch.testing.assert_close(value(made.terms(batch, CLOCK)["simkd"]), wanted)
    shallow = build("model", Block("cnn", {"width": 12, "depth": 1}), offers=IMAGES.offers())
    assert last_map(shallow, batch) == (["stages"], "output")
    made = method(student(), shallow)
    coarse = shallow.stages(batch["input"]).unflatten(2, (2, 2)).unflatten(4, (2, 2)).mean((3, 5))
    mapped = made.student.pool.projector(made.student.stages(batch["input"]))
    torch.testing.assert_close(value(made.terms(batch, CLOCK)["simkd"]), (mapped - coarse).square().mean())


def test_a_student_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="reused_classifier"):
        method(image_net(4))
    with pytest.raises(ValueError, match="set the student's channels to 12"):
        method(student(channels=10))
    net = Block("convnet", {"width": 4, "depth": 2})
    with pytest.raises(ValueError, match="'pool'"):
        build("model", Block("reused_classifier", {"net": net, "channels": 4}), offers=IMAGES.offers())
