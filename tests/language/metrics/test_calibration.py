import pytest
import torch
from torch import nn

from limbeck.data.topics import topics
from limbeck.errors import UserError
from limbeck.language.metrics.calibration import token_calibration
from limbeck.metrics.base import Evaluation


class Told(nn.Module):
    """Gives the right next token, or the padding where ``wrong`` says so, with a given probability."""

    def __init__(self, source, vocabulary, sure, wrong):
        super().__init__()
        self.labels = source.batch(torch.arange(len(source)))["labels"]
        self.vocabulary, self.sure, self.wrong = vocabulary, sure, wrong

    def forward(self, input_ids, attention_mask=None):
        answer = self.labels[: len(input_ids), 1:].clamp(min=0)
        answer = torch.where(self.wrong[: len(input_ids), None], torch.zeros_like(answer), answer)
        rest = (1 - self.sure) / (self.vocabulary - 1)
        p = torch.full((*answer.shape, self.vocabulary), rest).scatter(-1, answer[..., None], self.sure)
        return torch.cat([p, p[:, -1:]], 1).log()


@pytest.fixture(scope="module")
def data():
    return topics(train_size=4, val_size=0, test_size=50, words=2, topics=3, length=4)


@pytest.mark.parametrize(("sure", "share"), [(0.9, 0.2), (0.6, 0.5)])
def test_accuracy_error_and_trust_are_those_of_the_guesses(data, sure, share):
    wrong = torch.arange(50) < 50 * share
    model = Told(data.test, data.spec.vocab_size, sure, wrong)
    scores = token_calibration(Evaluation(model, data.spec, data.test))
    assert scores.values["token_accuracy"] == pytest.approx(1 - share)
    assert scores.values["ece"] == pytest.approx(abs(sure - (1 - share)), abs=1e-5)
    assert scores.values["trust"] == pytest.approx(1 - share - abs(sure - (1 - share)), abs=1e-5)
    assert sum(scores.details["reliability"]["count"]) == int((model.labels[:, 1:] != -100).sum())


def test_one_position_of_a_row_and_none(data):
    model = Told(data.test, data.spec.vocab_size, 0.7, torch.zeros(50, dtype=torch.bool))
    evaluation = Evaluation(model, data.spec, data.test)
    scores = token_calibration(evaluation, position=0)
    assert sum(scores.details["reliability"]["count"]) == 50
    with pytest.raises(UserError, match="no token to predict there"):
        token_calibration(evaluation, position=9)
    with pytest.raises(UserError, match="at least one bin"):
        token_calibration(evaluation, bins=0)
