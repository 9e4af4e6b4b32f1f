"""A path of networks, recorded while one of them learns, and the way back along it."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from limbeck.engine.checkpoint import whole


class Path(nn.Module):
    """What a learner was like at several times, in order, and a network that is any one of them.

    Keep it in ``Method.frozen`` and let its :meth:`states` be part of the method's state.

    Args:
        learner: the module to record, as it was built; where a strategy wraps or shards it later, that one is recorded.
    """

    def __init__(self, learner: nn.Module) -> None:
        super().__init__()
        self.copy = copy.deepcopy(learner).requires_grad_(False)
        self._learner = (learner,)  # in a tuple, so that it is no part of this module
        self._kept: list[dict[str, Tensor]] = []
        self._shown: int | None = None

    def __len__(self) -> int:
        return len(self._kept)

    @torch.no_grad()
    def record(self) -> None:
        """Keep the learner's weights of now as the last of the path."""
        learner = self._learner[0]
        self._kept.append({name: whole(value).detach().clone() for name, value in learner.state_dict().items()})

    def at(self, place: int) -> nn.Module:
        """The network that was recorded at this place, counted from 0; the same module with other weights each time."""
        if place != self._shown:
            self.copy.load_state_dict(self._kept[place])
            self._shown = place
        return self.copy

    def states(self) -> list[dict[str, Tensor]]:
        """The recorded weights, in order."""
        return list(self._kept)

    def load_states(self, states: list[dict[str, Tensor]]) -> None:
        """Take back what :meth:`states` gave."""
        self._kept, self._shown = list(states), None


def due(done: float, count: int) -> int:
    """How many of ``count`` evenly spaced records are to be there when a share ``done`` of the recording is over."""
    return min(count, math.floor(done * count + 1e-9))


def way_back(done: float, count: int) -> int:
    """Which network of a path of ``count`` beside its start to head for when a share ``done`` of the way is over.

    Network ``count`` is where the path ends and the way back begins, so the first to head for is the one before it;
    network 0 is the path's start, and what there is to head for from the end of the way on (arXiv 2408.15991, alg. 2).
    """
    return max(0, count - 1 - math.floor(done * count + 1e-9))
