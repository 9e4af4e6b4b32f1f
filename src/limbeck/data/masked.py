"""Text with some tokens hidden, for encoders that learn to fill them in."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from limbeck.data import tokenizer as tokenizers
from limbeck.data.base import Batch, Data, DataSpec
from limbeck.data.text import TokenRows, text
from limbeck.engine.noise import uniform
from limbeck.errors import UserError
from limbeck.losses import IGNORE
from limbeck.registry import register


@register("data")
def masked_text(
    *,
    path: Path | None = None,
    test_path: Path | None = None,
    corpus: Literal["grammar", "shakespeare", "wikitext2"] | None = None,
    field: str = "text",
    tokenizer: Literal["char", "bpe"] = "char",
    tokenizer_path: Path | None = None,
    vocab_size: int = 512,
    context: int = 64,
    characters: int | None = None,
    val_fraction: float = 0.05,
    test_fraction: float = 0.1,
    rate: float = 0.15,
    masked: float = 0.8,
    replaced: float = 0.1,
    seed: int = 0,
    licence: str | None = None,
) -> Data:
    """Blocks of text in which a share of the tokens is hidden anew in every epoch (Devlin et al. 2018, 1810.04805).

    A row's ``label`` [context] is the token at each hidden place and -100 elsewhere: what stands *there*, not what
    comes next. Validation and test rows are always hidden in the same way.

    Args:
        path, test_path, corpus, field, tokenizer_path, context, characters, val_fraction, test_fraction, licence: as in
            data ``text``.
        tokenizer, vocab_size: as in data ``text``; a mask token is added where there is none.
        rate: share of the tokens that are hidden.
        masked: share of those that become the mask token.
        replaced: share of those that become a random token; the rest stay as they are.
        seed: of what is hidden.

    Raises:
        UserError: shares that are no shares, or whatever data ``text`` refuses.
    """
    if not 0 < rate < 1 or min(masked, replaced) < 0 or masked + replaced > 1 + 1e-9:
        raise UserError(
            "data 'masked_text': rate must be in (0, 1), masked and replaced shares that add up to 1 at most"
        )
    whole = text(
        path=path,
        test_path=test_path,
        corpus=corpus,
        field=field,
        tokenizer=tokenizer,
        tokenizer_path=tokenizer_path,
        vocab_size=vocab_size,
        context=context,
        characters=characters,
        val_fraction=val_fraction,
        test_fraction=test_fraction,
        licence=licence,
    )
    words = tokenizers.with_marks(whole.extra["tokenizer"])
    spec = DataSpec(
        task="masked_language",
        shape=(context,),
        vocab_size=len(words),
        tokenizer_hash=tokenizers.tokenizer_hash(words),
        licence=whole.spec.licence,
    )
    shares = (rate, rate * masked, rate * (masked + replaced))

    def hidden(rows: Any) -> MaskedRows | None:
        return None if rows is None else MaskedRows(rows, spec, words, shares, seed)

    return Data(spec, hidden(whole.train), hidden(whole.test), hidden(whole.val), extra={"tokenizer": words})


class MaskedRows:
    """Rows of another source with tokens hidden by (seed, row, view) alone: a :class:`~limbeck.data.base.Source`.

    Args:
        rows: where the tokens come from.
        spec: of these rows.
        words: their tokenizer.
        shares: of all tokens: those hidden, those that become the mask token, and those or a random token.
        seed: of what is hidden.
    """

    def __init__(self, rows: TokenRows, spec: DataSpec, words: Any, shares: tuple[float, float, float], seed: int):
        self.rows, self.spec, self.tokenizer, self.shares, self.seed = rows, spec, words, shares, seed
        self.ids = rows.ids
        self.special = torch.tensor(sorted(set(words.all_special_ids)))
        self.plain = torch.tensor(sorted(set(range(len(words))) - set(words.all_special_ids)))
        self.fingerprint = f"{rows.fingerprint}-{spec.tokenizer_hash}-{shares}-{seed}"

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: Tensor, view: int = 0) -> Batch:
        """Rows as ``input_ids``, ``attention_mask`` and ``label`` [B, context], ``id`` and ``view``."""
        whole = self.rows.batch(indices, view)
        tokens, ids = whole["input_ids"], whole["id"]
        draws = uniform(ids, (2, tokens.shape[1]), (self.seed, int(view), "mask"))
        can = whole["attention_mask"].bool() & ~torch.isin(tokens, self.special)
        chosen, masked, changed = (can & (draws[:, 0] < share) for share in self.shares)
        other = self.plain[(draws[:, 1] * len(self.plain)).long()]
        seen = torch.where(masked, int(self.tokenizer.mask_token_id), torch.where(changed, other, tokens))
        return {
            "input_ids": seen,
            "attention_mask": whole["attention_mask"],
            "label": tokens.masked_fill(~chosen, IGNORE),
            "id": ids,
            "view": view,
        }
