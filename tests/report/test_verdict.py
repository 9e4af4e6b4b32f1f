from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from limbeck.report import verdict
from limbeck.report.results import load
from limbeck.report.units import GAP

Make = Callable[..., Path]


@pytest.fixture
def said(make: Make, results: dict[str, Any]) -> Callable[..., str]:
    def say(**changed: float | None) -> str:
        """The headline with ``arm__metric`` set to a value, or ``arm`` left out."""
        made = copy.deepcopy(results)
        for name, value in changed.items():
            arm, _, metric = name.partition("__")
            if not metric:
                del made["arms"][arm]
            elif arm in made["arms"]:
                made["arms"][arm]["metrics"][metric] = value
        return verdict.headline(load(make(changed=made, logs={}))).replace(GAP, " ")

    return say


def test_the_verdict_says_what_is_kept_at_what_cost_and_what_training_alone_gives(said: Callable[..., str]) -> None:
    assert said() == (
        "The student keeps 98.6 % of the teacher’s accuracy with 14× fewer parameters and 9.0× lower latency; "
        "trained alone it keeps 93.9 %."
    )


def test_a_student_that_training_alone_beats_is_not_praised(said: Callable[..., str]) -> None:
    assert "trained alone it does better: it keeps 99.2 %." in said(alone__accuracy=0.975)


def test_a_student_better_than_its_teacher_is_named_so(said: Callable[..., str]) -> None:
    assert said(student__accuracy=0.99).startswith("The student beats the teacher’s accuracy, 99.0 % to 98.3 %, with")


def test_an_equal_student_matches(said: Callable[..., str]) -> None:
    assert said(student__accuracy=0.983).startswith("The student matches the teacher’s accuracy of 98.3 % with")


def test_without_a_teacher_nothing_is_kept(said: Callable[..., str]) -> None:
    assert said(teacher=None) == "The student reaches an accuracy of 96.9 %; trained alone it reaches 92.3 %."


def test_without_a_control_nothing_is_said_of_it(said: Callable[..., str]) -> None:
    assert said(alone=None).endswith("9.0× lower latency.")


def test_a_slower_student_is_not_called_faster(said: Callable[..., str]) -> None:
    assert "14× fewer parameters, but 2.1× higher latency;" in said(student__latency_ms=1.97)


def test_a_student_as_large_as_the_teacher_claims_no_saving(said: Callable[..., str]) -> None:
    same = said(student__parameters=174_218, student__latency_ms=0.95)
    assert same == "The student keeps 98.6 % of the teacher’s accuracy; trained alone it keeps 93.9 %."


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None])
def test_a_diverged_run_is_called_unusable(said: Callable[..., str], value: float | None) -> None:
    assert said(student__accuracy=value) == "The student has no finite accuracy: this run gave no usable result."


def test_a_metric_where_lower_is_better_is_not_turned_into_a_share(make: Make) -> None:
    text = verdict.headline(load(make("language"))).replace(GAP, " ")
    assert text.startswith("The student reaches a perplexity of 4.97 (teacher: 4.42) with 12× fewer parameters")
    assert text.endswith("trained alone it reaches 5.63.")


def test_few_steps_are_the_first_saving_of_a_generator(make: Make) -> None:
    assert "with 100× fewer network evaluations" in verdict.headline(load(make("generator")))


def test_a_condensed_data_set_is_judged_by_the_networks_trained_on_it(make: Make) -> None:
    assert verdict.headline(load(make("condensation"))).replace(GAP, " ") == (
        "On 10 images instead of 1 437, fresh networks keep 90.4 % of their accuracy; "
        "on “Random subset” they keep 62.4 % of their accuracy."
    )


def test_one_seed_is_not_sold_as_certainty(make: Make, results: dict[str, Any]) -> None:
    remarks = " ".join(verdict.remarks(load(make(changed=results)))).replace(GAP, " ")
    assert "One seed, 360 test samples: ±1.8 points" in remarks
    assert "overlap: more seeds are needed" in remarks
    results["arms"]["alone"]["metrics"]["accuracy"] = 0.8
    assert "overlap" not in " ".join(verdict.remarks(load(make(changed=results))))


def test_the_closed_gap_is_a_share_of_what_was_open(make: Make, results: dict[str, Any]) -> None:
    expected = round(100 * (0.969 - 0.923) / (0.983 - 0.923))
    assert f"closes {expected}{GAP}% of the gap" in verdict.remarks(load(make(changed=results)))[0]
    results["arms"]["student"]["metrics"]["accuracy"] = 0.9
    assert "closes" not in " ".join(verdict.remarks(load(make(changed=results))))
