"""The toolkit of the data-free methods: views, statistics, generator, bank, inner steps, and that no data is seen."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import nn

from limbeck.engine.method import Clock, Method, Parts
from limbeck.engine.teacher import Teacher
from limbeck.errors import UserError
from limbeck.registry import Block, build
from limbeck.vision.inversion.bank import Bank
from limbeck.vision.inversion.base import held
from limbeck.vision.inversion.generator import ImageGenerator, MetaGenerator, put, start_afresh
from limbeck.vision.inversion.rounds import Least, descend
from limbeck.vision.inversion.views import Scale, resized, rolled, shifted
from toolkit import IMAGES, image_net

METHODS = {
    "noise_kd": {},
    "dafl": {"latent": 4, "width": 4},
    "zskt": {"latent": 4, "width": 4, "student_steps": 2},
    "deepinversion": {"iterations": 2, "synthesis_batch": 5},
    "cmi": {"iterations": 2, "synthesis_batch": 5, "latent": 4, "width": 4, "head_dim": 3},
    "fast_meta": {"iterations": 2, "synthesis_batch": 5, "latent": 4, "width": 4, "warmup": 1},
}
SCALE = Scale.of(replace(IMAGES, mean=(0.25,), std=(0.5,)))


class Untouchable:
    """Training data that nobody may look at."""

    spec = IMAGES

    def __getattribute__(self, name: str) -> None:
        raise AssertionError(f"the method asked the data for '{name}'")


def ready(name: str, **changed: object) -> Method:
    method = build("method", Block(name, {**METHODS[name], **changed}))
    teacher = Teacher(image_net(6, seed=5), {"logits", "features"}, "teacher")
    method.setup(Parts(image_net(4), {"teacher": teacher}, IMAGES, IMAGES.offers(), {"data": Untouchable()}))
    return method


def run(method: Method, steps: int = 3) -> Iterator[tuple[int, str, dict[str, float]]]:
    """Train by plain gradient descent; the step, the roles and the terms of every update."""
    for step in range(steps):
        batch = {"id": torch.arange(6 * step, 6 * step + 6), "view": 0}
        for update in method.updates(batch, Clock(step, steps)):
            terms = update.evaluate()
            loss = sum(t.weight * t.sum / t.count for t in terms.values())
            parameters = [p for role in update.roles for p in method.learners[role].parameters()]
            grads = torch.autograd.grad(loss, parameters, allow_unused=True)
            with torch.no_grad():
                for p, g in zip(parameters, grads, strict=True):
                    p.sub_(0.05 * g if g is not None else 0.0)
            yield step, "+".join(update.roles), {k: float(t.sum.detach() / t.count) for k, t in terms.items()}
        method.after_step(Clock(step, steps))


@pytest.mark.parametrize("name", METHODS)
def test_no_sample_of_the_data_is_seen(name: str) -> None:
    """Neither in the set-up nor in a step; and the student learns all the same."""
    method = ready(name)
    before = [p.clone() for p in method.student.parameters()]
    done = list(run(method))
    assert {step for step, role, _ in done if role == "student"} == {0, 1, 2}
    assert all(math.isfinite(v) for _, _, terms in done for v in terms.values())
    assert any(not torch.equal(a, b) for a, b in zip(before, method.student.parameters(), strict=True))


@pytest.mark.parametrize("name", METHODS)
def test_a_step_leaves_networks_and_generator_state_alone(name: str) -> None:
    """No hook stays, modes are as before, nothing of the teacher changes, the global generator is not drawn from."""
    method = ready(name)
    teacher = method.teacher.module
    hooks = [len(m._forward_pre_hooks) for m in teacher.modules()]
    kept = {k: v.clone() for k, v in teacher.state_dict().items()}
    method.student.train()
    torch.manual_seed(3)
    state = torch.get_rng_state()
    list(run(method, 2))
    assert torch.equal(state, torch.get_rng_state())
    assert hooks == [len(m._forward_pre_hooks) for m in teacher.modules()]
    assert all(torch.equal(v, kept[k]) for k, v in teacher.state_dict().items())
    assert all(m.training for m in method.student.modules())
    assert all(p.requires_grad for p in method.student.parameters())
    assert not any(p.requires_grad or p.grad is not None for p in teacher.parameters())


@pytest.mark.parametrize("name", METHODS)
def test_data_of_vectors_is_refused(name: str) -> None:
    method = build("method", Block(name, METHODS[name]))
    teacher = Teacher(image_net(6, seed=5), {"logits"}, "teacher")
    with pytest.raises(UserError, match="makes images"):
        method.setup(Parts(image_net(4), {"teacher": teacher}, replace(IMAGES, shape=(6,)), {}, {}))


@pytest.mark.parametrize("name", ["deepinversion", "cmi", "fast_meta"])
def test_a_teacher_without_batch_norm_is_refused(name: str) -> None:
    method = build("method", Block(name, METHODS[name]))
    plain = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    with pytest.raises(UserError, match="Sequential has none"):
        method.setup(Parts(image_net(4), {"teacher": Teacher(plain, {"logits"}, "teacher")}, IMAGES, {}, {}))


@pytest.mark.parametrize("name", ["deepinversion", "cmi", "fast_meta"])
def test_rounds_come_every_n_steps_and_their_images_are_kept(name: str) -> None:
    method = ready(name, every=2, bank_size=8)
    sizes = []
    with pytest.raises(UserError, match="warmup"):
        ready(name, warmup=-1)
    for step, role, _ in run(method, 5):
        if role == "student":
            sizes.append((step, method.bank.rows["images"].clone()))
    first = 5 + 5 * METHODS[name].get("warmup", 0)
    assert [len(images) for _, images in sizes] == [min(first, 8)] * 2 + [8] * 3
    assert torch.equal(sizes[0][1], sizes[1][1]) and not torch.equal(sizes[1][1], sizes[2][1])
    assert torch.equal(sizes[1][1][-3:], sizes[2][1][:3])
    assert not method.bank.rows["images"].requires_grad


# -- views -------------------------------------------------------------------------------------------------------------


def test_the_scale_is_the_datas() -> None:
    assert SCALE.normalised(torch.full((1, 1, 2, 2), 0.25)).abs().max() == 0 and SCALE.black.item() == -0.5
    assert SCALE.clamped(torch.tensor([[[[-9.0, 0.3, 9.0]]]])).flatten().tolist() == pytest.approx([-0.5, 0.3, 1.5])
    assert Scale.of(IMAGES).black.item() == 0


def test_shifted_views_are_crops_of_a_bordered_image() -> None:
    x, draws = torch.randn(12, 2, 4, 5), torch.rand(12, 3)
    fill = torch.tensor([-2.0, 3.0]).view(2, 1, 1)
    found = shifted(x, draws, padding=2, flip=True, fill=fill)
    for image, draw, view in zip(x, draws.tolist(), found, strict=True):
        down, right = int(draw[0] * 5) - 2, int(draw[1] * 5) - 2
        for i in range(4):
            for j in range(5):
                jj = 4 - j if draw[2] < 0.5 else j
                a, b = i + down, jj + right
                inside = 0 <= a < 4 and 0 <= b < 5
                wanted = image[:, a, b] if inside else fill[:, 0, 0]
                torch.testing.assert_close(view[:, i, j], wanted)
    torch.testing.assert_close(shifted(x, draws, padding=0, flip=False, fill=fill), x)


def test_resized_views_are_what_torch_samples() -> None:
    x, draws = torch.randn(9, 2, 6, 5), torch.rand(9, 5)
    found = resized(x, draws, smallest=0.2, flip=False)
    for i, (area, ratio, down, right, _) in enumerate(draws.tolist()):
        share, stretch = 0.2 + 0.8 * area, (4 / 3) ** (2 * ratio - 1)
        h, w = min(math.sqrt(share / stretch), 1), min(math.sqrt(share * stretch), 1)
        top, left = down * (1 - h), right * (1 - w)
        ys = (top + (torch.arange(6) + 0.5) / 6 * h) * 2 - 1
        xs = (left + (torch.arange(5) + 0.5) / 5 * w) * 2 - 1
        grid = torch.stack(torch.meshgrid(xs, ys, indexing="xy"), -1)[None]
        wanted = nn.functional.grid_sample(x[i : i + 1], grid, padding_mode="border", align_corners=False)
        torch.testing.assert_close(found[i : i + 1], wanted, rtol=1e-4, atol=1e-5)
    mirrored = resized(x, torch.cat([draws[:, :4], torch.zeros(9, 1)], 1), smallest=0.2, flip=True)
    torch.testing.assert_close(mirrored, found.flip(-1))
    whole = torch.tensor([[1.0, 0.5, 0.3, 0.7, 0.9]]).expand(9, 5)
    torch.testing.assert_close(resized(x, whole, smallest=1.0, flip=True), x)


def test_rolled_images_lose_nothing() -> None:
    x = torch.arange(12.0).view(1, 1, 3, 4)
    moved = rolled(x, 1, -1, flip=False)
    assert moved[0, 0, 1, 0] == x[0, 0, 0, 1] and sorted(moved.flatten().tolist()) == x.flatten().tolist()
    assert torch.equal(rolled(x, 0, 0, flip=True), x.flip(-1))


def test_gradients_pass_through_views() -> None:
    x = torch.randn(2, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    draws = torch.rand(2, 5, dtype=torch.float64)
    fill = SCALE.black.double()
    assert torch.autograd.gradcheck(lambda v: shifted(v, draws[:, :3], padding=1, flip=True, fill=fill), (x,))
    assert torch.autograd.gradcheck(lambda v: resized(v, draws, smallest=0.3, flip=True), (x,))


# -- generator, bank, inner steps --------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 28, 28), (3, 33, 20), (1, 4, 4), (2, 96, 96)])
def test_the_generator_makes_images_of_the_datas_size(shape: tuple[int, int, int]) -> None:
    for end in ("tanh", "norm", "pixels"):
        torch.manual_seed(0)
        net = ImageGenerator(shape, latent=5, width=2, end=end, scale=SCALE)
        made = net(torch.randn(4, 5))
        assert made.shape == (4, *shape)
        if end == "pixels":
            assert made.min() >= -0.5 and made.max() <= 1.5
        else:
            torch.testing.assert_close(made.mean((0, 2, 3)), torch.zeros(shape[0]), atol=1e-4, rtol=0)
            torch.testing.assert_close(made.var((0, 2, 3), unbiased=False), torch.ones(shape[0]), atol=2e-2, rtol=0)
    assert math.prod(net.sizes[0]) <= 16 * 16 and len(net.sizes) == len(net.blocks) + 1


def test_fresh_weights_are_dcgans_and_the_clocks() -> None:
    nets = [ImageGenerator((1, 8, 8), latent=64, width=16, end="norm", scale=SCALE) for _ in range(3)]
    for net, step in zip(nets, (4, 4, 5), strict=True):
        start_afresh(net, Clock(step, 10, seed=2), "g")
    one, same, other = (net.state_dict() for net in nets)
    assert all(torch.equal(v, same[k]) for k, v in one.items())
    assert not torch.equal(one["enter.weight"], other["enter.weight"])
    assert one["enter.weight"].std().item() == pytest.approx(0.02, rel=0.05)
    assert one["norm.weight"].mean().item() == pytest.approx(1, abs=0.02) and not one["norm.bias"].any()
    assert not one["leave.bias"].any() and not torch.equal(one["blocks.0.0.weight"], one["blocks.1.0.weight"])


def test_a_meta_generator_gives_its_weights_and_takes_gradients() -> None:
    net = ImageGenerator((1, 8, 8), latent=4, width=2, end="pixels", scale=SCALE)
    meta = MetaGenerator(net)
    values = meta()
    other = ImageGenerator((1, 8, 8), latent=4, width=2, end="pixels", scale=SCALE)
    put(values, other)
    assert all(torch.equal(a, b) and a is not b for a, b in zip(net.parameters(), other.parameters(), strict=True))
    gradients = [torch.randn_like(p) for p in net.parameters()]
    value = meta(gradients)
    value.backward()
    assert value.item() == 0
    for p, g in zip(net.parameters(), gradients, strict=True):
        torch.testing.assert_close(p.grad, g)


def test_the_bank_keeps_the_newest_rows() -> None:
    bank = Bank(5)
    assert bank.at(torch.empty(0, dtype=torch.int64), "a") == {} and len(bank) == 0
    bank.add(a=torch.arange(3.0), b=torch.arange(3) * 10)
    bank.add(a=torch.arange(3.0, 7.0), b=torch.arange(3, 7) * 10)
    assert bank.rows["a"].tolist() == [2, 3, 4, 5, 6] and bank.rows["b"].tolist() == [20, 30, 40, 50, 60]
    assert bank.draw(torch.tensor([0.0, 0.19, 0.2, 0.999])).tolist() == [0, 0, 1, 4]
    assert bank.at(torch.tensor([4, 0]), "b")["b"].tolist() == [60, 20]
    other = Bank(5)
    other.load(bank.state())
    assert torch.equal(other.rows["a"], bank.rows["a"])
    bank.add(a=torch.arange(9.0), b=torch.arange(9))
    assert bank.rows["a"].tolist() == [4, 5, 6, 7, 8]
    with pytest.raises(ValueError, match="at least 1"):
        Bank(0)


def test_the_least_step_is_kept() -> None:
    least, rows = Least(), torch.zeros(2)
    for loss in (3.0, 1.0, 2.0, 1.0):
        rows += 1
        least.take(torch.tensor(loss), images=rows)
    assert least.rows["images"].tolist() == [2, 2]


def test_inner_steps_touch_only_their_parameters() -> None:
    a, b, c = (nn.Parameter(torch.tensor([v])) for v in (1.0, 2.0, 3.0))
    c.grad = torch.tensor([7.0])
    optimizer = torch.optim.SGD([{"params": [a]}, {"params": [b], "lr": 1.0}], lr=0.1)
    given = descend(optimizer, (a * b * c).sum())
    assert [g.item() for g in given] == [6.0] and c.grad.item() == 7.0
    assert (a.item(), b.item()) == pytest.approx((0.4, -1.0))


def test_a_held_network_is_as_it_was_afterwards() -> None:
    net = image_net(3).train()
    net.stages[0].eval()
    net.head.bias.requires_grad_(False)
    x = torch.randn(2, 1, 8, 8, requires_grad=True)
    with held(net):
        assert not net.training and not any(p.requires_grad for p in net.parameters())
        net(x).sum().backward()
    assert x.grad is not None and net.training and not net.stages[0].training and net.stages[1].training
    assert net.head.weight.requires_grad and not net.head.bias.requires_grad and net.head.weight.grad is None
