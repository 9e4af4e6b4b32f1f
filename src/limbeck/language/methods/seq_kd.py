"""Sequence-level distillation: learn the texts that the teacher writes."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from limbeck.engine.devices import device_of
from limbeck.engine.method import Batch, Clock, Parts, Term
from limbeck.errors import UserError
from limbeck.language import beams
from limbeck.language.generate import Written
from limbeck.language.responses import Manner, Write, responses_of
from limbeck.language.rollouts import Rollout, RolloutMethod, prompts_of
from limbeck.losses import cross_entropy
from limbeck.metrics.base import evaluating
from limbeck.registry import register


@register("method")
class SeqKD(RolloutMethod):
    """``CE(y, q)`` per token, ``y`` what the teacher wrote after each training prompt, once.

    Kim and Rush 2016, "Sequence-Level Knowledge Distillation" (arXiv 1606.07947). Greedy and sampled text need no more
    of a teacher than its writing; beams need its network.

    Args:
        search: how the teacher writes: the best of several beams, the likeliest token each time, or samples.
        beams: how many are followed.
        length_penalty: beams are ranked by log-probability / length ** this.
        nearest: of the beams, take the one nearest to the data's text by BLEU (the paper's "Seq-Inter").
        per_prompt: samples to each prompt, one of which is drawn each time; the other searches have one text.
        text_seed: of the samples; trainings of unlike seeds learn the same text.
        new_tokens: how many tokens are written at most.
        prompt: tokens of a plain row that are the prompt; by default half of it.
        heat: sampling temperature.
        top_p: sample from the fewest tokens that have this much of the mass.
        keep: room for the texts on disk, as "2 GB"; null holds them in memory.
        reduction: mean over tokens, over sequences' means, or sum over a constant length.
        max_len: that constant; by default the number of predictions in a full row.
    """

    needs = {"teacher": {"text"}}
    live = True
    same_view = False
    dial = "heat"
    fixed = ("heat", "top_p", "length_penalty")

    def __init__(
        self,
        *,
        search: Literal["beam", "greedy", "sample"] = "beam",
        beams: int = 5,
        length_penalty: float = 1.0,
        nearest: bool = False,
        per_prompt: int = 1,
        text_seed: int = 0,
        new_tokens: int = 64,
        prompt: int | None = None,
        heat: float = 1.0,
        top_p: float = 1.0,
        keep: str | None = "2 GB",
        reduction: Literal["token_mean", "seq_mean", "max_len"] = "token_mean",
        max_len: int | None = None,
    ) -> None:
        super().__init__(
            student_share=0.0,
            teacher_share=1.0,
            new_tokens=new_tokens,
            prompt=prompt,
            heat=heat,
            top_p=top_p,
            reduction=reduction,
            max_len=max_len,
        )
        self.search = search
        self.beams = beams
        self.length_penalty = length_penalty
        self.nearest = nearest
        self.per_prompt = per_prompt
        self.text_seed = text_seed
        self.keep = keep

    def setup(self, parts: Parts) -> None:
        """Settle how the teacher writes.

        Raises:
            UserError: there are no prompts, or this teacher or search cannot do it.
        """
        super().setup(parts)
        if min(self.beams, self.per_prompt) < 1:
            raise UserError(f"beams and per_prompt must be at least 1, got {self.beams} and {self.per_prompt}")
        if self.search == "beam" and "logits" not in self.teacher.gives:
            raise UserError("beams need the teacher's logits; with a teacher of text alone search is greedy or sample")
        beam = self.search == "beam"
        facts = {"beams": self.beams, "length_penalty": float(self.length_penalty), "nearest": self.nearest}
        self.responses = responses_of(
            self,
            parts,
            heat=self.heat if self.search == "sample" else 0.0,
            per_prompt=self.per_prompt if self.search == "sample" else 1,
            seed=self.text_seed,
            keep=self.keep,
            write=self._beam if beam else None,
            facts=facts if beam else {},
        )

    def before_step(self, clock: Clock) -> tuple[str, ...]:
        """Have the texts written before the first step."""
        self.responses.prepare(device_of(self.student))
        return super().before_step(clock)

    def make(self, batch: Batch, clock: Clock) -> Rollout:
        """The teacher's text after the batch's prompts."""
        return self.responses.drawn(batch, clock)

    def terms(self, batch: Batch) -> dict[str, Term]:
        """The term ``text``."""
        logits, labels = self.next_tokens(self.rows(batch).batch)
        return {"text": self.term(cross_entropy(logits, labels), labels)}

    def _beam(self, manner: Manner) -> Write:
        def best(batch: Batch, _: Tensor) -> Written:
            prompts, mask = prompts_of(batch, manner.prompt)
            with evaluating(self.teacher.module), self.teacher.context():
                found = beams.search(
                    self.teacher.module,
                    prompts,
                    manner.new_tokens,
                    beams=self.beams,
                    context=manner.context,
                    mask=mask,
                    vocab_size=manner.vocab_size,
                    end=manner.end,
                    length_penalty=self.length_penalty,
                )
            taken = self._nearest(batch, *found[:2]) if self.nearest else torch.zeros_like(batch["id"])
            rows = torch.arange(len(taken), device=taken.device)
            return Written(*(each[rows, taken] for each in found))

        return best

    def _nearest(self, batch: Batch, tokens: Tensor, kept: Tensor) -> Tensor:
        """For each row the beam that is most like the row's own text, int64 [B]."""
        mask = prompts_of(batch, self.prompt)[1]
        chosen = []
        for row in range(len(tokens)):
            own, there = batch["input_ids"][row], batch["attention_mask"][row].bool()
            gold = own[there][int(mask[row].sum()) :].tolist()
            scores = [beams.bleu(t[k].tolist(), gold) for t, k in zip(tokens[row], kept[row], strict=True)]
            chosen.append(max(range(len(scores)), key=scores.__getitem__))
        return torch.tensor(chosen, device=tokens.device)
