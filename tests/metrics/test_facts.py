from __future__ import annotations

import subprocess
import sys

import pytest

from limbeck import registry
from limbeck.metrics import facts


def test_directions_and_labels_answer_without_importing_torch() -> None:
    code = (
        "import sys; from limbeck.metrics.facts import directions, label_of, default_metrics;"
        "assert directions()['accuracy'] == 'higher' and label_of('ece')[1] == '%';"
        "assert default_metrics('classification');"
        "assert 'torch' not in sys.modules, 'torch was imported'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_value_of_these_metrics_has_a_direction() -> None:
    known = facts.directions()
    higher = {"accuracy", "top5_accuracy", "agreement", "throughput"}
    lower = {"nll", "ece", "brier", "teacher_kl", "parameters", "bytes", "flops", "latency_ms", "latency_p90_ms"}
    assert {k for k in higher if known[k] == "higher"} == higher
    assert {k for k in lower if known[k] == "lower"} == lower


def test_a_key_without_a_label_is_shown_in_words() -> None:
    assert facts.label_of("never_heard_of") == ("Never heard of", "")
    assert facts.label_of("accuracy") == ("Accuracy", "%")


def test_every_labelled_key_has_a_direction() -> None:
    known = facts.directions()
    for part in registry.parts("metric"):
        assert set(part.facts.get("labels", {})) <= set(known), part.name


def test_defaults_leave_out_what_needs_a_teacher_that_is_not_there() -> None:
    names = [b.name for b in facts.default_metrics("classification")]
    assert {"accuracy", "agreement", "calibration", "efficiency"} <= set(names)
    alone = [b.name for b in facts.default_metrics("classification", teacher=False)]
    assert "agreement" not in alone and "accuracy" in alone


def test_a_classifier_metric_is_no_default_of_another_task() -> None:
    names = {b.name for b in facts.default_metrics("language")}
    assert "efficiency" in names and not names & {"accuracy", "calibration", "agreement"}
    assert "efficiency" not in {b.name for b in facts.default_metrics("generation")}


def test_metrics_that_contradict_each_other_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def part(name: str, better: str) -> registry.Part:
        return registry.Part("metric", name, "user", "m", name, facts={"better": {"speed": better}})

    monkeypatch.setattr(facts.registry, "parts", lambda kind: [part("a", "higher"), part("b", "lower")])
    with pytest.raises(ValueError, match="'b' says lower is better for 'speed'"):
        facts.directions()
    monkeypatch.setattr(facts.registry, "parts", lambda kind: [part("a", "up")])
    with pytest.raises(ValueError, match="say 'higher' or 'lower'"):
        facts.directions()


def test_what_judges_a_generator_depends_on_what_is_at_hand() -> None:
    def names(*at_hand: str) -> list[str]:
        return [b.name for b in facts.default_metrics("generation", at_hand=at_hand)]

    assert names() == []
    assert names("denoiser") == ["teacher_distance"]
    assert names("mixture", "denoiser", "pictures") == ["mixture_quality"]
    assert names("denoiser", "pictures") == ["picture_quality"] and names("chain") == ["sequence_quality"]


def test_a_metric_lacks_the_kinds_that_it_needs_and_that_are_not_there() -> None:
    assert facts.lacks(registry.find("metric", "mixture_quality"), {"pictures"}) == {"mixture"}
    assert facts.lacks(registry.find("metric", "agreement"), ()) == set()  # left out where there is no teacher
