"""Graphs whose nodes have words and classes: read from files, or made by the package; their nodes as rows."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from limbeck.data.corpora import corpus_file
from limbeck.data.npz import load_npz
from limbeck.errors import UserError

FILES = {"cora": "graphs/cora.npz", "citeseer": "graphs/citeseer.npz"}
"""Graphs by name: where they are under ``LIMBECK_DATA``."""
FIELDS = ("edges", "x_indices", "x_indptr", "x_shape", "y", "train_idx", "val_idx", "test_idx")
ASK = "so it is about"


@dataclass(frozen=True, eq=False)
class Graph:
    """An undirected graph whose nodes have words.

    Attributes:
        edges: int64 [2, E], each pair of nodes once, without loops.
        texts: the words of each node by number, in the order of its text.
        words: the name of each word.
        label: int64 [N], -100 where there is none.
        classes: the name of each class.
        train, val, test: int64, the nodes of the parts; whose labels may be learnt comes first in ``train``.
        licence: as the owner states it.
    """

    edges: Tensor
    texts: tuple[tuple[int, ...], ...]
    words: tuple[str, ...]
    label: Tensor
    classes: tuple[str, ...]
    train: Tensor
    val: Tensor
    test: Tensor
    licence: str | None = None

    def __len__(self) -> int:
        return len(self.texts)

    @cached_property
    def neighbours(self) -> list[list[int]]:
        """The neighbours of each node, in ascending order."""
        found: list[list[int]] = [[] for _ in self.texts]
        for a, b in self.edges.T.tolist():
            found[a].append(b)
            found[b].append(a)
        return [sorted(some) for some in found]

    def rings(self, node: int, hops: int) -> list[list[int]]:
        """The nodes at each distance 0 to ``hops`` of a node, in ascending order."""
        seen, found = {node}, [[node]]
        for _ in range(hops):
            ring = sorted({b for a in found[-1] for b in self.neighbours[a]} - seen)
            seen |= set(ring)
            found.append(ring)
        return found

    @property
    def bags(self) -> tuple[Tensor, Tensor]:
        """Which node has which word, each pair once: int64 [M] nodes in ascending order, and [M] words."""
        pairs = [(node, word) for node, text in enumerate(self.texts) for word in sorted(set(text))]
        rows = torch.tensor(pairs, dtype=torch.int64).view(-1, 2)
        return rows[:, 0].contiguous(), rows[:, 1].contiguous()

    def known(self, per_class: int) -> Tensor:
        """The first ``per_class`` training nodes of each class (all of them for 0), int64, in the order of ``train``.

        Raises:
            UserError: a class has fewer.
        """
        labels = self.label[self.train]
        if per_class == 0:
            return self.train[labels >= 0]
        places = [(labels == k).nonzero().squeeze(1) for k in range(len(self.classes))]
        few = next((k for k, rows in enumerate(places) if len(rows) < per_class), None)
        if few is not None:
            has = f"class '{self.classes[few]}' has {len(places[few])} nodes to train on"
            raise UserError(f"data 'graph_nodes': {has}: per_class {per_class} is too many")
        return self.train[torch.cat([rows[:per_class] for rows in places]).sort().values]


def named_graph(name: str) -> Graph:
    """Cora or Citeseer (Yang et al. 2016, arXiv 1603.08861), whose parts are those of that paper.

    Words have no names there, so they are called by number. The nodes of no part are for training, too, after those
    whose labels the paper gives.

    Raises:
        UserError: the file is missing or is no such graph.
    """
    path = corpus_file(name, FILES[name])
    arrays = load_npz(path)
    missing = [field for field in FIELDS if field not in arrays]
    if missing:
        raise UserError(f"{path} is no graph with words: there is no array '{missing[0]}'")
    label = torch.as_tensor(arrays["y"]).long()
    train, val, test = (torch.as_tensor(arrays[f"{part}_idx"]).long() for part in ("train", "val", "test"))
    taken = torch.zeros(len(label), dtype=torch.bool)
    taken[torch.cat([train, val, test])] = True
    starts, found = arrays["x_indptr"].tolist(), arrays["x_indices"].tolist()
    return Graph(
        torch.as_tensor(arrays["edges"]).long(),
        tuple(tuple(found[a:b]) for a, b in pairwise(starts)),
        tuple(f"w{i}" for i in range(int(arrays["x_shape"][1]))),
        label.masked_fill(label < 0, -100),
        tuple(f"class_{k}" for k in range(int(label.max()) + 1)),
        torch.cat([train, (~taken & (label >= 0)).nonzero().squeeze(1)]),
        val,
        test,
    )


@dataclass(frozen=True)
class Blocks:
    """A stochastic block model whose blocks speak of topics of their own.

    Attributes:
        nodes, classes: how many.
        degree: neighbours of a node, on average; a pair that is drawn twice is one edge.
        homophily: share of the edges that are drawn within a class.
        words: of each class.
        length: words of a text.
        clarity: share of a text's words that are drawn from its class's; the rest from those of all classes.
    """

    nodes: int
    classes: int
    degree: float
    homophily: float
    words: int
    length: int
    clarity: float

    def __post_init__(self) -> None:
        if not (0 <= self.homophily <= 1 and 0 <= self.clarity <= 1):
            raise UserError("data 'graph_nodes': homophily and clarity are shares, between 0 and 1")
        if self.classes < 2 or self.nodes < 2 * self.classes or min(self.words, self.length) < 1 or self.degree < 0:
            raise UserError("data 'graph_nodes' needs two classes, two nodes of each, a word of each and one in a text")

    def graph(self, val_size: int, test_size: int, seed: int) -> Graph:
        """The graph of a seed, the same on every machine; the test part is its last nodes.

        Raises:
            UserError: no node is left to train on.
        """
        dice = random.Random(f"blocks {seed}")
        left = self.nodes - val_size - test_size
        if min(val_size, test_size) < 0 or left < self.classes:
            raise UserError(f"data 'graph_nodes': val_size {val_size} and test_size {test_size} of {self.nodes} nodes")
        label = [_below(self.classes, dice) if n >= self.classes else n for n in range(self.nodes)]
        texts = tuple(self._text(k, dice) for k in label)
        order = torch.arange(self.nodes)
        return Graph(
            self._edges(label, dice),
            texts,
            tuple(f"w{k}_{n}" for k in range(self.classes) for n in range(self.words)),
            torch.tensor(label),
            tuple(f"topic_{k}" for k in range(self.classes)),
            order[:left],
            order[left : left + val_size],
            order[left + val_size :],
            "public domain",
        )

    def _edges(self, label: Sequence[int], dice: random.Random) -> Tensor:
        members = [[n for n, own in enumerate(label) if own == k] for k in range(self.classes)]
        found = set()
        for _ in range(round(self.nodes * self.degree / 2)):
            a = _below(self.nodes, dice)
            others = members[label[a]] if dice.random() < self.homophily else range(self.nodes)
            b = others[_below(len(others), dice)]
            if a != b:
                found.add((min(a, b), max(a, b)))
        return torch.tensor(sorted(found), dtype=torch.int64).view(-1, 2).T.contiguous()

    def _text(self, label: int, dice: random.Random) -> tuple[int, ...]:
        def word() -> int:
            own = dice.random() < self.clarity
            return label * self.words + _below(self.words, dice) if own else _below(self.words * self.classes, dice)

        return tuple(word() for _ in range(self.length))


@dataclass(frozen=True, eq=False)
class Prompts:
    """Nodes and what is around them, as text with a question.

    Attributes:
        graph: of the nodes.
        near: how many nodes of each distance a prompt quotes.
        quoted: words of each of them.
        seed: of the choice among more nodes.
    """

    graph: Graph
    near: int
    quoted: int
    seed: int

    def text(self, node: int, hops: int) -> str:
        """The words of a node, then of some nodes at each distance up to ``hops``, and the question for its topic."""
        rings = self.graph.rings(node, hops)
        parts = [self._words(self.graph.texts[node])]
        for hop, ring in enumerate(rings[1:], start=1):
            dice = random.Random(f"{self.seed} {node} {hop}")
            chosen = sorted(ring, key=lambda _: dice.random())[: self.near]
            quotes = (self._words(self.graph.texts[other][: self.quoted]) for other in chosen)
            parts += [f"near_{hop}", *(f"{quote} /" for quote in quotes)]
        return " ".join(part for part in (*parts, ASK) if part)

    def answer(self, node: int) -> str:
        """The name of a node's class."""
        return self.graph.classes[int(self.graph.label[node])]

    def vocabulary(self, hops: int) -> list[str]:
        """Every word that prompts up to ``hops`` and their answers may have."""
        marks = [f"near_{hop}" for hop in range(1, hops + 1)]
        return [*self.graph.words, *self.graph.classes, *marks, "/", *ASK.split()]

    def _words(self, text: Sequence[int]) -> str:
        return " ".join(self.graph.words[word] for word in text)


def _below(count: int, dice: random.Random) -> int:
    """A number below ``count``: random() is promised to be the same in every Python version, randrange() is not."""
    return int(dice.random() * count)
