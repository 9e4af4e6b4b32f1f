"""Two pieces of text one after the other, of one document or of two, with some tokens hidden.

What ModularStarEncoder is pre-trained on (arXiv 2503.03008), with documents in place of repositories of code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from limbeck.data.base import Batch, DataSpec
from limbeck.data.masked import MaskedRows
from limbeck.data.texts import Texts, Words
from limbeck.engine.checkpoint import tensor_hash
from limbeck.engine.noise import uniform
from limbeck.errors import UserError

MASKED, REPLACED = 0.8, 0.1
"""Shares of the hidden tokens that become the mask token, or a random one (Devlin et al. 2018)."""


def snippets(documents: Sequence[Sequence[str]], words: Words, spec: DataSpec, rate: float, seed: int) -> MaskedPairs:
    """Rows of two snippets, made anew in every epoch.

    Args:
        documents: the snippets of each.
        words: their tokenizer, with a mask token; a snippet has at most ``context`` tokens, a row twice as many.
        spec: of the data.
        rate: share of the tokens that are hidden.
        seed: of what is paired and hidden.

    Raises:
        UserError: a rate that is none, or fewer than two documents of two snippets.
    """
    if not 0 < rate < 1:
        raise UserError(f"rows of snippets: rate must be in (0, 1), not {rate:g}")
    kept = [own for own in documents if len(own) > 1]
    if len(kept) < 2:
        raise UserError(f"rows of snippets need two documents of two snippets at least, and there is {len(kept)}")
    table = words.table([text for own in kept for text in own])
    of = torch.tensor([number for number, own in enumerate(kept) for _ in own])
    spec = replace(spec, shape=(2 * words.context,))
    shares = (rate, rate * MASKED, rate * (MASKED + REPLACED))
    return MaskedPairs(Pairs(table, of, seed), spec, words.tokenizer, shares, seed)  # type: ignore[arg-type]


class Pairs:
    """Rows of two snippets by (seed, row, view) alone; each snippet is the first of one row.

    Args:
        table: the snippets, [M, T].
        of: int64 [M], ascending: the document of each; every document has at least two.
        seed: of the pairs.
    """

    def __init__(self, table: Texts, of: Tensor, seed: int) -> None:
        self.table, self.of, self.seed = table, of, seed
        self.ids = torch.arange(len(of))
        sizes = torch.bincount(of)
        self.sizes, self.starts = sizes[of], (sizes.cumsum(0) - sizes)[of]
        content = tensor_hash({"ids": table.input_ids, "mask": table.attention_mask, "of": of})
        self.fingerprint = f"pairs-{seed}-{content[:16]}"

    def __len__(self) -> int:
        return len(self.of)

    def partners(self, indices: Tensor, view: int) -> tuple[Tensor, Tensor]:
        """The second snippet of each row, and whether it is of the same document: int64 [B] both."""
        draws = uniform(indices, (2,), (self.seed, int(view), "snippets"))
        same = draws[:, 0] < 0.5
        size, start = self.sizes[indices], self.starts[indices]
        place = (draws[:, 1] * torch.where(same, size - 1, len(self) - size)).long()
        # Among its document's others it leaves itself out, among all others its document.
        own = start + place + (start + place >= indices)
        other = place + size * (place >= start)
        return torch.where(same, own, other), same.long()

    def batch(self, indices: Tensor, view: int = 0) -> Batch:
        """``input_ids`` and ``attention_mask`` int64 [B, 2 T], ``same`` [B], ``id`` and ``view``."""
        second, same = self.partners(indices, view)
        (a, a_mask), (b, b_mask) = self.table[indices], self.table[second]
        ids, mask = torch.cat([a, b], 1), torch.cat([a_mask, b_mask], 1)
        order = mask.argsort(dim=1, descending=True, stable=True)  # the padding goes to the end
        found = {"input_ids": ids.gather(1, order), "attention_mask": mask.gather(1, order)}
        return {**found, "same": same, "id": self.ids[indices], "view": view}


class MaskedPairs(MaskedRows):
    """Rows of two snippets with tokens hidden, and ``same`` [B]: whether they are of one document."""

    rows: Pairs  # type: ignore[assignment]

    def batch(self, indices: Tensor, view: int = 0) -> Batch:
        """Rows as ``input_ids``, ``attention_mask`` and ``label`` [B, 2 context], ``same``, ``id`` and ``view``."""
        return {**super().batch(indices, view), "same": self.rows.partners(indices, view)[1]}
