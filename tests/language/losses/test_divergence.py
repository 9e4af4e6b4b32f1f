import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.errors import UserError
from limbeck.language.losses import (
    alpha_divergence,
    chi_squared,
    cut,
    f_divergence,
    forward_kl,
    generalised_jsd,
    reverse_kl,
    shared_vocabulary,
    shift,
    skew_forward_kl,
    skew_reverse_kl,
    squared_hellinger,
    tempered_divergence,
    token_divergence,
    token_term,
    total_variation,
    truncated_divergence,
)
from limbeck.truncated import topk_of, truncated_kl

DIRECTIONS = (
    "forward", "reverse", "jsd", "skew_forward", "skew_reverse", "tvd", "jeffreys", "alpha", "hellinger",
)  # fmt: skip


def pair(seed=0, shape=(2, 3, 5), dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=dtype) * 2 for _ in range(2)]


def by_hand(student, teacher, direction, beta, skew):
    """The definitions, on probabilities, one token at a time."""

    def kl(a, b):
        return sum(x * torch.log(x / y) for x, y in zip(a, b, strict=True))

    q, p = (torch.exp(x) / torch.exp(x).sum() for x in (student, teacher))
    m = beta * p + (1 - beta) * q
    return {
        "forward": lambda: kl(p, q),
        "reverse": lambda: kl(q, p),
        "jsd": lambda: beta * kl(p, m) + (1 - beta) * kl(q, m),
        "skew_forward": lambda: kl(p, skew * p + (1 - skew) * q),
        "skew_reverse": lambda: kl(q, (1 - skew) * p + skew * q),
        "tvd": lambda: (p - q).abs().sum() / 2,
        "jeffreys": lambda: (kl(p, q) + kl(q, p)) / 2,
        "alpha": lambda: ((p**0.3 * q**0.7).sum() - 1) / (0.3 * -0.7),
        "hellinger": lambda: 1 - (p * q).sqrt().sum(),
    }[direction]()


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(("temperature", "scale"), [(1.0, True), (2.5, True), (2.5, False)])
def test_value_and_gradient_are_those_of_the_definition(direction, temperature, scale):
    student, teacher = pair()
    student.requires_grad_(True)
    options = {"beta": 0.3, "skew": 0.2, "alpha": 0.3}
    value = token_divergence(student, teacher, direction=direction, temperature=temperature, scale=scale, **options)
    factor = temperature**2 if scale else 1.0
    rows = zip(student.flatten(0, 1) / temperature, teacher.flatten(0, 1) / temperature, strict=True)
    wanted = torch.stack([by_hand(s, t, direction, 0.3, 0.2) * factor for s, t in rows]).view(2, 3)
    torch.testing.assert_close(value, wanted, rtol=1e-12, atol=1e-12)
    weights = torch.randn(2, 3, dtype=torch.float64)
    own, hand = (torch.autograd.grad((x * weights).sum(), student)[0] for x in (value, wanted))
    torch.testing.assert_close(own, hand, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_gradient_is_the_derivative_of_the_value(direction):
    student, teacher = pair(seed=3, shape=(2, 4))
    student.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda s: token_divergence(s, teacher, direction=direction), student)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_equal_models_have_no_loss_and_no_gradient(direction):
    student = pair()[0].requires_grad_(True)
    value = token_divergence(student, student.detach().clone(), direction=direction)
    assert value.abs().max() < 1e-12
    assert torch.autograd.grad(value.sum(), student)[0].abs().max() < 1e-12


def test_the_ends_are_the_plain_divergences():
    student, teacher = pair()
    forward = token_divergence(student, teacher, direction="forward")
    reverse = token_divergence(student, teacher, direction="reverse")
    assert torch.equal(token_divergence(student, teacher, direction="jsd", beta=0.0), forward)
    assert torch.equal(token_divergence(student, teacher, direction="jsd", beta=1.0), reverse)
    assert torch.equal(token_divergence(student, teacher, direction="skew_forward", skew=0.0), forward)
    assert torch.equal(token_divergence(student, teacher, direction="skew_reverse", skew=0.0), reverse)
    assert token_divergence(student, teacher, direction="skew_forward", skew=1.0).abs().max() == 0
    for beta, limit in ((1e-6, forward), (1 - 1e-6, reverse)):
        near = token_divergence(student, teacher, direction="jsd", beta=beta) / min(beta, 1 - beta)
        torch.testing.assert_close(near, limit, rtol=1e-4, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.01, 0.99), st.floats(0.1, 40.0))
def test_bounds_hold_for_any_logits(seed, share, spread):
    p, q = (torch.log_softmax(x * spread, -1) for x in pair(seed))
    assert (generalised_jsd(p, q, 0.5) <= math.log(2) + 1e-9).all()
    for value in (skew_forward_kl(p, q, share), skew_reverse_kl(p, q, share)):
        assert (value >= -1e-9).all() and (value <= -math.log(share) + 1e-9).all()
    distance = total_variation(p, q)
    assert (distance <= 1 + 1e-9).all()
    assert (2 * distance**2 <= (p.exp() * (p - q)).sum(-1) + 1e-9).all(), "Pinsker"


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_token_that_both_rule_out_changes_nothing(direction):
    """Masked vocabularies have logits of -inf; 0 log 0 must not make the whole batch NaN."""
    student, teacher = pair()
    wide = [torch.cat([x, torch.full_like(x[..., :1], -math.inf)], -1) for x in (student, teacher)]
    wide[0].requires_grad_(True)
    value = token_divergence(*wide, direction=direction)
    torch.testing.assert_close(value, token_divergence(student, teacher, direction=direction))
    assert torch.isfinite(torch.autograd.grad(value.sum(), wide[0])[0]).all()


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_half_precision_logits_are_compared_in_float32(direction):
    student, teacher = (x.bfloat16() for x in pair())
    value = token_divergence(student, teacher, direction=direction)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, token_divergence(student.float(), teacher.float(), direction=direction))


def test_nothing_is_broadcast():
    student, teacher = pair()
    for wrong in (teacher[:1], teacher[..., :1], teacher[0]):
        with pytest.raises(ValueError, match="same shape"):
            token_divergence(student, wrong)


@pytest.mark.parametrize("options", [{"direction": "jsd", "beta": 1.5}, {"direction": "skew_forward", "skew": -0.1}])
def test_parameters_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match="between 0 and 1"):
        token_divergence(*pair(), **options)
    with pytest.raises(ValueError, match="temperature"):
        token_divergence(*pair(), temperature=0.0)
    with pytest.raises(ValueError, match="no divergence"):
        token_divergence(*pair(), direction="sideways")


def test_logits_meet_the_token_they_predict():
    labels = torch.tensor([[4, 1, -100, 3], [2, 0, 1, -100]])
    logits = torch.zeros(2, 4, 5)
    logits[:, torch.arange(4), torch.arange(4)] = 1.0
    kept, wanted = shift(logits, labels)
    assert kept.argmax(-1).tolist() == [[0, 1, 2]] * 2
    assert wanted.tolist() == [[1, -100, 3], [0, 1, -100]]
    for bad in (labels[:, :3], labels[:1]):
        with pytest.raises(ValueError, match=r"must be \[B, T, V\]"):
            shift(logits, bad)
    with pytest.raises(ValueError, match="no next token"):
        shift(logits[:, :1], labels[:, :1])


VALUES = torch.tensor([[1.0, 2.0, 3.0], [4.0, 99.0, 99.0], [99.0, 99.0, 99.0]])
MASK = torch.tensor([[True, True, True], [True, False, False], [False, False, False]])


@pytest.mark.parametrize(
    ("reduction", "wanted", "unit"),
    [
        ("token_mean", (1 + 2 + 3 + 4) / 4, "tokens"),
        ("seq_mean", ((1 + 2 + 3) / 3 + 4) / 2, "sequences"),
        ("max_len", ((1 + 2 + 3) / 5 + 4 / 5) / 3, "samples"),
    ],
)
def test_reductions_are_what_they_say(reduction, wanted, unit):
    term = token_term(VALUES, MASK, reduction=reduction, max_len=5, weight=0.7)
    assert float(term.sum / term.count) == pytest.approx(wanted)
    assert (term.weight, term.unit) == (0.7, unit)


@pytest.mark.parametrize("reduction", ["token_mean", "seq_mean", "max_len"])
def test_cutting_the_batch_or_padding_it_changes_no_mean(reduction):
    whole = token_term(VALUES, MASK, reduction=reduction, max_len=5)
    parts = [token_term(VALUES[i : i + 1], MASK[i : i + 1], reduction=reduction, max_len=5) for i in range(3)]
    mean = sum(t.sum for t in parts) / sum(t.count for t in parts)
    assert float(mean) == pytest.approx(float(whole.sum / whole.count))
    padded = token_term(
        torch.cat([VALUES, torch.full((3, 2), 7.0)], 1), torch.cat([MASK, MASK.new_zeros(3, 2)], 1),
        reduction=reduction, max_len=5,
    )  # fmt: skip
    assert float(padded.sum / padded.count) == pytest.approx(float(whole.sum / whole.count))


def test_a_masked_infinity_does_not_poison_the_gradient():
    values = torch.tensor([[1.0, math.inf]], requires_grad=True)
    for reduction in ("token_mean", "seq_mean", "max_len"):
        term = token_term(values * 2, torch.tensor([[True, False]]), reduction=reduction, max_len=2)
        assert torch.isfinite(torch.autograd.grad(term.sum, values)[0]).all()


def test_a_reduction_needs_its_constant_and_equal_shapes():
    with pytest.raises(ValueError, match="positive max_len"):
        token_term(VALUES, MASK, reduction="max_len")
    for reduction in ("token_mean", "seq_mean", "max_len"):
        with pytest.raises(ValueError, match="same shape"):
            token_term(VALUES, MASK[:, :1], reduction=reduction, max_len=2)


def test_padded_vocabularies_of_one_tokenizer_are_cut_to_what_is_shared():
    assert shared_vocabulary(151, 152, "same", "same") == 151
    assert shared_vocabulary(152, 151, "same", None) == 151
    assert shared_vocabulary(152, 160, "same", "same", tokens=149) == 149
    student, teacher = pair(shape=(2, 8))
    small = token_divergence(cut(student, 6), cut(teacher, 6))
    renormalised = [torch.softmax(x, -1)[..., :6] for x in (student, teacher)]
    q, p = (x / x.sum(-1, keepdim=True) for x in renormalised)
    torch.testing.assert_close(small, (p * (p / q).log()).sum(-1))


def test_unlike_tokenizers_of_equal_width_are_refused():
    """Equal widths are no proof: the same column may mean another token."""
    with pytest.raises(UserError, match=r"aaaa with 100 entries, bbbb with 100"):
        shared_vocabulary(100, 100, "aaaa", "bbbb")


GENERATORS = {
    "kl": lambda u: u * u.log(),
    "reverse_kl": lambda u: -u.log(),
    "js": lambda u: 0.5 * (u * u.log() - (u + 1) * ((u + 1) / 2).log()),
    "tv": lambda u: 0.5 * (u - 1).abs(),
    "chi2": lambda u: (u - 1) ** 2,
    "hellinger": lambda u: 0.5 * (u.sqrt() - 1) ** 2,
    "alpha": lambda u: (u**1.7 - 1.7 * (u - 1) - 1) / (1.7 * 0.7),
}


@pytest.mark.parametrize("name", GENERATORS)
def test_f_divergences_are_the_sum_over_their_generator(name):
    student, teacher = pair()
    student.requires_grad_(True)
    log_p, log_q = torch.log_softmax(teacher, -1), torch.log_softmax(student, -1)
    value = f_divergence(log_p, log_q, name, alpha=1.7)
    wanted = (log_q.exp() * GENERATORS[name](log_p.exp() / log_q.exp())).sum(-1)
    torch.testing.assert_close(value, wanted, rtol=1e-10, atol=1e-12)
    own, hand = (torch.autograd.grad(x.sum(), student, retain_graph=True)[0] for x in (value, wanted))
    torch.testing.assert_close(own, hand, rtol=1e-8, atol=1e-10)
    named = f_divergence(log_p, log_q, lambda log_u: GENERATORS[name](log_u.exp()))
    torch.testing.assert_close(named, wanted)


def test_an_unknown_generator_is_refused():
    with pytest.raises(ValueError, match="no generator is called 'renyi'"):
        f_divergence(*pair(), "renyi")


def test_alpha_goes_over_into_the_divergences_at_its_ends_without_losing_digits():
    """(sum p^a q^(1-a) - 1) / (a (a - 1)) as it stands loses seven digits in float32 at a = 1e-6."""
    p, q = (torch.log_softmax(x, -1) for x in pair(dtype=torch.float32))
    torch.testing.assert_close(alpha_divergence(p, q, 1 - 1e-6), forward_kl(p, q), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(alpha_divergence(p, q, 1e-6), reverse_kl(p, q), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(alpha_divergence(p, q, 1.0), forward_kl(p, q))
    torch.testing.assert_close(alpha_divergence(p, q, 0.0), reverse_kl(p, q))
    torch.testing.assert_close(alpha_divergence(p, q, 0.5), 4 * squared_hellinger(p, q), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(alpha_divergence(p, q, -1.0), 0.5 * chi_squared(q, p), rtol=1e-4, atol=1e-6)


def test_what_one_side_rules_out_is_infinite_only_where_it_has_to_be():
    log_p = torch.tensor([[0.5, 0.5, 0.0]]).log()
    log_q = torch.tensor([[0.5, 0.25, 0.25]]).log()
    assert alpha_divergence(log_p, log_q, 0.5) == pytest.approx(4 * (1 - 0.5 - math.sqrt(0.125)), rel=1e-5)
    assert alpha_divergence(log_p, log_q, 2.0) == pytest.approx(0.5 * (0.5 + 1.0 - 1), rel=1e-5)
    assert alpha_divergence(log_q, log_p, 2.0) == math.inf
    assert alpha_divergence(log_p, log_q, -1.0) == math.inf
    assert f_divergence(log_q, log_p, "chi2") == math.inf
    assert float(f_divergence(log_q, log_p, "hellinger")) < 1


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_tokens_can_have_temperatures_of_their_own(direction):
    student, teacher = pair()
    heat = torch.tensor([[0.5, 1.0, 2.0], [1.5, 3.0, 1.0]], dtype=torch.float64)
    each = torch.stack([
        tempered_divergence(student[b, t], teacher[b, t], float(heat[b, t]), direction)
        for b in range(2)
        for t in range(3)
    ]).view(2, 3)  # fmt: skip
    torch.testing.assert_close(tempered_divergence(student, teacher, heat, direction), each)
    with pytest.raises(ValueError, match="same shape"):
        tempered_divergence(student, teacher, heat[:1])
    with pytest.raises(ValueError, match="positive"):
        tempered_divergence(student, teacher, heat - 0.5)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("k", [1, 3, 4, 5])
def test_a_truncated_teacher_has_every_divergence_over_its_buckets(direction, k):
    student, teacher = pair()
    topk = topk_of(teacher, k, 1.5)
    value = truncated_divergence(student, topk, direction, beta=0.3, skew=0.2, alpha=0.3)
    for b in range(2):
        for t in range(3):
            q, p = (torch.softmax(x[b, t] / 1.5, -1) for x in (student, teacher))
            kept = topk.indices[b, t]
            sides = [torch.cat([x[kept], 1 - x[kept].sum()[None]])[: min(k + 1, 5)] for x in (q, p)]
            wanted = by_hand(*(x.log() for x in sides), direction, 0.3, 0.2) * 1.5**2
            torch.testing.assert_close(value[b, t], wanted, rtol=1e-7, atol=1e-9)
    whole = token_divergence(student, teacher, direction=direction, temperature=1.5, beta=0.3, skew=0.2, alpha=0.3)
    assert (value <= whole + 1e-9).all(), "merging tokens cannot raise a divergence"
    if k >= 4:
        torch.testing.assert_close(value, whole)
    if direction in ("forward", "reverse"):
        torch.testing.assert_close(value, truncated_kl(student, topk, direction) * 1.5**2)


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_generalised_jsd_is_that_of_trl_in_value_and_gradient(beta, temperature):
    """trl agrees at both ends too. It leaves out the factor of temperature squared, and gives NaN for a token that
    both sides rule out, where this is the divergence over the others."""
    trainer = pytest.importorskip("trl.experimental.gkd").GKDTrainer
    student, teacher = pair()
    labels = torch.tensor([[-100, 1, 2], [3, -100, 0]])
    student.requires_grad_(True)
    theirs = trainer.generalized_jsd_loss(student, teacher, labels, beta=beta, temperature=temperature)
    value = token_divergence(student, teacher, direction="jsd", beta=beta, temperature=temperature, scale=False)
    term = token_term(value, labels != -100)
    torch.testing.assert_close(term.sum / term.count, theirs)
    own, hand = (torch.autograd.grad(x, student)[0] for x in (term.sum / term.count, theirs))
    torch.testing.assert_close(own, hand)
