import pytest
import torch

from limbeck.language.methods.minillm import MiniLLM
from toolkit.enumerated import N, TableLM, expected, given, gradient, logprobs, ready, texts

SUMS = {"reduction": "max_len", "max_len": 1}
BARE = {"teacher_mix": 0.0, "length_norm": False, "clip": None, "text_weight": 0.0}


@pytest.fixture
def pair():
    return TableLM(0), TableLM(1)


@pytest.mark.parametrize("single_step", [True, False])
def test_without_stabilisers_its_expected_gradient_is_that_of_the_kl_between_whole_texts(pair, single_step):
    student, teacher = pair
    rows = texts()
    own, theirs = (logprobs(m, rows).sum(1) for m in pair)
    wanted = gradient((own.exp() * (own - theirs)).sum(), student)
    method = ready(MiniLLM(single_step=single_step, **BARE, **SUMS), student, teacher)
    torch.testing.assert_close(expected(method, own.exp()), wanted)


def by_hand(student, teacher, rows, drawn, old, *, length_norm, clip):
    """The mean over tokens of the paper's two parts, by loops."""
    p = torch.log_softmax(teacher(rows[:, :-1]), -1).detach()
    q = torch.log_softmax(student(rows[:, :-1]), -1)
    long, single = 0.0, 0.0
    for b in range(len(rows)):
        rewards = [p[b, t, rows[b, t + 1]] - old[b, t] for t in range(N)]
        for t in range(N):
            later = rewards[t + 1 :]
            worth = sum(later) / (len(later) or 1) if length_norm else sum(later)
            weight = torch.exp(old[b, t] - drawn[b, t])
            ratio = torch.exp(q[b, t, rows[b, t + 1]] - old[b, t])
            gain = ratio * worth
            if clip is not None:
                gain = min(gain, ratio.clamp(1 - clip, 1 + clip) * worth)
            long = long - weight * gain
            single = single + weight * (q[b, t].exp() * (q[b, t] - p[b, t])).sum()
    return long / (len(rows) * N), single / (len(rows) * N)


@pytest.mark.parametrize("length_norm", [True, False])
@pytest.mark.parametrize("clip", [None, 0.1])
def test_every_part_and_its_gradient_is_the_definition(pair, length_norm, clip):
    student, teacher = pair
    method = ready(MiniLLM(length_norm=length_norm, clip=clip, text_weight=0.0), student, teacher)
    rows = texts()[4:11]
    own, theirs = (logprobs(m, rows).detach() for m in pair)
    drawn = torch.log(0.8 * own.exp() + 0.2 * theirs.exp())
    old = own + 0.2 * torch.randn(own.shape, dtype=own.dtype, generator=torch.Generator().manual_seed(1))
    terms = method.terms(given(method, rows, drawn), old)
    wanted = by_hand(student, teacher, rows, drawn, old, length_norm=length_norm, clip=clip)
    for name, value in zip(("long", "single"), wanted, strict=True):
        loss = terms[name].sum / terms[name].count
        torch.testing.assert_close(loss, value)
        torch.testing.assert_close(gradient(loss, student), gradient(value, student))


def test_the_texts_own_rows_are_learnt_beside(pair):
    student, teacher = pair
    method = ready(MiniLLM(text_weight=0.5), student, teacher)
    rows = texts()[:6]
    batch = given(method, rows)
    written = given(method, texts()[6:12])
    method._kept[tuple(batch["id"].tolist())] = method._kept[tuple(written["id"].tolist())]
    term = method.terms(batch)["text"]
    assert term.weight == 0.5 and term.unit == "text_tokens"
    torch.testing.assert_close(term.sum / term.count, -logprobs(student, rows).mean())
    assert int(method.count(batch)["text_tokens"]) == 6 * N


def test_tokens_are_drawn_from_the_mixture_and_weighed_back():
    student, teacher = TableLM(2, 2.0), TableLM(3, 2.0)
    method = ready(MiniLLM(teacher_mix=0.3, new_tokens=N), student, teacher)
    batch = {
        "input_ids": torch.zeros(64, 1 + N, dtype=torch.int64),
        "attention_mask": torch.tensor([1] + [0] * N).expand(64, -1),
        "labels": torch.full((64, 1 + N), -100),
        "id": torch.arange(64),
        "view": 0,
    }
    rollout = method.rows(batch)
    rows = rollout.batch["input_ids"]
    own, theirs = (logprobs(m, rows).exp() for m in (student, teacher))
    torch.testing.assert_close(rollout.logprobs[:, 1:].exp(), (0.7 * own + 0.3 * theirs).float(), rtol=1e-4, atol=1e-6)
    method.teacher_mix = 0.0
    method.before_step(method._clock)
    rollout = method.rows(batch)
    plain = logprobs(student, rollout.batch["input_ids"])
    torch.testing.assert_close(rollout.logprobs[:, 1:], plain.float(), rtol=1e-4, atol=1e-5)
