"""What trainings on the real images go through: the weights of many networks after every epoch, kept on disk.

They are the experts of trajectory matching (Cazenavette et al., CVPR 2022, arXiv 2203.11932, section 3.2). One buffer
serves every set that is learned from the same images, network, seed and course.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import grad, vmap

from limbeck.condensation.augment import Draws, augment, unpaired
from limbeck.condensation.synthetic import RealImages
from limbeck.condensation.unroll import Flat
from limbeck.engine.cache.spec import parse_bytes
from limbeck.engine.checkpoint import tensor_hash
from limbeck.engine.noise import uniform
from limbeck.engine.pools import Keeping, Pool, Rows, make_pool
from limbeck.errors import UserError
from limbeck.registry import Block

Flatness = Literal["none", "sam", "gsam"]
TOGETHER = 10
"""Experts that are trained and written at once."""
TINY = 1e-12


@dataclass(frozen=True)
class Course:
    """How an expert is trained: SGD on the real images, augmented.

    Attributes:
        epochs: passes over the images.
        batch_size: images in a step.
        lr: learning rate.
        momentum: of the descent.
        weight_decay: added to the gradient, in the weights.
        drop: what the rate is multiplied by from the second half on.
        shares: what the loss is multiplied by in each of the first epochs ("clipping loss", AST).
        penalty: weight of the squared length of the loss's gradient, as a further term ("gradient penalty", AST).
        penalty_of: the gradient with respect to the ``weights`` or the ``inputs``.
        flat: what the step follows: the gradient; that at the worst point nearby (``sam``, Foret et al. 2021); or that
            less the part of the plain one that stands upright on it (``gsam``, Zhuang et al. 2022).
        rho: how far nearby is.
        alpha: how much of that part.
        augment: operations, each image by its own numbers; none where empty.
    """

    epochs: int = 50
    batch_size: int = 256
    lr: float = 0.01
    momentum: float = 0.0
    weight_decay: float = 0.0
    drop: float = 1.0
    shares: tuple[float, ...] = ()
    penalty: float = 0.0
    penalty_of: Literal["weights", "inputs"] = "inputs"
    flat: Flatness = "none"
    rho: float = 0.01
    alpha: float = 1.0
    augment: tuple[str, ...] = ()

    def share(self, epoch: int) -> float:
        """What the loss of an epoch, from 0, is multiplied by."""
        return self.shares[epoch] if epoch < len(self.shares) else 1.0

    def rate(self, epoch: int) -> float:
        """Learning rate of an epoch, from 0."""
        return self.lr if 2 * epoch < self.epochs else self.lr * self.drop


Slope = Callable[[Tensor, Tensor, Tensor, float], Tensor]
"""From weights [P], images, labels and a factor to the gradient [P] of the factor times the loss."""


def trajectories(
    net: Flat, starts: Tensor, real: RealImages, course: Course, keys: list[Hashable], *, until: int, stacked: bool
) -> Tensor:
    """Weights [E, until + 1, P] of E networks at the start and after each of ``until`` epochs.

    What expert e sees follows from its key alone, so that one is trained alike in whatever company.

    Args:
        net: the network.
        starts: first weights, [E, P].
        real: the images.
        course: how they are trained.
        keys: of each expert's order and augmentation.
        until: epochs, at most those of the course.
        stacked: all in one batched computation, not one after the other; equal to rounding.
    """
    if not stacked:
        alone = [_walk(net, starts[e : e + 1], real, course, keys[e : e + 1], until) for e in range(len(starts))]
        return torch.cat(alone)
    return _walk(net, starts, real, course, keys, until)


def stacks_well(network: nn.Module, device: torch.device) -> bool:
    """Whether networks of a kind train faster stacked: on a processor not if they convolve.

    There a convolution of many networks' weights is one of as many groups, which gains little where images are tiny and
    loses where they are not; matrix products gain a third (``benchmarks/expert_buffer.py``).
    """
    return device.type != "cpu" or not any(isinstance(m, nn.modules.conv._ConvNd) for m in network.modules())


@torch.no_grad()
def _walk(net: Flat, starts: Tensor, real: RealImages, course: Course, keys: list[Hashable], until: int) -> Tensor:
    weights, velocity, found = starts.clone(), torch.zeros_like(starts), [starts.clone()]
    for epoch in range(until):
        for images, labels in _batches(real, course, keys, epoch):
            slopes = _slopes(net, weights, images, labels, course, course.share(epoch))
            if course.weight_decay:
                slopes = slopes + course.weight_decay * weights
            velocity = course.momentum * velocity + slopes if course.momentum else slopes
            weights = weights - course.rate(epoch) * velocity
        found.append(weights)
    return torch.stack(found, 1)


def _batches(real: RealImages, course: Course, keys: list[Hashable], epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Images [E, B, ...] and labels [E, B] of each step: an own order and own augmentation for each expert."""
    device, count = real.images.device, len(real.labels)
    orders = [uniform(torch.arange(count), (1,), (key, epoch, "order"))[:, 0].argsort() for key in keys]
    for step, rows in enumerate(torch.stack(orders).to(device).split(course.batch_size, 1)):
        images, labels = real.images[rows], real.labels[rows]
        if course.augment:
            draws = [unpaired(rows.shape[1], (key, epoch, step), course.augment) for key in keys]
            images = augment(images.flatten(0, 1), together(draws)).view_as(images)
        yield images, labels


def together(draws: list[Draws]) -> Draws:
    """Several batches' draws as those of one."""
    return Draws(draws[0].ops, torch.cat([d.op for d in draws]), torch.cat([d.numbers for d in draws]))


def _slopes(net: Flat, weights: Tensor, images: Tensor, labels: Tensor, course: Course, share: float) -> Tensor:
    """What each expert's step follows, [E, P]."""
    if len(weights) == 1:
        plain: Slope = partial(alone, net, penalty=course.penalty, of=course.penalty_of)
        return followed(plain, weights[0], images[0], labels[0], share, course)[None]
    stacked: Slope = partial(functional, net, penalty=course.penalty, of=course.penalty_of)
    return vmap(lambda w, x, y: followed(stacked, w, x, y, share, course))(weights, images, labels)


def followed(slope: Slope, weights: Tensor, images: Tensor, labels: Tensor, share: float, course: Course) -> Tensor:
    """The gradient that a step follows, [P]: the plain one, SAM's or GSAM's.

    SAM (arXiv 2010.01412): the gradient h at ``w + rho g / |g|``, where g is the one at w. GSAM (arXiv 2203.08065):
    ``h - alpha (g - (g . h) h / |h|^2)``, which also lowers the difference of both losses.
    """
    plain = slope(weights, images, labels, share)
    if course.flat == "none":
        return plain
    worst = slope(weights + course.rho * plain / (plain.norm() + TINY), images, labels, share)
    if course.flat == "sam":
        return worst
    upright = plain - (plain @ worst) / (worst @ worst + TINY) * worst
    return worst - course.alpha * upright


def alone(
    net: Flat,
    weights: Tensor,
    images: Tensor,
    labels: Tensor,
    share: float,
    *,
    penalty: float = 0.0,
    of: str = "inputs",
) -> Tensor:
    """The gradient [P] of ``share * CE + penalty * |grad CE|^2``, of one network.

    With respect to the inputs it is the mean over the images of the squared gradient of each one's own loss.
    """
    network, parameters = net.bound(weights)
    with torch.enable_grad():
        images = images.detach().requires_grad_(penalty != 0 and of == "inputs")
        loss = F.cross_entropy(network(images), labels)
        total = share * loss
        if penalty:
            inner = [images] if of == "inputs" else parameters
            first = torch.autograd.grad(loss, inner, create_graph=True)
            total = total + penalty * _scale(images, of) * sum(g.square().sum() for g in first)
        return torch.cat([g.flatten() for g in torch.autograd.grad(total, parameters)])


def functional(
    net: Flat,
    weights: Tensor,
    images: Tensor,
    labels: Tensor,
    share: float,
    *,
    penalty: float = 0.0,
    of: str = "inputs",
) -> Tensor:
    """As :func:`alone`, as a function that can be batched."""

    def loss(w: Tensor, x: Tensor) -> Tensor:
        return F.cross_entropy(net(w, x), labels)

    def total(w: Tensor) -> Tensor:
        plain = share * loss(w, images)
        if not penalty:
            return plain
        first = grad(loss, argnums=1 if of == "inputs" else 0)(w, images)
        return plain + penalty * _scale(images, of) * first.square().sum()

    return grad(total)(weights)


def _scale(images: Tensor, of: str) -> int:
    # The loss is a mean, so an image's own gradient comes divided by their number.
    return len(images) if of == "inputs" else 1


# -- the buffer --------------------------------------------------------------------------------------------------------

Walks = Callable[[list[int], int, torch.device], Tensor]
"""From the numbers of E experts, an epoch and a device to weights [E, stops, P] up to that stop."""


class Buffer:
    """The trajectories of ``count`` experts, found on disk or made when they are first asked for.

    Args:
        walks: trains experts.
        facts: what the weights depend on, by which they are found again; asked for when they are first wanted.
        count: how many experts.
        stops: weights that are kept of each.
        keep: how much of the disk they may take ("10GB"); None holds them in memory.
        quiet: no progress.
    """

    def __init__(
        self,
        walks: Walks,
        facts: Callable[[], Mapping[str, Any]],
        count: int,
        stops: int,
        *,
        keep: str | None = "10GB",
        quiet: bool = False,
    ) -> None:
        self.walks, self.facts, self.count, self.stops, self.keep, self.quiet = walks, facts, count, stops, keep, quiet
        self._pool: Pool | None = None

    def at(self, expert: int, stops: list[int], device: torch.device) -> list[Tensor]:
        """Weights [P] of an expert at these stops."""
        if self._pool is None:
            self._pool = self._open(device)
        rows = torch.tensor([expert * self.stops + stop for stop in stops], device=device)
        return list(self._pool[rows]["weights"])

    def _open(self, device: torch.device) -> Pool:
        keeping = None
        if self.keep is not None:
            facts = {"what": "expert weights", **self.facts(), "together": TOGETHER}
            keeping = Keeping(facts, parse_bytes(self.keep), {"experts": self.count}, "experts")
        chunk = TOGETHER * self.stops
        return make_pool(
            self._make, self.count * self.stops, chunk=chunk, device=device, keeping=keeping, quiet=self.quiet
        )

    def _make(self, rows: Tensor) -> Rows:
        """Weights by row, which is expert times stops plus stop; trained as far as is asked for."""
        experts, stops = rows // self.stops, rows % self.stops
        numbers = experts.unique()
        found = self.walks(numbers.tolist(), int(stops.max()), rows.device)
        return {"weights": found[torch.searchsorted(numbers, experts), stops]}


class Experts:
    """The experts of a course on images, with their weights before the first epoch and after each.

    Args:
        block: the networks' recipe block.
        fresh: from a key to a network with random weights.
        real: the images.
        course: how they are trained.
        count: how many experts.
        seed: of the run.
        keep, quiet: as for :class:`Buffer`.
    """

    def __init__(
        self,
        block: Block,
        fresh: Callable[[Hashable], nn.Module],
        real: RealImages,
        course: Course,
        count: int,
        seed: int,
        *,
        keep: str | None = "10GB",
        quiet: bool = False,
    ) -> None:
        self.block, self.fresh, self.real, self.course, self.count, self.seed = block, fresh, real, course, count, seed
        self.net = Flat(fresh((seed, "layers")))
        self._buffer = Buffer(self._walks, self._facts, count, course.epochs + 1, keep=keep, quiet=quiet)

    def at(self, expert: int, epochs: list[int], device: torch.device) -> list[Tensor]:
        """Weights [P] of an expert after so many epochs each."""
        self.real.to(device)
        self.net.network.to(device)
        return self._buffer.at(expert, epochs, device)

    def _facts(self) -> dict[str, Any]:
        images = tensor_hash({"images": self.real.images, "labels": self.real.labels})
        return {"net": self.block.tree(), "seed": self.seed, "images": images, "course": asdict(self.course)}

    def _walks(self, numbers: list[int], until: int, device: torch.device) -> Tensor:
        starts = torch.stack([self.net.weights(self.fresh((self.seed, "expert", n))) for n in numbers])
        keys: list[Hashable] = [(self.seed, "expert", n, "course") for n in numbers]
        stacked = len(numbers) > 1 and stacks_well(self.net.network, device)
        return trajectories(self.net, starts.to(device), self.real, self.course, keys, until=until, stacked=stacked)


def require_budget(keep: str | None) -> None:
    """Refuse a size that is none.

    Raises:
        UserError: it cannot be read.
    """
    if keep is not None:
        try:
            parse_bytes(keep)
        except UserError as error:
            raise UserError(f"keep: {error}") from None
