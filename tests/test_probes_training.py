"""Gradients, internal covariate shift and landscape of a network: against hand-made formulas of linear
networks, and against plain autograd on copies of the model.
"""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from helpers import build
from torch import nn

from bnbook import layers, probes

f64 = torch.float64


def normal(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=f64)


def squares(output, target):
    """Half the squared distance, per example."""
    return 0.5 * ((output - target) ** 2).sum() / len(output)


def linear():
    return nn.Sequential(nn.Linear(3, 2, bias=False))


def two_linear():
    return nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 2, bias=False))


def bn_mlp():
    return nn.Sequential(
        nn.Linear(3, 4),
        layers.BatchNorm(4),
        nn.Tanh(),
        nn.Linear(4, 4),
        nn.BatchNorm1d(4),
        nn.Tanh(),
        nn.Linear(4, 2),
    )


def conv():
    return nn.Sequential(
        nn.Unflatten(1, (1, 3)), nn.Conv1d(1, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(4, 2)
    )


X, Y = normal(7, 3), normal(7, 2, seed=2)
MODELS = {"linear": linear, "two linear": two_linear, "batch norm": bn_mlp, "convolution": conv}


def gradient(model, names=None):
    """By plain autograd on a copy, so that running statistics do not matter."""
    model = copy.deepcopy(model)
    parameters = dict(model.named_parameters())
    names = list(parameters) if names is None else names
    return dict(
        zip(names, torch.autograd.grad(squares(model(X), Y), [parameters[n] for n in names]), strict=True)
    )


def flat(gradient):
    return torch.cat([g.flatten() for g in gradient.values()])


def stepped(model, length, direction):
    """Copy of the model with each parameter in `direction` moved by -length times its direction."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name in direction:
                p -= length * direction[name]
    return model


def close(found, expected, atol=1e-12):
    torch.testing.assert_close(found, torch.as_tensor(expected, dtype=found.dtype), rtol=1e-10, atol=atol)


# --------------------------------------------------------------------------- gradient norms


def test_gradient_norms_of_two_linear_layers_by_hand():
    model = build(two_linear)
    w1, w2 = (p.detach() for p in model.parameters())
    error = (X @ w1.T @ w2.T - Y) / 7
    found = probes.gradient_norms(model, squares, X, Y)
    assert found.layers == ["0", "1"]
    close(found.weight, [(w2.T @ error.T @ X).norm(), (error.T @ X @ w1.T).norm()])
    close(found.input, [(error @ w2 @ w1).norm(), (error @ w2).norm()])


@pytest.mark.parametrize("name", MODELS)
def test_gradient_norms_are_those_of_plain_autograd(name):
    model = build(MODELS[name])
    found = probes.gradient_norms(model, squares, X, Y)
    expected = gradient(model)
    close(found.weight, [expected[f"{layer}.weight"].norm() for layer in found.layers])


def test_an_orthogonal_layer_passes_the_gradient_on_at_its_length():
    model = build(lambda: nn.Sequential(*[nn.Linear(4, 4, bias=False) for _ in range(6)]))
    for layer in model:
        nn.init.orthogonal_(layer.weight, generator=torch.Generator().manual_seed(2))
    found = probes.gradient_norms(model, squares, normal(7, 4), normal(7, 4, seed=2))
    close(found.input, found.input[:1].expand(6))


class Backwards(nn.Module):
    """Registers its layers in another order than it runs them, and holds one that it never runs."""

    def __init__(self):
        super().__init__()
        self.last, self.idle, self.first = nn.Linear(4, 2), nn.Linear(3, 3), nn.Linear(3, 4)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.scale * self.last(torch.tanh(self.first(x)))


def test_layers_are_counted_in_the_order_in_which_they_run():
    model = build(Backwards)
    found = probes.gradient_norms(model, squares, X, Y)
    assert found.layers == ["first", "last"]
    close(found.weight, [gradient(model, [f"{n}.weight"])[f"{n}.weight"].norm() for n in found.layers])
    assert probes.internal_covariate_shift(model, squares, X, Y, lr=0.1).layers == ["first", "last"]


def test_a_shared_weight_counts_once_and_a_frozen_one_not_at_all():
    def tied():
        net = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2))
        net[2].weight = net[0].weight
        net[3].weight.requires_grad_(False)
        return net

    model = build(tied)
    found = probes.gradient_norms(model, squares, X, Y)
    assert found.layers == ["0", "4"]
    close(found.weight, [gradient(model, [f"{n}.weight"])[f"{n}.weight"].norm() for n in found.layers])


def test_whole_numbers_may_be_the_input_of_an_embedding():
    model = build(lambda: nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 2)))
    found = probes.gradient_norms(model, squares, torch.arange(4), Y[:4])
    assert found.layers == ["1"]
    error = (model(torch.arange(4)) - Y[:4]).detach() / 4
    close(found.input, [(error @ model[1].weight.detach()).norm()])


def test_a_layer_that_runs_twice_counts_where_it_runs_first():
    layer = nn.Linear(3, 3, bias=False)
    model = build(lambda: nn.Sequential(layer, nn.Tanh(), layer, nn.Linear(3, 2)))
    found = probes.gradient_norms(model, squares, X, Y)
    assert found.layers == ["0", "3"]
    x = X.clone().requires_grad_()
    (expected,) = torch.autograd.grad(squares(model(x), Y), x)
    close(found.input[0], expected.norm())


class SideBranch(nn.Module):
    """Runs a layer whose output it throws away."""

    def __init__(self):
        super().__init__()
        self.main, self.side = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x):
        self.side(torch.tanh(x))
        return self.main(x)


def test_a_layer_that_the_loss_does_not_reach_has_a_gradient_of_zero():
    found = probes.gradient_norms(build(SideBranch), squares, X, Y)
    assert dict(zip(found.layers, found.weight > 0, strict=True)) == {"main": True, "side": False}
    assert dict(zip(found.layers, found.input > 0, strict=True)) == {"main": True, "side": False}


def test_a_hook_on_a_parameter_does_not_reach_into_the_measurement():
    model = build(two_linear)
    expected = probes.gradient_norms(model, squares, X, Y)
    model[0].weight.register_hook(lambda g: 100 * g)
    assert torch.equal(probes.gradient_norms(model, squares, X, Y).weight, expected.weight)


# --------------------------------------------------------------------------- internal covariate shift


def test_covariate_shift_of_two_linear_layers_by_hand():
    model = build(two_linear)
    w1, w2 = (p.detach() for p in model.parameters())
    lr = 0.3
    error = (X @ w1.T @ w2.T - Y) / 7
    moved = w1 - lr * w2.T @ error.T @ X
    before = error.T @ X @ w1.T
    after = ((X @ moved.T @ w2.T - Y) / 7).T @ X @ moved.T
    found = probes.internal_covariate_shift(model, squares, X, Y, lr)
    assert found.layers == ["0", "1"]
    close(found.distance, [0, (before - after).norm()])
    close(found.relative, [0, (before - after).norm() / before.norm()])
    close(found.cosine, [1, (before * after).sum() / (before.norm() * after.norm())])
    assert found.relative[1] > 0.01  # so that the comparison means something


@pytest.mark.parametrize("name", ["two linear", "batch norm", "convolution"])
def test_covariate_shift_moves_all_that_runs_before_the_layer_and_nothing_else(name):
    model, lr = build(MODELS[name]), 0.5
    found = probes.internal_covariate_shift(model, squares, X, Y, lr)
    g, names = gradient(model), [n for n, _ in model.named_parameters()]
    for i, layer in enumerate(found.layers):
        weight = f"{layer}.weight"
        below = {n: g[n] for n in names[: names.index(weight)]}
        after = gradient(stepped(model, lr, below), [weight])[weight]
        close(found.distance[i], (g[weight] - after).norm())
        close(found.relative[i], (g[weight] - after).norm() / g[weight].norm())
        close(found.cosine[i], F.cosine_similarity(g[weight].flatten(), after.flatten(), dim=0))
    assert (found.distance[1:] > 1e-3).all()
    assert found.distance[0] == 0


def test_some_layers_may_be_chosen_and_keep_their_order():
    model = build(bn_mlp)
    every = probes.internal_covariate_shift(model, squares, X, Y, 0.5)
    some = probes.internal_covariate_shift(model, squares, X, Y, 0.5, layers=[2, 1])
    assert some.layers == [every.layers[2], every.layers[1]]
    assert torch.equal(some.distance, every.distance[[2, 1]])


class Jitter(nn.Module):
    """Noise from a generator of its own."""

    def __init__(self):
        super().__init__()
        self.generator = torch.Generator().manual_seed(3)

    def forward(self, x):
        return x + torch.randn(x.shape, generator=self.generator, dtype=x.dtype)


@pytest.mark.parametrize("noise", [lambda: nn.Dropout(0.5), Jitter])
def test_without_a_step_there_is_no_shift_even_where_the_model_draws_at_random(noise):
    model = build(lambda: nn.Sequential(nn.Linear(3, 20), noise(), nn.Linear(20, 2)))
    found = probes.internal_covariate_shift(model, squares, X, Y, lr=0)
    assert found.distance.tolist() == [0, 0]
    close(found.cosine, [1, 1])
    along = probes.landscape(model, squares, X, Y, [1e-9])
    assert along.distance[0] < 1e-6


def test_the_direction_of_a_tiny_float32_gradient_is_kept():
    model, tiny = build(two_linear).float(), 2.0**-100  # squares of the gradient are 0 in float32
    args = X.float(), Y.float()
    found = probes.internal_covariate_shift(model, lambda o, t: tiny * squares(o, t), *args, lr=0.3 / tiny)
    expected = probes.internal_covariate_shift(model, squares, *args, lr=0.3)
    torch.testing.assert_close(found.cosine, expected.cosine, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.relative, expected.relative, rtol=1e-5, atol=0)
    torch.testing.assert_close(found.distance / tiny, expected.distance, rtol=1e-5, atol=0)
    norms = probes.gradient_norms(model, lambda o, t: tiny * squares(o, t), *args)
    torch.testing.assert_close(norms.weight / tiny, probes.gradient_norms(model, squares, *args).weight)


def test_a_gradient_of_zero_has_no_direction():
    found = probes.internal_covariate_shift(build(two_linear), lambda o, _: 0 * o.sum(), X, Y, 0.1)
    assert found.distance.tolist() == [0, 0]
    assert found.cosine.isnan().all()
    assert found.relative.isnan().all()


# --------------------------------------------------------------------------- landscape


def hessian():
    """Of `squares` for the model `linear`: a block X^T X / N for each output."""
    return torch.kron(torch.eye(2, dtype=f64), X.T @ X / 7)


def test_on_a_quadratic_the_loss_is_a_parabola_and_the_smoothness_is_constant():
    model, t = build(linear), torch.tensor([0.01, 0.1, 0.5, 2, 30], dtype=f64)
    g, H = flat(gradient(model)), hessian()
    found = probes.landscape(model, squares, X, Y, t)
    start = squares(model(X), Y).detach()
    close(found.loss, start - t * (g @ g) + t**2 / 2 * (g @ H @ g), atol=1e-9)
    close(found.distance, t * (H @ g).norm())
    close(found.beta, ((H @ g).norm() / g.norm()).expand(5), atol=1e-9)
    assert found.beta[0] <= torch.linalg.eigvalsh(H)[-1]


@pytest.mark.parametrize("name", MODELS)
def test_landscape_is_that_of_copies_of_the_model_at_each_step(name):
    model, steps = build(MODELS[name]), [0.05, 0.1, 0.4, 1, 3]
    g = gradient(model)
    found = probes.landscape(model, squares, X, Y, steps)
    beta = 0.0
    for i, t in enumerate(steps):
        there = stepped(model, t, g)
        distance = (flat(gradient(there)) - flat(g)).norm()
        beta = max(beta, (distance / (t * flat(g).norm())).item())
        close(found.loss[i], squares(copy.deepcopy(there)(X), Y).detach())
        close(found.distance[i], distance)
        close(found.beta[i], beta)


def test_smoothness_is_the_largest_over_the_range_so_far():
    # The gradient of 1 - cos(w) is sin(w): from pi / 2, further steps come back to the same gradient.
    model = nn.Linear(1, 1, bias=False).to(f64)
    nn.init.constant_(model.weight, math.pi / 2)
    one = torch.ones(1, 1, dtype=f64)
    found = probes.landscape(model, lambda o, _: 1 - torch.cos(o).sum(), one, one, [1, math.pi, 2 * math.pi])
    close(found.loss, [1 - math.sin(1), 2 - 1, 1], atol=1e-9)
    close(found.distance, [1 - math.cos(1), 2, 0], atol=1e-9)
    close(found.beta, [1 - math.cos(1), 2 / math.pi, 2 / math.pi])


def test_where_the_gradient_is_zero_there_is_no_smoothness_to_measure():
    found = probes.landscape(build(linear), lambda o, _: 0 * o.sum(), X, Y, [1, 2])
    assert found.distance.tolist() == [0, 0]
    assert found.beta.isnan().all()
