"""Self-distillation for stacking: an encoder of many languages in front of a language model that knows one of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from limbeck.data import tokenizer as tokenizers
from limbeck.engine.method import Batch, Clock, Method, Parts, Term, Update
from limbeck.engine.teacher import Teacher
from limbeck.errors import UserError
from limbeck.language.models.stacked import PooledLM, StackedLM, mean_pooled
from limbeck.losses import label_loss, mse
from limbeck.models.forward import forward, unwrapped
from limbeck.registry import register


@register("method")
class StackingMTLLM(Method):
    """``MSE(pooled LM, pooled stack)`` of the same text in the tokens of each (Schmidt et al. 2024, arXiv 2406.12739).

    The stack is an encoder, a linear map and the language model's body; only the map and the body's low-rank adapters
    learn. Stage ``general`` regresses the mean last state of the language model; stage ``task`` that of the model which
    was tuned for a task, whose head the stack takes unchanged. Both read one language, and what they learn holds for
    each language of the encoder. The states are pooled, so the two tokenisations of a text need not agree.

    With a ``pooled_lm`` as student it makes the tuned model: labels teach the language model's adapters and a head.

    Teachers by role: ``teacher``, the language model; ``encoder``; and ``tuned``, in stage ``task``.

    Args:
        stage: what a stack learns, ``general`` first.
    """

    needs = {"teacher": {"hidden_states"}}
    live = True
    same_view = False
    any_tokenizer = True

    def __init__(self, *, stage: Literal["general", "task"] = "general") -> None:
        self.stage: Literal["general", "task"] = stage

    def setup(self, parts: Parts) -> None:
        """Assemble the student from what is frozen in it; what learns stays as it is, so that stages can follow.

        Raises:
            UserError: the student is no such network, a teacher is missing or has no tokenizer, or shapes differ.
        """
        super().setup(parts)
        student = unwrapped(parts.student)
        if not isinstance(student, PooledLM):
            raise UserError("mt_llm: it teaches a student 'stacked_lm', or makes the tuned model from a 'pooled_lm'")
        self.tunes = not isinstance(student, StackedLM)
        if not isinstance(student, StackedLM):
            student.begin(self.teacher.module)
            return
        needed = ("encoder", "tuned") if self.stage == "task" else ("encoder",)
        missing = [role for role in needed if role not in self.teachers]
        if missing:
            raise UserError(f"mt_llm: stage '{self.stage}' needs a teacher called '{missing[0]}'")
        student.assemble(self.teachers["encoder"].module, self.teacher.module)
        if self.stage == "task":
            _take_head(student.head, unwrapped(self.model.module))
        self.own = next((s.tokenizer for s in parts.streams.values() if hasattr(s, "tokenizer")), None)
        self.theirs = self.model.tokenizer
        if self.own is None or self.theirs is None:
            who = "the data" if self.own is None else self.model.name
            raise UserError(f"mt_llm: {who} has no tokenizer, which is needed to read a text in other tokens")

    @property
    def model(self) -> Teacher:
        """Whose states are regressed."""
        return self.teachers["tuned" if self.stage == "task" else "teacher"]

    def updates(self, batch: Batch, clock: Clock) -> Iterator[Update]:
        """One update of the student."""
        yield Update("student", self.terms(batch))

    def terms(self, batch: Batch) -> dict[str, Term]:
        """``{"mse"}``, the mean over the state for each text; ``{"ce"}`` where a model is tuned."""
        signals = forward(self.student, batch)
        if self.tunes:
            return {"ce": label_loss(signals.logits, batch)}
        return {"mse": Term.of(mse(signals.pooled, self.pooled(batch).to(signals.pooled.dtype)))}

    def pooled(self, batch: Batch) -> Tensor:
        """The mean last state that the language model, or the tuned one, has of each text, [B, H]."""
        read = retold(batch, self.own, self.theirs)
        if self.stage == "task":
            found: Tensor = self.model.compute(read).pooled
            return found
        states = self.model.compute(read, output_hidden_states=True).hidden_states[-1]
        return mean_pooled(states, read["attention_mask"])


def retold(batch: Batch, own: Any, theirs: Any) -> Batch:
    """The texts of token rows in other tokens: ``input_ids`` and ``attention_mask``, padded to the longest.

    Args:
        batch: ``input_ids`` and ``attention_mask`` [B, T].
        own: the tokenizer of the rows.
        theirs: the other one.
    """
    device = batch["input_ids"].device
    rows = [ids[mask.bool()].tolist() for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    texts = own.batch_decode(rows, skip_special_tokens=True)
    found = [torch.tensor(ids, dtype=torch.int64) for ids in tokenizers.encode(theirs, texts)]
    pad = theirs.pad_token_id or 0
    tokens = nn.utils.rnn.pad_sequence(found, batch_first=True, padding_value=pad)
    lengths = torch.tensor([len(ids) for ids in found])
    mask = (torch.arange(tokens.shape[1]) < lengths[:, None]).long()
    return {"input_ids": tokens.to(device), "attention_mask": mask.to(device)}


@torch.no_grad()
def _take_head(own: nn.Linear, tuned: nn.Module) -> None:
    head = getattr(tuned, "head", None)
    if not isinstance(head, nn.Linear) or head.weight.shape != own.weight.shape:
        raise UserError(f"mt_llm: the tuned model has no head {list(own.weight.shape)}: make it a pooled_lm")
    own.load_state_dict(head.state_dict())
