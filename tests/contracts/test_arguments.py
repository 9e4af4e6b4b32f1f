"""No dead hyper-parameter, no scheduled one that is read too early, and controls for every method."""

from __future__ import annotations

import json
import types
from collections.abc import Callable, Mapping
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import pytest
import torch

from limbeck.engine.loop import Loop
from limbeck.errors import UserError
from limbeck.recipe import RecipeError
from limbeck.recipe.assemble import DEFAULT_CONTROLS, control_arms
from limbeck.registry import Param, find
from toolkit.benches import Bench, Run, Watch, bench_of, methods, trained

REFUSED = (UserError, ValueError, RecipeError)
Found = tuple[str, dict[str, Any], Any, Run]


# -- other values of an argument ---------------------------------------------------------------------------------------


def kinds(annotation: Any) -> list[Any]:
    """The plain types that an annotation allows."""
    if get_origin(annotation) in (Union, types.UnionType):
        return [k for member in get_args(annotation) for k in kinds(member)]
    return [annotation]


def others(param: Param, value: Any) -> list[Any]:
    """Values to try in place of ``value``; the first that is accepted will do, but of words each one must."""
    found: list[Any] = []
    for kind in kinds(param.annotation):
        if get_origin(kind) is Literal:
            found += [word for word in get_args(kind) if word != value]
        elif kind is bool:
            found += [not value]
        elif kind is float:
            start = value if isinstance(value, int | float) else 0.5
            found += [start * 1.5 + 0.05, start * 0.5, 0.3, 0.9]
        elif kind is int:
            start = value if isinstance(value, int) else 3
            found += [start + 1, start - 1, 2 * start, 1, 2]
        elif get_origin(kind) in (tuple, list) and isinstance(value, list | tuple) and len(value) > 1:
            found += [list(value)[1:]]
    return [v for v in found if v != value]


def has_others(param: Param) -> bool:
    """Whether an argument has a plain value that can be changed."""
    return bool(others(param, None if param.required else param.default))


def is_words(param: Param) -> bool:
    """Whether every other value has to make a difference."""
    return any(get_origin(k) is Literal for k in kinds(param.annotation))


_ANY = {"method": {"agree": "any", "heat": 1.0}}
WHERE: dict[tuple[str, str], dict[str, Any]] = {
    ("self_data_distill", "top_p"): _ANY,
    ("self_data_distill", "new_tokens"): _ANY,
    ("self_data_distill", "agree"): {"method": {"heat": 1.0}},
    ("pkd", "layers"): {"teacher": {"layers": 4}},
    ("tinybert", "layers"): {"teacher": {"layers": 4}},
    ("distiller", "layers"): {"teacher": {"layers": 4}},
    ("alexa_teacher", "layers"): {"teacher": {"layers": 4}, "method": {"hidden_weight": 0.5}},
    ("cmi", "adv_weight"): {"method": {"iterations": 40}},
    ("gkd", "teacher_share"): {"method": {"student_share": 0.0}},
    ("gold", "teacher_share"): {"teacher": {"data": None}},
    **{(m, a): {"method": {"outer": 5}} for m in ("dc", "dsa") for a in ("inner", "net_lr", "net_batch")},
    ("cafe", "outer_range"): {"method": {"watched": 2}},
    ("cafe", "query"): {"method": {"watched": 3, "inner_range": 0.1}},
    ("dd", "steps"): {"student": {"per_class": 2}},
    ("dd", "networks"): {"method": {"inits": "random"}},
    **{(m, "expert_epochs"): {"method": {"starts": None}} for m in ("mtt", "tesla", "ftd", "ast")},
    **{(m, "targets_lr"): {"student": {"labels": "soft"}} for m in ("mtt", "tesla", "ftd", "ast")},
    ("dc", "paired"): {"method": {"augment": ["scale", "rotate"]}},
    **{(m, a): {"method": {"pool": 1}} for m in ("frepo", "krr_st") for a in ("life", "net_lr", "net_batch")},
    ("krr_st", "net_decay"): {"method": {"pool": 1}},
    **{("idm", a): {"method": {"looking": 4, "learning": 4}} for a in ("net_steps", "net_batch", "net_lr", "ce")},
    ("sfgc", "expert_states"): {"method": {"starts": None}},
    ("gcond", "hidden"): {"method": {"net": "gcn"}},
    ("gcond", "structure_steps"): {"method": {"feature_steps": 1}},
    ("mirage", "least"): {"method": {"support": 0.01}},
    ("real_graphs", "least"): {"method": {"support": 0.01}},
    ("real_graphs", "patterns"): {"method": {"support": 0.1}},
    ("cv_dd", "prior_temperature"): {"method": {"priors": [10.0, 20.0, 30.0]}},
    ("cv_dd", "label_temperature"): {"method": {"scores": [10.0, 20.0, 30.0]}},
    ("g_vbsm", "momentum"): {"method": {"backbones": 1}},
    ("opd", "clip"): {"method": {"old_from": "sampler", "heat": 3.0}},
}
"""Where an argument is alive that belongs to more than one other, by method and argument."""
OWN = "its own"
ELSEWHERE = {("seq_kd", "length_penalty"), ("mose", "stage"), ("sfgc", "score_every"), ("sfgc", "score_strength")} | {
    (m, "checkpoint") for m in ("dd", "mtt", "ftd", "ast", "sfgc")
}
"""Arguments that the benches cannot show, with tests of their own: texts that never end early, stages that learn from
different data, memory that is saved and changes no number, choices that few steps do not show."""

ARGUMENTS = [(m, p.name) for m in methods() for p in find("method", m).params if has_others(p)]
FLOATS = [(m, a) for m, a in ARGUMENTS if float in kinds(find("method", m).param(a).annotation)]  # type: ignore[union-attr]


def contexts(bench: Bench, name: str) -> dict[str, dict[str, Any]]:
    """Where an argument is looked for: the bench, the bench with models of another kind, and in another mode.

    Many an argument belongs to a mode (``beta`` to ``direction: jsd``), so it must be alive in one of these.
    """
    found: dict[str, dict[str, Any]] = {"": {}}
    student = bench.recipe.tree["student"]
    if isinstance(student, Mapping) and isinstance(student.get("net"), Mapping):
        network = {k: v for k, v in student["net"].items() if k != "classes"}
        alike = {**_nothing(bench.recipe.tree.get("teacher")), **network}
        conditional = {"student": {"net": {"classes": 4}}}
        found["conditional"] = {"teacher": {"classes": 4}, **conditional}
        found["teacher alike"] = {"teacher": alike}
        found["both"] = {"teacher": {**alike, "classes": 4}, **conditional}
    now = {p.name: bench.recipe.method.args.get(p.name, p.default) for p in bench.part.params if p.name != name}
    there = [p for p in bench.part.params if p.name in now]
    for p in there:
        if is_words(p) or bool in kinds(p.annotation):
            found |= {f"{p.name}: {other}": {"method": {p.name: other}} for other in others(p, now[p.name])}
    for p in there:
        if float in kinds(p.annotation) and now[p.name] == 0:
            found[f"{p.name} is on"] = {"method": {p.name: 0.5}}  # what belongs to a term that is off
        elif float in kinds(p.annotation) and now[p.name] == 1:
            found[f"{p.name} is off"] = {"method": {p.name: 0.0}}  # what belongs to the rest
    own = {OWN: WHERE[bench.name, name]} if (bench.name, name) in WHERE else {}
    return own | found


def _nothing(block: Any) -> dict[str, None]:
    return dict.fromkeys(block) if isinstance(block, Mapping) else {}


# -- what a value does -------------------------------------------------------------------------------------------------


def outcome(
    bench: Bench, context: Mapping[str, Any], change: Mapping[str, Any], folder: Path, watch: Watch | None = None
) -> Run | None:
    """A short training in a context with arguments changed; None where these are refused."""
    method = {**context.get("method", {}), **change}
    train: dict[str, Any] = {"steps": 3}
    for _ in range(2):
        try:
            recipe = bench.varied(**{**context, "method": method, "train": train})
            return trained(recipe, folder, watch=watch, keep=False)
        except REFUSED as error:
            if "has no learner" not in str(error):
                return None
            # A value may take a learner away, of which the recipe's train block speaks.
            train["learners"] = dict.fromkeys(bench.recipe.train.learners)
    return None


def same(one: Run, other: Run) -> bool:
    """Whether two trainings did the same, to the last bit."""
    a, b = one.weights, other.weights
    if a.keys() != b.keys() or one.values("weighted") != other.values("weighted"):
        return False
    return all(v.shape == b[k].shape and torch.equal(v, b[k]) for k, v in a.items())


def values_of(bench: Bench, argument: str) -> tuple[Param, Any, list[Any]]:
    """An argument, its value in the bench, and other ones."""
    param = bench.part.param(argument)
    assert param is not None
    now = bench.recipe.method.args.get(argument, None if param.required else param.default)
    return param, now, others(param, now)


@cache
def namesake(method: str, argument: str) -> str:
    """The first method whose argument of that name comes from the same class: where it is alive, others likely are."""

    def owner(name: str) -> type | None:
        made = bench_of(name).method.__mro__
        return next((c for c in made if argument in getattr(vars(c).get("__init__"), "__annotations__", ())), None)

    return next(m for m, a in ARGUMENTS if a == argument and owner(m) is owner(method))


class Trials:
    """Trainings that several tests look at, each done once and kept while the tests are at its method."""

    def __init__(self, folder: Callable[[], Path]) -> None:
        self._folder = folder
        self._plain = lru_cache(maxsize=64)(self._train_plain)
        self._found = lru_cache(maxsize=128)(self._search)
        self._place = cache(self._place_of)

    def plain(self, bench: Bench, context: Mapping[str, Any]) -> Run | None:
        """The training of a bench in a context."""
        return self._plain(bench.name, json.dumps(context))

    def difference(self, bench: Bench, argument: str, wanted: list[Any]) -> Found | None:
        """The place, context, value and training in which one of the ``wanted`` values makes a difference."""
        return self._found(bench.name, argument, json.dumps(wanted))

    def _train_plain(self, method: str, context: str) -> Run | None:
        return outcome(bench_of(method), json.loads(context), {}, self._folder())

    def _search(self, method: str, argument: str, wanted: str) -> Found | None:
        bench, first = bench_of(method), namesake(method, argument)
        told, likely = contexts(bench, argument), self._place(first, argument) if first != method else ""
        for place in sorted(told, key=lambda name: name != likely):
            base = self.plain(bench, told[place])
            for value in json.loads(wanted) if base is not None else ():
                run = outcome(bench, told[place], {argument: value}, self._folder())
                if run is not None and not same(base, run):
                    return place, told[place], value, run
                many = type(value) is int and value > 8  # one more or less may be more than there are of it
                if run is not None and place not in ("", OWN) and not many:
                    break  # in a mode where it is dead, it is so at every value
        return None

    def _place_of(self, method: str, argument: str) -> str:
        found = self.difference(bench_of(method), argument, values_of(bench_of(method), argument)[2])
        return found[0] if found else ""


@pytest.fixture(scope="session")
def trials(tmp_path_factory: pytest.TempPathFactory) -> Trials:
    """What the tests of a method share."""
    return Trials(lambda: tmp_path_factory.mktemp("trial"))


@pytest.mark.parametrize(("method", "argument"), ARGUMENTS)
def test_every_argument_changes_what_is_learnt(method: str, argument: str, trials: Trials) -> None:
    if (method, argument) in ELSEWHERE:
        return
    bench = bench_of(method)
    param, now, values = values_of(bench, argument)
    for wanted in [[v] for v in values] if is_words(param) else [values]:
        found = trials.difference(bench, argument, wanted)
        assert found, f"{method}: {argument}={wanted} in place of {now!r} changes nothing: a dead argument"


@pytest.mark.parametrize(("method", "argument"), FLOATS)
def test_every_number_is_read_at_the_step(method: str, argument: str, trials: Trials, tmp_path: Path) -> None:
    """A recipe may schedule any float, and the loop then writes it to the attribute of that name before each step."""
    bench = bench_of(method)
    if argument in getattr(bench.method, "fixed", ()):
        return
    found = trials.difference(bench, argument, values_of(bench, argument)[2])
    assert found, f"{method}: {argument} is a dead argument"
    _, context, value, given = found

    def write(loop: Loop) -> None:
        assert vars(loop.method).get(argument, "missing") != "missing", f"{argument} is not kept under its own name"
        setattr(loop.method, argument, value)

    written = outcome(bench, context, {}, tmp_path, watch=write)
    assert written is not None and same(given, written), (
        f"{method}: {argument} written after the set-up does not act as when it is given: read self.{argument} at the "
        f"step, or name it in the class attribute `fixed`"
    )


# -- contract 9: controls ----------------------------------------------------------------------------------------------


def controls_of(method: str) -> Mapping[str, Mapping[str, Any]]:
    """The control arms that a method declares."""
    return bench_of(method).method.controls


def test_every_method_has_a_control(bench: Bench) -> None:
    used = {arm.get("method", {}).get("name") for m in methods() for arm in controls_of(m).values()}
    assert controls_of(bench.name) or bench.name in used, "name the arm that this method has to beat"


def test_every_control_is_a_recipe_that_differs(bench: Bench) -> None:
    for name, overrides in control_arms(True, bench.recipe.method).items():
        arm = bench.recipe.with_overrides({"controls": False, **overrides})
        assert arm.method != bench.recipe.method or arm.student != bench.recipe.student, name
        assert name.isidentifier()


def test_the_registry_reads_the_same_facts_as_python_sees(bench: Bench) -> None:
    """A fact that is no literal, or only inherited, is invisible to the check of a recipe."""
    facts, own = bench.part.facts, bench.method
    assert {k: set(v) for k, v in facts.get("needs", {}).items()} == {k: set(v) for k, v in own.needs.items()}
    assert facts.get("data_free", False) == own.data_free
    assert facts.get("truncated", False) == own.truncated
    assert dict(facts.get("controls", DEFAULT_CONTROLS)) == dict(own.controls)
