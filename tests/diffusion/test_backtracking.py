"""The path of networks: what it keeps, and the order in which it is walked."""

from __future__ import annotations

import torch
from torch import nn

from limbeck.diffusion.backtracking import Path, due, way_back


def test_records_are_evenly_spaced_and_the_way_back_visits_each_but_the_last_once():
    assert [due(k / 6, 3) for k in range(7)] == [0, 0, 1, 1, 2, 2, 3]
    assert [way_back(k / 8, 4) for k in range(8)] == [3, 3, 2, 2, 1, 1, 0, 0]
    assert way_back(0.0, 1) == 0  # a path of its end alone is no way


def test_a_path_gives_back_what_its_learner_was_like():
    learner = nn.Linear(1, 1, bias=False)
    path = Path(learner)
    for value in (1.0, 2.0, 3.0):
        nn.init.constant_(learner.weight, value)
        path.record()
    nn.init.constant_(learner.weight, 9.0)
    other = Path(nn.Linear(1, 1, bias=False))
    other.load_states(path.states())
    for each in (path, other):
        found = [float(each.at(k)(torch.ones(1))) for k in (2, 0, 1)]
        assert found == [3.0, 1.0, 2.0]
        assert not any(p.requires_grad for p in each.parameters())
    assert float(learner(torch.ones(1)).detach()) == 9.0
