import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from limbeck.data.labels import balanced_order, carve, encode, shares
from limbeck.errors import UserError


def test_whole_numbers_from_zero_stay_as_they_are():
    codes, names = encode({"train": [2, 0, 1, 0], "test": [1, 2]})
    assert codes["train"].tolist() == [2, 0, 1, 0]
    assert codes["test"].tolist() == [1, 2]
    assert names == ("0", "1", "2")
    assert codes["train"].dtype == torch.int64


def test_texts_and_numbers_with_gaps_are_numbered_in_sorted_order():
    codes, names = encode({"train": ["dog", "cat", "dog"], "test": np.array(["cat"])})
    assert (codes["train"].tolist(), codes["test"].tolist(), names) == ([1, 0, 1], [0], ("cat", "dog"))
    codes, names = encode({"train": torch.tensor([-1, 1, 1])})
    assert (codes["train"].tolist(), names) == ([0, 1, 1], ("-1", "1"))
    assert encode({"train": np.array([[3.0], [7.0]])})[0]["train"].tolist() == [0, 1]
    assert encode({"train": [True, False]})[0]["train"].tolist() == [1, 0]


def test_given_names_fix_the_classes_even_if_one_does_not_occur():
    codes, names = encode({"train": [0, 2]}, ["a", "b", "c"])
    assert (codes["train"].tolist(), names) == ([0, 2], ("a", "b", "c"))


def test_unlabelled_rows_stay_unlabelled():
    assert encode({"train": [5, -100, 9]})[0]["train"].tolist() == [0, -100, 1]


@pytest.mark.parametrize(
    ("splits", "names", "says"),
    [
        ({"train": [1, 1, 1]}, None, "every label of the train split is '1'"),
        ({"train": ["a", "a"]}, None, "at least two classes"),
        ({"train": [-100, -100]}, None, "is missing"),
        ({"train": []}, None, "is missing"),
        ({"train": [0, 1], "test": [0, 2]}, None, r"test label '2' \(row 1\)"),
        ({"train": [0, 1, 3]}, ["a", "b"], "train label '3'"),
        ({"train": ["a", "b"], "test": [0, 1]}, None, "must be alike"),
        ({"train": [0.5, 1.0]}, None, "not whole numbers"),
        ({"train": [0.0, float("nan")]}, None, "not whole numbers"),
        ({"train": [[0, 1], [1, 0]]}, None, "one class per row"),
    ],
)
def test_what_is_no_class_is_refused(splits, names, says):
    with pytest.raises(UserError, match=says):
        encode(splits, names)


@given(counts=st.lists(st.integers(1, 30), min_size=2, max_size=6), seed=st.integers(0, 5))
def test_every_prefix_of_the_order_is_stratified(counts, seed):
    labels = torch.cat([torch.full((n,), k) for k, n in enumerate(counts)])
    order = balanced_order(labels, seed)
    assert sorted(order.tolist()) == list(range(len(labels)))
    share = torch.tensor(counts, dtype=torch.float64) / len(labels)
    for length in range(1, len(labels) + 1):
        had = torch.bincount(labels[order[:length]], minlength=len(counts))
        assert ((had - share * length).abs() <= len(counts) / 2 + 1e-9).all()


def test_subsets_are_nested_and_test_rows_do_not_depend_on_the_train_size():
    labels = torch.arange(200) % 10
    small, large = (carve(labels, 0, test=50, val=20, train=n) for n in (30, 100))
    assert torch.equal(small["test"], large["test"]) and torch.equal(small["val"], large["val"])
    assert torch.equal(small["train"], large["train"][:30])
    whole = carve(labels, 0, test=50, val=20)
    assert sorted(torch.cat(list(whole.values())).tolist()) == list(range(200))
    assert torch.bincount(labels[small["test"]]).tolist() == [5] * 10
    assert not torch.equal(carve(labels, 1, test=50)["test"], small["test"])


@pytest.mark.parametrize("sizes", [{"test": 10}, {"test": 5, "train": 6}, {"val": -1}, {"train": 0}])
def test_more_rows_than_there_are_is_an_error(sizes):
    with pytest.raises(UserError, match="cannot be split"):
        carve(torch.arange(10) % 2, 0, **sizes)


def test_shares():
    assert shares(10, 0.2) == {"test": 2, "val": 0}
    assert shares(3, 0.01, 0.01) == {"test": 1, "val": 1}
    with pytest.raises(UserError, match="sum below 1"):
        shares(10, 0.6, 0.5)
