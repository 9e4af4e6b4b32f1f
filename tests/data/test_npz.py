import os
from pathlib import Path

import numpy as np
import pytest
import torch

from limbeck.data import load_data
from limbeck.errors import UserError
from limbeck.registry import Block

REAL = os.environ.get("LIMBECK_DATA")
GENERATOR = np.random.default_rng(0)
X = GENERATOR.normal(3, 5, (40, 6))
Y = np.arange(40) % 4
PICTURES = GENERATOR.integers(0, 256, (40, 5, 5, 3), dtype=np.uint8)


def load(tmp_path, arrays, **arguments):
    path = tmp_path / "data.npz"
    np.savez(path, **arrays)
    return load_data(Block("npz", {"path": path, **arguments}))


@pytest.mark.parametrize(
    "names",
    [
        ("x_train", "y_train", "x_test", "y_test", "x_val", "y_val"),
        ("train_images", "train_labels", "test_images", "test_labels", "val_images", "val_labels"),
        ("X_train", "target_train", "X_test", "target_test", "X_valid", "target_valid"),
    ],
)
def test_usual_names_are_found(tmp_path, names):
    rows = slice(0, 24), slice(24, 32), slice(32, 40)
    arrays = {n: (X if i % 2 == 0 else Y)[rows[i // 2]] for i, n in enumerate(names)}
    data = load(tmp_path, arrays, normalise=False)
    assert (len(data.train), len(data.test), len(data.val)) == (24, 8, 8)
    np.testing.assert_allclose(data.test.batch(torch.arange(8))["input"], X[24:32], rtol=1e-6)
    assert data.val.batch(torch.arange(8))["label"].tolist() == Y[32:].tolist()


def test_a_single_pair_is_split_and_normalised_by_train(tmp_path):
    data = load(tmp_path, {"x": X, "y": Y}, test_fraction=0.25, val_fraction=0.1)
    assert (len(data.train), len(data.test), len(data.val)) == (26, 10, 4)
    train = data.train.batch(torch.arange(26))["input"]
    assert train.mean(dim=0).abs().max() < 1e-6 and (train.std(dim=0, unbiased=False) - 1).abs().max() < 1e-5
    assert data.test.batch(torch.arange(10))["input"].mean(dim=0).abs().max() > 1e-4


def test_named_arrays_class_names_and_pictures(tmp_path):
    data = load(
        tmp_path, {"pics": PICTURES, "kind": Y, "classes": np.array(list("abcd"))}, inputs="pics", labels="kind"
    )
    assert data.spec.shape == (3, 5, 5) and data.spec.class_names == ("a", "b", "c", "d")
    train = data.train.batch(torch.arange(len(data.train)))["input"]
    assert data.train.tensors["input"].dtype == torch.uint8
    assert train.mean(dim=(0, 2, 3)).abs().max() < 1e-4 and (train.std(dim=(0, 2, 3)) - 1).abs().max() < 1e-2


def test_a_constant_column_does_not_become_infinite(tmp_path):
    data = load(tmp_path, {"x": np.ones((10, 2)), "y": np.arange(10) % 2})
    assert data.train.batch(torch.arange(8))["input"].abs().max() == 0


@pytest.mark.parametrize(
    ("arrays", "arguments", "says"),
    [
        ({"x": X, "y": Y[:39]}, {}, "40 inputs but 39 labels"),
        ({"x": X}, {}, "no train array called like 'y'"),
        ({"x": X, "lables": Y}, {"labels": "labels"}, "did you mean 'lables'"),
        ({"x": X, "y": Y, "x_test": X}, {}, "no test array called like 'y'"),
        ({"x": X, "y": Y * 0}, {}, "at least two classes"),
        ({"x": np.full((40, 2), np.nan), "y": Y}, {}, "not finite"),
        ({"x": X[:0], "y": Y[:0]}, {}, "is missing"),
        ({"x": X, "y": Y, "classes": np.array(["a", "b"])}, {}, "train label '2'"),
        ({"x": np.array(["a"] * 40), "y": Y}, {}, "are not numbers"),
    ],
)
def test_arrays_that_do_not_fit_give_one_clear_error(tmp_path, arrays, arguments, says):
    with pytest.raises(UserError, match=says):
        load(tmp_path, arrays, **arguments)


def test_pickled_objects_are_never_loaded(tmp_path):
    path = tmp_path / "objects.npz"
    np.savez(path, x=np.array([{"a": 1}], dtype=object), y=Y)
    with pytest.raises(UserError, match="without pickle"):
        load_data(Block("npz", {"path": path}))


def test_a_missing_or_damaged_file(tmp_path):
    with pytest.raises(UserError, match="there is no file"):
        load_data(Block("npz", {"path": tmp_path / "none.npz"}))
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 not really")
    with pytest.raises(UserError, match="cannot be read"):
        load_data(Block("npz", {"path": tmp_path / "bad.npz"}))
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(UserError, match="cannot be read"):
        load_data(Block("npz", {"path": tmp_path / "text.npz"}))


@pytest.mark.skipif(not REAL, reason="LIMBECK_DATA is not set")
def test_real_heartbeats():
    data = load_data(Block("npz", {"path": Path(REAL) / "timeseries" / "ecg200.npz"}))
    assert (len(data.train), len(data.test), data.spec.shape, data.spec.classes) == (100, 100, (96,), 2)
