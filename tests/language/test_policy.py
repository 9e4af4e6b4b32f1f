import math

import pytest
import torch

from limbeck.language.policy import of_tokens, surrogate, to_go


def test_the_surrogate_is_the_clipped_ratio_by_hand():
    new, old, worth = torch.tensor([0.5, -0.5, 0.5, -0.5]), torch.zeros(4), torch.tensor([2.0, 2.0, -2.0, -2.0])
    up, down = math.exp(0.5), math.exp(-0.5)
    torch.testing.assert_close(surrogate(new, old, worth), torch.tensor([2 * up, 2 * down, -2 * up, -2 * down]))
    clipped = torch.tensor([2 * 1.2, 2 * down, -2 * up, -2 * 0.8])
    torch.testing.assert_close(surrogate(new, old, worth, 0.2), clipped)


def test_at_the_old_policy_its_gradient_is_the_policy_gradient():
    logits = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    tokens, worth = torch.tensor([0, 3, 1, 2, 2]), torch.randn(5, dtype=torch.float64)
    new = of_tokens(logits, tokens)
    (found,) = torch.autograd.grad(surrogate(new, new.detach(), worth, 0.1).sum(), logits)
    log_q = torch.log_softmax(logits, -1)[torch.arange(5), tokens]
    (wanted,) = torch.autograd.grad((worth * log_q).sum(), logits)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("mean", [True, False])
def test_what_is_to_come_by_loops(own, mean):
    torch.manual_seed(0)
    rewards, mask = torch.randn(4, 6), torch.rand(4, 6) > 0.3
    wanted = torch.zeros(4, 6)
    for b in range(4):
        for t in range(6):
            later = [float(rewards[b, s]) for s in range(t if own else t + 1, 6) if mask[b, s]]
            if mask[b, t] and later:
                wanted[b, t] = sum(later) / (len(later) if mean else 1)
    torch.testing.assert_close(to_go(rewards, mask, own=own, mean=mean), wanted)


def test_unlike_shapes_are_refused():
    with pytest.raises(ValueError, match="shape"):
        surrogate(torch.zeros(2), torch.zeros(3), torch.zeros(2))
    with pytest.raises(ValueError, match="shape"):
        to_go(torch.zeros(2, 3), torch.zeros(2, 2, dtype=torch.bool))
