"""The stage that trains a super-network and chooses one of its subnets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForMaskedLM

from limbeck.claims import measure
from limbeck.data import load_data
from limbeck.engine.checkpoint import tensor_hash
from limbeck.engine.teacher import Teacher
from limbeck.errors import UserError
from limbeck.export import store
from limbeck.language.subnets import Relations, held_out_losses, space_of
from limbeck.language.supernet import Architecture, exported
from limbeck.recipe import load_recipe
from limbeck.run import Result, run_recipe

THEN = {"method": "supervised", "train": {"steps": 2}}


def tree(*, stages: list[Any] | None = None, then: Any = THEN, **search: Any) -> dict[str, Any]:
    stage = {"name": "search_subnet", "rows": 8, **({"then": then} if then else {}), **search}
    after = ["train", "evaluate"] if then else ["evaluate", "report"]
    return {
        "title": "Search",
        "data": {"name": "masked_text", "corpus": "grammar", "characters": 3000, "context": 12, "val_fraction": 0.1},
        "teacher": {"name": "encoder", "hidden": 16, "layers": 2, "heads": 4, "train": {"steps": 4}},
        "student": {"name": "encoder", "hidden": 16, "layers": 2, "heads": 4},
        "method": {"name": "autodistil", "ratios": [1, 4]},
        "train": {"steps": 4, "batch_size": 16, "optimizer": {"lr": 0.01}},
        "controls": False,
        "evaluate": ["hidden_tokens"],
        "stages": stages or ["teacher", stage, *after],
    }


def run(folder: Path, **changes: Any) -> Result:
    return run_recipe(tree(**changes), runs=folder, quiet=True)


def found(result: Result) -> tuple[Path, dict[str, Any]]:
    (file,) = result.folder.glob("artifacts/subnet-*/search.json")
    return file.parent, json.loads(file.read_text(encoding="utf8"))


def architecture(row: dict[str, Any]) -> Architecture:
    return Architecture(tuple(row["layers"]), row["heads"], row["ffn"])


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where this module's teachers are kept; they are all one."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIMBECK_HOME", str(folder))
        yield folder


@pytest.fixture(scope="module")
def as_found(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A run that delivers the subnet as it was found."""
    return run(tmp_path_factory.mktemp("search"), then=None, parameters=4500)


def supernet_of(result: Result) -> Any:
    (folder,) = result.folder.glob("artifacts/supernet-*/model")
    return store.load(folder).module


def test_the_subnet_of_least_loss_within_the_limit_is_delivered(as_found: Result) -> None:
    folder, search = found(as_found)
    supernet = supernet_of(as_found)
    assert supernet.config.hidden_size == 16
    plain = AutoModelForMaskedLM.from_pretrained(folder / "model")
    told = exported(supernet, architecture(search["subnet"]))
    assert tensor_hash(plain.state_dict()) == tensor_hash(told.state_dict())
    assert search["subnet"]["loss"] == min(r["loss"] for r in search["tried"])
    arm = as_found.results["arms"]["student"]
    assert arm["metrics"]["hidden_accuracy"] >= 0 and "a subnet of" in arm["describe"]
    assert as_found.report.is_file()


def test_what_was_tried_is_all_within_the_limit_by_brute_force(as_found: Result, home: Path) -> None:
    recipe = load_recipe(tree())
    data, supernet = load_data(recipe.data["data"]), supernet_of(as_found)
    every = space_of(supernet, ratios=[1, 4]).architectures
    sizes = {a: sum(p.numel() for p in exported(supernet, a).parameters()) for a in every}
    within = [a for a in every if sizes[a] <= 4500]
    assert 1 < len(within) < len(every)
    _, search = found(as_found)
    rows = {architecture(r): r for r in search["tried"]}
    assert set(rows) == set(within)
    (above,) = home.glob("**/teachers/*/model")
    teacher = Teacher(store.load(above).module, {"logits"}, "teacher")
    losses = held_out_losses(supernet, Relations(teacher), within, [data.val.batch(torch.arange(8))])
    for a, loss in zip(within, losses, strict=True):
        assert rows[a]["loss"] == pytest.approx(loss, rel=1e-5) and rows[a]["parameters"] == sizes[a]
        beaten = any(
            o is not rows[a] and all(o[k] <= rows[a][k] for k in ("loss", "parameters", "flops")) for o in rows.values()
        )
        assert rows[a]["pareto"] != beaten, "no two of these are alike in all three"
    notes = " ".join(as_found.results["notes"])
    assert "Pareto set of subnets" in notes and f"{search['subnet']['parameters']:,}" in notes


@pytest.mark.parametrize("by", ["loss", "parameters", "chance"])
def test_what_a_subnet_is_chosen_by(by: str, tmp_path: Path) -> None:
    _, search = found(run(tmp_path, by=by, parameters=4500, rows=4))
    rows = [r["parameters"] for r in search["tried"]]
    assert search["by"] == by and all(n <= 4500 for n in rows)
    chosen = {k: v for k, v in search["subnet"].items() if k != "pareto"}
    if by == "parameters":
        assert chosen["parameters"] == max(rows)
    if by == "loss":
        assert [r["loss"] for r in search["tried"]] == sorted(r["loss"] for r in search["tried"])
        assert chosen["loss"] == search["tried"][0]["loss"]
    if by == "chance":
        others = {
            found(run_recipe(tree(by=by, rows=4), runs=tmp_path, seed=s, quiet=True))[1]["chosen"] for s in (1, 2, 3)
        }
        assert len({o.split("(")[0] for o in others}) > 1


def test_the_student_that_is_trained_on_begins_with_the_inherited_weights(tmp_path: Path) -> None:
    still = {"method": "supervised", "train": {"steps": 1, "optimizer": {"name": "sgd", "lr": 1e-12}}}
    inherited, fresh = run(tmp_path, then=still), run(tmp_path, then=still, weights="fresh")
    (folder, one), (other, two) = found(inherited), found(fresh)
    assert one == two, "what is chosen is the same"
    made = [store.load(f / "model").module.state_dict() for f in (folder, other)]
    assert not all(torch.equal(v, made[1][k]) for k, v in made[0].items())
    for result, begun in ((inherited, made[0]), (fresh, made[1])):
        (artifact,) = result.folder.glob("artifacts/student-*/model")
        for name, value in store.load(artifact).module.state_dict().items():
            torch.testing.assert_close(value, begun[name], rtol=0, atol=1e-9)
    again = run(tmp_path / "again", then=still, weights="fresh")
    assert tensor_hash(store.load(found(again)[0] / "model").module.state_dict()) == tensor_hash(made[1])


def test_without_a_method_the_subnet_goes_on_with_the_same_relations(tmp_path: Path) -> None:
    result = run(tmp_path, then={"train": {"steps": 2}})
    (artifact,) = result.folder.glob("artifacts/student-*")
    rows = [json.loads(line) for line in (artifact / "metrics.jsonl").read_text(encoding="utf8").splitlines()]
    assert {"term/queries", "term/keys", "term/values"} <= {key for row in rows for key in row}


def test_a_choice_is_made_once_and_the_same_each_time(tmp_path: Path) -> None:
    first = run(tmp_path)
    folder, search = found(first)
    kept = (folder / "search.json").stat().st_mtime_ns
    run(tmp_path)
    assert (folder / "search.json").stat().st_mtime_ns == kept
    assert found(run(tmp_path / "again"))[1] == search


def test_of_a_large_space_some_are_drawn(tmp_path: Path) -> None:
    _, search = found(run(tmp_path, candidates=5))
    assert len(search["tried"]) == 5
    _, other = found(run_recipe(tree(candidates=5), runs=tmp_path, seed=1, quiet=True))
    assert {str(architecture(r)) for r in search["tried"]} != {str(architecture(r)) for r in other["tried"]}


def test_a_limit_on_operations_holds(tmp_path: Path) -> None:
    _, free = found(run(tmp_path))
    middle = sorted(r["flops"] for r in free["tried"])[5]
    _, search = found(run(tmp_path, flops=float(middle)))
    assert len(search["tried"]) == sum(r["flops"] <= middle for r in free["tried"]) < len(free["tried"])


def test_the_stage_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no subnet is within the limits; the smallest has"):
        run(tmp_path, parameters=10)
    stage = {"name": "search_subnet"}
    with pytest.raises(UserError, match="leave out the stage 'train'"):
        run(tmp_path, stages=["teacher", stage, "train"])
    with pytest.raises(UserError, match="then is of method, train and phases, not 'data'"):
        run(tmp_path, then={"data": {"context": 8}})
    with pytest.raises(UserError, match="after 'teacher'"):
        run(tmp_path, stages=[stage])
    with pytest.raises(UserError, match="what method 'autodistil' trains, not 'minilm'"):
        run_recipe({**tree(), "method": "minilm"}, runs=tmp_path, quiet=True)
    whole = tree()
    with pytest.raises(UserError, match="validation split"):
        run_recipe({**whole, "data": {**whole["data"], "val_fraction": 0.0}}, runs=tmp_path, quiet=True)


def test_a_proof_goes_through_the_search(tmp_path: Path) -> None:
    measured = measure(load_recipe(tree(parameters=4500)), {"student": {}}, [0], tmp_path)
    assert list(tmp_path.glob("proofs/artifacts/subnet-*/search.json"))
    assert len(measured.table["student"]["hidden_accuracy"]) == 1
