import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset

from limbeck.data import load_data
from limbeck.data.arrays import ArraySource
from limbeck.data.base import Data, DataSpec
from limbeck.data.python import MapSource, as_data
from limbeck.data.stream import Stream
from limbeck.errors import UserError
from limbeck.registry import Block

X = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
Y = torch.arange(20) % 2


class Pictures(Dataset):
    """As torchvision's data sets are: pictures, ``classes``, ``targets``; random augmentation if asked."""

    def __init__(self, n=12, noisy=False, level=0, classes=("cat", "dog", "cow")):
        self.n, self.noisy, self.level = n, noisy, level
        if classes:
            self.classes = list(classes)
        self.targets = [i % 3 for i in range(n)]
        self.reads = 0

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        if index >= self.n:
            raise IndexError(index)
        self.reads += 1
        pixels = np.full((4, 5, 3), self.level + index, dtype=np.uint8)
        if self.noisy:
            pixels[0, 0] = [random.randrange(256), np.random.randint(256), int(torch.randint(256, ()))]
        return Image.fromarray(pixels), self.targets[index]


class Items(Dataset):
    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


def everything(source, view=0):
    return source.batch(torch.arange(len(source)), view)


def test_data_goes_through_as_it_is():
    source = ArraySource({"input": X, "label": Y}, DataSpec(shape=(3,), classes=2))
    data = Data(source.spec, source)
    assert as_data(data) is data
    assert as_data({"train": source, "test": source}).test is source


@pytest.mark.parametrize(
    "value",
    [
        ((X, Y), (X[:8], Y[:8])),
        {"train": (X, Y), "test": (X[:8], Y[:8])},
        {"train": (X.numpy(), Y.numpy()), "test": (X[:8].double().numpy(), Y[:8].tolist())},
        [[X, Y], [X[:8], Y[:8]]],
        (TensorDataset(X, Y), TensorDataset(X[:8], Y[:8])),
        {"train": TensorDataset(X, Y), "test": (X[:8], Y[:8])},
    ],
)
def test_pairs_of_arrays_by_split(value):
    data = as_data(value)
    assert (len(data.train), len(data.test), data.val) == (20, 8, None)
    assert data.spec.shape == (3,) and data.spec.classes == 2
    assert torch.allclose(everything(data.train)["input"], X), "numbers are taken as they are"
    assert everything(data.test)["label"].tolist() == Y[:8].tolist()


def test_one_pair_or_data_set_is_split():
    for value in ((X, Y), TensorDataset(X, Y), (X.tolist(), [str(y) for y in Y.tolist()])):
        data = as_data(value)
        assert (len(data.train), len(data.test)) == (16, 4)
        assert torch.bincount(everything(data.test)["label"]).tolist() == [2, 2]
    data = as_data(Pictures())
    assert (len(data.train), len(data.test)) == (10, 2)
    pixels = [int(p) for s in (data.train, data.test) for p in everything(s)["input"][:, 0, 1, 1] * 255 + 0.5]
    assert sorted(pixels) == list(range(12))


def test_bytes_are_images_and_normalised_by_train():
    x = np.random.default_rng(0).integers(0, 256, (30, 6, 6, 3), dtype=np.uint8)
    data = as_data({"train": (x, np.arange(30) % 3), "validation": (x[:6], np.arange(6) % 3)})
    train = everything(data.train)["input"]
    assert data.spec.shape == (3, 6, 6) and len(data.val) == 6 and data.test is None
    assert train.mean(dim=(0, 2, 3)).abs().max() < 1e-4


def test_names_come_from_classes_without_reading_every_item():
    train = Pictures(12)
    data = as_data((train, Pictures(6, level=100)))
    assert data.spec.class_names == ("cat", "dog", "cow") and data.spec.shape == (3, 4, 5)
    assert train.reads == 1
    batch = everything(data.test)
    assert (batch["input"] * 255).round()[:, 0, 2, 2].tolist() == [100, 101, 102, 103, 104, 105]
    assert batch["label"].tolist() == [0, 1, 2, 0, 1, 2]


def test_classes_are_counted_where_there_are_no_names():
    unnamed = Pictures(12, classes=None)
    assert as_data((unnamed, unnamed)).spec.classes == 3
    assert unnamed.reads == 1, "targets were enough"
    items = Items([{"image": np.zeros((2, 2), np.uint8), "label": np.int64(i % 4)} for i in range(8)])
    data = as_data({"train": items, "test": items})
    assert data.spec.classes == 4 and data.spec.shape == (1, 2, 2)
    part = Subset(Pictures(12), [0, 1, 3, 4, 6, 7])
    assert as_data(part).spec.class_names == ("cat", "dog", "cow")


def test_random_augmentation_repeats_itself_by_id_and_view():
    data = as_data((Pictures(noisy=True), Pictures()))
    whole = everything(data.train, view=3)["input"]
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    assert torch.equal(data.train.batch(torch.tensor([7, 2]), 3)["input"], whole[[7, 2]])
    assert not torch.equal(everything(data.train, view=4)["input"], whole)
    assert len(whole[:, :, 0, 0].unique(dim=0)) > 6, "samples differ"


def test_the_global_generators_are_put_back():
    data = as_data((Pictures(noisy=True), Pictures()))
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    expected = torch.rand(3), random.random(), np.random.rand()
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    everything(data.train)
    _ = data.train.fingerprint
    as_data((Pictures(noisy=True, classes=None), Pictures()))
    got = torch.rand(3), random.random(), np.random.rand()
    assert torch.equal(expected[0], got[0]) and expected[1:] == got[1:]


def test_worker_processes_give_the_same_batches():
    data = as_data((Pictures(noisy=True), Pictures()))
    at = [Stream(data.train, 4, 0).at(s)[0]["input"] for s in range(6)]
    for workers in (0, 2):
        got = [b[0]["input"] for b in Stream(data.train, 4, 0, workers=workers).batches(0, 6)]
        assert all(torch.equal(a, b) for a, b in zip(at, got, strict=True))


def test_fingerprints_follow_the_items():
    base = as_data((Pictures(), Pictures()))
    again = as_data((Pictures(), Pictures()))
    other = as_data((Pictures(level=1), Pictures()))
    assert base.train.fingerprint == again.train.fingerprint != other.train.fingerprint
    assert base.train.fingerprint != base.test.fingerprint
    named = Pictures()
    named.fingerprint = "version 2"
    assert MapSource(named, DataSpec()).fingerprint != MapSource(Pictures(), DataSpec()).fingerprint


def test_a_users_function_by_dotted_path(tmp_path, monkeypatch):
    (tmp_path / "mydata.py").write_text(
        "import torch\n"
        "def blobs(n=10, *, gap=1.0):\n"
        "    y = torch.arange(n) % 2\n"
        "    return (y[:, None] * gap).float(), y\n"
        "def nothing():\n"
        "    pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    data = load_data(Block("mydata:blobs", {"n": 30, "gap": 2.0}))
    assert len(data.train) == 24 and everything(data.train)["input"].max() == 2.0
    with pytest.raises(UserError, match=r"data 'mydata:nothing' is None \(does the function return it\?\)"):
        load_data(Block("mydata:nothing"))
    sys.modules.pop("mydata")


class Endless(IterableDataset):
    def __iter__(self):
        yield X[0], 0


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (None, "is None"),
        (3, "is a int; expected a Data"),
        (X, "is a Tensor; expected"),
        ((X, Y, X, Y), "is a tuple of 4"),
        ({"train": (X, Y), "tset": (X, Y)}, "did you mean 'test'"),
        ({}, "expected train, test, val"),
        ({"test": (X, Y)}, "has no train split"),
        (Endless(), "IterableDataset"),
        ((Pictures(), Endless()), "the test split of the data is an IterableDataset"),
        ((X, Y[:19]), "20 inputs but 19 labels"),
        ((X[:0], Y[:0]), "has no rows"),
        ((X, Y * 0), "at least two classes"),
        ((X, torch.full((20,), float("nan"))), "not whole numbers"),
        ((X * float("inf"), Y), "not finite"),
        ({"train": (X, Y), "test": (X, Y + 1)}, "the test label '2'"),
        ((Items([]), Items([])), "has no rows"),
        (Items([(X[0], 1)] * 4), "every label of the train split of the data is 1"),
        (Items([(X[0], "a")] * 4), "number the classes from 0"),
        (Items([(X[0], -1)] * 4), "label -1 in row 0"),
        (Items([X[0]] * 4), "expected .input, label."),
        (Items([("text", 1)] * 4), "expected a tensor, an array or a picture"),
        (Data(DataSpec()), "neither a train nor a test split"),
    ],
)
def test_what_is_no_data_gives_one_clear_error(value, says):
    with pytest.raises(UserError, match=says):
        as_data(value)


@pytest.mark.parametrize(
    ("items", "says"),
    [
        ([(X[0], 0), (torch.zeros(4), 1)], r"row 1 of the train split of the data has shape \[4\], row 0 \[3\]"),
        ([(X[0], 0), (X[1] * float("nan"), 1)], "row 1 of the train split of the data has values that are not finite"),
        ([(X[0], 0), (X[1], 5)], "label 5 in row 1"),
    ],
)
def test_a_bad_item_is_named_when_it_is_read(items, says):
    train = Items(items)
    train.classes = ["a", "b"]
    data = as_data((train, train))
    with pytest.raises(UserError, match=says):
        everything(data.train)


def test_unlabelled_items_stay_unlabelled():
    train = Items([(X[0], 0), (X[1], -100), (X[2], 1)])
    assert everything(as_data((train, train)).train)["label"].tolist() == [0, -100, 1]


def test_naming_data_does_not_import_torch():
    code = "import sys, limbeck.data; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
