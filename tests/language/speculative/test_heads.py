"""Drafts on features: their text is the target's, greedy and drawn, as chains and as trees."""

import itertools

import pytest
import torch
from scipy.stats import chisquare

from limbeck.language.speculative.decode import TargetSession, speculate
from limbeck.language.speculative.drafters import Shape
from limbeck.language.speculative.models import eagle_draft, falcon_draft, medusa_heads
from limbeck.models.causal import causal_lm


def network(seed=0, vocab_size=9):
    torch.manual_seed(seed)
    sizes = {"hidden": 16, "layers": 2, "heads": 2, "vocab_size": vocab_size, "context": 40}
    made = causal_lm(architecture="llama", tie=False, **sizes).eval()
    for p in made.parameters():
        p.data.mul_(4.0 if p.dim() > 1 else 1.0)
    return made


def drafts(vocab_size=9):
    torch.manual_seed(3)
    heads = medusa_heads(hidden=16, vocab_size=vocab_size, count=3)
    falcon = falcon_draft(hidden=16, heads=2, block=2)
    return [heads, eagle_draft(hidden=16, heads=2), eagle_draft(hidden=16, heads=2, fused=3), falcon]


@pytest.mark.parametrize("which", [0, 1, 2, 3])
@pytest.mark.parametrize("shape", [Shape(3), Shape(3, width=2, nodes=6)])
@torch.no_grad()
def test_greedy_text_is_the_targets_own(which, shape):
    target, prompt = network(), [1, 2, 3]
    wanted = speculate(TargetSession(target), None, prompt, 12).tokens
    done = speculate(
        TargetSession(target, hidden=True), drafts()[which].eval().drafter(target, shape, None), prompt, 12
    )
    assert done.tokens == wanted and len(set(wanted)) > 3


@pytest.mark.parametrize(("which", "shape"), [(0, Shape(2, width=2, nodes=5)), (1, Shape(2, temperature=1.0))])
@torch.no_grad()
def test_drawn_text_is_distributed_as_the_targets_own(which, shape):
    """A chi-square test over all texts of two tokens, of real networks with their caches."""
    target, draft, prompt = network(vocab_size=4), drafts(4)[which].eval(), [1, 2]
    draws, counts = torch.Generator().manual_seed(5), dict.fromkeys(itertools.product(range(4), repeat=2), 0)
    calls, runs = 0, 150
    for _ in range(runs):
        session = TargetSession(target, hidden=True)
        done = speculate(session, draft.drafter(target, shape, None), prompt, 2, temperature=1.0, draws=draws)
        counts[tuple(done.tokens)] += 1
        calls += done.calls
    laws = {a: target(input_ids=torch.tensor([[1, 2, a]])).logits[0].double().softmax(-1) for a in range(4)}
    wanted = {(a, b): float(laws[a][1, a] * laws[a][2, b]) * runs for a, b in counts}
    often = [t for t in counts if wanted[t] >= 5]
    found = [counts[t] for t in often] + [runs - sum(counts[t] for t in often)]
    hoped = [wanted[t] for t in often] + [runs - sum(wanted[t] for t in often)]
    assert len(often) > 4 and calls < 1.95 * runs
    assert chisquare(found, hoped).pvalue > 0.01


@torch.no_grad()
def test_what_stands_is_read_with_the_targets_features_and_not_with_the_drafts():
    """A drafter that has gone through refusals proposes what a fresh one proposes for the same row."""
    target, draft = network(), drafts()[1].eval()
    row = [1, 2, 3]
    session, used = TargetSession(target, hidden=True), draft.drafter(target, Shape(3, 2, 6), None)
    proposals = []

    def remember(proposal, law, draws):
        proposals.append((list(row), proposal))
        node = proposal.children(-1)[-1] if proposal.tokens else None  # one stands, whatever the target says
        path = [] if node is None else [node]
        row.extend([proposal.tokens[n] for n in path] + [4])
        return path, 4

    speculate(session, used, list(row), 8, verify=remember)
    assert len(proposals) > 2
    for words, proposal in proposals:
        fresh, other = draft.drafter(target, Shape(3, 2, 6), None), TargetSession(target, hidden=True)
        fresh.begin(words, other.read(words[:-1]))
        depth = max(proposal.depths, default=0)
        if depth == 3:
            again = fresh.propose(words, 3, torch.Generator())
            assert (list(again.tokens), list(again.parents)) == (list(proposal.tokens), list(proposal.parents))
