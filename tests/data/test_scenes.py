import math
import random

import pytest
import torch

from limbeck.data.scenes import (
    APART,
    COLOURS,
    MOTIONS,
    RELATIONS,
    SHAPES,
    SIZES,
    STEP,
    STRAY,
    TRAITS,
    World,
    render,
    scenes,
)
from limbeck.engine.noise import normal, uniform
from limbeck.errors import UserError

DATA = {"train_size": 40, "test_size": 20, "things": 12}
TRAIT_WORDS = {*COLOURS, *SIZES}


def everything(data, view=0):
    return data.train.batch(torch.arange(len(data.train)), view)


def whole(batch):
    return torch.where(batch["label"] != -100, batch["label"], batch["input_ids"])


def test_a_caption_tells_its_scene_and_nothing_false():
    world, dice = World(12), random.Random(3)
    for told in (0.0, 1.0):
        for _ in range(200):
            scene = world.scene(dice)
            first, second, relation, motion = scene
            said = world.caption(scene, told, dice)
            words, (a, b) = said.split(), (world.names[first], world.names[second])
            named = [w for w in words if w in world.names]
            assert list(MOTIONS)[motion] in said and words.count(a) == 1
            if said.startswith("see"):
                assert named == [a]
            else:
                assert sorted(named) == sorted([a, b])
                assert f"{list(RELATIONS)[relation]} " in said
                later = b if not said.startswith(list(RELATIONS)[relation]) else a
                assert named[-1] == later
            looks = [(w, words[i + 1]) for i, w in enumerate(words) if w in TRAIT_WORDS]
            assert len(looks) == told
            for word, name in looks:
                trait = "colour" if word in COLOURS else "size"
                assert list(TRAITS[trait])[world.looks[trait][world.names.index(name)]] == word


def test_the_share_that_is_told_is_as_asked():
    data = scenes(train_size=2000, test_size=1, things=12, told=0.3)
    known = torch.tensor(data.extra["tokenizer"].convert_tokens_to_ids(sorted(TRAIT_WORDS)))
    share = torch.isin(whole(everything(data)), known).any(1).double().mean()
    assert share.item() == pytest.approx(0.3, abs=0.03)


def test_every_look_is_had_by_as_many_things_and_scenes_are_of_two():
    world, dice = World(60), random.Random(0)
    for trait, values in TRAITS.items():
        assert world.looks[trait].bincount().tolist() == [60 // len(values)] * len(values)
    made = [world.scene(dice) for _ in range(500)]
    assert all(first != second for first, second, *_ in made)
    assert {n for first, second, *_ in made for n in (first, second)} == set(range(60))
    assert {(r, m) for *_, r, m in made} == {(r, m) for r in range(4) for m in range(4)}


def test_a_row_is_its_caption_between_marks_with_words_hidden():
    data = scenes(**DATA, rate=0.4)
    batch, words = everything(data), data.extra["tokenizer"]
    world = World(12)
    for row, there in zip(whole(batch), batch["attention_mask"].bool(), strict=True):
        said = words.convert_ids_to_tokens(row[there].tolist())
        assert (said[0], said[-1]) == (words.cls_token, words.sep_token)
        assert set(said[1:-1]) <= set(world.vocabulary)
        assert (row[~there] == words.pad_token_id).all()
    hidden = batch["label"] != -100
    assert not (hidden & ~batch["attention_mask"].bool()).any()
    assert not torch.isin(batch["label"][hidden], data.train.special).any()
    inside = batch["attention_mask"].sum() - 2 * len(hidden)
    assert (hidden.sum() / inside).item() == pytest.approx(0.4, abs=0.08)


def test_long_captions_are_cut():
    data = scenes(**DATA, context=8)
    batch = everything(data)
    assert batch["input_ids"].shape == (40, 8)
    ends = whole(batch)[torch.arange(40), batch["attention_mask"].sum(1) - 1]
    assert (ends == data.extra["tokenizer"].sep_token_id).all()


def by_hand(scene, looks, number, frames, pixels, seed):
    """The film of a scene in plain Python, pixel by pixel."""
    draws = uniform(torch.tensor([number]), (6,), (seed, "film"))[0].tolist()
    stray = [[STRAY * (2 * draws[2 * who + axis] - 1) for axis in (0, 1)] for who in (0, 1)]
    there, away = list(RELATIONS.values())[scene[2]], list(MOTIONS.values())[scene[3]]
    film = torch.zeros(frames, 3, pixels, pixels, dtype=torch.float64)
    for f in range(frames):
        time = -1 + 2 * f / (frames - 1) if frames > 1 else 0
        for who, side in ((1, -1), (0, 1)):
            thing = scene[who]
            cx, cy = (0.5 + side * APART * there[k] + stray[who][k] for k in (0, 1))
            if who == 0:
                cx, cy = cx + STEP * time * away[0], cy + STEP * time * away[1]
            colour = list(COLOURS.values())[looks.traits["colour"][thing]]
            radius = list(SIZES.values())[looks.traits["size"][thing]]
            light = 0.8 + 0.2 * draws[4 + who]
            for row in range(pixels):
                for column in range(pixels):
                    x, y = abs((column + 0.5) / pixels - cx) / radius, abs((row + 0.5) / pixels - cy) / radius
                    apart = {
                        "disc": math.hypot(x, y),
                        "square": max(x, y),
                        "diamond": (x + y) / 1.2,
                        "cross": min(max(x, 3 * y), max(3 * x, y)) / 1.2,
                    }[SHAPES[looks.traits["shape"][thing]]]
                    cover = 1 / (1 + math.exp(-(1 - apart) * radius * pixels * 4))
                    for channel in range(3):
                        old = film[f, channel, row, column]
                        film[f, channel, row, column] = (1 - cover) * old + cover * light * colour[channel]
    noise = normal(torch.tensor([number]), tuple(film.shape), (seed, "noise"))[0]
    return film + 0.05 * noise.double()


@pytest.mark.parametrize("frames", [1, 3])
def test_films_are_what_was_defined(frames):
    data = scenes(part="videos", **DATA)
    looks = data.train.looks
    shapes = [int((looks.traits["shape"] == n).nonzero()[0]) for n in range(4)]
    made = torch.tensor([[shapes[n], shapes[(n + 1) % 4], n, 3 - n] for n in range(4)])
    ids = torch.tensor([5, 3, 900, 41])
    films = render(made, looks, ids, frames, 8, seed=7)
    wanted = [by_hand(s, looks, i, frames, 8, 7) for s, i in zip(made.tolist(), ids.tolist(), strict=True)]
    torch.testing.assert_close(films, torch.stack(wanted).float(), rtol=1e-4, atol=1e-4)


def test_films_show_the_relation_and_the_motion():
    data = scenes(part="videos", **DATA)
    looks = data.train.looks
    colours = torch.tensor(list(COLOURS.values()))
    a, b = (int((looks.traits["colour"] == n).nonzero()[0]) for n in (0, 2))  # red and blue
    for number, (right, down) in enumerate(RELATIONS.values()):
        film = render(torch.tensor([[a, b, number, 2]]), looks, torch.tensor([1]), 3, 16, seed=0)[0]
        for thing, side in ((a, 1), (b, -1)):
            column, row = (int(16 * (0.5 + side * APART * k)) for k in (right, down))
            seen = film[:, :, row - 1 : row + 2, column - 1 : column + 2].mean((0, 2, 3))
            nearest = torch.cosine_similarity(seen[None], colours).argmax()
            assert int(nearest) == int(looks.traits["colour"][thing]), number
    for number, (right, down) in enumerate(MOTIONS.values()):
        film = render(torch.tensor([[a, b, 0, number]]), looks, torch.tensor([1]), 3, 32, seed=0)[0]
        red = (film[:, 0] - film[:, 2]).clamp_min(0.3) - 0.3
        places = torch.arange(32.0)
        column, row = ((red.sum(1) * places).sum(1) / red.sum((1, 2)), (red.sum(2) * places).sum(1) / red.sum((1, 2)))
        moved = torch.tensor([column[-1] - column[0], row[-1] - row[0]])
        torch.testing.assert_close(moved, 32 * 2 * STEP * torch.tensor([right, down]).float(), atol=1.0, rtol=0)


def test_a_film_depends_on_its_row_alone_and_words_on_the_view():
    data = scenes(part="videos", **DATA)
    first, other, alone = everything(data), everything(data, view=1), data.train.batch(torch.tensor([7]))
    assert torch.equal(first["video"], other["video"])
    assert not torch.equal(first["label"], other["label"])
    assert torch.equal(alone["video"][0], first["video"][7])
    assert first["video"].shape == (40, 3, 3, 16, 16)
    assert scenes(part="videos", **DATA, frames=2, pixels=9).test.batch(torch.arange(2))["video"].shape == (
        2, 2, 3, 9, 9
    )  # fmt: skip


def test_text_and_videos_share_words_and_looks_but_no_scenes():
    text, videos = scenes(**DATA), scenes(part="videos", **DATA)
    assert "video" not in everything(text)
    assert text.spec == videos.spec
    assert torch.equal(text.test.looks.tokens, videos.train.looks.tokens)
    assert text.extra["tokenizer"].convert_ids_to_tokens(text.test.looks.tokens.tolist()) == World(12).names
    for trait, values in text.test.looks.traits.items():
        assert torch.equal(values, videos.train.looks.traits[trait])
    assert not torch.equal(text.train.captions.scenes, videos.train.captions.scenes)
    assert len({d.fingerprint for d in (text.train, text.test, videos.train, scenes(**DATA, seed=1).train)}) == 4
    assert text.train.fingerprint == scenes(**DATA).train.fingerprint
    assert torch.equal(text.test.batch(torch.arange(3))["id"], torch.arange(40, 43))


@pytest.mark.parametrize(
    "wrong",
    [{"things": 1}, {"things": 20_000}, {"told": 1.5}, {"rate": 0.0}, {"frames": 0}, {"pixels": 7}, {"context": 7}],
)
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(UserError, match=r"data 'scenes' needs rows, frames, 2 to 10000 things"):
        scenes(**{**DATA, **wrong})
