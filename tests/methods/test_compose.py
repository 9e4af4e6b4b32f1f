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
    hidden = method.projectors.maps["f"](torch.tanh(toy_net()[0](x["input"])))
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


def test_on_text_a_composition_of_soft_targets_equals_word_level_distillation() -> None:
    from limbeck.data.text import text
    from limbeck.engine.method import Parts
    from limbeck.engine.teacher import Teacher
    from limbeck.models.causal import causal_lm

    data = text(corpus="grammar", characters=4000, context=16)
    terms = {
        "ce": Block("cross_entropy", {"weight": 0.25}),
        "kd": Block("soft_kl", {"weight": 0.75, "temperature": 2.0}),
    }
    made = []
    for name, args in (("word_kd", {"alpha": 0.75, "temperature": 2.0}), ("compose", {"terms": terms})):
        nets = []
        for seed in (0, 1):
            torch.manual_seed(seed)
            nets.append(causal_lm(hidden=16, layers=1, heads=2, vocab_size=data.spec.vocab_size, context=16))
        method = build("method", Block(name, args))
        method.setup(Parts(nets[0], {"teacher": Teacher(nets[1], {"logits"}, "teacher")}, data.spec))
        made.append(method)
    word_kd, compose = made
    x = data.train.batch(torch.arange(4))
    x["labels"][0, 3:] = -100
    ours, theirs = compose.evaluate(x), word_kd.terms(x)
    assert ours.keys() == theirs.keys()
    for key, term in ours.items():
        assert (term.unit, term.weight, int(term.count)) == ("tokens", theirs[key].weight, int(theirs[key].count))
        torch.testing.assert_close(term.sum, theirs[key].sum)
    hint = build("method", Block("compose", {"terms": {"logits": Block("mse")}}))
    hint.setup(Parts(made[0].student, {"teacher": made[0].teacher}, data.spec))
    assert int(hint.evaluate(x)["logits"].count) == int((x["labels"][:, 1:] != -100).sum())
