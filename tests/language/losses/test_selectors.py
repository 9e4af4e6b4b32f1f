import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.language.losses import entropy, forward_kl, reverse_kl, select, token_scores


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=1, max_size=12),
    st.sampled_from([0.1, 0.3, 0.5, 1.0]),
    st.booleans(),
)
def test_as_many_as_asked_and_none_better_is_left(items, share, largest):
    scores = torch.tensor([[float(s) for s, _ in items]])
    mask = torch.tensor([[m for _, m in items]])
    chosen = select(scores, mask, share, largest=largest)
    assert not (chosen & ~mask).any()
    assert int(chosen.sum()) == math.ceil(round(int(mask.sum()) * share, 9))
    sign = 1 if largest else -1
    left, kept = scores[mask & ~chosen] * sign, scores[chosen] * sign
    assert not len(kept) or not len(left) or left.max() <= kept.min()


def test_scores_without_an_end_and_rows_without_a_token_are_no_trouble():
    scores = torch.tensor([[math.inf, -math.inf, 1.0, 2.0], [5.0, 6.0, 7.0, 8.0]])
    mask = torch.tensor([[True, True, False, True], [False] * 4])
    assert select(scores, mask, 0.5).tolist() == [[True, False, False, True], [False] * 4]
    assert select(scores, mask, 1.0).tolist() == mask.tolist()
    assert select(scores, mask, 0.3, largest=False).tolist() == [[False, True, False, False], [False] * 4]


def test_a_row_is_chosen_from_by_itself_or_with_the_batch():
    scores = torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]])
    mask = torch.ones(2, 4, dtype=torch.bool)
    assert select(scores, mask, 0.5).sum(1).tolist() == [2, 2]
    assert select(scores, mask, 0.5, scope="batch").sum(1).tolist() == [0, 4]
    together, apart = select(scores, mask, 0.25), [select(scores[i : i + 1], mask[:1], 0.25) for i in range(2)]
    assert together.tolist() == torch.cat(apart).tolist()


def test_the_scores_are_what_they_say():
    generator = torch.Generator().manual_seed(0)
    p, q = (torch.log_softmax(torch.randn(2, 3, 5, generator=generator, dtype=torch.float64), -1) for _ in range(2))
    by_hand = -(p.exp() * p).sum(-1)
    torch.testing.assert_close(entropy(p), by_hand)
    wanted = {
        "teacher_entropy": by_hand,
        "student_entropy": -(q.exp() * q).sum(-1),
        "teacher_confidence": p.exp().max(-1).values,
        "student_confidence": q.exp().max(-1).values,
        "divergence": forward_kl(p, q),
        "gap": forward_kl(p, q) - reverse_kl(p, q),
    }
    for name, values in wanted.items():
        torch.testing.assert_close(token_scores(p, q, name), values)
    assert entropy(torch.tensor([0.0, -math.inf])) == 0
    with pytest.raises(ValueError, match="no token score is called"):
        token_scores(p, q, "mood")


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="same shape"):
        select(torch.zeros(2, 3), torch.ones(2, 2), 0.5)
    for share in (0.0, 1.5):
        with pytest.raises(ValueError, match="share must be"):
            select(torch.zeros(2, 3), torch.ones(2, 3), share)
