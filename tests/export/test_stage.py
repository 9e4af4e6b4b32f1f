import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import limbeck
from limbeck.errors import UserError
from limbeck.export import formats, store
from limbeck.export.formats import EXAMPLES
from limbeck.run import Arm
from limbeck.stages.export import export_student


def test_the_student_is_delivered_with_its_card(finish, tmp_path):
    run = finish(tmp_path / "run")
    export_student(run.context)
    x = torch.randn(5, 1, 8, 8)
    again = limbeck.load(tmp_path / "run" / "student")
    assert type(again) is type(run.student.module)
    assert torch.equal(again(x), run.student.module.eval()(x))
    about = store.read_card(tmp_path / "run" / "student")["about"]
    assert about["teachers"][0]["licence"] == "CC BY-NC 4.0" and len(about["teachers"][0]["hash"]) == 64
    assert "# Digits, distilled" in (tmp_path / "run" / "student" / "README.md").read_text()
    assert store.read_weights(tmp_path / "run" / EXAMPLES)["input"].shape == (16, 1, 8, 8)


def test_the_card_has_the_numbers_on_disk(finish, tmp_path):
    from limbeck.engine.checkpoint import write_json
    from limbeck.stages.evaluate import results

    run = finish(tmp_path / "run")
    found = results(run.context)
    found["arms"]["student"]["metrics"]["accuracy"] = 0.123
    write_json(tmp_path / "run" / "results.json", found)
    export_student(run.context)
    assert "12.3" in (tmp_path / "run" / "student" / "README.md").read_text()


def test_samples_of_the_data_stay_with_the_run(finish, tmp_path):
    """What a student is checked on may not be its maker's to give away."""
    run = finish(tmp_path / "run")
    export_student(run.context)
    names = {p.name for p in (tmp_path / "run" / "student").rglob("*")}
    assert names == {"limbeck.json", "model.safetensors", "README.md"}


def test_only_the_first_process_writes(finish, tmp_path, monkeypatch):
    run = finish(tmp_path / "run")
    monkeypatch.setattr(run.context, "fabric", SimpleNamespace(global_rank=1, world_size=1))
    export_student(run.context)
    assert not (tmp_path / "run" / "student").exists()


def test_formats_are_made_once_and_failures_do_not_cost_the_others(finish, tmp_path, monkeypatch):
    made = []

    def program(call, target):
        made.append(call.origin)
        target.write_text("program")
        checked = {"against": "x", "on": call.origin, "largest_difference": 0.0, "relative": 0.0}
        return {"inputs": call.signature(), "checked": checked}

    def onnx(call, target):
        raise UserError("this model has an operator that ONNX lacks")

    monkeypatch.setattr(formats, "export_program", program)
    monkeypatch.setattr(formats, "export_onnx", onnx)
    run = finish(tmp_path / "run", {"export": ["onnx", "torch_export"]})
    for _ in range(2):
        with pytest.raises(UserError, match=r"student is in .*onnx: this model has an operator"):
            export_student(run.context)
    assert made == ["16 rows of the data"] and (tmp_path / "run" / "student" / "model.pt2").exists()
    assert "`model.pt2`" in (tmp_path / "run" / "student" / "README.md").read_text()


def test_what_an_interrupted_export_left_is_cleared(finish, tmp_path):
    run = finish(tmp_path / "run")
    (tmp_path / "run" / ".student-abc" / "student").mkdir(parents=True)
    export_student(run.context)
    (tmp_path / "run" / "student" / ".export-abc").mkdir()
    export_student(run.context)
    assert not list((tmp_path / "run").rglob(".*"))


def test_a_distilled_data_set_comes_as_arrays_and_a_picture(finish, tmp_path):
    run = finish(tmp_path / "run", student="synthetic")
    export_student(run.context)
    folder = tmp_path / "run" / "student"
    with np.load(folder / "images.npz", allow_pickle=False) as file:
        assert file["images"].shape == (6, 1, 8, 8)
    assert (folder / "images.png").read_bytes().startswith(b"\x89PNG")
    images, _ = limbeck.load(folder)()
    assert torch.equal(images, run.student.module.images)


def test_a_run_without_a_student_is_told_what_is_missing(finish, tmp_path):
    run = finish(tmp_path / "run")
    run.context.arms = {"teacher": Arm("teacher", "teacher", "Teacher", run.context.recipe)}
    with pytest.raises(UserError, match="after the stage 'train'"):
        export_student(run.context)


def test_nothing_delivered_tells_where_it_was_made(finish, tmp_path, language):
    run = finish(tmp_path / "run", {**language, "export": ["transformers"]})
    export_student(run.context)
    for file in (tmp_path / "run" / "student").rglob("*"):
        assert not file.is_file() or str(tmp_path).encode() not in file.read_bytes(), file
    assert json.loads((tmp_path / "run" / "student" / "transformers" / "config.json").read_text())["n_embd"] == 8
