"""A small text corpus that the package makes itself: sentences of a fixed context-free grammar, from a seed.

It needs no download and no licence, and a small language model can learn something from every part of it: spelling,
number agreement across a clause in between, the gender of a pronoun one sentence back, and sums in words.
"""

from __future__ import annotations

import random
import re

_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_SLOT = re.compile(r"\{(\w+)\}")


def _sums() -> tuple[str, ...]:
    small = range(1, 6)
    plus = [f"{_NUMBERS[a]} and {_NUMBERS[b]} make {_NUMBERS[a + b]}" for a in small for b in small]
    minus = [f"{_NUMBERS[a + b]} less {_NUMBERS[b]} leaves {_NUMBERS[a]}" for a in small for b in small]
    return (*plus, *minus)


RULES: dict[str, tuple[str, ...]] = {
    "text": ("{plain}.", "{plain}.", "{plain}.", "{tale}", "{tale}", "{sum}.", "{speech}", "{plain}, {join} {plain}."),
    "plain": ("{one} {does} {how}", "{many} {do} {how}", "{one} {sees} {thing}", "{many} {see} {thing}"),
    "join": ("but", "and", "while", "because", "so"),
    "one": (
        "the {beast}",
        "the {beast}",
        "the {quality} {beast}",
        "the {beast} {place}",
        "the {beast} that {sees} {thing}",
    ),
    "many": ("the {beasts}", "the {count} {beasts}", "the {beasts} {place}", "the {beasts} that {see} {thing}"),
    "thing": ("{one}", "{many}", "a {quality} {object}", "the {object} {place}", "{count} {objects}"),
    "place": ("near the {spot}", "behind the {spots}", "under the {spot}", "between the {spots}"),
    "beast": ("fox", "hen", "goat", "badger", "heron", "mouse", "otter", "raven"),
    "beasts": ("foxes", "hens", "goats", "badgers", "herons", "mice", "otters", "ravens"),
    "object": ("key", "lamp", "basket", "kettle", "ladder", "mirror", "ribbon"),
    "objects": ("keys", "lamps", "baskets", "kettles", "ladders", "mirrors", "ribbons"),
    "spot": ("river", "barn", "bridge", "orchard", "mill", "well"),
    "spots": ("rivers", "barns", "bridges", "orchards", "mills", "wells"),
    "quality": ("red", "old", "quiet", "narrow", "golden", "clever", "small", "broken"),
    "count": ("two", "three", "four", "five", "seven", "nine"),
    "does": ("sleeps", "sings", "waits", "runs", "hides", "listens"),
    "do": ("sleep", "sing", "wait", "run", "hide", "listen"),
    "sees": ("sees", "follows", "finds", "fears", "guards", "carries"),
    "see": ("see", "follow", "find", "fear", "guard", "carry"),
    "how": ("slowly", "again", "every night", "in the rain", "until morning", "without a sound", "{place}"),
    "sum": _sums(),
    "tale": (
        "{she} found a {quality} {object}. she {kept} it {place}.",
        "{he} found a {quality} {object}. he {kept} it {place}.",
        "{she} met the {beasts} {place}. they gave her {count} {objects}.",
        "{he} met the {beasts} {place}. they gave him {count} {objects}.",
    ),
    "kept": ("hid", "kept", "lost", "sold", "painted"),
    "she": ("anna", "maria", "ines", "ruth"),
    "he": ("tomas", "henry", "omar", "felix"),
    "speech": ('"{plain}," said {she}. "{sum}," said {he}.', '"{plain}," said {he}. "{sum}," said {she}.'),
}
"""Each symbol and its equally likely expansions; ``{name}`` stands for another symbol."""


def generate(characters: int, seed: int = 0) -> str:
    """Text of exactly ``characters`` characters, one line per sentence group; the same for a seed on every machine."""
    dice = random.Random(seed)
    lines: list[str] = []
    length = 0
    while length < characters:
        lines.append(expand("text", dice))
        length += len(lines[-1]) + 1
    return "".join(line + "\n" for line in lines)[:characters]


def expand(symbol: str, dice: random.Random) -> str:
    """One random expansion of a symbol down to words."""
    options = RULES[symbol]
    # random() is promised to give the same numbers in every Python version; choice() is not.
    chosen = options[int(dice.random() * len(options))]
    return _SLOT.sub(lambda slot: expand(slot.group(1), dice), chosen)
