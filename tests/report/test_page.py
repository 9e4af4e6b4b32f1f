from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from limbeck.errors import UserError
from limbeck.report.page import citation, write_report
from limbeck.report.units import GAP

Make = Callable[..., Path]
KINDS = ["classification", "generator", "language", "condensation", "stress"]
EVIL = ['<script>alert("x")</script>', '"><img src=x onerror=alert(1)>', "</svg></style></title><b>", "{{ 7 * 7 }}"]


class Page(HTMLParser):
    """The elements, attributes and texts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {k: v or "" for k, v in attrs}))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attrs for name, attrs in self.tags if name == tag]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def written(run: Path) -> str:
    return write_report(run).read_text(encoding="utf8")


def assert_harmless(html: str) -> Page:
    """No script but the page's own, no handler, nothing fetched from anywhere."""
    page = Page(html)
    assert len(page.all("script")) == 1
    for tag, attrs in page.tags:
        assert not [name for name in attrs if name.startswith("on")], (tag, attrs)
        assert tag not in ("iframe", "object", "embed", "link", "base", "form", "video", "audio", "source")
        if "src" in attrs:
            assert attrs["src"].startswith("data:image/png;base64,")
        if "href" in attrs and not attrs["href"].startswith("#"):
            assert tag == "a"
            assert re.fullmatch(r"https://arxiv\.org/abs/[\w.\-/]+", attrs["href"])
    assert not re.search(r"@import|@font-face", html)
    assert all(target.startswith("#") for target in re.findall(r"url\(\s*['\"]?([^)'\"]*)", html))
    assert not re.findall(r"https?://(?!arxiv\.org/abs/)", html)
    return page


@pytest.fixture
def html(pages: dict[str, Path]) -> str:
    """The page of the classification run."""
    return pages["classification"].read_text(encoding="utf8")


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_is_one_small_file_that_needs_nothing_else(pages: dict[str, Path], kind: str) -> None:
    assert {p.name for p in pages[kind].parent.iterdir()} <= {
        "report.html", "results.json", "recipe.yaml", "manifest.json", "train",
    }  # fmt: skip
    text = pages[kind].read_text(encoding="utf8")
    assert len(text.encode()) < 600_000
    assert_harmless(text)


def test_the_policy_of_the_page_forbids_every_request_and_every_other_script(html: str) -> None:
    policy = next(a["content"] for a in Page(html).all("meta") if "http-equiv" in a)
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "script-src 'sha256-" in policy
    assert "'unsafe-inline'; script" in policy
    assert "unsafe-eval" not in policy


@pytest.mark.parametrize("evil", EVIL)
def test_nothing_a_recipe_says_becomes_markup(make: Make, results: dict[str, Any], evil: str) -> None:
    from_recipe: dict[str, Any] = {"title": evil, "method": evil, "family": evil, "notes": [evil], "warnings": [evil]}
    results |= from_recipe | {"plan": [[evil, evil, evil]], "machine": {evil: evil}, "created": evil, "seed": evil}
    results["paper"] = {"title": evil, "arxiv": evil, "year": evil}
    results["spec"]["class_names"] = [evil] * 10
    results["arms"] = {("student" if k == "student" else k + evil): v for k, v in results["arms"].items()}
    for arm in results["arms"].values():
        arm |= {"label": evil, "describe": evil, "method": evil}
        arm["metrics"][evil] = 0.5
        arm["metrics"]["other"] = evil
    results["arms"]["student"]["details"] |= {
        "texts": [{"prompt": evil, "text": evil, "truth": evil}],
        "images": [[[0.1, 0.9], [0.5, 0.5]]],
        "image_labels": [evil],
        "samples": {evil: [[0.0, 1.0], [1.0, 0.5], [0.3, 0.2]]},
    }
    line = {"step": 1, "split": "train", f"term/{evil}": 1.0, f"share/{evil}": 0.5, "term/b": 1.0, "share/b": 0.5}
    lines = [{**line, "step": s} for s in range(1, 4)] + [{"step": s, "split": "val", evil: 0.1 * s} for s in (1, 2)]
    run = make(changed=results, logs={"train/student/metrics.jsonl": lines}, recipe=f"title: {evil}\n")
    (run / "manifest.json").write_text(json.dumps({evil: {"hash": evil}}), encoding="utf8")
    page = assert_harmless(written(run))
    assert " ".join(evil.split()) in page.text
    assert "49" not in re.findall(r"\b49\b", page.text)


def test_the_same_files_give_the_same_bytes(pages: dict[str, Path], tmp_path: Path) -> None:
    first = pages["classification"].read_bytes()
    run = shutil.copytree(pages["classification"].parent, tmp_path / "classification")
    code = (
        "import sys; from pathlib import Path; from limbeck.report.page import write_report as w; w(Path(sys.argv[1]))"
    )
    subprocess.run([sys.executable, "-c", code, str(run)], check=True, env={**os.environ, "PYTHONHASHSEED": "7"})
    assert (run / "report.html").read_bytes() == first


def test_what_was_measured_is_on_the_page(html: str) -> None:
    text = Page(html).text.replace(GAP, " ")
    for shown in ("98.3 %", "96.9 %", "92.3 %", "12.4 k", "174 k", "50.5 kB", "0.94 ms", "402 kFLOPs", "97.2 %"):
        assert shown in text
    for shown in ("term 'ce' contributes 0.4 % of the gradient", "The teacher was found in the cache: cnn-0123abcd."):
        assert shown in text
    assert "Left at their defaults train.schedule cosine seed 0" in text
    for shown in ("recipe line 9", "method.temperature", "adamw", "arXiv:2203.08679", "AMD EPYC", "9f1c2e7d5b6a"):
        assert shown in text


def test_headings_tables_and_figures_are_marked_up_for_everybody(html: str) -> None:
    page = Page(html)
    assert len(page.all("h1")) == 1
    assert len(page.all("h2")) >= 6
    assert page.all("html")[0]["lang"] == "en"
    assert all("scope" in th for th in page.all("th"))
    assert all(svg.get("aria-label") or svg.get("aria-hidden") for svg in page.all("svg"))
    assert all(box["tabindex"] == "0" and box["aria-label"] for box in page.all("div") if box.get("class") == "scroll")
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {a["href"][1:] for a in page.all("a") if a["href"].startswith("#")} <= set(ids)


def test_images_have_alternative_texts(pages: dict[str, Path]) -> None:
    images = Page(pages["condensation"].read_text(encoding="utf8")).all("img")
    assert len(images) == 10
    assert images[3]["alt"] == "Condensed images, image 4: three"


def test_charts_follow_what_was_logged(html: str) -> None:
    ids = {a.get("id") for a in Page(html).all("figure")}
    assert ids >= {
        "standing", "against-parameters", "against-latency_ms", "reliability", "confusion", "class-change",
        "curve-loss", "curve-validation", "values-0", "shares-0",
    }  # fmt: skip


def test_a_dead_term_stands_out(html: str) -> None:
    assert re.search(r'<th scope="row">ce</th>.*bad">0\.1\s% · hardly acts', html)
    assert html.count("hardly acts") == 1


def test_terms_of_a_critic_are_not_mixed_with_the_students(make: Make, results: dict[str, Any]) -> None:
    line = {"split": "train", "lr/student": 1e-3, "lr/fake_score": 1e-3,
            "term/dm": 1.0, "weighted/dm": 1.0, "share/dm": 0.5,
            "term/rec": 0.3, "weighted/rec": 0.1, "share/rec": 0.5, "term/fake_score.denoise": 2.0,
            "weighted/fake_score.denoise": 2.0, "share/fake_score.denoise": 1.0}  # fmt: skip
    log = [{"step": s, **line} for s in range(1, 20)]
    page = Page(written(make(changed=results, logs={"train/student/metrics.jsonl": log})))
    labels = {a["aria-label"] for a in page.all("svg") if a.get("aria-label")}
    assert "Share of the gradient's norm, mean over training: dm 50.0\u202f%, rec 50.0\u202f%" in labels
    assert "Loss terms of fake_score. At the end: denoise 2" in labels
    assert "hardly acts" not in page.text


def test_what_a_method_says_of_its_health_is_drawn_for_all_arms(make: Make, results: dict[str, Any]) -> None:
    logs = {}
    for arm, lag in (("student", 0.25), ("alone", 0.75)):
        line = {"split": "train", "health/critic_lag": lag, "health/own_<i>": 3.0}
        logs[f"train/{arm}/metrics.jsonl"] = [{"step": s, **line} for s in range(1, 20)]
        results["arms"][arm]["log"] = f"train/{arm}/metrics.jsonl"
    html = written(make(changed=results, logs=logs))
    labels = {a["aria-label"] for a in Page(html).all("svg") if a.get("aria-label")}
    assert any(re.match(r"Critic lag. At the end: .*0\.25.*0\.75", label) for label in labels)
    assert "0 is a perfect critic" in html
    assert "<i>" not in html and any((label or "").startswith("Own <i>.") for label in labels)


def test_proxy_and_golden_are_drawn_in_log_log_and_against_each_other(make: Make, results: dict[str, Any]) -> None:
    rows = [{"split": "train", "step": s, "health/proxy": 1 / s, "health/golden": 0.5 + 1 / s} for s in range(1, 20)]
    rows[4]["health/proxy"] = 0.0  # has no logarithm
    results["arms"]["student"]["log"] = "train/student/metrics.jsonl"
    html = written(make(changed=results, logs={"train/student/metrics.jsonl": rows}))
    labels = {a["aria-label"] for a in Page(html).all("svg") if a.get("aria-label")}
    assert any(label.startswith("Distance from the oracle, on the student's own text. At the end:") for label in labels)
    assert any(label.startswith("Distance from the oracle against distance from the teacher.") for label in labels)
    assert "away from the truth" in html


@pytest.mark.parametrize("missing", ["teacher", "student", "alone"])
def test_a_run_without_an_arm_still_has_a_page(make: Make, results: dict[str, Any], missing: str) -> None:
    del results["arms"][missing]
    page = assert_harmless(written(make(changed=results)))
    assert len(page.all("h1")) == 1


def test_a_run_that_left_only_results_has_a_page(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text('{"title": "Empty", "arms": {}}', encoding="utf8")
    page = assert_harmless(written(tmp_path))
    assert page.all("h2") == []
    assert "Empty: nothing was measured." in page.text


SPOILED: dict[str, Callable[[dict[str, Any]], object]] = {
    "nan": lambda r: r["arms"]["student"]["metrics"].update(accuracy=float("nan"), latency_ms=float("inf")),
    "null metrics": lambda r: r["arms"]["student"].update(metrics=None, details=None, log=None),
    "huge": lambda r: r["arms"]["student"]["metrics"].update(parameters=1e308, latency_ms=1e-320, bytes=10**400),
    "negative costs": lambda r: r["arms"]["student"]["metrics"].update(parameters=-1, latency_ms=0),
    "ragged confusion": lambda r: r["arms"]["student"]["details"].update(confusion=[[1], [2, 3]]),
    "text confusion": lambda r: r["arms"]["student"]["details"].update(confusion="none"),
    "empty classes": lambda r: r["arms"]["student"]["details"].update(confusion=[[0, 0], [0, 0]]),
    "one class": lambda r: r["arms"]["student"]["details"].update(confusion=[[7]]),
    "nan bins": lambda r: r["arms"]["student"]["details"]["reliability"].update(accuracy=[float("nan")] * 10),
    "unlike bins": lambda r: r["arms"]["student"]["details"]["reliability"].update(count=[1, 2]),
    "arms as a list": lambda r: r.update(arms=["student"]),
    "no spec": lambda r: r.update(spec=None, machine=None, paper=None, plan=None, notes=None, warnings=None),
    "odd plan": lambda r: r.update(plan=[["a"], [], "text", ["b", {"c": 1}, None], ["d", [1, 2], "x", "y"]]),
    "log outside": lambda r: r["arms"]["student"].update(log="../../etc/passwd"),
}


@pytest.mark.parametrize("spoil", SPOILED)
def test_spoiled_pieces_are_left_out(make: Make, results: dict[str, Any], spoil: str) -> None:
    for arm in results["arms"].values():
        arm["log"] = None
    SPOILED[spoil](results)
    assert_harmless(written(make(changed=results, logs={})))


def test_a_log_that_was_cut_off_is_read_up_to_there(make: Make) -> None:
    run = make()
    log = run / "train/student/metrics.jsonl"
    log.write_text(log.read_text() + '{"step": 999, "spl', encoding="utf8")
    assert "curve-loss" in written(run)


def test_the_log_of_a_shared_teacher_is_found_outside_the_run(make: Make, results: dict[str, Any]) -> None:
    run = make()
    kept = (run / "train/teacher/metrics.jsonl").rename(run.parent / "metrics.jsonl")
    results["arms"]["teacher"]["log"] = str(kept)
    (run / "results.json").write_text(json.dumps(results), encoding="utf8")
    assert re.search(r'aria-label="Training loss[^"]*Teacher', written(run))


def test_many_classes_are_listed_instead_of_drawn(make: Make, results: dict[str, Any]) -> None:
    matrix = [[9 if i == j else 0 for j in range(100)] for i in range(100)]
    matrix[3][7] = 5
    results["arms"]["student"]["details"]["confusion"] = matrix
    results["spec"]["class_names"] = []
    html = written(make(changed=results, logs={}))
    assert 'id="confusion"' not in html
    assert re.search(r'<th scope="row">3</th><td>7</td><td class="n">5</td>', html)


def test_a_generator_is_shown_in_other_numbers_of_calls(make: Make, results: dict[str, Any]) -> None:
    picture = [[0.1, 0.9], [0.5, 0.5]]
    details = results["arms"]["student"]["details"]
    details |= {"images": [picture], "hurried": [picture], "in_calls": {"1": [picture], "4": [picture, picture]}}
    html = written(make(changed=results))
    assert "Teacher in as many calls as the student" in html
    assert re.search(r"Student in 1 call\b", html) and "Student in 4 calls" in html
    assert len(re.findall("data:image/png", html)) == 5
    details["in_calls"] = ["no", "mapping"]
    assert "Student in" not in written(make(changed=results))


def test_large_runs_stay_small_pages(make: Make, results: dict[str, Any]) -> None:
    import numpy as np

    rng = np.random.default_rng(0)
    details = results["arms"]["student"]["details"]
    details["samples"] = {k: rng.normal(size=(5_000, 2)).round(5).tolist() for k in ("student", "teacher", "alone")}
    details["images"] = rng.uniform(size=(150, 3, 32, 32)).round(3).tolist()
    details["texts"] = [{"prompt": f"p{i}", "text": "word " * 5000} for i in range(50)]
    log = [{"step": s, "epoch": s / 100, "split": "train", **{f"term/t{i}": 1 + i + s % 7 for i in range(8)},
            **{f"share/t{i}": 0.125 for i in range(8)}} for s in range(2000)]  # fmt: skip
    html = written(make(changed=results, logs={"train/student/metrics.jsonl": log}))
    assert len(html.encode()) < 600_000
    shown = len(re.findall("data:image/png", html))
    assert 30 < shown < 150
    assert f"{150 - shown} more images are not shown" in html


def test_missing_or_broken_results_are_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no results\.json"):
        write_report(tmp_path)
    (tmp_path / "results.json").write_text("{", encoding="utf8")
    with pytest.raises(UserError, match="is not JSON"):
        write_report(tmp_path)
    (tmp_path / "results.json").write_text("[]", encoding="utf8")
    with pytest.raises(UserError, match="expected an object"):
        write_report(tmp_path)


@pytest.mark.parametrize("number", ["2203.08679", "2203.08679v2", "hep-th/9901001", "math.GT/0309136"])
def test_an_arxiv_number_is_linked(number: str) -> None:
    assert citation({"arxiv": number})["link"] == f"https://arxiv.org/abs/{number}"


@pytest.mark.parametrize("number", ["javascript:alert(1)", "//evil.example/1", "2203.08679/../../x", ""])
def test_what_is_no_arxiv_number_is_not_linked(number: str) -> None:
    assert not citation({"title": "T", "arxiv": number})["link"]
