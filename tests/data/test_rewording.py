import pytest
import torch

from limbeck.data.labelled import labelled_text
from limbeck.data.rewording import Rewording, neighbours
from limbeck.errors import UserError


def data(corpus="nli", size=40, **reword):
    return labelled_text(corpus=corpus, train_size=size, test_size=4, context=24, reword=reword or None)


def rows(found, view=0):
    """Each row as the words of its one or two texts."""
    batch = found.train.batch(torch.arange(len(found.train)), view)
    assert torch.equal(batch["attention_mask"].bool(), batch["input_ids"] != found.extra["tokenizer"].pad_token_id)
    assert (batch["token_type_ids"] <= batch["attention_mask"]).all()
    texts = []
    for tokens, kinds in zip(batch["input_ids"].tolist(), batch["token_type_ids"].tolist(), strict=True):
        words = found.extra["tokenizer"].convert_ids_to_tokens(tokens)
        texts.append([[w for w, k in zip(words, kinds, strict=True) if w[0] != "<" and k == n] for n in (0, 1)])
    return texts


@pytest.mark.parametrize("kind", ["neighbour", "random", "swap", "delete", "insert"])
def test_a_row_is_reworded_by_its_id_and_view_alone(kind):
    found = data(**{kind: 0.3})
    whole = found.train.batch(torch.arange(40), 2)
    some = torch.tensor([31, 4, 0])
    for key in ("input_ids", "attention_mask", "token_type_ids"):
        assert torch.equal(found.train.batch(some, 2)[key], whole[key][some])
    assert not torch.equal(found.train.batch(some, 3)["input_ids"], whole["input_ids"][some])
    assert found.train.fingerprint != data().train.fingerprint
    assert torch.equal(found.test.batch(torch.arange(4))["input_ids"], data().test.batch(torch.arange(4))["input_ids"])


def test_each_kind_changes_what_it_says_and_no_more():
    plain = rows(data())
    swapped = rows(data(swap=0.3))
    assert all(sorted(a) == sorted(b) for x, y in zip(plain, swapped, strict=True) for a, b in zip(x, y, strict=True))
    assert plain != swapped
    for share, per_text in ((0.4, None), (1.0, 1)):
        deleted = rows(data(delete=share))
        for x, y in zip(plain, deleted, strict=True):
            for before, after in zip(x, y, strict=True):
                rest = iter(before)
                assert all(word in rest for word in after) and after, "in order, and never all of them"
                assert per_text is None or len(after) == per_text
    inserted = rows(data(insert=0.3))
    for x, y in zip(plain, inserted, strict=True):
        for before, after in zip(x, y, strict=True):
            rest = iter(after)
            assert all(word in rest for word in before)
    for kind in ("random", "neighbour"):
        replaced = rows(data(**{kind: 0.5}))
        same = [a == b for x, y in zip(plain, replaced, strict=True) for u, v in zip(x, y, strict=True)
                for a, b in zip(u, v, strict=True)]  # fmt: skip
        assert sum(same) / len(same) == pytest.approx(0.5, abs=0.1)


def test_what_is_put_in_stands_before_the_word_whose_neighbour_it_is():
    found = data(size=60, insert=1.0)
    words = found.extra["tokenizer"]
    near = found.train.reword.near
    for before, after in zip(rows(data(size=60)), rows(found), strict=True):
        if len(before[0]) * 2 + len(before[1]) * 2 + 3 > 24:
            continue  # the context had no room for all
        for text, made in zip(before, after, strict=True):
            assert made[1::2] == text
            for put, word in zip(made[::2], text, strict=True):
                assert words.convert_tokens_to_ids(put) in near[words.convert_tokens_to_ids(word)]


def test_neighbours_keep_similar_company():
    # Words 3 and 4 stand in the same places, 5 and 6 in others; 0 is a mark.
    texts = [[1, a, 2, 0, 0, 7, b, 8] for a in (3, 4) for b in (5, 6)]
    near = neighbours(torch.tensor(texts * 3), torch.tensor([0]), 9, 1)[:, 0].tolist()
    assert (near[3], near[4], near[5], near[6]) == (4, 3, 6, 5)


def test_neighbours_are_those_of_a_loop():
    tokens = torch.randint(0, 7, (12, 9), generator=torch.Generator().manual_seed(3))
    count = torch.zeros(7, 7, dtype=torch.float64)
    for row in tokens.tolist():
        for i, a in enumerate(row):
            for j, b in enumerate(row):
                if 0 < abs(i - j) <= 2 and a and b:
                    count[a, b] += 1
    share = count / count.sum()
    alone = share.sum(0)
    company = torch.where(share > 0, (share / alone[:, None] / alone).log().clamp_min(0), torch.zeros(()).double())
    vectors = torch.nan_to_num(company)
    near = neighbours(tokens, torch.tensor([0]), 7, 5)
    for word in range(1, 7):
        order = sorted((w for w in range(1, 7) if w != word),
                       key=lambda w: -float(torch.cosine_similarity(vectors[word], vectors[w], dim=0)))  # fmt: skip
        assert near[word].tolist() == order


def test_what_cannot_be_is_refused():
    with pytest.raises(UserError, match="no 'translate'; there is neighbour, random"):
        data(translate=0.1)
    with pytest.raises(UserError, match="swap is a share between 0 and 1, not 2"):
        data(swap=2)


def test_shares_of_zero_do_nothing():
    found = data(swap=0.0, delete=0.0)
    assert rows(found) == rows(data())
    assert isinstance(found.train.reword, Rewording)
