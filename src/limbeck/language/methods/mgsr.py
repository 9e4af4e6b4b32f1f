"""Multi-granularity semantic revision: corrected student text, a clipped divergence, relations inside of words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from limbeck.engine.method import Batch, Clock, Parts, Term, Update
from limbeck.errors import UserError
from limbeck.language.generate import write
from limbeck.language.losses import forward_kl, scored, shift
from limbeck.language.rollouts import Rollout, RolloutMethod, of_kind
from limbeck.losses import IGNORE, cross_entropy, kl, log_softmax
from limbeck.metrics.base import evaluating
from limbeck.models.forward import forward
from limbeck.registry import register

SOFTNESS = 0.05
"""Of the gates of the clipped divergence, as mass of the teacher's distribution."""


class Quantiles(nn.Module):
    """From both distributions at a token to how much of the teacher's mass is left out at its top and kept in all."""

    def __init__(self, vocabulary: int, hidden: int) -> None:
        super().__init__()
        last = nn.Linear(hidden, 2)
        # At the start nearly everything is kept.
        nn.init.zeros_(last.weight)
        with torch.no_grad():
            last.bias.copy_(torch.tensor([-4.0, 4.0]))
        self.net = nn.Sequential(nn.Linear(2 * vocabulary, hidden), nn.ReLU(), last)

    def forward(self, p: Tensor, q: Tensor) -> Tensor:
        """``(l, u)`` with ``0 < l < u < 1``, from probabilities [..., V] to [..., 2]."""
        low, high = self.net(torch.cat([p, q], dim=-1)).sigmoid().unbind(-1)
        return torch.stack([low * high, high], dim=-1)


def clipped(log_p: Tensor, quantiles: Tensor, target: Tensor, softness: float = SOFTNESS) -> tuple[Tensor, Tensor]:
    """The teacher's distribution between two quantiles of its own mass, renormalised, and the share of it that is kept.

    Tokens are taken in order of their probability; one counts where the mass before it, with half of its own, lies
    between the quantiles, by a product of two sigmoids. The target always counts.

    Args:
        log_p: teacher's log-probabilities, [..., V].
        quantiles: lower and upper, [..., 2].
        target: int64 [...], the token that is always kept.
        softness: width of the gates.

    Returns:
        log-probabilities [..., V] and kept mass [...].
    """
    ordered, order = log_p.exp().sort(dim=-1, descending=True)
    middle = ordered.cumsum(-1) - ordered / 2
    low, high = quantiles[..., :1], quantiles[..., 1:]
    gate = torch.sigmoid((middle - low) / softness) * torch.sigmoid((high - middle) / softness)
    gate = torch.zeros_like(log_p).scatter(-1, order, gate.to(log_p.dtype))
    gate = gate.scatter(-1, target[..., None], torch.ones_like(gate[..., :1]))
    kept = (log_p.exp() * gate).sum(-1)
    return log_p + gate.clamp(min=1e-12).log() - kept.log()[..., None], kept


def relation(p: Tensor, q: Tensor, within: Tensor) -> Tensor:
    """``|p_i p_{i+1} - q_i q_{i+1}|^2`` of neighbouring places of a span, elementwise products, [B, T, V] -> [B, T-1].

    Args:
        p, q: probabilities.
        within: bool [B, T-1], whether a place and the next are in one span; 0 elsewhere.
    """
    squares = (p[:, :-1] * p[:, 1:] - q[:, :-1] * q[:, 1:]).square().sum(-1)
    return squares.masked_fill(~within, 0.0)


@register("method")
class MGSR(RolloutMethod):
    """``L_text + L_clipped + L_span`` on rows that the student wrote and its teacher corrected once.

    Liu et al. 2024, "Multi-Granularity Semantic Revision" (arXiv 2407.10068). *Sequence*: of the places where the
    teacher would have written another token, it takes back the one with the largest ``KL(p || q)``, writes its own
    likeliest there, and lets the student go on. *Token*: ``KL(p~ || q)``, ``p~`` the teacher between two quantiles of
    its mass that a small network finds for each token (gates over the ordered tokens; the paper's shape of it is not
    published). *Span*: squared difference of the products of neighbouring distributions inside of a word. The text's
    own loss is on the data's rows.

    Args:
        correct: have the teacher correct the student's text.
        clip_hidden: width of the network that finds the quantiles; 0 keeps the whole distribution.
        span_weight: of the relations inside of words.
        text_weight: of the cross-entropy with the data's own rows.
        student_share: how often the rows are the student's; otherwise they are the data's.
        new_tokens: how many tokens are written at most.
        prompt: tokens of a plain row that are the prompt; by default half of it.
        heat: sampling temperature.
        top_p: sample from the fewest tokens that have this much of the mass.
    """

    needs = {"teacher": {"logits"}}
    live = True
    dial = "span_weight"

    def __init__(
        self,
        *,
        correct: bool = True,
        clip_hidden: int = 64,
        span_weight: float = 1.0,
        text_weight: float = 1.0,
        student_share: float = 0.5,
        new_tokens: int = 64,
        prompt: int | None = None,
        heat: float = 1.0,
        top_p: float = 1.0,
    ) -> None:
        super().__init__(student_share=student_share, new_tokens=new_tokens, prompt=prompt, heat=heat, top_p=top_p)
        self.correct = correct
        self.clip_hidden = clip_hidden
        self.span_weight = span_weight
        self.text_weight = text_weight

    def setup(self, parts: Parts) -> None:
        """Make the network of the quantiles, and find where words begin.

        Raises:
            UserError: a width below 0, or the data does not say its vocabulary or tokenizer.
        """
        super().setup(parts)
        if self.clip_hidden < 0:
            raise UserError(f"clip_hidden must be 0 or more, got {self.clip_hidden}")
        words = getattr(next(iter(parts.streams.values()), None), "tokenizer", None)
        if words is None or self.tokens is None:
            raise UserError("mgsr finds words by the data's tokenizer, and this data has none")
        texts = [words.decode([i]) for i in range(self.tokens)]
        self.begins = torch.tensor([text[:1].isspace() or not text for text in texts])
        if self.clip_hidden:
            self.learners["clip"] = Quantiles(self.tokens, self.clip_hidden)

    def updates(self, batch: Batch, clock: Clock) -> Iterator[Update]:
        """One update of the student and of the network beside it."""
        yield Update(("student", "clip") if self.clip_hidden else "student", self.terms(batch))

    @torch.no_grad()
    def edit(self, rollout: Rollout, clock: Clock) -> Rollout:
        """The student's text with its worst token replaced by the teacher's, and written on from there."""
        if not self.correct or rollout.source != "student":
            return rollout
        with evaluating(self.student):
            own, labels = shift(forward(self.student, rollout.batch).logits, rollout.batch["labels"])
        own, theirs = self.alike(own, self.teacher.compute(rollout.batch).logits[:, :-1])
        place, better = worst_token(log_softmax(theirs), log_softmax(own), labels)
        return self._rewritten(rollout, place + 1, better, clock)

    def _rewritten(self, rollout: Rollout, place: Tensor, better: Tensor, clock: Clock) -> Rollout:
        """Rows with the token at ``place`` (0: none) set, and everything after it written anew by the student."""
        # The student writes where nothing is wrong too: a sharded one is only run by all processes together.
        batch, wrong = rollout.batch, place > 0
        tokens, width = batch["input_ids"], batch["input_ids"].shape[1]
        context = self.context or width
        at = torch.arange(width, device=tokens.device)
        keep = torch.where(wrong, place, width)[:, None]
        kept = (at < keep) & batch["attention_mask"].bool() | (at == place[:, None]) & wrong[:, None]
        start = torch.where((at == place[:, None]) & wrong[:, None], better[:, None], tokens)
        with evaluating(self.student):
            found = write(
                self.student,
                start,
                self.new_tokens,
                context=context,
                mask=kept,
                temperature=self.heat,
                top_p=self.top_p,
                ids=batch["id"],
                key=(clock.seed, clock.step, "correction"),
                vocab_size=self.tokens,
                end=self.end,
            )
        # A row gets no more tokens than it would have had, none after its end, and none where nothing is wrong.
        before = (batch["labels"] == IGNORE).long().cumprod(1).sum(1)
        length = kept.sum(1)
        room = (before + self.new_tokens - length)[:, None]
        number = torch.arange(found.tokens.shape[1], device=tokens.device)
        over = wrong & (better == self.end) if self.end is not None else torch.zeros_like(wrong)
        after = found.mask & (number < room) & wrong[:, None] & ~over[:, None]
        target = torch.where(after, length[:, None] + number, context).clamp(max=context)
        shape = (len(tokens), context + 1)
        ids, there = tokens.new_zeros(shape), tokens.new_zeros(shape)
        logprobs = rollout.logprobs.new_zeros(shape)
        ids[:, :width], there[:, :width] = start * kept, kept.long()
        logprobs[:, :width] = rollout.logprobs * kept
        ids.scatter_(1, target, found.tokens)
        there.scatter_(1, target, 1)
        logprobs.scatter_(1, target, found.logprobs)
        longest = slice(0, min(context, int(there[:, :context].sum(1).max())))
        ids, there = (ids * there)[:, longest], there[:, longest]
        written = there.bool() & (torch.arange(ids.shape[1], device=ids.device) >= before[:, None])
        made = {"input_ids": ids, "attention_mask": there, "labels": ids.masked_fill(~written, IGNORE)}
        return Rollout({**batch, **made}, logprobs[:, longest], rollout.source)

    def terms(self, batch: Batch) -> dict[str, Term]:
        """The terms ``kd``, ``span`` and ``text``; those whose weight is zero are left out."""
        rows = self.rows(batch).batch
        logits, labels = self.next_tokens(rows)
        own, theirs = self.alike(logits, self.teacher.compute(rows).logits[:, :-1])
        log_p, log_q = log_softmax(theirs), log_softmax(own)
        terms = {"kd": self.term(self._token_loss(log_p, log_q, labels)[0], labels)}
        if self.span_weight > 0:
            within = scored(labels[:, :-1]) & scored(labels[:, 1:]) & ~self._begins(labels[:, 1:])
            values = relation(log_p.exp(), log_q.exp(), within)
            terms["span"] = self.term(torch.cat([values, values[:, :1] * 0], 1), labels, self.span_weight)
        if self.text_weight > 0:
            logits, labels = self.next_tokens(batch)
            terms["text"] = of_kind("text", self.term(cross_entropy(logits, labels), labels, self.text_weight))
        return terms

    def count(self, batch: Batch) -> dict[str, int | Tensor]:
        """Adds what the data's own rows have."""
        return {**super().count(batch), **self.count_of(text=batch)}

    def health(self, batch: Batch, clock: Clock) -> Mapping[str, Term]:
        """``kept_mass``: how much of the teacher the clipped divergence looks at; near 0 it has collapsed."""
        rows = self.rows(batch).batch
        logits, labels = self.next_tokens(rows)
        own, theirs = self.alike(logits, self.teacher.compute(rows).logits[:, :-1])
        kept = self._token_loss(log_softmax(theirs), log_softmax(own), labels)[1]
        return {"kept_mass": Term.of(kept, scored(labels))}

    def _token_loss(self, log_p: Tensor, log_q: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """``KL(p~ || q)`` and the kept mass, [B, T]."""
        if not self.clip_hidden:
            return forward_kl(log_p, log_q), torch.ones_like(log_p[..., 0])
        quantiles = self.learners["clip"](log_p.exp(), log_q.exp().detach())
        log_c, kept = clipped(log_p, quantiles, labels.clamp(min=0))
        return kl(log_c, log_q), kept

    def _begins(self, tokens: Tensor) -> Tensor:
        if self.begins.device != tokens.device:
            self.begins = self.begins.to(tokens.device)
        return self.begins[tokens.clamp(min=0)]


def worst_token(log_p: Tensor, log_q: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """The place where a text is corrected, int64 [B] (-1 where the teacher agrees with all of it), and the token.

    Of the places whose token is not the teacher's likeliest, it is the one with the largest ``KL(p || q)``.

    Args:
        log_p, log_q: teacher's and student's log-probabilities, [B, T, V].
        tokens: int64 [B, T], what was written; negative where nothing was.
    """
    likeliest = log_p.argmax(-1)
    differs = scored(tokens) & (tokens != likeliest)
    value = forward_kl(log_p, log_q).masked_fill(~differs, -1.0)
    place = value.argmax(1)
    better = likeliest.gather(1, place[:, None])[:, 0]
    return place.masked_fill(~differs.any(1), -1), better
