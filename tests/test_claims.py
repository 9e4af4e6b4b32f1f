"""Claims: what is measured decides, and is measured by the code and the data that the record names."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from limbeck import claims
from limbeck.claims import Verdict, compare, prove
from limbeck.gallery import evidence_state
from limbeck.recipe import load_recipe
from limbeck.registry import clear
from toolkit.runs import DIGITS, Said, command, refused, written

ALONE = {"method": "supervised", "teacher": None}
CLAIM: dict[str, Any] = {
    "says": "distillation is not much worse",
    "arms": {"kd": {}, "alone": ALONE},
    "seeds": 2,
    "expect": ["accuracy.kd > accuracy.alone - 1", "accuracy.teacher > 0"],
}


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Write a tiny recipe with a claim to ``recipes/vision/`` of a new working directory."""
    monkeypatch.chdir(tmp_path)

    def write(name: str = "mine", **changes: Any) -> Path:
        blocks = {"claim": CLAIM, "stages": None, "evaluate": ["accuracy"], **changes}
        return written(tmp_path / "recipes" / "vision", name, **blocks)

    return write


def record(name: str = "mine") -> dict[str, Any]:
    """What the ledger holds."""
    return json.loads(Path("evidence", "vision", f"{name}.json").read_text(encoding="utf8"))


def test_a_proof_is_recorded_and_goes_stale_when_the_recipe_changes(
    recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = recipe()
    assert evidence_state(load_recipe(path)) == "none"
    said = command(capsys, "prove", path, "--record")
    assert said.code == 0 and said.out.startswith("HOLDS  vision/mine: distillation is not much worse")
    kept = record()
    assert kept["holds"] and kept["seeds"] == [0, 1] and set(kept["arms"]) == {"kd", "alone", "teacher"}
    assert len(kept["arms"]["kd"]["accuracy"]["values"]) == 2 and kept["machine"]["torch"]
    assert set(kept["hashes"]) == {"recipe", "method kd", "method supervised"}
    assert evidence_state(load_recipe(path)) == "holds"
    assert "its record is fresh" in command(capsys, "prove", path, "--stale").err

    changed = recipe(train={"steps": 5, "batch_size": 16})
    assert evidence_state(load_recipe(changed)) == "stale"
    assert command(capsys, "prove", changed, "--stale", "--record").code == 0
    assert evidence_state(load_recipe(changed)) == "holds"
    Path("evidence", "vision", "mine.json").write_text("{half a rec", encoding="utf8")
    assert evidence_state(load_recipe(changed)) == "stale"


def test_a_claim_that_does_not_hold_is_said_and_recorded(
    recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    claim = {**CLAIM, "expect": ["accuracy.kd > accuracy.alone + 0.9"], "because": "this bench is a toy"}
    said = command(capsys, "prove", recipe(claim=claim), "--record")
    assert said.code == 1 and said.out.startswith("DOES NOT HOLD")
    assert "NO  accuracy.kd > accuracy.alone + 0.9" in said.out and "because: this bench is a toy" in said.out
    assert record()["holds"] is False and evidence_state(load_recipe("recipes/vision/mine.yaml")) == "fails"


def test_proofs_in_json_are_an_object_a_line(recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    claim = {**CLAIM, "seeds": 1}
    paths = [recipe("one", claim=claim), recipe("two", claim={**claim, "seeds": [4]})]
    said = command(capsys, "prove", *paths, "--json")
    rows = [json.loads(line) for line in said.out.splitlines()]
    assert [(row["slug"], row["seeds"]) for row in rows] == [("one", [0]), ("two", [4])] and said.code == 0


def test_a_proof_goes_on_where_it_was_cut_off(recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path, done = recipe(), []
    score = claims._score

    def cut(context: Any, arm: str, quiet: bool) -> dict[str, float]:
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(arm)
        return score(context, arm, quiet)

    with monkeypatch.context() as patched:
        patched.setattr(claims, "_score", cut)
        with pytest.raises(KeyboardInterrupt):
            prove(path)
    assert not Path("evidence").exists()
    steps: list[str] = []
    from limbeck.engine.loop import Loop

    fit = Loop.fit
    monkeypatch.setattr(Loop, "fit", lambda loop: (steps.append(loop.settings.label), fit(loop))[1])
    first = prove(path)
    assert steps == ["mine kd, seed 1", "mine alone, seed 1"], "seed 0 was trained before"
    again = prove(path)
    assert len(steps) == 2 and [c.left for c in again.checks] == [c.left for c in first.checks]


CODE = """
from limbeck.vision.methods.kd import KD


class Mine(KD):
    strength = STRENGTH

    def terms(self, batch):
        terms = super().terms(batch).items()
        return {name: term.__class__(term.sum * self.strength, term.count) for name, term in terms}
"""


@pytest.fixture
def method(recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Write a method of the user's into the working directory."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(strength: int) -> None:
        Path("claimed_method.py").write_text(CODE.replace("STRENGTH", str(strength)), encoding="utf8")
        sys.modules.pop("claimed_method", None)
        clear()

    yield write
    sys.modules.pop("claimed_method", None)
    clear()


def test_new_code_is_never_recorded_with_what_the_old_code_gave(
    recipe: Callable[..., Path], method: Callable[[int], None]
) -> None:
    claim = {"says": "it learns", "seeds": 1, "expect": ["nll.student < 100"]}
    method(1)
    path = recipe(
        method={"name": "claimed_method:Mine"}, claim=claim, train={"steps": 4, "optimizer": {"name": "sgd", "lr": 0.5}}
    )
    before: Verdict = prove(path, record=True)
    method(3)
    assert evidence_state(load_recipe(path)) == "stale"
    after = prove(path, record=True)
    assert before.hashes != after.hashes and before.checks[0].left != after.checks[0].left


def test_what_no_metric_gives_is_refused_before_anything_is_trained(
    recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = {**CLAIM, "expect": ["acuracy.kd > 0"]}
    refused(command(capsys, "prove", recipe(claim=wrong)), "no metric under evaluate gives 'acuracy'", "'accuracy'?")
    refused(command(capsys, "prove", recipe(claim=None)), "no claim to prove")
    best = recipe(train={"steps": 4, "deliver": "best"})
    refused(command(capsys, "prove", best), "val_size")
    assert not Path("runs").exists()


def test_recipes_without_a_claim_are_passed_over_among_others(
    recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [recipe("bare", claim=None), recipe("full", claim={**CLAIM, "seeds": 1})]
    said = command(capsys, "prove", *paths)
    assert said.code == 0 and "bare: makes no claim" in said.err and "vision/full" in said.out


def test_a_claim_may_speak_of_several_teachers(recipe: Callable[..., Path]) -> None:
    teachers = {n: {"name": "mlp", "hidden": h, "train": {"steps": s}} for n, h, s in (("good", 12, 30), ("bad", 2, 1))}
    claim = {"says": "one is better", "arms": {"kd": {}}, "seeds": 1, "expect": ["accuracy.good > accuracy.bad"]}
    verdict = prove(recipe(teacher=None, teachers=teachers, claim=claim, method={"name": "supervised"}))
    assert verdict.holds and set(verdict.arms) == {"good", "bad"} | ({"kd"} & set(verdict.arms))


def test_only_the_metrics_that_a_claim_speaks_of_are_computed(recipe: Callable[..., Path]) -> None:
    path = recipe(evaluate=["accuracy", "efficiency"], claim={**CLAIM, "seeds": 1})
    assert set(prove(path).arms["kd"]) == {"accuracy", "nll"}
    compared = compare([path], seeds=1, quiet=True)
    assert {"accuracy", "latency_ms"} <= set(compared.rows[0]["metrics"])


def test_arms_of_one_recipe_side_by_side(recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    said: Said = command(capsys, "compare", recipe(), "--seeds", "2", "--set", "train.steps=3")
    names = [line.split()[0] for line in said.out.splitlines()]
    assert names == ["arm", "teacher", "kd", "alone", "Page:"]
    assert Path(said.out.splitlines()[-1].removeprefix("Page: ")).is_file()
    assert said.err.count("teacher: mlp") == 2, "told for the arms that have it, not for every seed"


def test_two_recipes_side_by_side(recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    paths = [recipe("one"), recipe("two", method={"name": "dkd"}, claim=None)]
    said = command(capsys, "compare", *paths, "--seeds", "1", "--json")
    rows = [json.loads(line) for line in said.out.splitlines()]
    assert [row["name"] for row in rows] == ["one", "two"] and rows[0]["metrics"]["accuracy"] >= 0


def test_a_condensed_set_is_proved_by_networks_that_learn_from_it(
    tmp_path: Path, recipes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tree = yaml.safe_load((recipes / "condensation" / "dm.yaml").read_text(encoding="utf8"))
    small = {"name": "convnet", "width": 4, "depth": 2}
    tree["data"] = DIGITS
    tree["train"]["steps"] = 3
    tree["method"]["net"] = small
    tree["evaluate"] = [{**tree["evaluate"][0], "architectures": [small], "networks": 1, "epochs": 2}]
    arms = {name: arm for name, arm in tree["claim"]["arms"].items() if not name.endswith("_10")}
    expect = [text for text in tree["claim"]["expect"] if "_10" not in text]
    tree["claim"] |= {"seeds": 1, "arms": arms, "expect": expect}
    Path("dm.yaml").write_text(yaml.safe_dump(tree), encoding="utf8")
    verdict = prove("dm.yaml")
    assert verdict.family == "condensation" and set(verdict.arms) == set(tree["claim"]["arms"])
    assert all(0 <= arm["fresh_accuracy"]["mean"] <= 1 for arm in verdict.arms.values())


def test_among_stale_ones_what_cannot_or_should_not_be_proved_here_is_passed_over(
    recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LIMBECK_DATA", str(tmp_path / "nothing"))
    claim = {**CLAIM, "seeds": 1}
    away = recipe("away", data={"name": "fashion_mnist", "train_size": 40}, claim=claim)
    long = recipe("long", slow=True, claim=claim)
    last = recipe("last", claim=claim)
    said = command(capsys, "prove", away, long, last, "--stale", "--json")
    assert said.code == 0 and [json.loads(line)["slug"] for line in said.out.splitlines()] == ["last"]
    assert "away: passed over, there is no fashion_mnist.npz" in said.err and "long: passed over" in said.err
    refused(command(capsys, "prove", away), "fashion_mnist.npz", "LIMBECK_DATA")
    said = command(capsys, "prove", last, "--stale", "--budget", "0")
    assert said.code == 0 and "last: not begun" in said.err and not said.out
