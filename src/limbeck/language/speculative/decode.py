"""Decoding one text with a draft, or without: how many tokens each forward of the target gave."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from limbeck.language.speculative.session import Session
from limbeck.language.speculative.verify import ROOT, Proposal, chain, draw, law, walk
from limbeck.models.forward import Signals

Walk = Callable[[Proposal, Callable[[int], Tensor], torch.Generator], tuple[list[int], int]]


class Drafter(Protocol):
    """What proposes tokens."""

    def begin(self, row: list[int], read: Signals) -> None:
        """Take the prompt, and what the target gave for all its tokens but the last."""
        ...

    def propose(self, row: list[int], room: int, draws: torch.Generator) -> Proposal:
        """Tokens after a row, at most ``room`` deep."""
        ...

    def accepted(self, read: Signals, kept: list[int]) -> None:
        """Take what the target gave, and which of the places it read stand now."""
        ...


class Verifier(Protocol):
    """The target: reads tokens and keeps those that stand. See :class:`TargetSession`."""

    def read(self, tokens: list[int], parents: list[int] | None = None) -> Signals:
        """Logits [N, V] after each token and whatever else a draft looks at."""
        ...

    def stand(self, nodes: list[int]) -> None:
        """Keep these of the tokens read."""
        ...


class TargetSession:
    """A transformers model as the verifier of one text.

    Args:
        module: the target.
        hidden: whether drafts look at its hidden states.
        vocab_size: cut its vocabulary to these.
    """

    def __init__(self, module: nn.Module, *, hidden: bool = False, vocab_size: int | None = None) -> None:
        self._session, self._hidden, self._vocab = Session(module), hidden, vocab_size
        self._device = next(module.parameters()).device

    def read(self, tokens: list[int], parents: list[int] | None = None) -> Signals:
        """``logits`` [N, V]; where asked for ``hidden_states``, a tuple of [N, d], the head's input last."""
        given = torch.tensor([tokens], device=self._device)
        extra: Any = {"output_hidden_states": True} if self._hidden else {}
        found = self._session.read(parents, input_ids=given, **extra)
        logits = found.logits[0, :, : self._vocab]
        if not self._hidden:
            return Signals(logits=logits)
        return Signals(logits=logits, hidden_states=tuple(h[0] for h in found.hidden_states))

    def stand(self, nodes: list[int]) -> None:
        """Keep these of the tokens read."""
        self._session.stand(nodes)


@dataclass
class Decoded:
    """A text and what it cost.

    Attributes:
        tokens: after the prompt.
        calls: forwards of the target, without the one that read the prompt.
        accepted: tokens that each call took from the draft.
    """

    tokens: list[int] = field(default_factory=list)
    calls: int = 0
    accepted: list[int] = field(default_factory=list)

    @property
    def length(self) -> float:
        """tau: mean tokens per forward of the target, its own one included."""
        return len(self.tokens) / max(self.calls, 1)


@torch.no_grad()
def speculate(
    target: Verifier,
    drafter: Drafter | None,
    prompt: list[int],
    tokens: int,
    *,
    temperature: float = 0.0,
    draws: torch.Generator | None = None,
    verify: Walk = walk,
    end: int | None = None,
) -> Decoded:
    """``tokens`` more tokens after a prompt, distributed as the target's own.

    Args:
        target: verifies.
        drafter: proposes; None decodes token by token.
        prompt: at least two tokens.
        tokens: how many to add.
        temperature: of the target; 0 takes its likeliest token.
        draws: where the randomness comes from.
        verify: :func:`walk`, or the lossy :func:`walk_typical`.
        end: the end-of-text token, after which nothing is added.

    Raises:
        ValueError: the prompt is too short, or the temperature is negative.
    """
    if len(prompt) < 2 or temperature < 0:
        raise ValueError(f"a prompt of {len(prompt)} tokens at temperature {temperature}: give 2 or more, and >= 0")
    draws = draws if draws is not None else torch.Generator().manual_seed(0)
    row, done = list(prompt), Decoded()
    first = target.read(row[:-1])
    target.stand(list(range(len(row) - 1)))
    if drafter is not None:
        drafter.begin(row, first)
    while len(done.tokens) < tokens:
        room = tokens - len(done.tokens) - 1
        proposal = drafter.propose(row, room, draws) if drafter is not None and room else chain([])
        # The first token read is the last one that stands, so that the nodes' numbers move by one.
        parents = [ROOT, *(parent + 1 for parent in proposal.parents)]
        read = target.read([row[-1], *proposal.tokens], parents if len(parents) > 1 else None)
        laws = law(read.logits, temperature).cpu()
        path, last = verify(proposal, lambda node, laws=laws: laws[node + 1], draws)  # type: ignore[misc]
        kept = [0, *(node + 1 for node in path)]
        target.stand(kept)
        if drafter is not None:
            drafter.accepted(read, kept)
        gained = [*(proposal.tokens[node] for node in path), last]
        row += gained
        done.tokens += gained
        done.calls += 1
        done.accepted.append(len(path))
        if end is not None and end in done.tokens:
            done.tokens = done.tokens[: done.tokens.index(end) + 1]
            break
    return done


def sampled(logits: Tensor, temperature: float, draws: torch.Generator) -> tuple[int, Tensor | None]:
    """A draft's token from logits [V], and the distribution it was drawn from (None for the likeliest)."""
    if temperature == 0:
        return int(logits.argmax()), None
    q = law(logits, temperature).cpu()
    return draw(q, draws), q
