"""What methods for encoders of text share: hidden states of both networks, and positions that are there."""

from __future__ import annotations

from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.engine.method import Batch, Clock, Method, Parts, Term, Update
from limbeck.errors import UserError
from limbeck.models.forward import Signals, forward, unwrapped


class EncoderMethod(Method):
    """Base of the methods that look at hidden states [B, T, H]. A subclass repeats ``needs`` and ``live``."""

    needs = {"teacher": {"logits", "hidden_states"}}
    live = True

    def setup(self, parts: Parts) -> None:
        """The student learns; data without tokens is refused.

        Raises:
            UserError: the data is no text.
        """
        super().setup(parts)
        if parts.data is not None and parts.data.vocab_size is None:
            name = type(self).__module__.rsplit(".", 1)[-1]
            raise UserError(f"method '{name}' learns from text; the data's task is {parts.data.task} without tokens")

    def updates(self, batch: Batch, clock: Clock) -> Iterator[Update]:
        """One update of the student."""
        yield Update("student", self.terms(batch))

    def terms(self, batch: Batch) -> dict[str, Term]:
        """The named losses of a batch."""
        raise NotImplementedError

    def both(self, batch: Batch) -> tuple[Signals, Signals]:
        """Signals of student and teacher, with ``hidden_states``: of the embedding and of each layer, [B, T, H]."""
        return forward(self.student, batch, output_hidden_states=True), self.teacher(batch, output_hidden_states=True)

    def count(self, batch: Batch) -> dict[str, int | Tensor]:
        """Adds the positions that are not padding."""
        return {**super().count(batch), "positions": batch["attention_mask"].sum()}


def positions_term(values: Tensor, batch: Batch, weight: float = 1.0) -> Term:
    """The term of values per position [B, T], where there is no padding."""
    return Term.of(values, batch["attention_mask"].bool(), weight=weight, unit="positions")


def hidden_term(values: Tensor, batch: Batch, weight: float = 1.0) -> Term:
    """The term of values per position [B, T], at the hidden tokens."""
    return Term.of(values, batch["label"] != -100, weight=weight, unit="labelled")


def cosine_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """``1 - cos`` of two states, [..., H] -> [...]."""
    return 1 - F.cosine_similarity(student.float(), teacher.float(), dim=-1)


def sizes(module: nn.Module) -> tuple[int, int, int]:
    """Width, layers and heads of a transformers encoder, by its configuration.

    Raises:
        UserError: it has no configuration that says so.
    """
    config = getattr(unwrapped(module), "config", None)
    found = [getattr(config, name, None) for name in ("hidden_size", "num_hidden_layers", "num_attention_heads")]
    if None in found:
        raise UserError(f"{type(unwrapped(module)).__name__} does not say its width, layers and heads in a config")
    width, layers, heads = (int(n) for n in found if n is not None)
    return width, layers, heads
