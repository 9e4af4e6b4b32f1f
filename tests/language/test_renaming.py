import torch

from limbeck.data.tokenizer import bpe_tokenizer, word_tokenizer
from limbeck.language.renaming import Renaming

TEXTS = ["count = count + 1 ; print ( count )", "total += step ; step = 2", "x x y 7 7 ( ("]


def encoded(words, length=20):
    rows = [words(t)["input_ids"] for t in TEXTS]
    mask = torch.tensor([[1] * len(r) + [0] * (length - len(r)) for r in rows])
    return torch.tensor([r + [words.pad_token_id] * (length - len(r)) for r in rows]), mask


def test_frequent_identifiers_alone_change_and_each_to_one_word():
    words = word_tokenizer(TEXTS, 100)
    tokens, mask = encoded(words)
    found = Renaming(words, 1.0)(tokens, mask, torch.arange(3), (0,))
    often = [{"count"}, {"step"}, {"x"}]
    for row, new, names in zip(tokens, found, often, strict=True):
        before, after = (words.convert_ids_to_tokens(ids.tolist()) for ids in (row, new))
        changed = {(a, b) for a, b in zip(before, after, strict=True) if a in names}
        assert len({a for a, _ in changed}) == len(changed) == len(names)
        assert all(b.isidentifier() for _, b in changed)
        assert all(a == b for a, b in zip(before, after, strict=True) if a not in names)
    seeds = {tuple(Renaming(words, 1.0)(tokens, mask, torch.arange(3), (s,))[0].tolist()) for s in range(12)}
    assert len(seeds) > 2


def test_so_many_texts_change_each_by_its_id():
    words = word_tokenizer(TEXTS, 100)
    tokens, mask = encoded(words)
    many, masks, ids = tokens[:1].repeat(600, 1), mask[:1].repeat(600, 1), torch.arange(600)
    found = Renaming(words, 0.3)(many, masks, ids, (1,))
    changed = (found != many).any(1)
    assert 0.2 < changed.float().mean() < 0.33, "now and then a word is replaced by itself"
    assert torch.equal(Renaming(words, 0.3)(many[7:9], masks[7:9], ids[7:9], (1,)), found[7:9])
    assert torch.equal(Renaming(words, 0.0)(many, masks, ids, (1,)), many)


def test_marks_of_pieces_are_no_part_of_a_name():
    words = bpe_tokenizer(TEXTS, 300)
    names = words.convert_ids_to_tokens(Renaming(words, 1.0).names.tolist())
    assert "\u0120count" in names and "count" in names and words.eos_token not in names
