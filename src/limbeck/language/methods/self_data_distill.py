"""Self-data distillation: a pruned model is fine-tuned on the answers as its unpruned self would put them."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from limbeck.data import tokenizer as tokenizers
from limbeck.engine.method import Batch, Clock, Parts, Term
from limbeck.errors import UserError
from limbeck.language.base import TokenMethod
from limbeck.language.generate import write
from limbeck.language.metrics.texts import final_number
from limbeck.losses import IGNORE, cross_entropy
from limbeck.registry import register

TEMPLATE = "{prompt}\n\nA good answer: {answer}\n\nAnswer in your own words, to the same result.\n\n{prompt}"


@register("method")
class SelfDataDistill(TokenMethod):
    """``-log q(y~ | x)`` per token, where ``y~`` is the reference answer ``y`` as the unpruned model rewrites it.

    Thangarasa et al. 2024, "Self-Data Distillation for Recovering Quality in Pruned Large Language Models" (arXiv
    2410.09982). The unpruned model is the teacher, and sees the reference in its prompt; its answer is kept if it is
    finished, fits and agrees with the reference, else the reference itself is learnt. Every row is rewritten once and
    stays so over the epochs. The student is cut out of the teacher (``student: {name: pruned, depth: angular,
    layers: ...}``), inside ``lora`` where only adapters shall learn.

    Args:
        template: what the unpruned model continues, with ``{prompt}`` and ``{answer}`` in it. Without the latter it
            writes on its own, which is plain self-training.
        agree: when a rewriting is kept: its last ``number`` is the reference's, the whole reference stands in it
            (``text``), or ``any``.
        new_tokens: how many tokens are written at most; by default what a row has room for.
        heat: sampling temperature; 0 takes the likeliest token each time.
        top_p: sample from the fewest tokens that have this much of the mass.
        reduction: mean over tokens, over sequences' means, or sum over a constant length.
        max_len: that constant; by default the number of predictions in a full row.
    """

    needs = {"teacher": {"logits"}}
    same_view = False
    live = True
    same_view = False
    dial = "heat"

    def __init__(
        self,
        *,
        template: str = TEMPLATE,
        agree: Literal["number", "text", "any"] = "number",
        new_tokens: int | None = None,
        heat: float = 0.0,
        top_p: float = 1.0,
        reduction: Literal["token_mean", "seq_mean", "max_len"] = "token_mean",
        max_len: int | None = None,
    ) -> None:
        super().__init__(reduction=reduction, max_len=max_len)
        self.template = template
        self.agree: Any = agree
        self.new_tokens = new_tokens
        self.heat = heat
        self.top_p = top_p

    def setup(self, parts: Parts) -> None:
        """Take the tokenizer that rows are read and written with.

        Raises:
            UserError: the data has no tokenizer, or the template has no place for the prompt.
        """
        super().setup(parts)
        self.words: Any = getattr(next(iter(parts.streams.values()), None), "tokenizer", None)
        if self.words is None or self.words.eos_token_id is None:
            raise UserError("self_data_distill reads prompts and writes answers: give data whose tokenizer ends texts")
        if "{prompt}" not in self.template:
            raise UserError("self_data_distill: the template must have {prompt} in it, and {answer} for the reference")
        self._rewritten: dict[int, tuple[list[int], bool]] = {}

    def terms(self, batch: Batch) -> dict[str, Term]:
        """``{"ce": cross-entropy with the rewritten answers}``."""
        logits, labels = self.next_tokens(self.rows(batch))
        return {"ce": self.term(cross_entropy(logits, labels), labels)}

    def count(self, batch: Batch) -> dict[str, int | Tensor]:
        """What the rewritten rows have."""
        return super().count(self.rows(batch))

    def health(self, batch: Batch, clock: Clock) -> dict[str, Term]:
        """The share of answers that are the unpruned model's own."""
        self.rows(batch)
        kept = [float(self._rewritten[i][1]) for i in batch["id"].tolist()]
        return {"rewritten": Term.of(torch.tensor(kept, device=batch["id"].device))}

    def rows(self, batch: Batch) -> Batch:
        """The batch with the rewritten answers in place of its own; each is written when it is first met."""
        names = batch["id"].tolist()
        new = [i for i, name in enumerate(names) if name not in self._rewritten]
        if new:
            self._rewrite({k: v[new] for k, v in batch.items() if isinstance(v, Tensor)})
        prompts = [
            row[: _start(labels)].tolist() for row, labels in zip(batch["input_ids"], batch["labels"], strict=True)
        ]
        return self._joined(batch, prompts, [self._rewritten[name][0] for name in names])

    # -- writing -------------------------------------------------------------------------------------------------------

    def _rewrite(self, batch: Batch) -> None:
        """Let the unpruned model answer, and keep what agrees with the reference."""
        prompts, answers = [], []
        for row, labels, there in zip(batch["input_ids"], batch["labels"], batch["attention_mask"].bool(), strict=True):
            start = _start(labels)
            prompts.append(row[:start])
            answers.append(row[start : int(there.sum())])
        width = batch["input_ids"].shape[1]
        texts = [self._asked(p, a) for p, a in zip(prompts, answers, strict=True)]
        longest = max(map(len, texts))
        given = torch.zeros(len(texts), longest, dtype=torch.int64, device=batch["input_ids"].device)
        mask = torch.zeros_like(given, dtype=torch.bool)
        for i, text in enumerate(texts):
            given[i, : len(text)], mask[i, : len(text)] = torch.tensor(text), True
        steps = self.new_tokens or width
        found = write(
            self.teacher.module,
            given,
            steps,
            mask=mask,
            context=longest + steps,
            temperature=self.heat,
            top_p=self.top_p,
            ids=batch["id"],
            key=("rewrite",),
            vocab_size=self.tokens,
            end=self.words.eos_token_id,
        )
        for i, name in enumerate(batch["id"].tolist()):
            written = found.tokens[i][found.mask[i]].tolist()
            room = width - len(prompts[i])
            keep = self._agrees(written, answers[i].tolist()) and len(written) <= room
            self._rewritten[name] = (written if keep else answers[i].tolist(), keep)

    def _asked(self, prompt: Tensor, answer: Tensor) -> list[int]:
        """The tokens that the unpruned model continues."""
        text = self.template.replace("{answer}", self._text(answer.tolist()))
        before, *after = text.split("{prompt}")
        pieces = [before]
        for piece in after:
            pieces += [self.words.decode(prompt), piece]
        return tokenizers.encode(self.words, ["".join(pieces)])[0]

    def _agrees(self, written: list[int], answer: list[int]) -> bool:
        """Whether an answer is finished and says what the reference does."""
        if not written or written[-1] != self.words.eos_token_id:
            return False
        own, wanted = self._text(written), self._text(answer)
        if self.agree == "number":
            return final_number(own) is not None and final_number(own) == final_number(wanted)
        return self.agree == "any" or wanted.strip() in own

    def _text(self, tokens: list[int]) -> str:
        return str(self.words.decode(tokens, skip_special_tokens=True))

    def _joined(self, batch: Batch, prompts: list[list[int]], answers: list[list[int]]) -> Batch:
        tokens = torch.zeros_like(batch["input_ids"])
        labels, mask = torch.full_like(tokens, IGNORE), torch.zeros_like(tokens)
        for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            whole = torch.tensor([*prompt, *answer], device=tokens.device)
            tokens[i, : len(whole)], mask[i, : len(whole)] = whole, 1
            labels[i, len(prompt) : len(whole)] = whole[len(prompt) :]
        return {**batch, "input_ids": tokens, "labels": labels, "attention_mask": mask}


def _start(labels: Tensor) -> int:
    """Where the answer of a row begins: at its first label; the whole row is the prompt where there is none."""
    there = (labels != IGNORE).nonzero()
    return int(there[0]) if len(there) else len(labels)
