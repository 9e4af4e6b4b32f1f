from __future__ import annotations

import subprocess
import sys

import pytest

from limbeck.report import labels


def test_writing_pages_does_not_import_torch() -> None:
    code = (
        "import sys; import limbeck.report.page, limbeck.report.compare, limbeck.report.proof;"
        "from limbeck.report import labels; labels.info('accuracy');"
        "sys.exit('torch' in sys.modules or 'matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_no_two_metrics_of_the_table_share_a_label() -> None:
    shown = [labels.info(key).label for key in labels.OWN]
    assert sorted(shown) == sorted(set(shown))


def test_the_table_and_the_registered_metrics_agree_on_directions() -> None:
    from limbeck.metrics.facts import directions

    for key, better in directions().items():
        assert labels.info(key).better == better
        if key in labels.OWN:
            assert labels.OWN[key].better == better, key


def test_an_unknown_metric_is_shown_under_its_own_name_without_a_direction() -> None:
    found = labels.info("my_own_score")
    assert (found.label, found.better, found.group) == ("My own score", None, "other")


def test_a_label_of_the_caller_replaces_the_known_one() -> None:
    assert labels.info("accuracy", {"accuracy": ("Hits", "")}).label == "Hits"
    assert labels.info("accuracy", {"accuracy": "a tag"}).label == "Accuracy"


@pytest.mark.parametrize(
    ("keys", "task", "chosen"),
    [
        (["latency_ms", "nll", "accuracy"], "classification", "accuracy"),
        (["accuracy", "fresh_accuracy"], "classification", "fresh_accuracy"),
        (["nll", "perplexity"], "language", "perplexity"),
        (["mode_coverage", "energy_distance"], "generation", "energy_distance"),
        (["my_score", "ece"], "classification", "ece"),
        (["my_score", "parameters"], "", "my_score"),
    ],
)
def test_a_run_is_judged_by_its_tasks_metric(keys: list[str], task: str, chosen: str) -> None:
    found = labels.main_metric(keys, task)
    assert found is not None
    assert found.key == chosen


def test_a_cost_alone_judges_nothing() -> None:
    assert labels.main_metric(["parameters", "latency_ms"], "classification") is None


def test_the_order_of_metrics_does_not_depend_on_the_order_they_come_in() -> None:
    keys = [*labels.OWN, "zeta", "alpha"]
    assert labels.ordered(keys) == labels.ordered(reversed(keys))


def test_gain_is_positive_for_the_better_value() -> None:
    assert labels.info("accuracy").gain(0.9, 0.8) > 0
    assert labels.info("perplexity").gain(5.0, 6.0) > 0


def test_an_abbreviation_keeps_its_capitals_inside_a_sentence() -> None:
    assert labels.info("flops").name.startswith("FLOPs")
    assert labels.info("teacher_kl").name.startswith("KL")
