"""Teacher hacking: whether a student that gets nearer to its teacher gets away from the truth that both learnt from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from limbeck.data.base import Source
from limbeck.engine.devices import device_of, to_device
from limbeck.engine.health import Alarm, Series
from limbeck.engine.method import Batch, Clock, Parts, Term
from limbeck.errors import UserError
from limbeck.language import hacking
from limbeck.language.losses import scored
from limbeck.language.responses import responses_of
from limbeck.language.rollouts import Rollout, RolloutMethod
from limbeck.registry import register

JUDGED = 128
"""Held-out prompts that the curves are measured on, at most."""


@register("method")
class TeacherHacking(RolloutMethod):
    """``D(p || q)`` per token on one of the paper's kinds of data, watched by the teacher's and the oracle's eye.

    Tiapkin et al. 2025, "On Teacher Hacking in Language Model Distillation" (arXiv 2502.02671). The rows are the
    student's (``student_share``), the teacher's, written anew (``teacher_share``), or else what the teacher wrote once:
    ``per_prompt`` responses to each of a share of the prompts. Along the training, on text that the student writes
    after held-out prompts, ``proxy`` is ``D`` from the teacher, and ``golden`` from the teacher called ``oracle``, if
    there is one: hacking is a golden curve that rises while the proxy falls.

    Args:
        student_share: how often the rows are the student's, written anew from its weights of the moment.
        per_prompt: stored responses to each prompt.
        prompt_share: share of the prompts that is learnt from.
        text_seed: of the stored responses; trainings of unlike seeds learn the same ones.
        keep: room for the stored responses on disk, as "2 GB"; null holds them in memory.
    """

    needs = {"teacher": {"logits"}}
    live = True
    same_view = False
    dial = "student_share"
    fixed = ("prompt_share", "heat", "top_p")

    def __init__(
        self,
        *,
        student_share: float = 0.0,
        per_prompt: int = 1,
        prompt_share: float = 1.0,
        text_seed: int = 0,
        keep: str | None = "2 GB",
        **rest: Any,
    ) -> None:
        super().__init__(student_share=student_share, **rest)
        self.per_prompt = per_prompt
        self.prompt_share = prompt_share
        self.text_seed = text_seed
        self.keep = keep

    def setup(self, parts: Parts) -> None:
        """Take the prompts to learn from and those to judge by.

        Raises:
            UserError: a number is out of range, or there are no prompts.
        """
        super().setup(parts)
        if not 0 < self.prompt_share <= 1 or self.per_prompt < 1:
            says = f"prompt_share {self.prompt_share} and per_prompt {self.per_prompt}"
            raise UserError(f"prompt_share must be in (0, 1] and per_prompt at least 1, got {says}")
        self.responses = responses_of(
            self, parts, heat=self.heat, per_prompt=self.per_prompt, seed=self.text_seed, keep=self.keep
        )
        self.prompts = math.ceil(self.prompt_share * len(self.responses.source))
        data = parts.offers.get("data")
        self.held_out: Source = getattr(data, "val", None) or getattr(data, "test", None) or self.responses.source

    def before_step(self, clock: Clock) -> tuple[str, ...]:
        """Have the stored responses written before the first step that may need them."""
        if self.student_share + self.teacher_share < 1:
            self.responses.prepare(device_of(self.student))
        return super().before_step(clock)

    def make(self, batch: Batch, clock: Clock) -> Rollout:
        """Rows from the source that it is the turn of, after the prompts that are learnt from."""
        source = self.source(clock)
        if source == "data":
            return self.responses.drawn(batch, clock, self._asked(batch))
        module = self.student if source == "student" else self.teacher.module
        return self.written(module, self._asked(batch), clock, source)

    def terms(self, batch: Batch) -> dict[str, Term]:
        """The term ``kd``."""
        rollout = self.rows(batch)
        logits, labels = self.next_tokens(rollout.batch)
        return {"kd": self.term(self.divergence(logits, self.teacher.compute(rollout.batch)), labels)}

    def _asked(self, batch: Batch) -> Batch:
        """The prompts in place of the batch's: fewer of them come round more often."""
        source = self.responses.source
        if self.prompts == len(source):
            return batch
        chance = self._clock.uniform(batch["id"], (1,), "prompt")[:, 0].double()
        which = (chance * self.prompts).long().clamp(max=self.prompts - 1)
        asked: Batch = to_device(source.batch(which.cpu(), int(batch["view"])), batch["id"].device)
        return asked

    # -- how it goes ---------------------------------------------------------------------------------------------------

    def health(self, batch: Batch, clock: Clock) -> Mapping[str, Term]:
        """``proxy`` and ``golden`` per token; the same prompts and the same noise each time."""
        rows = torch.arange(min(JUDGED, len(self.held_out)))
        prompts = to_device(self.held_out.batch(rows), device_of(self.student))
        rollout = self.written(self.student, prompts, Clock(0, 1, seed=clock.seed), name="judged")
        logits, labels = self.next_tokens(rollout.batch)
        kept = scored(labels)
        names = {"proxy": "teacher", "golden": "oracle"}
        return {
            name: Term.of(self.divergence(logits, self.teachers[role].compute(rollout.batch), role), kept)
            for name, role in names.items()
            if role in self.teachers
        }

    def alarms(self) -> Sequence[Alarm]:
        """Hacking as the oracle sees it, or else its sign in the proxy."""
        return (hacked,)


def hacked(found: Mapping[str, Series]) -> str | None:
    """What the curves say in one line; None is well."""
    golden, proxy = found.get("golden", ()), found.get("proxy", ())
    advice = "let student or teacher write anew, or give more responses to a prompt"
    if golden:
        least = hacking.rises(golden)
        if least is None:
            return None
        return f"the student hacks its teacher: it has moved away from the oracle since step {least}; {advice}"
    since = hacking.leaves(proxy)
    if since is None:
        return None
    return f"the divergence from the teacher has left its power law at step {since}: likely teacher hacking; {advice}"
