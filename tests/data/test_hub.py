import numpy as np
import pytest
import torch
from PIL import Image

from limbeck.data import load_data
from limbeck.data.stream import Stream
from limbeck.errors import UserError
from limbeck.registry import Block

hub = pytest.importorskip("datasets")
hub.disable_progress_bars()

KINDS = hub.ClassLabel(names=["cat", "dog"])


def save(tmp_path, **splits):
    value = hub.DatasetDict(splits) if len(splits) > 1 else splits["train"]
    value.save_to_disk(str(tmp_path / "saved"))
    return tmp_path / "saved"


def load(path, **arguments):
    return load_data(Block("datasets_dir", {"path": path, **arguments}))


def pictures(n=10, level=0):
    images = [Image.fromarray(np.full((9, 7, 3), 12 * i + level, np.uint8)) for i in range(n)]
    features = hub.Features({"image": hub.Image(), "kind": KINDS})
    return hub.Dataset.from_dict({"image": images, "kind": [i % 2 for i in range(n)]}, features=features)


def numbers(n=10, **more):
    columns = {"a": np.arange(n) * 1.5, "b": [[i, i * i] for i in range(n)], "label": ["xy"[i % 2] for i in range(n)]}
    return hub.Dataset.from_dict({**columns, **more})


def test_pictures_and_class_names(tmp_path):
    data = load(save(tmp_path, train=pictures(), test=pictures(4, 3)), image_size=5, mean=[0, 0, 0], std=[1, 1, 1])
    assert (len(data.train), len(data.test), data.spec.class_names) == (10, 4, ("cat", "dog"))
    batch = data.test.batch(torch.tensor([2, 0]))
    levels = (batch["input"] * 255).round().int()
    assert levels.shape == (2, 3, 5, 5) and levels[:, 0, 2, 2].tolist() == [27, 3]
    assert batch["label"].tolist() == [0, 0]
    assert load(tmp_path / "saved").spec.shape == (3, 7, 7), "the first one's shorter side"


def test_a_single_table_is_split_and_loads_ahead(tmp_path):
    data = load(save(tmp_path, train=pictures(20)), image_size=5, augment=[Block("noise")])
    assert (len(data.train), len(data.test)) == (16, 4)
    at = [Stream(data.train, 4, 0).at(s)[0]["input"] for s in range(4)]
    got = [b[0]["input"] for b in Stream(data.train, 4, 0).batches(0, 4)]
    assert all(torch.equal(a, b) for a, b in zip(at, got, strict=True))


def test_numbers_are_joined_and_standardised(tmp_path):
    data = load(save(tmp_path, train=numbers(), validation=numbers(4)))
    assert (data.spec.shape, len(data.test), data.spec.class_names) == ((3,), 4, ("x", "y"))
    train = data.train.batch(torch.arange(10))["input"]
    assert train.mean(dim=0).abs().max() < 1e-6 and (train.std(dim=0, unbiased=False) - 1).abs().max() < 1e-5
    assert load(tmp_path / "saved", inputs=["b"]).spec.shape == (2,)


def test_a_label_of_minus_one_is_unlabelled(tmp_path):
    features = hub.Features({"x": hub.Value("float32"), "label": KINDS})
    table = hub.Dataset.from_dict({"x": [1.0, 2.0, 3.0, 4.0], "label": [0, 1, -1, 1]}, features=features)
    data = load(save(tmp_path, train=table, test=table))
    assert data.train.batch(torch.arange(4))["label"].tolist() == [0, 1, -100, 1]


def test_the_fingerprint_follows_the_pictures(tmp_path):
    base = load(save(tmp_path / "a", train=pictures())).train.fingerprint
    assert load(tmp_path / "a" / "saved").train.fingerprint == base
    assert load(save(tmp_path / "b", train=pictures(level=1))).train.fingerprint != base


@pytest.mark.parametrize(
    ("table", "arguments", "says"),
    [
        (numbers(), {"label": "lable"}, "did you mean 'label'"),
        (numbers(), {"inputs": ["zz"]}, "no column 'zz'"),
        (numbers(), {"inputs": ["label"], "label": "label"}, "must be one column of pictures or some of numbers"),
        (numbers(label=["x"] * 10), {}, "at least two classes"),
        (numbers(b=[[1], [1, 2]] * 5), {}, "numbers of one shape"),
        (numbers().rename_column("label", "group"), {}, "which column of .* is the label"),
        (numbers(a=[1.0, float("nan")] * 5), {}, "not finite"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path, table, arguments, says):
    with pytest.raises(UserError, match=says):
        load(save(tmp_path, train=table), **arguments)


def test_a_damaged_picture_names_its_row(tmp_path):
    features = hub.Features({"image": hub.Image(), "label": KINDS})
    images = [{"bytes": b"no picture", "path": None}] * 4
    table = hub.Dataset.from_dict({"image": images, "label": [0, 1, 0, 1]}, features=features)
    data = load(save(tmp_path, train=table, test=table), image_size=4)
    with pytest.raises(UserError, match="in row 2 of column 'image' cannot be decoded"):
        data.train.batch(torch.tensor([2]))


def test_no_saved_table(tmp_path):
    with pytest.raises(UserError, match="holds nothing that datasets' save_to_disk wrote"):
        load(tmp_path)
    with pytest.raises(UserError, match="but no train"):
        load(save(tmp_path, test=numbers(), other=numbers()))
