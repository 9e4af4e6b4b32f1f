"""The Python calls: live objects in, a result out, and nothing of the caller's changed."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import limbeck
from limbeck import Batch, Clock, Method, Result, Term, Update, UserError, distill, forward
from limbeck.losses import soft_kl
from toolkit.runs import STAGES

Distill = Callable[..., Result]


def net(hidden: int, activation: type[nn.Module] = nn.ReLU, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, hidden), activation(), nn.Linear(hidden, 3))


def points(count: int = 120, seed: int = 0) -> tuple[Tensor, Tensor]:
    x = torch.randn(count, 12, generator=torch.Generator().manual_seed(seed))
    return x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long()


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Distill]:
    """``distill`` on small points in a new working directory, without the report."""
    monkeypatch.chdir(tmp_path)
    before = dict(limbeck.api.registry._LIVE)

    def go(**changes: Any) -> Result:
        own: dict[str, Any] = {"teacher": net(16, seed=1), "student": net(4), "data": points(), "epochs": 1}
        rest = {"quiet": True, "evaluate": ["accuracy"], "stages": STAGES}
        return distill(**{k: v for k, v in {**own, **rest, **changes}.items() if v is not None})

    yield go
    limbeck.api.registry._LIVE.clear()
    limbeck.api.registry._LIVE.update(before)


def test_the_call_of_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    x, y = points()
    teacher, student = net(16, seed=1), net(4)
    result = limbeck.distill(teacher=teacher, student=student, data=(x, y), method="dkd", epochs=1)
    assert result.report.is_file() and result.folder.parent == Path("runs")
    assert set(result.metrics) == {"teacher", "student", "alone"}
    assert 0 <= result.metrics["student"]["accuracy"] <= 1
    assert type(result.student) is nn.Sequential and not result.student.training
    assert "Kept:" in result.summary()
    said = capsys.readouterr()
    assert said.out == "" and "student: trains 67 of 67 parameters" in said.err


def test_what_is_handed_in_is_not_changed(tmp_path: Path) -> None:
    teacher, student, (x, y) = net(16, seed=1), net(4), points()
    kept = [v.clone() for v in [*teacher.state_dict().values(), *student.state_dict().values(), x, y]]
    torch.manual_seed(123)
    np.random.seed(123)
    expected = torch.rand(3), np.random.rand(3)
    torch.manual_seed(123)
    np.random.seed(123)
    result = distill(teacher=teacher, student=student, data=(x, y), epochs=1, runs=tmp_path, quiet=True, stages=STAGES)
    assert torch.equal(torch.rand(3), expected[0]) and np.array_equal(np.random.rand(3), expected[1])
    now = [*teacher.state_dict().values(), *student.state_dict().values(), x, y]
    assert all(torch.equal(a, b) for a, b in zip(now, kept, strict=True))
    assert teacher.training and student.training
    assert all(p.requires_grad and p.grad is None for p in [*teacher.parameters(), *student.parameters()])
    assert not torch.equal(result.student[0].weight, student[0].weight), "the trained one is another object"


def test_the_start_is_the_weights_that_were_handed_in(quick: Distill) -> None:
    student = net(4, seed=5)
    result = quick(student=student, steps=1, epochs=None, lr=1e-9)
    assert torch.allclose(result.student[0].weight, student[0].weight, atol=1e-6)


def test_the_same_call_is_found_again_and_any_change_is_another_run(quick: Distill) -> None:
    x, y = points()
    first = quick()
    assert quick().folder == first.folder
    others = [
        quick(student=net(4, nn.GELU)),  # the very same weights
        quick(teacher=net(16, seed=2)),
        quick(data={"train": (x, y), "test": (x[:40], y[:40])}),
        quick(data={"train": (x, y), "test": (x[:50], y[:50])}),
        quick(seed=1),
        quick(method={"name": "kd", "temperature": 2.0}),
    ]
    assert len({r.folder for r in [first, *others]}) == 1 + len(others)


def test_changed_code_of_the_same_name_is_another_network(quick: Distill) -> None:
    def made(forward: Callable[..., Tensor]) -> nn.Module:
        torch.manual_seed(0)
        kind = type("Net", (nn.Module,), {"forward": forward})
        module = kind()
        module.layer = nn.Linear(12, 3)
        return module

    plain = quick(student=made(lambda self, x: self.layer(x)))
    doubled = quick(student=made(lambda self, x: 2 * self.layer(x)))
    assert plain.folder != doubled.folder


@pytest.mark.parametrize("shape", ["pair", "arrays", "splits", "datasets", "tuple"])
def test_data_in_every_shape(quick: Distill, shape: str) -> None:
    (x, y), (u, v) = points(), points(40, seed=1)
    data = {
        "pair": (x, y),
        "arrays": (x.numpy(), y.numpy()),
        "splits": {"train": (x, y), "test": (u, v)},
        "datasets": {"train": TensorDataset(x, y), "test": TensorDataset(u, v)},
        "tuple": (TensorDataset(x, y), TensorDataset(u, v)),
    }[shape]
    result = quick(data=data)
    assert 0 <= result.metrics["student"]["accuracy"] <= 1


def test_names_and_blocks(quick: Distill) -> None:
    data = {"name": "digits", "train_size": 60, "test_size": 40}
    teacher = {"name": "mlp", "hidden": 8, "train": {"steps": 3}}
    assert quick(teacher=teacher, student="logistic", data=data, steps=3, epochs=None).metrics["alone"]
    assert quick(teacher=None, student="logistic", data=data, method="supervised").metrics.keys() == {"student"}


def test_a_folder_teaches_and_is_gone_on_from(quick: Distill) -> None:
    first = quick()
    second = quick(teacher=first.folder / "student", student=net(2))
    assert second.metrics["teacher"] == first.metrics["student"]
    assert quick(student=str(first.folder / "student")).metrics["student"]


class Mean(Method):
    """Follows the mean of its teachers."""

    needs = {"*": {"logits"}}

    def __init__(self, *, temperature: float = 2.0) -> None:
        self.temperature = temperature

    def updates(self, batch: Batch, clock: Clock) -> Iterator[Update]:
        own = forward(self.student, batch).logits
        mean = sum(t(batch).logits for t in self.teachers.values()) / len(self.teachers)
        yield Update("student", {"kd": Term.of(soft_kl(own, mean, temperature=self.temperature))})


def test_several_teachers_and_a_method_that_is_a_class(quick: Distill) -> None:
    result = quick(teacher=None, teachers={"wide": net(16, seed=1), "narrow": net(6, seed=2)}, method=Mean)
    assert set(result.metrics) == {"wide", "narrow", "student", "alone"}
    assert result.results["method"] == "Mean"


class Semi(Method):
    """Labels from one stream, the teacher's word on another."""

    needs = {"teacher": {"logits"}}

    def updates(self, batch: Batch, clock: Clock) -> Iterator[Update]:
        own = forward(self.student, batch["unlabelled"]).logits
        yield Update("student", {"kd": Term.of(soft_kl(own, self.teacher(batch["unlabelled"]).logits))})


def test_several_streams_of_live_data(quick: Distill) -> None:
    result = quick(data={"labelled": points(), "unlabelled": points(60, seed=3)}, method=Semi)
    assert set(result.metrics) == {"teacher", "student", "alone"}
    with pytest.raises(UserError, match="kd learns from one stream of data, and there are labelled, unlabelled"):
        quick(data={"labelled": points(), "unlabelled": points(60, seed=3)})


def test_it_runs_outside_the_main_thread(quick: Distill) -> None:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(quick()))
    thread.start()
    thread.join()
    assert found and found[0].metrics["student"]


def test_it_runs_in_the_bare_namespace_of_a_notebook(quick: Distill) -> None:
    cell = """
import limbeck
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(12, 3)

    def forward(self, x):
        return self.layer(x)


found = limbeck.distill(teacher=teacher, student=Net(), data=data, steps=2, quiet=True, stages=stages).student
"""
    space = {"__name__": "__main__", "teacher": net(16), "data": points(), "stages": STAGES}
    exec(cell, space)
    assert type(space["found"]) is space["Net"]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"teacher": 3}, "teacher must be a network, a name, a folder or a block; got int"),
        ({"teacher": None}, "method kd needs a teacher: add a 'teacher' block"),
        ({"teacher": nn.Linear(5, 3)}, r"teacher: Linear cannot read the data \(input \[2, 12\]\)"),
        ({"teacher": nn.Linear(12, 7)}, "teacher: Linear has 7 classes, and the data has 3"),
        ({"method": "kdd"}, "no method is called 'kdd'; did you mean 'kd'"),
        ({"method": 3}, "method must be a name, a class derived from limbeck.Method, or a block; got 3"),
        ({"data": 3}, "expected a Data, a map-style Dataset, arrays"),
        ({"data": (torch.zeros(9, 12), torch.arange(5) % 3)}, "9 inputs but 5 labels"),
        ({"steps": 3}, "epochs and steps are both given"),
        ({"train": {"lr": 0.1}}, r"train has no 'lr'; write optimizer: \{lr: ...\}"),
        ({"bogus": 1}, "a recipe has no 'bogus'"),
    ],
)
def test_wrong_arguments_are_one_clear_line(quick: Distill, wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        quick(**wrong)
    assert "\n" not in str(caught.value)


def test_load_gives_the_delivered_network(quick: Distill, tmp_path: Path) -> None:
    result = quick()
    x, _ = points()
    loaded = limbeck.load(result.folder / "student")
    assert torch.equal(loaded(x), result.student(x)) and not loaded.training
    into = net(4, seed=9)
    assert limbeck.load(result.folder / "student", into=into) is into and torch.equal(into(x), loaded(x))
    with pytest.raises(UserError, match="holds no model of this library"):
        limbeck.load(tmp_path / "nowhere")


def test_fresh_moves_the_earlier_run_aside(quick: Distill) -> None:
    first = quick()
    (first.folder / "note").write_text("mine", encoding="utf8")
    assert quick(fresh=True).folder == first.folder
    (old,) = Path("runs").glob("*.old-*")
    assert (old / "note").read_text(encoding="utf8") == "mine" and not (first.folder / "note").exists()


def test_results_are_json(quick: Distill) -> None:
    result = quick()
    kept = json.loads((result.folder / "results.json").read_text(encoding="utf8"))
    assert kept == json.loads(json.dumps(result.results))


def test_losses_come_alone() -> None:
    program = (
        "import sys; from limbeck.vision.losses import dkd; from limbeck import losses;"
        "heavy = {'lightning_fabric', 'transformers', 'sklearn', 'matplotlib', 'torchmetrics'} & set(sys.modules);"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_transformers_model_and_a_text_file_are_three_lines(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from limbeck.data.grammar import generate
    from limbeck.data.tokenizer import bpe_tokenizer
    from limbeck.models.causal import causal_lm

    words = bpe_tokenizer([generate(4000)], 300)
    big = causal_lm(architecture="llama", hidden=32, layers=2, heads=2, vocab_size=len(words) + 12, context=64)
    big.save_pretrained(tmp_path / "big")
    words.save_pretrained(tmp_path / "big")
    (tmp_path / "corpus.txt").write_text(generate(8000))
    small = {"name": "causal_lm", "architecture": "llama", "hidden": 16, "layers": 1, "heads": 2}
    result = limbeck.distill(
        teacher=str(tmp_path / "big"),
        student=small,
        data=str(tmp_path / "corpus.txt"),
        steps=3,
        batch_size=4,
        runs=tmp_path / "runs",
        quiet=True,
        controls=False,
    )
    assert "own_kl" not in result.metrics["student"] and "teacher_kl" in result.metrics["student"]
    folder = next((tmp_path / "runs").glob("*/student"))
    kept = AutoTokenizer.from_pretrained(folder)
    text = "the fox sleeps"
    assert kept.decode(kept(text).input_ids) == text
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model(**kept(text, return_tensors="pt")).logits.shape[-1] == len(words)
