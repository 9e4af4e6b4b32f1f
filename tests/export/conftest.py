import os
import pickletools
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from limbeck.engine.devices import Placement, launch
from limbeck.engine.teacher import Teacher
from limbeck.export import store
from limbeck.export.store import Stored
from limbeck.models.building import build_model
from limbeck.recipe import load_recipe
from limbeck.registry import Block
from limbeck.run import Arm, Context

IMAGE = {"task": "classification", "shape": (1, 8, 8), "classes": 10, "licence": "CC BY 4.0"}
TEXT = {"task": "language", "shape": (8,), "vocab_size": 12}
PLANE = {"task": "generation", "shape": (2,)}

MODELS = {
    "cnn": (Block("cnn", {"width": 2}), {**IMAGE, "in_channels": 1, "image_size": 8}),
    "mlp": (Block("mlp", {"hidden": 4}), {**IMAGE, "in_features": 64}),
    "one_step": (Block("one_step", {"net": Block("mlp_denoiser", {"width": 8, "depth": 1})}), PLANE),
    "labelled": (Block("one_step", {"net": Block("mlp_denoiser", {"width": 8}), "classes": 3}), PLANE),
    "denoiser": (Block("mlp_denoiser", {"width": 8, "depth": 1}), PLANE),
    "causal_lm": (Block("causal_lm", {"hidden": 8, "layers": 1, "heads": 2}), {**TEXT, "context": 8}),
    "eager": (Block("causal_lm", {"hidden": 8, "layers": 1, "heads": 2, "attention": "eager"}), {**TEXT, "context": 8}),
    "synthetic": (Block("synthetic_images", {"per_class": 2, "classes": 3}), {**IMAGE, "classes": 3}),
}


def build(name: str) -> Stored:
    """A small model of each kind, with facts of the data it is for."""
    block, offers = MODELS[name]
    spec = {k: offers[k] for k in ("task", "shape", "classes", "vocab_size", "licence") if k in offers}
    stored = build_model(block, offers={**offers, "num_classes": offers.get("classes")}, seed=0, spec=spec)
    stored.module.eval()
    if name == "synthetic":
        torch.nn.init.normal_(stored.module.images)
    return stored


@pytest.fixture
def model():
    return build


@pytest.fixture
def saved(tmp_path):
    """Save a small model; gives it and its folder."""

    def save(name: str, folder: Path | None = None) -> tuple[Stored, Path]:
        stored = build(name)
        store.save(folder or tmp_path / name, stored)
        return stored, folder or tmp_path / name

    return save


RECIPE = {
    "title": "Digits, distilled",
    "paper": {"title": "Decoupled Knowledge Distillation & more", "arxiv": "2203.08679", "year": 2022},
    "data": {"name": "digits"},
    "teacher": {"name": "cnn", "width": 4, "licence": "CC BY-NC 4.0"},
    "student": {"name": "cnn", "width": 2},
    "method": {"name": "kd"},
    "licence": "Apache-2.0",
}


TINY_TEXT = {"name": "text", "corpus": "grammar", "characters": 3000, "context": 8}
LANGUAGE = {
    "data": TINY_TEXT,
    "student": {"name": "causal_lm", "hidden": 8, "layers": 1, "heads": 2},
    "teacher": None,
    "method": {"name": "supervised"},
}


@pytest.fixture
def recipe_tree():
    """A small recipe of images."""
    return RECIPE


@pytest.fixture
def language():
    """What makes it a recipe of text."""
    return LANGUAGE


@dataclass
class Finished:
    """A run up to the export stage, untrained."""

    context: Context
    student: Stored

    @property
    def artifact(self) -> Path:
        return self.context.arms["student"].folder / "model"


@pytest.fixture(scope="session")
def finish(_home):
    """Build a run as it stands before its export stage, without training anything."""
    from limbeck.data import load_data

    def make(folder: Path, changes: dict | Path | None = None, student: str | None = None) -> Finished:
        if not isinstance(changes, Path):
            changes = {k: v for k, v in {**RECIPE, **(changes or {})}.items() if v is not None}
        recipe = load_recipe(changes)
        context = Context(recipe, folder, launch(Placement(accelerator="cpu")), 0, quiet=True)
        context.data = {name: load_data(block) for name, block in recipe.data.items()}
        offers = context.ingredients.offers
        spec = context.ingredients.main.spec.as_dict()
        made = build(student) if student else build_model(recipe.student.block, offers=offers, seed=0, spec=spec)
        for role, block in recipe.teachers.items():
            stored = build_model(block.block, offers=offers, seed=1, path=block.path)
            context.teachers[role] = Teacher(stored.module, stored.gives, role)
            context.arms[role] = Arm(role, "teacher", "Teacher", recipe, describe="cnn(width=4)")
            context.arms[role].scores = {"accuracy": 0.95, "parameters": 19562.0, "latency_ms": 0.5}
        tokenizer = context.ingredients.main.extra.get("tokenizer")
        for name, label in (("student", "Student"), ("alone", "Student alone")):
            place = folder / "artifacts" / f"{name}-0123456789"
            store.save(place / "model", made, tokenizer=tokenizer)
            context.arms[name] = Arm(name, name, label, recipe, place, describe=f"{made.block.name}(width=2)")
            context.arms[name].scores = {"accuracy": 0.9, "parameters": 438.0, "latency_ms": 0.3}
        return Finished(context, made)

    return make


@pytest.fixture(scope="session")
def pickles():
    """Every file below a folder that is a pickle, or a zip with one inside."""

    def find(folder: Path) -> list[str]:
        return [str(f.relative_to(folder)) for f in sorted(folder.rglob("*")) if f.is_file() and holds_pickle(f)]

    return find


def holds_pickle(file: Path) -> bool:
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            return any(_is_pickle(n, archive.read(n)) for n in archive.namelist())
    return _is_pickle(file.name, file.read_bytes())


def _is_pickle(name: str, content: bytes) -> bool:
    if name.endswith((".pkl", ".pickle", ".pt", ".pth", ".bin", ".ckpt")):
        return True
    if content.startswith(b"\x93NUMPY"):
        return b"'|O'" in content[:256]
    if not content.startswith(b"\x80"):  # every pickle of protocol 2 and later; text pickles end with a dot
        return content.endswith(b".") and _parses(content)
    return _parses(content)


def _parses(content: bytes) -> bool:
    try:
        for _ in pickletools.genops(content):
            pass
    except Exception:
        return False
    return True


@pytest.fixture(scope="session")
def without_limbeck():
    """Run Python in a process of its own that cannot import this library; gives what it printed."""
    import subprocess
    import sys

    def run(code: str, folder: Path) -> str:
        guard = "import sys\nsys.modules['limbeck'] = None\n"
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
        command = [sys.executable, "-c", guard + code]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run
