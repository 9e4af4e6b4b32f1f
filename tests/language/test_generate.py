import pytest
import torch
from torch import nn

from limbeck.language.generate import continue_tokens, write
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


# -- unequal prompts, caches, ends -------------------------------------------------------------------------------------


def network(architecture="llama", seed=0, vocab=11, context=24):
    torch.manual_seed(seed)
    return causal_lm(architecture=architecture, hidden=16, layers=2, heads=2, vocab_size=vocab, context=context).eval()


def prompts():
    tokens = torch.arange(15).view(3, 5) % 11
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]])
    return tokens * mask, mask


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_the_cache_changes_no_token_of_rows_of_unlike_length(architecture):
    model, (tokens, mask) = network(architecture), prompts()

    def written():
        return write(model, tokens, 12, mask=mask, context=24, key=(3,))

    cached = written()
    model.config.use_cache = False
    anew = written()
    assert torch.equal(cached.tokens, anew.tokens)
    torch.testing.assert_close(cached.logprobs, anew.logprobs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_padded_row_is_continued_as_if_it_were_alone(architecture):
    model, (tokens, mask) = network(architecture), prompts()
    ids = torch.tensor([4, 5, 6])
    among = write(model, tokens, 10, mask=mask, context=24, ids=ids, key=(1,))
    for row in range(3):
        alone = write(model, tokens[row, mask[row].bool()][None], 10, context=24, ids=ids[row : row + 1], key=(1,))
        assert torch.equal(alone.tokens[0], among.tokens[row])


def test_rows_that_outgrow_the_context_go_on_with_its_last_tokens():
    model, (tokens, mask) = network(context=8), prompts()
    cached = write(model, tokens, 10, mask=mask, context=8, temperature=0.0)
    for row in range(3):
        text = tokens[row, mask[row].bool()]
        for step in range(10):
            token = model(input_ids=text[None, -8:]).logits[0, -1].argmax()
            assert token == cached.tokens[row, step]
            text = torch.cat([text, token[None]])


def test_the_log_probabilities_are_those_the_tokens_were_drawn_with():
    model, (tokens, mask) = network(), prompts()
    found = write(model, tokens, 6, mask=mask, context=24, temperature=0.7)
    for row in range(3):
        text = tokens[row, mask[row].bool()]
        for step in range(6):
            law = torch.log_softmax(model(input_ids=text[None]).logits[0, -1].double() / 0.7, -1)
            token = found.tokens[row, step]
            assert abs(float(law[token] - found.logprobs[row, step])) < 1e-4
            text = torch.cat([text, token[None]])


def test_a_row_ends_with_its_end_of_text():
    found = write(Successor(), torch.tensor([[0], [3]]), 9, context=20, temperature=0.0, end=5)
    assert found.tokens.tolist() == [[1, 2, 3, 4, 5], [4, 5, 0, 0, 0]]
    assert found.mask.tolist() == [[True] * 5, [True, True, False, False, False]]
    assert (found.logprobs[1, 2:] == 0).all()


def test_a_mixture_is_drawn_from_by_its_shares():
    one, two = Successor(size=3, likes=50.0), Successor(size=3, likes=-50.0)
    draws = write({one: 0.3, two: 0.7}, torch.zeros(4000, 1, dtype=torch.int64), 1, context=4).tokens.flatten()
    # The first always says 1; the second says 0 or 2, equally often.
    share = torch.bincount(draws, minlength=3) / 4000
    assert (share - torch.tensor([0.35, 0.3, 0.35])).abs().max() < 0.03


def test_nucleus_sampling_leaves_out_the_tail():
    class Fixed(nn.Module):
        def forward(self, input_ids, attention_mask):
            return torch.tensor([0.5, 0.3, 0.15, 0.05]).log().expand(*input_ids.shape, 4)

    draws = write(Fixed(), torch.zeros(4000, 1, dtype=torch.int64), 1, context=4, top_p=0.75).tokens.flatten()
    share = torch.bincount(draws, minlength=4) / 4000
    assert (share - torch.tensor([0.625, 0.375, 0.0, 0.0])).abs().max() < 0.03
    with pytest.raises(ValueError, match="top_p"):
        write(Fixed(), torch.zeros(1, 1, dtype=torch.int64), 1, context=4, top_p=0.0)


def test_an_empty_prompt_is_refused():
    with pytest.raises(ValueError, match="prompt without a token"):
        write(Successor(), torch.zeros(2, 1, dtype=torch.int64), 1, context=4, mask=torch.tensor([[1], [0]]))
