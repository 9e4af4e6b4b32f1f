"""Sums with their working, made by the package: a world where every answer can be checked."""

from __future__ import annotations

import random
from collections.abc import Iterator

from limbeck.data import tokenizer as tokenizers
from limbeck.data.base import Data, DataSpec
from limbeck.data.text import pair_rows
from limbeck.errors import UserError
from limbeck.registry import register

ALPHABET = "0123456789+= "
MOST = 6


@register("data")
def arithmetic(
    *,
    train_size: int = 2000,
    test_size: int = 300,
    val_size: int = 0,
    digits: int = 2,
    working: bool = True,
    retold: bool = False,
    context: int | None = None,
    seed: int = 0,
) -> Data:
    """Sums of two whole numbers as prompts with completions, one token per character; no sum is in two parts.

    With its working a row is ``37+48=`` and ``7+8=15 3+4+1=8 =85``: the columns from the right, each with what is
    carried, then the sum. Only the completion and the end-of-text token are learnt.

    Args:
        train_size, test_size, val_size: rows of the parts.
        digits: of the larger numbers; the difficulty.
        working: write the columns out before the sum.
        retold: train on every row once more with the bare sum before it (``37+48=85 37+48=``), so that a model learns
            to tell a given answer in its own way.
        context: tokens in a row; by default as many as the longest has.
        seed: which sums are drawn.

    Raises:
        UserError: more rows than there are sums, a number of digits that is out of range, or too short a context.
    """
    if not 1 <= digits <= MOST:
        raise UserError(f"data 'arithmetic': digits must be 1 to {MOST}, got {digits}")
    wanted, there = train_size + val_size + test_size, 10 ** (2 * digits)
    if min(train_size, val_size, test_size) < 0 or not 0 < wanted <= there:
        raise UserError(f"data 'arithmetic': {wanted} rows were asked for; there are {there} sums of {digits} digits")
    words = tokenizers.char_tokenizer([ALPHABET])
    drawn = _draw(wanted, digits, seed)
    pairs = [(f"{a}+{b}=", completion(a, b, working)) for a, b in drawn]
    top = 10**digits - 1
    # One more for the end of the text.
    longest = len(f"{top}+{top}=") + len(completion(top, top, working)) + 1 + retold * len(_given(top, top))
    if context is not None and context < longest:
        raise UserError(f"data 'arithmetic': a row has up to {longest} tokens, so context {context} is too short")
    spec = DataSpec(
        task="language",
        shape=(context or longest,),
        vocab_size=len(words),
        tokenizer_hash=tokenizers.tokenizer_hash(words),
        licence="public domain",
    )
    parts, first, cut = {}, 0, train_size + val_size
    again = (
        [(_given(a, b) + prompt, text) for (a, b), (prompt, text) in zip(drawn, pairs, strict=True)] if retold else []
    )
    rows = {"train": pairs[:train_size] + again[:train_size], "val": pairs[train_size:cut], "test": pairs[cut:]}
    for name, own in rows.items():
        if own:
            parts[name] = pair_rows(own, first, spec, words)
        first += len(own)
    return Data(spec, parts.get("train"), parts.get("test"), parts.get("val"), extra={"tokenizer": words})


def completion(a: int, b: int, working: bool = True) -> str:
    """What follows ``a+b=``: the columns from the right with what is carried, and the sum; or the sum alone."""
    return f"{' '.join(_columns(a, b))} ={a + b}" if working else str(a + b)


def _given(a: int, b: int) -> str:
    return f"{a}+{b}={a + b} "


def _columns(a: int, b: int) -> Iterator[str]:
    carry = 0
    while a or b or not carry:
        carried = f"+{carry}" if carry else ""
        total = a % 10 + b % 10 + carry
        yield f"{a % 10}+{b % 10}{carried}={total}"
        a, b, carry = a // 10, b // 10, total // 10
        if not (a or b):
            return


def _draw(count: int, digits: int, seed: int) -> list[tuple[int, int]]:
    """Distinct sums, the same for a seed on every machine."""
    dice, top = random.Random(seed), 10**digits
    # random() is promised to give the same numbers in every Python version; sample() is not.
    seen: dict[int, None] = {}
    while len(seen) < count:
        seen[int(dice.random() * top * top)] = None
    return [divmod(each, top) for each in seen]
