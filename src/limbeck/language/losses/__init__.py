"""Losses of language models, as pure functions on tensors: one value for each token, before any mask or mean.

:mod:`~limbeck.language.losses.divergence` compares distributions over one vocabulary,
:mod:`~limbeck.language.losses.unlike` over two, :mod:`~limbeck.language.losses.sampled` estimates from drawn tokens;
:mod:`~limbeck.language.losses.selectors` chooses the tokens that count, :mod:`~limbeck.language.losses.reduction`
averages them, and :mod:`~limbeck.language.losses.vocabulary` says what two models' logits share.
"""

from limbeck.language.losses.divergence import (
    Divergence,
    alpha_divergence,
    chi_squared,
    divergence,
    f_divergence,
    forward_kl,
    generalised_jsd,
    jeffreys,
    reverse_kl,
    skew_forward_kl,
    skew_reverse_kl,
    squared_hellinger,
    tempered_divergence,
    token_divergence,
    total_variation,
    truncated_divergence,
)
from limbeck.language.losses.reduction import Reduction, scored, shift, token_term
from limbeck.language.losses.sampled import sampled_kl, score_gradient
from limbeck.language.losses.selectors import entropy, select, token_scores
from limbeck.language.losses.unlike import sorted_l1, uld
from limbeck.language.losses.vocabulary import cut, shared_vocabulary

__all__ = [
    "Divergence",
    "Reduction",
    "alpha_divergence",
    "chi_squared",
    "cut",
    "divergence",
    "entropy",
    "f_divergence",
    "forward_kl",
    "generalised_jsd",
    "jeffreys",
    "reverse_kl",
    "sampled_kl",
    "score_gradient",
    "scored",
    "select",
    "shared_vocabulary",
    "shift",
    "skew_forward_kl",
    "skew_reverse_kl",
    "sorted_l1",
    "squared_hellinger",
    "tempered_divergence",
    "token_divergence",
    "token_scores",
    "token_term",
    "total_variation",
    "truncated_divergence",
    "uld",
]
