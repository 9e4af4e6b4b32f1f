"""Every registered loss, as a function on tensors: gradient, shapes, precision, samples, arguments."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any, Literal, Union, get_args, get_origin

import pytest
import torch
from torch import Tensor

from limbeck import registry
from limbeck.losses import IGNORE
from limbeck.registry import COMMON, Param, Part, find

LOSSES = [name for name in registry.names("loss") if find("loss", name).family != "user"]
LAYOUTS = [(5,), (3, 5), (3, 4, 4)]
"""What follows the batch: classes or features, tokens, maps. A loss takes at least one of them."""
B = 4


def own_params(part: Part) -> list[Param]:
    """The arguments of the formula itself, without those that wire it."""
    shared = {p.name for p in COMMON["loss"]}
    return [p for p in part.params if p.name not in shared]


def tensors(
    part: Part, layout: tuple[int, ...], dtype: torch.dtype = torch.float64, *, hidden: bool = True
) -> list[Tensor]:
    """Arguments of a loss by what it calls them: ``...labels`` are classes, everything else is real-valued."""
    g = torch.Generator().manual_seed(3)
    made = []
    for name in part.handed:
        if name.endswith("labels"):
            labels = torch.randint(layout[-1], (B, *layout[:-1]), generator=g)
            labels[1] = IGNORE
            made.append(labels)
        else:
            made.append(torch.randn(B, *layout, generator=g, dtype=torch.float64).to(dtype))
    return made


@functools.cache
def layout_of(name: str) -> tuple[int, ...]:
    """The first layout that a loss takes."""
    part, refusals = find("loss", name), []
    for layout in LAYOUTS:
        try:
            value = part.load()(*tensors(part, layout))
        except (ValueError, RuntimeError, IndexError) as error:
            refusals.append(f"{layout}: {error}")
            continue
        assert isinstance(value, Tensor)
        return layout
    raise AssertionError(f"{name} takes none of these layouts: {refusals}")


@pytest.fixture(params=LOSSES)
def loss(request: pytest.FixtureRequest) -> Part:
    """A registered loss."""
    return find("loss", request.param)


def variants(part: Part) -> list[dict[str, Any]]:
    """The defaults, and every other word and switch that the loss takes."""
    found: list[dict[str, Any]] = [{}]
    for p in own_params(part):
        if get_origin(p.annotation) is Literal:
            found += [{p.name: word} for word in get_args(p.annotation) if word != p.default]
        elif p.annotation is bool:
            found.append({p.name: not p.default})
    return found


def gradient_of(function: Callable[..., Tensor], given: list[Tensor]) -> Tensor:
    given = [given[0].clone().requires_grad_(), *given[1:]]
    function(*given).float().sum().backward()
    assert given[0].grad is not None
    return given[0].grad


def test_the_gradient_is_that_of_the_formula(loss: Part) -> None:
    """In double precision, in every mode, also where a label is missing."""
    given = tensors(loss, layout_of(loss.name))
    for options in variants(loss):
        function = functools.partial(loss.load(), **options)
        assert function(*given).dtype == torch.float64, "double precision is lost on the way"
        student = given[0].clone().requires_grad_()
        assert torch.autograd.gradcheck(lambda s, f=function: f(s, *given[1:]), (student,)), options


def test_values_are_one_for_each_sample(loss: Part) -> None:
    """Nothing is reduced over the batch, and a sample's value goes where the sample goes."""
    given = tensors(loss, layout_of(loss.name))
    order = torch.tensor([2, 0, 3, 1])
    for options in variants(loss):
        values = loss.load()(*given, **options)
        assert values.dim() >= 1 and len(values) == B
        torch.testing.assert_close(loss.load()(*[t[order] for t in given], **options), values[order])


def test_a_missing_label_counts_nothing(loss: Part) -> None:
    if not any(name.endswith("labels") for name in loss.handed):
        return
    given = tensors(loss, layout_of(loss.name))
    for options in variants(loss):
        assert not loss.load()(*given, **options)[1].any()
        assert not gradient_of(functools.partial(loss.load(), **options), given)[1].any()


def test_unlike_shapes_are_refused_and_not_broadcast(loss: Part) -> None:
    """A loss of relations may take features of unlike width; then it takes any width, not just 1."""
    given = tensors(loss, layout_of(loss.name))
    for i, name in enumerate(loss.handed):
        for wrong in (given[i][:1], given[i].view(2, B // 2, *given[i].shape[1:])):
            with pytest.raises(ValueError):
                loss.load()(*given[:i], wrong, *given[i + 1 :])
        if name.endswith("labels") or i == 0:
            continue
        try:
            loss.load()(*given[:i], given[i][..., :-1], *given[i + 1 :])
        except ValueError as refused:
            assert str(tuple(given[i][..., :-1].shape)) in str(refused), "the message does not name the shapes"
            with pytest.raises(ValueError):
                loss.load()(*given[:i], given[i][..., :1], *given[i + 1 :])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gives_what_single_precision_gives(loss: Part, dtype: torch.dtype) -> None:
    """Large values too: a softmax or a square in half precision overflows where the definition does not."""
    layout = layout_of(loss.name)
    for scale in (1.0, 30.0):
        half = [t * scale if t.is_floating_point() else t for t in tensors(loss, layout, dtype)]
        single = [t.float() if t.is_floating_point() else t for t in half]
        for options in variants(loss):
            function = functools.partial(loss.load(), **options)
            value = function(*half)
            assert value.dtype == torch.float32 and value.isfinite().all(), options
            torch.testing.assert_close(value, function(*single), rtol=1e-5, atol=1e-6)
            assert gradient_of(function, half).isfinite().all(), options


def test_every_argument_changes_the_value(loss: Part) -> None:
    given = tensors(loss, layout_of(loss.name))
    for p in own_params(loss):
        now = None if p.required else p.default
        tried = [value for value in _others(p.annotation, now) if value != now]
        contexts = [options for options in (*variants(loss), *_numbers(loss)) if p.name not in options]
        assert not tried or any(_differs(loss, given, options, p.name, tried) for options in contexts), (
            f"{loss.name}: {p.name} changes nothing: a dead argument"
        )


def _numbers(loss: Part) -> list[dict[str, Any]]:
    """Every number at another value: a factor of temperature squared does nothing at temperature 1."""
    return [{p.name: 1.7} for p in own_params(loss) if p.annotation is float]


def _differs(loss: Part, given: list[Tensor], options: dict[str, Any], name: str, tried: list[Any]) -> bool:
    base = loss.load()(*given, **options)
    for value in tried:
        try:
            if not torch.equal(loss.load()(*given, **{**options, name: value}), base):
                return True
        except ValueError:
            continue
    return False


def _others(annotation: Any, now: Any) -> list[Any]:
    if get_origin(annotation) in (Union, types.UnionType):
        return [v for member in get_args(annotation) for v in _others(member, now)]
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    if annotation is bool:
        return [not now]
    if annotation is int:
        return [2, 3, 1]
    return [(now or 0.4) * 1.5, 0.3] if annotation is float else []
