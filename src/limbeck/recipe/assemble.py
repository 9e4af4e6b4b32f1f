"""From a merged tree to the checked parts of a recipe; what is wrong is collected, not raised."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from limbeck.errors import UserError
from limbeck.expectation import parse_expectation
from limbeck.recipe.annotations import Tree, keys_of, show
from limbeck.recipe.blocks import AUTO, Checker
from limbeck.recipe.fields import (
    DEFAULT_OPTIMIZER,
    DEFAULT_SCHEDULE,
    PhaseFields,
    StreamKeys,
    StudentKeys,
    TeacherKeys,
    Top,
    Train,
)
from limbeck.recipe.layers import merge, spelled_out
from limbeck.recipe.mistakes import did_you_mean
from limbeck.recipe.parts import Assembly, Phase, StudentBlock, TeacherBlock, needs_teacher
from limbeck.recipe.source import DEFAULT, Node, Trail, from_plain
from limbeck.recipe.values import ABSENT, BAD
from limbeck.registry import Block, Part, find, nearest

BLOCKS = ("data", "teacher", "teachers", "student", "method", "train")
"""Keys with a reading of their own; all others are plain fields of :class:`limbeck.recipe.fields.Top`."""

STREAM = "data"
"""The name of the stream of a recipe that has one data block."""

DEFAULT_CONTROLS: Mapping[str, Any] = {"alone": {"method": {"name": "supervised"}, "teacher": None}}
"""What :attr:`limbeck.engine.method.Method.controls` says where a method says nothing."""

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def assemble(root: Node, check: Checker, *, arms: Node | None = None, deep: bool = True) -> Assembly:
    """Read a tree; mistakes are left in ``check``.

    Args:
        root: the merged tree.
        check: collects mistakes and effective values.
        arms: arms in addition to the claim's.
        deep: also check what arms, controls and phases make of the recipe.
    """
    made = Assembly()
    root = _with_phase_method(root)
    _fields(root, check, made)
    made.data, made.stream_batch = _data(root.get("data"), check, ("data",))
    teachers = _teachers(root, check, made)
    made.student = _student(root, check)
    made.method = _method(root, check)
    train = train_node(root)
    given = root.get("train")
    check.dropped += [("train", key) for key in ("optimizer", "schedule") if given and given.get(key) is None]
    trained = check.fields(Train, train, ("train",))
    made.train = None if trained is BAD else trained
    for trail, node in teachers.values():
        _teacher_train(train, node, check, trail)
    _check_needs(root, teachers, check)
    made.phases = _phases(root, check, made)
    _check_claim(root, check, made, arms)
    if deep:
        _check_variants(root, check, made, arms)
    return made


def _with_phase_method(root: Node) -> Node:
    phases = root.get("phases")
    first = phases.value[0].get("method") if phases and phases.is_list and phases.value else None
    if first is None or root.get("method") is not None:
        return root
    return spelled_out(Node({**root.value, "method": first}, root.where))


def _fields(root: Node, check: Checker, made: Assembly) -> None:
    known = keys_of(Top)
    for key, node in root.value.items():
        if key in BLOCKS and node.value is None:
            check.dropped.append((key,))
        elif key not in known:
            check.wrong(node, (key,), f"a recipe has no '{key}'", did_you_mean(nearest(key, known)))
    for key, spec in known.items():
        if key in BLOCKS:
            continue
        value = check.field(spec, root, key, ())
        made.fields[key] = spec.default if value is ABSENT else value
        if value is ABSENT:
            check.row((key,), spec.default, DEFAULT)


# ------------------------------------------------------------------------------------------------------------- data


def _data(node: Node | None, check: Checker, trail: Trail) -> tuple[dict[str, Block], dict[str, int]]:
    if node is None:
        return {}, {}
    if not _holds_streams(node):
        block = check.block("data", node, trail)
        return ({STREAM: block}, {}) if block is not BAD else ({}, {})
    streams: dict[str, Block] = {}
    sizes: dict[str, int] = {}
    for name, child in node.value.items():
        at = (*trail, name)
        if child.value is None:
            check.dropped.append(at)
        elif _named(name, child, at, check, "a stream"):
            found = check.block_with("data", StreamKeys, child, at)
            if found:
                streams[name] = found[0]
                sizes |= {name: found[1].batch_size} if found[1].batch_size else {}
    return streams, sizes


def _holds_streams(node: Node) -> bool:
    return node.is_map and node.get("name") is None and any(v.is_map for v in node.value.values())


def _named(name: str, node: Node, trail: Trail, check: Checker, what: str) -> bool:
    if NAME.fullmatch(name):
        return True
    check.wrong(node, trail, f"{what} is named by letters, digits and _, not '{name}'")
    return False


# ------------------------------------------------------------------------------------------------ models and method


def _teachers(root: Node, check: Checker, made: Assembly) -> dict[str, tuple[Trail, Node]]:
    """Read the teachers; returns where each one stands."""
    single, several = root.get("teacher"), root.get("teachers")
    if single is not None and several is not None:
        check.wrong(several, ("teachers",), "teacher and teachers are both given: keep one")
    places = {}
    for role, trail, node in _teacher_nodes(single, several, check):
        places[role] = (trail, node)
        found = check.block_with("model", TeacherKeys, node, trail)
        if found:
            block, keys = found
            partial = node.get("train")
            train = partial.plain() if partial else {}
            own_data, taught = node.get("data") is not None, bool(node.get("teacher") or node.get("teachers"))
            made.teachers[role] = TeacherBlock(
                block, keys.path, train, keys.method, keys.mode, keys.licence, own_data, taught, keys.finetune
            )
            _check_schooling(root, node, made.teachers[role], check, trail)
            if keys.finetune and not made.teachers[role].loaded:
                says = "finetune is for a teacher that is loaded (path or hub); this one is trained anyway"
                check.wrong(node, (*trail, "finetune"), says)
    return places


def _check_schooling(root: Node, node: Node, teacher: TeacherBlock, check: Checker, trail: Trail) -> None:
    """Check how a teacher is trained, where the recipe says more of it than ``train``."""
    if not any(node.get(key) for key in ("method", "data", "teacher", "teachers")):
        return
    trial = check.trial()
    assemble(teacher_node(root, node, teacher), trial, deep=False)
    trial.mistakes = [m for m in trial.mistakes if m.path.split(".")[0] in ("method", "data", "teacher", "teachers")]
    check.absorb(trial, trail)


def teacher_node(root: Node, node: Node, teacher: TeacherBlock) -> Node:
    """The recipe that trains a teacher: its model as the student, by its method, its ``train`` over the run's."""
    start = ("path",) if teacher.finetune else ()
    own = {k: v for k, v in node.value.items() if k in (*teacher.block.args, *start) or k not in keys_of(TeacherKeys)}
    kept = {k: v for k, v in root.value.items() if k in ("title", "data", "seed", "evaluate", "licence")}
    if node.get("data") is not None:
        kept |= merge(Node(kept, root.where), Node({"data": node.value["data"]}, node.where)).value
    kept |= {key: node.value[key] for key in ("teacher", "teachers") if node.get(key) is not None}
    kept |= {
        "student": Node(own, node.where),
        "method": node.get("method") or from_plain(teacher.method, DEFAULT, []),
        "train": teacher_train_node(train_node(root), node),
        "controls": Node(False, node.where),
    }
    return spelled_out(Node(kept, root.where))


def _teacher_nodes(single: Node | None, several: Node | None, check: Checker) -> Iterable[tuple[str, Trail, Node]]:
    if single is not None:
        yield "teacher", ("teacher",), single
    elif several is not None and several.is_list:
        for i, node in enumerate(several.value):
            yield f"teacher_{i}", ("teachers", i), node
    elif several is not None and several.is_map and isinstance(several.value.get("name", several).value, str):
        check.wrong(several, ("teachers",), "holds one block: write it as 'teacher', or as a map of blocks by role")
    elif several is not None and several.is_map:
        for role, node in several.value.items():
            if node.value is None:
                check.dropped.append(("teachers", role))
            elif _named(role, node, ("teachers", role), check, "a teacher"):
                yield role, ("teachers", role), node
    elif several is not None:
        check.wrong(several, ("teachers",), "must be a map of model blocks by role, or a list of them")


def _student(root: Node, check: Checker) -> StudentBlock | None:
    node = root.get("student")
    if node is None:
        check.wrong(root, ("student",), "'student' is missing: the model that learns, as a block {name: ...}")
        return None
    found = check.block_with("model", StudentKeys, node, ("student",))
    return StudentBlock(found[0], found[1].path, tuple(found[1].freeze)) if found else None


def _method(root: Node, check: Checker) -> Block | None:
    node = root.get("method")
    if node is None:
        check.wrong(root, ("method",), "'method' is missing: how the student learns, as a block {name: ...}")
        return None
    block = check.block("method", node, ("method",))
    return None if block is BAD else block


# ------------------------------------------------------------------------------------------------------------ train


def train_node(root: Node) -> Node:
    """The recipe's ``train`` over the defaults, and each learner's blocks over the run's."""
    defaults = {"optimizer": DEFAULT_OPTIMIZER, "schedule": DEFAULT_SCHEDULE}
    base, given = from_plain(defaults, DEFAULT, []), root.get("train")
    if given is None or not given.is_map:
        return given or base
    kept = {k: v for k, v in given.value.items() if k not in defaults or v.value is not None}
    return _with_learners(merge(base, Node(kept, given.where), ("train",)))


def _with_learners(train: Node) -> Node:
    learners = train.get("learners")
    if learners is None or not learners.is_map:
        return train
    laid = {role: _over_run(train, own) for role, own in learners.value.items()}
    return Node({**train.value, "learners": Node(laid, learners.where)}, train.where)


def _over_run(train: Node, own: Node) -> Node:
    if not own.is_map:
        return own
    keys = {}
    for key, value in own.value.items():
        run = train.get(key) if key in ("optimizer", "schedule") else None
        value = Node({"name": value}, value.where) if run and isinstance(value.value, str) else value
        keys[key] = merge(run, value) if run and value.is_map else value
    return Node(keys, own.where)


def teacher_train_node(train: Node, node: Node) -> Node:
    """A teacher's ``train`` over the run's, of which it takes all but what concerns the student's delivery."""
    own = node.get("train")
    left = {k: v for k, v in train.value.items() if k not in ("deliver", "ema", "learners", "best", "early_stop")}
    return (
        merge(Node(left, train.where), own, ("train",)) if own is not None and own.is_map else Node(left, train.where)
    )


def _teacher_train(train: Node, node: Node, check: Checker, trail: Trail) -> None:
    own = node.get("train")
    if own is None or not own.is_map or not train.is_map:
        return
    trial = check.trial()
    trial.fields(Train, teacher_train_node(train, node), (*trail, "train"))
    check.absorb(trial)
    depth = len(trail) + 1
    check.rows = [r for r in check.rows if r.trail != (*trail, "train")]
    check.rows += [r for r in trial.rows if len(r.trail) > depth and r.trail[depth] in own.value]


# ------------------------------------------------------------------------------------------- what a method asks for


def _named_part(kind: str, node: Node | None, check: Checker) -> Part | None:
    named = node.get("name") if node is not None and node.is_map else node
    try:
        return check.lookup(kind, named.value) if named and isinstance(named.value, str) else None
    except Exception:  # noted where the block itself was read
        return None


def _check_needs(root: Node, teachers: Mapping[str, tuple[Trail, Node]], check: Checker) -> None:
    part = _named_part("method", root.get("method"), check)
    if part is None:
        return
    node = root.value["method"]
    if not root.get("data") and not part.facts.get("data_free", False):
        check.wrong(node, ("method",), f"method {part.name} learns from data: add a 'data' block")
    needs = part.facts.get("needs", {})
    if not needs and teachers:
        check.remarks.append(f"method {part.name} states no need of a teacher, the recipe has {', '.join(teachers)}")
    if needs and not teachers:
        check.wrong(node, ("method",), f"method {part.name} needs a teacher: add a 'teacher' block")
        return
    for role, signals in needs.items():
        if role != "*" and role not in teachers:
            has = ", ".join(teachers)
            check.wrong(node, ("method",), f"method {part.name} needs a teacher called '{role}', the recipe has {has}")
        for own in teachers if role == "*" else {role} & teachers.keys():
            _check_gives(part.name, set(signals), teachers[own], check)


def _check_gives(method: str, signals: set[str], place: tuple[Trail, Node], check: Checker) -> None:
    trail, node = place
    part = _named_part("model", node, check)
    if part is None or part.name == AUTO or (":" in part.name and "gives" not in part.facts):
        return
    gives = set(part.facts.get("gives", {"logits"}))
    learner = find("method", method)
    # The likeliest tokens of a teacher do for a method that learns from a truncated distribution.
    served = {"logits"} if "logits_topk" in gives and learner.facts.get("truncated", False) else set()
    for signal in sorted(signals - gives - served):
        message = f"method {method} needs a teacher that gives {signal}; {part.name} gives {', '.join(sorted(gives))}"
        check.wrong(node, trail, message)


# ----------------------------------------------------------------------------------------------------------- phases


def _phases(root: Node, check: Checker, made: Assembly) -> list[Phase]:
    node, given = root.get("phases"), made.fields.get("phases")
    if node is None or not given or given is BAD:
        return []
    phases: list[Phase] = []
    for i, (child, keys) in enumerate(zip(node.value, given, strict=True)):
        name = keys.name or f"phase_{i}"
        if name in (p.name for p in phases):
            check.wrong(child, ("phases", i, "name"), f"there are two phases called '{name}'")
        start = _start(child, keys, [p.name for p in phases], check, ("phases", i, "from"))
        overrides = {key: child.value[key].plain() for key in ("method", "data", "train") if child.get(key)}
        learners = tuple(keys.learners) if keys.learners is not None else None
        parameters = tuple(keys.parameters) if keys.parameters is not None else None
        phases.append(Phase(name, overrides, learners, parameters, start))
    return phases


def _start(node: Node, keys: PhaseFields, earlier: list[str], check: Checker, trail: Trail) -> str | Path | None:
    if keys.start is None or keys.start in earlier:
        return keys.start
    trial = check.trial()
    found = trial.path(keys.start, node.value["from"], trail)
    if found is BAD:
        known = f"earlier phases: {', '.join(earlier)}" if earlier else "there is no earlier phase"
        hint = did_you_mean(nearest(keys.start, earlier)) or known
        check.wrong(node.value["from"], trail, f"'{keys.start}' is neither an earlier phase nor a path", hint)
        return None
    return found


# ------------------------------------------------------------------------------------------------- claim and variants


def _check_claim(root: Node, check: Checker, made: Assembly, extra: Node | None) -> None:
    made.arms = {name: Tree(arm.plain()) for name, arm in _arm_nodes(root, extra).items() if arm.is_map}
    for name, arm in _arm_nodes(root, extra).items():
        if name in made.teachers:
            check.wrong(arm, ("claim", "arms", name), f"an arm is called like the teacher '{name}': name it otherwise")
    claim = root.get("claim")
    expect = claim.get("expect") if claim else None
    if expect is None or not expect.is_list:
        return
    controls = root.get("controls")
    own = controls.plain() if controls and controls.is_map else made.fields.get("controls")
    known = {*made.arms, "teacher", *made.teachers, *control_arms(own, made.method, made.student)}
    for i, child in enumerate(expect.value):
        if isinstance(child.value, str):
            _check_expectation(child, ("claim", "expect", i), known, check)


def _arm_nodes(root: Node, extra: Node | None) -> dict[str, Node]:
    """The arms of the claim (``student``, the recipe as it is, where it names none) and those given beside it."""
    claim = root.get("claim")
    named = claim.get("arms") if claim else None
    found: dict[str, Node] = {} if claim is None else {"student": Node({}, claim.where)}
    if named is not None and named.is_map:
        found = dict(named.value)
    return found | (extra.value if extra is not None else {})


def _check_expectation(node: Node, trail: Trail, known: set[str], check: Checker) -> None:
    try:
        names = parse_expectation(node.value).names
    except UserError as error:
        check.wrong(node, trail, f"{show(node)} {error}")
        return
    for arm in sorted({arm for _, arm in names} - known):
        hint = did_you_mean(nearest(arm, known)) or f"there are {', '.join(sorted(known))}"
        check.wrong(node, trail, f"there is no arm '{arm}'", hint)


def control_arms(controls: Any, method: Block | None, student: StudentBlock | None = None) -> dict[str, Any]:
    """Names and overrides of the control arms: those given, or the method's own where ``controls`` is true.

    A student that is made out of a teacher keeps it where it learns alone: it begins as it does beside it.
    """
    if isinstance(controls, Mapping):
        return dict(controls)
    if controls is not True or method is None:
        return {}
    declared = find("method", method.name).facts.get("controls", DEFAULT_CONTROLS)
    own = {name: _handed_on(over, method) for name, over in declared.items()}
    if student is None or not needs_teacher(student.block):
        return own
    kept = {name: {k: v for k, v in over.items() if (k, v) != ("teacher", None)} for name, over in own.items()}
    return {name: over for name, over in kept.items() if over}


def _handed_on(overrides: Mapping[str, Any], method: Block) -> dict[str, Any]:
    """A control whose method's block says ``same: true`` gets the arguments that both methods have."""
    block = overrides.get("method")
    if not isinstance(block, Mapping) or not block.get("same"):
        return dict(overrides)
    part = find("method", block["name"])
    shared = {name: value for name, value in method.args.items() if part.param(name) is not None}
    return {**overrides, "method": {**shared, **{k: v for k, v in block.items() if k != "same"}}}


def _check_variants(root: Node, check: Checker, made: Assembly, extra: Node | None) -> None:
    """Check the recipes that arms, controls and phases make of this one."""
    plain = Node({k: v for k, v in root.value.items() if k not in ("claim", "controls", "phases")}, root.where)
    with_phases = Node({k: v for k, v in root.value.items() if k not in ("claim", "controls")}, root.where)
    claim, controls, phases = root.get("claim"), root.get("controls"), root.get("phases")
    variants: list[tuple[Trail, Node, Node]] = []
    families: list[tuple[Trail, Node | None]] = [
        (("claim", "arms"), claim.get("arms") if claim else None),
        (("controls",), controls),
        (("arms",), extra),
    ]
    for trail, arms in families:
        if arms is not None and arms.is_map:
            variants += [((*trail, name), with_phases, arm) for name, arm in arms.value.items()]
    if phases is not None and phases.is_list:
        variants += [(("phases", i), plain, _of_phase(phase)) for i, phase in enumerate(phases.value)]
    for trail, base, over in variants:
        if trail[0] != "phases" and not _named(str(trail[-1]), over, trail, check, "an arm"):
            continue
        if over.is_map:
            trial = check.trial()
            assemble(merge(base, spelled_out(over)), trial, deep=False)
            check.absorb(trial, trail)


def _of_phase(node: Node) -> Node:
    if not node.is_map:
        return node
    return Node({k: v for k, v in node.value.items() if k in ("method", "data", "train")}, node.where)
