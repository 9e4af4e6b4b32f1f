import math

import pytest
import torch
import torch.nn.functional as F

from limbeck.language.chunked import chunk_rows
from limbeck.language.fused import Head, fused_divergence, fused_sums
from limbeck.language.gradients import CLOSED
from limbeck.language.losses import cut, token_divergence
from limbeck.losses import cross_entropy

DIRECTIONS = CLOSED
OPTIONS = {"beta": 0.3, "skew": 0.2}


def heads(tokens=7, student=11, teacher=11, bias=True, dtype=torch.float64, seed=0, **caps):
    g = torch.Generator().manual_seed(seed)

    def draw(*shape, grad=False):
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype).requires_grad_(grad)

    own = [draw(tokens, 4, grad=True), draw(student, 4, grad=True), draw(student, grad=True) if bias else None]
    theirs = [draw(tokens, 5), draw(teacher, 5), draw(teacher) if bias else None]
    labels = torch.randint(0, student, (tokens,), generator=g)
    labels[::3] = -100
    return Head(*own, softcap=caps.get("own")), Head(*theirs, softcap=caps.get("theirs")), labels


def logits(head):
    out = F.linear(head.hidden, head.weight, head.bias)
    return out if head.softcap is None else head.softcap * torch.tanh(out / head.softcap)


def plain(student, teacher, labels, width=None, **options):
    s, t = logits(student), logits(teacher)
    width = width or min(s.shape[1], t.shape[1])
    return token_divergence(cut(s, width), cut(t, width), **options), cross_entropy(s, labels)


def gradients(loss, head):
    leaves = [x for x in (head.hidden, head.weight, head.bias) if x is not None]
    return torch.autograd.grad(loss, leaves, retain_graph=True)


def same(a, b, **tolerance):
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, **tolerance)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ({}, {}),
        ({}, {"temperature": 2.5}),
        ({"bias": False}, {"temperature": 0.5, "scale": False}),
        ({"student": 13}, {}),
        ({"teacher": 14}, {"width": 9}),
        ({"own": 3.0, "theirs": 2.0}, {}),
        ({"own": 3.0, "theirs": 2.0, "student": 12}, {"temperature": 3.0}),
    ],
)
def test_values_and_gradients_per_token_are_those_of_the_plain_formula(direction, shape, options):
    student, teacher, labels = heads(**shape)
    options = {"direction": direction, **OPTIONS, **options}
    wanted = plain(student, teacher, labels, **options)
    g = torch.Generator().manual_seed(1)
    up = [torch.randn(7, generator=g, dtype=torch.float64) for _ in range(2)]
    expected = gradients(sum((u * v).sum() for u, v in zip(up, wanted, strict=True)), student)
    for chunk in (None, 1, 3):
        got = fused_divergence(student, teacher, labels=labels, chunk=chunk, **options)
        same(got, wanted, rtol=1e-11, atol=1e-12)
        same(gradients(sum((u * v).sum() for u, v in zip(up, got, strict=True)), student), expected)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("weights", [(0.7, 0.3), (1.0, 0.0), (0.0, 1.0)])
def test_the_sums_and_their_gradient_are_those_of_the_plain_formula(direction, weights):
    student, teacher, labels = heads(student=12)
    rows = torch.rand(7, dtype=torch.float64)
    options = {"direction": direction, "temperature": 2.0, **OPTIONS}
    wanted = [(rows * v).sum() for v in plain(student, teacher, labels, **options)]
    got = fused_sums(student, teacher, labels=labels, rows=rows, weights=weights, chunk=3, **options)
    same(got, wanted)
    # The mixture that was announced, a multiple of it, a term alone, and all again.
    for asked in (weights, (3 * weights[0], 3 * weights[1]), (1.0, 0.0), (0.0, 1.0), weights):
        loss, plain_loss = (sum(w * v for w, v in zip(asked, x, strict=True)) for x in (got, wanted))
        same(gradients(loss, student), gradients(plain_loss, student))


def test_one_term_alone_needs_nothing_of_the_other():
    student, teacher, labels = heads(student=12)
    wanted = plain(student, teacher, labels)
    kd = fused_sums(student, teacher)
    assert kd.cross_entropy is None
    same([kd.divergence], [wanted[0].sum()])
    same(gradients(kd.divergence, student), gradients(wanted[0].sum(), student))
    ce = fused_sums(student, None, labels=labels)
    assert ce.divergence is None
    same([ce.cross_entropy], [wanted[1].sum()])
    same(gradients(ce.cross_entropy, student), gradients(wanted[1].sum(), student))
    with pytest.raises(ValueError, match="there must be labels"):
        fused_sums(student, None)


def test_the_announced_mixture_costs_one_pass(monkeypatch):
    from limbeck.language import fused

    passes = []
    monkeypatch.setattr(fused, "sweep", lambda *a, sweep=fused.sweep: passes.append(1) or sweep(*a))
    student, teacher, labels = heads()
    sums = fused_sums(student, teacher, labels=labels, weights=(0.5, 0.5))
    ((sums.divergence + sums.cross_entropy) / 7).backward()
    assert len(passes) == 1
    sums = fused_sums(student, teacher, labels=labels, weights=(0.5, 0.5))
    sums.divergence.backward()
    assert len(passes) == 3


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_gradient_is_the_derivative_of_the_value(direction):
    student, teacher, labels = heads(tokens=2, student=4, teacher=4)

    def value(hidden, weight, bias):
        out = fused_divergence(Head(hidden, weight, bias), teacher, labels=labels, direction=direction, **OPTIONS)
        return out[0] + 2 * out[1]

    assert torch.autograd.gradcheck(value, (student.hidden, student.weight, student.bias))


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_token_that_both_rule_out_changes_nothing(direction, temperature):
    student, teacher, labels = heads()
    wide = [Head(h.hidden, torch.cat([h.weight, h.weight[:1]]), torch.cat([h.bias, h.bias.new_tensor([-math.inf])]))
            for h in (student, teacher)]  # fmt: skip
    options = {"direction": direction, "temperature": temperature, **OPTIONS}
    got = fused_divergence(*wide, labels=labels, **options)
    wanted = plain(student, teacher, labels, **options)
    same(got, wanted)
    same(*(gradients((x[0] + x[1]).sum(), student) for x in (got, wanted)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_the_teacher_alone_rules_out_is_infinite_in_reverse(dtype):
    student, teacher, _ = heads(dtype=dtype)
    bias = teacher.bias.clone()
    bias[3] = -math.inf
    ruled = Head(teacher.hidden, teacher.weight, bias)
    for direction in ("reverse", "jeffreys"):
        assert fused_divergence(student, ruled, direction=direction)[0].isinf().all()
    for direction in set(DIRECTIONS) - {"reverse", "jeffreys"}:
        options = {"direction": direction, **OPTIONS}
        wanted = token_divergence(logits(student), logits(ruled), **options)
        torch.testing.assert_close(fused_divergence(student, ruled, **options)[0], wanted)


def test_the_ends_of_a_family_are_the_plain_divergences():
    student, teacher, _ = heads()
    for options in (
        {"direction": "jsd", "beta": 0.0},
        {"direction": "jsd", "beta": 1.0},
        {"direction": "skew_forward", "skew": 0.0},
        {"direction": "skew_reverse", "skew": 0.0},
    ):
        wanted = token_divergence(logits(student), logits(teacher), **options)
        got = fused_divergence(student, teacher, **options)[0]
        torch.testing.assert_close(got, wanted)
        same(gradients(got.sum(), student), gradients(wanted.sum(), student))


@pytest.mark.parametrize("direction", ["skew_forward", "skew_reverse"])
def test_a_mixture_of_nothing_else_has_no_loss_and_no_gradient(direction):
    student, teacher, _ = heads()
    value = fused_divergence(student, teacher, direction=direction, skew=1.0)[0]
    assert value.abs().max() < 1e-12
    assert max(g.abs().max() for g in gradients(value.sum(), student)) < 1e-12


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_far_logits_stay_finite(direction):
    """In float32 both probabilities of a token underflow together; their logarithm must not become 0 times infinity."""
    student, teacher, labels = heads(dtype=torch.float32)
    student, teacher = (Head(h.hidden * 60, h.weight, h.bias) for h in (student, teacher))
    options = {"direction": direction, **OPTIONS}
    got = fused_divergence(student, teacher, labels=labels, **options)
    wanted = plain(student, teacher, labels, **options)
    same(got, wanted, rtol=1e-4, atol=1e-4)
    same(*(gradients(x[0].sum(), student) for x in (got, wanted)), rtol=1e-3, atol=1e-3)


def test_no_tokens_give_zero_and_still_reach_every_parameter():
    """Processes that have nothing to learn must still take part in the exchange of gradients."""
    student, teacher, labels = heads(tokens=0)
    sums = fused_sums(student, teacher, labels=labels)
    assert float(sums.divergence.detach()) == float(sums.cross_entropy.detach()) == 0
    (sums.divergence + sums.cross_entropy).backward()
    assert student.weight.grad.abs().max() == 0
    assert student.bias.grad.abs().max() == 0
    assert fused_divergence(student, teacher, labels=labels)[0].shape == (0,)


def test_a_tied_weight_gets_both_gradients():
    student, teacher, labels = heads(bias=False)
    ids = torch.arange(7)

    def loss(compute):
        hidden = torch.tanh(F.embedding(ids, student.weight))
        return compute(Head(hidden, student.weight))

    fused = loss(lambda h: sum(fused_sums(h, teacher, labels=labels)))
    dense = loss(lambda h: sum(x.sum() for x in plain(h, teacher, labels)))
    torch.testing.assert_close(*(torch.autograd.grad(x, student.weight)[0] for x in (fused, dense)))


def test_a_frozen_head_takes_no_gradient():
    student, teacher, labels = heads()
    frozen = Head(student.hidden, student.weight.detach(), student.bias.detach())
    sum(fused_sums(frozen, teacher, labels=labels)).backward()
    wanted = torch.autograd.grad(sum(x.sum() for x in plain(student, teacher, labels)), student.hidden)[0]
    torch.testing.assert_close(student.hidden.grad, wanted)
    with torch.no_grad():
        assert not fused_sums(student, teacher).divergence.requires_grad


def test_half_precision_is_compared_in_float32_and_the_weights_gradient_is_added_up_in_it():
    student, teacher, labels = heads(tokens=300, dtype=torch.bfloat16)
    sums = fused_sums(student, teacher, labels=labels, chunk=1)
    assert sums.divergence.dtype == torch.float32
    wanted = [x.sum() for x in plain(student, teacher, labels)]
    same(sums, wanted, rtol=1e-3, atol=1e-2)
    got = gradients(sum(sums), student)[1]
    assert got.dtype == torch.bfloat16
    exact = [
        Head(*(x.detach().double().requires_grad_() for x in (h.hidden, h.weight, h.bias))) for h in (student, teacher)
    ]
    truth = gradients(sum(x.sum() for x in plain(*exact, labels)), exact[0])[1]
    # 300 steps of bfloat16 would lose two of its three digits.
    assert (got.double() - truth).norm() / truth.norm() < 0.01


def test_autocast_projects_in_its_precision():
    student, teacher, labels = heads(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        got, wanted = fused_divergence(student, teacher, labels=labels), plain(student, teacher, labels)
    assert not torch.equal(got[0], fused_divergence(student, teacher)[0])
    same(got, wanted, rtol=2e-2, atol=2e-2)
    assert all(g.dtype == torch.float32 for g in gradients((got[0] + got[1]).sum(), student))


def test_nothing_as_large_as_all_logits_is_made():
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for x in out if isinstance(out, tuple | list) else [out]:
                self.size = max(self.size, x.numel() if isinstance(x, torch.Tensor) else 0)
            return out

    student, teacher, labels = heads(tokens=64, student=50, teacher=50)
    for summed in (True, False):
        with Largest() as seen:
            if summed:
                loss = sum(fused_sums(student, teacher, labels=labels, chunk=4))
            else:
                loss = fused_divergence(student, teacher, chunk=4)[0].sum()
            loss.backward()
        assert seen.size <= 64 * 5 < 64 * 50


def test_chunks_shrink_with_the_vocabulary_on_a_cpu():
    cpu = torch.device("cpu")
    assert chunk_rows(32_000, cpu) == chunk_rows(128_256, cpu) == 128
    assert chunk_rows(262_144, cpu) == 128
    assert chunk_rows(524_288, cpu) == 64
    assert chunk_rows(262_144, cpu, itemsize=8) == 64
    assert chunk_rows(10**12, cpu) == 1


def test_what_does_not_fit_is_refused():
    student, teacher, labels = heads()
    with pytest.raises(ValueError, match=r"student's hidden \(7, 4\) and weight \(11, 5\)"):
        fused_divergence(Head(student.hidden, teacher.weight), teacher)
    with pytest.raises(ValueError, match=r"teacher's bias \(3,\) must be \[11\]"):
        fused_divergence(student, Head(teacher.hidden, teacher.weight, teacher.bias[:3]))
    with pytest.raises(ValueError, match="student has 7 tokens and the teacher 5"):
        fused_divergence(student, Head(teacher.hidden[:5], teacher.weight))
    with pytest.raises(ValueError, match="width must be between 1 and the student's vocabulary 11, got 12"):
        fused_divergence(student, teacher, width=12)
    with pytest.raises(ValueError, match=r"labels \(3,\) must be one for each of 7"):
        fused_divergence(student, teacher, labels=labels[:3])
    with pytest.raises(ValueError, match="rows"):
        fused_sums(student, teacher, rows=torch.ones(3))
    for wrong in ({"temperature": 0.0}, {"beta": 2.0}, {"skew": -0.1}, {"chunk": 0}, {"direction": "sideways"}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}|no divergence"):
            fused_divergence(student, teacher, **wrong)
