import pytest
import torch

from limbeck.data.text import text
from limbeck.engine.teacher import Teacher
from limbeck.errors import UserError
from limbeck.language.speculative.metrics import exits, self_speculative, speculative
from limbeck.language.speculative.models import MedusaLM, eagle_draft
from limbeck.metrics.base import Evaluation, directions
from limbeck.models.causal import causal_lm

SMALL = {"samples": 2, "prompt": 4, "tokens": 6, "gamma": 2, "rows": 4}


@pytest.fixture(scope="module")
def data():
    return text(corpus="grammar", characters=3000, context=12)


def network(data, seed, layers=2):
    torch.manual_seed(seed)
    sizes = {"hidden": 16, "layers": layers, "heads": 2, "vocab_size": data.spec.vocab_size, "context": 12}
    made = causal_lm(architecture="llama", **sizes).eval()
    for p in made.parameters():
        p.data.mul_(3.0 if p.dim() > 1 else 1.0)
    return made


def judged(data, model, target=None):
    teacher = Teacher(target, {"logits", "hidden_states"}, "teacher") if target is not None else None
    return Evaluation(model, data.spec, data.test, teacher=teacher, batch_size=4)


@torch.no_grad()
def test_acceptance_is_the_shared_mass_of_both_distributions(data):
    draft, target = network(data, 0, 1), network(data, 1)
    values = speculative(judged(data, draft, target), **SMALL, temperature=0.8).values
    ids = data.test.batch(torch.arange(4))["input_ids"]
    p, q = (torch.softmax(m(input_ids=ids).logits[:, :-1].double() / 0.8, -1) for m in (target, draft))
    assert values["acceptance"] == pytest.approx(float(torch.minimum(p, q).sum(-1).mean()), rel=1e-5)
    assert values["exactness"] == 1 and 1 <= values["accepted_length"] <= 3
    assert values["calls_saved"] == pytest.approx(1 - 1 / values["accepted_length"])
    assert values["decode_speedup"] > 0


def test_the_target_as_its_own_draft_is_always_right(data):
    target = network(data, 1)
    found = speculative(judged(data, target, target), **SMALL)
    assert found.values["acceptance"] == pytest.approx(1) and found.values["exactness"] == 1
    # Six tokens by calls of three.
    assert found.values["accepted_length"] == 3 and found.details["accepted_by_depth"] == [1.0, 1.0]
    assert set(found.values) <= set(directions())


@torch.no_grad()
def test_a_draft_on_features_guesses_the_token_after_next(data):
    target, draft = network(data, 1), eagle_draft(hidden=16, heads=2).eval()
    values = speculative(judged(data, draft, target), **SMALL, width=2, nodes=4).values
    ids = data.test.batch(torch.arange(4))["input_ids"]
    found = target(input_ids=ids, output_hidden_states=True)
    emb = target.get_input_embeddings()(ids)
    seen = draft(found.hidden_states[-1][:, :-2], emb[:, 1:-1]).last_hidden_state
    p, q = found.logits[:, 1:-1].double().softmax(-1), target.get_output_embeddings()(seen).double().softmax(-1)
    assert values["acceptance"] == pytest.approx(float(torch.minimum(p, q).sum(-1).mean()), rel=1e-4)
    assert values["exactness"] == 1


def test_a_model_with_heads_of_its_own_is_its_own_target(data):
    own = MedusaLM(network(data, 3), 2)
    own.heads.begin(own.base)
    values = speculative(judged(data, own, network(data, 1)), **SMALL).values
    assert values["exactness"] == 1 and values["accepted_length"] >= 1


def test_transformers_own_assisted_generation_is_timed(data):
    values = speculative(judged(data, network(data, 0, 1), network(data, 1)), **SMALL, assisted=True).values
    assert values["assisted_speedup"] > 0
    with pytest.raises(UserError, match="for a draft that is a model of transformers"):
        speculative(judged(data, eagle_draft(hidden=16, heads=2), network(data, 1)), **SMALL, assisted=True)


@torch.no_grad()
def test_a_model_that_is_left_early_drafts_for_itself(data):
    model = network(data, 1)
    whole = self_speculative(judged(data, model), **SMALL, exit=2).values
    assert whole["acceptance"] == pytest.approx(1) and whole["accepted_length"] == 3 and whole["exactness"] == 1
    early = self_speculative(judged(data, model), **SMALL, exit=1).values
    assert early["acceptance"] < 0.999 and early["exactness"] == 1
    curve = exits(judged(data, model), rows=4)
    batch = data.test.batch(torch.arange(4))
    last = float(model(input_ids=batch["input_ids"], labels=batch["labels"]).loss)
    assert curve.details["nll_by_exit"][1] == pytest.approx(last, rel=1e-4)
    assert curve.values["exit_nll"] == curve.details["nll_by_exit"][0] != pytest.approx(last)


def test_what_cannot_draft_is_refused(data):
    with pytest.raises(UserError, match="the draft Linear is no causal model"):
        speculative(judged(data, torch.nn.Linear(2, 2), network(data, 1)), **SMALL)
    with pytest.raises(UserError, match="must be 1 or more"):
        speculative(judged(data, network(data, 0), network(data, 1)), **{**SMALL, "gamma": 0})
