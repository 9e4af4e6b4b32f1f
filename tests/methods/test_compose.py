"""Compositions: the same thing as the method they spell out, and features through projectors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from limbeck.errors import UserError
from limbeck.registry import Block, build
from toolkit import set_up, toy_loop, toy_net, toy_source, toy_teacher, weights


def batch() -> dict:
    return toy_source().batch(torch.arange(16))


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
