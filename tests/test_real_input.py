"""What new users bring: their files, folders, models, methods and data, from a recipe to a delivered student.

Every test goes through ``limbeck run``. Data that may not be shipped is used where LIMBECK_DATA has it, and has a twin
that is made here.
"""

from __future__ import annotations

import io
import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from limbeck.engine import checkpoint
from limbeck.engine.checkpoint import read_jsonl
from limbeck.export import store
from limbeck.registry import clear
from toolkit.runs import DIGITS, Said, command, pictures, refused, written

REAL = os.environ.get("LIMBECK_DATA", "")
Run = Callable[..., Said]
FAMOUS = [f"class {i}" for i in range(10)]

LM = {"name": "causal_lm", "hidden": 8, "layers": 1, "heads": 2}
PROSE = "the quick brown fox jumps over the lazy dog. pack my box with five dozen liquor jugs. " * 60


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Write a tiny recipe into a new working directory and run it; gives what ``run --json`` said."""
    monkeypatch.chdir(tmp_path)

    def go(name: str = "recipe", **changes: Any) -> Said:
        said = command(capsys, "run", written(Path(), name, **changes), "--json")
        assert said.code == 0, said.err
        return said

    return go


def finished(said: Said, *values: str) -> None:
    """Assert that teacher, student and control were judged, and that the student is there and is clean."""
    assert {arm["role"] for arm in said.arms.values()} == {"teacher", "student", "control"}
    for arm in said.arms.values():
        assert all(math.isfinite(arm["metrics"][value]) for value in values), arm
    assert store.load(said.folder / "student", trust_code=True).module is not None


def student(said: Said) -> dict[str, torch.Tensor]:
    """The delivered weights."""
    return load_file(said.folder / "student" / "model.safetensors")


def rows(said: Said, arm: str = "student") -> list[dict[str, Any]]:
    """The log of an arm."""
    return list(read_jsonl(said.folder / said.arms[arm]["log"]))


def last_checkpoint(said: Said) -> dict[str, Any]:
    """The state of the student's training at its end."""
    found = checkpoint.latest((said.folder / said.arms["student"]["log"]).parent / "checkpoints")
    assert found is not None
    return found[1]


# ---------------------------------------------------------------------------------------------------------------------
# Data


def fashion_mnist(root: Path) -> None:
    train, test = pictures(200, size=28, classes=10), pictures(100, size=28, classes=10, seed=1)
    np.savez(
        root / "fashion_mnist.npz",
        x_train=train[0], y_train=train[1], x_test=test[0], y_test=test[1], classes=FAMOUS,
    )  # fmt: skip


def cifar10(root: Path) -> None:
    fields: dict[str, Any] = {"classes": FAMOUS}
    for split, count in (("train", 200), ("test", 100)):
        images, labels = pictures(count, 3, 32, 10)
        files = []
        for image in images:
            Image.fromarray(image).save(packed := io.BytesIO(), format="JPEG")
            files.append(packed.getvalue())
        fields[f"jpeg_{split}"] = np.frombuffer(b"".join(files), dtype=np.uint8)
        fields[f"offsets_{split}"] = np.cumsum([0, *map(len, files)])
        fields[f"y_{split}"] = labels
    np.savez(root / "cifar10_jpeg.npz", **fields)


@pytest.mark.parametrize("made", [True, pytest.param(False, marks=pytest.mark.skipif(not REAL, reason="LIMBECK_DATA"))])
def test_fashion_mnist(run: Run, made: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if made:
        fashion_mnist(tmp_path)
        monkeypatch.setenv("LIMBECK_DATA", str(tmp_path))
    said = run(data={"name": "fashion_mnist", "train_size": 100, "test_size": 60})
    finished(said, "accuracy")
    assert said.json["results"]["spec"]["shape"] == [1, 28, 28]


@pytest.mark.parametrize(
    "made",
    [
        True,
        pytest.param(False, marks=[pytest.mark.slow, pytest.mark.skipif(not REAL, reason="LIMBECK_DATA")]),
    ],
)
def test_cifar10(run: Run, made: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if made:
        cifar10(tmp_path)
        monkeypatch.setenv("LIMBECK_DATA", str(tmp_path))
    models = {"teacher": {"name": "cnn", "width": 4, "train": {"steps": 3}}, "student": {"name": "cnn", "width": 2}}
    said = run(data={"name": "cifar10", "train_size": 100, "test_size": 60}, **models)
    finished(said, "accuracy")
    assert said.json["results"]["spec"]["shape"] == [3, 32, 32]


def test_a_folder_of_pictures(run: Run) -> None:
    random = np.random.default_rng(0)
    for name in ("cat", "dog", "owl"):
        Path("pets", name).mkdir(parents=True)
        for i in range(10):
            picture = random.integers(0, 255, (12 + i, 16, 3), dtype=np.uint8)
            Image.fromarray(picture).save(Path("pets", name, f"{i}.png"))
    said = run(data={"name": "folder", "path": "pets", "image_size": 8})
    finished(said, "accuracy")
    assert said.json["results"]["spec"]["class_names"] == ["cat", "dog", "owl"]


def test_an_npz_file(run: Run) -> None:
    images, labels = pictures(90)
    np.savez("mine.npz", x=images, y=labels)
    finished(run(data={"name": "npz", "path": "mine.npz"}), "accuracy")


def test_a_csv_table(run: Run) -> None:
    lines = ["age,income,town,answer", *(f"{20 + i},{i * 7 % 13},{'uvw'[i % 3]},{'yn'[i % 2]}" for i in range(80))]
    Path("mine.csv").write_text("\n".join(lines), encoding="utf8")
    finished(run(data={"name": "csv", "path": "mine.csv", "target": "answer"}), "accuracy")


def test_a_jsonl_table(run: Run) -> None:
    lines = [json.dumps({"a": i * 0.5, "b": i % 5, "answer": "pqr"[i % 3]}) for i in range(80)]
    Path("mine.jsonl").write_text("\n".join(lines), encoding="utf8")
    finished(run(data={"name": "jsonl", "path": "mine.jsonl", "target": "answer"}), "accuracy")


def test_a_directory_that_the_datasets_library_saved(run: Run) -> None:
    datasets = pytest.importorskip("datasets")
    columns = {
        "a": [i * 0.5 for i in range(60)],
        "b": [float(i % 7) for i in range(60)],
        "label": [i % 3 for i in range(60)],
    }
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict(columns).save_to_disk("saved")
    finished(run(data={"name": "datasets_dir", "path": "saved", "label": "label", "inputs": ["a", "b"]}), "accuracy")


# ---------------------------------------------------------------------------------------------------------------------
# Text and transformers


@pytest.fixture
def prose(run: Run) -> dict[str, Any]:
    """A text file in the working directory, as a data block."""
    Path("prose.txt").write_text(PROSE, encoding="utf8")
    return {"name": "text", "path": "prose.txt", "context": 16}


def language(data: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """What makes the tiny recipe one of text."""
    defaults = {"teacher": {**LM, "train": {"steps": 3}}, "student": LM, "method": {"name": "word_kd"}}
    return {"data": data, "evaluate": ["perplexity"], **defaults, **changes}


def test_a_text_file(run: Run, prose: dict[str, Any]) -> None:
    said = run(**language(prose))
    finished(said, "perplexity")
    assert not said.out.count("Loading weights") and "its own score" in said.err


def test_causal_lms_that_transformers_saved_teach_and_learn(run: Run, prose: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers")
    from limbeck.data import load_data
    from limbeck.registry import Block

    data = load_data(Block("text", {"path": Path("prose.txt"), "context": 16}))
    for name, width in (("big", 16), ("small", 8)):
        config = transformers.GPT2Config(
            vocab_size=data.spec.vocab_size, n_positions=32, n_embd=width, n_layer=1, n_head=2,
            bos_token_id=None, eos_token_id=None,
        )  # fmt: skip
        with store.no_bars():
            transformers.GPT2LMHeadModel(config).save_pretrained(name)
        data.extra["tokenizer"].save_pretrained(name)
    said = run(**language(prose, teacher={"path": "big"}, student={"path": "small"}))
    finished(said, "perplexity")
    assert "Loading weights" not in said.err  # no bar for every small file
    named = {"teacher": {"name": "transformers", "path": "big"}, "student": {"name": "transformers", "path": "small"}}
    again = run("named", **language(prose, **named))
    for key, value in student(said).items():
        assert torch.equal(value, student(again)[key]), "the two spellings name the same models"
    ours = transformers.AutoModelForCausalLM.from_pretrained(said.folder / "student")
    assert ours.config.n_embd == 8
    third = run("third", **language(prose, teacher={"path": str(said.folder / "student")}))
    assert third.arms["teacher"]["metrics"]["perplexity"] == pytest.approx(
        said.arms["student"]["metrics"]["perplexity"]
    )


def test_an_image_classifier_of_transformers_teaches_a_plain_network(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    transformers = pytest.importorskip("transformers")

    def save(name: str, **options: Any) -> None:
        config = transformers.ViTConfig(
            hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, patch_size=4,
            **{"image_size": 8, "num_channels": 1, "num_labels": 10, **options},
        )  # fmt: skip
        with store.no_bars():
            transformers.ViTForImageClassification(config).save_pretrained(name)

    save("vit")
    said = run(teacher={"path": "vit"}, student={"name": "cnn", "width": 2})
    finished(said, "accuracy")
    assert said.arms["teacher"]["describe"] == "ViTForImageClassification(vit)"

    save("seven", num_labels=7)
    refused(command(capsys, "run", written(Path(), "seven", teacher={"path": "seven"}), "--quiet"), "7 classes", "10")
    save("colour", num_channels=3)
    refused(
        command(capsys, "run", written(Path(), "rgb", teacher={"path": "colour"}), "--quiet"), "cannot read the data"
    )


# ---------------------------------------------------------------------------------------------------------------------
# The user's own code

OWN = '''
import torch
from torch import nn
from torch.utils.data import Dataset

from limbeck import Method, Term, Update, forward
from limbeck.losses import label_loss, soft_kl


class Net(nn.Module):
    def __init__(self, classes, width=16):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(20, width), nn.ReLU())
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        return self.head(self.body(x))


def big(classes: int = 3, width: int = 24):
    return Net(classes, width)


class Rows(Dataset):
    classes = ["few", "some", "many"]

    def __init__(self, count, seed):
        g = torch.Generator().manual_seed(seed)
        self.x = torch.randn(count, 20, generator=g)
        self.y = (self.x[:, 0] > 0).long() + (self.x[:, 1] > 0).long()

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i], int(self.y[i])


def load(count: int = 80):
    return {"train": Rows(count, 0), "test": Rows(40, 1)}


def more(count: int = 50):
    return Rows(count, 2)


class Mean(Method):
    """Follows the mean of all its teachers."""

    needs = {"*": {"logits"}}

    def __init__(self, *, temperature: float = 2.0):
        self.temperature = temperature

    def updates(self, batch, clock):
        own = forward(self.student, batch).logits
        mean = sum(t(batch).logits for t in self.teachers.values()) / len(self.teachers)
        soft = soft_kl(own, mean, temperature=self.temperature)
        told = Term(own.sum() * 0 + self.temperature, 1)
        yield Update("student", {"kd": Term.of(soft), "told": told})


class Semi(Method):
    """Labels from one stream, the teacher's word on another."""

    needs = {"teacher": {"logits"}}

    def updates(self, batch, clock):
        known, unknown = batch["labelled"], batch["unlabelled"]
        assert len(known["id"]) == 16 and len(unknown["id"]) == 24
        soft = soft_kl(forward(self.student, unknown).logits, self.teacher(unknown).logits)
        yield Update("student", {"ce": label_loss(forward(self.student, known).logits, known), "kd": Term.of(soft)})
'''


@pytest.fixture
def own(run: Run, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """The user's module in the working directory, as blocks of a recipe."""
    Path("own_parts.py").write_text(OWN, encoding="utf8")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield {
        "data": {"name": "own_parts:load"},
        "teacher": {"name": "own_parts:big", "train": {"steps": 4}},
        "student": {"name": "own_parts:Net", "width": 4},
    }
    sys.modules.pop("own_parts", None)
    clear()


def test_models_and_data_of_ones_own(run: Run, own: dict[str, Any]) -> None:
    said = run(**own)
    finished(said, "accuracy")
    assert said.arms["student"]["describe"] == "own_parts:Net(width=4, classes=3)"
    assert said.json["results"]["spec"]["class_names"] == ["few", "some", "many"]


def test_a_delivered_student_teaches_the_next_one(run: Run, own: dict[str, Any]) -> None:
    first = run(**own)
    second = run(
        "next", **{**own, "teacher": {"path": str(first.folder / "student")}, "student": {"name": "mlp", "hidden": 2}}
    )
    taught, teaches = first.arms["student"]["metrics"], second.arms["teacher"]["metrics"]
    assert teaches["accuracy"] == taught["accuracy"]
    assert "every weight found in its file" in second.err


def test_several_teachers_and_a_method_of_ones_own_with_a_schedule(run: Run, own: dict[str, Any]) -> None:
    teachers = {"one": own["teacher"], "two": {"name": "mlp", "hidden": 8, "train": {"steps": 3}}}
    method = {"name": "own_parts:Mean", "temperature": {"name": "linear", "start": 4.0, "end": 2.0}}
    said = run(**{**own, "teacher": None}, teachers=teachers, method=method)
    assert [arm["role"] for arm in said.arms.values()] == ["teacher", "teacher", "student", "control"]
    told = [row["term/told"] for row in rows(said) if row["split"] == "train"]
    assert told == pytest.approx([4.0, 3.5, 3.0, 2.5])


def test_two_streams_and_a_method_of_ones_own(
    run: Run, own: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    streams = {"labelled": own["data"], "unlabelled": {"name": "own_parts:more", "batch_size": 24}}
    blocks = {**own, "data": streams, "method": {"name": "own_parts:Semi"}}
    finished(run(**blocks), "accuracy")
    kd = written(Path(), "kd", **{**blocks, "method": {"name": "kd"}})
    refused(command(capsys, "run", kd), "kd learns from one stream", "labelled, unlabelled")
    cut = written(Path(), "cut", **{**blocks, "train": {"steps": 2, "batch_size": 16, "accumulate": 2}})
    refused(command(capsys, "run", cut), "count()", "accumulate")
    stored = written(Path(), "stored", **blocks, cache={"mode": "fp16"})
    refused(command(capsys, "run", stored), "cache", "one stream")


# ---------------------------------------------------------------------------------------------------------------------
# How it is trained


def test_phases_train_what_they_name(run: Run) -> None:
    phases = [
        {"name": "first", "train": {"steps": 3}, "parameters": ["stages.0.*"]},
        {"name": "second", "method": {"temperature": 2.0}, "parameters": ["stages.0.*"], "learners": ["student"]},
        {"name": "third", "from": "first", "parameters": ["stages.*"], "train": {"steps": 2}},
    ]
    said = run(student={"name": "mlp", "hidden": 6, "layers": 2}, phases=phases)
    assert said.arms["student"]["steps"] == said.arms["alone"]["steps"] == 3 + 4 + 2
    assert [name in said.err for name in ("student, first:", "student, second:", "student alone, third:")] == [True] * 3
    arms = [store.load(said.folder / said.arms[a]["artifact"]).module.state_dict() for a in ("student", "alone")]
    for key, value in arms[0].items():
        assert torch.equal(value, arms[1][key]) == key.startswith("head"), f"only the head never trained: {key}"


def test_what_is_frozen_stays_so_in_every_phase(run: Run) -> None:
    phases = [{"name": "a", "train": {"steps": 2}}, {"name": "b", "parameters": ["*"]}]
    said = run(student={"name": "mlp", "hidden": 6, "freeze": ["head.*"]}, phases=phases)
    weights = [store.load(said.folder / said.arms[a]["artifact"]).module.head.weight for a in ("student", "alone")]
    assert torch.equal(*weights)
    assert "student, b: trains 390 of 460 parameters" in said.err


def test_a_phase_learns_from_its_own_data(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    phases = [{"name": "a", "train": {"epochs": 1}, "data": {"train_size": 32}}, {"name": "b", "train": {"epochs": 1}}]
    said = run(phases=phases)
    assert said.arms["student"]["steps"] == 32 // 16 + 80 // 16
    refused(command(capsys, "run", written(Path(), "stored", phases=phases, cache={"mode": "fp16"})), "cache", "phase")


def test_feature_taps_and_a_projector_leave_no_trace_in_the_student(run: Run) -> None:
    features = {"name": "mse", "student": "stages.1", "teacher": "stages.0", "projector": {"name": "linear"}}
    weight = {"name": "linear", "start": 1.0, "end": 0.0}
    method = {"name": "compose", "terms": {"ce": {"name": "cross_entropy"}, "hint": {**features, "weight": weight}}}
    said = run(student={"name": "mlp", "hidden": 6, "layers": 2}, method=method)
    finished(said, "accuracy")
    assert {key.split(".")[0] for key in student(said)} == {"stages", "head"}
    log = [row for row in rows(said) if row["split"] == "train"]
    ratio = [row["weighted/student+projectors.hint"] / row["term/student+projectors.hint"] for row in log]
    assert ratio == pytest.approx([1.0, 0.75, 0.5, 0.25], rel=1e-3)
    assert "84 of 84 parameters of projectors" in said.err


def test_an_average_of_the_weights_is_delivered(run: Run) -> None:
    said = run(train={"steps": 5, "batch_size": 16, "ema": [0.9, 0.99], "deliver": "ema_0.99"})
    state = last_checkpoint(said)["learners"]["student"]
    for key, value in student(said).items():
        assert torch.equal(value, state["averages"]["ema_0.99"][key])
        assert not torch.equal(value, state["module"][key])


def test_the_best_weights_are_delivered_and_an_early_stop_ends_the_training(run: Run) -> None:
    data = {**DIGITS, "val_size": 40}
    worse = {"name": "sgd", "lr": 40.0}
    best = run(
        data=data, train={"epochs": 3, "batch_size": 16, "optimizer": worse, "deliver": "best",
                          "best": {"metric": "nll", "mode": "min"}},
    )  # fmt: skip
    state = last_checkpoint(best)
    nll = [row["nll"] for row in rows(best) if row["split"] == "val"]
    assert state["best"]["value"] == pytest.approx(min(nll)) and len(nll) == 3
    assert all(torch.equal(value, state["best"]["weights"][key]) for key, value in student(best).items())
    stop = {"metric": "nll", "mode": "min", "patience": 1}
    stopped = run("stop", data=data, train={"epochs": 9, "batch_size": 16, "optimizer": worse, "early_stop": stop})
    assert stopped.arms["student"]["steps"] < 9 * 5


def test_the_best_is_never_chosen_on_the_test_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = written(tmp_path, train={"steps": 4, "deliver": "best"})
    refused(command(capsys, "run", recipe, "--runs", tmp_path / "runs"), "val_size")
    assert not (tmp_path / "runs").exists()


def test_stored_teacher_outputs_give_the_same_student(run: Run) -> None:
    live, stored = run("live"), run("stored", cache={"mode": "full"})
    assert "from" in stored.err and "cache: teacher's logits" in stored.err
    for key, value in student(live).items():
        assert torch.equal(value, student(stored)[key])
    few = run("few", cache={"mode": "topk", "k": 3})
    assert any("cover" in warning for warning in few.json["results"]["warnings"])
    assert "warning: the cached top 3" in few.err and "UserWarning" not in few.err
