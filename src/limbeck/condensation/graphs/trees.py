"""Computation trees of graphs, and which of them are often found together. No tensors, no gradients."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from limbeck.data.graph_sets import TaggedGraph
from limbeck.errors import UserError

Pattern = tuple[int, ...]
"""Codes of trees, in ascending order."""


@dataclass
class Book:
    """Rooted trees by code: two trees have the same code if and only if they are the same but for the children's order.

    Attributes:
        pages: of each code the tag of the root and the codes of its children, in ascending order.
    """

    pages: list[tuple[int, Pattern]] = field(default_factory=list)
    _known: dict[tuple[int, Pattern], int] = field(default_factory=dict)

    def code(self, tag: int, children: Sequence[int]) -> int:
        """The code of the tree with this root, a new one if there is none yet."""
        page = (tag, tuple(sorted(children)))
        if page not in self._known:
            self._known[page] = len(self.pages)
            self.pages.append(page)
        return self._known[page]

    def trees(self, graph: TaggedGraph, hops: int) -> list[int]:
        """The code of the computation tree of each node: what ``hops`` passings of messages let it know.

        The children of a tree's node are all neighbours in the graph, the parent among them.
        """
        codes = [self.code(tag, ()) for tag in graph.tags]
        for _ in range(hops):
            codes = [
                self.code(tag, [codes[b] for b in some]) for tag, some in zip(graph.tags, graph.neighbours, strict=True)
            ]
        return codes

    def unfolded(self, pattern: Pattern) -> tuple[list[int], list[tuple[int, int]], list[int]]:
        """The disjoint union of trees: the tag of each node, edges (child, parent), and the roots."""
        tags: list[int] = []
        edges: list[tuple[int, int]] = []

        def grow(code: int) -> int:
            tag, children = self.pages[code]
            own = len(tags)
            tags.append(tag)
            edges.extend((grow(child), own) for child in children)
            return own

        roots = [grow(code) for code in pattern]
        return tags, edges, roots


def frequent_sets(
    transactions: Sequence[frozenset[int]], least: int, largest: int = 0, limit: int = 100_000
) -> dict[Pattern, int]:
    """All sets of items that are part of ``least`` transactions or more, and of how many (Eclat; Zaki 2000).

    Args:
        transactions: items of each.
        least: support, 1 or more.
        largest: items of a set, at most; any number for 0.
        limit: sets that may be found.

    Raises:
        UserError: there are more of them.
    """
    holders: Counter[int] = Counter()
    for place, items in enumerate(transactions):
        for item in items:
            holders[item] += 1 << place
    found: dict[Pattern, int] = {}

    def extend(pattern: Pattern, rows: list[tuple[int, int]]) -> None:
        for place, (item, mask) in enumerate(rows):
            whole = (*pattern, item)
            found[whole] = mask.bit_count()
            if len(found) > limit:
                raise UserError(f"more than {limit} sets of trees are frequent: ask for more support or smaller sets")
            if largest and len(whole) >= largest:
                continue
            joined = [(other, mask & own) for other, own in rows[place + 1 :]]
            extend(whole, [(other, both) for other, both in joined if both.bit_count() >= least])

    extend((), [(item, mask) for item, mask in sorted(holders.items()) if mask.bit_count() >= least])
    return found


def exclusive(by_class: Sequence[Mapping[Pattern, int]]) -> list[dict[Pattern, int]]:
    """Of each class the patterns that are frequent in no other."""
    owners = Counter(pattern for patterns in by_class for pattern in patterns)
    return [{p: support for p, support in patterns.items() if owners[p] == 1} for patterns in by_class]
