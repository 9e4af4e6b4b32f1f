"""Progressive self-distillation as a method."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from limbeck.engine.method import Clock
from limbeck.registry import Block, build
from limbeck.vision.methods.ps_kd import Predictions
from toolkit import set_up, toy_net, toy_source


def method(**arguments: Any) -> Any:
    return set_up(build("method", Block("ps_kd", arguments)), toy_net())


def clock(epoch: int, epochs: int = 10) -> Clock:
    return Clock(epoch * 4, epochs * 4, epoch=epoch, steps_per_epoch=4)


def total(terms: dict[str, Any]) -> torch.Tensor:
    return sum(t.weight * t.sum / t.count for t in terms.values())


def test_the_first_epoch_has_the_labels_alone() -> None:
    m, x = method(), toy_source().batch(torch.arange(8))
    wanted = F.cross_entropy(m.student(x["input"]), x["label"])
    torch.testing.assert_close(total(m.terms(x, clock(0))), wanted)


def test_the_target_is_the_papers_mixture_with_the_epoch_before() -> None:
    m = method(alpha=0.6)
    first = toy_source().batch(torch.tensor([5, 1, 3, 0, 2]))
    m.terms(first, clock(0))
    said = torch.softmax(m.student(first["input"]), 1).detach()
    with torch.no_grad():
        m.student[2].weight.mul_(1.7)
    again = toy_source().batch(torch.tensor([0, 1, 5, 7]))  # nothing is known of the last one
    again["label"][1] = -100
    before = dict(zip(first["id"].tolist(), said, strict=True))
    logits, share, values = m.student(again["input"]).double(), 0.6 * 2 / 10, []
    for i, (sample, label) in enumerate(zip(again["id"].tolist(), again["label"].tolist(), strict=True)):
        if label < 0:
            continue
        y = F.one_hot(torch.tensor(label), 4).double()
        q = (1 - share) * y + share * (before[sample].double() if sample in before else y)
        values.append(-(q * torch.log_softmax(logits[i], 0)).sum())
    torch.testing.assert_close(total(m.terms(again, clock(1))).double(), torch.stack(values).mean(), rtol=1e-5, atol=0)


def test_what_this_epoch_says_is_not_used_before_the_next() -> None:
    memory, ids = Predictions(), torch.tensor([4, 2])
    memory.add(ids, torch.tensor([[0.1, 0.9], [0.2, 0.8]]))
    assert len(memory) == 0
    memory.begin(1)
    memory.add(ids, torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    found, known = memory.of(torch.tensor([2, 9, 4, -1]))
    assert known.tolist() == [True, False, True, False]
    torch.testing.assert_close(found[known], torch.tensor([[0.2, 0.8], [0.1, 0.9]]))
    memory.begin(2)
    assert memory.of(ids)[0][0].tolist() == [1.0, 0.0]


def test_the_state_holds_both_epochs() -> None:
    one, other, ids = Predictions(), Predictions(), torch.tensor([3, 1])
    for epoch in (0, 1):
        one.begin(epoch)
        one.add(ids, torch.rand(2, 3))
    other.load(one.state())
    for memory in (one, other):
        assert len(memory) == 2
        memory.add(torch.tensor([2]), torch.ones(1, 3))
    assert torch.equal(one.of(ids)[0], other.of(ids)[0])
    for memory in (one, other):
        memory.begin(2)
    assert torch.equal(one.of(torch.arange(4))[0], other.of(torch.arange(4))[0])


def test_the_share_grows_linearly_to_alpha() -> None:
    m = method(alpha=0.8)
    assert [m.share(clock(e, 4)) for e in range(4)] == pytest.approx([0.2, 0.4, 0.6, 0.8])
