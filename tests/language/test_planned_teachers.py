from limbeck.planning import estimate_run
from limbeck.recipe import load_recipe

LM = {"name": "causal_lm", "architecture": "llama", "hidden": 8, "layers": 1, "heads": 2}
RECIPE = {
    "title": "a teacher that reads data of its own",
    "data": {"name": "graph_nodes", "per_class": 1, "nodes": 24, "test_size": 8, "classes": 2, "words": 3, "length": 3},
    "teacher": {**LM, "data": {"form": "prompts"}},
    "student": {"name": "gcn", "hidden": 4},
    "method": {"name": "lingugkd"},
    "train": {"steps": 2, "batch_size": 8},
}


def test_a_teacher_with_data_of_its_own_is_planned_with_that(monkeypatch):
    monkeypatch.setattr("limbeck.planning._time_steps", lambda recipe, ingredients: (1.0, 2))  # that takes seconds
    facts = estimate_run(load_recipe(RECIPE))
    # The vocabulary is that of the prompts, which the nodes do not have.
    assert facts["teacher parameters"] > 0
    assert facts["sets"] == "the teacher read 16 nodes at 3 distances"
