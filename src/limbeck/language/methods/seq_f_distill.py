"""f-divergences between whole texts, taken apart into tokens: teacher's text, student's text, or half of each."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from limbeck.engine.devices import device_of
from limbeck.engine.method import Batch, Clock, Parts, Term
from limbeck.errors import UserError
from limbeck.language.losses import skew_forward_kl, skew_reverse_kl, token_divergence
from limbeck.language.responses import responses_of
from limbeck.language.rollouts import RolloutMethod, of_kind
from limbeck.losses import log_softmax
from limbeck.registry import register


def jsd_halves(log_p: Tensor, log_q: Tensor, beta: float = 0.5) -> tuple[Tensor, Tensor]:
    """``beta KL(p || m)`` and ``(1 - beta) KL(q || m)`` with ``m = beta p + (1 - beta) q``, [..., V] -> [...] each.

    Their sum is :func:`~limbeck.language.losses.generalised_jsd`.

    Raises:
        ValueError: the shapes differ or ``beta`` is not inside (0, 1).
    """
    if not 0 < beta < 1:
        raise ValueError(f"beta must be inside (0, 1), got {beta}: at its ends one half is nothing")
    return beta * skew_forward_kl(log_p, log_q, beta), (1 - beta) * skew_reverse_kl(log_p, log_q, 1 - beta)


@register("method")
class SeqFDistill(RolloutMethod):
    """A divergence between laws of texts as a sum over tokens, each term on text from the law that weighs it.

    Wen et al. 2023, "f-Divergence Minimization for Sequence-Level Knowledge Distillation" (arXiv 2307.15190), section
    3: ``kl`` on the teacher's text, ``reverse_kl`` on the student's, ``js`` with ``KL(p || m)`` on the teacher's and
    ``KL(q || m)`` on the student's, ``tvd`` with half of it on each. No gradient goes through the sampling. The teacher
    writes once, the student anew in each step; it had better be warmed up by ``word_kd`` before.

    Args:
        f: which divergence.
        beta: share of the teacher's half in ``js`` and ``tvd``.
        per_prompt: texts of the teacher after each prompt, one of which is drawn each time.
        text_seed: of these texts; trainings of unlike seeds learn the same ones.
        new_tokens: how many tokens are written at most.
        prompt: tokens of a plain row that are the prompt; by default half of it.
        heat: sampling temperature.
        top_p: sample from the fewest tokens that have this much of the mass.
        keep: room for the teacher's texts on disk, as "2 GB"; null holds them in memory.
        temperature: divides both logits; 1 suits language models.
        reduction: mean over tokens, over sequences' means, or sum over a constant length.
        max_len: that constant; by default the number of predictions in a full row.
    """

    needs = {"teacher": {"logits"}}
    live = True
    same_view = False
    dial = "beta"
    fixed = ("heat", "top_p")

    def __init__(
        self,
        *,
        f: Literal["kl", "reverse_kl", "js", "tvd"] = "js",
        beta: float = 0.5,
        per_prompt: int = 1,
        text_seed: int = 0,
        new_tokens: int = 64,
        prompt: int | None = None,
        heat: float = 1.0,
        top_p: float = 1.0,
        keep: str | None = "2 GB",
        temperature: float = 1.0,
        reduction: Literal["token_mean", "seq_mean", "max_len"] = "token_mean",
        max_len: int | None = None,
    ) -> None:
        super().__init__(
            student_share=1.0,
            beta=beta,
            new_tokens=new_tokens,
            prompt=prompt,
            heat=heat,
            top_p=top_p,
            temperature=temperature,
            reduction=reduction,
            max_len=max_len,
        )
        self.f = f
        self.per_prompt = per_prompt
        self.text_seed = text_seed
        self.keep = keep

    def setup(self, parts: Parts) -> None:
        """Have the teacher's texts ready to be written, where they are learnt from.

        Raises:
            UserError: a number is out of range, or there are no prompts.
        """
        super().setup(parts)
        if not 0 < self.beta < 1 or self.per_prompt < 1:
            raise UserError(f"beta must be inside (0, 1) and per_prompt at least 1: {self.beta}, {self.per_prompt}")
        self.responses = responses_of(
            self, parts, heat=self.heat, per_prompt=self.per_prompt, seed=self.text_seed, keep=self.keep
        )

    @property
    def kinds(self) -> tuple[str, ...]:
        """Whose text is learnt from."""
        return {"kl": ("teacher",), "reverse_kl": ("student",)}.get(self.f, ("teacher", "student"))

    def before_step(self, clock: Clock) -> tuple[str, ...]:
        """Have the teacher's texts written before the first step."""
        if "teacher" in self.kinds:
            self.responses.prepare(device_of(self.student))
        return super().before_step(clock)

    def texts(self, batch: Batch) -> dict[str, Batch]:
        """The rows that are learnt from, by who wrote them."""
        found: dict[str, Batch] = {}
        if "teacher" in self.kinds:
            found["teacher"] = self.responses.drawn(batch, self._clock).batch
        if "student" in self.kinds:
            found["student"] = self.rows(batch).batch
        return found

    def terms(self, batch: Batch) -> dict[str, Term]:
        """The terms ``teacher`` and ``student``, after who wrote the text; or one of them."""
        terms = {}
        for kind, rows in self.texts(batch).items():
            logits, labels = self.next_tokens(rows)
            own, theirs = self.alike(logits, self.teacher.compute(rows).logits[:, :-1])
            terms[kind] = of_kind(kind, self.term(self.half(own, theirs, kind), labels))
        return terms

    def half(self, own: Tensor, theirs: Tensor, kind: str) -> Tensor:
        """What a token of this kind of text adds, [B, T, V] -> [B, T]."""
        heat = self.temperature
        if self.f == "js":
            halves = jsd_halves(log_softmax(theirs, heat), log_softmax(own, heat), self.beta)
            return halves[0 if kind == "teacher" else 1] * heat**2
        if self.f == "tvd":
            share = self.beta if kind == "teacher" else 1 - self.beta
            return share * token_divergence(own, theirs, direction="tvd", temperature=heat)
        direction: Literal["forward", "reverse"] = "forward" if kind == "teacher" else "reverse"
        return token_divergence(own, theirs, direction=direction, temperature=heat)

    def count(self, batch: Batch) -> dict[str, int | Tensor]:
        """What the rows of each kind have."""
        return {"samples": len(batch["id"]), **self.count_of(**self.texts(batch))}
