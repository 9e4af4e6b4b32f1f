"""A small collection for retrieval and sentence pairs that the package makes itself, from a seed.

A document describes a thing by four traits, a query asks for some of them, and a trait has two words: documents mostly
use the one, queries the other. So the words of a query are rarely those of its documents, and what matches must be
learnt. A document is relevant where it has every trait that the query asks for; how many it has is a grade.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

TRAITS: tuple[tuple[tuple[str, str], ...], ...] = (
    (
        ("fox", "vixen"), ("hen", "chicken"), ("goat", "kid"), ("badger", "brock"), ("mouse", "rodent"),
        ("otter", "swimmer"), ("raven", "corvid"), ("horse", "mare"), ("snake", "viper"), ("bee", "drone"),
    ),
    (
        ("red", "crimson"), ("old", "ancient"), ("quiet", "silent"), ("narrow", "slim"), ("golden", "gilded"),
        ("clever", "smart"), ("small", "tiny"), ("broken", "cracked"), ("wet", "soaked"), ("brave", "bold"),
    ),
    (
        ("river", "stream"), ("barn", "shed"), ("bridge", "viaduct"), ("orchard", "grove"), ("mill", "windmill"),
        ("well", "spring"), ("road", "lane"), ("hill", "slope"), ("church", "chapel"), ("harbour", "port"),
    ),
    (
        ("key", "latchkey"), ("lamp", "lantern"), ("basket", "hamper"), ("kettle", "teapot"), ("ladder", "steps"),
        ("mirror", "glass"), ("ribbon", "bow"), ("hammer", "mallet"), ("book", "volume"), ("coin", "penny"),
    ),
)  # fmt: skip
"""Kinds of traits, their values, and the two words of each value."""
_VERBS = ("sleeps", "sings", "waits", "runs", "hides", "listens")
_HOW = ("slowly", "again", "every night", "in the rain", "until morning", "without a sound")
_SHAPES = (
    "the {1} {0} by the {2} {v} {h} . it has a {3} .",
    "{h} , a {3} in its mouth , the {1} {0} {v} by the {2} .",
    "by the {2} there is a {3} , and a {0} that {v} {h} . the {0} is {1} .",
    "someone left a {3} at the {2} . the {1} {0} {v} {h} .",
)
_ASKS = {0: "{0}", 1: "{1} one", 2: "near {2}", 3: "with {3}"}
Thing = tuple[int, int, int, int]


@dataclass(frozen=True)
class Catalogue:
    """Texts with their names, and relevance by names: ``relevance[query][document]`` is 1.

    ``retold`` has another description of each document's thing, mostly by the other words.
    """

    documents: dict[str, str]
    queries: dict[str, str]
    relevance: dict[str, dict[str, float]]
    retold: dict[str, str]


def catalogue(documents: int, queries: int, seed: int = 0, synonyms: float = 0.8) -> Catalogue:
    """Documents, queries and what is relevant; the same for a seed on every machine.

    Args:
        documents: how many.
        queries: how many, each asking for two or three traits of some document.
        seed: of the choices.
        synonyms: how often a query says a trait by its other word.
    """
    dice = random.Random(seed)
    things = [_thing(dice) for _ in range(documents)]
    texts = {f"d{i}": describe(thing, dice, 1 - synonyms) for i, thing in enumerate(things)}
    others = random.Random(f"{seed} retold")
    retold = {f"d{i}": describe(thing, others, synonyms) for i, thing in enumerate(things)}
    asked, relevance = {}, {}
    for i in range(queries):
        thing, kinds = things[_below(dice, documents)], _some(dice, 2 + _below(dice, 2))
        said = (_ASKS[k].format(*(_word(k, thing[k], dice, synonyms) for k in range(4))) for k in kinds)
        asked[f"q{i}"] = " ".join(said)
        same = (j for j, other in enumerate(things) if all(other[k] == thing[k] for k in kinds))
        relevance[f"q{i}"] = {f"d{j}": 1.0 for j in same}
    return Catalogue(texts, asked, relevance, retold)


def sentence_pairs(count: int, seed: int = 0, synonyms: float = 0.5) -> list[tuple[str, str, float]]:
    """Two descriptions and the share of their traits that are the same, in [0, 1]; a third of the pairs share all."""
    dice = random.Random(seed)
    pairs = []
    for _ in range(count):
        one = _thing(dice)
        changed = set(_some(dice, (0, 1, 3)[_below(dice, 3)]))
        moved = [(v + 1 + _below(dice, 9)) % 10 if k in changed else v for k, v in enumerate(one)]
        other: Thing = (moved[0], moved[1], moved[2], moved[3])
        a, b = describe(one, dice, synonyms), describe(other, dice, synonyms)
        pairs.append((a, b, 1 - len(changed) / 4))
    return pairs


def describe(thing: Thing, dice: random.Random, synonyms: float) -> str:
    """A text about a thing."""
    words = [_word(k, v, dice, synonyms) for k, v in enumerate(thing)]
    shape = _SHAPES[_below(dice, len(_SHAPES))]
    return shape.format(*words, v=_VERBS[_below(dice, len(_VERBS))], h=_HOW[_below(dice, len(_HOW))])


def _thing(dice: random.Random) -> Thing:
    return _below(dice, 10), _below(dice, 10), _below(dice, 10), _below(dice, 10)


def _word(kind: int, value: int, dice: random.Random, synonyms: float) -> str:
    return TRAITS[kind][value][dice.random() < synonyms]


def _some(dice: random.Random, count: int) -> list[int]:
    """So many of the four kinds of traits, in order."""
    return sorted(sorted(range(4), key=lambda _: dice.random())[:count])


def _below(dice: random.Random, size: int) -> int:
    # random() is promised to give the same numbers in every Python version; randrange() is not.
    return int(dice.random() * size)
