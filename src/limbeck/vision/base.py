"""What methods for classifiers share: labels and soft targets beside their own terms, and features of both sides.

A method derives from :class:`Taught` (logits), :class:`FeatureTaught` (features) or :class:`ProjectedTaught` (features
through trained maps) and writes :meth:`Taught.compare`, which is its mathematics.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from limbeck.engine.devices import device_of, to_device
from limbeck.engine.features import Taps
from limbeck.engine.gather import Together
from limbeck.engine.method import Batch, Clock, Method, Parts, Term, Update
from limbeck.engine.projectors import Projectors
from limbeck.errors import UserError
from limbeck.losses import IGNORE, label_loss, soft_kl
from limbeck.models import places
from limbeck.models.forward import forward
from limbeck.registry import Block, ProjectorBlock, build


@dataclass
class Seen:
    """What student and teacher gave for one batch.

    Attributes:
        batch, clock: of this step.
        student, teacher: logits [B, K].
        s, t: features of both sides, as many of either, shallow to deep.
    """

    batch: Batch
    clock: Clock
    student: Tensor
    teacher: Tensor
    s: list[Tensor] = field(default_factory=list)
    t: list[Tensor] = field(default_factory=list)

    @property
    def labels(self) -> Tensor:
        """[B]; -100 where a sample has none."""
        return self.batch["label"]

    @property
    def labelled(self) -> Tensor:
        """Which samples have a label, bool [B]."""
        return self.labels != IGNORE

    def together(self) -> Together:
        """The rows of the global batch, for losses that compare samples with one another."""
        return Together(len(self.student), self.student.device)


class Taught(Method):
    """A student of logits: cross-entropy, soft targets if wanted, and the terms of :meth:`compare`.

    Args:
        ce_weight: weight of the labels.
        kd_weight: weight of Hinton's soft targets beside the method's own terms; 0 leaves them out.
        temperature: of these soft targets.
    """

    needs = {"teacher": {"logits"}}

    def __init__(self, *, ce_weight: float = 1.0, kd_weight: float = 0.0, temperature: float = 4.0) -> None:
        self.ce_weight = ce_weight
        self.kd_weight = kd_weight
        self.temperature = temperature

    def updates(self, batch: Batch, clock: Clock) -> Iterator[Update]:
        """One update of everything that learns."""
        yield Update(tuple(self.learners), self.terms(batch, clock))

    def terms(self, batch: Batch, clock: Clock) -> dict[str, Term]:
        """``{"ce", "kd"}`` as they are weighted, and the method's own."""
        seen = self.see(batch, clock)
        terms: dict[str, Term] = {}
        if self.ce_weight:
            terms["ce"] = label_loss(seen.student, batch, weight=self.ce_weight)
        if self.kd_weight:
            soft = soft_kl(seen.student, seen.teacher, temperature=self.temperature)
            terms["kd"] = Term.of(soft, weight=self.kd_weight)
        return terms | self.compare(seen)

    def see(self, batch: Batch, clock: Clock) -> Seen:
        """Run both networks."""
        return Seen(batch, clock, forward(self.student, batch).logits, self.teacher(batch).logits)

    def compare(self, seen: Seen) -> dict[str, Term]:
        """The method's own terms."""
        raise NotImplementedError


class FeatureTaught(Taught):
    """A student of features.

    The class attribute ``look`` says which features a method compares by default: the ends of the ``stages``, the
    ``last`` or the ``middle`` one of these, or the ``embedding`` that the classifier's linear layer reads.

    Args:
        student_layers: module paths of the student's features, shallow to deep; by default chosen by looking at the
            network (``limbeck show-features``).
        teacher_layers: the teacher's, as many.
    """

    look: ClassVar[Literal["stages", "last", "middle", "embedding"]] = "stages"
    live = True

    def __init__(
        self,
        *,
        student_layers: list[str] | None = None,
        teacher_layers: list[str] | None = None,
        **rest: Any,
    ) -> None:
        super().__init__(**rest)
        self.student_layers = student_layers
        self.teacher_layers = teacher_layers

    def setup(self, parts: Parts) -> None:
        """Choose the layers, tap them, and build what learns beside the student."""
        super().setup(parts)
        batch = example(parts)
        own = self._layers(parts.student, batch, self.student_layers)
        other = self._layers(self.teacher.module, batch, self.teacher_layers)
        if self.student_layers is None and self.teacher_layers is None:
            own, other = _paired(own, other)
        if len(own[0]) != len(other[0]):
            says = f"{len(own[0])} layers of the student and {len(other[0])} of the teacher"
            raise UserError(f"{says}: name as many student_layers as teacher_layers")
        self._own = Layers(parts.student, *own)
        self._other = Layers(self.teacher.module, *other, detach=True)
        s, t = _look(parts.student, self._own, batch), _look(self.teacher.module, self._other, batch)
        self.learners |= self.helpers(s, t)

    def helpers(self, s: list[Tensor], t: list[Tensor]) -> dict[str, nn.Module]:
        """What learns beside the student, by role, from one example of the features of either side."""
        return {}

    def see(self, batch: Batch, clock: Clock) -> Seen:
        """Run both networks and take their features; the teacher is live, for no cache holds its insides."""
        student, teacher = forward(self.student, batch).logits, self.teacher.compute(batch).logits
        return Seen(batch, clock, student, teacher, self._own.pop(), self._other.pop())

    def _layers(self, module: nn.Module, batch: Batch, named: list[str] | None) -> tuple[list[str], str]:
        if named is not None:
            return list(named), "output"
        if self.look == "embedding":
            return [places.head(module, batch)[0]], "input"
        found = places.stages(module, batch)
        middle = (len(found) - 1) // 2
        return {"last": found[-1:], "middle": found[middle : middle + 1]}.get(self.look, found), "output"


class ProjectedTaught(FeatureTaught):
    """A student of features that a trained map takes to the teacher's shape. The map is no part of the student.

    Args:
        projector: the map of each pair of features; ``auto`` is none where the shapes are equal, else a linear map or
            a 1x1 convolution.
    """

    def __init__(self, *, projector: ProjectorBlock | None = None, **rest: Any) -> None:
        super().__init__(**rest)
        self.projector = projector

    def helpers(self, s: list[Tensor], t: list[Tensor]) -> dict[str, nn.Module]:
        """The projectors, if there is one with parameters."""
        block = self.projector or Block("auto")
        maps = [build("projector", block, own, other) for own, other in zip(s, t, strict=True)]
        made = Projectors({str(i): module for i, module in enumerate(maps)})
        return {"projectors": made} if any(True for _ in made.parameters()) else {}

    def projected(self, features: Sequence[Tensor]) -> list[Tensor]:
        """The student's features in the teacher's shapes."""
        if "projectors" not in self.learners:
            return list(features)
        named = {str(i): feature for i, feature in enumerate(features)}
        return list(self.learners["projectors"](named).values())


class Layers:
    """Features of a network by layer, in the order of the layers.

    Args:
        module: the network.
        paths: the layers.
        of: their ``output``, or their ``input``.
        detach: cut the gradient.
    """

    def __init__(self, module: nn.Module, paths: Sequence[str], of: str, *, detach: bool = False) -> None:
        self.paths = list(paths)
        self.taps = Taps(module, self.paths, of="input" if of == "input" else "output", detach=detach)

    def pop(self) -> list[Tensor]:
        """The features of the last forward."""
        values: Mapping[str, Any] = self.taps.pop()
        return [values[path] for path in self.paths]


def _look(module: nn.Module, layers: Layers, batch: Batch) -> list[Tensor]:
    """The features of one forward that leaves no trace."""
    with places.looking(module):
        forward(module, batch)
    return layers.pop()


def _paired(own: tuple[list[str], str], other: tuple[list[str], str]) -> tuple[Any, Any]:
    mine, theirs = places.pair(own[0], other[0])
    return (mine, own[1]), (theirs, other[1])


def summed(values: Iterable[Tensor]) -> Tensor:
    """The sum over layers of what each gives for every sample, [B] each -> [B]."""
    return torch.stack(list(values)).sum(0)


def example(parts: Parts) -> Batch:
    """Two samples of the training data, on the student's device.

    Raises:
        UserError: there is no data.
    """
    if not parts.streams:
        raise UserError("this method looks at a sample of the data before it starts, and the recipe has none")
    batch = next(iter(parts.streams.values())).batch(torch.arange(2))
    moved: Batch = to_device(batch, device_of(parts.student))
    return moved
