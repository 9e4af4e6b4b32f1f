"""Many small graphs with a class each: read from files, or motifs on random trees made by the package."""

from __future__ import annotations

import gzip
import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from limbeck.data.base import Batch, Data, DataSpec
from limbeck.data.corpora import corpus_file
from limbeck.data.labels import carve
from limbeck.errors import UserError
from limbeck.registry import register

FILES = {
    "mutag": "graphs/MUTAG.txt.gz",
    "proteins": "graphs/PROTEINS.txt.gz",
    "imdb_binary": "graphs/IMDBBINARY.txt.gz",
}
"""Sets by name: where they are under ``LIMBECK_DATA``."""

MOTIFS: dict[str, tuple[tuple[int, int], ...]] = {
    "cycle": ((0, 1), (1, 2), (2, 3), (3, 4), (4, 0)),
    "house": ((0, 1), (1, 2), (2, 3), (3, 0), (0, 4), (1, 4)),
    "clique": ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)),
    "star": ((0, 1), (0, 2), (0, 3), (0, 4)),
}
"""Edges of the motifs, of which class k has the one at place k."""


@dataclass(frozen=True)
class TaggedGraph:
    """An undirected graph.

    Attributes:
        tags: of each node, a number from 0 on.
        neighbours: of each node, in ascending order.
        label: its class.
    """

    tags: tuple[int, ...]
    neighbours: tuple[tuple[int, ...], ...]
    label: int

    @classmethod
    def of_edges(cls, tags: Sequence[int], edges: Sequence[tuple[int, int]], label: int) -> TaggedGraph:
        """The graph with these edges, each in any direction; loops and repetitions do not count."""
        found: list[set[int]] = [set() for _ in tags]
        for a, b in edges:
            if a != b:
                found[a].add(b)
                found[b].add(a)
        return cls(tuple(tags), tuple(tuple(sorted(some)) for some in found), label)

    def by_degree(self, most: int) -> TaggedGraph:
        """The same graph whose tags are its degrees, up to ``most``."""
        return TaggedGraph(tuple(min(len(some), most) for some in self.neighbours), self.neighbours, self.label)


class GraphRows:
    """Graphs by number: a :class:`~limbeck.data.base.Source`.

    Attributes:
        spec, fingerprint: as every source has.
        graphs: the graphs of the rows.
        ids: int64 [N], their numbers in the whole set.
        tags: how many tags the whole set has.
    """

    def __init__(self, graphs: Sequence[TaggedGraph], ids: Tensor, tags: int, spec: DataSpec) -> None:
        self.spec, self.ids, self.tags = spec, ids, tags
        self.graphs = [graphs[i] for i in ids.tolist()]
        self.label = torch.tensor([graph.label for graph in self.graphs], dtype=torch.int64)
        self.fingerprint = hashlib.blake2b(repr((self.graphs, tags)).encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.graphs)

    def batch(self, indices: Tensor, view: int = 0) -> Batch:
        """Rows as ``input`` (the numbers of the rows, int64 [B]), ``label``, ``id`` and ``view``."""
        return {"input": indices, "label": self.label[indices], "id": self.ids[indices], "view": view}


@register("data")
def graph_sets(
    *,
    graphs: Literal["motifs", "mutag", "proteins", "imdb_binary"] = "motifs",
    tags: Literal["auto", "own", "degree"] = "auto",
    max_degree: int = 20,
    count: int = 200,
    classes: int = 2,
    tree: int = 8,
    extra_edges: int = 1,
    test_size: int | None = None,
    val_size: int = 0,
    seed: int = 0,
) -> Data:
    """Graphs with a class each (TUDataset: Morris et al. 2020, arXiv 2007.08663); a row is the number of a graph.

    Args:
        graphs: ``motifs`` are made by the package: a random tree with a small motif hung on, which is the class (cycle,
            house, clique, star). The others are found under ``LIMBECK_DATA``.
        tags: of nodes: those of the file, or the ``degree``; ``auto`` takes degrees where the file has one tag only.
        max_degree: the largest degree that is told apart.
        count: of graphs with motifs.
        classes: of graphs with motifs, 2 to 4.
        tree: nodes of the tree in a graph with a motif; each graph has up to twice as many.
        extra_edges: random edges in it.
        test_size: graphs of the test part, stratified; a quarter by default.
        val_size: graphs of the validation part.
        seed: of the parts, and of graphs with motifs.

    Raises:
        UserError: a number is out of range, or the file is missing or is no such set.
    """
    if max_degree < 1 or not 2 <= classes <= len(MOTIFS) or tree < 1 or extra_edges < 0 or count < classes:
        raise UserError(
            f"data 'graph_sets': classes {classes} must be 2 to {len(MOTIFS)}, max_degree, tree 1 or more, and count "
            "at least one of each class"
        )
    whole = (
        read_graphs(corpus_file(graphs, FILES[graphs]))
        if graphs in FILES
        else _motifs(count, classes, tree, extra_edges, seed)
    )
    plain = len({tag for graph in whole for tag in graph.tags}) < 2
    if tags == "degree" or (tags == "auto" and plain):
        whole = [graph.by_degree(max_degree) for graph in whole]
    labels = torch.tensor([graph.label for graph in whole])
    names = tuple(MOTIFS)[:classes] if graphs == "motifs" else tuple(f"class_{k}" for k in range(int(labels.max()) + 1))
    spec = DataSpec(classes=len(names), class_names=names, licence="public domain" if graphs == "motifs" else None)
    kinds = 1 + max(tag for graph in whole for tag in graph.tags)
    test = len(whole) // 4 if test_size is None else test_size
    rows = carve(labels, seed, test=test, val=val_size, what=f"data 'graph_sets' ({graphs})")
    parts = {name: GraphRows(whole, ids, kinds, spec) for name, ids in rows.items() if len(ids)}
    return Data(spec, parts["train"], parts.get("test"), parts.get("val"), extra={"tags": kinds})


def read_graphs(path: Path) -> list[TaggedGraph]:
    """The graphs of a text file, gzipped: their number, and of each a line ``nodes label`` and its nodes.

    A node is a line ``tag degree neighbour...``, with neighbours by number from 0. Labels become 0, 1 and so on in the
    order of their numbers.

    Raises:
        UserError: the file is cut off or is no such file.
    """
    found = []
    try:
        lines = iter(gzip.decompress(path.read_bytes()).decode().splitlines())
        for _ in range(int(next(lines))):
            nodes, label = (int(word) for word in next(lines).split())
            rows = [[int(word) for word in next(lines).split()] for _ in range(nodes)]
            edges = [(a, b) for a, row in enumerate(rows) for b in row[2 : 2 + row[1]]]
            found.append(TaggedGraph.of_edges([row[0] for row in rows], edges, label))
    except (ValueError, IndexError, OSError, EOFError, StopIteration) as error:
        raise UserError(f"{path} holds no graphs as text: {error or 'it is cut off'}") from error
    places = {label: place for place, label in enumerate(sorted({graph.label for graph in found}))}
    return [replace(graph, label=places[graph.label]) for graph in found]


def _motifs(count: int, classes: int, tree: int, extra: int, seed: int) -> list[TaggedGraph]:
    dice = random.Random(f"motifs {seed}")
    return [_motif_graph(number % classes, tree, extra, dice) for number in range(count)]


def _motif_graph(label: int, tree: int, extra: int, dice: random.Random) -> TaggedGraph:
    """A tree in which nodes with many neighbours get more (Barabasi and Albert 1999), and a motif hung on."""
    nodes = tree + _below(tree + 1, dice)
    edges: list[tuple[int, int]] = []
    ends = [0]
    for node in range(1, nodes):
        other = ends[_below(len(ends), dice)]
        edges.append((node, other))
        ends += [node, other]
    edges += [(_below(nodes, dice), _below(nodes, dice)) for _ in range(extra)]
    motif = MOTIFS[tuple(MOTIFS)[label]]
    size = 1 + max(max(pair) for pair in motif)
    edges += [(nodes + a, nodes + b) for a, b in motif]
    edges.append((_below(nodes, dice), nodes + size - 1))
    return TaggedGraph.of_edges([0] * (nodes + size), edges, label)


def _below(count: int, dice: random.Random) -> int:
    """A number below ``count``: random() is promised to be the same in every Python version, randrange() is not."""
    return int(dice.random() * count)
