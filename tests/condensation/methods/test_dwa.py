"""DWA: weights that climb away from what a slot shows, and the weight of variances."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from limbeck.condensation.methods.dwa import DWA, adjusted
from limbeck.condensation.methods.sre2l import SRe2L
from limbeck.engine.method import Clock
from limbeck.errors import UserError
from toolkit.decoupled import batch_norm_teacher, image_set, layer_inputs, loss_of, set_up

CLOCK = Clock(0, 4)


def moved(before, after):
    return sum((a - b).square().sum() for a, b in zip(before.parameters(), after.parameters(), strict=True)).sqrt()


def test_one_ascent_is_a_step_along_the_gradient_in_float64(data):
    teacher, images, labels = batch_norm_teacher(data), torch.randn(3, 1, 8, 8), torch.arange(3)
    found = adjusted(teacher, images, labels, 1, 0.3).module
    module = copy.deepcopy(teacher.module).double().requires_grad_(True)
    F.cross_entropy(module(images.double()), labels).backward()
    flat = torch.cat([p.grad.flatten() for p in module.parameters()])
    wanted = torch.cat([p.detach().flatten() for p in module.parameters()]) + 0.3 * flat / flat.norm()
    assert torch.allclose(torch.cat([p.flatten() for p in found.parameters()]).double(), wanted, atol=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(found.buffers(), teacher.module.buffers(), strict=True))


@pytest.mark.parametrize("steps", [1, 4, 12])
def test_the_weights_move_by_the_radius_and_the_loss_grows(data, steps):
    teacher, images, labels = batch_norm_teacher(data), torch.randn(3, 1, 8, 8), torch.arange(3)
    before = copy.deepcopy(teacher.module)
    found = adjusted(teacher, images, labels, steps, 0.2).module
    assert 0.15 < float(moved(teacher.module, found)) < 0.2 + 1e-5
    assert F.cross_entropy(found(images), labels) > F.cross_entropy(before(images), labels)
    assert float(moved(before, teacher.module)) == 0
    assert not any(p.requires_grad for p in found.parameters())


def test_each_slot_has_a_copy_of_its_own(data):
    method = set_up(DWA(radius=0.5), data)
    first, second = (t.module for t in method.adjusted[0])
    assert float(moved(first, second)) > 0.01
    images, labels = method.slots()
    wanted = torch.stack([method.look(t, images[k : k + 1], labels)[0] for k, t in enumerate(method.adjusted[0])])
    plain = set_up(DWA(radius=0.5, jitter=0, flip=False), data)
    found = loss_of(plain, CLOCK)
    assert torch.allclose(torch.stack([found["class"], found["bn"]]), wanted.sum(0), rtol=1e-4)


def test_without_ascents_and_with_even_weights_it_is_sre2l(data):
    found = loss_of(set_up(DWA(ascents=0, var_weight=1.0), data), CLOCK)
    wanted = loss_of(set_up(SRe2L(crop=1.0), data), CLOCK)
    assert all(torch.allclose(found[name], wanted[name]) for name in wanted)


def test_variances_count_as_asked(data):
    teacher, student = batch_norm_teacher(data), image_set(data, per_class=1)
    method = DWA(ascents=0, var_weight=3.0, first_layer=5.0, jitter=0, flip=False)
    found = loss_of(set_up(method, data, student, teacher=teacher), CLOCK)["bn"]
    module, wanted = copy.deepcopy(teacher.module).double(), 0.0
    values = layer_inputs(module, student.images.detach().double())
    for factor, value, stage in zip((5, 1), values, module.stages, strict=True):
        mean = (value.mean((0, 2, 3)) - stage[1].running_mean).norm()
        wanted += factor * float(mean + 3 * (value.var((0, 2, 3), unbiased=False) - stage[1].running_var).norm())
    assert found.item() == pytest.approx(wanted, rel=1e-4)


def test_mistakes_are_told():
    for wrong in ({"ascents": -1}, {"radius": -0.1}):
        with pytest.raises(UserError, match="0 or more"):
            DWA(**wrong)
