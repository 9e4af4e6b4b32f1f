"""What is wrong with a recipe: all of it at once, one line each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from limbeck.errors import UserError


@dataclass(frozen=True)
class Mistake:
    """One mistake in a recipe. As text it is one line, whatever the recipe contained.

    Attributes:
        file: where it was written: a file, ``--set``, ``recipe`` (a mapping in Python) or ``overrides``.
        line: in that file, from 1; 0 where there are no lines.
        path: of the value, e.g. ``method.temperature``.
        message: what is wrong.
        hint: what would be right, if there is a good guess.
    """

    file: str
    line: int
    path: str
    message: str
    hint: str = ""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        body = f"{self.path}: {self.message}" if self.path else self.message
        return one_line(f"{place}: {body}" + (f"; {self.hint}" if self.hint else ""))


class RecipeError(UserError):
    """A recipe that cannot be run. ``mistakes`` holds everything that is wrong with it, by file and line."""

    def __init__(self, mistakes: Iterable[Mistake]) -> None:
        self.mistakes = sorted(dict.fromkeys(mistakes), key=lambda m: (m.file, m.line))
        super().__init__("\n".join(map(str, self.mistakes)))


def one_line(text: str) -> str:
    """The text with every character that is not printable (line ends of any alphabet too) written as an escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def did_you_mean(word: str | None) -> str:
    """The hint that offers a word, or nothing."""
    return f"did you mean '{word}'?" if word else ""
