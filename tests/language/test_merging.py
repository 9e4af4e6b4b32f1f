import math

import pytest
import torch
from torch import nn

from limbeck.errors import UserError
from limbeck.language.merging import merged_by_slerp, slerp


def test_on_a_circle_the_angle_is_shared_out():
    a, b = (torch.tensor([math.cos(t), math.sin(t)]) for t in (0.2, 1.4))
    for share in (0.0, 0.3, 0.5, 1.0):
        at = 0.2 + share * 1.2
        torch.testing.assert_close(slerp(a, b, share), torch.tensor([math.cos(at), math.sin(at)]))


def test_of_unlike_lengths_the_vectors_themselves_are_weighed():
    a, b = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 3.0])
    half = math.sin(math.pi / 4)
    torch.testing.assert_close(slerp(a, b, 0.5), torch.tensor([2 * half, 3 * half]))


@pytest.mark.parametrize("b", [[2.0, 4.0], [0.0, 0.0], [-1.0, -2.0]])
def test_where_there_is_no_angle_it_is_the_straight_line(b):
    a, b = torch.tensor([1.0, 2.0]), torch.tensor(b)
    torch.testing.assert_close(slerp(a, b, 0.25), 0.75 * a + 0.25 * b)


def test_a_model_is_merged_weight_by_weight_and_the_two_stay():
    torch.manual_seed(0)
    a, b = (nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)) for _ in range(2))
    before = a[0].weight.clone()
    made = merged_by_slerp(a, b, 0.3)
    torch.testing.assert_close(made[0].weight, slerp(a[0].weight, b[0].weight, 0.3))
    assert torch.equal(a[0].weight, before) and made[1].num_batches_tracked == 0
    for share, end in ((0.0, a), (1.0, b)):
        torch.testing.assert_close(merged_by_slerp(a, b, share)[0].weight, end[0].weight)


def test_unlike_models_and_shares_outside_are_refused():
    with pytest.raises(UserError, match=r"look at '0\.weight'"):
        merged_by_slerp(nn.Sequential(nn.Linear(3, 4)), nn.Sequential(nn.Linear(2, 4)))
    with pytest.raises(UserError, match="look at 'bias'"):
        merged_by_slerp(nn.Linear(3, 4), nn.Linear(3, 4, bias=False))
    with pytest.raises(ValueError, match="between 0 and 1"):
        slerp(torch.ones(2), torch.ones(2), 1.5)
    with pytest.raises(ValueError, match="same shape"):
        slerp(torch.ones(2), torch.ones(3), 0.5)
