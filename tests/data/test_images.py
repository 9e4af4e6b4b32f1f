import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from limbeck.data import load_data
from limbeck.data.images import decoded
from limbeck.data.stream import Stream
from limbeck.errors import UserError
from limbeck.registry import Block

REAL = os.environ.get("LIMBECK_DATA")
real = pytest.mark.skipif(not REAL, reason="LIMBECK_DATA is not set")
CLASSES = np.array([f"class {i}" for i in range(10)])


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("LIMBECK_DATA", str(tmp_path))
    monkeypatch.setenv("LIMBECK_HOME", str(tmp_path / "home"))
    return tmp_path


def colours(n, seed=0):
    # Smooth pictures: JPEG keeps them nearly as they are.
    generator = np.random.default_rng(seed)
    return np.broadcast_to(generator.integers(0, 256, (n, 1, 1, 3), dtype=np.uint8), (n, 32, 32, 3)).copy()


def write_fashion(root, n=60):
    generator = np.random.default_rng(0)
    arrays = {
        f"x_{s}": generator.integers(0, 256, (k, 28, 28), dtype=np.uint8) for s, k in (("train", n), ("test", 20))
    }
    labels = {f"y_{s}": (np.arange(k) % 10).astype(np.uint8) for s, k in (("train", n), ("test", 20))}
    np.savez(root / "fashion_mnist.npz", classes=CLASSES, **arrays, **labels)
    return arrays | labels


def write_cifar(root, damaged=None):
    fields = {"classes": CLASSES}
    for split, n in (("train", 30), ("test", 20)):
        files = []
        for i, picture in enumerate(colours(n)):
            buffer = io.BytesIO()
            Image.fromarray(picture).save(buffer, "JPEG", quality=95)
            files.append(b"no picture" if i == damaged else buffer.getvalue())
        fields[f"jpeg_{split}"] = np.frombuffer(b"".join(files), dtype=np.uint8)
        fields[f"offsets_{split}"] = np.cumsum([0, *map(len, files)])
        fields[f"y_{split}"] = (np.arange(n) % 10).astype(np.uint8)
    np.savez(root / "cifar10_jpeg.npz", **fields)


def test_cifar100_is_read_from_a_file_that_the_user_makes(root):
    generator = np.random.default_rng(0)
    sizes = {"train": 300, "test": 200}
    pictures = {f"x_{s}": generator.integers(0, 256, (k, 32, 32, 3), dtype=np.uint8) for s, k in sizes.items()}
    labels = {f"y_{s}": np.arange(k, dtype=np.uint8) % 100 for s, k in sizes.items()}
    with pytest.raises(UserError, match=r"there is no cifar100.npz in .*: set LIMBECK_DATA"):
        load_data(Block("cifar100"))
    np.savez(root / "cifar100.npz", classes=[f"class {i}" for i in range(100)], **pictures, **labels)
    data = load_data(Block("cifar100"))
    assert (len(data.train), len(data.test), data.spec.classes, data.spec.shape) == (300, 200, 100, (3, 32, 32))
    assert data.spec.class_names[99] == "class 99"


def test_digits_are_scikit_learns_scaled_and_split_without_overlap():
    from sklearn.datasets import load_digits

    data = load_data(Block("digits"))
    assert (len(data.train), len(data.test), data.val) == (1437, 360, None)
    assert data.spec.shape == (1, 8, 8) and data.spec.classes == 10
    rows = [s.batch(torch.arange(len(s))) for s in (data.train, data.test)]
    pixels = torch.cat([r["input"] for r in rows]) * data.spec.std[0] + data.spec.mean[0]
    assert abs(pixels.min()) < 1e-6 and abs(pixels.max() - 1) < 1e-6
    ours = {(tuple((p.flatten() * 16).round().int().tolist()), y) for p, y in zip(
        pixels, torch.cat([r["label"] for r in rows]).tolist(), strict=True)}  # fmt: skip
    bunch = load_digits()
    assert ours == {(tuple(map(int, x)), int(y)) for x, y in zip(bunch.data, bunch.target, strict=True)}
    normalised = torch.cat([r["input"] for r in rows])
    assert abs(normalised.mean()) < 1e-3 and abs(normalised.std() - 1) < 1e-3
    assert torch.bincount(rows[1]["label"]).min() >= 34, "stratified"


def test_smaller_digits_are_part_of_larger_ones_and_test_stays():
    small = load_data(Block("digits", {"train_size": 100, "val_size": 50}))
    large = load_data(Block("digits", {"train_size": 500, "val_size": 50}))
    every = torch.arange(100)
    assert torch.equal(small.train.batch(every)["input"], large.train.batch(every)["input"])
    assert torch.equal(small.train.batch(every)["id"], large.train.batch(every)["id"])
    assert small.test.fingerprint == large.test.fingerprint and small.train.fingerprint != large.train.fingerprint
    assert load_data(Block("digits", {"split_seed": 1})).test.fingerprint != small.test.fingerprint


def test_the_digits_split_is_pinned():
    assert load_data(Block("digits")).test.batch(torch.arange(12))["label"].tolist() == [
        3,
        5,
        1,
        6,
        4,
        9,
        7,
        0,
        2,
        8,
        3,
        5,
    ]


def test_more_digits_than_there_are_is_one_clear_error():
    with pytest.raises(UserError, match="digits has 1797 rows, which cannot be split into 2000 to train"):
        load_data(Block("digits", {"train_size": 2000}))


def test_fashion_mnist_is_read_and_cut(root):
    arrays = write_fashion(root)
    data = load_data(Block("fashion_mnist", {"train_size": 40, "val_size": 10, "test_size": 10}))
    assert (len(data.train), len(data.val), len(data.test)) == (40, 10, 10)
    assert data.spec.class_names == tuple(CLASSES)
    assert data.train.tensors["input"].dtype == torch.uint8
    assert data.train.batch(torch.arange(4))["input"].shape == (4, 1, 28, 28)
    files = {x.tobytes(): int(y) for x, y in zip(arrays["x_train"], arrays["y_train"], strict=True)}
    used = [data.train.tensors, data.val.tensors]
    kept = [(x.numpy().tobytes(), int(y)) for t in used for x, y in zip(t["input"], t["label"], strict=True)]
    assert len({x for x, _ in kept}) == 50 and all(files[x] == y for x, y in kept)
    assert torch.bincount(data.test.tensors["label"]).tolist() == [1] * 10


def test_augment_reaches_train_alone(root):
    write_fashion(root)
    data = load_data(Block("fashion_mnist", {"augment": [Block("flip", {"p": 1.0})]}))
    plain = load_data(Block("fashion_mnist"))
    rows = torch.arange(5)
    assert torch.equal(data.train.batch(rows)["input"], plain.train.batch(rows)["input"].flip(-1))
    assert torch.equal(data.test.batch(rows)["input"], plain.test.batch(rows)["input"])


def test_cifar10_is_decoded_once_and_kept(root, monkeypatch):
    write_cifar(root)
    data = load_data(Block("cifar10"))
    assert (len(data.train), len(data.test), data.spec.shape) == (30, 20, (3, 32, 32))
    exact = {tuple(c.tolist()) for c in colours(30)[:, 0, 0].astype(int)}
    for pixel in data.train.tensors["input"][:, :, 16, 16].int().tolist():
        assert min(max(abs(a - b) for a, b in zip(pixel, c, strict=True)) for c in exact) <= 4
    monkeypatch.setattr("limbeck.data.images._decode", lambda path: pytest.fail("decoded again"))
    again = load_data(Block("cifar10"))
    assert again.train.fingerprint == data.train.fingerprint


def test_a_damaged_cache_is_decoded_again_and_an_unwritable_one_only_costs_time(root, monkeypatch):
    write_cifar(root)
    first = decoded(root / "cifar10_jpeg.npz")
    (kept,) = (root / "home" / "decoded").iterdir()
    kept.write_bytes(b"broken")
    assert torch.equal(decoded(root / "cifar10_jpeg.npz")["x_train"], first["x_train"])
    blocked = root / "file"
    blocked.write_text("")
    monkeypatch.setenv("LIMBECK_HOME", str(blocked))
    assert torch.equal(decoded(root / "cifar10_jpeg.npz")["x_test"], first["x_test"])


def test_a_changed_file_is_not_served_from_the_cache(root):
    write_cifar(root)
    decoded(root / "cifar10_jpeg.npz")
    write_cifar(root, damaged=3)
    with pytest.raises(UserError, match=r"image 3 of .*cifar10_jpeg"):
        load_data(Block("cifar10"))


def test_cifar10_lossless_keeps_the_suggested_split(root):
    x = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
    np.savez(root / "cifar10_lossless_4k.npz", x=x, y=(np.arange(40) % 10).astype(np.uint8), classes=CLASSES)
    data = load_data(Block("cifar10_lossless"))
    assert (len(data.train), len(data.test)) == (30, 10)
    tests = {p.numpy().transpose(1, 2, 0).tobytes() for p in data.test.tensors["input"]}
    assert tests == {p.tobytes() for p in x[30:]}


@pytest.mark.parametrize("name", ["fashion_mnist", "cifar10", "cifar10_lossless"])
def test_a_missing_file_says_what_to_set(root, name, monkeypatch):
    with pytest.raises(UserError, match=rf"there is no .*\.npz in {root}: set LIMBECK_DATA"):
        load_data(Block(name))
    monkeypatch.delenv("LIMBECK_DATA")
    with pytest.raises(UserError, match="LIMBECK_DATA is not set"):
        load_data(Block(name))


@real
@pytest.mark.parametrize(("name", "train", "test"), [("fashion_mnist", 60000, 10000), ("cifar10_lossless", 3000, 1000)])
def test_the_real_files(name, train, test):
    data = load_data(Block(name))
    assert (len(data.train), len(data.test)) == (train, test)
    x = data.train.batch(torch.arange(2000))["input"]
    assert x.mean().abs() < 0.1 and (x.std() - 1).abs() < 0.1, "mean and deviation are the data's"
    assert len(Stream(data.train, 100, 0).at(0)[0]["label"].unique()) == 10


@real
@pytest.mark.slow
def test_the_real_jpeg_cifar():
    data = load_data(Block("cifar10", {"train_size": 20000}))
    x = data.train.batch(torch.arange(2000))["input"]
    assert (len(data.train), len(data.test)) == (20000, 10000)
    assert x.mean().abs() < 0.1 and (x.std() - 1).abs() < 0.1
    exact = Path(REAL) / "cifar10_lossless_4k.npz"
    if exact.is_file():
        pixels, labels = (torch.from_numpy(np.load(exact)[k]) for k in ("x", "y"))
        jpeg = decoded(Path(REAL) / "cifar10_jpeg.npz")
        small = jpeg["x_train"][jpeg["y_train"] == labels[0]].float()
        error = (small - pixels[0].permute(2, 0, 1).float()).pow(2).mean(dim=(1, 2, 3))
        assert error.min() < 255**2 * 10**-2.3, "its copy is there, at 23 dB or more"
