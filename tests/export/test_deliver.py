import os

import pytest

from limbeck.errors import UserError
from limbeck.export import deliver as module
from limbeck.export import store
from limbeck.export.deliver import deliver

ABOUT = {"title": "t"}


def test_the_folder_is_the_artifact_with_what_is_known_of_it(saved, tmp_path):
    _, artifact = saved("cnn")
    folder = deliver(artifact, tmp_path / "run" / "student", ABOUT)
    card = store.read_card(folder)
    assert card["about"]["title"] == "t" and card["call"]["inputs"] == {"input": ["batch", 1, 8, 8]}
    assert (folder / store.WEIGHTS).read_bytes() == (artifact / store.WEIGHTS).read_bytes()
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["student"]


def test_a_delivered_student_can_be_read_by_others(saved, tmp_path):
    """Weights are written with the rights of a temporary file: for their owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    folder = deliver(saved("cnn")[1], tmp_path / "student", ABOUT)
    assert (folder / store.WEIGHTS).stat().st_mode & 0o777 == 0o666 & ~mask


def test_the_same_student_is_not_delivered_twice(saved, tmp_path):
    _, artifact = saved("cnn")
    folder = deliver(artifact, tmp_path / "student", ABOUT)
    (folder / "model.onnx").write_text("an export of an hour")
    deliver(artifact, folder, ABOUT)
    assert (folder / "model.onnx").exists()


def test_another_student_replaces_it_whole(saved, tmp_path):
    folder = deliver(saved("cnn")[1], tmp_path / "student", ABOUT)
    (folder / "model.onnx").write_text("of the old student")
    deliver(saved("mlp")[1], folder, ABOUT)
    assert not (folder / "model.onnx").exists() and store.read_card(folder)["model"]["name"] == "mlp"


def test_a_damaged_artifact_is_not_delivered(saved, tmp_path):
    _, artifact = saved("cnn")
    weights = bytearray((artifact / store.WEIGHTS).read_bytes())
    weights[-1] ^= 1
    (artifact / store.WEIGHTS).write_bytes(weights)
    with pytest.raises(UserError, match="changed or damaged"):
        deliver(artifact, tmp_path / "student", ABOUT)
    assert not (tmp_path / "student").exists()


def test_a_delivery_that_breaks_off_leaves_the_earlier_student(saved, tmp_path, monkeypatch):
    folder = deliver(saved("cnn")[1], tmp_path / "run" / "student", ABOUT)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.shutil, "copytree", full)
    with pytest.raises(UserError, match="No space left on device"):
        deliver(saved("mlp")[1], folder, ABOUT)
    assert store.load(folder).block.name == "cnn" and [p.name for p in folder.parent.iterdir()] == ["student"]
