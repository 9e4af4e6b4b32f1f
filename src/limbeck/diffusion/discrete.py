"""Discrete diffusion of sequences: a Markov chain as an exact teacher, and samplers whose steps may learn.

A token is corrupted by a jump process with generator ``G``, for a time that grows from 0 to ``total``: under
``uniform`` noise it jumps to any of the V tokens alike, under ``absorb`` to a mask, the state V, from which it does not
return. For both ``G^2 = -G``, so that the transition over a time ``d`` is ``P(d) = I + (1 - e^-d) G``, and backwards
``P(-d)``. The *concrete score* of a sequence is ``s_iv = p_t(x with x_i = v) / p_t(x)``.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from limbeck.engine import noise as numbers

Corruption = Literal["uniform", "absorb"]
Rule = Literal["euler", "tau_leaping", "tweedie"]
Scaled = Literal["score", "log_score"]
LEAST = 1e-12


def generator(kind: Corruption, tokens: int) -> Tensor:
    """``G`` [S, S], float64: the rate from a row's state to a column's."""
    if kind == "uniform":
        return torch.full((tokens, tokens), 1 / tokens, dtype=torch.float64) - torch.eye(tokens, dtype=torch.float64)
    made = -torch.eye(tokens + 1, dtype=torch.float64)
    made[:, tokens] += 1
    return made


def transition(rates: Tensor, time: Tensor | float) -> Tensor:
    """``P(time)`` [..., S, S]; of a negative time its inverse."""
    time = torch.as_tensor(time, dtype=rates.dtype, device=rates.device)
    eye = torch.eye(len(rates), dtype=rates.dtype, device=rates.device)
    return eye - torch.expm1(-time)[..., None, None] * rates


class MarkovChain(nn.Module):
    """A chain over tokens as a law of sequences, whose concrete score and one-token posteriors are exact.

    The corrupted law is that of a hidden Markov model: the score follows from its forward and backward messages.

    Args:
        start: law of the first token, [V].
        steps: law of a token after another, [V, V].
        length: of a sequence.
        corruption: how tokens are corrupted.
        total: corruption time at t = 1; the share ``e^-total`` of tokens is then untouched.
    """

    start: Tensor
    steps: Tensor
    rates: Tensor

    def __init__(
        self, start: Tensor, steps: Tensor, length: int, corruption: Corruption = "uniform", total: float = 6.0
    ) -> None:
        super().__init__()
        self.length = length
        self.corruption: Corruption = corruption
        self.total = total
        self.register_buffer("start", start)
        self.register_buffer("steps", steps)
        self.register_buffer("rates", generator(corruption, len(start)).to(start))

    @property
    def tokens(self) -> int:
        """How many there are."""
        return len(self.start)

    @property
    def states(self) -> int:
        """The tokens, and the mask if there is one."""
        return len(self.rates)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sequence."""
        return (self.length,)

    def forward(self, x: Tensor, time: Tensor | float) -> Tensor:
        """Logarithm of the concrete score at corruption time ``time``, [B, L, S], of sequences int64 [B, L]."""
        made = self.messages(x, time) @ transition(self.rates, time)[: self.tokens]
        own = made.gather(2, x[..., None])
        return made.clamp_min(LEAST).log() - own.clamp_min(LEAST).log()

    def messages(self, x: Tensor, time: Tensor | float) -> Tensor:
        """The law of each clean token given all *other* corrupted ones, [B, L, V]."""
        seen = transition(self.rates, time)[: self.tokens].T[x]
        ahead, behind = [self.start.expand(len(x), -1)], [torch.ones_like(seen[:, 0])]
        for i in range(self.length - 1):
            ahead.append(_normal((ahead[-1] * seen[:, i]) @ self.steps))
            behind.append(_normal((behind[-1] * seen[:, self.length - 1 - i]) @ self.steps.T))
        return _normal(torch.stack([a * b for a, b in zip(ahead, reversed(behind), strict=True)], dim=1))

    def log_prob(self, x: Tensor) -> Tensor:
        """Log probability [B] of clean sequences, int64 [B, L]."""
        return self.start[x[:, 0]].log() + self.steps[x[:, :-1], x[:, 1:]].log().sum(1)

    def draw(self, ids: Tensor, key: object) -> Tensor:
        """The exact samples with these numbers (int64 [B]) of the endless list that ``key`` names, int64 [B, L]."""
        u = numbers.uniform(ids, (self.length,), (key, "chain")).to(self.start)
        x = [inverse(self.start.expand(len(ids), -1), u[:, 0])]
        for i in range(1, self.length):
            x.append(inverse(self.steps[x[-1]], u[:, i]))
        return torch.stack(x, dim=1)

    def entropy(self) -> float:
        """Of a sequence, in nats."""
        law, found = self.start.double(), 0.0
        found -= float((law * law.log()).sum())
        for _ in range(self.length - 1):
            found -= float((law[:, None] * self.steps.double() * self.steps.double().log()).sum())
            law = law @ self.steps.double()
        return found

    def pairs(self, gap: int = 1) -> Tensor:
        """The exact law of two tokens so far apart, averaged over places, [V, V]."""
        law, found = self.start, torch.zeros_like(self.steps)
        onward = torch.linalg.matrix_power(self.steps, gap)
        for _ in range(self.length - gap):
            found = found + law[:, None] * onward
            law = law @ self.steps
        return found / (self.length - gap)


def chain(tokens: int, length: int, sharpness: float, seed: int, corruption: Corruption, total: float) -> MarkovChain:
    """A chain with random logits of that standard deviation."""
    logits = sharpness * numbers.normal(torch.arange(tokens + 1), (tokens,), (seed, "markov chain")).double()
    return MarkovChain(logits[0].softmax(0), logits[1:].softmax(1), length, corruption, total)


def step_law(score: Tensor, x: Tensor, now: Tensor | float, then: Tensor | float, rates: Tensor, rule: Rule) -> Tensor:
    """The law [B, L, S] of every token after a step back from corruption time ``now`` to ``then``.

    Args:
        score: logarithm of the concrete score, [B, L, S].
        x: where the tokens are, int64 [B, L].
        now: corruption time.
        then: an earlier one.
        rates: ``G``.
        rule: ``euler`` holds the reverse rates still and takes one jump at most, ``tau_leaping`` counts jumps by
            Poisson's law and drops those of several at once (arXiv 2205.14987), and ``tweedie`` is the exact law of one
            token while the others stay (arXiv 2310.16834, theorem 4.2).
    """
    ratio = score.exp()
    here = nn.functional.one_hot(x, score.shape[-1]).to(ratio)
    if rule == "tweedie":
        span = torch.as_tensor(now - then, dtype=ratio.dtype, device=ratio.device)
        back = (ratio @ transition(rates, -span)).clamp_min(0)
        return _normal(back * transition(rates, span).T[x])
    jumps = ratio * rates.T[x] * (1 - here) * (now - then)
    away = jumps.sum(-1, keepdim=True)
    if rule == "euler":
        return jumps / away.clamp_min(1) + here * (1 - away).clamp_min(0)
    leap = jumps * torch.exp(-away)
    return leap + here * (1 - leap.sum(-1, keepdim=True))


def inverse(law: Tensor, u: Tensor) -> Tensor:
    """The state where the cumulative ``law`` [..., S] passes ``u`` [...], int64."""
    whole = law.cumsum(-1)
    return (whole < (u * whole[..., -1])[..., None]).sum(-1).clamp_max(law.shape[-1] - 1)


def log_linear(position: Tensor, total: float) -> Tensor:
    """Corruption times at positions t in [0, 1]: the share of tokens kept falls linearly to ``e^-total`` at 1."""
    return -torch.log1p(-position * (1 - math.exp(-total)))


class DiscreteSampler(nn.Module):
    """Sequences in a few steps of a score network, each step with a coefficient and a share of the time of its own.

    Args:
        net: gives logarithms of concrete scores, as :class:`MarkovChain` does.
        steps: calls of the network.
        rule: of a step, see :func:`step_law`.
        scaled: what a coefficient multiplies: the score, which is to speed the jumps up or down, or its logarithm,
            which sharpens or blurs them.
    """

    def __init__(self, net: nn.Module, steps: int, rule: Rule = "euler", scaled: Scaled = "score") -> None:
        super().__init__()
        self.net = net.requires_grad_(False)
        self.rule: Rule = rule
        self.scaled: Scaled = scaled
        self.coefficients = nn.Parameter(torch.ones(steps))
        self.increments = nn.Parameter(torch.zeros(steps))

    @property
    def nfe(self) -> int:
        """Network evaluations of a sample."""
        return len(self.coefficients)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample."""
        return tuple(self.net.shape)  # type: ignore[arg-type]

    @property
    def draws(self) -> int:
        """How many independent draws of noise a sample takes."""
        return self.nfe + 1

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Of the noise of one sample."""
        return (self.draws, *self.shape)

    def times(self) -> Tensor:
        """The corruption times of the steps, falling to 0: [steps + 1]."""
        rest = 1 - self.increments.softmax(0).cumsum(0)[:-1]
        return log_linear(torch.cat([rest.new_ones(1), rest, rest.new_zeros(1)]), self.net.total)  # type: ignore[arg-type]

    def first(self, u: Tensor) -> Tensor:
        """Sequences of pure noise, int64 [B, L], from uniform numbers [B, L]."""
        net: MarkovChain = self.net  # type: ignore[assignment]
        if net.corruption == "absorb":
            return torch.full_like(u, net.tokens, dtype=torch.long)
        return (u * net.tokens).long().clamp_max(net.tokens - 1)

    def scale(self, score: Tensor, x: Tensor, k: int) -> Tensor:
        """The logarithm of the score [B, L, S] with the coefficient of step ``k``; that of staying is 0."""
        coefficient = self.coefficients[k].clamp_min(1e-3).to(score)
        if self.scaled == "log_score":
            return coefficient * score
        stays = nn.functional.one_hot(x, score.shape[-1]).to(score)
        return score + (1 - stays) * coefficient.log()

    def law(self, score: Tensor, x: Tensor, k: int, times: Tensor) -> Tensor:
        """The law [B, L, S] of every token after step ``k``, from the scaled score; the last step leaves no mask."""
        net: MarkovChain = self.net  # type: ignore[assignment]
        made = step_law(score, x, times[k], times[k + 1], net.rates, self.rule)
        if k == self.nfe - 1 and net.corruption == "absorb":
            made = torch.cat([made[..., :-1] + LEAST, torch.zeros_like(made[..., -1:])], dim=-1)
            made = made / made.sum(-1, keepdim=True)
        return made

    def forward(self, noise: Tensor) -> Tensor:
        """Sequences int64 [B, L] from standard normal noise [B, *noise_shape]."""
        u = torch.special.ndtr(noise)
        x, times = self.first(u[:, 0]), self.times()
        for k in range(self.nfe):
            score = self.scale(self.net(x, times[k]), x, k)
            x = inverse(self.law(score, x, k, times), u[:, k + 1])
        return x

    def example_inputs(self, batch_size: int) -> tuple[Tensor]:
        """Arguments for one call."""
        return (torch.zeros(batch_size, *self.noise_shape),)


def _normal(law: Tensor) -> Tensor:
    return law / law.sum(-1, keepdim=True).clamp_min(LEAST)
