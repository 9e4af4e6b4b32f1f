"""Masked diffusion: the objective, and what is refused."""

from __future__ import annotations

import pytest
import torch

from limbeck.engine.method import Parts
from limbeck.errors import UserError
from limbeck.registry import Block, build, find
from toolkit.diffusion import CLOCK


def network():
    torch.manual_seed(0)
    given = {"vocab_size": 3, "context": 4, "width": 8, "layers": 1, "heads": 2}
    return build("model", Block("masked_transformer", given)).eval()


@pytest.mark.parametrize("weight", ["bound", "even"])
def test_the_loss_is_the_definition_at_the_tokens_that_were_hidden(weight):
    method, net = find("method", "masked_diffusion").load()(weight=weight, least=0.2), network()
    method.setup(Parts(student=net))
    batch = {"id": torch.arange(6), "input_ids": torch.randint(3, (6, 4), generator=torch.Generator().manual_seed(1))}
    (term,) = method.terms(batch, CLOCK).values()
    share = 0.2 + 0.8 * CLOCK.uniform(batch["id"], (1,), "share")
    hidden = CLOCK.uniform(batch["id"], (4,), "hidden") < share
    law = net.fill(torch.where(hidden, 3, batch["input_ids"])).double().log_softmax(-1)
    total, count = 0.0, 0
    for b, i in hidden.nonzero().tolist():
        nll = -float(law[b, i, batch["input_ids"][b, i]].detach())
        total += nll if weight == "even" else nll / float(share[b]) / 4
        count += 1
    assert float(term.sum.detach()) == pytest.approx(total, rel=1e-4)
    assert int(term.count) == (count if weight == "even" else 6)


def test_other_students_and_data_are_refused():
    method = find("method", "masked_diffusion").load()()
    with pytest.raises(UserError, match="masked_transformer"):
        method.setup(Parts(student=torch.nn.Linear(2, 2)))
    with pytest.raises(UserError, match="heads"):
        build("model", Block("masked_transformer", {"vocab_size": 3, "context": 4, "width": 9, "heads": 2}))
