"""Laws of sequences as exact teachers, and generators of sequences."""

from __future__ import annotations

from limbeck.diffusion.codebook import CodebookChain, TokenGenerator, circle
from limbeck.diffusion.discrete import Corruption, DiscreteSampler, MarkovChain, Rule, Scaled, chain
from limbeck.diffusion.masked import MaskedTransformer
from limbeck.diffusion.models import positive
from limbeck.errors import UserError
from limbeck.registry import ModelBlock, build, register


@register("model", gives={"concrete_score", "samples"}, exact=True)
def markov_chain(
    *,
    tokens: int = 4,
    length: int = 12,
    sharpness: float = 2.0,
    corruption: Corruption = "uniform",
    total: float = 6.0,
    seed: int = 0,
) -> MarkovChain:
    """A random Markov chain as an exact teacher of discrete diffusion: its concrete scores are in closed form.

    Args:
        tokens: of the vocabulary.
        length: of a sequence.
        sharpness: standard deviation of the logits that the chain is made of.
        corruption: ``uniform`` tokens for tokens, or a mask (``absorb``).
        total: corruption time of pure noise; the share ``e^-total`` of the tokens is then untouched.
        seed: of the logits.
    """
    positive("markov_chain", tokens=tokens, length=length, sharpness=sharpness, total=total)
    return chain(tokens, length, sharpness, seed, corruption, total).float()


@register("model", gives={"concrete_score", "samples"})
def masked_transformer(
    *,
    vocab_size: int,
    context: int,
    width: int = 96,
    layers: int = 3,
    heads: int = 4,
    total: float = 6.0,
) -> MaskedTransformer:
    """A small transformer that fills in masks, as the concrete score of discrete diffusion of text.

    Args:
        vocab_size: tokens of the vocabulary; the mask is one more.
        context: tokens of a sequence.
        width: of the hidden states.
        layers: of the transformer.
        heads: of each.
        total: corruption time of pure noise; the share ``e^-total`` of the tokens is then untouched.
    """
    sizes = {"vocab_size": vocab_size, "context": context, "width": width, "layers": layers, "heads": heads}
    positive("masked_transformer", total=total, **sizes)
    if width % heads:
        raise UserError(f"masked_transformer: width {width} must be a multiple of its {heads} heads")
    return MaskedTransformer(vocab_size, context, width, layers, heads, total)


@register("model", gives={"samples"})
def discrete_sampler(
    *, net: ModelBlock, steps: int = 8, rule: Rule = "euler", scaled: Scaled = "score"
) -> DiscreteSampler:
    """A sampler of a discrete diffusion model whose steps have coefficients and times that may learn (``lsd``).

    Args:
        net: the score network: the teacher's, or an exact teacher.
        steps: calls of the network for a sample.
        rule: of a step: ``euler``, ``tau_leaping``, or ``tweedie``, which is exact for one token.
        scaled: what a step's coefficient multiplies: the ``score``, or its logarithm (``log_score``).
    """
    positive("discrete_sampler", steps=steps)
    network = build("model", net)
    if not hasattr(network, "total"):
        raise UserError(
            f"discrete_sampler needs a model of concrete scores, such as markov_chain, and not '{net.name}'"
        )
    return DiscreteSampler(network, steps, rule, scaled)


@register("model", gives={"codes", "samples"}, exact=True)
def codebook_chain(*, tokens: int = 8, length: int = 6, sharpness: float = 1.5, seed: int = 0) -> CodebookChain:
    """A random Markov chain over points of a codebook, as an exact autoregressive teacher of image tokens.

    Args:
        tokens: codes, even on a circle.
        length: of a sequence.
        sharpness: standard deviation of the logits that the chain is made of.
        seed: of the logits.
    """
    positive("codebook_chain", tokens=tokens, length=length, sharpness=sharpness)
    return CodebookChain(circle(tokens), chain(tokens, length, sharpness, seed, "uniform", 6.0)).float()


@register("model", gives={"samples"})
def token_generator(
    *, tokens: int = 8, length: int = 6, width: int = 128, depth: int = 3, independent: bool = False
) -> TokenGenerator:
    """All tokens of a sequence in one call, as points that are taken for the nearest codes.

    Args:
        tokens: codes, as of ``codebook_chain``.
        length: of a sequence.
        width: of the hidden layers.
        depth: number of residual layers.
        independent: let a token see its own noise alone: a prediction of tokens that do not depend on one another.
    """
    positive("token_generator", tokens=tokens, length=length, width=width, depth=depth)
    return TokenGenerator(circle(tokens).float(), length, width, depth, independent=independent)
