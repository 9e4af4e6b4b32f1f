"""Errors that a user can act on. The command line prints them as one line and exits with 2."""

from __future__ import annotations


class UserError(ValueError):
    """Bad input: the message says in one line what is wrong, where, and what would be right."""


class MissingDataError(UserError):
    """A named data set or corpus is not in the data folder of this machine."""


def needs_extra(package: str, extra: str) -> UserError:
    """The error for an optional dependency that is not installed."""
    return UserError(f"this needs the package '{package}', which is not installed: pip install 'limbeck[{extra}]'")
