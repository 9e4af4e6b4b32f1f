"""DistiLLM: skewed divergences, and student text that is used sparingly: only where it is due, and more than once."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from limbeck.data.base import Source
from limbeck.engine.devices import device_of, to_device
from limbeck.engine.method import Batch, Clock, Parts, Term
from limbeck.errors import UserError
from limbeck.language.losses import scored, token_divergence
from limbeck.language.replay import Replay
from limbeck.language.responses import Responses, responses_of
from limbeck.language.rollouts import Rollout, RolloutMethod, of_kind
from limbeck.losses import cross_entropy
from limbeck.metrics.base import evaluating
from limbeck.registry import register

ROWS = 64
"""Validation rows that are looked at at once."""


@register("method")
class DistiLLM(RolloutMethod):
    """``SKL(p || q)`` or ``SRKL`` per token on the data's rows and, as often as validation asks for it, the student's.

    Ko et al. 2024, "DistiLLM" (arXiv 2402.03898), sections 3.1 and 3.2: the share of steps with student text rises
    when the validation loss does; some of these steps write anew, the rest draw from what was written before.

    ``contrastive`` is Ko et al. 2025, "DistiLLM-2" (arXiv 2503.07067): ``(1 - balance) SKL`` on the teacher's text
    after each prompt and ``balance SRKL`` on the student's. ``skew`` and ``balance`` take schedules. The student writes
    when a prompt is due, where the paper writes for all prompts at the beginning of an epoch.

    Args:
        direction: the divergence of the first version.
        student_share: share of the steps with student text at the start.
        share_step: by how much it rises each time; 0 keeps it.
        tolerance: by how much the validation loss must have gone up, in nats per token, before it does.
        checks: how often in a training the validation loss is measured.
        fresh: of the student's steps, the share that write anew; by default it falls from 1 to 0 over the training.
        capacity: rows that are kept to be drawn again.
        contrastive: the second version.
        balance: of its student's part.
        text_seed: of the teacher's text in it, which is written once.
        new_tokens: how many tokens are written at most.
        prompt: tokens of a plain row that are the prompt; by default half of it.
        heat: sampling temperature.
        top_p: sample from the fewest tokens that have this much of the mass.
        keep: room for the teacher's text on disk, as "2 GB"; null holds it in memory.
        temperature: divides both logits; 1 suits language models.
        skew: share of the teacher in the mixture of SKL, and of the student in that of SRKL.
        reduction: mean over tokens, over sequences' means, or sum over a constant length.
        max_len: that constant; by default the number of predictions in a full row.
    """

    needs = {"teacher": {"logits"}}
    live = True
    same_view = False
    dial = "skew"

    def __init__(
        self,
        *,
        direction: Literal["skew_forward", "skew_reverse"] = "skew_forward",
        student_share: float = 0.0,
        share_step: float = 0.1,
        tolerance: float = 0.0,
        checks: int = 20,
        fresh: float | None = None,
        capacity: int = 1000,
        contrastive: bool = False,
        balance: float = 0.5,
        text_seed: int = 0,
        new_tokens: int = 64,
        prompt: int | None = None,
        heat: float = 1.0,
        top_p: float = 1.0,
        keep: str | None = "2 GB",
        temperature: float = 1.0,
        skew: float = 0.1,
        reduction: Literal["token_mean", "seq_mean", "max_len"] = "token_mean",
        max_len: int | None = None,
    ) -> None:
        super().__init__(
            direction=direction,
            student_share=student_share,
            new_tokens=new_tokens,
            prompt=prompt,
            heat=heat,
            top_p=top_p,
            temperature=temperature,
            skew=skew,
            reduction=reduction,
            max_len=max_len,
        )
        self.share_step = share_step
        self.tolerance = tolerance
        self.checks = checks
        self.fresh = fresh
        self.capacity = capacity
        self.contrastive = contrastive
        self.balance = balance
        self.text_seed = text_seed
        self.keep = keep

    def setup(self, parts: Parts) -> None:
        """Take the validation rows, or the teacher's text.

        Raises:
            UserError: there is no validation part, or a number is out of range.
        """
        super().setup(parts)
        if min(self.checks, self.capacity) < 1:
            raise UserError(f"checks and capacity must be at least 1, got {self.checks} and {self.capacity}")
        self.replay = Replay(self.capacity, self.context or 0)
        self.raised = 0.0
        self.seen: float | None = None
        self.validation: Source | None = None
        self.responses: Responses | None = None
        if self.contrastive:
            self.responses = responses_of(self, parts, heat=self.heat, seed=self.text_seed, keep=self.keep)
        elif self.share_step > 0:
            self.validation = getattr(parts.offers.get("data"), "val", None)
            if self.validation is None:
                says = "distillm raises its share of student text by the validation loss: give the data a validation"
                raise UserError(f"{says} part (val_size, val_fraction), or set share_step to 0")

    @property
    def share(self) -> float:
        """Share of the steps with student text, now."""
        return min(1.0, self.student_share + self.raised)

    def before_step(self, clock: Clock) -> tuple[str, ...]:
        """Measure the validation loss where it is time, and raise the share where it has gone up."""
        if self.responses is not None:
            self.responses.prepare(device_of(self.student))
        if self.validation is not None and clock.step % max(clock.total // self.checks, 1) == 0:
            loss = self.loss_on(self.validation)
            self.raised += self.share_step if self.seen is not None and loss > self.seen + self.tolerance else 0.0
            self.seen = loss
        return super().before_step(clock)

    def make(self, batch: Batch, clock: Clock) -> Rollout:
        """The data's rows, the student's, or some that it wrote before."""
        one = torch.zeros(1, dtype=torch.int64)
        if float(clock.uniform(one, (1,), "source")) >= self.share:
            return Rollout(batch, torch.zeros_like(batch["labels"], dtype=torch.float32), "data")
        fresh = 1 - clock.progress if self.fresh is None else self.fresh
        if len(self.replay) and float(clock.uniform(one, (1,), "fresh")) >= fresh:
            return self.replay.draw(batch, clock)
        rollout = self.written(self.student, batch, clock)
        self.replay.stage(rollout)
        return rollout

    def after_step(self, clock: Clock) -> None:
        """What was written in this step can be drawn from now on."""
        self.replay.commit(device_of(self.student))

    def terms(self, batch: Batch) -> dict[str, Term]:
        """The term ``kd``; of the second version ``teacher_text`` and ``student_text``."""
        if self.responses is None:
            rollout = self.rows(batch)
            logits, labels = self.next_tokens(rollout.batch)
            return {"kd": self.term(self.divergence(logits, self.teacher.compute(rollout.batch)), labels)}
        theirs, own = self.both(batch)
        return {
            "teacher_text": of_kind("teacher", self._skewed(theirs, "skew_forward", 1 - self.balance)),
            "student_text": of_kind("student", self._skewed(own, "skew_reverse", self.balance)),
        }

    def both(self, batch: Batch) -> tuple[Batch, Batch]:
        """The teacher's and the student's text after the batch's prompts."""
        assert self.responses is not None
        name = tuple(batch["id"].tolist())
        if name not in self._kept:
            self._kept[name] = self.written(self.student, batch, self._clock)
        return self.responses.rows(batch, torch.zeros_like(batch["id"])).batch, self._kept[name].batch

    def count(self, batch: Batch) -> dict[str, int | Tensor]:
        """What the rows of the step have; those of teacher and student apart where both are there."""
        if self.responses is None:
            return super().count(batch)
        theirs, own = self.both(batch)
        return {"samples": len(batch["id"]), **self.count_of(teacher=theirs, student=own)}

    def _skewed(self, rows: Batch, direction: Literal["skew_forward", "skew_reverse"], weight: float) -> Term:
        logits, labels = self.next_tokens(rows)
        own, theirs = self.alike(logits, self.teacher.compute(rows).logits[:, :-1])
        value = token_divergence(own, theirs, direction=direction, temperature=self.temperature, skew=self.skew)
        return self.term(value, labels, weight)

    @torch.no_grad()
    def loss_on(self, source: Source) -> float:
        """Cross-entropy per token on all rows of a source; every process computes it whole."""
        total, count = 0.0, 0
        with evaluating(self.student):
            for rows in torch.arange(len(source)).split(ROWS):
                batch = to_device(source.batch(rows), device_of(self.student))
                logits, labels = self.next_tokens(batch)
                total += float(cross_entropy(logits, labels).double().sum())
                count += int(scored(labels).sum())
        return total / max(count, 1)

    def state_dict(self) -> dict[str, Any]:
        """The share, the loss it was last compared with, and the rows that were written."""
        return {"raised": self.raised, "seen": self.seen, "replay": self.replay.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""
        self.raised, self.seen = state["raised"], state["seen"]
        self.replay.load_state_dict(state["replay"], device_of(self.student))
