import pytest
import torch

from limbeck.data.text import text
from limbeck.engine.teacher import Teacher
from limbeck.errors import UserError
from limbeck.language.models import pruned as module
from limbeck.language.models.pruned import pruned
from limbeck.models.causal import causal_lm
from limbeck.recipe import RecipeError, load_recipe
from limbeck.run import run_recipe

TEXT = {"name": "text", "corpus": "grammar", "characters": 4000, "context": 16}
TEACHER = {"name": "causal_lm", "architecture": "llama", "hidden": 16, "layers": 2, "heads": 2, "train": {"steps": 2}}
RECIPE = {
    "title": "Cut",
    "data": TEXT,
    "teacher": TEACHER,
    "student": {"name": "pruned", "layers": 1, "hidden": 8, "samples": 8},
    "method": "word_kd",
    "train": {"steps": 2, "batch_size": 8},
    "evaluate": ["perplexity"],
}


@pytest.fixture(scope="module")
def data():
    return text(**{k: v for k, v in TEXT.items() if k != "name"})


@pytest.fixture(scope="module")
def teacher(data):
    torch.manual_seed(1)
    made = causal_lm(architecture="llama", hidden=16, layers=3, heads=4, vocab_size=data.spec.vocab_size, context=16)
    made.tokenizer_hash = "told"
    return Teacher(made, {"logits", "hidden_states"}, "teacher")


def test_the_student_is_cut_out_of_the_teacher_and_can_learn(data, teacher):
    student = pruned(teachers={"teacher": teacher}, data=data, layers=2, hidden=8, heads=2, ffn=16, samples=20)
    assert type(student) is type(teacher.module)
    own, whole = student.model.embed_tokens.weight, teacher.module.model.embed_tokens.weight
    assert own.shape == (len(whole), 8)
    columns = [next(i for i in range(16) if torch.equal(own[:, j], whole[:, i])) for j in range(8)]
    assert columns == sorted(columns)
    assert all(p.requires_grad for p in student.parameters()) and student.tokenizer_hash == "told"
    assert not any(p.requires_grad for p in teacher.module.parameters())


def test_it_is_the_same_every_time_and_calibrated_once(data, teacher, monkeypatch):
    given = {"teachers": {"teacher": teacher}, "data": data, "hidden": 12, "samples": 10}
    first = pruned(**given)
    monkeypatch.setattr(module, "choose", None)
    again = pruned(**given)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))


def test_a_random_choice_follows_torchs_seed(data, teacher):
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(pruned(teachers={"t": teacher}, data=data, hidden=8, samples=4, importance="random"))
    weights = [student.model.embed_tokens.weight for student in found]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_what_is_missing_is_said(data, teacher):
    with pytest.raises(UserError, match=r"a teacher called 'big'; the recipe's teachers: small"):
        pruned(of="big", teachers={"small": teacher}, data=data)
    with pytest.raises(UserError, match="calibrated on the run's training text"):
        pruned(teachers={"teacher": teacher}, data=None)
    with pytest.raises(UserError, match="samples must be at least 1"):
        pruned(teachers={"teacher": teacher}, data=data, samples=0)


def test_the_student_alone_begins_as_the_distilled_one(tmp_path, monkeypatch):
    monkeypatch.setenv("LIMBECK_HOME", str(tmp_path / "home"))
    recipe = load_recipe(RECIPE)
    assert recipe.control_arms == {"alone": {"method": {"name": "supervised"}}}
    arms = run_recipe(recipe, runs=tmp_path, quiet=True).results["arms"]
    assert arms["alone"]["metrics"].keys() >= {"bits_per_character"}
    assert arms["student"]["metrics"]["bits_per_character"] != arms["alone"]["metrics"]["bits_per_character"]


@pytest.mark.parametrize(
    "changes",
    [{"teacher": None, "method": "supervised"}, {"controls": {"bare": {"teacher": None, "method": "supervised"}}}],
)
def test_a_recipe_without_the_teacher_is_refused_before_anything_is_trained(changes, tmp_path):
    recipe = {k: v for k, v in {**RECIPE, **changes}.items() if v is not None}
    with pytest.raises(UserError, match="made out of a teacher; the recipe's teachers: none"):
        run_recipe(recipe, runs=tmp_path, quiet=True)
    assert not list(tmp_path.iterdir())
    with pytest.raises(RecipeError, match="layrs"):
        load_recipe({**RECIPE, "student": {"name": "pruned", "layrs": 1}})
