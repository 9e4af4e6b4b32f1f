"""What a claim expects of its arms, e.g. ``accuracy.dkd > accuracy.alone + 0.01``, read and computed without eval.

A value is written ``metric.arm``. Numbers, ``+ - * /``, parentheses, ``abs(...)``, ``min(...)`` and ``max(...)``
combine values; one of ``< > <= >=`` compares two sides.
"""

from __future__ import annotations

import ast
import math
import operator
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from limbeck.errors import UserError

Table = Mapping[tuple[str, str], float]
"""Measured values by (metric, arm)."""

MAX_LENGTH = 1000
_COMPARE: dict[type[ast.cmpop], Callable[[float, float], bool]] = {
    ast.Gt: operator.gt,
    ast.Lt: operator.lt,
    ast.GtE: operator.ge,
    ast.LtE: operator.le,
}
_BINARY: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: lambda a, b: a / b if b else math.nan,
}
_UNARY: dict[type[ast.unaryop], Callable[[float], float]] = {ast.USub: operator.neg, ast.UAdd: operator.pos}


def _smallest(*values: float) -> float:
    return math.nan if any(map(math.isnan, values)) else min(values)


def _largest(*values: float) -> float:
    return math.nan if any(map(math.isnan, values)) else max(values)


_CALLS: dict[str, Callable[..., float]] = {"abs": abs, "min": _smallest, "max": _largest}


@dataclass(frozen=True)
class Expectation:
    """An inequality between measured values.

    Attributes:
        text: as the recipe spells it.
        names: every (metric, arm) that it mentions.
    """

    text: str
    names: frozenset[tuple[str, str]]
    _comparison: ast.Compare

    def evaluate(self, table: Table) -> tuple[bool, float, float]:
        """Whether it holds, and the two sides. A side that is not a number (nan, or divided by zero) does not hold.

        Raises:
            UserError: the table lacks a value that the expectation mentions.
        """
        left = _compute(self._comparison.left, table)
        right = _compute(self._comparison.comparators[0], table)
        return _COMPARE[type(self._comparison.ops[0])](left, right), left, right


def parse_expectation(text: str) -> Expectation:
    """Read an expectation.

    Raises:
        UserError: it is not one comparison of arithmetic on ``metric.arm`` values; says what is wrong.
    """
    comparison = _comparison(text)
    try:
        sides = (comparison.left, comparison.comparators[0])
        names = frozenset(name for side in sides for name in _names(side))
    except RecursionError as error:
        raise UserError("is nested too deeply") from error
    if not names:
        raise UserError("compares numbers only: name a measured value, as in accuracy.student > 0.9")
    return Expectation(text, names, comparison)


def _comparison(text: str) -> ast.Compare:
    if len(text) > MAX_LENGTH:
        raise UserError(f"is longer than {MAX_LENGTH} characters")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            tree = ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        raise UserError(f"cannot be read: {error.msg or 'invalid syntax'}") from error
    except (ValueError, MemoryError, RecursionError) as error:
        raise UserError("cannot be read") from error
    if not isinstance(tree, ast.Compare) or len(tree.ops) != 1 or type(tree.ops[0]) not in _COMPARE:
        raise UserError("must compare two sides once, with <, >, <= or >=")
    return tree


def _names(node: ast.expr) -> Iterator[tuple[str, str]]:
    """Every (metric, arm) of a side; raises UserError where it is anything but arithmetic on these."""
    match node:
        case ast.Attribute(value=ast.Name(id=metric), attr=arm):
            yield metric, arm
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            _number(value)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            yield from _names(left)
            yield from _names(right)
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _UNARY:
            yield from _names(operand)
        case ast.Call(func=ast.Name(id=function), args=arguments, keywords=[]) if function in _CALLS:
            if (function == "abs" and len(arguments) != 1) or not arguments:
                raise UserError(f"{function}() has {len(arguments)} arguments")
            for argument in arguments:
                yield from _names(argument)
        case ast.Name(id=name):
            raise UserError(f"'{name}' has no arm: write metric.arm, as in accuracy.student")
        case _:
            raise UserError(f"'{ast.unparse(node)}' is not a number, a metric.arm, + - * /, abs(), min() or max()")


def _number(value: float) -> float:
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise UserError("has a number that is too large")
    return number


def _compute(node: ast.expr, table: Table) -> float:
    match node:
        case ast.Attribute(value=ast.Name(id=metric), attr=arm):
            if (metric, arm) not in table:
                raise UserError(f"no value was measured for {metric}.{arm}")
            return float(table[metric, arm])
        case ast.Constant(value=int() | float() as value):
            return float(value)
        case ast.BinOp(left=left, op=op, right=right):
            return _BINARY[type(op)](_compute(left, table), _compute(right, table))
        case ast.UnaryOp(op=op, operand=operand):
            return _UNARY[type(op)](_compute(operand, table))
        case ast.Call(func=ast.Name(id=function), args=arguments):
            return _CALLS[function](*(_compute(a, table) for a in arguments))
    raise AssertionError(f"not checked by parse_expectation: {ast.dump(node)}")
