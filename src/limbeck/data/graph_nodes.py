"""The nodes of a graph as rows: their numbers for networks on graphs, or prompts about them for language models."""

from __future__ import annotations

import hashlib
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from limbeck.data import tokenizer as tokenizers
from limbeck.data.base import Batch, Data, DataSpec
from limbeck.data.graphs import FILES, Blocks, Prompts, named_graph
from limbeck.data.text import TokenRows, pair_rows
from limbeck.errors import UserError
from limbeck.losses import IGNORE
from limbeck.registry import register


class NodeRows:
    """Nodes by number, of a graph that the network has: a :class:`~limbeck.data.base.Source`.

    Attributes:
        spec, fingerprint: as every source has.
        graph: of the nodes.
        prompts: the same nodes as text.
        nodes: int64 [N], their numbers, which are their ids as well.
        label: int64 [N], -100 where it is not to be known.
    """

    def __init__(self, prompts: Prompts, nodes: Tensor, label: Tensor, spec: DataSpec) -> None:
        self.spec, self.prompts, self.graph, self.nodes, self.label = spec, prompts, prompts.graph, nodes, label
        digest = hashlib.blake2b(repr((self.graph.texts, prompts.near, prompts.quoted, prompts.seed)).encode())
        for values in (self.graph.edges, nodes, label):
            digest.update(values.contiguous().numpy().tobytes())
        self.fingerprint = digest.hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.nodes)

    def batch(self, indices: Tensor, view: int = 0) -> Batch:
        """Rows as ``input`` (the numbers of the nodes, int64 [B]), ``label``, ``id`` and ``view``."""
        nodes = self.nodes[indices]
        return {"input": nodes, "label": self.label[indices], "id": nodes, "view": view}


@register("data")
def graph_nodes(
    *,
    graph: Literal["blocks", "cora", "citeseer"] = "blocks",
    form: Literal["nodes", "prompts"] = "nodes",
    per_class: int = 20,
    unlabelled: bool = True,
    hops: int = 2,
    near: int = 3,
    quoted: int = 4,
    context: int = 64,
    nodes: int = 600,
    classes: int = 4,
    degree: float = 4.0,
    homophily: float = 0.7,
    words: int = 20,
    length: int = 8,
    clarity: float = 0.3,
    val_size: int = 0,
    test_size: int = 300,
    seed: int = 0,
) -> Data:
    """Nodes of one graph with a class each; the graph is ``Data.extra["graph"]``, for the networks that know it.

    As ``nodes`` a row is the number of a node. As ``prompts`` a row is a text with the class as completion: the words
    of the node and of some nodes at each distance, one row for each distance up to ``hops`` (in validation and test
    for the farthest alone), and only of nodes whose class is known.

    Args:
        graph: ``blocks`` is made by the package; the others are found under ``LIMBECK_DATA``.
        form: of the rows.
        per_class: training nodes of each class whose class is known; 0 for all. 20 are those that the papers on Cora
            and Citeseer use.
        unlabelled: keep the other training nodes as rows without a label (form ``nodes``).
        hops: how far a prompt looks.
        near: nodes of each distance that it quotes.
        quoted: words that it quotes of each.
        context: longest prompt with its answer, in tokens.
        nodes, classes: size of ``blocks``.
        degree: neighbours of one of its nodes, on average.
        homophily: share of its edges that are drawn within a class.
        words: of each of its classes.
        length: words of one of its texts.
        clarity: share of them that are of the text's class.
        val_size, test_size: nodes of ``blocks`` in these parts; the others have parts of their own.
        seed: of ``blocks``, and of which nodes a prompt quotes.

    Raises:
        UserError: a number is out of range, a class has too few nodes, or the file is missing.
    """
    if min(per_class, hops, near, quoted) < 0:
        raise UserError("data 'graph_nodes': per_class, hops, near and quoted must not be negative")
    if graph in FILES:
        found = named_graph(graph)
    else:
        found = Blocks(nodes, classes, degree, homophily, words, length, clarity).graph(val_size, test_size, seed)
    prompts, known = Prompts(found, near, quoted, seed), found.known(per_class)
    if form == "prompts":
        return _as_prompts(prompts, known, hops, context)
    return _as_nodes(prompts, known, unlabelled)


def _as_nodes(prompts: Prompts, known: Tensor, unlabelled: bool) -> Data:
    graph = prompts.graph
    bag = hashlib.blake2b(" ".join(graph.words).encode(), digest_size=8).hexdigest()
    # The hash is that of the bag of words: a teacher that reads text reads other tokens.
    spec = DataSpec(classes=len(graph.classes), class_names=graph.classes, tokenizer_hash=bag, licence=graph.licence)
    label = torch.full_like(graph.label, IGNORE)
    label[known] = graph.label[known]
    train = graph.train if unlabelled else known
    rows = partial(NodeRows, prompts, spec=spec)
    held_out = {name: getattr(graph, name) for name in ("val", "test")}
    parts = {name: rows(part, graph.label[part]) for name, part in held_out.items() if len(part)}
    return Data(spec, rows(train, label[train]), parts.get("test"), parts.get("val"), extra={"graph": graph})


def _as_prompts(prompts: Prompts, known: Tensor, hops: int, context: int) -> Data:
    graph = prompts.graph
    words = tokenizers.known_words(prompts.vocabulary(hops))
    spec = DataSpec(
        task="language",
        shape=(context,),
        vocab_size=len(words),
        tokenizer_hash=tokenizers.tokenizer_hash(words),
        licence=graph.licence,
    )
    plans = {
        "train": (known, range(hops + 1)),
        "val": (graph.val, range(hops, hops + 1)),
        "test": (graph.test, range(hops, hops + 1)),
    }
    parts: dict[str, Any] = {}
    first = 0
    for name, (nodes, distances) in plans.items():
        pairs = [(prompts.text(n, hop), prompts.answer(n)) for n in nodes.tolist() for hop in distances]
        parts[name] = _rows(pairs, first, spec, words)
        first += len(pairs)
    return Data(spec, parts["train"], parts["test"], parts["val"], extra={"tokenizer": words, "graph": graph})


def _rows(pairs: list[tuple[str, str]], first: int, spec: DataSpec, words: Any) -> TokenRows | None:
    rows = pair_rows(pairs, first, spec, words) if pairs else None
    if rows is not None and len(rows) < len(pairs):
        long = max(len(prompt.split()) for prompt, _ in pairs) + 2
        raise UserError(f"data 'graph_nodes': a prompt with its answer has {long} tokens: say context: {long} or more")
    return rows
