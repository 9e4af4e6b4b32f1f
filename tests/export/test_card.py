import pytest
import torch
import yaml

from limbeck.engine.checkpoint import write_json
from limbeck.errors import UserError
from limbeck.export import store
from limbeck.export.card import refresh_exports, stated_licence, write_card
from limbeck.export.deliver import deliver
from limbeck.export.words import one_line
from limbeck.gallery import evidence_path, sources_hash
from limbeck.recipe import load_recipe
from limbeck.report.units import quantity
from limbeck.stages.evaluate import results
from limbeck.stages.export import origin


@pytest.fixture
def card(finish, tmp_path):
    """The card of a small run, and what is in its front matter."""

    def write(changes=None, student=None, **context):
        run = finish(tmp_path / "run", changes, student)
        for name, value in context.items():
            setattr(run.context, name, value)
        folder = deliver(run.artifact, tmp_path / "run" / "student", origin(run.context))
        path = write_card(folder, results(run.context), run.context.recipe)
        text = path.read_text(encoding="utf8")
        return text, yaml.safe_load(text.split("---\n")[1])

    return write


def test_hubs_find_what_they_look_for(card):
    _, front = card()
    assert front["library_name"] == "limbeck" and front["license"] == "apache-2.0"
    assert {"limbeck", "distillation", "vision", "kd", "arxiv:2203.08679"} <= set(front["tags"])
    assert front["pipeline_tag"] == "image-classification" and "base_model" not in front


def test_the_numbers_are_those_of_the_results(card):
    text, _ = card()
    teacher, student = (one_line(quantity(v, "%")) for v in (0.95, 0.9))
    assert f"| Accuracy | {teacher} | {student} | {student} |" in text
    assert "|  | Teacher | Student | Student alone |" in text


def test_the_teachers_licence_is_carried(card):
    """A student is a derived work of its teacher; whoever gets it must learn what binds it."""
    text, _ = card()
    assert "teacher: CC BY-NC 4.0" in text and "Of this student: Apache-2.0." in text and "CC BY 4.0" in text


def test_what_nobody_stated_is_said_not_to_be_stated(card):
    text, front = card({"licence": None, "teacher": {"name": "cnn", "width": 4}})
    assert front["license"] == "unknown"
    assert "Of this student: not stated." in text and "teacher: not stated" in text


def test_a_loaded_teachers_own_word_on_its_licence_is_carried(card, saved, tmp_path):
    _, folder = saved("cnn", tmp_path / "bought")
    store.update_card(folder, about={"licence": "MIT"})
    text, _ = card({"teacher": {"path": str(folder)}})
    assert "teacher: MIT" in text and str(tmp_path) not in text


def test_a_downloaded_teachers_card_is_read_for_its_licence(saved, tmp_path):
    _, folder = saved("causal_lm", tmp_path / "downloaded")
    (folder / store.CARD).unlink()
    (folder / "README.md").write_text("---\nlicense: other\nlicense_name: acme-research\n---\n# A model\n")
    assert stated_licence(folder) == "acme-research"
    for text in ("no front matter", "---\n: [\n---\n", "---\n- a\n---\n", "---\nlicense: unknown\n---\n"):
        (folder / "README.md").write_text(text)
        assert stated_licence(folder) is None
    assert stated_licence(tmp_path) is None


def test_secrets_and_places_are_not_in_the_card(card, monkeypatch, tmp_path):
    monkeypatch.setenv("MY_TOKEN", "hunter2-hunter2")
    changes = {"notes": "with ${env:MY_TOKEN} from /home/ann/private/data"}
    text, _ = card(changes, warnings=["hunter2-hunter2 in /home/ann/private/x.npz"])
    assert "hunter2" not in text and "with ${env:MY_TOKEN} from data" in text and "${env:MY_TOKEN} in x.npz" in text
    assert "/home/ann" not in text and str(tmp_path) not in text


def test_secrets_that_were_read_are_written_as_references(finish, tmp_path, monkeypatch):
    monkeypatch.setenv("MY_LICENCE", "Very-Secret-Licence")
    run = finish(tmp_path / "run", {"licence": "${env:MY_LICENCE}"})
    folder = deliver(run.artifact, tmp_path / "run" / "student", origin(run.context))
    text = write_card(folder, results(run.context), run.context.recipe).read_text()
    about = (folder / store.CARD).read_text()
    assert "Very-Secret" not in text + about and "${env:MY_LICENCE}" in text


def test_the_code_on_the_card_runs(card, tmp_path, monkeypatch):
    text, _ = card()
    code = text.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path / "run")
    scope = {"input": torch.randn(2, 1, 8, 8)}
    exec(code, scope)
    assert scope["logits"].shape == (2, 10)


def test_the_code_on_a_language_models_card_runs_with_and_without_limbeck(card, language, tmp_path, monkeypatch):
    text, front = card(language)
    codes = [part.split("```")[0] for part in text.split("```python\n")[1:]]
    monkeypatch.chdir(tmp_path / "run")
    ids = torch.ones(2, 8, dtype=torch.int64)
    scope = {"input_ids": ids, "attention_mask": ids}
    exec(codes[0], scope)
    assert "limbeck" in codes[0] and scope["logits"].shape[:2] == (2, 8)
    exec(codes[1], scope)
    assert "limbeck" not in codes[1] and torch.equal(scope["student"](ids).logits, scope["logits"])
    assert scope["tokenizer"].decode(ids[0]) and front["pipeline_tag"] == "text-generation"


def test_the_code_on_the_card_of_images_runs_with_and_without_limbeck(card, tmp_path, monkeypatch):
    text, _ = card(student="synthetic")
    monkeypatch.chdir(tmp_path / "run")
    scope = {}
    for part in text.split("```python\n")[1:]:
        exec(part.split("```")[0], scope)
        assert len(scope["images"]) == len(scope["labels"]) == 6
    assert "A data set" in text and "(images.png)" in text and "training networks in place of `digits`" in text


def test_the_paper_can_be_cited(card):
    text, _ = card()
    assert "https://arxiv.org/abs/2203.08679" in text and "@misc{arxiv2203.08679," in text and r"\& more" in text


def test_a_claim_that_was_never_tested_is_not_passed_off_as_evidence(card):
    claim = {"says": "students that are taught know more", "expect": ["accuracy.student > 0.5"]}
    text, _ = card({"claim": claim})
    assert "students that are taught know more" in text and "has not been tested" in text
    assert "makes no claim" in card()[0]


@pytest.mark.parametrize(("holds", "says"), [(True, "The claim holds"), (False, "The claim does not hold")])
def test_the_evidence_on_record_is_told_as_it_is(card, recipe_tree, tmp_path, holds, says):
    file = tmp_path / "recipes" / "vision" / "kd.yaml"
    file.parent.mkdir(parents=True)
    claim = {"says": "it helps", "expect": ["accuracy.student > 0.5"]}
    file.write_text(yaml.safe_dump({**recipe_tree, "claim": claim}))
    recipe = load_recipe(file)
    check = {"text": "accuracy.student > 0.5", "left": 0.9, "right": 0.5, "holds": holds}
    record = {"holds": holds, "checks": [check], "seeds": [0, 1, 2], "recorded": "2026-01-01"}
    write_json(evidence_path(recipe), {**record, "hashes": sources_hash(recipe)})
    text, _ = card(file)
    assert f"**{says}.**" in text and "`accuracy.student > 0.5` (0.9 against 0.5)" in text and "3 seeds" in text
    write_json(evidence_path(recipe), {**record, "hashes": {"recipe": "another"}})
    assert "for another version" in card(file)[0]


def test_exports_are_listed_in_the_card_without_changing_the_rest(card, tmp_path):
    text, _ = card()
    folder = tmp_path / "run" / "student"
    checked = {"against": "onnxruntime 1.0", "on": "16 rows", "largest_difference": 1e-7, "relative": 2e-7}
    exports = {"onnx": {"file": "model.onnx", "inputs": {"input": ["batch", 3]}, "checked": checked}}
    store.update_card(folder, exports=exports)
    refresh_exports(folder)
    after = (folder / "README.md").read_text(encoding="utf8")
    row = "| `model.onnx` | onnx | input [batch, 3] | onnxruntime 1.0, 16 rows | 1.0e-07 (2.0e-07 of the largest"
    assert row in after and "model.onnx" not in text
    store.update_card(folder, exports={})
    refresh_exports(folder)
    assert (folder / "README.md").read_text(encoding="utf8") == text


def test_a_card_written_by_hand_is_left_alone(card, tmp_path):
    card()
    folder = tmp_path / "run" / "student"
    (folder / "README.md").write_text("mine")
    refresh_exports(folder)
    assert (folder / "README.md").read_text() == "mine"


def test_a_live_network_is_loaded_into_one_built_by_its_owner(card, monkeypatch):
    from limbeck import registry
    from limbeck.models.vision import CNN

    sizes = {"in_channels": 1, "image_size": 8, "classes": 10, "width": 2}
    make = lambda: CNN(**sizes)  # noqa: E731
    make.__limbeck__ = {"kind": "model", "name": "student-cnn-1"}
    monkeypatch.setitem(registry._LIVE, ("model", "student-cnn-1"), make)
    text, _ = card({"student": {"name": "student-cnn-1"}})
    assert "into=network)" in text


def test_a_card_needs_a_model(tmp_path, finish):
    run = finish(tmp_path / "run")
    with pytest.raises(UserError, match=r"no limbeck\.json"):
        write_card(tmp_path, results(run.context), run.context.recipe)
