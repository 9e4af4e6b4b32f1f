import re

import pytest
import torch

from limbeck.data.arithmetic import arithmetic, completion
from limbeck.errors import UserError


@pytest.mark.parametrize(
    ("a", "b", "says"),
    [(37, 48, "7+8=15 3+4+1=8 =85"), (0, 0, "0+0=0 =0"), (99, 1, "9+1=10 9+0+1=10 =100"), (5, 30, "5+0=5 0+3=3 =35")],
)
def test_the_working_is_the_columns_from_the_right(a, b, says):
    assert completion(a, b) == says
    assert completion(a, b, working=False) == str(a + b)


@pytest.mark.parametrize("digits", [1, 2, 3])
def test_every_step_of_every_row_is_right_and_fits(digits):
    data = arithmetic(train_size=60, test_size=20, digits=digits)
    words = data.extra["tokenizer"]
    for row in range(60):
        batch = data.train.batch(torch.tensor([row]))
        tokens, labels = batch["input_ids"][0], batch["labels"][0]
        assert tokens[batch["attention_mask"][0].bool()][-1] == words.eos_token_id
        prompt = words.decode(tokens[(labels == -100) & batch["attention_mask"][0].bool()])
        said = words.decode(labels[labels != -100][:-1])
        a, b = map(int, re.fullmatch(r"(\d+)\+(\d+)=", prompt).groups())
        assert int(said.split(" =")[1]) == a + b
        for step in said.split(" ")[:-1]:
            left, right = step.split("=")
            assert sum(map(int, left.split("+"))) == int(right)


def test_no_sum_is_in_two_parts_and_a_seed_gives_the_same_ones():
    data = arithmetic(train_size=50, val_size=20, test_size=30, digits=1)
    rows = [
        {tuple(r) for r in p.batch(torch.arange(len(p)))["input_ids"].tolist()}
        for p in (data.train, data.val, data.test)
    ]
    assert len(rows[0] | rows[1] | rows[2]) == 100
    again = arithmetic(train_size=50, val_size=20, test_size=30, digits=1)
    assert again.train.fingerprint == data.train.fingerprint
    assert (
        arithmetic(train_size=50, val_size=20, test_size=30, digits=1, seed=1).train.fingerprint
        != data.train.fingerprint
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"digits": 1}, "there are 100 sums of 1 digits"),
        ({"digits": 9}, "1 to 6"),
        ({"context": 10}, "context 10 is too short"),
        ({"train_size": -1}, "were asked for"),
    ],
)
def test_what_cannot_be_made_is_refused(arguments, says):
    with pytest.raises(UserError, match=says):
        arithmetic(**arguments)


def test_retold_rows_show_the_bare_sum_before_the_question_again():
    plain, made = (arithmetic(train_size=6, test_size=3, retold=retold) for retold in (False, True))
    assert len(made.train) == 12 and len(made.test) == 3

    def text(source, row):
        batch = source.batch(torch.tensor([row]))
        there, learnt = batch["attention_mask"][0].bool(), batch["labels"][0] != -100
        words = made.extra["tokenizer"]
        return words.decode(batch["input_ids"][0][there & ~learnt]), words.decode(batch["labels"][0][learnt])

    for row in range(6):
        (asked, answer), again = text(made.train, row), text(made.train, row + 6)
        assert (asked, answer) == text(plain.train, row)
        total = answer.rpartition("=")[2].removesuffix("<eos>")
        assert again == (f"{asked}{total} {asked}", answer)
    assert text(made.test, 0) == text(plain.test, 0)
    ids = torch.cat([source.ids for source in (made.train, made.test)])
    assert len(ids.unique()) == 15
