"""The rule is exact: what is accepted or drawn in its place follows the target, whatever is proposed."""

import itertools
import math

import pytest
import torch
from scipy.stats import chisquare

from limbeck.language.speculative.decode import sampled, speculate
from limbeck.language.speculative.drafters import Shape, Tree, grow
from limbeck.language.speculative.verify import ROOT, Proposal, accept, chain, draw, law, walk, walk_typical
from limbeck.models.forward import Signals

V = 5


def tables(seed):
    """Next-token logits of every text of at most two tokens after the prompt."""
    rng = torch.Generator().manual_seed(seed)
    texts = [t for n in range(3) for t in itertools.product(range(V), repeat=n)]
    return {t: 1.5 * torch.randn(V, generator=rng) for t in texts}


class Table:
    """A target, or a drafter, that looks its distributions up."""

    def __init__(self, table, prompt):
        self.table, self.row, self.prompt = table, [], len(prompt)
        self.tried = []

    def after(self, text):
        return self.table.get(tuple(text[self.prompt :]), torch.zeros(V))

    def read(self, tokens, parents=None):
        parents = list(range(-1, len(tokens) - 1)) if parents is None else parents
        self.tried = []
        for token, parent in zip(tokens, parents, strict=True):
            self.tried.append((self.row if parent == -1 else self.tried[parent]) + [token])
        return Signals(logits=torch.stack([self.after(text) for text in self.tried]))

    def stand(self, nodes):
        self.row = self.tried[nodes[-1]]


class TableDrafter(Table):
    def __init__(self, table, prompt, kind):
        super().__init__(table, prompt)
        self.kind = kind

    def begin(self, row, read):
        pass

    def accepted(self, read, kept):
        pass

    def propose(self, row, room, draws):
        if self.kind == "chain":
            tokens, drawn = [], []
            for _ in range(min(2, room)):
                token, q = sampled(self.after([*row, *tokens]), 1.0, draws)
                tokens.append(token)
                drawn.append(q)
            return chain(tokens, drawn)
        if self.kind == "drawn tree":
            return self.without_replacement(row, min(2, room), draws)

        def text(tree, node):
            return [] if node == ROOT else [*text(tree, tree.parents[node]), tree.tokens[node]]

        def expand(tree, front):
            return torch.stack([self.after(row + text(tree, node)).log_softmax(-1) for node in front])

        return grow(self.after(row).log_softmax(-1), expand, Shape(2, 2, 5), min(2, room))

    def without_replacement(self, row, depth, draws):
        """Two candidates for each token, the second drawn from what the first leaves."""
        tokens, parents, drawn = [], [], []
        level = [(ROOT, row)]
        for _ in range(depth):
            below = []
            for node, text in level:
                q = law(self.after(text), 1.0)
                for _ in range(2):
                    token = draw(q, draws)
                    tokens.append(token)
                    parents.append(node)
                    drawn.append(q)
                    below.append((len(tokens) - 1, [*text, token]))
                    q = q.clone()
                    q[token] = 0
                    q = q / q.sum()
            level = below
        return Proposal(tokens, parents, drawn)


def exact(table):
    """The probability of each text of three tokens."""
    laws = {t: torch.softmax(v.double(), -1) for t, v in table.items()}
    texts = list(itertools.product(range(V), repeat=3))
    return texts, [float(laws[()][a] * laws[(a,)][b] * laws[(a, b)][c]) for a, b, c in texts]


@pytest.mark.parametrize("kind", ["chain", "drawn tree", "tree"])
def test_what_is_written_is_distributed_as_the_targets_own_text(kind):
    """A chi-square test over all texts of three tokens."""
    prompt, table, other = [0, 1], tables(0), tables(1)
    texts, wanted = exact(table)
    draws = torch.Generator().manual_seed(7)
    counts = dict.fromkeys(texts, 0)
    calls, runs = 0, 500
    for _ in range(runs):
        done = speculate(
            Table(table, prompt), TableDrafter(other, prompt, kind), prompt, 3, temperature=1.0, draws=draws
        )
        counts[tuple(done.tokens)] += 1
        calls += done.calls
    assert calls < 2.7 * runs, "the test says nothing: hardly any proposal stood"
    assert _p_value(counts, texts, wanted) > 0.01


def _p_value(counts, texts, wanted):
    """Texts too rare for the test are counted together."""
    runs = sum(counts.values())
    rare = [t for t, p in zip(texts, wanted, strict=True) if p * runs < 5]
    found = [counts[t] for t in texts if t not in rare] + [sum(counts[t] for t in rare)]
    hoped = [p * runs for t, p in zip(texts, wanted, strict=True) if t not in rare]
    return chisquare(found, [*hoped, runs - sum(hoped)]).pvalue


def test_the_chi_square_test_sees_a_wrong_rule():
    """Accepting what the draft says half the time too often is found out."""
    table, other, draws = tables(0), tables(1), torch.Generator().manual_seed(7)
    texts, wanted = exact(table)

    def careless(proposal, target, draws):
        path, last = walk(proposal, target, draws)
        if proposal.tokens and not path and float(torch.rand((), generator=draws)) < 0.5:
            return [0], draw(target(0), draws)
        return path, last

    counts, prompt = dict.fromkeys(texts, 0), [0, 1]
    for _ in range(400):
        drafter = TableDrafter(other, prompt, "chain")
        done = speculate(Table(table, prompt), drafter, prompt, 3, temperature=1.0, draws=draws, verify=careless)
        counts[tuple(done.tokens)] += 1
    assert _p_value(counts, texts, wanted) < 1e-4


def test_one_candidate_is_accepted_and_replaced_so_that_the_target_is_met_exactly():
    """Summed over the candidates and both outcomes in float64."""
    p, q = (
        torch.softmax(torch.randn(V, dtype=torch.float64, generator=torch.Generator().manual_seed(s)), -1)
        for s in (0, 1)
    )
    found = torch.zeros(V, dtype=torch.float64)
    accepted = 0.0
    for x in range(V):
        share = min(1.0, float(p[x] / q[x]))
        stands, _ = accept(p, x, q, share - 1e-9)
        refused, rest = accept(p, x, q, min(share + 1e-9, 1.0))
        assert stands and (not refused or share == 1)
        found[x] += q[x] * share
        found += q[x] * (1 - share) * rest
        accepted += float(q[x]) * share
    torch.testing.assert_close(found, p)
    assert math.isclose(accepted, float(torch.minimum(p, q).sum())), "the acceptance is the shared mass, 1 - TVD"


def test_a_chosen_candidate_leaves_the_others_in_proportion():
    p = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    stands, rest = accept(p, 0, None, 0.6)
    assert not stands
    torch.testing.assert_close(rest, torch.tensor([0.0, 0.6, 0.4], dtype=torch.float64))


def test_greedy_accepts_the_likeliest_alone():
    laws = {ROOT: law(torch.tensor([0.0, 3.0, 1.0]), 0.0), 1: law(torch.tensor([2.0, 0.0, 0.0]), 0.0)}
    proposal = Proposal([0, 1, 2], [ROOT, ROOT, 1], [None] * 3)
    assert proposal.children(ROOT) == [0, 1] and proposal.depths == [1, 1, 2]
    assert walk(proposal, laws.__getitem__, torch.Generator()) == ([1], 0)


def test_typical_acceptance_takes_the_longest_path_of_tokens_that_are_likely_enough():
    even, sure = (
        torch.full((4,), 0.25, dtype=torch.float64),
        torch.tensor([0.97, 0.01, 0.01, 0.01], dtype=torch.float64),
    )
    laws = {ROOT: even, 0: sure, 1: even, 3: sure}
    proposal = Proposal([2, 3, 1, 1, 0], [ROOT, ROOT, 0, 1, 3], [None] * 5)
    # Node 2 (p = 0.01 where the target is sure) falls; 1, 3 and 4 stand.
    path, last = walk_typical(proposal, lambda n: laws.get(n, sure), torch.Generator().manual_seed(0), epsilon=0.3)
    assert path == [1, 3, 4] and 0 <= last < 4
    assert walk_typical(proposal, lambda n: laws.get(n, sure), torch.Generator(), epsilon=0.99, delta=9.0)[0] == []


def test_a_tree_keeps_the_most_confident_nodes_with_their_parents():
    """Against all paths of two tokens, sorted by their joint probability."""
    rng = torch.Generator().manual_seed(3)
    first = torch.randn(V, generator=rng).log_softmax(-1)
    after = torch.randn(V, V, generator=rng).log_softmax(-1)

    def expand(tree: Tree, front):
        return torch.stack([after[tree.tokens[node]] for node in front])

    found = grow(first, expand, Shape(2, V, 7), 2)
    every = [((a,), float(first[a])) for a in range(V)]
    every += [((a, b), float(first[a] + after[a, b])) for a in range(V) for b in range(V)]
    wanted = {path for path, _ in sorted(every, key=lambda item: -item[1])[:7]}

    def path(node):
        return () if node == ROOT else (*path(found.parents[node]), found.tokens[node])

    assert {path(node) for node in range(7)} == wanted
    assert all(parent < node for node, parent in enumerate(found.parents))
