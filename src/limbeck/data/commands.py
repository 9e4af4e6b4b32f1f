"""A world of spoken commands, made by the package: what is asked for (the intent), and which words say of what (slots).

Beside the labelled commands there are as many unlabelled ones as wanted, and general text of a grammar of its own, all
in one vocabulary: what a model for commands is pre-trained on before it sees a label.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from limbeck.data import grammar
from limbeck.data import tokenizer as tokenizers
from limbeck.data.base import Batch, Data, DataSpec
from limbeck.data.masked import MaskedRows
from limbeck.errors import UserError
from limbeck.losses import IGNORE
from limbeck.registry import register

TEMPLATES = {
    "play_music": ("play {song}", "play {song} by {artist}", "i want to hear {artist}", "put on {song} in the {room}"),
    "call": ("call {contact}", "ring {contact} {day}", "i want to talk to {contact}", "show {contact}"),
    "weather": ("how is the weather in {city}", "will it rain in {city} {day}", "show {city}", "{city} {day}"),
    "navigate": ("take me to {city}", "how far is it to {place}", "i want to go to {place}", "show {place}"),
    "set_alarm": ("wake me at {time}", "set an alarm for {time} {day}", "{day} at {time}", "an alarm {day}"),
    "lights": ("turn on the lights in the {room}", "make the {room} {colour}", "{colour} lights", "the {room} please"),
    "shopping": ("add {item} to the list", "we need {item}", "buy {item} {day}", "{item} please"),
}
"""Templates of each intent. Several intents share a carrier: then the value alone says what is meant."""
FIXED = {
    "day": ("today", "tomorrow", "on monday", "on friday", "this evening"),
    "time": ("six", "half past seven", "noon", "ten to nine", "midnight"),
    "room": ("kitchen", "cellar", "attic", "hall", "garden"),
    "colour": ("red", "blue", "warm white", "green", "dim"),
}
"""Slots of few values."""
OPEN = ("song", "artist", "contact", "city", "place", "item")
"""Slots of many values, which are words made of syllables."""
OUTSIDE = "O"
INTENTS = tuple(TEMPLATES)
SLOTS = (OUTSIDE, *(f"{mark}-{slot}" for slot in (*OPEN, *FIXED) for mark in "BI"))
"""Marks of a token: outside any slot, at the beginning of one, or inside."""

_SLOT = re.compile(r"\{(\w+)\}")
_WORD = re.compile(r"\w+|[^\w\s]")
Command = tuple[list[str], list[str], int]
"""Its words, the mark of each, and the number of its intent."""


@register("data")
def commands(
    *,
    part: Literal["labelled", "unlabelled", "general", "mix"] = "labelled",
    train_size: int = 200,
    test_size: int = 1000,
    values: int = 40,
    general: float = 0.3,
    context: int = 20,
    rate: float = 0.15,
    seed: int = 0,
) -> Data:
    """Commands with their intent and slots; or text of one vocabulary with them, some of whose words are hidden.

    A row is ``<cls> words <sep>``. Labelled rows have the intent as ``label`` and ``slots`` [context], the number in
    :data:`SLOTS` of each word's mark, -100 elsewhere. Rows of the other parts are those of data ``masked_text``.

    Args:
        part: ``labelled`` commands, ``unlabelled`` ones, ``general`` text, or a ``mix`` of these two.
        train_size, test_size: rows of the parts for training and for judging.
        values: how many each open slot has, such as songs and cities; few rows name few of them.
        general: share of general text in the mix.
        context: tokens in a row; longer text is cut.
        rate: share of the words that are hidden, where they are.
        seed: of the texts. The values do not depend on it.

    Raises:
        UserError: a number is out of range.
    """
    if min(train_size, test_size, values) < 1 or not (0 <= general <= 1 and 0 < rate < 1) or context < 8:
        raise UserError("data 'commands' needs rows, values, shares between 0 and 1, and a context of at least 8")
    world = World(values)
    words = tokenizers.with_marks(tokenizers.known_words(world.vocabulary))
    labelled = part == "labelled"
    spec = DataSpec(
        task="classification" if labelled else "masked_language",
        shape=(context,),
        classes=len(INTENTS) if labelled else None,
        class_names=INTENTS if labelled else (),
        vocab_size=len(words),
        tokenizer_hash=tokenizers.tokenizer_hash(words),
        licence="public domain",
    )
    share = {"general": 1.0, "mix": general}.get(part, 0.0)
    rows: dict[str, Any] = {}
    for split, first, size in (("train", 0, train_size), ("test", train_size, test_size)):
        dice = random.Random(f"{seed} {part} {split}")
        texts = [world.sentence(dice) if dice.random() < share else world.command(dice) for _ in range(size)]
        made: Any = CommandRows(texts, first, spec, words)
        rows[split] = made if labelled else MaskedRows(made, spec, words, (rate, 0.8 * rate, 0.9 * rate), seed)
    return Data(spec, rows["train"], rows["test"], extra={"tokenizer": words, "slots": SLOTS})


class World:
    """The values of the slots, and commands and sentences that are drawn with given dice.

    Args:
        values: of each open slot.
    """

    def __init__(self, values: int) -> None:
        names = made_up_words(2 * values * len(OPEN))
        self.values: dict[str, Sequence[str]] = dict(FIXED)
        for slot in OPEN:
            # Every third value has two words.
            own = [next(names) if n % 3 else f"{next(names)} {next(names)}" for n in range(values)]
            self.values[slot] = own

    @property
    def vocabulary(self) -> list[str]:
        """All words of commands and of general text."""
        texts = [t for options in (*TEMPLATES.values(), *grammar.RULES.values()) for t in options]
        fixed = [_SLOT.sub(" ", t) for t in texts] + [v for values in self.values.values() for v in values]
        return sorted({word for text in fixed for word in _WORD.findall(text)})

    def command(self, dice: random.Random) -> Command:
        """A command of a random intent."""
        intent = _below(len(INTENTS), dice)
        options = TEMPLATES[INTENTS[intent]]
        words: list[str] = []
        marks: list[str] = []
        for piece in options[_below(len(options), dice)].split():
            slot = _SLOT.fullmatch(piece)
            values = self.values[slot[1]] if slot else [piece]
            said = values[_below(len(values), dice)].split()
            words += said
            marks += [f"{'I' if n else 'B'}-{slot[1]}" for n in range(len(said))] if slot else [OUTSIDE]
        return words, marks, intent

    def sentence(self, dice: random.Random) -> Command:
        """A sentence of general text, which asks for nothing."""
        words = _WORD.findall(grammar.expand("text", dice))
        return words, [OUTSIDE] * len(words), IGNORE


class CommandRows:
    """Commands as tokens: a :class:`~limbeck.data.base.Source`.

    Attributes:
        slot_names: what the numbers in ``slots`` mean.

    Args:
        texts: the commands.
        first: id of the first.
        spec: of these rows.
        words: their tokenizer.
    """

    slot_names = SLOTS

    def __init__(self, texts: Sequence[Command], first: int, spec: DataSpec, words: Any) -> None:
        self.spec, self.tokenizer = spec, words
        context, number = spec.shape[0], {name: i for i, name in enumerate(SLOTS)}
        self.ids = torch.arange(first, first + len(texts))
        self.label = torch.tensor([intent for _, _, intent in texts])
        self._tokens = torch.full((len(texts), context), int(words.pad_token_id))
        self._slots = torch.full((len(texts), context), IGNORE)
        self._mask = torch.zeros(len(texts), context, dtype=torch.long)
        for i, (said, marks, _) in enumerate(texts):
            said, marks = said[: context - 2], marks[: context - 2]
            row = [words.cls_token_id, *words.convert_tokens_to_ids(said), words.sep_token_id]
            self._tokens[i, : len(row)], self._mask[i, : len(row)] = torch.tensor(row), 1
            self._slots[i, 1 : len(row) - 1] = torch.tensor([number[m] for m in marks])
        digest = hashlib.blake2b(str(spec.tokenizer_hash).encode(), digest_size=8)
        for rows in (self._tokens, self._slots, self.label, self.ids):
            digest.update(rows.numpy().tobytes())
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return len(self._tokens)

    def batch(self, indices: Tensor, view: int = 0) -> Batch:
        """Rows as ``input_ids``, ``attention_mask``, ``slots`` [B, context], ``label``, ``id`` and ``view``."""
        return {
            "input_ids": self._tokens[indices],
            "attention_mask": self._mask[indices],
            "slots": self._slots[indices],
            "label": self.label[indices],
            "id": self.ids[indices],
            "view": view,
        }


def made_up_words(count: int) -> Iterator[str]:
    """Words of three syllables, each once, the same in every run."""
    dice = random.Random(0)
    seen: set[str] = set()
    while len(seen) < count:
        name = "".join("bdfgklmnprstvz"[_below(14, dice)] + "aeiou"[_below(5, dice)] for _ in range(3))
        if name not in seen:
            seen.add(name)
            yield name


def _below(count: int, dice: random.Random) -> int:
    """A number below ``count``: random() is promised to be the same in every Python version, randrange() is not."""
    return int(dice.random() * count)
