"""KD, DKD and DML as methods: what they yield, and that a composition is the same thing written down."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from limbeck.engine.method import Clock
from limbeck.errors import UserError
from limbeck.losses import soft_kl
from limbeck.registry import Block, build
from limbeck.vision.losses import dkd
from toolkit import set_up, toy_loop, toy_net, toy_source, toy_teacher, weights

CLOCK = Clock(0, 10)


def batch() -> dict:
    return toy_source().batch(torch.arange(16))


def test_kd_and_dkd_yield_the_published_sums() -> None:
    x = batch()
    for name in ("kd", "dkd"):
        method = set_up(build("method", Block(name, {"temperature": 3.0})), toy_net(), {"teacher": toy_teacher()})
        (update,) = method.updates(x, CLOCK)
        total = sum(t.weight * t.sum / t.count for t in update.evaluate().values())
        student, teacher = method.student(x["input"]), method.teacher(x).logits
        ce = torch.nn.functional.cross_entropy(student, x["label"])
        if name == "kd":
            expected = 0.1 * ce + 0.9 * soft_kl(student, teacher, temperature=3.0).mean()
        else:
            expected = ce + dkd(student, teacher, x["label"], temperature=3.0).mean() / 20  # first epoch of the warm-up
        assert torch.allclose(total, expected, atol=1e-6)


def test_dkd_warms_up_over_epochs() -> None:
    method = build("method", Block("dkd", {"warmup": 4.0}))
    assert [method.ramp(Clock(0, 9, epoch=e)) for e in (0, 1, 3, 7)] == [0.25, 0.5, 1.0, 1.0]
    assert build("method", Block("dkd", {"warmup": 0.0})).ramp(CLOCK) == 1.0


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


def test_a_composition_equals_the_method_it_spells_out(tmp_path: Path) -> None:
    terms = {
        "ce": Block("cross_entropy", {"weight": 0.1}),
        "kd": Block("soft_kl", {"weight": 0.9, "temperature": 4.0}),
    }
    ends = []
    for name, args in (("kd", {}), ("compose", {"terms": terms})):
        method = set_up(build("method", Block(name, args)), toy_net(), {"teacher": toy_teacher()})
        ends.append(toy_loop(tmp_path / name, method, steps=5).fit().student["last"])
    assert all(torch.equal(v, ends[1][k]) for k, v in ends[0].items())


def test_features_are_compared_through_a_projector_that_the_student_never_sees(tmp_path: Path) -> None:
    feature = Block("mse", {"student": "1", "teacher": "1", "projector": Block("auto"), "weight": 0.5})
    method = set_up(build("method", Block("compose", {"terms": {"f": feature}})), toy_net(), {"teacher": toy_teacher()})
    assert list(method.learners) == ["student", "projectors"]
    x = batch()
    terms = method.evaluate(x)
    hidden = method.projectors["f"](torch.tanh(toy_net()[0](x["input"])))
    target = torch.tanh(method.teacher.module[0](x["input"]))
    assert torch.allclose(terms["f"].sum / terms["f"].count, (hidden - target).square().mean(1).mean(), atol=1e-6)
    before = weights(method.projectors)
    outcome = toy_loop(tmp_path, method, steps=3).fit()
    assert not torch.equal(before, weights(method.projectors))
    assert list(outcome.student["last"]) == list(toy_net().state_dict())


def test_a_wrong_module_path_names_the_nearest_one() -> None:
    term = Block("mse", {"student": "11"})
    with pytest.raises(UserError, match=r"no module '11'.*did you mean '1'"):
        set_up(build("method", Block("compose", {"terms": {"f": term}})), toy_net(), {"teacher": toy_teacher()})
