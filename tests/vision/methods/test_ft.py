"""Factor transfer as a method; the loss has its own test."""

from __future__ import annotations

import torch

from limbeck.engine.method import Clock
from limbeck.vision.losses.factors import factor
from limbeck.vision.paraphrase import Paraphraser, Translator
from toolkit import features_of, image_batch, image_method, value


def test_the_paraphraser_learns_first_and_alone() -> None:
    batch, method = image_batch(), image_method("ft", paraphraser_share=0.3)
    assert list(method.learners) == ["student", "translator", "paraphraser"]
    roles = [[u.roles for u in method.updates(batch, Clock(step, 10))] for step in range(10)]
    assert roles == [[("paraphraser",)]] * 3 + [[("student", "translator")]] * 7
    feature = features_of(method.teacher.module, batch)[1]
    wanted = (method.learners["paraphraser"](feature)[1] - feature).square().mean()
    torch.testing.assert_close(value(method.reconstruct(batch)["reconstruction"]), wanted)


def test_the_student_learns_the_factor_of_a_frozen_paraphraser() -> None:
    batch, method = image_batch(), image_method("ft", beta=7.0, p=2.0)
    terms = method.terms(batch, Clock(5, 10))
    s, t = features_of(method.student, batch)[1], features_of(method.teacher.module, batch)[1]
    own, other = method.learners["translator"](s), method.learners["paraphraser"].encoder(t)
    torch.testing.assert_close(value(terms["factor"]), factor(own, other, p=2.0).mean())
    assert own.shape == other.shape == (6, 6, 2, 2) and terms["factor"].weight == 7.0
    terms["factor"].sum.backward()
    assert all(p.grad is None for p in method.learners["paraphraser"].parameters())
    assert all(p.grad is not None for p in method.learners["translator"].parameters())


def test_the_rate_sets_the_channels_and_grids_may_differ() -> None:
    method = image_method("ft", rate=0.25, student_layers=["stages.0"], teacher_layers=["stages.1"])
    assert method.learners["paraphraser"].encoder[2].out_channels == 3
    assert value(method.terms(image_batch(), Clock(5, 10))["factor"]) > 0


def test_maps_come_back_in_their_own_shape() -> None:
    feature = torch.randn(2, 5, 4, 4)
    found, back = Paraphraser(5, 3)(feature)
    assert found.shape == (2, 3, 4, 4) and back.shape == feature.shape
    assert Translator(5, 3)(feature).shape == found.shape


def test_what_differs_between_samples_comes_through_before_anything_is_learnt() -> None:
    torch.manual_seed(0)
    feature = torch.randn(64, 32, 4, 4).relu()
    _, back = Paraphraser(32, 16)(feature)
    assert back.std(0).mean() > 0.1 * feature.std(0).mean()
