"""IDM: distributions matched as networks see them that are learning the real data."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.condensation.losses import distribution_matching
from limbeck.condensation.matching import MatchingMethod, Ops
from limbeck.condensation.networks import relu_maps
from limbeck.engine.method import Clock, Term
from limbeck.engine.noise import uniform
from limbeck.errors import UserError
from limbeck.registry import register

FIRST = 3
"""Networks that the queue begins with (the published code's)."""


@register("method")
class IDM(MatchingMethod):
    """Improved distribution matching (Zhao et al., CVPR 2023).

    As ``dm``, with three changes. The student forms four images of each that it stores (``student.tiles: 2``). The
    networks that look come from a queue: every ``push_every`` steps a fresh one joins it and, where it is full, the
    oldest leaves; in each step some of them learn the real data a little. The images are also to be classified rightly
    by these networks, each of which counts by its own accuracy. What is matched are the maps after the last ReLU. The
    published code takes SGD with learning rate 1 and momentum 0.5 over 20,000 steps.

    Args:
        queue: networks, at most.
        push_every: steps after which a fresh network joins.
        looking: networks that the images are matched by in a step.
        learning: networks that learn in a step.
        net_steps: batches of real images that each of them learns.
        net_batch: images in such a batch.
        net_lr: of the networks' plain descent.
        ce: weight of the classification, times the network's accuracy in [0, 1]. The published code's 0.1 is for per
            cent.
    """

    def __init__(
        self,
        *,
        augment: Ops = ("color", "crop", "cutout", "flip", "scale", "rotate"),
        queue: int = 100,
        push_every: int = 30,
        looking: int = 2,
        learning: int = 2,
        net_steps: int = 10,
        net_batch: int = 256,
        net_lr: float = 0.01,
        ce: float = 10.0,
        **rest: Any,
    ) -> None:
        super().__init__(augment=augment, **rest)
        if min(queue, push_every, looking, net_batch) < 1 or min(learning, net_steps) < 0:
            raise UserError(
                "idm: queue, push_every, looking and net_batch must be 1 or more, learning and net_steps 0 or more"
            )
        self.queue = queue
        self.push_every = push_every
        self.looking = looking
        self.learning = learning
        self.net_steps = net_steps
        self.net_batch = net_batch
        self.net_lr = net_lr
        self.ce = ce
        self._networks: dict[int, nn.Module] = {}
        self._accuracies: dict[int, Tensor] = {}
        self._kept: dict[str, Any] = {}

    def terms(self, clock: Clock) -> dict[str, Term]:
        """The terms ``dm`` and, with a weight, ``ce``; their count is 1: the paper sums over classes and networks."""
        images, labels = self.student()
        self.fill(clock, images.device)
        key = (clock.seed, clock.step)
        gaps, wrong = [], []
        for number in self.chosen(self.looking, (key, "looking")):
            network = self._networks[number].requires_grad_(False).eval()
            sets = self.drawn(images, labels, (key, number))
            with torch.no_grad():
                real_maps, _ = relu_maps(network, sets.real)
            own_maps, _ = relu_maps(network, sets.images)
            real, own = real_maps[-1].flatten(1), own_maps[-1].flatten(1)
            gaps.append(distribution_matching(real, sets.real_labels, own, labels, self.real.classes).sum())
            if self.ce:
                # The published code adds a class's mean to the class's own loss.
                each = F.cross_entropy(network(sets.images), labels, reduction="none")
                wrong.append(self._accuracies[number] * each.sum() * self.real.classes / len(labels))
        terms = {"dm": Term(torch.stack(gaps).sum(), 1, unit="sets")}
        return terms | ({"ce": Term(torch.stack(wrong).sum(), 1, self.ce, unit="sets")} if wrong else {})

    def fill(self, clock: Clock, device: torch.device) -> None:
        """Bring the queue to what it is at this step: its networks are numbered in the order in which they join."""
        last = FIRST + clock.step // self.push_every
        for number in range(max(0, last + 1 - self.queue), last + 1):
            if number not in self._networks:
                self._networks[number] = self.fresh((clock.seed, "queue", number), device)
                self._accuracies[number] = torch.zeros((), device=device)
                if f"accuracy.{number}" in self._kept:
                    self._networks[number].load_state_dict(_under(self._kept, f"network.{number}."))
                    self._accuracies[number] = self._kept[f"accuracy.{number}"].to(device)
        self._kept = {}
        for number in [n for n in self._networks if n < last + 1 - self.queue]:
            del self._networks[number], self._accuracies[number]

    def chosen(self, count: int, key: Hashable) -> list[int]:
        """Numbers of networks in the queue, drawn without replacement."""
        there = sorted(self._networks)
        order = uniform(torch.arange(len(there)), (1,), key)[:, 0].argsort().tolist()
        return [there[place] for place in order[:count]]

    def after_step(self, clock: Clock) -> None:
        """Clamp, if asked to; let some networks learn."""
        super().after_step(clock)
        if not self._networks:
            return
        for number in self.chosen(self.learning, (clock.seed, clock.step, "learning")):
            with torch.enable_grad():
                self._learn(number, (clock.seed, clock.step, number))

    def _learn(self, number: int, key: Hashable) -> None:
        """Some batches of real images; how many of them the network knew is its accuracy."""
        network = self._networks[number].requires_grad_(True).train()
        optimizer, hits = torch.optim.SGD(network.parameters(), lr=self.net_lr), []
        for step in range(self.net_steps):
            rank = uniform(torch.arange(self.net_batch), (1,), (key, step, "rows"))[:, 0]
            rows = (rank * len(self.real.labels)).long().to(self.real.labels.device)
            images, labels = self.real.images[rows], self.real.labels[rows]
            logits = network(images)
            hits.append((logits.argmax(1) == labels).float().mean())
            optimizer.zero_grad()
            F.cross_entropy(logits, labels).backward()
            optimizer.step()
        if hits:
            self._accuracies[number] = torch.stack(hits).mean()

    def state_dict(self) -> dict[str, Any]:
        """The weights and accuracies of the queue."""
        state = dict(self._kept)
        for number, network in self._networks.items():
            state |= {f"network.{number}.{name}": value for name, value in network.state_dict().items()}
            state[f"accuracy.{number}"] = self._accuracies[number]
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""
        self._networks, self._accuracies, self._kept = {}, {}, dict(state)


def _under(state: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
