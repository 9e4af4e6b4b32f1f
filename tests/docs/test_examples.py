"""The examples that the pages show: they are the files, and the files work."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from limbeck.cli import main
from limbeck.engine.loop import Loop
from limbeck.losses import soft_kl
from limbeck.run import run_recipe
from toolkit import set_up, toy_loop, toy_net, toy_source, toy_teacher, weights

from .conftest import ROOT, all_blocks, name_of

TINY = ["train.steps=4", "train.batch_size=32", "teacher.train={steps: 4}", "evaluate=[accuracy]"]
TITLED = [block for block in all_blocks("python", "yaml") if block.title]


@pytest.mark.parametrize("block", TITLED, ids=lambda b: f"{name_of(b.page)}: {b.title}")
def test_a_page_shows_the_file_that_it_names(block) -> None:
    assert block.text == (ROOT / block.title).read_text("utf8"), "run: python docs/generate.py"


def test_every_example_is_on_a_page() -> None:
    files = {p.relative_to(ROOT).as_posix() for p in (ROOT / "docs" / "examples").glob("*.*")}
    assert files == {block.title for block in TITLED}


def test_the_method_of_the_page_runs(in_examples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = [word for value in TINY for word in ("--set", value)]
    assert main(["run", "my_method.yaml", "--runs", str(tmp_path), "--quiet", *settings]) == 0
    said = capsys.readouterr().out
    assert "Student alone" in said
    assert (tmp_path / Path(said.split("Report: ")[1].strip()).parent.name / "report.html").is_file()


def test_the_model_and_data_of_the_page_run(in_examples: Path, tmp_path: Path) -> None:
    settings = [value for value in TINY if not value.startswith("evaluate")]
    result = run_recipe("my_parts.yaml", overrides=settings, runs=tmp_path, quiet=True)
    assert result.results["spec"]["classes"] == 2
    assert {"teacher", "student", "alone"} <= set(result.metrics)


def test_the_method_of_the_page_is_what_its_docstring_says(in_examples: Path) -> None:
    from my_method import TrustKD

    method = set_up(TrustKD(weight=0.5, gamma=2.0, temperature=3.0), toy_net(), {"teacher": toy_teacher()})
    batch = toy_source().batch(torch.arange(16))
    student, teacher = method.student(batch["input"]), method.teacher.module(batch["input"])
    sure = teacher.softmax(1).max(1).values ** 2
    kd = method.terms(batch)["kd"]
    assert (kd.weight, kd.count) == (0.5, 16)
    torch.testing.assert_close(kd.sum, (sure * soft_kl(student, teacher, temperature=3.0)).sum())


def test_cutting_the_batch_does_not_change_what_the_method_of_the_page_learns(
    in_examples: Path, tmp_path: Path
) -> None:
    from my_method import TrustKD

    def trained(accumulate: int) -> torch.Tensor:
        method = set_up(TrustKD(), toy_net(), {"teacher": toy_teacher()})
        loop: Loop = toy_loop(tmp_path / str(accumulate), method, steps=3, accumulate=accumulate)
        loop.fit()
        return weights(method.student)

    torch.testing.assert_close(trained(1), trained(4))


def test_the_uses_of_a_condensed_set_work(in_examples: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import condensed_uses as uses

    monkeypatch.setattr(uses, "TASKS", ((0, 1), (2, 3)))
    monkeypatch.setattr(uses, "product", lambda *_: [(4, 1, "none"), (4, 1, "instance")])
    few = uses.REAL.draw(5, 0)
    known = torch.isin(uses.TEST["label"], torch.arange(4)).double().mean().item()
    assert uses.continual(None, 0) < 0.6 * known < uses.continual(few, 0)
    assert len(uses.proxy(few, 0)) == 2
    assert uses.rank_correlation([0.1, 0.2, 0.3], [0.2, 0.4, 0.9]) == pytest.approx(1.0)
    assert uses.rank_correlation([0.1, 0.2, 0.3], [3.0, 2.0, 1.0]) == pytest.approx(-1.0)
