"""Batch norm with a wrong gradient: right in the forward pass, and wrong as its factors say."""

import pytest
import torch

from bnbook import data, layers, norms, training
from bnbook.experiments import backward as wrong


def example(seed=0, m=6, units=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, m, units, generator=generator, dtype=torch.float64) + 1


@pytest.mark.parametrize("name", wrong.MISTAKES)
def test_the_forward_pass_and_the_running_statistics_are_those_of_batch_norm(name):
    x, _ = example()
    mine, right = wrong.Mistaken(3, wrong.MISTAKES[name]).double(), layers.BatchNorm(3).double()
    torch.testing.assert_close(mine(x), right(x), rtol=0, atol=1e-14)
    torch.testing.assert_close(mine.running_mean, right.running_mean)
    torch.testing.assert_close(mine.running_var, right.running_var)


@pytest.mark.parametrize("name", [name for name in wrong.MISTAKES if name != "x for x - μ"])
def test_the_gradient_has_the_factors_before_its_two_terms(name):
    x, dy = example()
    k = wrong.MISTAKES[name]
    leaf = x.clone().requires_grad_()
    wrong.Mistaken(3, k).double()(leaf).backward(dy)
    x_hat, inv_std = norms.standardize(x.numpy(), (0,), eps=1e-5)
    dx_hat = dy.numpy()
    terms = k[0] * dx_hat.mean(0), k[1] * x_hat * (dx_hat * x_hat).mean(0)
    expected = torch.from_numpy(inv_std * (dx_hat - terms[0] - terms[1]))
    torch.testing.assert_close(leaf.grad, expected, rtol=0, atol=1e-6)  # m / (m - 1) is in float32


def test_x_in_place_of_x_minus_mean_adds_the_mean_to_the_variance_term():
    x, dy = example()
    leaf = x.clone().requires_grad_()
    wrong.Mistaken(3, wrong.MISTAKES["x for x - μ"]).double()(leaf).backward(dy)
    x_hat, inv_std = (torch.from_numpy(a) for a in norms.standardize(x.numpy(), (0,), eps=1e-5))
    along = (dy * x * inv_std).mean(0)
    torch.testing.assert_close(leaf.grad, inv_std * (dy - dy.mean(0) - x_hat * along), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid"])
def test_centring_the_activations_changes_the_last_scores_by_a_constant_alone(activation):
    x = torch.from_numpy(data.digits().x_train[:32]).double()
    scores = []
    for c in (0.0, 0.5):
        torch.manual_seed(0)
        scores.append(wrong.centred((64,), 10, (1, 1, 1), c, activation=activation).double()(x))
    change = scores[1] - scores[0]
    assert change.abs().max() > 0.01
    torch.testing.assert_close(change, change[:1].expand_as(change), rtol=0, atol=1e-3)  # eps


def test_a_row_is_the_mean_of_the_last_25_losses():
    (row,) = wrong.losses("digits", "relu", 1, ("none",), (0.1,), (30,), (0,))
    one = training.sweep(
        wrong.network,
        data.digits(),
        steps=30,
        seeds=[0],
        evaluate_every=30,
        depth=1,
        lr=0.1,
        activation="relu",
    )
    assert row == {
        "mistake": "none",
        "rate": 0.1,
        "steps": 30,
        "seed": 0,
        "loss": pytest.approx(one.loss[0, 5:].mean()),
    }
