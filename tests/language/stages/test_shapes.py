import json
from pathlib import Path

import pytest
import torch

import limbeck.run
from limbeck.data import load_data
from limbeck.engine.stopping import Interrupted
from limbeck.errors import UserError
from limbeck.export import store
from limbeck.recipe import load_recipe
from limbeck.run import run_recipe

SPACE = {"hidden": [8, 16], "ffn": [8, 16, 24, 32], "layers": [1, 2]}


def recipe(**changes):
    searched = {"name": "search_shape", "space": SPACE, "budget": 0.5, "within": 0.2, "steps": 3, **changes}
    return {
        "title": "Search",
        "data": {"name": "text", "corpus": "grammar", "characters": 4000, "context": 16, "val_fraction": 0.2},
        "teacher": {
            "name": "causal_lm", "architecture": "llama", "hidden": 16, "layers": 2, "heads": 2, "train": {"steps": 5},
        },
        "student": {"name": "pruned", "samples": 8},
        "method": "minitron",
        "train": {"steps": 5, "batch_size": 8, "optimizer": {"lr": 0.01}},
        "evaluate": ["perplexity", "efficiency"],
        "stages": ["teacher", searched, "train", "evaluate"],
    }  # fmt: skip


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("LIMBECK_HOME", str(tmp_path / "home"))


def nll(model):
    """Per token of the validation split, in nats."""
    rows = load_data(load_recipe(recipe()).data["data"]).val
    ids = rows.batch(torch.arange(len(rows)))["input_ids"]
    with torch.no_grad():
        logits = model.double()(input_ids=ids, use_cache=False).logits[:, :-1]
    return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()))


def found(folder: Path):
    (file,) = folder.glob("*/artifacts/search-*/search.json")
    return json.loads(file.read_text(encoding="utf8"))["tried"]


def test_the_shape_of_the_least_loss_after_a_short_retraining_is_trained(tmp_path):
    result = run_recipe(recipe(), runs=tmp_path, quiet=True)
    tried = found(tmp_path)
    assert len(tried) > 2
    assert [t["loss"] for t in tried] == sorted(t["loss"] for t in tried)
    assert all(t["loss"] != t["cut"] for t in tried)
    stored = [store.load(f.parent / "model").module for f in tmp_path.glob("*/artifacts/shape-*/done.json")]
    assert sorted(map(nll, stored)) == pytest.approx([t["loss"] for t in tried], rel=1e-5)
    whole = result.metrics["teacher"]["parameters"]
    assert all(abs(t["parameters"] - 0.5 * whole) <= 0.2 * 0.5 * whole for t in tried)
    described = result.results["arms"]["student"]["describe"]
    assert all(f"{name}={size}" in described for name, size in tried[0]["shape"].items())
    assert result.metrics["student"]["parameters"] == tried[0]["parameters"]
    again = run_recipe(recipe(), runs=tmp_path / "again", quiet=True)
    assert found(tmp_path / "again") == tried and again.metrics["student"]["perplexity"] == pytest.approx(
        result.metrics["student"]["perplexity"]
    )


def test_no_steps_take_the_loss_of_the_cut_and_chance_takes_any(tmp_path):
    run_recipe(recipe(steps=0, most=4), runs=tmp_path / "cut", quiet=True)
    cut = found(tmp_path / "cut")
    assert len(cut) == 4 and all(t["loss"] == t["cut"] for t in cut)
    orders = []
    for seed in (1, 2, 3):
        run_recipe(recipe(by="chance", most=4), runs=tmp_path / f"chance{seed}", seed=seed, quiet=True)
        orders.append([t["shape"] for t in found(tmp_path / f"chance{seed}")])
    key = lambda shape: sorted(shape.items())  # noqa: E731
    assert all(sorted(order, key=key) == sorted((t["shape"] for t in cut), key=key) for order in orders)
    assert any(order != orders[0] for order in orders)


def test_a_search_that_was_cut_off_goes_on_where_it_was(tmp_path, monkeypatch):
    calls = []

    def once_more(*args, **kwargs):
        calls.extend([kwargs["label"]] * kwargs["label"].startswith("shape"))
        if len(calls) == 3:
            raise Interrupted(1, 130)
        return train(*args, **kwargs)

    train = limbeck.run.train
    monkeypatch.setattr(limbeck.run, "train", once_more)
    with pytest.raises(Interrupted):
        run_recipe(recipe(), runs=tmp_path / "a", quiet=True)
    assert not list((tmp_path / "a").glob("*/artifacts/search-*"))
    made = {f: f.stat().st_mtime_ns for f in (tmp_path / "a").glob("*/artifacts/shape-*/done.json")}
    assert len(made) == 2
    run_recipe(recipe(), runs=tmp_path / "a", quiet=True)
    assert all(f.stat().st_mtime_ns == at for f, at in made.items()), "what was retrained is not retrained again"
    monkeypatch.setattr(limbeck.run, "train", train)
    run_recipe(recipe(), runs=tmp_path / "b", quiet=True)
    assert found(tmp_path / "a") == found(tmp_path / "b")
    count = len(calls)
    monkeypatch.setattr(limbeck.run, "train", once_more)
    run_recipe(recipe(), runs=tmp_path / "b", quiet=True)
    assert len(calls) == count, "a search is made once"


def test_it_says_what_is_wrong(tmp_path):
    def fails(says, changed=None, **changes):
        with pytest.raises(UserError, match=says):
            run_recipe({**recipe(**changes), **(changed or {})}, runs=tmp_path, quiet=True)

    data = {**recipe()["data"], "val_fraction": 0.0}
    fails("give data.val_fraction", {"data": data})
    student = {"name": "causal_lm", "architecture": "llama", "hidden": 8, "layers": 1, "heads": 2}
    fails("must be 'pruned'", {"student": student})
    fails("most 1 or more", most=0)
    fails("no shape of the space", budget=50)
    fails("hidden 64 cannot be cut", space={"hidden": [64]})
