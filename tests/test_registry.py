"""The registry: parts read from source, from objects and from dotted paths say the same of themselves."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from limbeck import registry
from limbeck.errors import UserError
from limbeck.registry import REQUIRED, Block, PartError, UnknownNameError, build, complete, find, names, nearest

BASE = '''
from limbeck.engine.method import Method

class Logits(Method):
    """Learns logits.

    Args:
        temperature: of both.
    """

    needs = {"teacher": {"logits"}}
    couples_samples = True

    def __init__(self, *, temperature: float = 4.0) -> None:
        self.temperature = temperature
'''
PLAIN = """
from limbeck.registry import register
from limbeck.shapes.base import Logits

@register("method")
class Plain(Logits):
    "Nothing of its own."
"""
OWN = """
from limbeck.registry import register
from limbeck.shapes.base import Logits as Soft

class Between(Soft):
    needs = {"teacher": {"hidden"}}

@register("method", streams=True)
class Own(Between):
    "Its own arguments."
    couples_samples = False

    def __init__(self, *, beta: float, kind: str = "a", net: ModelBlock | None = None) -> None: ...
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package of one family with two methods over a common base."""
    root = tmp_path / "limbeck"
    (root / "shapes" / "methods").mkdir(parents=True)
    (root / "shapes" / "base.py").write_text(BASE, encoding="utf8")
    (root / "shapes" / "methods" / "plain.py").write_text(PLAIN, encoding="utf8")
    (root / "shapes" / "methods" / "own.py").write_text(OWN, encoding="utf8")
    registry.clear()
    monkeypatch.setattr(registry, "ROOT", root)
    yield root
    registry.clear()


PASSES_ON = '''
from limbeck.registry import register
from limbeck.shapes.base import Logits

@register("method")
class Passes(Logits):
    """More of the same.

    Args:
        beta: a weight.
    """

    def __init__(self, *, beta: float = 1.0, **rest) -> None:
        super().__init__(**rest)
'''


def test_arguments_passed_on_to_a_base_are_arguments(package: Path) -> None:
    (package / "shapes" / "methods" / "passes.py").write_text(PASSES_ON, encoding="utf8")
    registry.clear()
    part = find("method", "passes")
    assert [(p.name, p.default) for p in part.params] == [("beta", 1.0), ("temperature", 4.0)] and not part.open
    assert "beta: a weight.\n    temperature: of both." in part.doc


def test_an_object_that_passes_arguments_on_has_those_of_its_base() -> None:
    class Base:
        def __init__(self, *, temperature: float = 4.0, gamma: float) -> None: ...

    class Passes(Base):
        def __init__(self, *, beta: float = 1.0, **rest: float) -> None:
            super().__init__(**rest)

    part = registry._from_object("method", "passes", Passes)
    assert {p.name: p.required for p in part.params} == {"temperature": False, "gamma": True, "beta": False}
    assert not part.open


@pytest.mark.usefixtures("package")
def test_a_method_inherits_arguments_and_facts_without_being_imported() -> None:
    plain = find("method", "plain")
    assert (plain.family, plain.module) == ("shapes", "limbeck.shapes.methods.plain")
    assert plain.doc == "Nothing of its own.\n\nArgs:\n    temperature: of both.\n"
    assert plain.facts == {"needs": {"teacher": {"logits"}}, "couples_samples": True}
    assert [(p.name, p.default, p.annotation) for p in plain.params] == [("temperature", 4.0, float)]
    own = find("method", "own")
    assert own.facts == {"needs": {"teacher": {"hidden"}}, "couples_samples": False, "streams": True}
    assert [(p.name, p.default) for p in own.params] == [("beta", REQUIRED), ("kind", "a"), ("net", None)]
    assert "limbeck.shapes" not in sys.modules


def test_a_file_that_registers_two_methods_is_refused(package: Path) -> None:
    (package / "shapes" / "methods" / "two.py").write_text(PLAIN + PLAIN.replace("Plain", "Other"), encoding="utf8")
    with pytest.raises(PartError, match="exactly one method, it registers 2"):
        find("method", "two")


@pytest.mark.parametrize("kind", ["method", "model", "loss", "metric", "optimizer", "schedule", "transform", "data"])
def test_what_the_source_says_is_what_the_object_says(kind: str) -> None:
    for name in names(kind):
        part = find(kind, name)
        live = registry._from_object(kind, name, part.load())
        assert [p.name for p in part.params] == [p.name for p in live.params], (kind, name)
        for read, real in zip(part.params, live.params, strict=True):
            assert read.required == real.required, (kind, name, read.name)
        for fact in {"needs", "data_free"} & set(live.facts):
            empty = {"needs": {}, "data_free": False}[fact]
            assert part.facts.get(fact, empty) == live.facts[fact], (kind, name, fact)


def test_a_name_that_is_none_says_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"no method is called 'kdd'; did you mean '(kd|dkd)'\?"):
        find("method", "kdd")
    assert nearest("temperatur", ["temperature", "alpha"]) == "temperature" and nearest("zzz", ["alpha"]) is None


def test_dotted_paths_name_any_object_and_say_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find("optimizer", "torch.optim:NAdam").load().__name__ == "NAdam"
    with pytest.raises(UnknownNameError, match="did you mean 'NAdam'"):
        find("optimizer", "torch.optim:Nadm")
    with pytest.raises(PartError, match="cannot import 'no_such_package'"):
        find("model", "no_such_package:Net")
    monkeypatch.chdir(tmp_path)
    Path("number.py").write_text("net = 3", encoding="utf8")
    with pytest.raises(PartError, match="not something that can be called"):
        find("model", "number:net")


def test_blocks_are_filled_from_what_is_offered_and_missing_ones_named() -> None:
    @registry.register("loss", "registry_test_loss")
    def made(student: object, *, classes: int, scale: float = 2.0) -> tuple[object, int, float]:
        return student, classes, scale

    try:
        assert build("loss", Block("registry_test_loss"), "s", offers={"classes": 3, "other": 1}) == ("s", 3, 2.0)
        assert complete("loss", Block("registry_test_loss", {"classes": 5}), {"classes": 3}).args == {"classes": 5}
        with pytest.raises(PartError, match="needs classes"):
            build("loss", Block("registry_test_loss"), "s")
        with pytest.raises(UserError, match="unexpected keyword argument 'nothing'"):
            build("loss", Block("registry_test_loss", {"classes": 1, "nothing": 2}), "s")
    finally:
        registry._LIVE.pop(("loss", "registry_test_loss"))


def test_reading_every_part_needs_no_torch() -> None:
    program = (
        "import sys; from limbeck import registry; [registry.parts(k) for k in ('method', 'model', 'loss', 'data')]"
    )
    check = f"{program}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
