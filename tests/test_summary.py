"""What the terminal tells of a finished run."""

from __future__ import annotations

from limbeck.summary import summary


def results(task: str, **metrics: tuple[float, ...]) -> dict:
    arms = {}
    for place, (name, role) in enumerate((("teacher", "teacher"), ("student", "student"), ("alone", "control"))):
        found = {key: values[place] for key, values in metrics.items() if place < len(values)}
        arms[name] = {"role": role, "label": name.capitalize(), "metrics": found}
    return {"task": task, "arms": arms}


def test_each_arm_has_a_line_and_the_last_says_what_was_kept():
    told = summary(results("classification", accuracy=(0.9, 0.85, 0.8), parameters=(2000, 500, 500))).splitlines()
    assert told[0].startswith("Teacher  accuracy 90.0%, 2,000 parameters")
    assert told[3] == (
        "Kept: the student's accuracy 85.0% against the teacher's 90.0%, 80.0% for alone, 4.0x fewer parameters"
    )


def test_what_heads_the_report_is_told_of_runs_judged_otherwise():
    told = summary(results("embedding", recall_100=(1.0, 1.0), ndcg_10=(0.81, 0.76))).splitlines()
    assert told[0] == "Teacher  nDCG@10 81.0%"
    assert told[3] == "Kept: the student's nDCG@10 76.0% against the teacher's 81.0%"


def test_a_run_that_measured_nothing_points_to_its_page():
    assert summary(results("classification")).endswith("Kept: see the report")
