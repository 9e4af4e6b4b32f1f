"""Training a super-network of text and choosing one of its subnets."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from limbeck.codehash import module_hash
from limbeck.engine.checkpoint import write_json
from limbeck.engine.devices import to_device
from limbeck.engine.method import Batch
from limbeck.engine.noise import uniform
from limbeck.errors import UserError
from limbeck.export import store
from limbeck.export.store import Stored
from limbeck.language.methods.autodistil import AutoDistil
from limbeck.language.subnets import Candidate, Relations, held_out_losses, marked, sizes_of
from limbeck.language.supernet import Architecture, exported, subnet_shell
from limbeck.registry import Block, build, register

if TYPE_CHECKING:
    from limbeck.run import Context
    from limbeck.training import Trained

FOUND = "search.json"
AT_ONCE = 64
"""Rows in a batch of held-out text."""


@register("stage")
def search_subnet(
    context: Context,
    *,
    parameters: int | None = None,
    flops: float | None = None,
    by: Literal["loss", "parameters", "chance"] = "loss",
    weights: Literal["inherited", "fresh"] = "inherited",
    then: dict[str, Any] | None = None,
    rows: int = 512,
    candidates: int = 512,
) -> None:
    """Train the recipe's super-network and choose one of its subnets (AutoDistil, arXiv 2201.12507).

    Goes after ``teacher`` in a recipe whose method is ``autodistil``. Subnets within the limits are compared by the
    method's loss on the validation split, with the weights that they share. What was tried is kept in ``search.json``,
    the least loss first, the Pareto set of loss, parameters and operations marked, and told in the report's notes.
    With ``then`` the chosen subnet is the student of what follows, the stage ``train`` and the controls, which begin
    with its weights; without it, it is delivered as it is, and ``train`` is left out of the stages.

    Args:
        context: of the run.
        parameters: a subnet has no more than this many.
        flops: its forward of one row takes no more operations than this; 2 per multiply-add.
        by: the least ``loss``, the most ``parameters``, or ``chance``; the latter two are what the first must beat.
        weights: the student has those of the super-network, or the chosen subnet begins anew (``fresh``).
        then: ``method``, ``train`` and ``phases`` of the training that follows, laid over the recipe's; its method is
            by default ``minilm`` with the same relations, and a phase may bring data of its own.
        rows: of the validation split, from its beginning.
        candidates: of a larger space so many are drawn.

    Raises:
        UserError: the recipe is for another method, has no validation split, or the limits leave no subnet.
    """
    method = _method(context)
    if foreign := sorted(set(then or ()) - {"method", "train", "phases"}):
        raise UserError(f"search_subnet: then is of method, train and phases, not '{foreign[0]}'")
    if then is None and any(block.name == "train" for block in context.recipe.stages or ()):
        raise UserError("search_subnet: say what the subnet is trained with (then), or leave out the stage 'train'")
    supernet = context.trained(context.recipe, "supernet", "super-network")
    asked = [parameters, flops, by, weights, rows, candidates]
    folder = context.artifact("subnet", _key(context, supernet, asked))
    limits = (parameters or float("inf"), flops or float("inf"))
    context.once(partial(_search, context, method, supernet, folder, limits, by, weights == "fresh", rows, candidates))
    found = json.loads((folder / FOUND).read_text(encoding="utf8"))
    _tell(context, found)
    if then is None:
        context.deliver(folder, supernet.numbers, found["chosen"])
        return
    relations = {"teacher_layer": method.teacher_layer, "relation_heads": method.relation_heads}
    after = {"phases": None, "method": {"name": "minilm", **relations}, **then}
    student = {"name": "auto", "path": str((folder / store.MODEL).resolve())}
    context.recipe = context.recipe.with_overrides({**after, "student": student})


def _method(context: Context) -> AutoDistil:
    method = build("method", context.recipe.method)
    if not isinstance(method, AutoDistil):
        raise UserError(
            f"search_subnet: chooses among what method 'autodistil' trains, not '{context.recipe.method.name}'"
        )
    if "teacher" not in context.teachers:
        raise UserError("search_subnet: subnets are compared with the teacher; put the stage after 'teacher'")
    return method


def _search(
    context: Context,
    method: AutoDistil,
    supernet: Trained,
    folder: Path,
    limits: tuple[float, float],
    by: str,
    fresh: bool,
    rows: int,
    candidates: int,
) -> None:
    """Search, and keep what was tried with the subnet that was chosen; nothing is done where they are there already."""
    if (folder / FOUND).is_file():
        return
    stored = supernet.model
    network = stored.module.to(context.fabric.device)
    batches = _held_out(context, rows)
    tried = _tried(context, method, network, batches, limits, candidates)
    order: dict[str, Callable[[Candidate], tuple[float, float]]] = {
        "loss": lambda c: (c.loss, c.parameters),
        "parameters": lambda c: (-c.parameters, c.loss),
        "chance": lambda c: (_chance(c.architecture, context.seed), c.loss),
    }
    chosen = min(tried, key=order[by])
    _store(folder / store.MODEL, stored, network, chosen.architecture, context, fresh)
    table = [{**_row(c), "pareto": c.best} for c in tried]
    write_json(folder / FOUND, {"by": by, "chosen": _words(chosen), "subnet": _row(chosen), "tried": table})


def _tried(
    context: Context,
    method: AutoDistil,
    network: nn.Module,
    batches: Sequence[Batch],
    limits: tuple[float, float],
    candidates: int,
) -> list[Candidate]:
    """The subnets within the limits; least loss first."""
    known = method.space_in(network).architectures
    if len(known) > candidates:
        draws = _uniform(len(known), context.seed, "candidates")
        known = [known[i] for i in sorted(draws.argsort()[:candidates].tolist())]
    sizes = dict(zip(known, sizes_of(network, known, batches[0]), strict=True))
    within = [a for a in known if sizes[a][0] <= limits[0] and sizes[a][1] <= limits[1]]
    if not within:
        least = [min(column) for column in zip(*sizes.values(), strict=True)]
        says = f"the smallest has {least[0]:,} parameters and takes {least[1]:,} operations a row"
        raise UserError(f"search_subnet: no subnet is within the limits; {says}")
    relations = Relations(context.teachers["teacher"], method.teacher_layer, method.relation_heads)
    relations.teacher.module.to(context.fabric.device)
    losses = held_out_losses(network, relations, within, batches)
    relations.close()
    return marked([Candidate(a, loss, *sizes[a]) for a, loss in zip(within, losses, strict=True)])


def _held_out(context: Context, rows: int) -> list[Batch]:
    source = context.ingredients.main.val
    if source is None:
        raise UserError("search_subnet: subnets are compared on held-out text: give the data a validation split")
    pieces = torch.arange(min(rows, len(source))).split(AT_ONCE)
    return [to_device(source.batch(piece), context.fabric.device) for piece in pieces]


def _store(
    folder: Path, supernet: Stored, network: nn.Module, architecture: Architecture, context: Context, fresh: bool
) -> None:
    """Write the subnet as a plain encoder."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(context.seed)
        # The shell leaves the generator as it was, so its weights are those of the seed.
        module = subnet_shell(network, architecture) if fresh else exported(network, architecture)
    block = supernet.block
    if block.name == "encoder":
        config: Any = module.config
        sizes = {"hidden": config.hidden_size, "layers": len(architecture.layers)}
        block = Block(block.name, {**block.args, **sizes, "heads": architecture.heads, "ffn": architecture.ffn})
    module.cpu().eval()
    words = context.ingredients.main.extra.get("tokenizer")
    store.save(folder, Stored(module, block, supernet.gives, supernet.spec), tokenizer=words)


def _tell(context: Context, found: dict[str, Any]) -> None:
    tried = found["tried"]
    says = f"search_subnet: {found['chosen']} by {found['by']}; {len(tried)} subnets within the limits"
    context.say(says)
    context.notes.append(says)
    best = [f"{r['loss']:.4g} with {r['parameters']:,} and {r['flops']:,}" for r in tried if r["pareto"]]
    context.notes.append(f"Pareto set of subnets, loss with parameters and operations a row: {'; '.join(best)}")


def _row(candidate: Candidate) -> dict[str, Any]:
    a = candidate.architecture
    sizes = {"loss": candidate.loss, "parameters": candidate.parameters, "flops": candidate.flops}
    return {"layers": list(a.layers), "heads": a.heads, "ffn": a.ffn, **sizes}


def _words(candidate: Candidate) -> str:
    a = candidate.architecture
    return (
        f"a subnet of {len(a.layers)} layers, {a.heads} heads and {a.ffn} neurons "
        f"({candidate.parameters:,} parameters, loss {candidate.loss:.4g})"
    )


def _chance(architecture: Architecture, seed: int) -> float:
    """A number of the subnet and the seed alone."""
    return float(_uniform(1, seed, repr(architecture)))


def _uniform(count: int, seed: int, name: str) -> Tensor:
    return uniform(torch.zeros(1, dtype=torch.int64), (count,), (seed, "search_subnet", name))[0]


def _key(context: Context, supernet: Trained, asked: Sequence[Any]) -> str:
    """What the choice depends on, beside what the super-network does."""
    code = [module_hash(module) for module in (__name__, "limbeck.language.subnets", "limbeck.language.supernet")]
    facts = [supernet.folder.name, list(asked), context.seed, code]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()
