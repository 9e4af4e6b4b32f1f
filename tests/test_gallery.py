"""The gallery: what there is, read without torch, whatever else lies in a folder called recipes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from limbeck import gallery, registry
from limbeck.errors import UserError
from limbeck.recipe import load_recipe
from limbeck.starter import COMMENTS, arguments, starter
from toolkit.runs import tiny, written


def test_every_shipped_recipe_is_listed_once(recipes: Path) -> None:
    rows = gallery.rows()
    keys = [(row["family"], row["slug"]) for row in rows]
    assert len(keys) == len(set(keys)) and keys == sorted(keys)
    shipped = {(p.parent.name, p.stem) for p in recipes.glob("*/*.yaml")}
    assert shipped <= set(keys) and any(slug == "quickstart" for _, slug in keys)
    methods = {part.name for part in registry.parts("method")}
    assert methods <= {slug for _, slug in keys} | {row["slug"] for row in rows}
    assert all(row["evidence"] in ("holds", "fails", "stale", "none") for row in rows)


def test_names_find_files(recipes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("kd", "vision/kd"):
        assert gallery.recipe_file(name).resolve() == recipes / "vision" / "kd.yaml"
    assert gallery.recipe_file("word-kd").stem == "word_kd"
    assert gallery.recipe_file("not/there.yaml") == Path("not/there.yaml"), "a file's own error is better"
    with pytest.raises(UserError, match="did you mean 'quickstart'"):
        gallery.recipe_file("quikstart")
    mine = written(tmp_path / "recipes" / "vision", "kd")
    assert gallery.recipe_file("kd").resolve() == mine, "the user's own recipes come first"
    assert {"kd", "dkd"} <= {row["slug"] for row in gallery.rows()}, "and the shipped ones stay"


def test_other_peoples_recipes_are_no_trouble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    kitchen = tmp_path / "recipes"
    kitchen.mkdir()
    for name, text in {
        "soup": "ingredients: [water, salt]",
        "list": "- 1\n- 2",
        "broken": "a: [",
        "empty": "",
        "strange": "method: {name: boil}",
        "binary": "\udcff",
    }.items():
        (kitchen / f"{name}.yaml").write_bytes(text.encode("utf8", "surrogateescape"))
    rows = gallery.rows()
    assert {"kd", "quickstart"} <= {row["slug"] for row in rows}
    assert not {"soup", "strange", "list"} & {row["slug"] for row in rows}


def test_a_recipe_that_extends_another_is_listed_with_its_method(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "recipes" / "vision", "base", method={"name": "dkd"})
    (tmp_path / "recipes" / "vision" / "small.yaml").write_text("extends: base.yaml\ntitle: Small", encoding="utf8")
    (tmp_path / "recipes" / "vision" / "loop.yaml").write_text("extends: loop.yaml", encoding="utf8")
    found = {row["slug"]: row for row in gallery.rows("vision")}
    assert found["small"]["title"] == "Small" and found["small"]["needs"] == {"teacher": ["logits"]}
    assert "loop" not in found


def test_a_recipe_whose_record_cannot_be_checked_is_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = written(tmp_path / "recipes" / "vision", "mine")
    ledger = tmp_path / "evidence" / "vision" / "mine.json"
    ledger.parent.mkdir(parents=True)
    for text in ("[]", "{", json.dumps({"holds": True, "hashes": {}})):
        ledger.write_text(text, encoding="utf8")
        assert gallery.evidence_state(load_recipe(path)) == "stale"
    path.write_text(path.read_text(encoding="utf8") + "nonsense: 1\n", encoding="utf8")
    (row,) = [r for r in gallery.rows("vision") if r["slug"] == "mine"]
    assert row["evidence"] == "stale"


def test_parts_are_described() -> None:
    for kind in gallery.KINDS:
        for row in (r for r in gallery.part_rows(kind) if r["family"] != "user"):
            facts = gallery.describe(row["name"] if kind == "method" else f"{kind}:{row['name']}")
            assert facts["about"] and facts["name"] == row["name"]
            text = gallery.text(facts)
            assert text.startswith(f"{kind} {row['name']}") and "Arguments:" in text
    needs = gallery.describe("dkd")["needs"]
    assert needs == {"teacher": ["logits"]}


@pytest.mark.parametrize("method", registry.names("method"))
def test_what_init_writes_is_a_recipe_of_the_method_with_its_arguments_explained(method: str, tmp_path: Path) -> None:
    text = starter(method)
    (tmp_path / "recipe.yaml").write_text(text, encoding="utf8")
    recipe = load_recipe(tmp_path / "recipe.yaml")
    assert recipe.method.name == method and recipe.claim is None
    shown = yaml.safe_load(text)
    plain = {p.name for p in registry.find("method", method).params if isinstance(p.default, int | float | str)}
    assert plain - {p for p in plain if not isinstance(p, str)} <= set(shown["method"]) | {"REQUIRED"}
    for key in set(COMMENTS) & set(shown):
        assert f"\n{key}:" in text
    assert max(map(len, text.splitlines())) < 200


def test_arguments_are_explained_by_the_docstring() -> None:
    doc = """One line.

    Args:
        alpha, beta: weights; ignored where zero.
        temperature: divides the logits
            of both. The paper takes 4.

    Raises:
        UserError: never.
    """
    assert arguments(doc) == {"alpha": "weights", "beta": "weights", "temperature": "divides the logits of both"}
    assert arguments("No section.") == {}


def test_listing_needs_no_torch() -> None:
    program = (
        "import sys; from limbeck.cli import main;"
        "assert main(['list', '--json']) == main(['show', 'dkd']) == main(['list', '--kind', 'model']) == 0;"
        "sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_words_of_a_recipe_make_no_record_stale_and_what_is_measured_does() -> None:
    claim = {"says": "a", "arms": {"kd": {}}, "seeds": 3, "expect": ["accuracy.kd > 0.5"]}
    tree = tiny(claim=claim)
    known = load_recipe(tree).measured()
    worded = {**tree, "title": "b", "slow": True, "claim": {**claim, "says": "c", "because": "d"}}
    assert load_recipe(worded).measured() == known
    for change in (
        {"seed": 1},
        {"claim": {**claim, "seeds": 4}},
        {"claim": {**claim, "expect": ["accuracy.kd > 0.4"]}},
    ):
        assert load_recipe({**tree, **change}).measured() != known
