"""Any registered losses, wired to modules of teacher and student by the recipe alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.engine.features import Taps
from limbeck.engine.gather import Together
from limbeck.engine.method import Batch, Clock, Method, Parts, Term, Update
from limbeck.engine.projectors import Projectors
from limbeck.errors import UserError
from limbeck.losses import IGNORE
from limbeck.models.forward import forward
from limbeck.registry import Block, LossBlock, build, find, register

WIRING = ("weight", "student", "teacher", "projector")


class Wire:
    """One loss of a composition: what it compares and how much it weighs.

    ``student`` and ``teacher`` are module paths; left out, the models' logits are compared.
    """

    def __init__(self, name: str, block: Block) -> None:
        part = find("loss", block.name)
        self.name = name
        self.function = part.load()
        self.couples_samples = bool(part.facts.get("couples_samples", False))
        self.handed = part.handed
        self.weight: float = block.args.get("weight", 1.0)
        self.student: str | None = block.args.get("student")
        self.teacher: str | None = block.args.get("teacher", self.student)
        self.projector: Block | None = block.args.get("projector")
        self.options = {k: v for k, v in block.args.items() if k not in WIRING}

    @property
    def asks_teacher(self) -> bool:
        """Whether the loss has a teacher's side."""
        return any(name.startswith("teacher") for name in self.handed)


@register("method")
class Compose(Method):
    """A weighted sum of named losses between chosen modules of student and teacher, without code.

    Where the data is text, losses on logits compare them at the tokens that count; losses on modules see every place.

    Args:
        terms: by name, each a loss with its own arguments and ``weight``, ``student`` and ``teacher`` (module paths),
            and a ``projector`` where the shapes differ.
    """

    def __init__(self, *, terms: dict[str, LossBlock]) -> None:
        if not terms:
            raise UserError("method compose needs at least one entry in terms")
        self.terms = {name: Wire(name, block) for name, block in terms.items()}
        self.couples_samples = any(wire.couples_samples for wire in self.terms.values())  # type: ignore[misc]

    def setup(self, parts: Parts) -> None:
        """Tap the modules and build the projectors, whose shapes are read from one forward of each model."""
        super().setup(parts)
        if any(w.asks_teacher for w in self.terms.values()) and "teacher" not in self.teachers:
            raise UserError("method compose: these terms compare with a teacher, but the recipe names none")
        self._student_taps = Taps(parts.student, {w.student for w in self.terms.values() if w.student})
        paths = {w.teacher for w in self.terms.values() if w.teacher and w.asks_teacher}
        self._teacher_taps = Taps(self.teacher.module, paths, detach=True) if paths else None
        maps: dict[str, nn.Module] = {}
        if any(w.projector for w in self.terms.values()):
            student, teacher = self._probe(parts)
            for name, wire in self.terms.items():
                if wire.projector:
                    shapes = student[wire.student or ""], teacher[wire.teacher or ""]
                    maps[name] = build("projector", wire.projector, *shapes)
        self.projectors = Projectors(maps)
        if any(True for _ in self.projectors.parameters()):
            self.learners["projectors"] = self.projectors

    @torch.no_grad()
    def _probe(self, parts: Parts) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        batch = next(iter(parts.streams.values())).batch(torch.arange(2))
        mode = parts.student.training
        seen = self._signals(parts.student.eval(), batch)
        parts.student.train(mode)
        return seen

    def updates(self, batch: Batch, clock: Clock) -> Iterator[Update]:
        """One update of the student and its projectors."""
        roles = ("student", "projectors") if "projectors" in self.learners else ("student",)
        yield Update(roles, self.evaluate(batch))

    def evaluate(self, batch: Batch) -> dict[str, Term]:
        """One term for each loss."""
        student, teacher = self._signals(self.student, batch)
        own = {name: student[wire.student or ""] for name, wire in self.terms.items()}
        # Through the learner, which is wrapped for several devices, and not through the module inside.
        own = self.learners.get("projectors", self.projectors)(own)
        return {name: self._term(wire, own[name], teacher, batch) for name, wire in self.terms.items()}

    def _signals(self, module: nn.Module, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What student and teacher give at each tapped path; the logits under the empty path."""
        student = {"": forward(module, batch).logits} | self._student_taps.pop()
        if "teacher" not in self.teachers:
            return student, {}
        # Tapped modules only run when the teacher is live: a cache holds its outputs, not its insides.
        call = self.teacher.compute if self._teacher_taps else self.teacher
        teacher = {"": call(batch).logits}
        return student, teacher | (self._teacher_taps.pop() if self._teacher_taps else {})

    def _term(self, wire: Wire, own: Tensor, teacher: dict[str, Tensor], batch: Batch) -> Term:
        text = "labels" in batch
        labels = batch["labels"][:, 1:].flatten() if text else batch.get("label")
        # Logits at one place of a text speak of the token at the next: each prediction is a row of its own.
        predicts = text and not wire.student
        handed: list[Any] = []
        for name in wire.handed:
            if name.startswith(("student", "teacher")):
                values = own if name.startswith("student") else teacher[wire.teacher or ""]
                handed.append(values[:, :-1].flatten(0, 1) if predicts else values)
            else:
                handed.append(labels)
        rows = Together(len(handed[0]), own.device) if wire.couples_samples else None
        values = wire.function(*(rows.all(v) for v in handed) if rows else handed, **wire.options)
        values = rows.own(values) if rows else values
        if labels is not None and (predicts or "labels" in wire.handed):
            return Term.of(values, labels != IGNORE, weight=wire.weight, unit="tokens" if text else "labelled")
        return Term.of(values, weight=wire.weight)
