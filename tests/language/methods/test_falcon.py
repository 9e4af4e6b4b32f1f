import pytest
import torch

from limbeck.data.text import text
from limbeck.engine.method import Clock, Parts
from limbeck.engine.teacher import Teacher
from limbeck.errors import UserError
from limbeck.language.methods.falcon import Falcon, glances
from limbeck.language.speculative.models import falcon_draft
from limbeck.models.causal import causal_lm
from limbeck.models.forward import Signals


@pytest.fixture(scope="module")
def data():
    return text(corpus="grammar", characters=2000, context=11)


def network(data):
    torch.manual_seed(1)
    made = causal_lm(architecture="llama", hidden=16, layers=1, heads=2, vocab_size=data.spec.vocab_size, context=11)
    for p in made.parameters():
        p.data.mul_(3.0 if p.dim() > 1 else 1.0)
    return made.eval()


def ready(data, block=2, student=None, **arguments):
    method = Falcon(**arguments)
    torch.manual_seed(2)
    student = student or falcon_draft(hidden=16, heads=2, block=block)
    teacher = Teacher(network(data), {"logits", "hidden_states"}, "teacher")
    method.setup(Parts(student, {"teacher": teacher}, data.spec, streams={"data": data.train}))
    method.before_step(Clock(2, 10))
    return method


@pytest.mark.parametrize("block", [2, 3])
def test_the_loss_is_of_the_feature_and_the_token_a_block_further_on(data, block):
    """The card's loss, place by place, without glancing and noise."""
    method = ready(data, block, glance_start=0.0, glance_end=0.0, noise=0.0, temperature=0.8, hard=0.25)
    batch = data.train.batch(torch.arange(2))
    batch["labels"][0, :5] = -100
    (update,) = method.updates(batch, Clock(2, 10))
    found = update.evaluate()
    target = method.teacher.module(input_ids=batch["input_ids"], output_hidden_states=True)
    f, emb = target.hidden_states[-1], method.teacher.module.get_input_embeddings()(batch["input_ids"])
    count = 11 - 1 - block
    imagined = method.student(f[:, :count], emb[:, 1 : count + 1])
    feature, token, n = 0.0, 0.0, 0
    for b in range(2):
        for t in range(count):
            if batch["labels"][b, t + block + 1] == -100:
                continue
            far = (imagined[b, t] - f[b, t + block]).abs()
            feature += float(torch.where(far < 1, 0.5 * far**2, far - 0.5).mean())
            p = (target.logits[b, t + block].double() / 0.8).softmax(-1)
            own = method.teacher.module.get_output_embeddings()(imagined[b, t]).double()
            token += float((p * (p.log() - (own / 0.8).log_softmax(-1))).sum())
            n += 1
    for name, wanted, weight in (("feature", feature, 1.0), ("token", token, 0.075)):
        assert int(found[name].count) == n == int(method.count(batch)[found[name].unit])
        assert float(found[name].sum.detach()) == pytest.approx(wanted, rel=1e-4)
        assert found[name].weight == pytest.approx(weight)
    assert found["hard"].weight == pytest.approx(0.025) and float(found["hard"].sum) > 0


def test_features_tokens_and_labels_are_all_moved_by_a_block(data):
    """On a counting sequence: the draft reads feature t and token t + 1, and is shown feature and token k further."""
    method = ready(data, 3, noise=0.0, glance_start=50.0, glance_end=50.0)
    counting = torch.arange(11)[None]
    rows = {"input_ids": counting, "labels": counting, "id": torch.tensor([0])}
    features = counting[..., None].expand(1, 11, 16).float()
    calls = []

    class Spy(torch.nn.Module):
        def forward(self, seen, heard):
            calls.append((seen[0, :, 0].tolist(), heard[0, :, 0].tolist()))
            return seen + torch.zeros(1, requires_grad=True)

    method.learners["student"] = Spy()
    method.embedded = lambda tokens: tokens[..., None].expand(*tokens.shape, 16).float()
    logits = torch.nn.functional.one_hot(
        (counting + 1).clamp(max=data.spec.vocab_size - 1), data.spec.vocab_size
    ).float()
    method.losses(rows, Signals(logits=logits, hidden_states=(features,)), Clock(2, 10))
    (first, second) = calls
    assert first == ([0, 1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6, 7])
    shown = [t for t, value in enumerate(second[0]) if value != t]
    assert shown and all(second[0][t] == t + 3 and second[1][t] == t + 4 for t in shown)
    assert all(second[1][t] == t + 1 for t in range(7) if t not in shown)
    assert not {3, 6, 0} & set(shown), "the last place of a block is never shown its answer"


def test_so_many_blocks_have_a_run_that_spares_their_last_place():
    number = torch.tensor([0, 1, 1, 1, 1, 2, 2, 2, 2])
    draws = torch.rand(50, 3, 3, generator=torch.Generator().manual_seed(0))
    found = glances(number, 4, torch.full((50,), 2), draws)
    assert not found[:, [0, 4, 8]].any()
    hit = torch.stack([found[:, number == b].any(1) for b in (1, 2)], 1)
    assert (hit.sum(1) <= 2).all() and hit.all(1).any() and not hit.all()
    runs = {tuple(row.tolist()) for row in found[:, 5:8]}
    assert runs == {(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (0, 1, 1), (1, 1, 1)}


def test_places_see_their_block_and_what_is_before_and_nothing_after():
    draft = falcon_draft(hidden=8, heads=2, block=3).eval()
    features, embedded = torch.randn(1, 8, 8), torch.randn(1, 8, 8)
    plain = draft.body(inputs_embeds=draft.join(torch.cat([features, embedded], -1)), attention_mask=None)
    assert plain.last_hidden_state.shape == (1, 8, 8)
    assert draft.blocks(8).tolist() == [0, 0, 1, 1, 1, 2, 2, 2] and draft.blocks(8, 1).tolist()[-3:] == [2, 2, 3]
    before = draft(features, embedded)
    other = features.clone()
    other[0, 5] += 1.0  # the first place of the last block
    changed = (draft(other, embedded) - before).abs().amax(-1)[0] > 1e-6
    assert changed.tolist() == [False] * 5 + [True] * 3
    other = features.clone()
    other[0, 4] += 1.0  # the last place of the block before
    changed = (draft(other, embedded) - before).abs().amax(-1)[0] > 1e-6
    assert changed.tolist() == [False] * 2 + [True] * 6


@torch.no_grad()
def test_the_first_guess_is_that_of_decoding(data):
    """At every token, what a draft says that has read the row up to it."""
    target, draft = network(data), falcon_draft(hidden=16, heads=2, block=3).eval()
    ids = data.train.batch(torch.arange(1))["input_ids"]
    found = target(input_ids=ids, output_hidden_states=True)
    guesses = draft.first_guess(found.hidden_states, ids, target)[0]
    emb = target.get_input_embeddings()(ids)
    for place, n in enumerate(range(4, 11)):
        read = draft(found.hidden_states[-1][:, : n - 1], emb[:, 1:n])[0, -3]
        torch.testing.assert_close(guesses[place], target.get_output_embeddings()(read), rtol=1e-3, atol=1e-4)
    assert len(guesses) == 7


def test_what_does_not_fit_is_refused(data):
    with pytest.raises(UserError, match="the draft has hidden 8, its target 16"):
        ready(data, student=falcon_draft(hidden=8, heads=2))
    with pytest.raises(UserError, match="blocks of 5 need rows of 12, not 11"):
        ready(data, 5)
    with pytest.raises(UserError, match="block 2 or more"):
        falcon_draft(hidden=8, heads=2, block=1)
