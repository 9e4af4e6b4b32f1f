import sys
from pathlib import Path

import pytest
import torch

from limbeck.errors import UserError
from limbeck.export import export_model, formats, store
from limbeck.export.formats import is_done, refuse_early


@pytest.fixture
def quick(monkeypatch):
    """Stand in for the tracers: what happens around them is judged here."""

    def write(call, target):
        target.write_text(call.origin)
        checked = {"against": "x", "on": call.origin, "largest_difference": 0.0, "relative": 0.0}
        return {"inputs": call.signature(), "checked": checked}

    monkeypatch.setattr(formats, "export_onnx", write)
    monkeypatch.setattr(formats, "export_program", write)


def test_an_export_lies_beside_the_model_and_is_noted(saved, quick):
    _, folder = saved("mlp")
    made = export_model(folder, "onnx")
    assert made == folder / "model.onnx" and made.is_file()
    noted = store.read_card(folder)["exports"]["onnx"]
    assert noted["file"] == "model.onnx" and len(noted["sha256"]) == 64 and noted["checked"]["on"] == "random inputs"
    assert is_done(folder, "onnx") and not is_done(folder, "torch_export")
    made.write_text("changed")
    assert not is_done(folder, "onnx")


def test_a_run_is_exported_on_its_own_data(saved, quick, tmp_path):
    from safetensors.torch import save_file

    _, folder = saved("mlp", tmp_path / "run" / "student")
    (tmp_path / "run" / "artifacts").mkdir()
    save_file({"input": torch.randn(4, 1, 8, 8)}, tmp_path / "run" / "artifacts" / "examples.safetensors")
    assert export_model(tmp_path / "run", "onnx") == folder / "model.onnx"
    assert store.read_card(folder)["exports"]["onnx"]["checked"]["on"] == "4 rows of the data"


def test_the_output_may_be_elsewhere(saved, quick, tmp_path):
    _, folder = saved("mlp")
    assert export_model(folder, "onnx", tmp_path / "deep" / "x.onnx") == tmp_path / "deep" / "x.onnx"
    (tmp_path / "out").mkdir()
    assert export_model(folder, "torch_export", tmp_path / "out") == tmp_path / "out" / "model.pt2"
    assert str(tmp_path) not in (folder / store.CARD).read_text()


def test_a_users_folder_is_never_replaced(saved, tmp_path):
    _, folder = saved("causal_lm")
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "config.json").write_text("{}")
    with pytest.raises(UserError, match="not empty"):
        export_model(folder, "transformers", precious)
    assert (precious / "config.json").read_text() == "{}"


@pytest.mark.parametrize(
    ("path", "format", "output", "says"),
    [
        ("mlp", "onx", None, r"no export format is called 'onx'.*did you mean 'onnx'"),
        ("mlp", "torch_export", "x.onnx", r"format torch_export is a \.pt2 file"),
        ("nowhere", "onnx", None, "no folder"),
        (".", "onnx", None, "neither a finished run"),
    ],
)
def test_bad_input_is_one_clear_line(saved, tmp_path, path, format, output, says):
    saved("mlp")
    with pytest.raises(UserError, match=says):
        export_model(tmp_path / path, format, Path(output) if output else None)


def test_impossible_formats_are_refused_before_a_training(model, monkeypatch):
    refuse_early(model("causal_lm"), ["transformers", "torch_export", "onnx"])
    with pytest.raises(UserError, match="no transformers model"):
        refuse_early(model("mlp"), ["transformers"])
    with pytest.raises(UserError, match=r"images\.npz"):
        refuse_early(model("synthetic"), ["onnx"])
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"onnxruntime.*limbeck\[onnx\]"):
        refuse_early(model("mlp"), ["onnx"])
