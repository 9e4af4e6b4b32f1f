"""Generations of one network."""

from __future__ import annotations

import torch

from limbeck.engine.method import Clock, Parts
from limbeck.losses import soft_kl
from limbeck.registry import Block, build
from toolkit import IMAGES, image_batch, image_net, image_source, value, weights


def ready(**arguments: object) -> object:
    method = build("method", Block("self_distill_krr", arguments))
    method.setup(Parts(image_net(4), {}, IMAGES, IMAGES.offers(), {"data": image_source()}))
    return method


def test_generations_take_turns_and_the_student_is_the_last() -> None:
    method = ready(generations=3)
    turns = [method.turn(Clock(step, 9)) for step in range(9)]
    assert turns[:3] == [("generation_1", None)] * 3
    assert turns[3:6] == [("generation_2", "generation_1")] * 3
    assert turns[6:] == [("student", "generation_2")] * 3
    assert [method.turn(Clock(step, 2)) for step in range(2)] == [("generation_2", None), ("student", "generation_2")]
    assert ready(generations=1).turn(Clock(0, 1)) == ("student", None)


def test_all_start_alike() -> None:
    method = ready(generations=3)
    assert len({weights(m).sum().item() for m in method.learners.values()}) == 1
    own = [{id(p) for p in m.parameters()} for m in method.learners.values()]
    assert len(set.union(*own)) == sum(map(len, own)) == 3 * len(own[0])


def test_the_mixture_of_losses_has_the_gradient_of_the_mixed_target() -> None:
    """Half squares: ``a d(f, y) + (1 - a) d(f, g)`` and ``d(f, a y + (1 - a) g)`` differ by a constant."""
    method, batch = ready(label_weight=0.35), image_batch()
    batch["label"] = image_source().batch(torch.arange(6))["label"]
    with torch.no_grad():
        for p in method.learners["generation_1"].parameters():
            p.mul_(1.3)
    terms = method.terms("student", "generation_1", batch)
    sum(t.weight * value(t) for t in terms.values()).backward()
    found = [p.grad.clone() for p in method.student.parameters()]
    method.student.zero_grad()
    before = method.learners["generation_1"].eval()(batch["input"]).detach()
    target = 0.35 * torch.nn.functional.one_hot(batch["label"], 4) + 0.65 * before
    (0.5 * (method.student(batch["input"]) - target).square().sum(1)).mean().backward()
    for a, p in zip(found, method.student.parameters(), strict=True):
        torch.testing.assert_close(a, p.grad)
    assert all(p.grad is None for p in method.learners["generation_1"].parameters())


def test_classification_follows_the_probabilities_before() -> None:
    method, batch = ready(loss="ce"), image_batch()
    terms = method.terms("student", "generation_4", batch)
    before = method.learners["generation_4"].eval()(batch["input"]).detach()
    logits = method.student(batch["input"])
    torch.testing.assert_close(value(terms["kd"]), soft_kl(logits, before, temperature=1.0).mean())
    known = batch["label"] >= 0
    hard = torch.nn.functional.cross_entropy(logits[known], batch["label"][known])
    torch.testing.assert_close(value(terms["ce"]), hard)
    assert (terms["ce"].weight, round(terms["kd"].weight, 6)) == (0.6, 0.4)


def test_the_first_generation_has_the_labels_alone() -> None:
    terms = ready().terms("generation_1", None, image_batch())
    assert set(terms) == {"ce"} and terms["ce"].weight == 1.0 and int(terms["ce"].count) == 5
