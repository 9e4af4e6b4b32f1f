"""Short films of made-up things, and captions that name the things but mostly do not say what they look like.

Each thing always has the same colour, size and shape. Captions alone tell little of them; who sees the films knows.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from limbeck.data import tokenizer as tokenizers
from limbeck.data.base import Batch, Data, DataSpec
from limbeck.data.commands import made_up_words
from limbeck.data.masked import MaskedRows
from limbeck.engine.noise import normal, uniform
from limbeck.errors import UserError
from limbeck.registry import register

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.9, 0.1, 0.1),
    "green": (0.1, 0.8, 0.2),
    "blue": (0.15, 0.25, 0.95),
    "yellow": (0.9, 0.9, 0.1),
    "purple": (0.75, 0.1, 0.85),
    "white": (0.95, 0.95, 0.95),
}
"""Colours as red, green and blue in [0, 1]; the background is black."""
SIZES: dict[str, float] = {"small": 0.09, "middling": 0.15, "large": 0.22}
"""Sizes as radius, in picture widths."""
SHAPES = ("disc", "square", "diamond", "cross")
RELATIONS: dict[str, tuple[int, int]] = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
"""Where the first thing is, seen from the second: to the right, and down."""
MOTIONS: dict[str, tuple[int, int]] = {"rises": (0, -1), "falls": (0, 1), "waits": (0, 0), "turns back": (-1, 0)}
"""Where the first thing goes: to the right, and down."""
TEMPLATES = ("the {a} {v} {r} the {b}", "{r} the {b} a {a} {v}", "here a {a} {v} {r} a {b}", "see the {a} that {v}")
"""What captions say; the last does not speak of the second thing."""
TRAITS: dict[str, tuple[str, ...]] = {"colour": tuple(COLOURS), "size": tuple(SIZES), "shape": SHAPES}
APART, STEP, STRAY = 0.24, 0.12, 0.06
"""Half the distance of two things, how far one moves to either side of its place, and how far a place strays."""
Scene = tuple[int, int, int, int]
"""Numbers of the first thing, the second, their relation, and the first one's motion."""


@register("data")
def scenes(
    *,
    part: Literal["text", "videos"] = "text",
    train_size: int = 2000,
    test_size: int = 400,
    things: int = 60,
    told: float = 0.02,
    frames: int = 3,
    pixels: int = 16,
    context: int = 12,
    rate: float = 0.15,
    seed: int = 0,
) -> Data:
    """Captions some of whose words are hidden, alone or each with the film that it belongs to.

    A row is ``<cls> words <sep>`` as in data ``masked_text``; with videos there is also ``video``, a float tensor
    [frames, 3, pixels, pixels] of numbers around [0, 1], drawn when it is asked for. Text and videos are of the same
    things and have one vocabulary, but are of different scenes.

    Args:
        part: captions alone, or with their films.
        train_size, test_size: rows for training and for judging.
        things: how many there are. What each looks like depends on nothing but its number.
        told: share of the captions that say the colour or the size of a thing they name.
        frames, pixels: of a film, and of each side of a frame.
        context: tokens in a row; longer captions are cut.
        rate: share of the words that are hidden.
        seed: of the scenes.

    Raises:
        UserError: a number is out of range.
    """
    small = min(train_size, test_size, frames) < 1 or not 2 <= things <= 10_000 or pixels < 8 or context < 8
    if small or not (0 <= told <= 1 and 0 < rate < 1):
        raise UserError(
            "data 'scenes' needs rows, frames, 2 to 10000 things, 8 pixels, a context of at least 8, told in [0, 1], "
            "and rate in (0, 1)"
        )
    world = World(things)
    words = tokenizers.with_marks(tokenizers.known_words(world.vocabulary))
    spec = DataSpec(
        task="masked_language",
        shape=(context,),
        vocab_size=len(words),
        tokenizer_hash=tokenizers.tokenizer_hash(words),
        licence="public domain",
    )
    film = (frames, pixels) if part == "videos" else None
    rows = {}
    for split, first, size in (("train", 0, train_size), ("test", train_size, test_size)):
        dice = random.Random(f"{seed} {part} {split}")
        made = [world.scene(dice) for _ in range(size)]
        plain = Captions([world.caption(s, told, dice) for s in made], made, first, spec, words)
        rows[split] = SceneRows(plain, world, film, words, rate, seed)
    return Data(spec, rows["train"], rows["test"], extra={"tokenizer": words})


@dataclass(frozen=True)
class Looks:
    """What things look like, and how text names them.

    Attributes:
        tokens: the token of each thing, int64 [N].
        traits: of each kind of trait, the number of each thing's, int64 [N].
    """

    tokens: Tensor
    traits: dict[str, Tensor]


class World:
    """Things with a name and fixed looks.

    Args:
        things: how many.
    """

    def __init__(self, things: int) -> None:
        names = made_up_words(things)
        self.names = [next(names) for _ in range(things)]
        dice = random.Random(1)
        # Every colour, size and shape is had by as many things as any other, in an order of its own.
        self.looks = {
            trait: torch.tensor(sorted((n % len(values) for n in range(things)), key=lambda _: dice.random()))
            for trait, values in TRAITS.items()
        }

    @property
    def vocabulary(self) -> list[str]:
        """All words of captions."""
        said = [t.format(a="", b="", v="", r="") for t in TEMPLATES]
        return sorted(
            {w for text in (*said, *RELATIONS, *MOTIONS, *COLOURS, *SIZES, *self.names) for w in text.split()}
        )

    def scene(self, dice: random.Random) -> Scene:
        """Two different things, a relation and a motion, all equally likely."""
        first = _below(len(self.names), dice)
        second = (first + 1 + _below(len(self.names) - 1, dice)) % len(self.names)
        return first, second, _below(len(RELATIONS), dice), _below(len(MOTIONS), dice)

    def caption(self, scene: Scene, told: float, dice: random.Random) -> str:
        """A caption; a share ``told`` of them say a colour or a size of one of the things."""
        names = [self.names[n] for n in scene[:2]]
        template = TEMPLATES[_below(len(TEMPLATES), dice)]
        if dice.random() < told:
            which = _below(2, dice) if "{b}" in template else 0
            trait = ("colour", "size")[_below(2, dice)]
            names[which] = f"{TRAITS[trait][self.looks[trait][scene[which]]]} {names[which]}"
        return template.format(a=names[0], b=names[1], r=list(RELATIONS)[scene[2]], v=list(MOTIONS)[scene[3]])


class Captions:
    """Captions as tokens, nothing hidden: a :class:`~limbeck.data.base.Source`.

    Args:
        texts: of the scenes.
        made: the scenes.
        first: id of the first.
        spec: of these rows.
        words: their tokenizer.
    """

    def __init__(self, texts: Sequence[str], made: Sequence[Scene], first: int, spec: DataSpec, words: Any) -> None:
        self.spec = spec
        context = spec.shape[0]
        self.ids = torch.arange(first, first + len(texts))
        self.scenes = torch.tensor(made)
        self._tokens = torch.full((len(texts), context), int(words.pad_token_id))
        self._mask = torch.zeros(len(texts), context, dtype=torch.long)
        for i, text in enumerate(texts):
            said = words.convert_tokens_to_ids(text.split()[: context - 2])
            row = [words.cls_token_id, *said, words.sep_token_id]
            self._tokens[i, : len(row)], self._mask[i, : len(row)] = torch.tensor(row), 1
        digest = hashlib.blake2b(str(spec.tokenizer_hash).encode(), digest_size=8)
        for rows in (self._tokens, self.scenes, self.ids):
            digest.update(rows.numpy().tobytes())
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return len(self._tokens)

    def batch(self, indices: Tensor, view: int = 0) -> Batch:
        """Rows as ``input_ids`` and ``attention_mask`` [B, context], ``id`` and ``view``."""
        given = {"input_ids": self._tokens[indices], "attention_mask": self._mask[indices]}
        return {**given, "id": self.ids[indices], "view": view}


class SceneRows(MaskedRows):
    """Captions with hidden words, and their films where they have some.

    Attributes:
        looks: of the things that they name.

    Args:
        rows: the captions.
        world: of the things.
        film: frames and pixels, or None for text alone.
        words: the tokenizer.
        rate: share of the words that are hidden.
        seed: of what is hidden, and of the films' details.
    """

    def __init__(
        self, rows: Captions, world: World, film: tuple[int, int] | None, words: Any, rate: float, seed: int
    ) -> None:
        super().__init__(rows, rows.spec, words, (rate, 0.8 * rate, 0.9 * rate), seed)  # type: ignore[arg-type]
        self.captions, self.film = rows, film
        self.looks = Looks(torch.tensor(words.convert_tokens_to_ids(world.names)), world.looks)
        self.fingerprint += f"-{film}"

    def batch(self, indices: Tensor, view: int = 0) -> Batch:
        """Rows as those of :class:`~limbeck.data.masked.MaskedRows`, with ``video`` [B, frames, 3, pixels, pixels]."""
        found = super().batch(indices, view)
        if self.film is not None:
            found["video"] = render(self.captions.scenes[indices], self.looks, found["id"], *self.film, seed=self.seed)
        return found


def render(made: Tensor, looks: Looks, ids: Tensor, frames: int, pixels: int, seed: int) -> Tensor:
    """The films of scenes, float32 [B, frames, 3, pixels, pixels].

    The first thing is drawn over the second. Places and brightness stray a little and pictures are noisy, all by the
    sample's id alone.

    Args:
        made: scenes, int64 [B, 4].
        looks: of the things.
        ids: of the samples, int64 [B].
        frames: of a film; the first thing moves from the first to the last.
        pixels: of each side.
        seed: of what strays.
    """
    there = torch.tensor(list(RELATIONS.values()))[made[:, 2]].float()
    away = torch.tensor(list(MOTIONS.values()))[made[:, 3]].float()
    draws = uniform(ids, (6,), (seed, "film"))
    stray = STRAY * (2 * draws[:, :4].view(-1, 2, 2) - 1)
    time = torch.linspace(-1, 1, frames) if frames > 1 else torch.zeros(1)
    at = [0.5 + APART * there + stray[:, 0], 0.5 - APART * there + stray[:, 1]]
    places = [at[0][:, None] + STEP * time[:, None] * away[:, None], at[1][:, None].expand(-1, frames, 2)]
    film = torch.zeros(len(ids), frames, 3, pixels, pixels)
    for who in (1, 0):
        thing = made[:, who]
        light = 0.8 + 0.2 * draws[:, 4 + who]
        colour = torch.tensor(list(COLOURS.values()))[looks.traits["colour"][thing]] * light[:, None]
        radius = torch.tensor(list(SIZES.values()))[looks.traits["size"][thing]]
        cover = _cover(places[who], radius, looks.traits["shape"][thing], pixels)[:, :, None]
        film = film * (1 - cover) + cover * colour[:, None, :, None, None]
    return film + 0.05 * normal(ids, tuple(film.shape[1:]), (seed, "noise"))


def _cover(place: Tensor, radius: Tensor, shape: Tensor, pixels: int) -> Tensor:
    """How much of each pixel a thing covers: places [B, F, 2], radius and shape [B] -> [B, F, pixels, pixels]."""
    middle = (torch.arange(pixels) + 0.5) / pixels
    x = ((middle - place[..., :1]).abs() / radius[:, None, None])[:, :, None, :]
    y = ((middle - place[..., 1:]).abs() / radius[:, None, None])[:, :, :, None]
    # Distance from the middle, so that the edge is at 1.
    apart = torch.stack(
        [
            (x.square() + y.square()).sqrt(),
            torch.maximum(x, y),
            (x + y) / 1.2,
            torch.minimum(torch.maximum(x, 3 * y), torch.maximum(3 * x, y)) / 1.2,
        ],
        dim=1,
    )
    chosen = apart[torch.arange(len(shape)), shape]
    return torch.sigmoid((1 - chosen) * (radius * pixels)[:, None, None, None] * 4)


def _below(count: int, dice: random.Random) -> int:
    """A number below ``count``: random() is promised to be the same in every Python version, randrange() is not."""
    return int(dice.random() * count)
