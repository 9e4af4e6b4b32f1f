"""Pictures to generate, the judge of them, and what the metric says of good and bad generators."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from limbeck.data.base import for_page, unscaled
from limbeck.diffusion.judge import judge_of
from limbeck.diffusion.metrics.laws import starts
from limbeck.diffusion.metrics.pictures import picture_quality
from limbeck.errors import UserError
from limbeck.metrics.base import Evaluation
from limbeck.registry import Block, build


def digits(**args):
    return build("data", Block("pictures", {"of": Block("digits", {"train_size": 1000}), **args}))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIMBECK_HOME", str(tmp_path_factory.mktemp("home")))
        patch.setattr("limbeck.diffusion.judge.STEPS", 200)
        yield


class Copies(nn.Module):
    """A generator that gives pictures of the data, of the class that is asked for if it takes one."""

    def __init__(self, data, classes=None, blur: float = 0.0, only: int | None = None) -> None:
        super().__init__()
        rows = data.train.batch(torch.arange(len(data.train)))
        keep = slice(None) if only is None else rows["label"] == only
        self.images, self.labels = rows["input"][keep], rows["label"][keep]
        self.classes, self.blur = classes, blur

    def forward(self, noise, label=None):
        which = (noise.flatten(1)[:, 0].double().mul(1e4).long().abs()) % len(self.images)
        if label is not None:
            groups = [self.images[self.labels == c] for c in range(10)]
            return torch.stack([groups[c][int(w) % len(groups[c])] for w, c in zip(which, label, strict=True)])
        return self.images[which] + self.blur * noise


def quality(model, data, **args):
    return picture_quality(Evaluation(model, data.spec, data.test, data.train), samples=300, **args).values


def test_pictures_keep_their_scale_and_can_be_shrunk_and_unlabelled():
    data = digits()
    assert (data.spec.task, data.spec.shape, data.spec.classes) == ("generation", (1, 8, 8), 10)
    small = digits(size=4, labels=False)
    assert (small.spec.shape, small.spec.classes) == ((1, 4, 4), None)
    whole, shrunk = (d.train.batch(torch.arange(5))["input"] for d in (data, small))
    torch.testing.assert_close(shrunk, nn.functional.avg_pool2d(whole, 2))
    assert float(unscaled(whole, data.spec).min()) >= 0
    with pytest.raises(UserError, match="size"):
        digits(size=9)


def test_the_judge_knows_the_data_and_is_kept(home):
    data = digits()
    judge = judge_of(data.train, 10)
    test = data.test.batch(torch.arange(len(data.test)))
    assert float((judge(test["input"]).argmax(1) == test["label"]).double().mean()) > 0.93
    again = judge_of(digits().train, 10)
    assert all(torch.equal(a, b) for a, b in zip(judge.parameters(), again.parameters(), strict=True))


def test_copies_of_the_data_are_good_noisy_ones_bad_and_one_class_is_narrow(home):
    data = digits()
    good, noisy = quality(Copies(data), data), quality(Copies(data, blur=1.0), data)
    narrow = quality(Copies(data, only=3), data)
    assert good["frechet"] < 0.2 * noisy["frechet"]
    assert good["precision"] > 0.8 > noisy["precision"]
    assert good["recall"] > 0.6
    assert good["class_tv"] < 0.1
    assert good["diversity"] == pytest.approx(1.0, abs=0.2)
    assert narrow["class_tv"] > 0.8
    assert narrow["recall"] < 0.3
    assert "class_match" not in good


def test_the_class_that_was_asked_for_is_looked_for(home):
    data = digits()
    assert quality(Copies(data, classes=10), data)["class_match"] > 0.93


def test_data_without_pictures_are_refused():
    data = digits()
    with pytest.raises(UserError, match="pictures of a data set"):
        picture_quality(Evaluation(Copies(data), data.spec, data.test, None))


def test_a_student_of_any_calls_is_shown_in_one_two_and_four_from_the_same_noise(home):
    data = digits()
    net = Block("mlp_denoiser", {"width": 8, "depth": 1, "floor": 0.002, "classes": 10})
    offers = data.spec.offers()
    student = build("model", Block("few_step", {"net": net, "nfe": 2, "sigma_max": 20.0}), offers=offers)
    evaluation = Evaluation(student, data.spec, data.test, data.train)
    details = picture_quality(evaluation, samples=50).details
    assert sorted(details["in_calls"]) == ["1", "4"]
    start = starts(student, (1, 8, 8), 50, (0, "picture quality"))[:, 0]
    once = student.in_calls(1)(start[:40], torch.arange(40) % 10)
    assert details["in_calls"]["1"] == for_page(once, data.spec)
    fixed = build(
        "model", Block("few_step", {"net": Block("mlp_denoiser", {"width": 8, "classes": 10})}), offers=offers
    )
    assert "in_calls" not in picture_quality(replace(evaluation, model=fixed), samples=50).details
