"""Training on quantised weights, and training of the levels."""

from __future__ import annotations

import torch

from limbeck.engine.method import Clock
from limbeck.losses import soft_kl
from limbeck.vision.quantise import quantised
from toolkit import image_batch, image_method, value

CLOCK = Clock(3, 10)


def on_levels(method: object, bits: int) -> dict[str, torch.Tensor]:
    named = method.student.named_parameters()
    return {n: quantised(p.detach(), bits, 256) if p.dim() > 1 else p.detach() for n, p in named}


def test_the_loss_is_that_of_the_quantised_student_and_moves_the_floats() -> None:
    method, batch = image_method("quant_distill", bits=2), image_batch()
    weights = on_levels(method, 2)
    before = {n: p.detach().clone() for n, p in method.student.named_parameters()}
    terms = method.terms(batch, CLOCK)
    (0.3 * value(terms["ce"]) + 0.7 * value(terms["kd"])).backward()
    leaves = {n: w.clone().requires_grad_() for n, w in weights.items()}
    logits = torch.func.functional_call(method.student, leaves, (batch["input"],))
    soft = soft_kl(logits, method.teacher(batch).logits, temperature=2.0).mean()
    known = batch["label"] >= 0
    hard = torch.nn.functional.cross_entropy(logits[known], batch["label"][known])
    (0.3 * hard + 0.7 * soft).backward()
    torch.testing.assert_close(value(terms["kd"]), soft)
    for n, p in method.student.named_parameters():
        torch.testing.assert_close(p.grad, leaves[n].grad, msg=n)
        assert torch.equal(p, before[n])
    assert abs(terms["ce"].weight - 0.3) < 1e-9 and terms["kd"].weight == 0.7


def test_between_steps_the_student_is_quantised_and_the_floats_come_back() -> None:
    method, batch = image_method("quant_distill", bits=2), image_batch()
    before = {n: p.detach().clone() for n, p in method.student.named_parameters()}
    wanted = on_levels(method, 2)
    method.after_step(CLOCK)
    for n, p in method.student.named_parameters():
        torch.testing.assert_close(p.detach(), wanted[n])
    next(iter(method.updates(batch, CLOCK)))
    assert all(torch.equal(p, before[n]) for n, p in method.student.named_parameters())
    again = image_method("quant_distill", bits=2)
    again.load_state_dict(method.state_dict())
    assert all(torch.equal(w, before[n]) for n, w in again.floats.items())


def test_the_step_decides_the_stochastic_levels() -> None:
    method = image_method("quant_distill", bits=1, rounding="stochastic")
    one, same, other = (method.on_levels(c) for c in (CLOCK, CLOCK, Clock(4, 10)))
    assert all(torch.equal(w, same[n]) for n, w in one.items())
    assert any(not torch.equal(w, other[n]) for n, w in one.items())


def test_named_layers_stay_as_they_are() -> None:
    method = image_method("quant_distill", bits=1, full_precision=["head.*", "stages.0.*"])
    assert list(method.on_levels(CLOCK)) == ["stages.1.0.weight"]


def test_only_the_points_learn_and_each_layer_has_its_own() -> None:
    method, batch = image_method("quant_distill", bits=2, learn="points"), image_batch()
    update = next(iter(method.updates(batch, CLOCK)))
    assert update.role == "points" and not any(p.requires_grad for p in method.student.parameters())
    terms = update.evaluate()
    value(terms["kd"]).backward()
    points = list(method.learners["points"].parameters())
    assert [p.shape for p in points] == [(4,)] * 3 and all(p.grad.abs().sum() > 0 for p in points)
    method.after_step(CLOCK)
    for p in (q for q in method.student.parameters() if q.dim() > 1):
        buckets = p.detach().flatten().split(256)
        assert max(len(b.unique()) for b in buckets) <= 4
