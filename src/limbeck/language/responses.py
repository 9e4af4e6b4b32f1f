"""What a teacher writes after every training prompt, once: made when it is first asked for, kept on disk, found again.

Who writes is one function of rows and numbers (:data:`Write`). A network writes through :func:`sampled`; a teacher that
is no network here (an endpoint) brings a method ``write`` of its own, with the arguments of
:func:`limbeck.language.generate.write` from the prompts on, and is asked through that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from limbeck.data.base import Source
from limbeck.engine.cache import parse_bytes
from limbeck.engine.devices import to_device
from limbeck.engine.method import Batch, Clock, Parts
from limbeck.engine.pools import Keeping, Pool, Rows, make_pool
from limbeck.engine.teacher import Teacher
from limbeck.errors import UserError
from limbeck.language.generate import Written, write
from limbeck.language.rollouts import Rollout, RolloutMethod, joined, prompts_of
from limbeck.metrics.base import evaluating

CHUNK = 256
"""Texts that are written at once."""
ROWS = 512
"""Training rows whose ids are looked at at once."""

Write = Callable[[Batch, Tensor], Written]
"""From rows and the number of the response to each, int64 [B], to what is written after their prompts."""


@dataclass(frozen=True)
class Manner:
    """How text is written.

    Attributes:
        new_tokens: how many tokens at most.
        context: longest input of the teacher.
        prompt: tokens of a plain row that are its prompt; None for half of it.
        heat: sampling temperature; 0 takes the likeliest token.
        top_p: sample from the fewest tokens that have this much of the mass.
        vocab_size: never a token beyond these.
        end: the end-of-text token.
        seed: of the samples.
    """

    new_tokens: int
    context: int
    prompt: int | None = None
    heat: float = 1.0
    top_p: float = 1.0
    vocab_size: int | None = None
    end: int | None = None
    seed: int = 0


def sampled(teacher: Teacher, manner: Manner) -> Write:
    """Text drawn from the teacher; a response's draws depend on the seed, the row's id and its number alone."""

    def draw(batch: Batch, numbers: Tensor) -> Written:
        prompts, mask = prompts_of(batch, manner.prompt)
        own = getattr(teacher.module, "write", None)
        ask = own if own is not None else lambda *a, **k: write(teacher.module, *a, **k)
        # Rows of one call share a key, so the number of the response is a part of the id.
        ids = batch["id"] * (1 << 20) + numbers
        with evaluating(teacher.module), teacher.context():
            found: Written = ask(
                prompts,
                manner.new_tokens,
                context=manner.context,
                mask=mask,
                temperature=manner.heat,
                ids=ids,
                key=(manner.seed, "response"),
                vocab_size=manner.vocab_size,
                end=manner.end,
                top_p=manner.top_p,
            )
        return found

    return draw


class Responses:
    """The responses to all prompts of a training source, ``per_prompt`` to each.

    Args:
        source: the training rows.
        teacher: who writes; the texts are known by its content hash.
        write: how; see :data:`Write`.
        manner: the same in data, of which the texts on disk are known too.
        per_prompt: responses to each prompt.
        keep: how much room they may take on disk ("2 GB"); None holds them in memory.
        facts: what ``write`` depends on beside the teacher, the rows and the manner, as JSON.
        quiet: no progress.
    """

    def __init__(
        self,
        source: Source,
        teacher: Teacher,
        write: Write,
        manner: Manner,
        *,
        per_prompt: int = 1,
        keep: str | None = "2 GB",
        facts: Mapping[str, Any] | None = None,
        quiet: bool = False,
    ) -> None:
        self.source, self.teacher, self.write, self.manner = source, teacher, write, manner
        self.per_prompt, self.quiet = per_prompt, quiet
        known: dict[str, Any] = {"what": "responses", "teacher": teacher.hash, "rows": source.fingerprint}
        known |= {"manner": vars(manner), "per_prompt": per_prompt, **(facts or {})}
        about = {"teacher_name": type(teacher.module).__name__}
        self.keeping = None if keep is None else Keeping(known, parse_bytes(keep), about, "texts")
        self._pool: Pool | None = None
        self._device = torch.device("cpu")

    def prepare(self, device: torch.device) -> None:
        """Find or write all of them; all processes of a run call it together, and again costs nothing."""
        if self._pool is not None:
            return
        numbers = torch.arange(len(self.source))
        self._ids, self._places = torch.cat([self.source.batch(r)["id"] for r in numbers.split(ROWS)]).sort()
        self._ids, self._device = self._ids.to(device), device
        count = len(self.source) * self.per_prompt
        self._pool = make_pool(self._make, count, chunk=CHUNK, device=device, keeping=self.keeping, quiet=self.quiet)

    def rows(self, batch: Batch, numbers: Tensor) -> Rollout:
        """The batch's prompts and the responses of these numbers, int64 [B] below ``per_prompt``."""
        assert self._pool is not None, "call prepare() first"
        place = self._places.to(self._device)[torch.searchsorted(self._ids, batch["id"])]
        found = self._pool[place * self.per_prompt + numbers]
        written = Written(found["tokens"].long(), found["mask"], found["logprobs"])
        prompts, mask = prompts_of(batch, self.manner.prompt)
        return joined(prompts, mask, written, batch, self.manner.context, "teacher")

    def drawn(self, batch: Batch, clock: Clock, prompts: Batch | None = None) -> Rollout:
        """The prompts (by default the batch's), each with one of its responses, drawn by seed, step and row."""
        number = (clock.uniform(batch["id"], (1,), "response")[:, 0] * self.per_prompt).long()
        return self.rows(batch if prompts is None else prompts, number.clamp(max=self.per_prompt - 1))

    def _make(self, which: Tensor) -> Rows:
        rows = self.source.batch((which // self.per_prompt).cpu())
        found = self.write(to_device(rows, self._device), which % self.per_prompt)
        # All rows of a pool have one shape, however short the texts of a chunk are.
        width = self.manner.new_tokens
        return {
            "tokens": _wide(found.tokens, width).int(),
            "mask": _wide(found.mask, width),
            "logprobs": _wide(found.logprobs, width),
        }


def responses_of(
    method: RolloutMethod,
    parts: Parts,
    *,
    heat: float,
    per_prompt: int = 1,
    seed: int = 0,
    keep: str | None = "2 GB",
    write: Callable[[Manner], Write] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Responses:
    """The teacher's responses to the training prompts of a method that was set up, in the method's own manner.

    Args:
        method: says how many tokens after which prompts, and its nucleus.
        parts: as the method was given them.
        heat: sampling temperature; 0 takes the likeliest token.
        per_prompt: responses to each prompt.
        seed: of the samples.
        keep: room on disk; None holds them in memory.
        write: who writes in this manner; by default :func:`sampled`.
        facts: what that depends on beside.

    Raises:
        UserError: there are no training rows, or the room is no size.
    """
    source = next(iter(parts.streams.values()), None)
    if source is None:
        raise UserError("the teacher writes after training prompts, and there is no training data: add a 'data' block")
    manner = Manner(
        method.new_tokens,
        method.context or source.spec.shape[0],
        method.prompt,
        float(heat),
        float(method.top_p),
        method.tokens,
        method.end,
        seed,
    )
    writes = sampled(method.teacher, manner) if write is None else write(manner)
    return Responses(
        source,
        method.teacher,
        writes,
        manner,
        per_prompt=per_prompt,
        keep=keep,
        facts=facts,
        quiet=parts.quiet,
    )


def _wide(values: Tensor, width: int) -> Tensor:
    """Rows [B, N] filled up with zeros to a width."""
    filled = values.new_zeros(len(values), width)
    filled[:, : values.shape[1]] = values
    return filled
