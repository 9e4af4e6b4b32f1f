import pytest
import torch

from limbeck.data.retrieval import retrieval as texts
from limbeck.errors import UserError
from limbeck.language.metrics.exits import exit_retrieval
from limbeck.language.models.exits import exit_encoder
from limbeck.metrics.base import Evaluation
from limbeck.metrics.retrieval import retrieval


@pytest.fixture(scope="module")
def judged():
    data = texts(corpus="catalogue", documents=20, queries=12, test_queries=6, negatives=2, context=26)
    torch.manual_seed(0)
    made = exit_encoder(
        hidden=16, layers=3, heads=2, every=2, vocab_size=data.spec.vocab_size, context=26, data=data
    ).eval()
    return Evaluation(model=made, spec=data.spec, source=data.test)


def test_the_last_exit_is_the_whole_encoder(judged):
    found, whole = exit_retrieval(judged, layers=3), retrieval(judged).values
    assert found.values["early_ndcg_10"] == pytest.approx(whole["ndcg_10"])
    assert sorted(found.details["by_exit"]) == ["1", "3"]


def test_an_early_exit_is_judged_by_its_own_vectors(judged):
    early = Evaluation(model=judged.model.at(1), spec=judged.spec, source=judged.source)
    found = exit_retrieval(judged, layers=1)
    assert found.values["early_recall_10"] == pytest.approx(retrieval(early).values["recall_10"])


def test_an_exit_that_is_not_there_is_refused(judged):
    with pytest.raises(UserError, match=r"after \[1, 3\] layers, not after 2"):
        exit_retrieval(judged, layers=2)
