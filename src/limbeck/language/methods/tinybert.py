"""TinyBERT: embeddings, attention scores and states layer by layer, then the predictions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from limbeck.engine.method import Batch, Clock, Parts, Term, Update
from limbeck.errors import UserError
from limbeck.language.encoders import EncoderMethod, hidden_term, positions_term, sizes
from limbeck.language.layers import layer_map
from limbeck.language.losses.relations import score_mse, state_mse
from limbeck.language.replacement import Replacement
from limbeck.losses import log_softmax
from limbeck.models.attention import AttentionTaps, pair_mask, scores, split_heads
from limbeck.models.forward import forward
from limbeck.registry import register


@register("method")
class TinyBERT(EncoderMethod):
    """TinyBERT: Distilling BERT for Natural Language Understanding (Jiao et al. 2019, arXiv 1909.10351).

    Stage ``intermediate``: ``MSE(E_S W_e, E_T) + sum_m [MSE(H_m W_h, H_g(m)) + MSE(A_m, A_g(m))]`` with ``A`` the
    attention scores before the softmax, over the positions that are there and pairs of them. Stage ``prediction``: the
    cross-entropy ``-softmax(z_T / t) . log softmax(z_S / t)``. A recipe runs them one after the other with ``phases``.
    No stage reads the labels, so texts with other words in place of their own teach as well.

    Args:
        stage: which of the two.
        temperature: t, of the predictions.
        layers: the teacher's layers for the student's: every k-th (``skip``), the ``last`` ones, the last alone
            (``emb_last``), or pairs ``{student: teacher}`` counted from 1.
        embedding_weight, state_weight, attention_weight: of the three terms; the paper leaves each out in turn.
        replaced: share of the words that are replaced in a copy of a text; the paper's is 0.4, and 0 leaves every text
            as it is. A teacher ``words``, a masked language model, proposes them where the recipe has one, else those
            are taken whose embeddings in the teacher are near.
        candidates: for each word, of which one is taken.
        copies: of each text, beside the text itself.
    """

    needs = {"teacher": {"logits", "hidden_states"}}
    live = True

    def __init__(
        self,
        *,
        stage: Literal["intermediate", "prediction"] = "intermediate",
        temperature: float = 1.0,
        layers: Literal["skip", "last", "emb_last"] | dict[int, int] = "skip",
        embedding_weight: float = 1.0,
        state_weight: float = 1.0,
        attention_weight: float = 1.0,
        replaced: float = 0.0,
        candidates: int = 15,
        copies: int = 20,
    ) -> None:
        if candidates < 1 or copies < 1 or not 0 <= replaced <= 1:
            raise UserError("tinybert: replaced is a share from 0 to 1, candidates and copies are 1 or more")
        self.stage = stage
        self.temperature = temperature
        self.layers: Any = layers
        self.embedding_weight = embedding_weight
        self.state_weight = state_weight
        self.attention_weight = attention_weight
        self.replaced = replaced
        self.candidates = candidates
        self.copies = copies

    def setup(self, parts: Parts) -> None:
        """Pair the layers, tap the attention and build the maps of the states.

        Raises:
            UserError: student and teacher have unlike numbers of heads.
        """
        super().setup(parts)
        self._texts = parts.streams
        self._replacement: Replacement | None = None
        if self.stage == "prediction":
            return
        (width, count, _), (other, theirs, _) = sizes(parts.student), sizes(self.teacher.module)
        kind = {int(a): int(b) for a, b in self.layers.items()} if isinstance(self.layers, Mapping) else self.layers
        # The embeddings have a term of their own.
        self.pairs = [(i, j) for i, j in layer_map(kind, count, theirs) if i and j]
        self._own = AttentionTaps(parts.student, [i - 1 for i, _ in self.pairs])
        self._theirs = AttentionTaps(self.teacher.module, [j - 1 for _, j in self.pairs], detach=True)
        if self._own.heads != self._theirs.heads:
            says = f"the student has {self._own.heads}, the teacher {self._theirs.heads}"
            raise UserError(f"tinybert compares attention head by head; {says}: give them equally many")
        self.learners |= {name: nn.Linear(width, other, bias=False) for name in ("embedding_map", "state_map")}

    def updates(self, batch: Batch, clock: Clock) -> Iterator[Update]:
        """One update of the student and of the maps, on the texts or on copies of them with other words."""
        yield Update(tuple(self.learners), self.terms(self.copied(batch, clock.seed)))

    def copied(self, batch: Batch, seed: int) -> Batch:
        """The batch with other words, where words are replaced.

        Raises:
            UserError: the data has no tokenizer, or the teacher no embedding to find neighbours in.
        """
        if self.replaced == 0:
            return batch
        if self._replacement is None:
            words = next((s.tokenizer for s in self._texts.values() if getattr(s, "tokenizer", None)), None)
            embedding = getattr(self.teacher.module, "get_input_embeddings", lambda: None)()
            if words is None or embedding is None:
                raise UserError("tinybert replaces words of data with a tokenizer, by embeddings of a transformer")
            self._replacement = Replacement(words, embedding.weight.detach(), self.teachers.get("words"))
        return self._replacement(batch, self.replaced, self.candidates, self.copies, seed)

    def terms(self, batch: Batch) -> dict[str, Term]:
        """The terms ``embeddings``, ``states`` and ``attention``, but those of weight zero, or ``prediction``."""
        return {"prediction": self.prediction(batch)} if self.stage == "prediction" else self.intermediate(batch)

    def intermediate(self, batch: Batch) -> dict[str, Term]:
        """What the layers make of a text: sums over the pairs of layers, means over positions or pairs of them."""
        student, teacher = self.both(batch)
        own, theirs, terms = student.hidden_states, teacher.hidden_states, {}
        if self.embedding_weight > 0:
            apart = state_mse(self.learners["embedding_map"](own[0]), theirs[0])
            terms["embeddings"] = positions_term(apart, batch, self.embedding_weight)
        if self.state_weight > 0:
            layers = [state_mse(self.learners["state_map"](own[i]), theirs[j]) for i, j in self.pairs]
            terms["states"] = positions_term(torch.stack(layers).sum(0), batch, self.state_weight)
        attention = zip(self._scores(self._own), self._scores(self._theirs), strict=True)
        if self.attention_weight > 0:
            scored = torch.stack([score_mse(a, b) for a, b in attention]).sum(0)
            mask, weight = pair_mask(batch["attention_mask"])[:, 0], self.attention_weight
            terms["attention"] = Term.of(scored, mask, weight=weight, unit="pairs")
        return terms

    def prediction(self, batch: Batch) -> Term:
        """The soft cross-entropy of the task: of every text, or of every hidden token."""
        logits, target = forward(self.student, batch).logits, self.teacher.compute(batch).logits
        law = log_softmax(target, self.temperature).exp()
        values = -(law * log_softmax(logits, self.temperature)).sum(-1)
        return Term.of(values) if values.dim() == 1 else hidden_term(values, batch)

    def count(self, batch: Batch) -> dict[str, int | Tensor]:
        """Adds the pairs of positions that are not padding."""
        return {**super().count(batch), "pairs": batch["attention_mask"].sum(1).square().sum()}

    @staticmethod
    def _scores(taps: AttentionTaps) -> list[Tensor]:
        return [scores(split_heads(q, taps.heads), split_heads(k, taps.groups)) for q, k, _ in taps.pop()]
