"""The health of a training: how it is measured without a trace, and the statistics that judge a series."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from limbeck.engine.health import Seen, highest, middle, pooled, since, swing
from limbeck.engine.journal import Journal
from limbeck.engine.method import Batch, Clock, Method, Term, Update
from limbeck.engine.stopping import Interrupted
from toolkit import set_up, toy_loop


def series(*values: float, count: float = 1.0) -> list[Seen]:
    return [Seen(10 * k, v * count, count) for k, v in enumerate(values)]


class Looks(Method):
    """A student with dropout and batch statistics, which its health puts to work and draws from."""

    asks = True

    def updates(self, batch: Batch, clock: Clock) -> Iterator[Update]:
        yield Update("student", {"square": Term.of((self.student(batch["input"]) - 1).square().mean(1))})

    def health(self, batch: Batch, clock: Clock) -> dict[str, Term]:
        if not self.asks:
            return {}
        out = self.student(batch["input"])
        assert not out.requires_grad
        torch.rand(3)
        return {"rows": Term(batch["id"].sum(), len(batch["id"])), "noisy": Term(out.sum(), 1)}

    def alarms(self) -> list:
        return [lambda seen: f"rows at step {seen['rows'][-1].step}" if seen else None]


class Quiet(Looks):
    asks = False


def net() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.5))


def trained(folder: Path, kind: type[Method], **options):
    loop = toy_loop(folder, set_up(kind(), net()), steps=20, settings={"log_every": 1}, **options)
    torch.manual_seed(5)
    return loop, loop.fit()


def test_looking_changes_nothing_that_is_trained(tmp_path: Path) -> None:
    (looking, seen), (_, plain) = trained(tmp_path / "a", Looks), trained(tmp_path / "b", Quiet)
    assert all(torch.equal(v, plain.student["last"][k]) for k, v in seen.student["last"].items())
    assert len(looking.journal.health["noisy"]) == 20
    assert seen.warnings == ["rows at step 19"] and plain.warnings == []


def test_numbers_are_of_the_whole_batch_however_it_is_cut_and_are_logged(tmp_path: Path) -> None:
    whole, _ = trained(tmp_path / "1", Looks)
    cut, _ = trained(tmp_path / "4", Looks, accumulate=4)
    rows = [float(whole.stream.rows(step).double().mean()) for step in range(20)]
    for loop in (whole, cut):
        assert [s.value for s in loop.journal.health["rows"]] == pytest.approx(rows)
    logged = [json.loads(line) for line in (tmp_path / "4" / "metrics.jsonl").read_text().splitlines()]
    assert [row["health/rows"] for row in logged] == pytest.approx(rows)


def test_a_resumed_training_remembers_what_was_seen(tmp_path: Path) -> None:
    first = toy_loop(tmp_path, set_up(Looks(), net()), steps=20, settings={"log_every": 1})
    first.method.after_step = lambda clock: setattr(first.asked, "code", 143 if clock.step == 7 else None)  # type: ignore[method-assign]
    with pytest.raises(Interrupted):
        first.fit()
    second, _ = trained(tmp_path, Looks)
    assert [s.step for s in second.journal.health["rows"]] == list(range(20))


def test_what_has_no_count_or_is_not_finite_is_left_out() -> None:
    journal = Journal()
    journal.look(3, {"empty": (0.0, 0.0), "wild": (math.inf, 1.0), "lost": (math.nan, 1.0), "kept": (3.0, 2.0)})
    assert journal.health == {"kept": [Seen(3, 3.0, 2.0)]}
    assert journal.flush() == {"health/kept": 1.5}


def test_measurements_are_pooled_by_their_counts() -> None:
    seen = [Seen(0, 100.0, 1.0), Seen(1, 1.0, 1.0), Seen(2, 6.0, 3.0)]
    assert pooled(seen, 2) == 7 / 4 and pooled(seen, 9) == 107 / 5


def test_one_wild_measurement_moves_neither_the_middle_nor_the_highest() -> None:
    seen = series(0.1, 50.0, 0.8, 0.9, 0.7, 0.01, 0.02, 9.0)
    assert middle(seen, 3) == 0.02
    assert highest(seen) == 0.9
    assert highest(series(0.3)) == 0.3 and highest(series(0.3, 0.1)) == pytest.approx(0.2)


def test_since_is_the_first_of_the_last_run() -> None:
    seen = series(0.0, 1.0, 0.0, 0.0)
    assert since(seen, lambda v: v < 0.5) == 20
    assert since(seen[:2], lambda v: v < 0.5) is None


def test_a_swing_changes_sign_and_what_scatters_on_one_side_does_not() -> None:
    swings = [(-1.0) ** k * 1.5 for k in range(10)]
    assert swing(series(*swings), 10) == (3.0, 1.0)
    assert swing(series(*([7.0] * 5), *swings), 10) == (3.0, 1.0)
    assert swing(series(*(v - 2 for v in swings)), 10) == (3.0, 0.0)
    assert swing(series(*(0.5 * k - 2.25 for k in range(10))), 10) == (0.5, 1 / 9)
