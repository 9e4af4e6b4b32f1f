"""Contrastive distillation as a method: its term by hand, its banks, what it draws."""

from __future__ import annotations

import math

import pytest
import torch

from limbeck.data.arrays import ArraySource
from limbeck.engine.method import Clock
from limbeck.vision.methods.crd import Noise
from toolkit import IMAGES, features_of, image_batch, image_method, image_source, value

CLOCK = Clock(0, 10)
OPTIONS = {"negatives": 5, "dim": 3, "tau": 0.2}


def test_the_terms_are_the_papers_in_both_directions() -> None:
    batch, method = image_batch(), image_method("crd", beta=0.7, **OPTIONS)
    banks, n = method.banks.clone(), len(image_source())
    terms = method.terms(batch, CLOCK)
    maps = method.learners["embeddings"].maps
    vectors = {}
    for side, module in (("student", method.student), ("teacher", method.teacher.module)):
        raw = features_of(module, batch)[2] @ maps[side].weight.T + maps[side].bias
        vectors[side] = raw / raw.norm(dim=1, keepdim=True)
    drawn = method.noise.draw(batch["id"], CLOCK, 5)
    for side, bank in (("student", banks[1]), ("teacher", banks[0])):
        e = torch.exp(vectors[side] @ bank.T / 0.2)
        picked = torch.stack([e[i, [i, *drawn[i].tolist()]] for i in range(6)])
        g = picked / (picked.mean() * n)
        h = g / (g + 5 / n)
        wanted = -(h[:, 0].log() + (1 - h[:, 1:]).log().sum(1)).mean()
        torch.testing.assert_close(value(terms[side]), wanted)
        assert terms[side].weight == 0.7


def test_z_stays_and_rows_move_after_the_step() -> None:
    batch, method = image_batch(), image_method("crd", momentum=0.3, **OPTIONS)
    before = method.banks.clone()
    method.terms(batch, CLOCK)
    torch.testing.assert_close(method.banks, before)
    vectors, log_z = method._fresh[1], method.log_z
    method.after_step(CLOCK)
    moved = 0.3 * before[:, :6] + 0.7 * vectors.transpose(0, 1)
    torch.testing.assert_close(method.banks[:, :6], moved / moved.norm(dim=-1, keepdim=True))
    assert torch.equal(method.banks[:, 6:], before[:, 6:])
    method.terms(batch, Clock(1, 10))
    assert method.log_z is log_z


def test_the_state_holds_the_banks() -> None:
    batch, method, other = image_batch(), image_method("crd", **OPTIONS), image_method("crd", **OPTIONS)
    method.terms(batch, CLOCK)
    method.after_step(CLOCK)
    other.load_state_dict(method.state_dict())
    for role, module in method.learners.items():
        other.learners[role].load_state_dict(module.state_dict())
    one, two = (m.terms(batch, Clock(1, 10)) for m in (method, other))
    assert all(torch.equal(one[name].sum, two[name].sum) for name in one)


def source(labels: list[int]) -> ArraySource:
    """Images whose ids are neither in order nor without gaps."""
    ids = torch.tensor([7 * i % 31 + 100 for i in range(len(labels))])
    return ArraySource({"input": torch.zeros(len(labels), 1, 8, 8), "label": torch.tensor(labels), "id": ids}, IMAGES)


@pytest.mark.parametrize("by_class", [True, False])
def test_draws_are_uniform_over_the_others(by_class: bool) -> None:
    labels = [0, 1, 1, 2, -100, 0, 1, -100]
    data = source(labels)
    noise = Noise(data, by_class=by_class)
    rows = noise.rows(data.tensors["id"])
    assert sorted(rows.tolist()) == list(range(8))
    drawn = noise.draw(rows, CLOCK, 20000)
    for i, label in enumerate(labels):
        same = [j for j in range(8) if j == i or (by_class and label == labels[j] != -100)]
        shares = torch.bincount(drawn[i], minlength=8)[rows] / 20000
        for j in range(8):
            assert shares[j].item() == pytest.approx(0 if j in same else 1 / (8 - len(same)), abs=0.02)


def test_data_of_one_class_has_no_negatives() -> None:
    with pytest.raises(ValueError, match="contrast: samples"):
        Noise(source([1, 1, 1]), by_class=True)
    assert len(Noise(source([1, 1, 1]), by_class=False)) == 3


def test_banks_start_within_the_papers_bounds() -> None:
    banks = image_method("crd", dim=12).banks
    assert banks.abs().max() <= math.sqrt(3 / 12) and banks.std().item() == pytest.approx(12**-0.5, rel=0.1)
