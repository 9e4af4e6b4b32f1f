import pytest
import torch

from limbeck.errors import UserError
from limbeck.models.embedding import (
    cross_encoder,
    late_interaction,
    pair_encoder,
    pool,
    sparse_encoder,
    text_encoder,
)

SIZES = {"hidden": 16, "layers": 2, "heads": 2, "vocab_size": 20, "context": 8}
SCORERS = {
    "text_encoder": lambda: text_encoder(**SIZES, dim=6),
    "cosines": lambda: text_encoder(**SIZES, similarity="cosine", scale=5.0),
    "concat": lambda: text_encoder(**SIZES, top_layers=2, pooling="cls"),
    "sparse": lambda: sparse_encoder(**SIZES),
    "late": lambda: late_interaction(**SIZES, dim=4),
    "cross": lambda: cross_encoder(**SIZES),
    "dot": lambda: pair_encoder(**SIZES, head="dot"),
    "mlp": lambda: pair_encoder(**SIZES, head_hidden=8),
}


def lists(rows=3, n=4, length=8):
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 20, (rows, n, length), generator=g)
    kept = torch.randint(2, length + 1, (rows, n, 1), generator=g)
    mask = (torch.arange(length) < kept).long()
    return ids * mask, mask


@pytest.fixture(params=SCORERS)
def scorer(request):
    torch.manual_seed(0)
    return SCORERS[request.param]().eval()


def test_a_list_is_scored_as_its_pairs_are(scorer):
    ids, mask = lists()
    found = scorer(input_ids=ids, attention_mask=mask)["logits"]
    for n in range(3):
        one = scorer.score((ids[:, 0], mask[:, 0]), (ids[:, 1 + n], mask[:, 1 + n]))
        torch.testing.assert_close(found[:, n], one, rtol=1e-4, atol=1e-5)


def test_padding_and_the_other_rows_change_nothing(scorer):
    ids, mask = lists()
    whole = scorer(input_ids=ids, attention_mask=mask)["logits"]
    noise = torch.where(mask == 0, 7, ids)
    torch.testing.assert_close(scorer(input_ids=noise, attention_mask=mask)["logits"], whole, rtol=1e-4, atol=1e-5)
    alone = scorer(input_ids=ids[1:2], attention_mask=mask[1:2])["logits"]
    torch.testing.assert_close(alone[0], whole[1], rtol=1e-4, atol=1e-5)


def test_all_with_all_is_one_with_one(scorer):
    if not scorer.encodes:
        pytest.skip("reads pairs")
    ids, mask = lists()
    queries, documents = scorer.encode(ids[:, 0], mask[:, 0]), scorer.encode(ids[:, 1], mask[:, 1])
    table = scorer.match(queries, tuple(x[None] for x in documents))
    assert table.shape == (3, 3)
    one = scorer.score((ids[2:, 0], mask[2:, 0]), (ids[:1, 1], mask[:1, 1]))
    torch.testing.assert_close(table[2, 0], one[0], rtol=1e-4, atol=1e-5)


def test_one_vector_per_text():
    torch.manual_seed(0)
    model = text_encoder(**SIZES, dim=6, normalize=True).eval()
    ids, mask = lists()
    found = model(input_ids=ids, attention_mask=mask)["embedding"]
    assert found.shape == (3, 4, 6)
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(3, 4))
    alone = model(input_ids=ids[:, 2], attention_mask=mask[:, 2])
    torch.testing.assert_close(alone["embedding"], found[:, 2])
    assert "logits" not in alone


def test_pooling_by_hand():
    states = torch.arange(24.0).view(2, 4, 3)
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]])
    assert pool(states, mask, "mean").tolist() == [states[0, :3].mean(0).tolist(), states[1, 0].tolist()]
    assert pool(states, mask, "max").tolist() == [states[0, 2].tolist(), states[1, 0].tolist()]
    assert pool(states, mask, "cls").tolist() == states[:, 0].tolist()
    assert pool(states, mask, "last").tolist() == [states[0, 2].tolist(), states[1, 0].tolist()]
    left = torch.tensor([[0, 1, 1, 1]])
    assert pool(states[:1], left, "cls").tolist() == [states[0, 1].tolist()]


def test_sparse_weights_by_loops():
    torch.manual_seed(0)
    model = sparse_encoder(**SIZES).eval()
    ids, mask = lists(rows=1)
    logits = model.backbone(input_ids=ids[:, 0], attention_mask=mask[:, 0]).logits[0]
    wanted = [max(torch.log1p(logits[t, v].relu()).item() for t in range(8) if mask[0, 0, t]) for v in range(20)]
    torch.testing.assert_close(model.encode(ids[:, 0], mask[:, 0])[0][0], torch.tensor(wanted))


def test_late_interaction_by_loops():
    torch.manual_seed(0)
    model = late_interaction(**SIZES, dim=4).eval()
    ids, mask = lists(rows=1)
    q, q_mask, d, d_mask = (x[0] for i in range(2) for x in model.encode(ids[:, i], mask[:, i]))
    wanted = sum(max(q[i] @ d[j] for j in range(8) if d_mask[j]) for i in range(8) if q_mask[i])
    torch.testing.assert_close(model(input_ids=ids, attention_mask=mask)["logits"][0, 0], wanted)


def test_pairs_have_classes_where_the_data_has_some():
    ids, mask = lists(n=2)
    for model in (cross_encoder(**SIZES, classes=3), pair_encoder(**SIZES, classes=3, head_hidden=8)):
        assert model(input_ids=ids, attention_mask=mask)["logits"].shape == (3, 3)


def test_what_cannot_be_is_refused():
    with pytest.raises(UserError, match="at least 2 texts"):
        cross_encoder(**SIZES)(input_ids=torch.ones(3, 8, dtype=torch.long))
    with pytest.raises(UserError, match="top_layers is from 1 to the 2 layers"):
        text_encoder(**SIZES, top_layers=3)
    with pytest.raises(UserError, match="do not go together"):
        text_encoder(**{**SIZES, "hidden": 15})
