"""The one abstraction a method's author must know.

A method names what learns, and its step *yields updates*: named loss terms of one learner at a time. The loop does
everything else (the division by the global count, backward, accumulation, clipping, the optimizer's step, precision,
devices) and only then asks for the next update. See ``docs/write-a-method.md`` for a complete example of 40 lines.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from limbeck.engine.noise import normal, uniform

if TYPE_CHECKING:
    from limbeck.data.base import DataSpec
    from limbeck.engine.health import Alarm
    from limbeck.engine.teacher import Teacher

Batch = dict[str, Any]
"""What a stream gives: ``input`` or ``input_ids``, ``label`` or ``labels``, always ``id`` (int64 [B]) and ``view``."""


@dataclass
class Term:
    """One named loss term of an update: ``weight * sum / count``, the count taken over the whole global batch.

    Keeping sum and count apart makes the gradient independent of how the global batch is cut into micro-batches,
    ranks or padding.

    Attributes:
        sum: differentiable scalar, the loss summed over the items of this micro-batch.
        count: how many items were summed.
        weight: the factor of this term in the total loss.
        unit: what the count counts; must be a key of :meth:`Method.count` when gradients are accumulated.
    """

    sum: Tensor
    count: int | Tensor
    weight: float = 1.0
    unit: str = "samples"

    @classmethod
    def of(cls, values: Tensor, mask: Tensor | None = None, *, weight: float = 1.0, unit: str = "samples") -> Term:
        """The term of unreduced ``values`` (any shape); ``mask`` (same shape) keeps the items that count.

        Several values of a sample (one for each pixel) count as their mean, once, where samples are what is counted.

        Raises:
            ValueError: the shapes of values and mask differ (no broadcasting: it hides mistakes).
        """
        if mask is None and unit == "samples" and values.dim() > 1:
            values = values.flatten(1).mean(1)
        if mask is None:
            return cls(values.sum(), values.numel(), weight, unit)
        if mask.shape != values.shape:
            raise ValueError(f"values {tuple(values.shape)} and mask {tuple(mask.shape)} must have the same shape")
        kept = torch.where(mask.bool(), values, torch.zeros((), dtype=values.dtype, device=values.device))
        return cls(kept.sum(), mask.bool().sum(), weight, unit)


@dataclass
class Update:
    """One optimizer step of one learner (or of several that step together), from named terms."""

    role: str | tuple[str, ...]
    terms: dict[str, Term] | Callable[[], dict[str, Term]]

    @property
    def roles(self) -> tuple[str, ...]:
        """The learners that step, as a tuple."""
        return (self.role,) if isinstance(self.role, str) else self.role

    def evaluate(self) -> dict[str, Term]:
        """The terms; computed now if they were given as a function (then a learner that is not due costs nothing)."""
        return self.terms() if callable(self.terms) else self.terms


@dataclass(frozen=True)
class Clock:
    """Where a run is. ``step`` counts global steps from 0; ``progress`` is step / total in [0, 1)."""

    step: int
    total: int
    epoch: int = 0
    phase: int = 0
    seed: int = 0
    steps_per_epoch: int = 0

    @property
    def progress(self) -> float:
        """Share of the training that is done, in [0, 1)."""
        return self.step / max(self.total, 1)

    def normal(self, ids: Tensor, shape: tuple[int, ...], name: str) -> Tensor:
        """Standard normal noise [len(ids), *shape] that depends on the sample, the step and ``name`` alone.

        It is the same however the batch is cut over micro-batches and ranks, and after a resume.
        """
        return normal(ids, shape, (self.seed, self.step, name))

    def uniform(self, ids: Tensor, shape: tuple[int, ...], name: str) -> Tensor:
        """Uniform noise in [0, 1), as :meth:`normal`."""
        return uniform(ids, shape, (self.seed, self.step, name))


@dataclass
class Parts:
    """What the recipe built, handed to :meth:`Method.setup`.

    Attributes:
        student: the network that the run delivers.
        teachers: by role (``teacher``, or the names in the recipe's ``teachers:``).
        data: shape, classes or vocabulary of the data; ``None`` for data-free runs.
        offers: what a part may ask for by name when a method builds one (``registry.build(..., offers=parts.offers)``).
        streams: the training sources by name, for the few methods that look at the data before they start.
        quiet: whether the run shows no progress.
        held_out: the validation sources by name, for the few that choose a number on them.
    """

    student: nn.Module
    teachers: dict[str, Teacher] = field(default_factory=dict)
    data: DataSpec | None = None
    offers: Mapping[str, Any] = field(default_factory=dict)
    streams: Mapping[str, Any] = field(default_factory=dict)
    quiet: bool = False
    held_out: Mapping[str, Any] = field(default_factory=dict)


class Method:
    """Base of every gradient-trained method.

    Hyper-parameters are the keyword-only arguments of ``__init__`` and are kept as attributes of the same name: the
    loop writes scheduled values there before each step, so read ``self.temperature`` where you need it. Keep what an
    update needs in a function of its own (``yield Update("student", self.terms(batch))``): what the generator's frame
    holds on to cannot be freed while gradients are accumulated.
    """

    needs: ClassVar[Mapping[str, set[str]]] = {}
    """What each teacher must give: ``{"teacher": {"logits"}}``. The role ``*`` means every teacher of the recipe."""
    couples_samples: ClassVar[bool] = False
    """True when the loss compares samples within a batch, so that a batch cannot be cut."""
    data_free: ClassVar[bool] = False
    """True when a step needs no data: the batch then holds only ``id``."""
    data_optional: ClassVar[bool] = False
    """True when a method that needs no data learns from it where the recipe has some."""
    truncated: ClassVar[bool] = False
    """True when the method can learn from a teacher's top k with their tail (``logits_topk``) as well."""
    sampled: ClassVar[bool] = False
    """True when the method can learn from tokens drawn from the teacher (``logits_sampled``) as well."""
    live: ClassVar[bool] = False
    """True when a step looks inside the teacher, so that stored outputs cannot stand for it."""
    same_view: ClassVar[bool] = True
    """False when teacher and student are meant to see unlike inputs, as two noise levels of one sample."""
    any_tokenizer: ClassVar[bool] = False
    """True when the method itself deals with teachers of other tokens than the data's: refused by default."""
    fixed: ClassVar[tuple[str, ...]] = ()
    """Floats that are read before the training starts, so that no schedule can move them."""
    dial: ClassVar[str | None] = None
    """The argument that ``limbeck compare --methods`` tunes; by default the first positive float."""
    streams: ClassVar[bool] = False
    """True when the method can learn from several named streams of data; its batch is then a map of batches."""
    controls: ClassVar[Mapping[str, dict[str, Any]]] = {"alone": {"method": {"name": "supervised"}, "teacher": None}}
    """Arms that a run trains beside the method, each a name and the overrides of the recipe that make it.

    ``same: True`` in such an arm's method block hands on the arguments that both methods have.
    """

    learners: dict[str, nn.Module]
    frozen: dict[str, nn.Module]
    teachers: dict[str, Teacher]

    def setup(self, parts: Parts) -> None:
        """Name what learns. The default: the student learns, the teachers do not."""
        self.learners = {"student": parts.student}
        self.teachers = dict(parts.teachers)
        self.frozen = {}

    @property
    def student(self) -> nn.Module:
        """The network that the run delivers, as the loop prepared it (on its device, wrapped for its strategy)."""
        return self.learners["student"]

    @property
    def teacher(self) -> Teacher:
        """The one teacher of a recipe that has a single one."""
        return self.teachers["teacher"]

    def updates(self, batch: Batch, clock: Clock) -> Iterator[Update]:
        """Yield the updates of one step on one (micro-)batch, in order."""
        raise NotImplementedError

    def before_step(self, clock: Clock) -> Collection[str]:
        """Called once before the updates of a step, as for choosing among all samples (:mod:`limbeck.vision.rounds`).

        Returns:
            roles of learners that start anew: with the weights that they began with, and a fresh optimizer.
        """
        return ()

    def pace(self, clock: Clock) -> float:
        """Where on their schedules the learning rates are, in [0, 1); a method of rounds may begin again with each."""
        return clock.progress

    def after_step(self, clock: Clock) -> None:
        """Called once after all updates of a step (EMA teachers, memory banks, clamping)."""

    def health(self, batch: Batch, clock: Clock) -> Mapping[str, Term]:
        """How the training goes, beside its loss: numbers by name, each the ``sum / count`` of a term.

        Called now and then, on every (micro-)batch after the updates of a step, without gradient and by all processes;
        sums and counts are added up over all of them. What it draws needs clock names of its own.
        """
        return {}

    def alarms(self) -> Sequence[Alarm]:
        """What is a bad sign in these numbers; asked at the end of the training, for its warnings."""
        return ()

    def says(self) -> Sequence[str]:
        """After :meth:`setup`, what the method took from the student and how it will train it, for the plan."""
        return ()

    def count(self, batch: Batch) -> dict[str, int | Tensor]:
        """Items of each unit in a batch, from the batch alone: what terms are divided by under accumulation."""
        counts: dict[str, int | Tensor] = {"samples": len(batch["id"])}
        if "label" in batch:
            counts["labelled"] = (batch["label"] != -100).sum()
        if "labels" in batch:
            counts["tokens"] = (batch["labels"][:, 1:] != -100).sum()
        return counts

    def state_dict(self) -> dict[str, Any]:
        """State beyond the learners' that a resumed run needs (memory banks, running statistics)."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""


def frozen(*modules: nn.Module) -> AbstractContextManager[None]:
    """Within the context the modules' parameters take no gradient, though gradients still pass through them.

    Use it around the forward of a critic or a peer inside another learner's update. Where nothing takes a gradient it
    does nothing: a sharded module would keep its gathered parameters frozen until a backward, which does not come.
    """
    return _Frozen(modules if torch.is_grad_enabled() else ())


class _Frozen(AbstractContextManager[None]):
    def __init__(self, modules: tuple[nn.Module, ...]) -> None:
        self._parameters = [p for m in modules for p in m.parameters() if p.requires_grad]

    def __enter__(self) -> None:
        for p in self._parameters:
            p.requires_grad_(False)

    def __exit__(self, *exc: object) -> None:
        for p in self._parameters:
            p.requires_grad_(True)
