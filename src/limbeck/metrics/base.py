"""What a metric is handed and what it gives, and running several of them over one pass of the model.

A metric is a function ``(evaluation, *, ...) -> Scores`` marked ``@register("metric", ...)``; what it says there is
described in :mod:`limbeck.metrics.facts`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from limbeck import registry
from limbeck.data.base import Batch, DataSpec, Source
from limbeck.errors import UserError
from limbeck.metrics.facts import default_metrics, directions, judges, label_of, needs_teacher
from limbeck.models.forward import Signals, forward
from limbeck.registry import Block

if TYPE_CHECKING:
    from limbeck.engine.teacher import Teacher

__all__ = ["Evaluation", "Scores", "directions", "evaluate", "evaluating", "label_of", "on_device"]

IGNORED = -100
"""The label of a sample that has none."""


@dataclass
class Scores:
    """What a metric found.

    Attributes:
        values: one number per key; each key's direction is known statically.
        details: JSON-able extras for the report: curves, matrices, small point clouds.
    """

    values: dict[str, float]
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(eq=False)
class Evaluation:
    """A model to be judged, on what, beside which teacher.

    Attributes:
        model: the delivered module, on ``device``.
        spec: facts about the data.
        source: the test split.
        train: the training split, for the few metrics that look at it.
        teacher: what the model learned from, on ``device``; ``None`` when judging the teacher itself.
        batch_size: samples per forward.
        device: where batches are moved to.
        seed: for the metrics that sample.
        name: what to call the model in errors; by default its class.
    """

    model: nn.Module
    spec: DataSpec | None = None
    source: Source | None = None
    train: Source | None = None
    teacher: Teacher | None = None
    batch_size: int = 256
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    seed: int = 0
    name: str = ""

    @property
    def title(self) -> str:
        """The model's name for a message."""
        return f"model '{self.name or type(self.model).__name__}'"

    @property
    def test(self) -> Source:
        """The test split.

        Raises:
            UserError: there is none, or it is empty.
        """
        if self.source is None:
            raise UserError("there is no test split to judge on: give the data one, or leave out 'evaluate'")
        if len(self.source) == 0:
            raise UserError("the test split is empty: it needs at least one sample")
        return self.source

    def batches(self, source: Source | None = None) -> Iterator[Batch]:
        """All samples of the test split (or of ``source``) in order, in batches on ``device``, not augmented anew."""
        chosen = self.test if source is None else source
        for rows in torch.arange(len(chosen)).split(self.batch_size):
            yield on_device(chosen.batch(rows), self.device)

    def run(self, batch: Batch) -> Signals:
        """What the model gives for a batch, in eval mode, without gradients."""
        with torch.inference_mode(), evaluating(self.model):
            return forward(self.model, batch)

    def run_teacher(self, batch: Batch) -> Signals:
        """What the teacher gives for a batch, without gradients.

        Under ``no_grad`` and not ``inference_mode``: a teacher may keep what it computed, and a later training step
        could not use an inference tensor.

        Raises:
            UserError: there is no teacher.
        """
        if self.teacher is None:
            raise UserError("this metric compares with a teacher, and there is none here")
        with torch.no_grad():
            return self.teacher(batch)

    @property
    def logits(self) -> Tensor:
        """The model's logits over the test split: float32 [N, K] on the CPU, computed once.

        Raises:
            UserError: no such logits, or some of them are not finite.
        """
        return self._outputs[0]

    @property
    def labels(self) -> Tensor:
        """The labels of the test split: int64 [N] on the CPU, -100 where there is none."""
        return self._outputs[1]

    @cached_property
    def teacher_logits(self) -> Tensor:
        """The teacher's logits over the test split: float32 [N, K] on the CPU, computed once.

        Raises:
            UserError: no teacher, no such logits, or some of them are not finite.
        """
        name = f"teacher '{getattr(self.teacher, 'name', '')}'"
        return self._collect(self.run_teacher, name)[0]

    @property
    def labelled(self) -> Tensor:
        """Which samples have a label: bool [N].

        Raises:
            UserError: none has.
        """
        mask = self.labels != IGNORED
        if not mask.any():
            raise UserError("the test split has no labelled sample, so nothing can be judged against labels")
        return mask

    @cached_property
    def _outputs(self) -> tuple[Tensor, Tensor]:
        logits, labels = self._collect(self.run, self.title)
        known = labels[labels != IGNORED]
        if known.numel() and not 0 <= int(known.min()) <= int(known.max()) < logits.shape[1]:
            span = f"{int(known.min())} to {int(known.max())}"
            raise UserError(f"the test labels go from {span}, but {self.title} has {logits.shape[1]} classes")
        return logits, labels

    def _collect(self, run: Callable[[Batch], Signals], name: str) -> tuple[Tensor, Tensor]:
        logits, labels = [], []
        for batch in self.batches():
            logits.append(_checked_logits(run(batch), name))
            labels.append(_checked_labels(batch))
        return torch.cat(logits), torch.cat(labels)


def evaluate(evaluation: Evaluation, blocks: Sequence[Block | str] | None = None) -> Scores:
    """Run metrics and merge what they found.

    Args:
        evaluation: what is judged.
        blocks: the metrics; ``None`` takes the defaults of ``evaluation.spec.task``. Those that compare with a teacher
            are left out when there is none, so that one list serves every arm of a run.

    Raises:
        UserError: a metric cannot judge this task, or two metrics give the same value.
    """
    merged = Scores({})
    owners: dict[str, str] = {}
    for block in _chosen(evaluation, blocks):
        scores = registry.build("metric", block, evaluation)
        if not isinstance(scores, Scores):
            raise TypeError(f"metric '{block.name}' returned {type(scores).__name__}, expected Scores")
        _claim(owners, block.name, [*scores.values, *(f"details.{key}" for key in scores.details)])
        merged.values.update({key: float(value) for key, value in scores.values.items()})
        merged.details.update(scores.details)
    return merged


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Within the context the module is in eval mode; afterwards each submodule has the mode it had."""
    training = [m for m in module.modules() if m.training]
    for m in training:
        m.training = False
    try:
        yield
    finally:
        for m in training:
            m.training = True


def on_device(value: Any, device: torch.device) -> Any:
    """Maps, tuples and lists of tensors on a device; anything else as it is."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, Mapping):
        return {key: on_device(item, device) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(on_device(item, device) for item in value)
    return value


def _chosen(evaluation: Evaluation, blocks: Sequence[Block | str] | None) -> list[Block]:
    task = evaluation.spec.task if evaluation.spec is not None else None
    if blocks is None:
        if task is None:
            raise UserError("the data does not say its task: name the metrics under 'evaluate'")
        found = default_metrics(task, teacher=evaluation.teacher is not None)
        if not found:
            raise UserError(f"what judges {task} depends on the teacher and the data: name the metrics")
        return found
    chosen = []
    for block in (Block(b) if isinstance(b, str) else b for b in blocks):
        part = registry.find("metric", block.name)
        if task is not None and not judges(part, task):
            tasks = " or ".join(sorted(part.facts["task"]))
            raise UserError(f"metric '{block.name}' judges {tasks}, and this data is for {task}")
        if evaluation.teacher is not None or not needs_teacher(part):
            chosen.append(block)
    return chosen


def _claim(owners: dict[str, str], name: str, keys: list[str]) -> None:
    for key in keys:
        if key in owners:
            raise UserError(f"metrics '{owners[key]}' and '{name}' both give '{key}': leave one of them out")
        owners[key] = name


def _checked_logits(signals: Signals, name: str) -> Tensor:
    if "logits" not in signals:
        there = ", ".join(sorted(signals)) or "nothing"
        raise UserError(f"{name} gives no logits to judge; it gives {there}")
    logits: Tensor = signals.logits
    if logits.ndim != 2:
        raise UserError(f"{name} gives logits of shape {list(logits.shape)}; a classifier's are [batch, classes]")
    bad = int((~torch.isfinite(logits)).any(dim=1).sum())
    if bad:
        raise UserError(f"{name} gives NaN or infinite logits for {bad} of {len(logits)} samples of a test batch")
    return logits.float().cpu()


def _checked_labels(batch: Batch) -> Tensor:
    if "label" not in batch:
        return torch.full((len(batch["id"]),), IGNORED)
    label: Tensor = batch["label"]
    if label.ndim != 1 or label.is_floating_point():
        raise UserError(f"test labels must be class numbers [batch], not {label.dtype} of shape {list(label.shape)}")
    return label.long().cpu()
