"""A commented recipe to start from: the gallery's recipe of a method, with every argument of the method in it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from limbeck import registry
from limbeck.errors import UserError
from limbeck.gallery import named_files
from limbeck.recipe import load_recipe
from limbeck.registry import Part

CLASSIFIERS: Mapping[str, Any] = {
    "data": {"name": "digits"},
    "teacher": {"name": "cnn", "width": 32, "train": {"epochs": 10}},
    "student": {"name": "cnn", "width": 8},
    "train": {"epochs": 20, "batch_size": 128, "optimizer": {"name": "adamw", "lr": 2e-3}},
}
"""What a method without a recipe in the gallery is tried on."""

COMMENTS = {
    "data": """Data: by name (limbeck list --kind data shows them: npz, folder, csv, jsonl, text, datasets_dir, ...),
or your own function that returns (x, y), data sets or {train:, test:} of either: {name: mypackage.data:load}.""",
    "teacher": """The teacher: a model by name (limbeck list --kind model), your own class or function
(name: mypackage.models:Net), or one that was trained before: path: <a folder that limbeck or transformers saved>,
or path: weights.safetensors beside a name. Without a path it is trained once on the data above and found again.""",
    "teachers": "The teachers, by role; each is a model by name, your own, or path: <a saved folder>.",
    "student": """The student: likewise. Arguments that are called classes, in_channels, in_features, vocab_size, ...
are filled from the data.""",
    "method": "How it learns (limbeck list shows the methods, limbeck show METHOD explains this one).",
    "phases": "Training in several phases, in order.",
    "train": """How long and with what. batch_size is of the whole step, however many devices and micro-batches
share it; steps: 1000 instead of epochs counts the steps themselves.""",
    "cache": "Teacher outputs stored once, and read in training.",
    "controls": "What is trained beside the student, for comparison.",
    "evaluate": "What is measured on the test split (limbeck list --kind metric). Left out: what suits the task.",
}

HEAD = """\
# limbeck check {file}    shows the plan: every value and where it came from, sizes and times
# limbeck run {file}      trains, evaluates and writes report.html
title: My distillation
"""


def starter(method: str, file: str = "recipe.yaml") -> str:
    """The text of a recipe for ``method`` that runs as it is.

    Raises:
        UserError: no such method, or one whose required arguments no recipe of the gallery shows.
    """
    try:
        part = registry.find("method", method)
    except registry.UnknownNameError as error:
        raise UserError(str(error)) from error
    tree = _example(part)
    pieces = [HEAD.format(file=file)]
    for key, comment in COMMENTS.items():
        if key in tree:
            lines = [f"# {line}" for line in comment.replace("METHOD", part.name).split("\n")]
            pieces.append("\n".join([*lines, _block(key, tree[key], part).rstrip(), ""]))
    return "\n".join(pieces)


def _example(part: Part) -> dict[str, Any]:
    """The blocks of a recipe that uses the method: the gallery's, else the default."""
    file = named_files().get(part.name)
    given = {**CLASSIFIERS, "method": {"name": part.name}} if file is None else dict(load_recipe(file).tree)
    missing = [p.name for p in part.params if p.required and p.name not in given["method"]]
    if missing:
        raise UserError(
            f"method {part.name} needs {', '.join(missing)}, which no recipe of the gallery shows: write it by hand"
        )
    if file is None and not part.facts.get("needs"):
        given.pop("teacher")
    defaults = {p.name: p.default for p in part.params if not p.required and _simple(p.default)}
    named = given["method"]
    return {**given, "method": {"name": part.name, **defaults, **{k: v for k, v in named.items() if k != "name"}}}


def _block(key: str, value: Any, part: Part) -> str:
    style = None if isinstance(value, Mapping | list) else False
    text = yaml.safe_dump({key: value}, sort_keys=False, allow_unicode=True, default_flow_style=style, width=110)
    if key != "method":
        return text
    text = yaml.safe_dump({key: value}, sort_keys=False, allow_unicode=True, width=110)
    about = arguments(part.doc)
    return "\n".join(_commented(line, about) for line in text.split("\n"))


def _commented(line: str, about: Mapping[str, str]) -> str:
    name = re.match(r"  (\w+): ", line)
    says = about.get(name[1]) if name else None
    return f"{line:<30} # {says}" if says else line


def arguments(doc: str) -> dict[str, str]:
    """What a docstring's ``Args`` say of each argument, the first sentence of it."""
    section = re.search(r"\n\s*Args:\n(.*?)(?:\n\s*\n|\Z)", doc, re.DOTALL)
    found: dict[str, str] = {}
    names: list[str] = []
    for line in section[1].split("\n") if section else ():
        start = re.match(r"\s+(\w+(?:, \w+)*): (.*)", line)
        if start:
            names = start[1].split(", ")
            found |= dict.fromkeys(names, start[2])
        else:
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
    return {name: _brief(re.split(r"(?<=[a-z0-9)])[.;] ", text)[0].rstrip(".")) for name, text in found.items()}


def _brief(text: str) -> str:
    """The text without what stands in brackets, where it would make a line too long."""
    return re.sub(r" \([^)]*\)", "", text) if len(text) > 120 else text


def _simple(value: Any) -> bool:
    return isinstance(value, str | int | float | bool)
