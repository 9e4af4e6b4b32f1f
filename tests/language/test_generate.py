import pytest
import torch
from torch import nn

from limbeck.language.generate import continue_tokens
from limbeck.models.causal import causal_lm


class Successor(nn.Module):
    """Likes token x + 1 after x, the others equally little."""

    def __init__(self, size=6, likes=50.0):
        super().__init__()
        self.size, self.likes, self.longest = size, likes, 0

    def forward(self, input_ids, attention_mask):
        self.longest = max(self.longest, input_ids.shape[1])
        return nn.functional.one_hot((input_ids + 1) % self.size, self.size).float() * self.likes


def test_the_likeliest_token_follows_each_time_and_the_context_is_kept():
    model = Successor()
    written = continue_tokens(model, torch.tensor([[0, 1], [3, 4]]), 5, context=3)
    assert written.tolist() == [[2, 3, 4, 5, 0], [5, 0, 1, 2, 3]]
    assert model.longest == 3


def test_samples_follow_the_models_distribution():
    model = Successor(size=3, likes=1.0)
    draws = continue_tokens(model, torch.zeros(4000, 1, dtype=torch.int64), 1, context=4, temperature=0.5).flatten()
    wanted = torch.softmax(torch.tensor([0.0, 1.0, 0.0]) / 0.5, 0)
    assert (torch.bincount(draws, minlength=3) / 4000 - wanted).abs().max() < 0.03


def test_a_row_is_the_same_alone_and_among_others_and_changes_with_the_seed():
    torch.manual_seed(0)
    model = causal_lm(hidden=16, layers=1, heads=2, vocab_size=11, context=8).eval()
    prompts, ids = torch.arange(12).view(3, 4) % 11, torch.tensor([5, 6, 7])

    def write(rows, seed=0):
        return continue_tokens(model, prompts[rows], 12, context=8, temperature=1.0, ids=ids[rows], seed=seed)

    among = write(torch.arange(3))
    assert torch.equal(write(torch.tensor([1]))[0], among[1])
    assert not torch.equal(write(torch.arange(3), seed=1), among)


def test_greedy_text_is_that_of_transformers_own_generation():
    torch.manual_seed(0)
    model = causal_lm(architecture="llama", hidden=16, layers=2, heads=2, vocab_size=11, context=16).eval()
    prompts = torch.arange(8).view(2, 4)
    own = continue_tokens(model, prompts, 8, context=16)
    theirs = model.generate(prompts, max_new_tokens=8, do_sample=False, attention_mask=torch.ones_like(prompts))
    assert torch.equal(own, theirs[:, 4:])


def test_tokens_beyond_the_tokenizer_are_never_written():
    assert continue_tokens(Successor(), torch.tensor([[3]]), 1, context=3, vocab_size=4).tolist() == [[0]]
    with pytest.raises(ValueError, match="temperature"):
        continue_tokens(Successor(), torch.tensor([[3]]), 1, context=3, temperature=-1.0)
