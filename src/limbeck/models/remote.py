"""Asking a server for JSON: retries with growing pauses, several requests at once, clear errors, and no key in any."""

from __future__ import annotations

import http.client
import json
import random
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from limbeck.errors import UserError

AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
"""Answers after which the same request may succeed."""
LONGEST = 60.0
"""Seconds of the longest pause."""

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass
class Client:
    """A JSON client of one server.

    Attributes:
        url: what requests are sent below, such as ``http://localhost:8000/v1``.
        key: sent as a bearer token; never shown.
        retries: after the first attempt.
        timeout: seconds that an answer may take.
        pause: seconds before the first retry; doubled each time, and shortened at random so that many do not come back
            at once.
    """

    url: str
    key: str | None = field(default=None, repr=False)
    retries: int = 6
    timeout: float = 120.0
    pause: float = 1.0
    sleep: Callable[[float], None] = field(default=time.sleep, repr=False)

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise UserError(f"an endpoint's url starts with http:// or https://, got '{self.url}'")
        self.url = self.url.rstrip("/")

    def post(self, path: str, content: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to a request.

        Raises:
            UserError: the server refuses, cannot be reached, or gives no JSON object, also after the retries.
        """
        for attempt in range(self.retries + 1):
            try:
                return self._once(path, content)
            except _AgainError as problem:
                if attempt == self.retries:
                    tries = f"{attempt + 1} attempt{'s' * (attempt > 0)}"
                    raise UserError(f"endpoint {self.url}: {problem} ({tries})") from None
                growing = self.pause * 2**attempt * (0.5 + random.random() / 2)
                self.sleep(min(problem.after if problem.after is not None else growing, LONGEST))
        raise AssertionError

    def _once(self, path: str, content: Mapping[str, Any]) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        request = urllib.request.Request(f"{self.url}/{path}", json.dumps(content).encode(), headers, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as answer:
                found = json.loads(answer.read())
        except urllib.error.HTTPError as error:
            says = f"answers {error.code}: {self._clean(error.read())}"
            if error.code in AGAIN:
                raise _AgainError(says, _seconds(error.headers.get("Retry-After"))) from None
            raise UserError(f"endpoint {self.url} {says}{_hint(error.code)}") from None
        except (json.JSONDecodeError, UnicodeDecodeError, http.client.IncompleteRead):
            raise _AgainError("its answer is cut off or no JSON") from None
        except (urllib.error.URLError, OSError, http.client.HTTPException) as error:
            raise _AgainError(
                f"cannot be reached: {self._clean(str(getattr(error, 'reason', error)).encode())}"
            ) from None
        if not isinstance(found, dict):
            raise _AgainError("its answer is no JSON object")
        return found

    def _clean(self, body: bytes) -> str:
        """What a server says, in a line, without the key, which some repeat."""
        text = " ".join(body.decode("utf8", "replace").split())[:200]
        return text.replace(self.key, "<key>") if self.key else text


class _AgainError(Exception):
    """A failure that may pass."""

    def __init__(self, says: str, after: float | None = None) -> None:
        super().__init__(says)
        self.after = after


def side_by_side(ask: Callable[[Item], Result], items: Iterable[Item], at_once: int) -> Iterator[Result]:
    """The results for all items in their order, at most ``at_once`` being worked on; the first error stops it."""
    with ThreadPoolExecutor(max(at_once, 1)) as pool:
        running = [pool.submit(ask, item) for item in items]
        try:
            for future in running:
                yield future.result()
        except BaseException:
            for future in running:
                future.cancel()
            raise


def _seconds(given: str | None) -> float | None:
    try:
        return max(float(given), 0.0) if given else None
    except ValueError:  # a date
        return None


def _hint(code: int) -> str:
    hints = {401: "; set key: ${env:NAME} to a variable that holds the key", 404: "; see that url ends as in .../v1"}
    return hints.get(code, "")
