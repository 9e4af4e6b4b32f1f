"""Balanced divergences as a method; the loss has its own tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from limbeck.engine.method import Clock
from limbeck.losses import soft_kl
from limbeck.registry import Block, build
from limbeck.vision.losses.logits import balanced_kl
from toolkit import set_up, toy_loop, toy_net, toy_source, value, weights

PEER = Block("mlp", {"hidden": 16})


def method(**arguments: Any) -> Any:
    torch.manual_seed(3)
    return set_up(build("method", Block("bd_kd", {"peer": PEER, **arguments})), toy_net())


def batch() -> dict[str, Any]:
    x = toy_source().batch(torch.arange(16))
    x["label"][2] = -100
    return x


def test_the_terms_are_the_two_sides_objectives() -> None:
    m, x = method(balance=3.0, weight=0.5, peer_weight=0.2, temperature=2.0), batch()
    terms = m.terms(x)
    s, t = m.student(x["input"]), m.learners["peer"](x["input"])
    both = value(terms["forward"]) + value(terms["reverse"])
    torch.testing.assert_close(both, balanced_kl(s, t, balance=3.0, temperature=2.0).mean())
    torch.testing.assert_close(value(terms["peer_reverse"]), soft_kl(s, t, temperature=2.0).mean())
    assert [terms[n].weight for n in ("forward", "reverse", "peer_reverse")] == [0.5, 0.5, 0.2]
    assert int(terms["ce"].count) == int(terms["peer_ce"].count) == 15


def test_each_side_takes_the_other_as_given() -> None:
    m, x = method(), batch()
    terms = m.terms(x)
    for role, names in {"student": ("peer_ce", "peer_reverse"), "peer": ("ce", "forward", "reverse")}.items():
        parameters = list(m.learners[role].parameters())
        for name in names:
            found = torch.autograd.grad(terms[name].sum, parameters, retain_graph=True, allow_unused=True)
            assert all(g is None for g in found), (role, name)


def test_both_step_at_once(tmp_path: Path) -> None:
    m = method()
    (update,) = m.updates(batch(), Clock(0, 10))
    assert update.roles == ("student", "peer")
    before = {role: weights(module) for role, module in m.learners.items()}
    toy_loop(tmp_path, m, steps=2).fit()
    assert all(not torch.equal(before[role], weights(module)) for role, module in m.learners.items())
