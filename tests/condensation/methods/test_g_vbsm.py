"""G-VBSM: statistics of convolutions, densification and labels against independent definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from limbeck.condensation.methods.g_vbsm import GVBSM, density, map_moments
from limbeck.engine.method import Clock
from limbeck.errors import UserError
from toolkit.decoupled import batch_norm_teacher, descend, image_set, layer_inputs, loss_of, set_up

PLAIN = {"crop": 1.0, "flip": False, "jitter": 0}


def by_hand(x, patch=4):
    """Channels, then patches from left to right and from the top down, one by one in float64."""
    x = x.detach().double()
    side = -(-x.shape[2] // patch) * patch
    whole = F.interpolate(x, (side, side), mode="bilinear")
    starts = range(0, side, patch)
    patches = [whole[:, :, i : i + patch, j : j + patch] for i in starts for j in starts]
    groups = [[x[:, c] for c in range(x.shape[1])], patches]
    means = [torch.stack([g.mean() for g in group]) for group in groups]
    spreads = [torch.stack([((g - g.mean()) ** 2).mean() for g in group]) for group in groups]
    return list(zip(means, spreads, strict=True))


@pytest.mark.parametrize("side", [3, 4, 6, 8])
def test_moments_are_those_of_each_channel_and_patch(side):
    x = torch.randn(5, 3, side, side, generator=torch.Generator().manual_seed(side))
    for found, wanted in zip(map_moments(x, 4), by_hand(x), strict=True):
        assert all(torch.allclose(a.double(), b, atol=1e-5) for a, b in zip(found, wanted, strict=True))


def test_real_statistics_are_the_mean_over_all_images(data):
    method = set_up(GVBSM(batch_real=10_000), data)
    teacher = method.teacher.module
    order = data.train.labels.argsort(stable=True)
    maps = layer_inputs(teacher, data.train.images[order])
    wanted = [m for x in maps for m in by_hand(x)]
    for found, pair in zip(method.real["teacher"], wanted, strict=True):
        assert all(torch.allclose(a.double(), b, rtol=1e-3, atol=1e-4) for a, b in zip(found, pair, strict=True))


def test_the_term_of_convolutions_is_the_distance_from_the_real_ones(data):
    method = set_up(GVBSM(**PLAIN, momentum=0.0, drop=0.0), data)
    found, total = loss_of(method, Clock(0, 4))["conv"], 0.0
    for slot in method.slots()[0]:
        moments = [m for x in layer_inputs(method.teacher.module, slot) for m in by_hand(x)]
        for pair, real in zip(moments, method.real["teacher"], strict=True):
            total += sum(float((a - b.double()).norm()) for a, b in zip(pair, real, strict=True))
    assert float(found.detach()) == pytest.approx(total, rel=1e-4)


def test_densification_is_that_of_numpys_eigenvalues():
    images = torch.randn(4, 3, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    total = 0.0
    for label in range(3):
        rows = images[:, label].flatten(1).numpy()
        values = np.linalg.eigvals(rows @ rows.T).real
        p, q = (np.exp(v) / np.exp(v).sum() for v in (values / 4, values))
        total += float((p * np.log(p / q)).sum())
    assert float(density(images, 4.0)) == pytest.approx(total, rel=1e-4)
    assert float(density(images, 1.0)) == pytest.approx(0, abs=1e-6)


def test_steps_take_different_teachers_and_a_resumed_run_ends_alike(data):
    def made():
        return set_up(GVBSM(crop=0.5), data, a=batch_norm_teacher(data, 0), b=batch_norm_teacher(data, 1))

    whole, first = made(), made()
    assert {whole.drawn(Clock(n, 20)) for n in range(20)} == {"a", "b"}
    alone = set_up(GVBSM(backbones=1), data, a=batch_norm_teacher(data, 0), b=batch_norm_teacher(data, 1))
    assert {alone.drawn(Clock(n, 20)) for n in range(20)} == {"a"}
    descend(whole, 6)
    optimizer = torch.optim.Adam(first.student.parameters(), lr=0.1, betas=(0.5, 0.9))
    for step in range(6):
        if step == 3:
            first.load_state_dict({k: v.clone() for k, v in first.state_dict().items()})
        (update,) = first.updates({"id": torch.arange(1), "view": 0}, Clock(step, 6))
        optimizer.zero_grad()
        sum(t.weight * t.sum for t in update.evaluate().values()).backward()
        optimizer.step()
        first.after_step(Clock(step, 6))
    assert torch.equal(first.student.images, whole.student.images)


def test_labels_are_the_mean_of_logits_of_equal_norm(data):
    team = {"a": batch_norm_teacher(data, 0), "b": batch_norm_teacher(data, 1)}
    student = image_set(data, "relabelled_images", epochs=2, batch_size=6, loss="mse", gamma=0.3)
    method = set_up(GVBSM(), data, student, **team)
    method.after_step(Clock(3, 4))
    lessons = student.lessons()
    sight = next(lessons.views.epoch(lessons.images, 1))
    a, b = (t.module(sight.images).detach() for t in team.values())
    mean = (a.norm() + b.norm()) / 2
    told = lessons.target(1, sight)
    assert torch.allclose(told, (a / a.norm() + b / b.norm()) * mean / 2, atol=1e-2, rtol=1e-2)
    z = torch.randn_like(told)
    hard = -z.log_softmax(1)[range(len(z)), student.labels[sight.rows]].mean()
    assert torch.allclose(lessons.loss(z, told, sight.rows), ((z - told) ** 2).mean() + 0.3 * hard)


def test_mistakes_are_told():
    with pytest.raises(UserError, match="g_vbsm"):
        GVBSM(momentum=1.0)
