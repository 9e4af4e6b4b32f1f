"""Labelled sentences that the package makes itself: their labels are known, and some are in doubt where asked for."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Example = tuple[str, str | None, int]
"""A text, perhaps a second one, and the number of its class."""

_WHO = ("fox", "hen", "goat", "badger", "heron", "mouse", "otter", "raven")
_KIND = ("red", "old", "quiet", "clever", "small", "young")
_DOES = ("sleeps", "sings", "waits", "runs", "hides", "listens")
_WHERE = ("near the river", "behind the barn", "under the bridge", "in the orchard", "by the mill", "at the well")
_WHEN = ("every night", "until morning", "in the rain", "at noon")

NLI = ("entailment", "neutral", "contradiction")
TOPICS = ("weather", "kitchen", "music", "travel")
_TOPIC_WORDS = {
    "weather": ("rain", "cloud", "storm", "wind", "frost", "thunder", "sunshine", "fog"),
    "kitchen": ("bread", "kettle", "pepper", "oven", "butter", "onion", "spoon", "soup"),
    "music": ("violin", "drum", "melody", "choir", "rhythm", "piano", "song", "concert"),
    "travel": ("ticket", "harbour", "train", "luggage", "border", "map", "voyage", "station"),
}
_SHARED = ("warm", "long", "morning", "old", "quiet", "big", "first", "last", "home", "city", "small", "day")


def nli(count: int, ambiguity: float, seed: int) -> list[Example]:
    """Premises and hypotheses of a fixed grammar, with what follows from what.

    A hypothesis that leaves something of the premise out is entailed; one that says something new is neutral; one that
    has the animal do something else, or denies what it does, contradicts it. A share ``ambiguity`` of the pairs has
    one of the three labels at random instead of its own.
    """
    dice = random.Random(seed)
    return [_pair(dice, ambiguity) for _ in range(count)]


def topics(count: int, ambiguity: float, seed: int) -> list[Example]:
    """Bags of words of one topic among words that all topics share.

    A share ``ambiguity`` of the texts has as many words of another topic as of its own, less one.
    """
    dice = random.Random(seed)
    return [_topic(dice, ambiguity) for _ in range(count)]


_NLI_WORDS = " ".join(("the no", *_WHO, *_KIND, *_DOES, *_WHERE, *_WHEN))
_TOPICS_WORDS = " ".join((*_SHARED, *(word for words in _TOPIC_WORDS.values() for word in words)))


@dataclass(frozen=True)
class World:
    """A maker of labelled texts, the names of their classes, and all words that they may have.

    The words are known, so that rows of any number have one vocabulary: a teacher may have seen more of them.
    """

    make: Callable[[int, float, int], list[Example]]
    classes: tuple[str, ...]
    words: str


WORLDS = {"nli": World(nli, NLI, _NLI_WORDS), "topics": World(topics, TOPICS, _TOPICS_WORDS)}


# random() is promised to give the same numbers in every Python version; choice() is not.
def _one(dice: random.Random, options: Sequence[str], but: str | None = None) -> str:
    left = [o for o in options if o != but]
    return left[int(dice.random() * len(left))]


def _pair(dice: random.Random, ambiguity: float) -> Example:
    who, kind, does = _one(dice, _WHO), _one(dice, _KIND), _one(dice, _DOES)
    where = _one(dice, _WHERE)
    premise = f"the {kind} {who} {does} {where}"
    label = int(dice.random() * 3)
    if label == 0:
        left_out = (f"the {who} {does} {where}", f"the {kind} {who} {does}", f"the {who} {does}")
        hypothesis = _one(dice, left_out)
    elif label == 1:
        added = (f"the {kind} {who} {does} {_one(dice, _WHEN)}", f"the {_one(dice, _KIND, kind)} {kind} {who} {does}")
        hypothesis = _one(dice, added)
    else:
        denied = (
            f"the {who} {_one(dice, _DOES, does)} {where}",
            f"the {kind} {who} {does} {_one(dice, _WHERE, where)}",
            f"no {who} {does} {where}",
        )
        hypothesis = _one(dice, denied)
    return premise, hypothesis, int(dice.random() * 3) if dice.random() < ambiguity else label


def _topic(dice: random.Random, ambiguity: float) -> Example:
    label = int(dice.random() * len(TOPICS))
    own = 2 + int(dice.random() * 3)
    words = [_one(dice, _TOPIC_WORDS[TOPICS[label]]) for _ in range(own)]
    if dice.random() < ambiguity:
        other = _one(dice, TOPICS, TOPICS[label])
        words += [_one(dice, _TOPIC_WORDS[other]) for _ in range(own - 1)]
    words += [_one(dice, _SHARED) for _ in range(5)]
    order = sorted(range(len(words)), key=[dice.random() for _ in words].__getitem__)
    return " ".join(words[i] for i in order), None, label
