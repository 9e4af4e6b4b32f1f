import pytest
import torch

from limbeck.data.labelled import labelled_text
from limbeck.data.tokenizer import bpe_tokenizer, char_tokenizer, with_marks
from limbeck.engine.teacher import Teacher
from limbeck.errors import UserError
from limbeck.language.replacement import Replacement, kinds, neighbours
from limbeck.models.encoder import encoder


@pytest.fixture(scope="module")
def data():
    return labelled_text(corpus="topics", train_size=60, test_size=4, context=14)


def replacing(data, masked=False):
    torch.manual_seed(0)
    size = data.spec.vocab_size
    net = encoder(hidden=8, layers=1, heads=2, vocab_size=size, context=14, task="masked_lm", data=data).eval()
    teacher = Teacher(net, {"logits"}, "words") if masked else None
    return Replacement(data.extra["tokenizer"], torch.randn(size, 8), teacher)


@pytest.mark.parametrize("masked", [False, True])
def test_words_give_way_to_candidates_at_the_share_and_marks_stay(data, masked):
    replace, rows = replacing(data, masked), torch.arange(60)
    plain = data.train.batch(rows)
    special = torch.isin(plain["input_ids"], torch.tensor(data.extra["tokenizer"].all_special_ids))
    others = replace.candidates(plain, 5)
    assert others.shape == (60, 14, 5)
    changed = copies = 0
    for view in range(20):
        batch = replace({**plain, "view": view}, 0.4, 5, 3, seed=1)
        moved = batch["input_ids"] != plain["input_ids"]
        assert not (moved & special).any()
        assert (batch["input_ids"][..., None] == others).any(-1)[moved].all()
        changed += int(moved.sum())
        copies += int((~special).sum())
    # One time in four the text itself is taken.
    assert changed / copies == pytest.approx(0.4 * 3 / 4, abs=0.02)


def test_a_copy_is_the_same_however_the_batch_is_cut_and_there_are_only_so_many(data):
    replace, plain = replacing(data), data.train.batch(torch.arange(8))
    whole = [replace({**plain, "view": v}, 0.5, 4, 2, seed=3)["input_ids"] for v in range(30)]
    cut = {k: v[5:] if isinstance(v, torch.Tensor) else v for k, v in plain.items()}
    assert torch.equal(replace({**cut, "view": 7}, 0.5, 4, 2, seed=3)["input_ids"], whole[7][5:])
    assert {len({tuple(text[i].tolist()) for text in whole}) for i in range(8)} == {3}
    other = [replace({**plain, "view": v}, 0.5, 4, 2, seed=4)["input_ids"] for v in range(30)]
    assert not torch.equal(torch.stack(whole), torch.stack(other))


def test_candidates_are_what_the_masked_model_expects_with_the_place_hidden(data):
    replace, batch = replacing(data, masked=True), data.train.batch(torch.arange(3))
    words, found = data.extra["tokenizer"], replace.candidates(batch, 4)
    for b, t in ((0, 1), (2, 3)):
        hidden = {k: batch[k][b : b + 1].clone() for k in ("input_ids", "attention_mask", "token_type_ids")}
        hidden["input_ids"][0, t] = words.mask_token_id
        logits = replace.masked.module(**hidden).logits[0, t]
        barred = {*words.all_special_ids, int(batch["input_ids"][b, t])}
        wanted = [i for i in logits.argsort(descending=True).tolist() if i not in barred][:4]
        assert found[b, t].tolist() == wanted
    assert torch.equal(replace.candidates(batch, 4), found)  # the second time from what is kept


def test_neighbours_are_the_nearest_of_their_kind():
    embedding = torch.tensor([[1.0, 0.0], [2.0, 0.1], [1.0, 0.2], [-1.0, 0.0], [1.0, 0.05]])
    plain, whole = torch.tensor([True] * 4 + [False]), torch.tensor([True, False, True, True, False])
    found = neighbours(embedding, plain, whole, 3)
    assert found[0].tolist() == [2, 3, 1]  # 1 is nearest, but no beginning of a word; 4 may not be chosen
    assert found[2].tolist() == [0, 3, 1]


def test_pieces_of_longer_words_are_told_apart():
    words = with_marks(bpe_tokenizer(["the thermal the then"] * 9, 262))
    plain, begins = kinds(words, len(words) + 2)
    names = words.convert_ids_to_tokens(list(range(len(words))))
    for i, name in enumerate(names):
        special = i in words.all_special_ids
        assert bool(plain[i]) != special and bool(begins[i]) == (name.startswith("\u0120") and not special)
    assert not plain[-2:].any()
    plain, begins = kinds(with_marks(char_tokenizer(["ab"])), 7)
    assert torch.equal(plain, begins)


def test_a_model_without_a_mask_token_cannot_propose_words(data):
    class Words:
        mask_token_id = None

    with pytest.raises(UserError, match="needs a tokenizer with a mask token"):
        Replacement(Words(), torch.zeros(4, 2), Teacher(torch.nn.Linear(1, 1), {"logits"}, "words"))
