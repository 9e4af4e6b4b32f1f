import numpy as np
import pytest
import torch

from limbeck.export.images import grid, to_pixels, write_images
from limbeck.export.store import Stored
from limbeck.registry import Block


def test_the_arrays_are_the_student(tmp_path, model):
    made = model("synthetic")
    files = write_images(tmp_path, made)
    assert [f.name for f in files] == ["images.npz", "images.png", "training.json"]
    with np.load(tmp_path / "images.npz", allow_pickle=False) as file:
        assert file["images"].dtype == np.float32 and file["labels"].dtype == np.int64
        assert np.array_equal(file["images"], made.module.images.detach().numpy())
        assert file["labels"].tolist() == [0, 0, 1, 1, 2, 2]


def test_the_arrays_train_networks_through_the_npz_data(tmp_path, model):
    from limbeck.data.npz import npz

    made = model("synthetic")
    made.spec = {**made.spec, "class_names": ("a", "b", "c")}
    write_images(tmp_path, made)
    data = npz(path=tmp_path / "images.npz", normalise=False, test_fraction=0.0)
    assert data.spec.classes == 3 and data.spec.class_names == ("a", "b", "c") and len(data.train) == 6
    batch = data.train.batch(torch.arange(6))
    assert torch.equal(batch["input"], made.module.images.detach())


def test_soft_labels_stay_soft(tmp_path):
    class Soft(torch.nn.Module):
        def forward(self):
            return torch.zeros(4, 3, 5, 5), torch.full((4, 2), 0.5)

    write_images(tmp_path, Stored(Soft(), Block("soft"), frozenset({"images"})))
    with np.load(tmp_path / "images.npz", allow_pickle=False) as file:
        assert file["labels"].dtype == np.float32 and file["labels"].shape == (4, 2)


def test_pixels_undo_the_normalisation():
    spec = {"mean": (0.5, 0.2, 0.1), "std": (0.25, 0.5, 1.0)}
    pixels = np.random.default_rng(0).random((2, 3, 4, 4), dtype=np.float32)
    mean, std = (np.reshape(spec[k], (3, 1, 1)) for k in ("mean", "std"))
    assert np.allclose(to_pixels((pixels - mean) / std, spec), pixels, atol=1e-6)
    assert to_pixels(np.full((1, 1, 1, 1), 9.0), {}).max() == 1.0


@pytest.mark.parametrize("channels", [1, 3])
def test_the_picture_has_a_row_for_each_class(channels):
    pixels = np.zeros((6, channels, 16, 16), dtype=np.float32)
    pixels[3] = 0.5
    page = grid(pixels, 2)
    assert page.shape == (3 * 49 + 1, 2 * 49 + 1, 3)  # 16 pixels are enlarged to 48, and a line
    assert np.all(page[1 + 49 : 49 + 49, 1 + 49 : 49 + 49] == 0.5) and np.all(page[0] == 1.0)
    assert np.all(page[1:49, 1:49] == 0.0)


def test_what_is_no_picture_is_not_drawn(tmp_path):
    class Table(torch.nn.Module):
        def forward(self):
            return torch.zeros(4, 7), torch.arange(4)

    files = write_images(tmp_path, Stored(Table(), Block("table"), frozenset({"images"})))
    assert [f.name for f in files] == ["images.npz", "training.json"]
