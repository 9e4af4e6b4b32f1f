"""The subnets of a super-network: which there are, how far each is from a teacher's relations, and which are best."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from limbeck.engine.method import Batch
from limbeck.engine.teacher import Teacher
from limbeck.errors import UserError
from limbeck.language.losses.relations import relation_kl, relations
from limbeck.language.supernet import Architecture, run_subnet, subnet_config, subnet_shell
from limbeck.metrics.efficiency import count_flops, count_parameters
from limbeck.models.attention import AttentionTaps
from limbeck.models.forward import forward, unwrapped

QKV = tuple[Tensor, Tensor, Tensor]
PARTS = ("queries", "keys", "values")


@dataclass(frozen=True)
class Space:
    """The architectures that a super-network is trained for: all combinations of its choices, each in rising order.

    Attributes:
        layers: numbers of layers.
        heads: numbers of heads; a subnet's width is theirs.
        ratios: neurons of the feed-forward layers by the subnet's width.
        depth: layers of the super-network, and ``width`` channels of one of its heads.
        choose: which layers a shallower subnet has: the ``first``, or ``even``ly spread ones with the last among them.
    """

    layers: tuple[int, ...]
    heads: tuple[int, ...]
    ratios: tuple[float, ...]
    depth: int
    width: int
    choose: Literal["first", "even"] = "first"

    @property
    def architectures(self) -> list[Architecture]:
        """All of them, each once; the smallest is the first and the largest the last."""
        found = [
            Architecture(self._chosen(n), heads, round(ratio * heads * self.width))
            for n in self.layers
            for heads in self.heads
            for ratio in self.ratios
        ]
        return list(dict.fromkeys(found))

    def _chosen(self, count: int) -> tuple[int, ...]:
        if self.choose == "first":
            return tuple(range(count))
        return tuple((i + 1) * self.depth // count - 1 for i in range(count))


def space_of(
    network: nn.Module,
    *,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    ratios: Sequence[float] | None = None,
    choose: Literal["first", "even"] = "first",
) -> Space:
    """The space of a super-network; a choice that is not given goes from half of what the network has up to all of it.

    Args:
        network: a transformers encoder.
        layers, heads, ratios, choose: see :class:`Space`.

    Raises:
        UserError: the network does not say its sizes, or is smaller than a choice.
    """
    config: Any = getattr(unwrapped(network), "config", None)
    names = ("num_hidden_layers", "num_attention_heads", "hidden_size", "intermediate_size")
    if any(getattr(config, name, None) is None for name in names):
        raise UserError(f"{type(unwrapped(network)).__name__} does not say its layers, heads, width and neurons")
    most, all_heads, hidden, ffn = (int(getattr(config, name)) for name in names)
    whole = ffn / hidden
    space = Space(
        layers=_rising("layers", layers, range(math.ceil(most / 2), most + 1)),
        heads=_rising("heads", heads, range(math.ceil(all_heads / 2), all_heads + 1)),
        ratios=_rising("ratios", ratios, (whole / 2, 3 * whole / 4, whole)),
        depth=most,
        width=hidden // all_heads,
        choose=choose,
    )
    for architecture in space.architectures:
        subnet_config(network, architecture)
    return space


def _rising(name: str, given: Sequence[Any] | None, default: Iterable[Any]) -> tuple[Any, ...]:
    values = tuple(sorted(set(default if given is None else given)))
    if not values or values[0] <= 0:
        raise UserError(f"{name} must be one or more positive numbers, not {list(values)}")
    return values


class Subnets:
    """Runs subnets of a super-network: queries, keys and values of the last layer of each."""

    def __init__(self) -> None:
        self._shells: dict[Architecture, tuple[nn.Module, AttentionTaps]] = {}

    def __call__(self, network: nn.Module, architectures: Sequence[Architecture], batch: Batch) -> list[QKV]:
        """Each [B, T, D] of its own width D, in one forward of the network, however it is wrapped.

        A subnet has its gradient through the network's own forward, so that several processes exchange what they must.

        Raises:
            UserError: the network is sharded, so that no process has its rows and columns.
        """
        plain = unwrapped(network)
        if isinstance(next(plain.parameters()), DTensor):
            raise UserError("subnets are sliced out of whole weights: a super-network cannot be sharded (fsdp)")

        def run(**inputs: Any) -> dict[str, list[QKV]]:
            return {"subnets": [self._one(plain, a, inputs) for a in architectures]}

        with _forward(plain, run):
            found: list[QKV] = forward(network, batch).subnets
        return found

    def shell(self, network: nn.Module, architecture: Architecture) -> nn.Module:
        """The subnet with shapes alone."""
        return self._shell(network, architecture)[0]

    def _shell(self, network: nn.Module, architecture: Architecture) -> tuple[nn.Module, AttentionTaps]:
        if architecture not in self._shells:
            shell = subnet_shell(network, architecture, empty=True)
            self._shells[architecture] = shell, AttentionTaps(shell, [-1])
        return self._shells[architecture]

    def _one(self, network: nn.Module, architecture: Architecture, inputs: Mapping[str, Any]) -> QKV:
        shell, taps = self._shell(network, architecture)
        run_subnet(network, architecture, shell, **inputs)
        (found,) = taps.pop()
        return found


@contextmanager
def _forward(module: nn.Module, run: Any) -> Iterator[None]:
    """Within the context the module's forward is ``run``."""
    before = vars(module).get("forward")
    module.forward = run
    try:
        yield
    finally:
        del module.forward
        if before is not None:
            module.forward = before


class Relations:
    """MiniLMv2's distance from the relations of one layer of a teacher (Wang et al. 2020, arXiv 2012.15828).

    Args:
        teacher: whose layer it is.
        layer: by number; negative ones count from the end.
        heads: relation heads that all widths share evenly; by default the teacher's heads.

    Raises:
        UserError: the teacher has no such layer, or its width is not shared evenly.
    """

    def __init__(self, teacher: Teacher, layer: int = -1, heads: int | None = None) -> None:
        self.teacher = teacher
        self._taps = AttentionTaps(teacher.module, [layer], detach=True)
        self.heads = heads or self._taps.heads
        width = int(unwrapped(teacher.module).config.hidden_size)  # type: ignore[union-attr, arg-type]
        if width % self.heads:
            raise UserError(f"{self.heads} relation_heads do not share the teacher's width {width} evenly")

    def check(self, space: Space) -> None:
        """Refuse a space with a width that the relation heads do not share evenly.

        Raises:
            UserError: it has one.
        """
        wrong = [heads * space.width for heads in space.heads if heads * space.width % self.heads]
        if wrong:
            raise UserError(f"{self.heads} relation_heads do not share a subnet's width {wrong[0]} evenly")

    def of_teacher(self, batch: Batch) -> QKV:
        """The teacher's queries, keys and values [B, T, D]."""
        self.teacher.compute(batch)
        (found,) = self._taps.pop()
        return found

    def apart(self, own: QKV, theirs: QKV, mask: Tensor) -> dict[str, Tensor]:
        """``KL(softmax(T T^T / sqrt(d)) || softmax(S S^T / sqrt(d)))`` of each of :data:`PARTS`, a mean over heads.

        Args:
            own: a subnet's.
            theirs: the teacher's.
            mask: [B, T], 1 where a position is there.

        Returns:
            nats [B, T] by part.
        """
        pairs = zip(PARTS, own, theirs, strict=True)
        return {n: relation_kl(relations(s, self.heads), relations(t, self.heads), mask) for n, s, t in pairs}

    def close(self) -> None:
        """Leave the teacher alone."""
        self._taps.close()


@dataclass(frozen=True)
class Candidate:
    """A subnet that was tried.

    Attributes:
        architecture: of the subnet.
        loss: mean over the positions of held-out text, sum over queries, keys and values; nats.
        parameters: of the plain encoder that it is.
        flops: of its forward of one row; 2 per multiply-add.
        best: no other one is as good in all three and better in one.
    """

    architecture: Architecture
    loss: float
    parameters: int
    flops: int
    best: bool = False


def sizes_of(network: nn.Module, architectures: Sequence[Architecture], batch: Batch) -> list[tuple[int, int]]:
    """Parameters of each subnet, and floating-point operations of its forward of the first row of a batch."""
    row = {k: batch[k][:1] for k in ("input_ids", "attention_mask", "token_type_ids") if k in batch}
    found = []
    for architecture in architectures:
        shell = subnet_shell(network, architecture, empty=True)
        flops = count_flops(lambda a=architecture, s=shell: run_subnet(network, a, s, **row))  # type: ignore[misc]
        found.append((count_parameters(shell), flops))
    return found


@torch.no_grad()
def held_out_losses(
    network: nn.Module, relations: Relations, architectures: Sequence[Architecture], batches: Iterable[Batch]
) -> list[float]:
    """The distance of each subnet from the teacher's relations, mean over all positions that are there."""
    run, mode = Subnets(), network.training
    sums, count = torch.zeros(len(architectures), dtype=torch.float64), 0
    network.eval()
    for batch in batches:
        theirs, mask = relations.of_teacher(batch), batch["attention_mask"]
        for i, architecture in enumerate(architectures):
            (own,) = run(network, [architecture], batch)
            values = sum(relations.apart(own, theirs, mask).values())
            sums[i] += (values * mask).double().sum().cpu()
        count += int(mask.sum())
    network.train(mode)
    return [float(value) / max(count, 1) for value in sums]


def pareto(points: Sequence[Sequence[float]]) -> list[bool]:
    """Of points that are the better the smaller, which no other is as small as everywhere and smaller somewhere."""

    def beats(a: Sequence[float], b: Sequence[float]) -> bool:
        return all(x <= y for x, y in zip(a, b, strict=True)) and any(x < y for x, y in zip(a, b, strict=True))

    return [not any(beats(other, point) for other in points) for point in points]


def marked(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The candidates with the Pareto set of loss, parameters and operations marked; the least loss is the first."""
    best = pareto([(c.loss, c.parameters, c.flops) for c in candidates])
    found = [replace(c, best=b) for c, b in zip(candidates, best, strict=True)]
    return sorted(found, key=lambda c: (c.loss, c.parameters))
