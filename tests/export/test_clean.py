"""The student comes out clean: it loads without this library where its format allows, and nothing is a pickle."""

import pickle

import pytest
import torch
from safetensors.torch import save_file

import limbeck
from limbeck.export import store
from limbeck.stages.export import export_student


@pytest.fixture
def exported(finish, tmp_path, language):
    """Deliver a student with some formats; gives the run's folder and an input with the student's output for it."""

    def make(formats, changes=None):
        run = finish(tmp_path / "run", {**(changes or {}), "export": formats})
        export_student(run.context)
        tokens = "context" in run.student.block.args
        x = torch.randint(12, (3, 8)) if tokens else torch.randn(3, 1, 8, 8)
        with torch.no_grad():
            y = run.student.module.eval()(x)
        save_file({"x": x, "y": y.logits if tokens else y}, tmp_path / "io.safetensors")
        return tmp_path / "run"

    return make


READ = "from safetensors.torch import load_file\nio = load_file('../io.safetensors'); x, y = io['x'], io['y']\n"


def test_a_pickle_would_be_found(tmp_path, pickles):
    """The search below must not pass because it is blind."""
    (tmp_path / "a.dat").write_bytes(pickle.dumps({"x": 1}))
    (tmp_path / "b.dat").write_bytes(pickle.dumps([1, 2], protocol=0))
    torch.save({"w": torch.zeros(2)}, tmp_path / "c.dat")
    (tmp_path / "ok.txt").write_text("This is text.")
    assert pickles(tmp_path) == ["a.dat", "b.dat", "c.dat"]


def test_nothing_in_a_run_is_a_pickle(exported, pickles, language):
    assert pickles(exported(["transformers"], language)) == []


def test_the_student_has_the_class_and_keys_of_a_fresh_one(exported):
    from limbeck.models.vision import CNN

    student = limbeck.load(exported([]) / "student")
    fresh = CNN(in_channels=1, image_size=8, classes=10, width=2)
    assert type(student) is CNN
    assert {k: v.shape for k, v in student.state_dict().items()} == {k: v.shape for k, v in fresh.state_dict().items()}
    assert store.read_weights(exported([]) / "student" / "model.safetensors").keys() == fresh.state_dict().keys()
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in student.modules())


@pytest.mark.slow
def test_a_transformers_student_runs_without_limbeck(exported, language, without_limbeck):
    run = exported(["transformers"], language)
    code = (
        "import torch\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "for folder in ('student', 'student/transformers'):\n"
        "    model = AutoModelForCausalLM.from_pretrained(folder)\n"
        "    assert AutoTokenizer.from_pretrained(folder).decode([3])\n"
        "    print(torch.equal(model(x).logits, y), type(model).__name__)\n"
    )
    assert without_limbeck(READ + code, run) == "True GPT2LMHeadModel\n" * 2


@pytest.mark.slow
def test_an_onnx_student_runs_without_limbeck_and_torch(exported, without_limbeck, pickles):
    run = exported(["onnx"])
    code = (
        "sys.modules['torch'] = None\nimport numpy as np, onnxruntime\n"
        "from safetensors.numpy import load_file\nio = load_file('../io.safetensors')\n"
        "session = onnxruntime.InferenceSession('student/model.onnx', providers=['CPUExecutionProvider'])\n"
        "found = session.run(['logits'], {'input': io['x']})[0]\n"
        "print(bool(np.abs(found - io['y']).max() < 1e-5))\n"
    )
    assert without_limbeck(code, run) == "True\n"
    assert pickles(run) == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["image", "language"])
def test_a_torch_export_student_runs_without_limbeck_and_transformers(
    exported, language, without_limbeck, pickles, kind
):
    run = exported(["torch_export"], language if kind == "language" else None)
    given = "(x, torch.ones_like(x))" if kind == "language" else "(x)"
    code = (
        "sys.modules['transformers'] = None\nimport torch\n"
        "module = torch.export.load('student/model.pt2').module()\n"
        f"print(torch.equal(module{given}, y), torch.equal(module{given.replace('x', 'x[:1]')}, y[:1]))\n"
    )
    assert without_limbeck(READ + code, run).startswith("True")
    assert pickles(run) == ["student/model.pt2"]  # what was asked for, and the only one


@pytest.mark.slow
def test_the_command_line_exports_a_finished_run(exported, capsys):
    from limbeck.cli import main

    run = exported([])
    assert main(["export", str(run), "--format", "torch_export"]) == 0
    assert capsys.readouterr().out.strip().endswith("student/model.pt2")
    assert store.read_card(run / "student")["exports"]["torch_export"]["checked"]["on"] == "16 rows of the data"
    assert main(["export", str(run), "--format", "transformers"]) == 2
    assert "not a transformers model" in capsys.readouterr().err


def test_weights_loaded_into_a_network_of_ones_own(exported):
    run = exported([])
    student = limbeck.load(run / "student")
    assert torch.equal(limbeck.load(run / "student", into=type(student)(**SIZES)).head.weight, student.head.weight)


SIZES = {"in_channels": 1, "image_size": 8, "classes": 10, "width": 2}
