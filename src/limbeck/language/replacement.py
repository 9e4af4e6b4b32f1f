"""Other words in place of a text's own: TinyBERT's way to more texts of a task (Jiao et al. 2019, arXiv 1909.10351).

A word that is one token is replaced by what a masked language model expects at its place, and a piece of a longer word,
or every word where there is no such model, by a token whose embedding is near.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.data.base import Batch
from limbeck.engine.noise import uniform
from limbeck.engine.teacher import Teacher
from limbeck.errors import UserError


class Replacement:
    """Texts with some words replaced, each text by its id, the view and the seed alone.

    Args:
        tokenizer: of the texts; special tokens neither go nor come.
        embedding: [V, H], where near tokens are alike.
        masked: the masked language model, if there is one; its candidates are kept for every text it has seen.

    Raises:
        UserError: a masked language model, and no mask token.
    """

    def __init__(self, tokenizer: Any, embedding: Tensor, masked: Teacher | None = None) -> None:
        self.embedding, self.masked, self.mask_token = embedding, masked, tokenizer.mask_token_id
        if masked is not None and self.mask_token is None:
            raise UserError("replacing words by a masked language model's needs a tokenizer with a mask token")
        self.plain, self.whole = kinds(tokenizer, len(embedding))
        self._near: dict[int, Tensor] = {}
        self._likely: dict[tuple[bytes, int], Tensor] = {}

    def __call__(self, batch: Batch, share: float, candidates: int, copies: int, seed: int) -> Batch:
        """The batch with other words: one of ``copies`` ways to replace them, or the text as it is.

        Args:
            batch: ``input_ids`` and ``attention_mask`` [B, T], ``id`` [B] and ``view``.
            share: of the words, each replaced independently.
            candidates: for each word, of which one is taken.
            copies: of a text; each view takes one of them and the text itself by chance.
            seed: of all draws.
        """
        tokens, ids = batch["input_ids"], batch["id"]
        copy = (uniform(ids, (1,), (seed, int(batch["view"]), "copy")) * (copies + 1)).long()
        # A copy is the same whenever it comes: its draws are of the text and its number.
        number = ids[:, None] * (copies + 1) + copy
        draws = uniform(number[:, 0], (2, tokens.shape[1]), (seed, "words"))
        device = self.plain.device
        others = self.candidates(batch, candidates).to(tokens.device)
        chosen = (draws[:, 0] < share) & (copy > 0) & self.plain[tokens.to(device)].to(tokens.device)
        chosen &= batch["attention_mask"].bool()
        taken = others.gather(2, (draws[:, 1] * others.shape[-1]).long()[..., None])[..., 0]
        return {**batch, "input_ids": torch.where(chosen, taken, tokens)}

    def candidates(self, batch: Batch, count: int) -> Tensor:
        """What may stand at each place instead, [B, T, K]; K is smaller than ``count`` where there are few tokens."""
        tokens = batch["input_ids"].to(self.plain.device)
        count = min(count, int(self.plain.sum()) - 1)
        if count not in self._near:
            self._near[count] = neighbours(self.embedding, self.plain, self.whole, count)
        near = self._near[count][tokens]
        if self.masked is None:
            return near
        keys = [(row.tobytes(), count) for row in tokens.cpu().numpy()]
        unseen = [i for i, key in enumerate(keys) if key not in self._likely]
        if unseen:
            some = {k: v[unseen] if isinstance(v, Tensor) and v.dim() else v for k, v in batch.items()}
            # In few bytes: they are kept for as long as the training goes on.
            for i, found in zip(unseen, self._expected(some, count).to(torch.int32), strict=True):
                self._likely[keys[i]] = found
        likely = torch.stack([self._likely[key] for key in keys]).long()
        return torch.where(self._alone(tokens)[..., None], likely, near)

    def _expected(self, batch: Batch, count: int) -> Tensor:
        """The masked language model's ``count`` likeliest tokens at each place, that being hidden alone, [B, T, K]."""
        assert self.masked is not None
        tokens, found = batch["input_ids"], []
        barred = ~(self.plain & self.whole)
        for t in range(tokens.shape[1]):
            hidden = tokens.clone()
            hidden[:, t] = self.mask_token
            logits = self.masked.compute({**batch, "input_ids": hidden})["logits"][:, t].to(self.plain.device)
            logits = logits[:, : len(barred)].masked_fill(barred, -torch.inf)
            own = tokens[:, t : t + 1].to(logits.device)
            found.append(logits.scatter(1, own, -torch.inf).topk(count, dim=-1).indices)
        return torch.stack(found, 1)

    def _alone(self, tokens: Tensor) -> Tensor:
        """Which tokens are a word of their own: they begin one, and the next token does, too, [B, T]."""
        begins = self.whole[tokens] | ~self.plain[tokens]
        return self.whole[tokens] & F.pad(begins[:, 1:], (0, 1), value=True)


def kinds(tokenizer: Any, size: int) -> tuple[Tensor, Tensor]:
    """Which of ``size`` tokens are not special, and which of them begin a word, bool [size] twice.

    Pieces are told by the marks of WordPiece (``##`` inside a word), of byte-level BPE and of SentencePiece (a mark of
    the space before it); in a vocabulary without marks every token is a word.
    """
    names = [str(name) for name in tokenizer.convert_ids_to_tokens(list(range(min(size, len(tokenizer)))))]
    special = set(tokenizer.all_special_ids)
    plain = torch.tensor([i < len(names) and i not in special for i in range(size)])
    names += [""] * (size - len(names))
    inside = any(name.startswith("##") for name in names)
    mark = next((m for m in ("\u0120", "\u2581") if any(name.startswith(m) for name in names)), "")
    begins = [not name.startswith("##") if inside else name.startswith(mark) for name in names]
    return plain, torch.tensor(begins) & plain


@torch.no_grad()
def neighbours(embedding: Tensor, plain: Tensor, whole: Tensor, count: int) -> Tensor:
    """For every token the ``count`` others of the most alike embeddings by cosine, int64 [V, K].

    Beginnings of words are near beginnings and pieces near pieces, as far as there are enough of them.

    Args:
        embedding: [V, H].
        plain: tokens that may be chosen, bool [V].
        whole: those that begin a word, bool [V].
        count: K.
    """
    unit = F.normalize(embedding.float(), dim=-1)
    found = []
    # In rows: all pairs of a large vocabulary would be gigabytes.
    for rows in torch.arange(len(unit), device=unit.device).split(1024):
        alike = unit[rows] @ unit.T
        # Cosines are at most 2 apart.
        alike = alike - 3.0 * (whole[rows, None] != whole[None])
        alike = alike.masked_fill(~plain[None], -torch.inf)
        alike[torch.arange(len(rows)), rows] = -torch.inf
        found.append(alike.topk(count, dim=-1).indices)
    return torch.cat(found)
