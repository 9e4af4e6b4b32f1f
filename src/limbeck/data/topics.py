"""A world of short texts on known topics, made by the package: what a text is about is the next word."""

from __future__ import annotations

import random

from limbeck.data import tokenizer as tokenizers
from limbeck.data.base import Data, DataSpec
from limbeck.data.text import pair_rows
from limbeck.errors import UserError
from limbeck.registry import register

ASK = "so it is about"


@register("data")
def topics(
    *,
    train_size: int = 1000,
    val_size: int = 300,
    test_size: int = 600,
    topics: int = 6,
    words: int = 10,
    length: int = 10,
    clarity: float = 0.3,
    confusion: float = 0.3,
    noise: float = 0.2,
    test_clarity: float | None = None,
    seed: int = 0,
) -> Data:
    """Texts of which each word is on the text's topic, on another, or on none, and the topic as completion.

    Every topic has words of its own. A word of a text is on its topic with probability ``clarity``, on another topic,
    drawn anew, with probability ``confusion``, and otherwise says nothing; so some texts cannot be told, and a model
    that knows the world is unsure of them. A row is ``w3_4 n_7 ... so it is about`` with the completion ``topic_3``.

    Args:
        train_size, val_size, test_size: rows of the parts.
        topics: how many there are.
        words: of each topic, and as many that say nothing.
        length: words of a text.
        clarity: share of words on the text's topic.
        confusion: share of words on another topic.
        noise: share of the *training* rows whose topic is another, drawn evenly; the other parts are right.
        test_clarity: ``clarity`` of the test part, where it is to be another world.
        seed: of the texts.

    Raises:
        UserError: a number is out of range.
    """
    shares = [clarity, confusion, noise, clarity if test_clarity is None else test_clarity]
    if any(not 0 <= share <= 1 for share in shares) or clarity + confusion > 1 or shares[3] + confusion > 1:
        raise UserError("data 'topics': clarity, confusion and noise are shares, the first two at most 1 together")
    if topics < 2 or words < 1 or length < 1 or min(train_size, val_size, test_size) < 0 or train_size < 1:
        raise UserError("data 'topics' needs two topics, a word of each, a word of a text, and a row to train on")
    world = _World(topics, words, length, confusion)
    vocabulary = tokenizers.known_words([*world.vocabulary, *ASK.split()])
    context = length + len(ASK.split()) + 2
    spec = DataSpec(
        task="language",
        shape=(context,),
        vocab_size=len(vocabulary),
        tokenizer_hash=tokenizers.tokenizer_hash(vocabulary),
        licence="public domain",
    )
    parts, first = {}, 0
    plans = {
        "train": (train_size, clarity, noise),
        "val": (val_size, clarity, 0.0),
        "test": (test_size, shares[3], 0.0),
    }
    for name, (size, clear, wrong) in plans.items():
        if size:
            dice = random.Random(f"{seed} {name}")
            pairs = [world.text(dice, clear, wrong) for _ in range(size)]
            parts[name] = pair_rows(pairs, first, spec, vocabulary)
            first += size
    return Data(spec, parts["train"], parts.get("test"), parts.get("val"), extra={"tokenizer": vocabulary})


class _World:
    """Words on topics, and texts of them."""

    def __init__(self, topics: int, words: int, length: int, confusion: float) -> None:
        self.topics, self.words, self.length, self.confusion = topics, words, length, confusion

    @property
    def vocabulary(self) -> list[str]:
        """All words, and the topics' names."""
        numbers = range(self.words)
        about = [f"w{t}_{n}" for t in range(self.topics) for n in numbers]
        return [*about, *(f"n_{n}" for n in numbers), *(f"topic_{t}" for t in range(self.topics))]

    def text(self, dice: random.Random, clarity: float, noise: float) -> tuple[str, str]:
        """A text with its question, and the topic that it is said to be on."""
        topic = _below(self.topics, dice)
        said = [self._word(topic, clarity, dice) for _ in range(self.length)]
        told = self._other(topic, dice) if dice.random() < noise else topic
        return " ".join([*said, ASK]), f"topic_{told}"

    def _word(self, topic: int, clarity: float, dice: random.Random) -> str:
        share = dice.random()
        if share >= clarity + self.confusion:
            return f"n_{_below(self.words, dice)}"
        about = topic if share < clarity else self._other(topic, dice)
        return f"w{about}_{_below(self.words, dice)}"

    def _other(self, topic: int, dice: random.Random) -> int:
        return (topic + 1 + _below(self.topics - 1, dice)) % self.topics


def _below(count: int, dice: random.Random) -> int:
    """A number below ``count``: random() is promised to be the same in every Python version, randrange() is not."""
    return int(dice.random() * count)
