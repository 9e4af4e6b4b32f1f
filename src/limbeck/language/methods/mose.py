"""One encoder, several exits: the same loss at each, the more so the deeper it is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.engine.devices import device_of
from limbeck.engine.method import Batch, Clock, Method, Parts, Term, Update
from limbeck.errors import UserError
from limbeck.language.models.exits import ExitEncoder
from limbeck.language.ranking import check_texts
from limbeck.language.ranking_losses import cosine_distance
from limbeck.language.renaming import Renaming
from limbeck.losses import IGNORE, cross_entropy
from limbeck.models.embedding import Pooling, pool
from limbeck.models.forward import forward
from limbeck.registry import register


@register("method")
class MoSE(Method):
    """``sum_i (i / L) L_i`` over the exits after layers i of L, in two stages that ``phases`` put one after the other.

    ModularStarEncoder (Gurioli et al. 2025, "One Model to Train them All", arXiv 2503.03008). Stage ``pretraining``, on
    rows of two snippets with hidden tokens (``data: {rows: snippets, mask_token: true}``): ``L_i`` is the
    cross-entropy of the hidden tokens, and of whether both snippets are of one document, by one pair of heads for all
    exits, which sees a learned vector of the exit added to its states. Stage ``finetuning``, on queries and documents:
    ``L_i`` is the InfoNCE of each query with its document among those of the batch, in both directions, by cosines over
    a temperature, each exit with its own projection.

    What upper layers hand down is only what they share with the lower ones; ``explicit`` adds ``1 - cos`` to the last
    exit's vector (in pre-training its pooled states), without gradient to that.

    Args:
        stage: which of the two.
        temperature: divides the cosines; the paper multiplies them by 10.
        weights: an exit after i of L layers weighs i / L (``depth``), or as much as the others (``even``), 1.
        explicit: weight of the early exits' distance from the last one.
        renamed: in fine-tuning, the share of the documents whose frequent identifiers are replaced; the paper's is 0.3
            for code, and 0 leaves every document as it is.
    """

    def __init__(
        self,
        *,
        stage: Literal["pretraining", "finetuning"] = "finetuning",
        temperature: float = 0.1,
        weights: Literal["depth", "even"] = "depth",
        explicit: float = 0.0,
        renamed: float = 0.0,
    ) -> None:
        if not 0 <= renamed <= 1:
            raise UserError(f"mose: renamed is a share from 0 to 1, not {renamed:g}")
        self.stage = stage
        self.temperature = temperature
        self.weights = weights
        self.explicit = explicit
        self.renamed = renamed
        self.couples_samples = stage == "finetuning"  # type: ignore[misc]

    def setup(self, parts: Parts) -> None:
        """The student learns; in pre-training with heads of its own, which are not delivered.

        Raises:
            UserError: it has no exits or too small a vocabulary, or the data has no texts.
        """
        super().setup(parts)
        check_texts(parts, "mose")
        if not isinstance(parts.student, ExitEncoder):
            raise UserError(f"mose: the student must be an exit_encoder, not {type(parts.student).__name__}")
        self.exits, self.pooling = parts.student.exits, parts.student.pooling
        self._texts = parts.streams
        self._renaming: Renaming | None = None
        if self.stage == "pretraining":
            config: Any = parts.student.config
            _check_room(config, parts)
            heads = PretrainingHeads(config.hidden_size, config.vocab_size, len(self.exits))
            self.learners["heads"] = heads.to(device_of(parts.student))

    def updates(self, batch: Batch, clock: Clock) -> Iterator[Update]:
        """One update of all that learns."""
        yield Update(tuple(self.learners), self.terms(self.with_other_names(batch, clock.seed)))

    def terms(self, batch: Batch) -> dict[str, Term]:
        """Of pre-training ``words_i`` and ``same_i``, of fine-tuning ``exit_i``; and ``explicit_i`` with a weight."""
        return self.pretraining(batch) if self.stage == "pretraining" else self.finetuning(batch)

    def pretraining(self, batch: Batch) -> dict[str, Term]:
        """The terms of snippets, at each exit."""
        if "same" not in batch:
            says = "rows of snippets (data: {rows: snippets, mask_token: true})"
            raise UserError(f"mose: the stage pretraining learns from {says}")
        states: list[Tensor] = forward(self.student, batch).exit_states
        hidden, mask = batch["label"] != IGNORE, batch["attention_mask"]
        last = pool(states[-1], mask, self.pooling).detach()
        terms: dict[str, Term] = {}
        for number, (layer, found) in enumerate(zip(self.exits, states, strict=True)):
            weight = self.weight(layer)
            words, same = self.learners["heads"](found, hidden, mask, number, self.pooling)
            values = cross_entropy(words, batch["label"][hidden])
            terms[f"words_{layer}"] = Term.of(values, weight=weight, unit="labelled")
            wanted = batch["same"].to(same.dtype)
            told = F.binary_cross_entropy_with_logits(same, wanted, reduction="none")
            terms[f"same_{layer}"] = Term.of(told, weight=weight)
            if self.explicit > 0 and layer != self.exits[-1]:
                apart = cosine_distance(pool(found, mask, self.pooling), last)
                terms[f"explicit_{layer}"] = Term.of(apart, weight=weight * self.explicit)
        return terms

    def finetuning(self, batch: Batch) -> dict[str, Term]:
        """The terms of queries and documents, at each exit."""
        if batch["input_ids"].dim() != 3 or batch["input_ids"].shape[1] < 2:
            raise UserError("mose learns from rows of a query and documents (data.rows: lists)")
        found: list[Tensor] = forward(self.student, batch).exits
        known, alike = batch["label"] >= 0, same_pairs(batch)
        terms: dict[str, Term] = {}
        for layer, vectors in zip(self.exits, found, strict=True):
            weight = self.weight(layer)
            values = info_nce(vectors[:, 0], relevant(vectors, batch), alike, self.temperature)
            terms[f"exit_{layer}"] = Term.of(values, known, weight=weight)
            if self.explicit > 0 and layer != self.exits[-1]:
                apart = cosine_distance(vectors, found[-1].detach())
                terms[f"explicit_{layer}"] = Term.of(apart, weight=weight * self.explicit)
        return terms

    def weight(self, layer: int) -> float:
        """Of the losses at the exit after so many layers."""
        return layer / self.exits[-1] if self.weights == "depth" else 1.0

    def with_other_names(self, batch: Batch, seed: int) -> Batch:
        """The batch with other names in the documents of some rows, where documents are renamed.

        Raises:
            UserError: the data has no tokenizer.
        """
        if self.renamed == 0 or self.stage == "pretraining" or batch["input_ids"].dim() != 3:
            return batch
        if self._renaming is None:
            words = next((s.tokenizer for s in self._texts.values() if getattr(s, "tokenizer", None)), None)
            if words is None:
                raise UserError("mose: renamed needs data with a tokenizer, to know what is an identifier")
            self._renaming = Renaming(words, self.renamed)
        tokens, mask = batch["input_ids"], batch["attention_mask"]
        rows, n = len(tokens), tokens.shape[1] - 1
        # Each document of a row by itself.
        ids = (batch["id"][:, None] * n + torch.arange(n, device=batch["id"].device)).flatten()
        flat = (tokens[:, 1:].flatten(0, 1), mask[:, 1:].flatten(0, 1))
        changed = self._renaming(*flat, ids, (seed, int(batch["view"]))).view(rows, n, -1)
        return {**batch, "input_ids": torch.cat([tokens[:, :1], changed], 1)}


class PretrainingHeads(nn.Module):
    """What reads hidden tokens, and whether two snippets are of one document, out of the states of any exit.

    Args:
        width: of the states.
        words: logits of a hidden token.
        exits: how many; each has a vector that is added to its states.
    """

    def __init__(self, width: int, words: int, exits: int) -> None:
        super().__init__()
        self.place = nn.Embedding(exits, width)
        nn.init.normal_(self.place.weight, std=0.02)
        self.dense, self.norm = nn.Linear(width, width), nn.LayerNorm(width)
        self.words, self.same = nn.Linear(width, words), nn.Linear(width, 1)

    def forward(
        self, states: Tensor, hidden: Tensor, mask: Tensor, exit: int, pooling: Pooling
    ) -> tuple[Tensor, Tensor]:
        """Logits of the hidden tokens [N, V], and of the snippets being of one document [B].

        Args:
            states: [B, T, H].
            hidden: bool [B, T], where tokens are hidden.
            mask: int64 [B, T], where there are tokens.
            exit: its number.
            pooling: how the states of a row become one.
        """
        placed = states + self.place.weight[exit]
        words = self.words(self.norm(F.gelu(self.dense(placed[hidden]))))
        return words, self.same(pool(placed, mask, pooling))[:, 0]


def _check_room(config: Any, parts: Parts) -> None:
    """Refuse snippets of more words, or longer, than the student has room for."""
    words, length = getattr(parts.data, "vocab_size", None) or 0, next(iter(getattr(parts.data, "shape", None) or (0,)))
    if words > config.vocab_size:
        says = f"the student has {config.vocab_size} words and the snippets {words}"
        raise UserError(f"mose: {says}: give mask_token: true to the data of every phase")
    if length > config.max_position_embeddings:
        says = f"rows of snippets have {length} tokens, and the student reads {config.max_position_embeddings}"
        raise UserError(f"mose: {says}: give student.context {length}")


def info_nce(queries: Tensor, documents: Tensor, alike: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of each query with its document among all, and of each document with its query; their mean [B].

    Args:
        queries: [B, D].
        documents: [B, D], row by row.
        alike: bool [B, B]; other pairs that are right as well, which are left out of the sums.
        temperature: divides the cosines.
    """
    cosines = F.normalize(queries.float(), dim=-1) @ F.normalize(documents.float(), dim=-1).T
    own = torch.eye(len(cosines), dtype=torch.bool, device=cosines.device)
    logits = (cosines / temperature).masked_fill(alike & ~own, -torch.inf)
    places = torch.arange(len(logits), device=logits.device)
    return (cross_entropy(logits, places) + cross_entropy(logits.T, places)) / 2


def same_pairs(batch: Batch) -> Tensor:
    """Which rows have the same query or the same relevant document, or where one names none, bool [B, B]."""
    ids = batch["input_ids"]
    texts = ids[:, 0], relevant(ids, batch)
    same = [(x[:, None] == x[None]).all(-1) for x in texts]
    none = batch["label"] < 0
    return same[0] | same[1] | none[:, None] | none


def relevant(texts: Tensor, batch: Batch) -> Tensor:
    """What each row [B, 1 + n, ...] has of the document that its label names (of the first, if none), [B, ...]."""
    return texts[torch.arange(len(texts), device=texts.device), batch["label"].clamp_min(0) + 1]
