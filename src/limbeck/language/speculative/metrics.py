"""What a draft is worth: how much of it the target accepts, and how much faster the same text comes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import UserError
from limbeck.language.losses import cut, scored, shared_vocabulary
from limbeck.language.rollouts import prompts_of
from limbeck.language.speculative.decode import Decoded, TargetSession, speculate
from limbeck.language.speculative.drafters import ModelDrafter, Shape
from limbeck.language.speculative.exits import depth_of, exit_at, read_out, watched
from limbeck.language.speculative.verify import law, walk, walk_typical
from limbeck.losses import cross_entropy
from limbeck.metrics.base import Evaluation, Scores, evaluating, on_device
from limbeck.models.forward import forward
from limbeck.registry import register


@register(
    "metric",
    task={"language"},
    needs={"teacher"},
    better={
        "acceptance": "higher",
        "accepted_length": "higher",
        "calls_saved": "higher",
        "decode_speedup": "higher",
        "exactness": "higher",
        "assisted_speedup": "higher",
    },
    labels={
        "acceptance": ("Acceptance rate of a drafted token", "%"),
        "accepted_length": ("Tokens per forward of the target", ""),
        "calls_saved": ("Forwards of the target saved", "%"),
        "decode_speedup": ("Speed-up of decoding", "x"),
        "exactness": ("Greedy texts equal to the target's", "%"),
        "assisted_speedup": ("Speed-up of transformers' assisted generation", "x"),
    },
)
def speculative(
    evaluation: Evaluation,
    *,
    gamma: int = 4,
    width: int = 1,
    nodes: int = 16,
    temperature: float = 0.0,
    samples: int = 16,
    prompt: int | None = 16,
    tokens: int = 32,
    rows: int = 256,
    typical: bool = False,
    assisted: bool = False,
) -> Scores:
    """The model as the draft of its teacher, in speculative decoding of the test prompts, one text at a time.

    ``acceptance`` is the mean of ``sum_x min(p, q)`` over the test text, teacher-forced: the probability that a first
    drafted token stands (at temperature 1 where the decoding is greedy). ``accepted_length`` is tau: tokens per forward
    of the target, its own one included; ``calls_saved`` is 1 - 1/tau. ``decode_speedup`` is the wall-clock time of
    plain decoding over that with the draft, by the same code on this machine. ``exactness`` is the share of greedy
    texts that are the target's own, token by token; below 1 there is a fault (or, of ``typical``, its loss).

    Args:
        evaluation: the draft and its teacher.
        gamma: how many tokens are drafted ahead.
        width: candidates for each token; more than 1 drafts a tree.
        nodes: of the tree.
        temperature: of target and draft.
        samples: how many texts to write.
        prompt: tokens of plain text that are given; by default half a row.
        tokens: how many to write at most, as far as the context goes.
        rows: of the test text for the acceptance rate, at most.
        typical: Medusa's typical acceptance, which is faster and does not keep the target's distribution.
        assisted: measure transformers' own assisted generation too, for a draft that is a plain model of it.

    Raises:
        UserError: target or draft are no models that text can be decoded with, or an argument is not positive.
    """
    if min(gamma, width, nodes, samples, tokens, rows) < 1 or temperature < 0:
        raise UserError("speculative: gamma, width, nodes, samples, tokens, rows must be 1 or more, temperature >= 0")
    own = getattr(evaluation.model, "target", None)
    if own is None and evaluation.teacher is None:
        raise UserError("speculative: there is no teacher whose text the model could draft")
    target = own if own is not None else evaluation.teacher.module  # type: ignore[union-attr]
    shape = Shape(gamma, width, nodes, temperature)
    vocab = _shared(evaluation, target)
    with evaluating(evaluation.model), torch.no_grad():
        drafter = drafter_of(evaluation.model, target, shape, vocab)
        contest = Contest(target, drafter, vocab, temperature, typical)
        written = contest.run(prompts(evaluation, samples, prompt, tokens), evaluation.seed)
        values = written.values()
        rate = acceptance(evaluation, target, vocab, temperature or 1.0, rows)
        if assisted:
            values["assisted_speedup"] = _assisted(evaluation, target, gamma, samples, prompt, tokens)
    by_depth = written.by_depth(gamma)
    return Scores({"acceptance": rate, **values}, {"accepted_by_depth": by_depth, "target_calls": written.calls})


@register(
    "metric",
    task={"language"},
    better={
        "acceptance": "higher",
        "accepted_length": "higher",
        "calls_saved": "higher",
        "decode_speedup": "higher",
        "exactness": "higher",
    },
)
def self_speculative(
    evaluation: Evaluation,
    *,
    exit: int = 1,
    gamma: int = 4,
    width: int = 1,
    nodes: int = 16,
    temperature: float = 0.0,
    samples: int = 16,
    prompt: int | None = 16,
    tokens: int = 32,
    rows: int = 256,
) -> Scores:
    """The model's first layers as the draft of the whole model (self-speculative decoding); see ``speculative``.

    Args:
        evaluation: the model.
        exit: after how many layers the draft leaves.
        gamma: how many tokens are drafted ahead.
        width: candidates for each token; more than 1 drafts a tree.
        nodes: of the tree.
        temperature: of both.
        samples: how many texts to write.
        prompt: tokens of plain text that are given; by default half a row.
        tokens: how many to write at most, as far as the context goes.
        rows: of the test text for the acceptance rate, at most.

    Raises:
        UserError: the model has no such exit, or an argument is not positive.
    """
    if min(gamma, width, nodes, samples, tokens, rows) < 1 or temperature < 0:
        raise UserError("self_speculative: sizes must be 1 or more, temperature 0 or more")
    model = evaluation.model
    early = exit_at(model, exit)
    vocab = evaluation.spec.vocab_size if evaluation.spec is not None else None
    with evaluating(model), torch.no_grad():
        drafter = ModelDrafter(early, Shape(gamma, width, nodes, temperature), vocab)
        contest = Contest(model, drafter, vocab, temperature, typical=False)
        written = contest.run(prompts(evaluation, samples, prompt, tokens), evaluation.seed)
        rate = acceptance(replace(evaluation, model=early), model, vocab, temperature or 1.0, rows)
    return Scores({"acceptance": rate, **written.values()}, {"accepted_by_depth": written.by_depth(gamma)})


@register(
    "metric",
    task={"language"},
    better={"exit_nll": "lower"},
    labels={"exit_nll": ("Negative log-likelihood per token, mean of the early exits", "nats")},
)
def exits(evaluation: Evaluation, *, rows: int = 256) -> Scores:
    """Negative log-likelihood of the test text at each exit of the model: after every layer, by the same output layer.

    The details hold the curve over all layers, the last one's value at its end.

    Args:
        evaluation: the model.
        rows: of the test text, at most.

    Raises:
        UserError: the model has no layers to leave after, or the test text nothing to predict.
    """
    model = evaluation.model
    sums, count = torch.zeros(depth_of(model), dtype=torch.float64), 0
    for numbers in torch.arange(min(rows, len(evaluation.test))).split(evaluation.batch_size):
        batch = on_device(evaluation.test.batch(numbers), evaluation.device)
        labels = batch["labels"][:, 1:]
        with evaluating(model), torch.no_grad(), watched(model) as hidden:
            forward(model, batch)
            losses = [cross_entropy(read_out(model, h)[:, :-1], labels)[scored(labels)] for h in hidden]
        sums += torch.stack([each.double().sum().cpu() for each in losses])
        count += int(scored(labels).sum())
    if not count:
        raise UserError("exits: the test text has no token to predict")
    curve = (sums / count).tolist()
    return Scores({"exit_nll": sum(curve[:-1]) / max(len(curve) - 1, 1)}, {"nll_by_exit": curve})


def drafter_of(model: nn.Module, target: nn.Module, shape: Shape, vocab: int | None) -> Any:
    """The drafter that a model is: its own kind, or a language model.

    Raises:
        UserError: it is neither.
    """
    for module, what in ((target, "target"), *(() if hasattr(model, "drafter") else ((model, "draft"),))):
        if not hasattr(module, "get_output_embeddings") or not hasattr(module, "config"):
            raise UserError(f"speculative: the {what} {type(module).__name__} is no causal model of transformers")
    own: Any = getattr(model, "drafter", None)
    return ModelDrafter(model, shape, vocab) if own is None else own(target, shape, vocab)


def prompts(evaluation: Evaluation, samples: int, prompt: int | None, tokens: int) -> list[tuple[list[int], int]]:
    """Prompts evenly spread over the test text, and how many tokens each leaves room for.

    Raises:
        UserError: none leaves any.
    """
    source = evaluation.test
    found = []
    for row in torch.linspace(0, len(source) - 1, min(samples, len(source))).round().long().split(1):
        batch = source.batch(row)
        given, mask = prompts_of(batch, prompt)
        words = given[0][mask[0]].tolist()
        room = min(tokens, batch["input_ids"].shape[1] - len(words))
        if len(words) > 1 and room > 0:
            found.append((words, room))
    if not found:
        raise UserError("speculative: no prompt of the test text has two tokens and leaves room: set prompt")
    return found


@dataclass
class Written:
    """Sums over the texts of a contest."""

    tokens: int = 0
    calls: int = 0
    accepted: list[int] = field(default_factory=list)
    plain_seconds: float = 0.0
    draft_seconds: float = 0.0
    exact: int = 0
    texts: int = 0

    def values(self) -> dict[str, float]:
        """The numbers by name."""
        tau = self.tokens / self.calls
        return {
            "accepted_length": tau,
            "calls_saved": 1 - 1 / tau,
            "decode_speedup": self.plain_seconds / self.draft_seconds,
            "exactness": self.exact / self.texts,
        }

    def by_depth(self, gamma: int) -> list[float]:
        """Share of the calls whose first, second, ... drafted token stood."""
        return [sum(a >= depth for a in self.accepted) / self.calls for depth in range(1, gamma + 1)]


@dataclass
class Contest:
    """Decoding with a draft beside decoding without, text by text."""

    target: nn.Module
    drafter: Any
    vocab: int | None
    temperature: float
    typical: bool

    def run(self, prompts: list[tuple[list[int], int]], seed: int) -> Written:
        """Write all texts both ways."""
        sums, draws = Written(), torch.Generator().manual_seed(seed)
        words, room = prompts[0]
        for drafter in (None, self.drafter):  # the first calls allocate and choose kernels
            self._write(drafter, words, room, self.temperature, draws)
        for words, room in prompts:
            plain, seconds = _timed(partial(self._write, None, words, room, self.temperature, draws))
            done, drafted = _timed(partial(self._write, self.drafter, words, room, self.temperature, draws))
            sums.plain_seconds += seconds
            sums.draft_seconds += drafted
            sums.tokens += len(done.tokens)
            sums.calls += done.calls
            sums.accepted += done.accepted
            if self.temperature > 0:
                plain, done = (self._write(d, words, room, 0.0, draws) for d in (None, self.drafter))
            sums.exact += plain.tokens == done.tokens
            sums.texts += 1
        return sums

    def _write(self, drafter: Any, words: list[int], room: int, temperature: float, draws: torch.Generator) -> Decoded:
        looks_inside = drafter is not None and not isinstance(drafter, ModelDrafter)
        session = TargetSession(self.target, hidden=looks_inside, vocab_size=self.vocab)
        verify = walk_typical if self.typical and drafter is not None else walk
        return speculate(session, drafter, words, room, temperature=temperature, draws=draws, verify=verify)


def _timed(write: Callable[[], Decoded]) -> tuple[Decoded, float]:
    began = time.perf_counter()
    done = write()
    return done, time.perf_counter() - began


def acceptance(evaluation: Evaluation, target: nn.Module, vocab: int | None, temperature: float, rows: int) -> float:
    """Mean of ``sum_x min(p, q)`` over what the test text has labels for: 1 - TVD, the share of drafts that stand."""
    total, count = 0.0, 0
    for numbers in torch.arange(min(rows, len(evaluation.test))).split(evaluation.batch_size):
        batch = on_device(evaluation.test.batch(numbers), evaluation.device)
        theirs, own, labels = guesses(evaluation.model, target, batch)
        kept = scored(labels)
        p, q = (law(cut(each, vocab or each.shape[-1])[kept], temperature) for each in (theirs, own))
        total += float(torch.minimum(p, q).sum())
        count += int(kept.sum())
    if not count:
        raise UserError("speculative: the test text has no token to predict")
    return total / count


def guesses(model: nn.Module, target: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """The target's and the draft's logits for the same tokens of rows, and these tokens' labels.

    A draft on the target's features sees them one token late: the first tokens of a row are not for it to guess.
    """
    guess: Any = getattr(model, "first_guess", None)
    if guess is None:
        theirs, own = forward(target, batch).logits, forward(model, batch).logits
        return theirs[:, :-1], own[:, :-1], batch["labels"][:, 1:]
    found = forward(target, batch, output_hidden_states=True)
    own = guess(found.hidden_states, batch["input_ids"], target)
    count = own.shape[1]
    return found.logits[:, -count - 1 : -1], own, batch["labels"][:, -count:]


def _shared(evaluation: Evaluation, target: nn.Module) -> int | None:
    spec = evaluation.spec
    sizes = [getattr(getattr(m, "config", None), "vocab_size", None) for m in (target, evaluation.model)]
    theirs, own = (getattr(m, "tokenizer_hash", None) for m in (target, evaluation.model))
    known = [size for size in sizes if size]
    return shared_vocabulary(min(known), min(known), own, theirs, spec.vocab_size if spec else None) if known else None


def _assisted(evaluation: Evaluation, target: Any, gamma: int, samples: int, prompt: int | None, tokens: int) -> float:
    """Wall-clock time of transformers' greedy generation over that with the draft as its assistant."""
    draft: Any = evaluation.model
    if not hasattr(draft, "generation_config"):
        raise UserError("speculative: assisted generation is for a draft that is a model of transformers")
    draft.generation_config.num_assistant_tokens = gamma
    draft.generation_config.num_assistant_tokens_schedule = "constant"
    draft.generation_config.assistant_confidence_threshold = 0.0
    seconds = [0.0, 0.0]
    for words, room in prompts(evaluation, samples, prompt, tokens):
        given = torch.tensor([words], device=evaluation.device)
        asked = {"max_new_tokens": room, "min_new_tokens": room, "do_sample": False, "pad_token_id": 0}
        for place, extra in enumerate(({}, {"assistant_model": draft})):
            began = time.perf_counter()
            target.generate(given, attention_mask=torch.ones_like(given), **asked, **extra)
            seconds[place] += time.perf_counter() - began
    return seconds[0] / seconds[1]
