import numpy as np
import pytest
import torch
from PIL import Image

from limbeck.data import load_data
from limbeck.data.folder import read_image, square
from limbeck.data.stream import Stream, sequential
from limbeck.errors import UserError
from limbeck.registry import Block

SIZE = 6


def write(root, classes=("cat", "dog"), count=5, shape=(8, 10), ending="png", offset=0):
    for k, name in enumerate(classes):
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            pixels = np.full((*shape, 3), 20 * i + 100 * k + offset, dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.{ending}")


def load(path, **arguments):
    return load_data(Block("folder", {"path": path, "image_size": SIZE, **arguments}))


def test_class_folders_are_split_stratified_and_decoded(tmp_path):
    write(tmp_path)
    data = load(tmp_path, test_fraction=0.4)
    assert (len(data.train), len(data.test)) == (6, 4)
    assert data.spec.class_names == ("cat", "dog") and data.spec.shape == (3, SIZE, SIZE)
    batch = data.test.batch(torch.arange(4))
    assert sorted(batch["label"].tolist()) == [0, 0, 1, 1]
    pixels = batch["input"] * torch.tensor(data.spec.std).view(3, 1, 1) + torch.tensor(data.spec.mean).view(3, 1, 1)
    levels = (pixels * 255).round().int()
    assert (levels.flatten(1) == levels.flatten(1)[:, :1]).all(), "each picture has one colour"
    assert ((levels[:, 0, 0, 0] >= 100).int() == batch["label"]).all()


def test_train_and_test_folders_are_kept_and_ids_follow_sorted_paths(tmp_path):
    write(tmp_path / "train", count=3)
    write(tmp_path / "val", count=2, offset=7)
    data = load(tmp_path)
    assert (len(data.train), len(data.test), data.val) == (6, 4, None), "val stands in for a missing test"
    assert [f.name for f in data.train.pictures.files] == ["0.png", "1.png", "2.png"] * 2
    assert data.train.batch(torch.tensor([4]))["id"].tolist() == [4]
    write(tmp_path / "test", count=1, offset=9)
    three = load(tmp_path)
    assert (len(three.train), len(three.test), len(three.val)) == (6, 2, 4)


def test_grey_pictures_have_one_channel(tmp_path):
    write(tmp_path)
    data = load(tmp_path, grayscale=True, mean=[0.5], std=[0.25])
    assert data.train.batch(torch.arange(2))["input"].shape == (2, 1, SIZE, SIZE)


def test_batches_are_the_same_in_any_composition_and_through_threads_and_processes(tmp_path):
    write(tmp_path, count=8)
    data = load(tmp_path, augment=[Block("flip"), Block("crop"), Block("noise")])
    whole = data.train.batch(torch.arange(12), view=2)["input"]
    assert torch.equal(data.train.batch(torch.tensor([9, 3]), view=2)["input"], whole[[9, 3]])
    at = [Stream(data.train, 4, 0).at(s)[0]["input"] for s in range(5)]
    for workers in (0, 1):
        got = [b[0]["input"] for b in Stream(data.train, 4, 0, workers=workers).batches(0, 5)]
        assert all(torch.equal(a, b) for a, b in zip(at, got, strict=True))
    assert len(torch.cat([b["input"] for b in sequential(data.test, 3)])) == len(data.test)


@pytest.mark.parametrize("how", ["text", "truncated", "empty"])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_picture_is_named(tmp_path, how, workers):
    write(tmp_path / "train", shape=(64, 64))
    write(tmp_path / "test", count=1)
    bad = tmp_path / "train" / "dog" / "3.png"
    bad.write_bytes({"text": b"hello", "truncated": bad.read_bytes()[:60], "empty": b""}[how])
    stream = Stream(load(tmp_path).train, 10, 0, workers=workers)
    with pytest.raises(UserError, match=r"^the picture .*dog.3\.png cannot be decoded"):
        list(stream.batches(0, 1))


def test_the_fingerprint_follows_paths_pixels_and_settings(tmp_path):
    write(tmp_path)
    base = load(tmp_path).train.fingerprint
    assert load(tmp_path).train.fingerprint == base
    assert load(tmp_path, mean=[0.1, 0.1, 0.1]).train.fingerprint != base
    assert load(tmp_path, augment=[Block("flip")]).train.fingerprint != base
    every = load(tmp_path, test_fraction=0.0).train.fingerprint
    (tmp_path / "cat" / "4.png").rename(tmp_path / "cat" / "5.png")
    assert load(tmp_path, test_fraction=0.0).train.fingerprint != every


@pytest.mark.parametrize("place", [0, -1])
def test_the_fingerprint_sees_both_ends_of_a_large_file(tmp_path, monkeypatch, place):
    monkeypatch.setattr("limbeck.data.folder.END", 8)
    write(tmp_path)
    base = load(tmp_path, test_fraction=0.0).train.fingerprint
    path = tmp_path / "dog" / "2.png"
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    assert load(tmp_path, test_fraction=0.0).train.fingerprint != base, "the same size, another byte"


@pytest.mark.parametrize(
    ("classes", "arguments", "says"),
    [
        ((), {}, "has no pictures in class folders"),
        (("cat",), {}, "every label of the train split is 'cat'"),
        (("cat", "dog"), {"mean": [0.5]}, "need 3 values"),
        (("cat", "dog"), {"std": [1.0, 0.0, 1.0]}, "std above 0"),
        (("cat", "dog"), {"image_size": 0}, "at least 1"),
        (("cat", "dog"), {"test_fraction": 1.0}, "sum below 1"),
    ],
)
def test_folders_that_cannot_be_used(tmp_path, classes, arguments, says):
    write(tmp_path, classes)
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(UserError, match=says):
        load(tmp_path, **arguments)


def test_a_missing_folder_names_the_nearest(tmp_path):
    (tmp_path / "flowers").mkdir()
    with pytest.raises(UserError, match=r"did you mean '.*flowers'"):
        load(tmp_path / "flower")


def test_a_test_class_that_train_lacks(tmp_path):
    write(tmp_path / "train")
    write(tmp_path / "test", ("cat", "fox"))
    with pytest.raises(UserError, match="test label 'fox'"):
        load(tmp_path)


def test_pictures_are_upright_and_cut_to_the_centre(tmp_path):
    pixels = np.zeros((4, 8, 3), np.uint8)
    pixels[:, 2:6] = 200  # the central square
    assert (square(Image.fromarray(pixels), 4, True) == 200).all()
    wide = np.zeros((4, 4, 3), np.uint8)
    wide[0] = 255
    picture = Image.fromarray(wide)
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    picture.save(tmp_path / "turned.png", exif=exif)
    assert read_image(tmp_path / "turned.png", 4, True)[0, 3].min() == 255


def test_large_jpegs_decode_close_to_the_full_picture(tmp_path):
    y, x = np.mgrid[0:400, 0:400]
    pixels = np.stack([127 + 100 * np.sin(x / 60), 127 + 100 * np.cos(y / 50), x / 2], axis=2).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "large.jpg", quality=95)
    quick = read_image(tmp_path / "large.jpg", 32, False).astype(float)
    with Image.open(tmp_path / "large.jpg") as picture:
        full = square(picture, 32, False).astype(float)
    assert np.abs(quick - full).mean() < 2
