import itertools
import math

import pytest
import torch

from limbeck.data.text import text
from limbeck.language.beams import bleu, search
from limbeck.language.generate import write
from limbeck.models.causal import causal_lm
from toolkit.enumerated import TableLM


@torch.no_grad()
def likeliest(model, prompt, steps, end):
    """All texts of up to ``steps`` tokens and their log-probabilities, best first."""
    found = {}
    for tokens in itertools.product(range(3), repeat=steps):
        cut = next((i + 1 for i, t in enumerate(tokens) if t == end), steps)
        total, row = 0.0, [*prompt]
        for token in tokens[:cut]:
            total += float(torch.log_softmax(model(torch.tensor([row]))[0, -1], -1)[token])
            row.append(token)
        found[tokens[:cut]] = total
    return sorted(found.items(), key=lambda each: -each[1])


@pytest.mark.parametrize("end", [None, 2])
def test_with_enough_beams_it_finds_the_likeliest_texts(end):
    model = TableLM(5, 2.0)
    tokens, mask, said = search(model, torch.tensor([[0], [1]]), 3, beams=27, context=4, end=end, length_penalty=0.0)
    for row in range(2):
        wanted = likeliest(model, [row], 3, end)[:5]
        for k, (best, total) in enumerate(wanted):
            assert tuple(tokens[row, k][mask[row, k]].tolist()) == best
            assert float(said[row, k].sum()) == pytest.approx(total, abs=1e-4)


def test_a_length_penalty_ranks_by_the_mean():
    model = TableLM(5, 2.0)
    tokens, mask, said = search(model, torch.tensor([[0]]), 3, beams=27, context=4, end=2, length_penalty=1.0)
    means = (said[0].sum(-1) / mask[0].sum(-1))[:15]  # so many texts there are; the other beams are impossible
    assert torch.equal(means, means.sort(descending=True).values)
    wanted = max(likeliest(model, [0], 3, 2), key=lambda each: each[1] / len(each[0]))
    assert tuple(tokens[0, 0][mask[0, 0]].tolist()) == wanted[0]


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_one_beam_is_greedy_and_more_are_no_worse_with_a_cache_and_padding(architecture):
    data = text(corpus="grammar", characters=3000, context=16)
    torch.manual_seed(0)
    model = causal_lm(
        architecture=architecture, hidden=16, layers=2, heads=2, vocab_size=data.spec.vocab_size, context=16
    ).eval()
    for p in model.parameters():
        p.data.mul_(3.0 if p.dim() > 1 else 1.0)
    prompts = data.train.batch(torch.arange(4))["input_ids"][:, :6]
    mask = torch.arange(6) < torch.tensor([6, 3, 1, 5])[:, None]
    greedy = write(model, prompts, 6, context=16, mask=mask, temperature=0.0)
    tokens, kept, said = search(model, prompts, 6, beams=1, context=16, mask=mask)
    assert torch.equal(tokens[:, 0], greedy.tokens) and kept.all()
    torch.testing.assert_close(said[:, 0], greedy.logprobs)
    _, _, wide = search(model, prompts, 6, beams=4, context=16, mask=mask)
    assert (wide[:, 0].sum(-1) >= said[:, 0].sum(-1) - 1e-4).all()
    alone = search(model, prompts[1:2, :3], 6, beams=4, context=16)[2]
    torch.testing.assert_close(alone[0], wide[1], rtol=1e-4, atol=1e-5)


def test_bleu_by_hand():
    assert bleu([1, 2, 3, 4], [1, 2, 3, 4]) == pytest.approx(1.0)
    assert bleu([5, 6], [1, 2]) == 0.0
    # 1-grams 2 of 3, 2-grams 1 of 2 (+1), no brevity penalty.
    assert bleu([1, 2, 9], [1, 2, 3], order=2) == pytest.approx(math.sqrt(2 / 3 * 2 / 3))
    short = bleu([1, 2], [1, 2, 3, 4], order=1)
    assert short == pytest.approx(math.exp(1 - 4 / 2))
    assert bleu([], [1]) == 0.0 and bleu([], []) == 1.0


def test_no_beam_is_refused():
    with pytest.raises(ValueError, match="beams"):
        search(TableLM(0), torch.tensor([[0]]), 3, beams=0, context=4)
