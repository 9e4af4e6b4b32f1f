import pytest
import torch

from limbeck.engine.method import Clock
from limbeck.language.methods.gkd import GKD
from limbeck.language.methods.opd import OPD
from limbeck.language.policy import surrogate
from toolkit.enumerated import N, TableLM, expected, given, gradient, logprobs, ready, texts

SUMS = {"reduction": "max_len", "max_len": 1}


def step_kl(student, teacher, law):
    """The reverse KL of every token of every text, with the law of the texts held still."""
    rows = texts()
    q, p = (torch.log_softmax(m(rows[:, :-1]), -1) for m in (student, teacher))
    return (law.detach()[:, None] * (q.exp() * (q - p)).sum(-1)).sum()


@pytest.fixture
def pair():
    return TableLM(0), TableLM(1)


def law_of(student):
    return logprobs(student, texts()).sum(1).exp()


def test_its_expected_gradient_is_that_of_the_reverse_kl_at_every_prefix(pair):
    student, teacher = pair
    law = law_of(student)
    found = expected(ready(OPD(**SUMS), student, teacher), law)
    torch.testing.assert_close(found, gradient(step_kl(student, teacher, law), student))


def test_in_expectation_it_is_gkd_with_the_reverse_divergence(pair):
    student, teacher = pair
    law = law_of(student)
    opd = expected(ready(OPD(**SUMS), student, teacher), law)
    gkd = expected(ready(GKD(student_share=1.0, direction="reverse", **SUMS), student, teacher), law)
    torch.testing.assert_close(opd, gkd)
    # Texts of one length: the mean over tokens is the same up to that length.
    mean = expected(ready(OPD(), student, teacher), law)
    torch.testing.assert_close(mean * N, gkd)


def test_it_does_not_follow_how_a_token_changes_what_comes_after(pair):
    student, teacher = pair
    rows, law = texts(), law_of(student)
    whole = (law * (logprobs(student, rows) - logprobs(teacher, rows)).sum(1)).sum()
    difference = expected(ready(OPD(**SUMS), student, teacher), law) - gradient(whole, student)
    assert difference.abs().max() > 1e-3


def test_of_one_token_the_gradients_of_text_and_token_are_one(pair):
    student, teacher = pair
    method, rows = ready(OPD(**SUMS), student, teacher), texts()[:: 3 ** (N - 1), :2]
    q, p = (torch.log_softmax(m(rows[:1, :1]), -1)[0, 0] for m in pair)
    total = sum(
        q[i].exp().detach() * gradient(method.terms(given(method, row, number=i))["policy"].sum, student)
        for i, row in enumerate(rows.split(1))
    )
    torch.testing.assert_close(total, gradient((q.exp() * (q - p)).sum(), student))


def test_later_updates_on_the_same_rows_weigh_by_the_clipped_ratio(pair):
    student, teacher = pair
    method, rows = ready(OPD(inner_updates=2, clip=0.05), student, teacher), texts()[:5]
    batch, before = given(method, rows), logprobs(student, texts()[:5]).detach()
    losses = []
    for update in method.updates(batch, Clock(0, 10)):
        terms = update.evaluate()
        losses.append(float((terms["policy"].sum / terms["policy"].count).detach()))
        with torch.no_grad():
            student.table += 0.3 * torch.randn(student.table.shape, generator=torch.Generator().manual_seed(3))
        now = logprobs(student, rows).detach()
    # The second update was evaluated before its own step of the weights.
    with torch.no_grad():
        student.table -= 0.3 * torch.randn(student.table.shape, generator=torch.Generator().manual_seed(3))
    now = logprobs(student, rows).detach()
    worth = logprobs(teacher, rows).detach() - before
    for loss, own in zip(losses, (before, now), strict=True):
        assert loss == pytest.approx(float(-surrogate(own, before, worth, 0.05).mean()), rel=1e-9)
    assert losses[0] != losses[1]


def test_the_sampler_can_be_what_the_ratio_is_taken_to(pair):
    student, teacher = pair
    rows = texts()[:4]
    drawn = torch.full((4, N), -1.0, dtype=torch.float64)
    method = ready(OPD(old_from="sampler"), student, teacher)
    batch = given(method, rows, drawn)
    (update,) = method.updates(batch, Clock(0, 10))
    own = logprobs(student, rows)
    wanted = -((own + 1).exp() * (logprobs(teacher, rows) + 1)).mean()
    term = update.evaluate()["policy"]
    torch.testing.assert_close((term.sum / term.count).detach(), wanted.detach())
