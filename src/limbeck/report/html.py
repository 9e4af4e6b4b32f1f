"""From facts to one HTML file that holds all it needs: texts escaped, nothing fetched, no script but its own."""

from __future__ import annotations

import base64
import functools
import hashlib
import os
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from limbeck.report import palette

TEMPLATES = Path(__file__).parent / "templates"


def write_page(path: Path, template: str, **facts: Any) -> Path:
    """Render a template into a file, all at once: a reader never sees half a page.

    Args:
        path: the file to write; its folder is made.
        template: a file of ``templates/``.
        **facts: what the template shows; strings are escaped, only figures are taken as they are.
    """
    page = render(template, **facts)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(page, encoding="utf8", newline="\n")
    draft.replace(path)
    return path


def render(template: str, **facts: Any) -> str:
    """The page as text; the same facts give the same bytes."""
    script = Markup(_asset("theme.js"))
    page = _environment().get_template(template)
    return page.render(style=_style(), script=script, script_hash=_hash(script), **facts)


@functools.cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


@functools.cache
def _asset(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf8").strip()


def _style() -> Markup:
    light, dark = palette.variables(dark=False), palette.variables(dark=True)
    themes = (
        f":root{{color-scheme:light;{light}}}"
        f"@media screen and (prefers-color-scheme:dark){{:root:not([data-theme=light]){{color-scheme:dark;{dark}}}}}"
        f"@media screen{{:root[data-theme=dark]{{color-scheme:dark;{dark}}}}}"
    )
    return Markup(themes + "\n" + _asset("style.css"))


def _hash(script: str) -> str:
    """The script's hash as a content security policy names it."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
