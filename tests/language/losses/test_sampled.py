import pytest
import torch

from limbeck.language.losses import forward_kl, reverse_kl, sampled_kl, score_gradient


def sides(seed=0, shape=(2, 4)):
    generator = torch.Generator().manual_seed(seed)
    logits = [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3)]
    logits[1].requires_grad_(True)
    return [torch.log_softmax(x, -1) for x in logits], logits[1]


def every_token(log):
    """The value at each token that could be drawn."""
    return list(log.unbind(-1))


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_the_mean_over_all_draws_is_the_divergence(estimator):
    (p, q, other), _ = sides()
    for a, b, wanted in ((p, q, forward_kl(p, q)), (q, p, reverse_kl(p, q))):
        values = [sampled_kl(x, y, estimator=estimator) for x, y in zip(every_token(a), every_token(b), strict=True)]
        mean = sum(weight.exp() * value for weight, value in zip(every_token(a), values, strict=True))
        torch.testing.assert_close(mean, wanted)
        drawn = [
            sampled_kl(x, y, estimator=estimator, log_drawn=z)
            for x, y, z in zip(every_token(a), every_token(b), every_token(other), strict=True)
        ]
        mean = sum(weight.exp() * value for weight, value in zip(every_token(other), drawn, strict=True))
        torch.testing.assert_close(mean, wanted, msg="drawn from a third distribution")


def test_k3_is_never_negative_and_k1_is():
    (p, q, _), _ = sides()
    assert (sampled_kl(p, q, estimator="k3") >= 0).all() and (sampled_kl(p, q, estimator="k2") >= 0).all()
    assert (sampled_kl(p, q) < 0).any()
    torch.testing.assert_close(sampled_kl(p, q, estimator="k2"), 0.5 * (p - q) ** 2)


def test_the_gradients_are_unbiased_too():
    (p, q, other), logits = sides()
    wanted = torch.autograd.grad(reverse_kl(p, q).sum(), logits, retain_graph=True)[0]
    losses = [score_gradient(a, b) for a, b in zip(every_token(q), every_token(p), strict=True)]
    mean = sum(w.exp().detach() * loss for w, loss in zip(every_token(q), losses, strict=True))
    torch.testing.assert_close(torch.autograd.grad(mean.sum(), logits, retain_graph=True)[0], wanted)
    stale = [
        score_gradient(a, b, log_drawn=c)
        for a, b, c in zip(every_token(q), every_token(p), every_token(other), strict=True)
    ]
    mean = sum(w.exp() * loss for w, loss in zip(every_token(other), stale, strict=True))
    torch.testing.assert_close(torch.autograd.grad(mean.sum(), logits, retain_graph=True)[0], wanted)
    forward = torch.autograd.grad(forward_kl(p, q).sum(), logits, retain_graph=True)[0]
    mean = sum(w.exp() * sampled_kl(w, x) for w, x in zip(every_token(p), every_token(q), strict=True))
    torch.testing.assert_close(torch.autograd.grad(mean.sum(), logits)[0], forward)


def test_bad_input_is_refused():
    (p, q, _), _ = sides()
    with pytest.raises(ValueError, match="same shape"):
        sampled_kl(p, q[:1])
    with pytest.raises(ValueError, match="no estimator is called 'k4'"):
        sampled_kl(p, q, estimator="k4")
