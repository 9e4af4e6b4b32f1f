"""What users build on: names, commands and flags. A change here is a decision, so it has to be made here too."""

from __future__ import annotations

import argparse
import inspect
import subprocess
import sys

import pytest

import limbeck
from limbeck.cli import parser

NAMES = {
    "Batch", "Clock", "Data", "DataSpec", "Method", "Parts", "Recipe", "RecipeError", "Result", "Signals", "Teacher",
    "Term", "Update", "UserError", "__version__", "compare", "distill", "forward", "load", "load_recipe", "prove",
    "register", "run_recipe",
}  # fmt: skip

RECIPE = {"recipe", "--set", "--runs"}
COMMANDS = {
    "run": {*RECIPE, "--seed", "--fresh", "--quiet", "--json"},
    "check": {*RECIPE, "--static", "--json"},
    "compare": {"recipes", "--methods", "--trials", "--equal", "--seeds", "--set", "--runs", "--json"},
    "prove": {"recipes", "--record", "--stale", "--budget", "--runs", "--json"},
    "recommend": {*RECIPE, "--top", "--train", "--json"},
    "list": {"--family", "--kind", "--json"},
    "show": {"name", "--json"},
    "show-features": {"model", "--shape", "--classes", "--all", "--json"},
    "report": {"run"},
    "export": {"model", "--format", "--output", "--trust-code"},
    "schema": set(),
    "init": {"path", "--method"},
    "import-torchdistill": {"config", "--output"},
}
ARGUMENTS = {
    "distill": "student teacher teachers data method epochs steps batch_size lr train evaluate controls title seed "
    "runs quiet fresh recipe",
    "load": "folder into trust_code",
    "load_recipe": "source overrides arms folder",
    "run_recipe": "recipe overrides runs seed quiet fresh",
    "prove": "recipe record runs quiet",
    "compare": "recipes seeds overrides runs quiet",
    "register": "kind name facts",
    "forward": "module batch kwargs",
    "Update": "role terms",
    "Term": "sum count weight unit",
    "Clock": "step total epoch phase seed steps_per_epoch",
    "Parts": "student teachers data offers streams quiet held_out",
    "Teacher": "module gives name mode",
    "Data": "spec train test val extra",
}
METHOD = {
    "needs", "any_tokenizer", "couples_samples", "live", "same_view", "streams", "dial", "data_free", "data_optional",
    "truncated", "sampled", "controls", "setup",
    "student", "teacher", "updates",
    "before_step", "pace", "fixed", "after_step", "count", "state_dict", "load_state_dict",
    "health", "alarms", "says",
}  # fmt: skip


def commands() -> dict[str, argparse.ArgumentParser]:
    """The parsers of the commands by name."""
    return next(a.choices for a in parser()._actions if isinstance(a, argparse._SubParsersAction))


def flags(command: argparse.ArgumentParser) -> set[str]:
    """Positional names and long options."""
    return {
        name
        for action in command._actions
        if not isinstance(action, argparse._HelpAction)
        for name in (action.option_strings or [action.dest])
    }


def test_the_public_names() -> None:
    assert sorted(limbeck.__all__) == sorted(NAMES)
    assert sorted(dir(limbeck)) == sorted(NAMES)
    for name in NAMES:
        assert getattr(limbeck, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'destill'"):
        limbeck.destill  # noqa: B018


@pytest.mark.parametrize("name", ARGUMENTS)
def test_the_arguments_of_public_calls(name: str) -> None:
    assert list(inspect.signature(getattr(limbeck, name)).parameters) == ARGUMENTS[name].split()


def test_what_a_method_may_override() -> None:
    assert {n for n in vars(limbeck.Method) if not n.startswith("_")} == METHOD


def test_public_things_are_documented() -> None:
    assert not [n for n in NAMES if n != "__version__" and not inspect.getdoc(getattr(limbeck, n)) and n != "Batch"]


def test_the_commands_and_their_flags() -> None:
    assert {name: flags(command) for name, command in commands().items()} == COMMANDS


def test_every_flag_has_help() -> None:
    bare = [
        f"{name} {a.dest}"
        for name, command in commands().items()
        for a in command._actions
        if not (a.help or "").strip()
    ]
    assert not bare


def test_the_package_and_its_help_start_without_torch() -> None:
    program = "import sys, limbeck, limbeck.cli as c; c.parser().format_help(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
