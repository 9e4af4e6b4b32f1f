"""Splitting few classes by the teacher's embedding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from limbeck.data import load_data
from limbeck.engine.method import Parts
from limbeck.engine.teacher import Teacher
from limbeck.errors import UserError
from limbeck.registry import Block, build
from limbeck.vision.losses.soft import subclass_kl
from limbeck.vision.methods.lelp import fit
from limbeck.vision.models.subclassed import Subclassed
from toolkit import IMAGES, features_of, image_batch, image_net, image_source, value

G = torch.Generator().manual_seed(0)


def ready(subclasses: int = 4, **arguments: Any) -> Any:
    method = build("method", Block("lelp", arguments))
    block = Block("subclassed", {"subclasses": subclasses, "net": Block("cnn", {"width": 4, "depth": 2})})
    torch.manual_seed(0)
    student = build("model", block, offers=IMAGES.offers())
    teacher = Teacher(image_net(6, seed=5), {"logits", "features"}, "teacher")
    method.setup(Parts(student, {"teacher": teacher}, IMAGES, IMAGES.offers(), {"data": image_source()}))
    return method


def test_a_class_is_the_sum_of_its_subclasses() -> None:
    net = torch.nn.Linear(5, 6)
    x = torch.randn(4, 5, generator=G)
    fine = net(x).softmax(-1)
    torch.testing.assert_close(Subclassed(net, 3, 2)(x).softmax(-1), fine.view(4, 3, 2).sum(-1))


def test_directions_are_those_of_the_class_where_the_classifier_is_blind() -> None:
    w = torch.randn(2, 6, generator=G)
    e, labels = torch.randn(40, 6, generator=G), torch.arange(40) % 3 - 1
    labels = torch.where(labels < 0, -100, labels)
    splits = fit(e, labels, w, 2, 3)
    scores = splits(e)
    assert scores.shape == (40, 2, 6)
    torch.testing.assert_close(scores[..., 3:], -scores[..., :3])
    for c in range(2):
        own = scores[labels == c, c, :3]
        torch.testing.assert_close(own.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
        torch.testing.assert_close(torch.cov(own.T), torch.eye(3), atol=1e-4, rtol=0)
        blind = torch.linalg.svd(w)[2][2:]  # an orthonormal basis of the null space
        spread = torch.cov((e[labels == c] @ blind.T).T)
        axes = torch.linalg.eigh(spread).eigenvectors.flip(1).T[:3] @ blind
        found = torch.nn.functional.normalize(splits.directions[c], dim=1)
        torch.testing.assert_close((found * axes).sum(1).abs(), torch.ones(3), atol=1e-4, rtol=0)
    moved = scores + 0 * splits(e)
    torch.testing.assert_close(splits(e + torch.randn(40, 2, generator=G) @ w), moved, atol=1e-4, rtol=1e-4)


def test_what_does_not_vary_splits_nothing() -> None:
    e = torch.zeros(6, 8)
    e[:, 4] = torch.arange(6.0)
    scores = fit(e, torch.zeros(6, dtype=torch.int64), torch.eye(8)[:1], 1, 3)(e)
    assert scores.isfinite().all() and not scores[..., [1, 2, 4, 5]].any() and scores[..., 0].any()


def test_the_terms_are_the_papers() -> None:
    method, batch = ready(alpha=0.7, temperature=2.0, subclass_temperature=0.5), image_batch()
    terms = method.terms(batch)
    outputs: Tensor = method.student.net(batch["input"]).view(6, 4, 4)
    embedding = features_of(method.teacher.module, batch)[2]
    scores = method.frozen["splits"](embedding) / 0.5
    wanted = subclass_kl(outputs, method.teacher.compute(batch).logits, scores, 2.0)
    torch.testing.assert_close(value(terms["kd"]), wanted.mean())
    known = batch["label"] >= 0
    p = outputs.flatten(1).softmax(-1).view(6, 4, 4).sum(-1)[known]
    hard = -p.gather(1, batch["label"][known][:, None]).log().mean()
    torch.testing.assert_close(value(terms["ce"]), hard)
    assert (round(terms["ce"].weight, 6), terms["kd"].weight) == (0.3, 0.7)


def test_a_split_is_kept_over_an_interruption() -> None:
    one, other = ready(), ready()
    other.frozen["splits"].directions.neg_()
    other.load_state_dict(one.state_dict())
    assert torch.equal(other.frozen["splits"].directions, one.frozen["splits"].directions)


def test_senseless_parts_are_refused() -> None:
    with pytest.raises(UserError, match="even number of subclasses"):
        ready(subclasses=3)
    with pytest.raises(UserError, match="class 1 has 0 labelled samples"):
        fit(torch.randn(5, 8), torch.zeros(5, dtype=torch.int64), torch.randn(2, 8), 2, 2)
    with pytest.raises(UserError, match="do not fit"):
        fit(torch.randn(5, 4), torch.zeros(5, dtype=torch.int64), torch.randn(2, 4), 2, 3)


def test_grouped_digits_are_the_digits() -> None:
    plain = load_data(Block("digits", {"train_size": 50}))
    data = load_data(Block("digits_grouped", {"train_size": 50}))
    rows = torch.arange(50)
    assert torch.equal(data.train.batch(rows)["label"], plain.train.batch(rows)["label"] % 2)
    assert data.spec.classes == 2 and data.spec.class_names == ("02468", "13579")
    with pytest.raises(UserError, match="each digit"):
        load_data(Block("digits_grouped", {"groups": [[0, 1], [2]]}))
