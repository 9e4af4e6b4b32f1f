import pytest
import torch

from limbeck.data.commands import FIXED, INTENTS, OPEN, SLOTS, TEMPLATES, World, commands
from limbeck.errors import UserError


def words_of(found, i):
    batch = found.train.batch(torch.tensor([i]))
    row = batch["input_ids"][0][batch["attention_mask"][0].bool()].tolist()
    return found.extra["tokenizer"].convert_ids_to_tokens(row), batch


def test_a_commands_labels_are_those_of_a_template_that_makes_it():
    found, world = commands(train_size=60, test_size=5, values=4), World(4)
    for i in range(60):
        said, batch = words_of(found, i)
        assert (said[0], said[-1]) == ("<cls>", "<sep>")
        marks = [SLOTS[n] if n >= 0 else None for n in batch["slots"][0].tolist()]
        assert marks[0] is None and all(m is None for m in marks[len(said) - 1 :])
        pieces = []  # the command with its slots put back into a template
        for word, mark in zip(said[1:-1], marks[1:], strict=False):
            if mark[0] == "I":
                pieces[-1][1].append(word)
            else:
                pieces.append((mark[2:] if mark[0] == "B" else None, [word]))
        template = " ".join(f"{{{slot}}}" if slot else words[0] for slot, words in pieces)
        assert template in TEMPLATES[INTENTS[int(batch["label"])]]
        assert all(" ".join(words) in world.values[slot] for slot, words in pieces if slot)


def test_values_are_words_of_one_slot_alone():
    world = World(30)
    words = [word for slot in OPEN for value in world.values[slot] for word in value.split()]
    assert len(words) == len(set(words)) == 6 * 40  # every third has two words
    assert not set(words) & {w for values in FIXED.values() for v in values for w in v.split()}
    assert set(words) <= set(world.vocabulary)


def test_all_parts_have_one_vocabulary_and_know_every_word():
    made = [commands(part=part, train_size=40, test_size=5) for part in ("labelled", "unlabelled", "general", "mix")]
    assert len({d.spec.tokenizer_hash for d in made}) == 1
    unknown = made[0].extra["tokenizer"].unk_token_id
    assert not any((d.train.batch(torch.arange(40))["input_ids"] == unknown).any() for d in made)
    assert [d.spec.task for d in made] == ["classification", *["masked_language"] * 3]


def test_the_mix_has_the_share_of_general_text_that_is_asked_for():
    mix = commands(part="mix", train_size=400, test_size=5, general=0.3)
    words = mix.extra["tokenizer"]
    stop = words.convert_tokens_to_ids(".")
    rows = mix.train.rows.batch(torch.arange(400))
    assert torch.equal((rows["input_ids"] == stop).any(1) | (rows["label"] == -100), rows["label"] == -100)
    assert float((rows["label"] == -100).double().mean()) == pytest.approx(0.3, abs=0.07)


def test_hidden_words_are_hidden_and_nothing_else():
    text = commands(part="unlabelled", train_size=50, test_size=5, rate=0.3)
    batch, plain = text.train.batch(torch.arange(50), 1), text.train.rows.batch(torch.arange(50))
    hidden = batch["label"] != -100
    assert torch.equal(batch["label"][hidden], plain["input_ids"][hidden])
    assert torch.equal(batch["input_ids"][~hidden], plain["input_ids"][~hidden])
    assert not torch.equal(hidden, text.train.batch(torch.arange(50), 2)["label"] != -100)


def test_the_world_is_the_same_for_a_seed_and_cut_to_its_context():
    one, same, other = (commands(train_size=20, test_size=20, context=9, seed=s).train for s in (1, 1, 2))
    assert one.fingerprint == same.fingerprint != other.fingerprint
    batch = one.batch(torch.arange(20))
    assert batch["input_ids"].shape == batch["slots"].shape == (20, 9)
    ends = batch["attention_mask"].sum(1) - 1
    assert (batch["input_ids"].gather(1, ends[:, None]) == one.tokenizer.sep_token_id).all()
    with pytest.raises(UserError, match="a context of at least 8"):
        commands(context=4)
