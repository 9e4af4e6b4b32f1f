from __future__ import annotations

import math

import numpy as np
import pytest

from limbeck.report import units
from limbeck.report.units import GAP, MINUS


def plain(text: str) -> str:
    return text.replace(GAP, " ").replace(MINUS, "-")


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [
        (0.983, "%", "98.3 %"),
        (1.0, "%", "100 %"),
        (0, "%", "0 %"),
        (0.9996, "%", "99.96 %"),
        (0.0004, "%", "0.04 %"),
        (-0.013, "%", "-1.3 %"),
        (0.412, "ms", "0.41 ms"),
        (0.1, "ms", "0.10 ms"),
        (11.84, "ms", "11.8 ms"),
        (0.0032, "ms", "3.2 µs"),
        (2500, "ms", "2.50 s"),
        (125, "s", "2 min 5 s"),
        (59.97, "s", "1 min"),
        (12000, "s", "3 h 20 min"),
        (12_442, "count", "12.4 k"),
        (999_999, "count", "1 M"),
        (812, "count", "812"),
        (48_600, "bytes", "48.6 kB"),
        (80, "bytes", "80 B"),
        (5_812_224, "flops", "5.81 MFLOPs"),
        (0.0041, "", "0.0041"),
        (0.0132004, "", "0.0132"),
        (123.456, "", "123"),
        (1437, "", "1 437"),
        (1.23e-7, "", "1.2e-7"),
        (0.0, "", "0"),
        (2.14, "bits", "2.14 bits"),
        (None, "%", "–"),
        (math.nan, "%", "not finite"),
        (math.inf, "", "not finite"),
        ("top-p", "%", "top-p"),
        (True, "%", "True"),
        ([1], "", "[1]"),
    ],
)
def test_values_are_written_as_people_read_them(value: object, unit: str, shown: str) -> None:
    assert plain(units.quantity(value, unit)) == shown


def test_a_share_below_one_is_never_rounded_to_a_hundred_percent() -> None:
    for share in (0.9994, 0.99951, 0.99996, 0.999994):
        assert plain(units.percent(share)) != "100 %"


@pytest.mark.parametrize("exponent", range(-60, 60))
def test_a_number_is_off_by_at_most_half_a_digit(exponent: int) -> None:
    value = 9.876 * 10.0**exponent
    text = plain(units.number(value)).replace(" ", "")
    assert float(text) == pytest.approx(value, rel=0.006)


@pytest.mark.parametrize(("ratio", "shown"), [(14.003, "14×"), (9.04, "9.0×"), (9.96, "10×"), (1.06, "1.1×")])
def test_factors_have_no_false_precision(ratio: float, shown: str) -> None:
    assert units.times(ratio) == shown


@pytest.mark.parametrize(
    ("value", "other", "unit", "shown"),
    [
        (0.969, 0.983, "%", "-1.4 points"),
        (0.9834, 0.9830, "%", "+0.04 points"),
        (0.5, 0.5, "%", "±0.0 points"),
        (4.97, 4.42, "", "+0.55"),
        (110, 100, "count", "+10 %"),
    ],
)
def test_differences_carry_their_sign(value: float, other: float, unit: str, shown: str) -> None:
    assert plain(units.difference(value, other, unit)) == shown


@pytest.mark.parametrize(
    ("values", "unit", "shown"),
    [
        ([0.97, 0.98], "%", "97.5 ± 0.7 %"),
        ([0.97], "%", "97.0 %"),
        ([0.104, 0.108, 0.1], "ms", "0.104 ± 0.004 ms"),
        ([12_442, 12_442], "count", "12.4 k"),
        ([10_000, 12_000], "count", "11.0 ± 1.4 k"),
        ([4.41, 4.43], "", "4.420 ± 0.014"),
    ],
)
def test_mean_and_spread_share_unit_and_decimals(values: list[float], unit: str, shown: str) -> None:
    assert plain(units.spread(values, unit)) == shown


def test_deviation_is_the_sample_standard_deviation() -> None:
    values = [0.3, 0.9, 1.7, 2.2]
    assert units.deviation(values) == pytest.approx(float(np.std(values, ddof=1)), rel=1e-12)
    assert units.deviation([1.0]) is None


def test_wilson_solves_the_equation_that_defines_it() -> None:
    share, samples, z = 0.969, 360, 1.96
    for p in units.wilson(share, samples, z):
        assert abs(share - p) == pytest.approx(z * math.sqrt(p * (1 - p) / samples), rel=1e-9)
    assert units.wilson(1.0, 50)[1] == 1.0
    assert units.wilson(0.0, 50)[0] == 0.0


@pytest.mark.parametrize("value", [None, "0.9", True, math.nan, math.inf, 1e300, 10**400, [1.0], {}])
def test_what_cannot_be_drawn_is_not_taken_for_a_number(value: object) -> None:
    assert units.finite(value) is None


def test_ticks_have_no_zeros_that_say_nothing() -> None:
    assert plain(units.tick(0.98, "%")) == "98 %"
    assert plain(units.tick(0.975, "%")) == "97.5 %"
    assert plain(units.tick(1e-4 * 1000, "ms")) == "0.1 ms"
    assert plain(units.tick(10_000, "count")) == "10 k"
