"""Minitron: a student that was cut out of its teacher is retrained on the teacher's distributions alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.engine.method import Batch, Clock, Parts, Term, Update
from limbeck.engine.projectors import LinearProjector, Projectors
from limbeck.errors import UserError
from limbeck.language.base import TokenMethod
from limbeck.models.forward import forward
from limbeck.registry import register


@register("method")
class Minitron(TokenMethod):
    """``T^2 KL(p_T || q_T)`` per token, without the text's cross-entropy: how a pruned model gets back what it lost.

    Muralidharan et al. 2024 (arXiv 2407.14679), Sreenivas et al. 2024 (2408.11796). The student is one that was cut
    out of the teacher (``student: {name: pruned, ...}``). A teacher that never saw the data is trained on it a little
    before (``teacher: {..., finetune: true}``). Where many blocks went, hidden states are compared as well:
    ``intermediate * mean over blocks of (1 - cos(W h_s, h_t))``, each block of the student with the teacher's at the
    same share of the depth, ``W`` a linear map where the widths differ.

    Args:
        intermediate: weight of the hidden states; the authors have some only where depth is cut much.
    """

    needs = {"teacher": {"logits"}}
    truncated = True
    dial = "temperature"
    fixed = ("intermediate",)

    def __init__(self, *, intermediate: float = 0.0, **rest: Any) -> None:
        super().__init__(**rest)
        self.intermediate = intermediate

    def setup(self, parts: Parts) -> None:
        """Maps from the student's width to the teacher's learn beside it, where hidden states are compared.

        Raises:
            UserError: hidden states are asked for of models that do not say how deep and wide they are.
        """
        super().setup(parts)
        if self.intermediate == 0:
            return
        (layers, own), (above, width) = _size(parts.student, "student"), _size(self.teacher.module, "teacher")
        self.pairs = matched(layers, above)
        if own != width:
            shapes = parts.student.get_parameter(next(n for n, _ in parts.student.named_parameters()))
            few, many = (shapes.new_zeros(1, 1, size) for size in (own, width))
            self.learners["maps"] = Projectors({str(i): LinearProjector(few, many, bias=False) for i in self.pairs})

    def updates(self, batch: Batch, clock: Clock) -> Iterator[Update]:
        """One update of the student, and of the maps from its width to the teacher's."""
        yield Update(tuple(self.learners), self.terms(batch))

    def terms(self, batch: Batch) -> dict[str, Term]:
        """The term ``kd``, and ``hidden`` where hidden states are compared."""
        if self.intermediate == 0:
            logits, labels = self.next_tokens(batch)
            return {"kd": self.term(self.divergence(logits, self.teacher(batch)), labels)}
        own = forward(self.student, batch, output_hidden_states=True)
        theirs = self.teacher.compute(batch, output_hidden_states=True)
        labels = batch["labels"][:, 1:]
        apart = self.apart(own.hidden_states[1:], theirs.hidden_states[1:])[:, :-1]
        return {
            "kd": self.term(self.divergence(own.logits[:, :-1], theirs), labels),
            "hidden": self.term(apart, labels, self.intermediate),
        }

    def apart(self, own: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> Tensor:
        """``1 - cos`` of the states after matched blocks [B, T], their mean; each state [B, T, D]."""
        mapped = {str(i): own[i] for i in self.pairs}
        if "maps" in self.learners:
            mapped = self.learners["maps"](mapped)
        cosines = [F.cosine_similarity(mapped[str(i)], theirs[j], dim=-1) for i, j in self.pairs.items()]
        return 1 - sum(cosines[1:], cosines[0]) / len(cosines)


def matched(layers: int, above: int) -> dict[int, int]:
    """For each of the student's ``layers`` blocks, the teacher's (of ``above``) at the same share of the depth."""
    return {i: round((i + 1) * above / layers) - 1 for i in range(layers)}


def _size(module: nn.Module, role: str) -> tuple[int, int]:
    config = getattr(module, "config", None)
    layers, width = getattr(config, "num_hidden_layers", None), getattr(config, "hidden_size", None)
    if layers is None or width is None:
        raise UserError(f"minitron: the {role} does not say how deep and wide it is: leave intermediate at 0")
    return int(layers), int(width)
