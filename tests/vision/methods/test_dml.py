"""Deep mutual learning as a method."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from limbeck.losses import soft_kl
from limbeck.registry import Block, build
from toolkit import set_up, toy_loop, toy_net, toy_source, weights


def batch() -> dict:
    return toy_source().batch(torch.arange(16))


def test_peers_teach_each_other_in_turn_with_the_newest_predictions(tmp_path: Path) -> None:
    method = set_up(build("method", Block("dml", {"peers": 3})), toy_net())
    assert list(method.learners) == ["student", "peer_1", "peer_2"]
    firsts = [weights(m) for m in method.learners.values()]
    assert not torch.equal(firsts[0], firsts[1]) and not torch.equal(firsts[1], firsts[2])
    x = batch()
    logits = {r: m(x["input"]).detach() for r, m in method.learners.items()}
    terms = method.terms("peer_1", x)
    expected = sum(soft_kl(logits["peer_1"], logits[r], temperature=1.0) for r in ("student", "peer_2")) / 2
    assert torch.allclose(terms["mutual"].sum, expected.sum(), atol=1e-5)
    toy_loop(tmp_path, method, steps=2).fit()
    assert all(not torch.equal(a, weights(m)) for a, m in zip(firsts, method.learners.values(), strict=True))


def test_alternating_and_simultaneous_orders_differ(tmp_path: Path) -> None:
    ends = []
    for order in ("alternating", "simultaneous"):
        torch.manual_seed(4)
        method = set_up(build("method", Block("dml", {"order": order})), toy_net())
        ends.append(toy_loop(tmp_path / order, method, steps=3).fit().learners)
    student = [torch.cat([v.flatten() for v in e["student"].values()]) for e in ends]
    assert not torch.equal(*student) and torch.allclose(*student, atol=0.1)


def test_mutual_learning_needs_a_second_peer() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        build("method", Block("dml", {"peers": 1}))
