"""Sets of images as other libraries read them."""

import json

import numpy as np
import pytest
import torch

from limbeck.errors import UserError
from limbeck.export import export_model, store
from limbeck.export.formats import refuse_early
from limbeck.export.image_sets import export_datasets, export_image_folder
from limbeck.export.store import Stored
from limbeck.registry import Block


class Soft(torch.nn.Module):
    """Two classes, soft labels, colours of eight bits."""

    def forward(self):
        pixels = torch.arange(4 * 3 * 25).view(4, 3, 5, 5) % 256 / 255
        return pixels, torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.0, 1.0]])


SOFT = {"class_names": ("cat", "dog/bird")}


def test_a_datasets_directory_holds_values_pictures_and_labels(tmp_path, saved):
    datasets = pytest.importorskip("datasets")
    made, folder = saved("synthetic")
    target = export_model(folder, "datasets", tmp_path / "out")
    rows = datasets.load_from_disk(str(target))
    assert rows.features["label"].names == ["0", "1", "2"]
    assert rows["label"][:] == [0, 0, 1, 1, 2, 2]
    values = np.asarray(rows.with_format("numpy")["values"][:])
    assert np.array_equal(values, made.module.images.detach().numpy())
    picture = np.asarray(rows[0]["image"])
    assert picture.shape == (8, 8, 3) and picture.dtype == np.uint8
    wanted = (made.module.images[0, 0].detach().clamp(0, 1) * 255).round().numpy()
    assert np.array_equal(picture[:, :, 0], wanted)
    facts = store.read_card(folder)["exports"]["datasets"]
    assert facts["checked"]["largest_difference"] == 0
    assert json.loads((target / "training.json").read_text())["loss"] == "cross-entropy"


def test_soft_labels_of_a_datasets_directory_are_lists(tmp_path):
    datasets = pytest.importorskip("datasets")
    export_datasets(Stored(Soft(), Block("soft"), frozenset({"images"}), SOFT), tmp_path / "out")
    labels = np.array(datasets.load_from_disk(str(tmp_path / "out"))["label"][:], dtype=np.float32)
    assert np.array_equal(labels, Soft()()[1].numpy())


def test_a_folder_of_pictures_has_one_for_each_class_and_tells_its_rounding(tmp_path):
    from matplotlib.image import imread

    out = tmp_path / "out"
    facts = export_image_folder(Stored(Soft(), Block("soft"), frozenset({"images"}), SOFT), out)
    assert facts["checked"]["largest_difference"] < 1e-6
    assert sorted(p.name for p in out.iterdir()) == ["cat", "dog_bird", "metadata.jsonl", "training.json"]
    lines = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    assert [line["label"] for line in lines] == [0, 1, 0, 1]
    assert lines[1]["soft_label"] == pytest.approx([0.2, 0.8])
    for line, image in zip(lines, Soft()()[0], strict=True):
        assert np.allclose(imread(out / line["file_name"])[:, :, :3].transpose(2, 0, 1), image, atol=1e-6)


def test_what_a_folder_of_pictures_loses_is_told(saved, tmp_path):
    made, folder = saved("synthetic")
    export_model(folder, "image_folder", tmp_path / "out")
    told = store.read_card(folder)["exports"]["image_folder"]["checked"]["largest_difference"]
    images = made.module.images.detach()
    assert told == pytest.approx(float((images - images.clamp(0, 1)).abs().max()), abs=2 / 255)


def test_formats_of_another_kind_are_refused(saved):
    made, folder = saved("synthetic")
    for call in (lambda: export_model(folder, "onnx"), lambda: refuse_early(made, ["onnx"])):
        with pytest.raises(UserError, match="export datasets or image_folder"):
            call()
    network, folder = saved("cnn")
    for call in (lambda: export_model(folder, "datasets"), lambda: refuse_early(network, ["datasets"])):
        with pytest.raises(UserError, match="is no set of images"):
            call()
    refuse_early(made, ["datasets", "image_folder"])
