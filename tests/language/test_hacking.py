import math

import pytest

from limbeck.engine.health import Seen
from limbeck.language.hacking import leaves, power_law, rises
from limbeck.language.methods.teacher_hacking import hacked


def series(values):
    return [Seen(10 * i, v, 1.0) for i, v in enumerate(values)]


def law(i):
    return 2.0 * (10 * i + 1) ** -0.4


def test_a_power_law_is_found_again():
    found = power_law([1, 10, 50, 300], [3.0 * x**-0.7 for x in (1, 10, 50, 300)])
    assert found.scale == pytest.approx(3.0) and found.slope == pytest.approx(-0.7) and found.spread < 1e-9
    assert found.residual(20, 3.0 * 20**-0.7 * math.e) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="three points"):
        power_law([1, 2], [1.0, 0.5])
    with pytest.raises(ValueError, match="positive"):
        power_law([1, 2, 3], [1.0, 0.5, 0.0])


def test_a_proxy_that_keeps_to_its_law_is_well():
    wobble = [0.02, -0.02, 0.01, -0.01]
    assert leaves(series([law(i) * (1 + wobble[i % 4]) for i in range(20)])) is None
    assert leaves(series([law(i) for i in range(4)])) is None
    faster = [law(i) * (0.9 ** max(0, i - 10)) for i in range(20)]
    assert leaves(series(faster)) is None


def test_a_proxy_that_flattens_or_rises_has_left_it():
    values = [law(min(i, 12)) * (1.0 + 0.1 * max(0, i - 12)) for i in range(20)]
    step = leaves(series(values))
    assert step is not None and 120 <= step <= 160


def test_golden_that_rises_is_found_from_its_lowest_point():
    values = [1.0 - 0.05 * i for i in range(10)] + [0.55 + 0.05 * i for i in range(10)]
    assert rises(series(values)) == 90
    assert rises(series(sorted(values, reverse=True))) is None


def test_the_oracle_decides_where_there_is_one():
    falling, rising = series([law(i) for i in range(20)]), series([1.0 + 0.1 * i for i in range(20)])
    bent = series([law(min(i, 12)) * (1.0 + 0.1 * max(0, i - 12)) for i in range(20)])
    assert "hacks its teacher" in hacked({"proxy": falling, "golden": rising})
    assert hacked({"proxy": bent, "golden": falling}) is None
    assert "power law" in hacked({"proxy": bent}) and hacked({"proxy": falling}) is None
