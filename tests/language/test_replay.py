import pytest
import torch

from limbeck.engine.method import Clock
from limbeck.language.replay import Replay
from limbeck.language.rollouts import Rollout


def rollout(ids, width=4):
    ids = torch.tensor(ids)
    tokens = ids[:, None] * 10 + torch.arange(width)
    labels = tokens.clone()
    labels[:, 0] = -100
    batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": labels, "id": ids, "view": 0}
    return Rollout(batch, -tokens.float())


def filled(cuts, capacity=8):
    replay = Replay(capacity, 6)
    for step in cuts:
        for piece in step:
            replay.stage(rollout(piece))
        replay.commit(torch.device("cpu"))
    return replay


def batch_of(ids):
    return rollout(ids).batch


def test_rows_come_back_as_they_were_written():
    replay = filled([[[3, 1]]])
    found = replay.draw(batch_of([7, 8, 9]), Clock(5, 10, seed=1))
    for row, said in zip(found.batch["input_ids"], found.logprobs, strict=True):
        number = int(row[0]) // 10
        wanted = rollout([number])
        assert number in (1, 3)
        assert torch.equal(row, wanted.batch["input_ids"][0]) and torch.equal(said, wanted.logprobs[0])
    assert found.batch["id"].tolist() == [7, 8, 9]
    assert (found.batch["labels"][:, 0] == -100).all() and (found.batch["labels"][:, 1:] >= 0).all()


def test_nothing_of_a_step_is_there_before_its_end():
    replay = Replay(4, 6)
    replay.stage(rollout([1, 2]))
    assert len(replay) == 0
    with pytest.raises(ValueError, match="no row"):
        replay.draw(batch_of([0]), Clock(0, 1))
    replay.commit(torch.device("cpu"))
    assert len(replay) == 2


def test_it_does_not_depend_on_how_a_step_is_cut_nor_does_a_draw():
    whole, cut = filled([[[4, 2, 9, 1]], [[5, 3]]]), filled([[[9, 4], [1], [2]], [[3], [5]]])
    for name, rows in whole.state_dict().items():
        assert torch.equal(rows, cut.state_dict()[name])
    clock = Clock(7, 10, seed=3)
    together = whole.draw(batch_of([1, 2, 3]), clock).batch["input_ids"]
    assert torch.equal(together[1:2], cut.draw(batch_of([2]), clock).batch["input_ids"])
    steps = {str(whole.draw(batch_of([1]), Clock(s, 10, seed=3)).batch["input_ids"].tolist()) for s in range(20)}
    assert len(steps) > 2


def test_the_oldest_rows_give_way():
    replay = filled([[[1, 2, 3]], [[4, 5]]], capacity=4)
    assert replay.state_dict()["id"].tolist() == [2, 3, 4, 5]


def test_a_resumed_buffer_draws_the_same():
    replay, again = filled([[[1, 2, 3]]]), Replay(8, 6)
    again.load_state_dict(replay.state_dict())
    drawn = [r.draw(batch_of([1, 2]), Clock(3, 9)).batch["input_ids"] for r in (replay, again)]
    assert torch.equal(*drawn)
    Replay(8, 6).load_state_dict(Replay(8, 6).state_dict())


def test_rows_of_unlike_length_are_padded_and_too_long_ones_refused():
    replay = Replay(8, 6)
    replay.stage(rollout([1], width=3))
    replay.stage(rollout([2], width=5))
    replay.commit(torch.device("cpu"))
    rows = replay.state_dict()
    assert rows["attention_mask"].sum(1).tolist() == [3, 5] and rows["labels"][0, 3:].tolist() == [-100] * 3
    with pytest.raises(ValueError, match="do not fit"):
        replay.stage(rollout([1], width=7))
    with pytest.raises(ValueError, match="capacity"):
        Replay(0, 6)
