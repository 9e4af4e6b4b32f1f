"""Expectations: the arithmetic of claims, and that nothing else can be written in one."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.errors import UserError
from limbeck.expectation import parse_expectation

TABLE = {("accuracy", "dkd"): 0.9, ("accuracy", "alone"): 0.8, ("nll", "dkd"): 2.0, ("nll", "teacher"): 0.0}


@pytest.mark.parametrize(
    ("text", "holds", "left", "right"),
    [
        ("accuracy.dkd > accuracy.alone + 0.01", True, 0.9, 0.81),
        ("accuracy.dkd < accuracy.alone", False, 0.9, 0.8),
        ("accuracy.dkd >= 0.9", True, 0.9, 0.9),
        ("0.9 <= accuracy.dkd", True, 0.9, 0.9),
        ("(accuracy.dkd - accuracy.alone) / accuracy.alone > 1e-1", True, 0.125, 0.1),
        ("-accuracy.dkd < +1", True, -0.9, 1.0),
        ("abs(accuracy.alone - accuracy.dkd) < 0.2", True, 0.1, 0.2),
        ("min(accuracy.dkd, accuracy.alone, 1) > 0.7", True, 0.8, 0.7),
        ("max(accuracy.dkd, 0) * 2 > 1.7", True, 1.8, 1.7),
        ("  accuracy.dkd > 0\n", True, 0.9, 0.0),
        ("1 - 2 - 3 < accuracy.dkd", True, -4.0, 0.9),
    ],
)
def test_it_computes_both_sides(text, holds, left, right):
    assert parse_expectation(text).evaluate(TABLE) == (holds, pytest.approx(left), pytest.approx(right))


def test_it_knows_the_values_that_it_needs():
    names = parse_expectation("max(accuracy.dkd, accuracy.kd) > 2 * accuracy.alone + nll.dkd").names
    assert names == {("accuracy", "dkd"), ("accuracy", "kd"), ("accuracy", "alone"), ("nll", "dkd")}


@pytest.mark.parametrize(
    "text", ["nll.dkd / nll.teacher > 1", "nll.dkd / nll.teacher < 1", "min(a.b, 1) <= 1", "max(a.b, 1) >= 1"]
)
def test_what_is_no_number_holds_no_expectation(text):
    holds, left, _ = parse_expectation(text).evaluate({**TABLE, ("a", "b"): math.nan})
    assert not holds and math.isnan(left)


def test_a_value_that_was_not_measured_is_named():
    with pytest.raises(UserError, match=r"accuracy\.kd"):
        parse_expectation("accuracy.kd > 0").evaluate(TABLE)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "cannot be read"),
        ("accuracy.dkd >", "cannot be read"),
        ("accuracy.dkd", "must compare"),
        ("accuracy.dkd == 1", "must compare"),
        ("0 < accuracy.dkd < 1", "must compare"),
        ("accuracy.dkd > 0 and accuracy.alone > 0", "must compare"),
        ("accuracy > 0", "has no arm"),
        ("1 < 2", "numbers only"),
        ("a.b.c > 0", "is not a number"),
        ("a.b ** 2 > 0", "is not a number"),
        ("a.b % 2 > 0", "is not a number"),
        ("a.b > True", "is not a number"),
        ("a.b > 'x'", "is not a number"),
        ("a.b > 1j", "is not a number"),
        ("a.b > 1e999", "too large"),
        ("a.b > " + "9" * 400, "too large"),
        ("a[0] > 0", "is not a number"),
        ("abs(a.b, 1) > 0", "2 arguments"),
        ("min() > a.b", "0 arguments"),
        ("min(*a.b) > 0", "is not a number"),
        ("min(a.b, key=1) > 0", "is not a number"),
        ("pow(a.b, 2) > 0", "is not a number"),
        ("a.min(1) > 0", "is not a number"),
        ("__import__('os').system('ls') > a.b", "is not a number"),
        ("(lambda: 0)() > a.b", "is not a number"),
        ("[a.b for a in b] > a.b", "is not a number"),
        ("a.b > 0\0", "cannot be read"),
        ("a.b > " + "(" * 400 + "1" + ")" * 400, "cannot be read"),
        ("a.b > " + "-" * 900 + "1", ""),
        ("a.b > 1" + "+1" * 600, "longer"),
    ],
)
def test_anything_else_is_refused_in_one_line(text, says):
    try:
        parse_expectation(text)
    except UserError as error:
        assert says in str(error)
    else:
        assert says == ""


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.text(max_size=60), st.text("ab.()+-*/<>=, 019emxin", max_size=40)))
def test_any_text_is_an_expectation_or_a_user_error(text):
    try:
        expectation = parse_expectation(text)
    except UserError:
        return
    holds, left, right = expectation.evaluate(dict.fromkeys(expectation.names, 1.5))
    assert isinstance(holds, bool) and isinstance(left, float) and isinstance(right, float)


@settings(max_examples=100, deadline=None)
@given(st.recursive(st.sampled_from(["a.b", "c.d", "2", "0.5"]), lambda t: st.builds(
    "({} {} {})".format, t, st.sampled_from("+-*"), t), max_leaves=12))  # fmt: skip
def test_arithmetic_agrees_with_python(side):
    class Arm:
        def __init__(self, **arms):
            self.__dict__.update(arms)

    left = parse_expectation(f"{side} + a.b > 0").evaluate({("a", "b"): 3.0, ("c", "d"): -2.5})[1]
    assert left == eval(f"{side} + a.b", {"a": Arm(b=3.0), "c": Arm(d=-2.5)})
