"""A pool of networks that learn the set they look at: of every age between random and trained."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from limbeck.engine.noise import uniform


class NetworkPool:
    """``size`` networks, of which a step takes one and lets it go on; after ``life`` steps it starts anew.

    The first lives are cut short one after another, so that the pool soon holds all ages. Which network a step takes,
    and all weights, follow from keys.

    Args:
        fresh: from a key and a device to a network with random weights.
        descent: from a network to the optimizer that it learns with.
        size: P.
        life: K, steps that a network learns; 0 has a fresh network for every step.
        seed: of the run.
    """

    def __init__(
        self,
        fresh: Callable[[Hashable, torch.device], nn.Module],
        descent: Callable[[nn.Module], Optimizer],
        size: int,
        life: int,
        seed: int,
    ) -> None:
        self.fresh, self.descent, self.size, self.life, self.seed = fresh, descent, size, life, seed
        self._networks: dict[int, nn.Module] = {}
        self._optimizers: dict[int, Optimizer] = {}
        self._ages = [life * number // size for number in range(size)]
        self._births = [0] * size
        self._kept: dict[str, Tensor] = {}

    def taken(self, step: int) -> int:
        """Number of the network that a step takes."""
        one = torch.zeros(1, dtype=torch.int64)
        return int(uniform(one, (1,), (self.seed, step, "pool"))[0, 0] * self.size)

    def network(self, step: int, device: torch.device) -> nn.Module:
        """The network that a step takes."""
        number = self.taken(step)
        if self.life == 0:
            return self.fresh((self.seed, step, "network"), device)
        if number not in self._networks:
            network = self.fresh((self.seed, number, self._births[number], "network"), device)
            if mine := self._take_kept(f"network.{number}."):
                network.load_state_dict(mine)
            optimizer = self.descent(network)
            moments: dict[int, dict[str, Tensor]] = {}
            for name, value in self._take_kept(f"optimizer.{number}.").items():
                index, _, what = name.partition(".")
                moments.setdefault(int(index), {})[what] = value.clone()
            if moments:
                optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
            self._networks[number], self._optimizers[number] = network, optimizer
        return self._networks[number]

    def _take_kept(self, prefix: str) -> dict[str, Tensor]:
        mine = {k.removeprefix(prefix): v for k, v in self._kept.items() if k.startswith(prefix)}
        self._kept = {k: v for k, v in self._kept.items() if not k.startswith(prefix)}
        return mine

    def grow(self, step: int, learn: Callable[[nn.Module, Optimizer], None]) -> None:
        """Let the network that a step took learn, or start anew if it has lived long enough."""
        number = self.taken(step)
        if number not in self._networks:
            return
        self._ages[number] += 1
        if self._ages[number] >= self.life:
            self._ages[number], self._births[number] = 0, self._births[number] + 1
            del self._networks[number], self._optimizers[number]
        else:
            learn(self._networks[number], self._optimizers[number])

    def state_dict(self) -> dict[str, Any]:
        """Weights, what their optimizers remember, ages and births."""
        state: dict[str, Any] = dict(self._kept)
        for number, network in self._networks.items():
            state |= {f"network.{number}.{name}": value for name, value in network.state_dict().items()}
            for index, moments in self._optimizers[number].state_dict()["state"].items():
                found = {name: value for name, value in moments.items() if isinstance(value, Tensor)}
                state |= {f"optimizer.{number}.{index}.{name}": value for name, value in found.items()}
        return {**state, "ages": torch.tensor(self._ages), "births": torch.tensor(self._births)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""
        self._networks, self._optimizers = {}, {}
        self._ages, self._births = state["ages"].tolist(), state["births"].tolist()
        self._kept = {k: v for k, v in state.items() if k not in ("ages", "births")}
