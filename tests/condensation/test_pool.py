"""Networks of all ages."""

from __future__ import annotations

import torch
from torch import nn

from limbeck.condensation.networks import fresh_network
from limbeck.condensation.pool import NetworkPool
from limbeck.registry import Block

CPU = torch.device("cpu")
OFFERS = {"in_features": 3, "classes": 2}


def pool(size: int = 3, life: int = 6) -> NetworkPool:
    block = Block("logistic")
    return NetworkPool(
        lambda key, device: fresh_network(block, OFFERS, key, device),
        lambda network: torch.optim.Adam(network.parameters(), lr=0.1),
        size,
        life,
        seed=0,
    )


def learn(network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    network(torch.ones(2, 3)).square().sum().backward()
    optimizer.step()


def weights(network: nn.Module) -> torch.Tensor:
    return network.head.weight.detach().clone()


def go(made: NetworkPool, steps: range) -> list[torch.Tensor]:
    seen = []
    for step in steps:
        seen.append(weights(made.network(step, CPU)))
        made.grow(step, learn)
    return seen


def test_a_network_goes_on_where_it_was_until_its_life_is_over():
    made = pool(size=1, life=4)
    seen = go(made, range(9))
    starts = {0, 4, 8}
    for step in range(1, 9):
        moved = (seen[step] - seen[step - 1]).abs()
        assert float(moved.max()) > 0
        if step not in starts:
            assert float(moved.max()) < 0.2  # a step of Adam is at most the rate and a little
    assert not torch.equal(seen[0], seen[4])


def test_first_lives_end_one_after_another():
    assert pool(size=3, life=6)._ages == [0, 2, 4]


def test_without_a_life_every_network_is_fresh():
    made = pool(life=0)
    seen = go(made, range(5))
    assert len({tuple(w.flatten().tolist()) for w in seen}) == 5


def test_all_networks_are_taken():
    made = pool(size=4)
    times = torch.bincount(torch.tensor([made.taken(step) for step in range(400)]), minlength=4)
    assert times.min() > 60


def test_a_resumed_pool_goes_on_with_weights_moments_and_ages():
    one, other = pool(), pool()
    go(one, range(10))
    other.load_state_dict({k: v.clone() for k, v in one.state_dict().items()})
    assert other.state_dict().keys() == one.state_dict().keys()
    for a, b in zip(go(one, range(10, 30)), go(other, range(10, 30)), strict=True):
        assert torch.equal(a, b)
    third = pool()
    third.load_state_dict({k: v for k, v in one.state_dict().items() if not k.startswith("optimizer")})
    assert any(not torch.equal(a, b) for a, b in zip(go(one, range(30, 36)), go(third, range(30, 36)), strict=True))
