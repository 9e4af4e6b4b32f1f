"""Fast meta-learned inversion as a method: inner steps, the gradient of the generator, its statistics, its warm-up."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from limbeck.engine.batch_statistics import Statistics
from limbeck.engine.method import Clock, Method
from limbeck.errors import UserError
from toolkit import image_method, value

CLOCK = Clock(4, 10)
BATCH = {"id": torch.arange(6), "view": 0}
SMALL = {"iterations": 3, "synthesis_batch": 5, "every": 4, "latent": 4, "width": 3, "warmup": 2}


def ready(**arguments: object) -> Method:
    return image_method("fast_meta", **{**SMALL, **arguments})


def by_hand(method: Method, optimizer_lr: float, lr_z: float) -> tuple[torch.nn.Module, list[torch.Tensor]]:
    """The inner steps written out: the copy after them, and the sum of its gradients."""
    net = copy.deepcopy(method.learners["generator"].generator)
    ids = torch.arange(5)
    z = CLOCK.normal(ids, (4,), "z 0").requires_grad_()
    optimizer = torch.optim.Adam(
        [{"params": net.parameters()}, {"params": [z], "lr": lr_z}], optimizer_lr, (0.5, 0.999)
    )
    summed = [torch.zeros_like(p) for p in net.parameters()]
    for i in range(3):
        images = method.augmented(net(z), ids, CLOCK, f"view 0 {i}")
        with Statistics(method.teacher.module) as statistics:
            labels = method.draw_labels(ids, CLOCK, "labels 0")
            loss = method.inversion_loss(images, labels, statistics, adversarial=True)
        optimizer.zero_grad()
        loss.backward()
        summed = [s + p.grad for s, p in zip(summed, net.parameters(), strict=True)]
        optimizer.step()
    return net, summed


@pytest.mark.parametrize("meta", ["fomaml", "reptile"])
def test_the_generators_gradient_is_the_rules(meta: str) -> None:
    method = ready(meta=meta, lr=0.01, lr_z=0.02)
    meta_net = method.learners["generator"]
    net, summed = by_hand(method, 0.01, 0.02)
    update = next(iter(method.updates(BATCH, CLOCK)))
    found = torch.autograd.grad(value(update.evaluate()["meta"]), list(meta_net.parameters()))
    for i, (start, end) in enumerate(zip(meta_net.generator.parameters(), net.parameters(), strict=True)):
        wanted = summed[i] if meta == "fomaml" else start.detach() - end.detach()
        torch.testing.assert_close(found[i], wanted, rtol=1e-4, atol=1e-6)


def test_the_loss_is_the_papers_with_statistics_of_earlier_rounds() -> None:
    method = ready(bn_weight=2.0, onehot_weight=0.6, adv_weight=0.7, momentum=0.8)
    images, labels = torch.randn(5, 1, 8, 8), torch.tensor([0, 3, 1, 2, 0])
    teacher = method.teacher.module
    old = [(torch.randn(n), torch.rand(n)) for n in (6, 12)]
    method.moments = old
    with Statistics(teacher) as statistics:
        found = method.inversion_loss(images, labels, statistics, adversarial=True)
        calm = method.inversion_loss(images, labels, statistics, adversarial=False)
    z, s = teacher(images), method.student.eval()(images)
    p, q = z.softmax(1), s.softmax(1)
    adversarial = ((p * (p / q).log()).sum(1) * (z.argmax(1) == s.argmax(1))).mean()
    wanted = 0.6 * F.cross_entropy(z, labels)
    first, second = teacher.stages[0][0](images), teacher.stages[1][0](teacher.stages[0](images))
    for x, norm, (m, v) in ((first, teacher.stages[0][1], old[0]), (second, teacher.stages[1][1], old[1])):
        rows = x.transpose(0, 1).flatten(1)
        wanted = wanted + 2.0 * (0.8 * m + 0.2 * rows.mean(1) - norm.running_mean).norm()
        wanted = wanted + 2.0 * (0.8 * v + 0.2 * rows.var(1, unbiased=False) - norm.running_var).norm()
    torch.testing.assert_close(calm, wanted)
    torch.testing.assert_close(found, wanted - 0.7 * adversarial)


def test_the_first_step_warms_up() -> None:
    method = ready()
    assert [u.role for u in method.updates(BATCH, Clock(0, 10))] == ["generator"] * 3 + ["student"]
    assert len(method.bank) == 15 and method.moments is not None
    assert [u.role for u in method.updates(BATCH, CLOCK)] == ["generator", "student"]
    assert len(method.bank) == 20


def test_without_meta_every_round_starts_afresh() -> None:
    method = ready(meta="none", warmup=0)
    assert "generator" not in method.learners
    assert [u.role for u in method.updates(BATCH, CLOCK)] == ["student"]
    images = method.bank.rows["images"].clone()
    list(method.updates(BATCH, CLOCK))
    method.moments = None
    assert torch.equal(images, method.bank.rows["images"][:5])
    with pytest.raises(UserError, match="warmup"):
        ready(warmup=-1)


def test_the_state_holds_bank_and_statistics() -> None:
    method, other = ready(), ready()
    list(method.updates(BATCH, Clock(0, 10)))
    other.load_state_dict(method.state_dict())
    assert all(torch.equal(a[0], b[0]) for a, b in zip(method.moments, other.moments, strict=True))
    assert torch.equal(method.bank.rows["images"], other.bank.rows["images"])
    fresh = ready()
    fresh.load_state_dict(ready().state_dict())
    assert fresh.moments is None
