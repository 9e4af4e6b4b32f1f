"""Which of the proposed tokens stand: rejection sampling along a tree, so that the text is the target's own.

A chain is a tree whose nodes have one child. The rule is exact for any proposal (Leviathan et al. 2022, arXiv
2211.17192; for several candidates Miao et al. 2023, arXiv 2305.09781): candidate x is accepted with probability
``min(1, p(x) / q(x))``; refused, the next candidate meets ``norm(max(p - q, 0))``. A candidate that no draw chose
(the draft's likeliest) has ``q = 1`` at itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

ROOT = -1
"""The parent of a first proposed token: the last token that stands."""

Law = Callable[[int], Tensor]
"""The target's next-token distribution, float64 [V], after a node (or after :data:`ROOT`)."""


@dataclass(frozen=True)
class Proposal:
    """A tree of proposed tokens, parents before children, siblings in the order in which they are tried.

    Attributes:
        tokens: the token of each node.
        parents: the number of each node's parent, or :data:`ROOT`.
        drawn: for each node the distribution [V] that its token was drawn from, given that the siblings before it
            were refused; None for one that was chosen without a draw.
    """

    tokens: Sequence[int]
    parents: Sequence[int]
    drawn: Sequence[Tensor | None]

    def children(self, node: int) -> list[int]:
        """The nodes below one, in order."""
        return [child for child, parent in enumerate(self.parents) if parent == node]

    @property
    def depths(self) -> list[int]:
        """How many tokens each node is ahead, from 1."""
        found: list[int] = []
        for parent in self.parents:
            found.append(1 if parent == ROOT else found[parent] + 1)
        return found


def chain(tokens: Sequence[int], drawn: Sequence[Tensor | None] | None = None) -> Proposal:
    """Tokens one after the other."""
    return Proposal(tokens, range(ROOT, len(tokens) - 1), [None] * len(tokens) if drawn is None else drawn)


def law(logits: Tensor, temperature: float) -> Tensor:
    """Logits [..., V] as the distribution that a sampler draws from, float64; at temperature 0 all on the largest."""
    if temperature == 0:
        best = logits.argmax(-1, keepdim=True)
        return torch.zeros_like(logits, dtype=torch.float64).scatter_(-1, best, 1.0)
    return torch.softmax(logits.double() / temperature, dim=-1)


def accept(p: Tensor, token: int, q: Tensor | None, u: float) -> tuple[bool, Tensor]:
    """Try one candidate with a uniform draw ``u``: whether it stands, and the distribution left if it does not.

    Args:
        p: what the text is to follow, float64 [V].
        token: the candidate.
        q: what it was drawn from, or None where no draw chose it.
        u: in [0, 1).
    """
    given = 1.0 if q is None else float(q[token])
    if u * given < float(p[token]):
        return True, p
    if q is None:
        rest = p.clone()
        rest[token] = 0.0
    else:
        rest = (p - q).clamp(min=0)
    mass = rest.sum()
    # Without any mass left p and q are the same up to rounding: then p itself is what remains.
    return False, rest / mass if mass > 0 else p


def walk(proposal: Proposal, target: Law, draws: torch.Generator) -> tuple[list[int], int]:
    """The nodes that stand, from the root on, and the token that follows them, drawn from the target."""
    node = ROOT
    path: list[int] = []
    while True:
        p = target(node)
        for child in proposal.children(node):
            stands, p = accept(p, proposal.tokens[child], proposal.drawn[child], _uniform(draws))
            if stands:
                break
        else:
            return path, draw(p, draws)
        path.append(child)
        node = child


def walk_typical(
    proposal: Proposal, target: Law, draws: torch.Generator, *, epsilon: float = 0.09, delta: float = 0.3
) -> tuple[list[int], int]:
    """Typical acceptance of Medusa (Cai et al. 2024, arXiv 2401.10774, section 2.3.1). LOSSY: not the target's law.

    A token stands where ``p(x) > min(epsilon, delta exp(-H(p)))`` and its parent stands; the longest path is taken,
    the likeliest of these.
    """
    laws: dict[int, Tensor] = {ROOT: target(ROOT)}
    best: tuple[int, float, int] = (0, 0.0, ROOT)
    reached: dict[int, tuple[int, float]] = {ROOT: (0, 0.0)}
    for node, (token, parent) in enumerate(zip(proposal.tokens, proposal.parents, strict=True)):
        if parent not in reached:
            continue
        p = laws.setdefault(parent, target(parent))
        entropy = float(torch.special.entr(p).sum())
        if float(p[token]) > min(epsilon, delta * float(torch.tensor(-entropy).exp())):
            depth, score = reached[parent]
            reached[node] = (depth + 1, score + float(p[token].log()))
            best = max(best, (*reached[node], node))
    path: list[int] = []
    node = best[2]
    while node != ROOT:
        path.append(node)
        node = proposal.parents[node]
    last = best[2]
    return path[::-1], draw(laws[last] if last in laws else target(last), draws)


def draw(p: Tensor, draws: torch.Generator) -> int:
    """A token from a distribution."""
    return int(torch.multinomial(p, 1, generator=draws))


def _uniform(draws: torch.Generator) -> float:
    return float(torch.rand((), generator=draws, dtype=torch.float64))
