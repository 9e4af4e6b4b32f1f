"""CV-DD: whose vote counts for which images, and labels by the statistics of the batch."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from limbeck.condensation.methods.cv_dd import CVDD, softmax
from limbeck.condensation.methods.sre2l import SRe2L
from limbeck.condensation.realism import realistic_crops
from limbeck.condensation.synthetic import RealImages
from limbeck.engine.method import Clock
from limbeck.errors import UserError
from toolkit.decoupled import batch_norm_teacher, image_set, loss_of, set_up

CLOCK = Clock(0, 4)


def committee(data, count=3):
    return {f"t{i}": batch_norm_teacher(data, i) for i in range(count)}


def test_each_slot_has_a_pair_weighted_by_its_priors(data):
    given = {"priors": (50.0, 60.0, 40.0), "scores": (1.0, 1.0, 1.0), "prior_temperature": 10.0}
    method = set_up(CVDD(**given), data, image_set(data, per_class=4), **committee(data))
    votes = torch.tensor([v.weights for v in method.votes(4, CLOCK)])
    e = math.e
    wanted = [[1 / (1 + e), e / (1 + e), 0], [e / (1 + e), 0, 1 / (1 + e)], [0, e * e / (1 + e * e), 1 / (1 + e * e)]]
    assert torch.allclose(votes.T, torch.tensor([*wanted, wanted[0]]))
    assert sum(softmax([3.0, 900.0], 0.1)) == pytest.approx(1)


def test_one_sure_voter_is_sre2l_from_that_teacher(data):
    team = committee(data)
    student = image_set(data)
    method = set_up(CVDD(voters=3, priors=(0.0, 1e5, 0.0), start="own"), data, student, **team)
    alone = set_up(SRe2L(), data, student, teacher=team["t1"])
    found, wanted = loss_of(method, CLOCK), loss_of(alone, CLOCK)
    assert all(torch.allclose(found[n], wanted[n]) for n in wanted)


def test_priors_that_are_not_given_are_measured(data):
    team = {"a": batch_norm_teacher(data, 0), "b": batch_norm_teacher(data, 1, steps=60)}
    method = set_up(CVDD(), data, **team)
    for found, teacher in zip(method.measured, team.values(), strict=True):
        right = teacher.module(data.train.images).argmax(1) == data.train.labels
        assert found == pytest.approx(100 * right.double().mean().item())
    first, second = method.votes(1, CLOCK)
    assert second.weights[0] > 0.9 > first.weights[0]


def test_images_start_as_realistic_crops(data):
    team = committee(data, 2)
    student = image_set(data)
    set_up(CVDD(start_crop=0.7), data, student, **team)
    wanted = realistic_crops(
        RealImages.of(data.train),
        2,
        lambda x: (team["t0"].module(x) + team["t1"].module(x)) / 2,
        (student.seed, "realism"),
        least=0.7,
    )
    assert torch.equal(student.images, wanted)
    own = image_set(data)
    before = own.images.detach().clone()
    set_up(CVDD(start="own"), data, own, **team)
    assert torch.equal(own.images, before)


@pytest.mark.parametrize(("stats", "parts"), [("batch", 1), ("batch", 2), ("running", 2)])
def test_labels_are_the_weighted_committees_by_the_statistics_asked_for(data, stats, parts):
    team = committee(data, 2)
    memory = {name: copy.deepcopy(t.module.state_dict()) for name, t in team.items()}
    student = image_set(data, "relabelled_images", epochs=2, batch_size=6, per_class=4)
    scores = (20.0, 30.0)
    method = set_up(CVDD(label_stats=stats, label_parts=parts, scores=scores), data, student, **team)
    method.after_step(Clock(3, 4))
    lessons = student.lessons()
    weights = softmax(scores, 10.0)
    for sight in lessons.views.epoch(lessons.images, 1):
        wanted = 0
        for weight, teacher in zip(weights, team.values(), strict=True):
            module = copy.deepcopy(teacher.module).train(stats == "batch")
            pieces = sight.images.chunk(parts if stats == "batch" else 1)
            wanted = wanted + weight * torch.cat([module(piece) for piece in pieces])
        assert torch.allclose(lessons.target(1, sight), wanted, atol=1e-2, rtol=1e-2)
    for name, teacher in team.items():
        assert not teacher.module.training
        assert all(torch.equal(v, memory[name][k]) for k, v in teacher.module.state_dict().items())


def test_mistakes_are_told(data):
    with pytest.raises(UserError, match="2 priors for 3 teachers"):
        set_up(CVDD(priors=(1.0, 2.0)), data, **committee(data))
    with pytest.raises(UserError, match="at least 1"):
        CVDD(voters=0)
