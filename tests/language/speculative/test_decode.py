import pytest
import torch

from limbeck.language.speculative.decode import TargetSession, speculate
from limbeck.language.speculative.drafters import ModelDrafter, Shape
from limbeck.language.speculative.session import Session
from limbeck.language.speculative.verify import ROOT
from limbeck.models.causal import causal_lm


def network(seed, architecture="llama", hidden=16, layers=2):
    torch.manual_seed(seed)
    sizes = {"hidden": hidden, "layers": layers, "heads": 2, "vocab_size": 9, "context": 40}
    made = causal_lm(architecture=architecture, tie=False, **sizes).eval()
    for p in made.parameters():
        p.data.mul_(3.0 if p.dim() > 1 else 1.0)  # surer than networks start, so that the likeliest token is clear
    return made


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@torch.no_grad()
def test_a_tree_is_read_as_each_of_its_paths_would_be(architecture):
    """Also after some of it was refused, and when it is read in two goes."""
    model = network(0, architecture)
    session = Session(model)
    session.read(input_ids=torch.tensor([[1, 2, 3]]))
    session.stand([0, 1, 2])
    session.read([ROOT, ROOT, 0], input_ids=torch.tensor([[4, 5, 6]]))
    found = session.read([2, 1], input_ids=torch.tensor([[7, 8]])).logits[0]
    for row, path in zip(found, ([4, 6, 7], [5, 8]), strict=True):
        torch.testing.assert_close(row, model(input_ids=torch.tensor([[1, 2, 3, *path]])).logits[0, -1])
    session.stand([1, 4])
    after = session.read(input_ids=torch.tensor([[0, 2]])).logits[0]
    whole = model(input_ids=torch.tensor([[1, 2, 3, 5, 8, 0, 2]])).logits[0]
    torch.testing.assert_close(after, whole[-2:])
    session.shorten(4)
    torch.testing.assert_close(
        session.read(input_ids=torch.tensor([[3]])).logits[0, -1],
        model(input_ids=torch.tensor([[1, 2, 3, 5, 3]])).logits[0, -1],
    )


def greedy(model, prompt, tokens):
    row = list(prompt)
    for _ in range(tokens):
        row.append(int(model(input_ids=torch.tensor([row])).logits[0, -1].argmax()))
    return row[len(prompt) :]


@pytest.mark.parametrize("shape", [Shape(4), Shape(3, width=2, nodes=6), Shape(3, temperature=0.7)])
@torch.no_grad()
def test_greedy_text_is_the_targets_own_whatever_the_draft_says(shape):
    target, prompt = network(0), [1, 2, 3]
    for draft in (network(5, "gpt2", layers=1), target):
        drafter = ModelDrafter(draft, shape)
        done = speculate(TargetSession(target), drafter, prompt, 14)
        assert done.tokens == greedy(target, prompt, 14)
        assert done.calls + sum(done.accepted) == 14 and len(done.accepted) == done.calls
    if shape.temperature == 0:
        assert len(set(done.tokens)) > 3 and done.length > 2.5, "the target as its own draft is always right"


@torch.no_grad()
def test_without_a_draft_every_token_costs_a_call():
    done = speculate(TargetSession(network(0)), None, [1, 2], 5)
    assert done.calls == 5 and done.length == 1 and done.tokens == greedy(network(0), [1, 2], 5)


def test_a_prompt_of_one_token_is_refused():
    with pytest.raises(ValueError, match="give 2 or more"):
        speculate(TargetSession(network(0)), None, [1], 5)
