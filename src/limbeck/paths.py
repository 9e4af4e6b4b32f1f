"""Where limbeck finds data and keeps what it may find again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_root() -> Path:
    """Folder for things that can be made again (trained teachers, caches): ``LIMBECK_HOME`` or ``~/.cache/limbeck``."""
    given = os.environ.get("LIMBECK_HOME")
    if given:
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "limbeck"


def data_root() -> Path:
    """Folder of data sets that are found by name: ``LIMBECK_DATA`` or ``data`` in :func:`cache_root`."""
    given = os.environ.get("LIMBECK_DATA")
    return Path(given).expanduser() if given else cache_root() / "data"
