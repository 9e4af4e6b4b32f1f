"""``${env:NAME}`` in a recipe: read where the parts are built, never written to a log, a manifest or a report."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import quote

REFERENCE = re.compile(r"\$\{env:(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^}]*))?\}")
_BEGIN = re.compile(r"\$\{env\b")
SHORT = 4
"""Secrets shorter than this are redacted only where they stand alone: "12" must not vanish from "0.5127"."""


class UnsetError(LookupError):
    """A variable that is not set, or a reference that is not well formed; the message says which."""


@dataclass
class Environment:
    """Resolves references and remembers what it read, so that it can be redacted."""

    variables: Mapping[str, str] = field(default_factory=lambda: os.environ, repr=False)
    secrets: dict[str, str] = field(default_factory=dict, repr=False)
    """The text read from the environment -> the reference that it came from."""

    def resolve(self, text: str) -> str:
        """The text with every reference replaced.

        Raises:
            UnsetError: a variable without a default is not set, or a reference is malformed.
        """
        if len(_BEGIN.findall(text)) != len(REFERENCE.findall(text)):
            raise UnsetError("a reference to the environment is written ${env:NAME} or ${env:NAME:-default}")
        return REFERENCE.sub(self._read, text)

    def _read(self, match: re.Match[str]) -> str:
        name, default = match["name"], match["default"]
        value = self.variables.get(name)
        if value:
            self.secrets.setdefault(value, f"${{env:{name}}}")
            return value
        if default is not None:
            return default
        if value is None:
            raise UnsetError(f"the environment variable {name} is not set")
        return ""

    def forget(self, value: str) -> None:
        """What was read as a number or a switch is no secret."""
        self.secrets.pop(value, None)

    def redact(self, text: str) -> str:
        """The text with every secret replaced by the reference it came from (JSON and URL spellings too)."""
        spellings = {s: ref for value, ref in self.secrets.items() for s in _spellings(value)}
        if not spellings:
            return text
        longest_first = sorted(spellings, key=len, reverse=True)
        pattern = re.compile("|".join(_bounded(s) for s in longest_first))
        return pattern.sub(lambda m: spellings[m[0]], text)


def _spellings(value: str) -> set[str]:
    return {value, json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1], quote(value, safe="")}


def _bounded(text: str) -> str:
    escaped = re.escape(text)
    return rf"(?<![\w.]){escaped}(?![\w.])" if len(text) < SHORT else escaped


def is_reference(value: object) -> bool:
    """Whether a value is text that refers to the environment."""
    return isinstance(value, str) and bool(_BEGIN.search(value))
