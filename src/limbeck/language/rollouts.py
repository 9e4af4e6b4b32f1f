"""Rows to learn from that are written inside the step: the data's prompts, continued by the student or its teacher."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from limbeck.engine.method import Batch, Clock, Parts, Term
from limbeck.errors import UserError
from limbeck.language.base import TokenMethod
from limbeck.language.generate import Written, write
from limbeck.losses import IGNORE
from limbeck.metrics.base import evaluating

Source = Literal["data", "teacher", "student"]


@dataclass(frozen=True)
class Rollout:
    """Rows of a prompt and what was written after it.

    Attributes:
        batch: as a text source gives it: ``labels`` are the written tokens, and -100 at the prompt and the padding.
        logprobs: float32 [B, T], the log-probability each written token was drawn with; 0 elsewhere.
        source: who wrote them.
    """

    batch: Batch
    logprobs: Tensor
    source: Source = "student"


class RolloutMethod(TokenMethod):
    """Base of the methods that learn from text written during training. A subclass repeats ``needs``.

    Each step takes its rows from one source: the student's own writing, the teacher's, or the data. A prompt is what
    stands before the first label of a row; in a block of plain text, its first ``prompt`` tokens.

    Args:
        student_share: how often the rows are the student's, written anew from its weights of the moment.
        teacher_share: how often they are the teacher's; the rest are the data's.
        new_tokens: how many tokens are written at most.
        prompt: tokens of a plain row that are the prompt, at most all but one; by default half of it.
        heat: sampling temperature.
        top_p: sample from the fewest tokens that have this much of the mass.
    """

    needs = {"teacher": {"logits"}}
    live = True

    def __init__(
        self,
        *,
        student_share: float = 0.5,
        teacher_share: float = 0.0,
        new_tokens: int = 64,
        prompt: int | None = None,
        heat: float = 1.0,
        top_p: float = 1.0,
        **rest: Any,
    ) -> None:
        super().__init__(**rest)
        self.student_share = student_share
        self.teacher_share = teacher_share
        self.new_tokens = new_tokens
        self.prompt = prompt
        self.heat = heat
        self.top_p = top_p

    def setup(self, parts: Parts) -> None:
        """Take what says where a text ends, beside what every token method takes.

        Raises:
            UserError: shares that are no shares, or nothing to continue.
        """
        super().setup(parts)
        if min(self.student_share, self.teacher_share) < 0 or self.student_share + self.teacher_share > 1 + 1e-9:
            says = f"student_share {self.student_share} and teacher_share {self.teacher_share}"
            raise UserError(f"{says} must be at least 0 and at most 1 together; the rest of the rows are the data's")
        if self.new_tokens < 1:
            raise UserError(f"new_tokens must be at least 1, got {self.new_tokens}")
        if self.prompt is not None and self.prompt < 1:
            raise UserError(f"prompt must be at least 1 token, got {self.prompt}")
        words = getattr(parts.streams.get("data"), "tokenizer", None)
        self.end = getattr(words, "eos_token_id", None)
        if self.end is None:
            self.end = getattr(getattr(parts.student, "config", None), "eos_token_id", None)
        self._clock = Clock(0, 1)
        self._kept: dict[tuple[int, ...], Rollout] = {}

    def before_step(self, clock: Clock) -> tuple[str, ...]:
        """Forget what was written for the last step."""
        self._clock = clock
        self._kept.clear()
        return ()

    def rows(self, batch: Batch) -> Rollout:
        """The rows of this step for a batch of prompts; written once, however often they are asked for."""
        name = tuple(batch["id"].tolist())
        if name not in self._kept:
            self._kept[name] = self.make(batch, self._clock)
        return self._kept[name]

    def make(self, batch: Batch, clock: Clock) -> Rollout:
        """Rows from the source that it is the turn of; all processes and pieces of a step take the same."""
        source = self.source(clock)
        if source == "data":
            return Rollout(batch, torch.zeros_like(batch["labels"], dtype=torch.float32), "data")
        module = self.student if source == "student" else self.teacher.module
        return self.edit(self.written(module, batch, clock, source), clock)

    def edit(self, rollout: Rollout, clock: Clock) -> Rollout:
        """What is learnt from in place of what was written; a method may correct it."""
        return rollout

    def source(self, clock: Clock) -> Source:
        """Whose turn it is."""
        drawn = float(clock.uniform(torch.zeros(1, dtype=torch.int64), (1,), "source"))
        if drawn < self.student_share:
            return "student"
        return "teacher" if drawn < self.student_share + self.teacher_share else "data"

    def written(
        self,
        modules: nn.Module | Mapping[nn.Module, float],
        batch: Batch,
        clock: Clock,
        source: Source = "student",
        name: str = "rollout",
    ) -> Rollout:
        """The batch's prompts, continued by a model in evaluation mode, or by a mixture of several."""
        prompts, mask = prompts_of(batch, self.prompt)
        context = self.context or batch["input_ids"].shape[1]
        with evaluating(self.student):
            found = write(
                modules,
                prompts,
                self.new_tokens,
                mask=mask,
                context=context,
                temperature=self.heat,
                top_p=self.top_p,
                ids=batch["id"],
                key=(clock.seed, clock.step, name),
                vocab_size=self.tokens,
                end=self.end,
            )
        return joined(prompts, mask, found, batch, context, source)

    def count(self, batch: Batch) -> dict[str, int | Tensor]:
        """What this step's rows have, which are known once they are written."""
        return super().count(self.rows(batch).batch)

    def count_of(self, **kinds: Batch) -> dict[str, int | Tensor]:
        """What rows of several kinds have, each unit under the name that :func:`of_kind` gives it."""
        return {
            f"{kind}_{unit}": n for kind, rows in kinds.items() for unit, n in TokenMethod.count(self, rows).items()
        }


def of_kind(kind: str, term: Term) -> Term:
    """A term of one kind of rows in a step that has several, each divided by its own count."""
    return replace(term, unit=f"{kind}_{term.unit}")


def prompts_of(batch: Batch, prompt: int | None = None) -> tuple[Tensor, Tensor]:
    """The prompts of rows, int64 [B, P], and which of their tokens are there, bool [B, P].

    A prompt is what stands before the first label. A row that has none before it is plain text, whose prompt is its
    first ``prompt`` tokens, at most all but one (by default half of what is there).
    """
    tokens, there, labels = batch["input_ids"], batch["attention_mask"].bool(), batch["labels"]
    given = (labels == IGNORE).long().cumprod(1).sum(1)
    length = there.sum(1)
    plain = (length - 1).clamp(max=prompt) if prompt is not None else length // 2
    size = torch.where(given > 0, given, plain).minimum(length).clamp(min=1)
    mask = there & (torch.arange(tokens.shape[1], device=tokens.device) < size[:, None])
    widest = int(size.max())
    return tokens[:, :widest], mask[:, :widest]


def joined(
    prompts: Tensor, mask: Tensor, found: Written, batch: Batch, context: int, source: Source = "student"
) -> Rollout:
    """Rows [B, T] of prompts and what was written after them; what does not fit into ``context`` is left out."""
    sizes, rows = mask.sum(1), len(prompts)
    device = prompts.device
    width = max(context, prompts.shape[1])
    input_ids = torch.zeros(rows, width + 1, dtype=torch.int64, device=device)
    labels = torch.full_like(input_ids, IGNORE)
    logprobs = torch.zeros(rows, width + 1, device=device)
    there = torch.zeros_like(input_ids)
    # The last column takes what is not there, or does not fit, and is cut off.
    own = torch.where(mask, torch.arange(prompts.shape[1], device=device).expand(rows, -1), width)
    after = sizes[:, None] + torch.arange(found.tokens.shape[1], device=device)
    after = torch.where(found.mask & (after < width), after, width)
    input_ids.scatter_(1, own, prompts).scatter_(1, after, found.tokens)
    there.scatter_(1, own, 1).scatter_(1, after, 1)
    labels.scatter_(1, after, found.tokens)
    logprobs.scatter_(1, after, found.logprobs.to(logprobs.dtype))
    # No longer than the longest row.
    kept = slice(0, min(width, int(there[:, :width].sum(1).max())))
    made = {"input_ids": input_ids[:, kept], "attention_mask": there[:, kept], "labels": labels[:, kept]}
    made["input_ids"] = made["input_ids"] * made["attention_mask"]
    return Rollout({**batch, **made}, logprobs[:, kept], source)
