import math

import pytest
import torch

from limbeck.language.losses.relations import relation_kl, relations, score_mse, state_mse


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_relation_kl_is_its_definition_over_the_keys_that_are_there():
    s, t = draw(1, 2, 4, 4).requires_grad_(), draw(1, 2, 4, 4, seed=1)
    found = relation_kl(s, t, torch.tensor([[1, 1, 1, 0]]))
    for i in range(4):
        wanted = 0.0
        for h in range(2):
            p, q = t[0, h, i, :3].softmax(-1), s[0, h, i, :3].softmax(-1)
            wanted = wanted + (p * (p / q).log()).sum() / 2
        torch.testing.assert_close(found[0, i], wanted)
    found.sum().backward()
    assert torch.isfinite(s.grad).all() and (s.grad[..., 3] == 0).all() and (s.grad[..., :3] != 0).all()


def test_relations_share_the_width_anew():
    x = draw(2, 3, 8)
    found = relations(x, 4)
    assert found.shape == (2, 4, 3, 3)
    torch.testing.assert_close(found[0, 3, 1, 2], x[0, 1, 6:] @ x[0, 2, 6:] / math.sqrt(2))
    torch.testing.assert_close(relations(x, 1)[1, 0, 2, 0], x[1, 2] @ x[1, 0] / math.sqrt(8))
    with pytest.raises(ValueError, match="not a multiple of 3 heads"):
        relations(x, 3)


def test_scores_and_states_are_compared_one_by_one():
    s, t = draw(2, 3, 4, 4), draw(2, 3, 4, 4, seed=1)
    torch.testing.assert_close(
        score_mse(s, t)[1, 2, 3], sum((s[1, h, 2, 3] - t[1, h, 2, 3]) ** 2 for h in range(3)) / 3
    )
    torch.testing.assert_close(
        state_mse(s, t)[0, 1, 2], sum((s[0, 1, 2, i] - t[0, 1, 2, i]) ** 2 for i in range(4)) / 4
    )


@pytest.mark.parametrize("loss", [score_mse, state_mse, lambda a, b: relation_kl(a, b, torch.ones(1, 3))])
def test_unlike_shapes_are_refused(loss):
    with pytest.raises(ValueError, match="same shape"):
        loss(draw(1, 2, 3, 3), draw(1, 1, 3, 3))
