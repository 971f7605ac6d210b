"""Batch norm with an l_p scale: definition, derivatives, invariances, statistics, vmap and errors."""

import copy
import math

import numpy as np
import pytest
import torch
from helpers import normal
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call, grad, stack_module_state, vmap

from bnbook import data, layers, models, probes, training
from bnbook.layers import LpBatchNorm, lp_scale

PS = [1, 2, math.inf]
SHAPES = [(8, 4), (5, 4, 6), (3, 4, 3, 5)]
every_p = pytest.mark.parametrize("p", PS)


def layer(p, **settings):
    """A layer of 4 channels in float64, with gamma and beta that are not 1 and 0."""
    made = LpBatchNorm(4, p, **settings).double()
    for seed, parameter in enumerate(made.parameters()):
        nn.init.normal_(parameter, 1, 0.5, torch.Generator().manual_seed(seed))
    return made


def by_numpy(x, p, gamma, beta, eps):
    """The definition, channel by channel."""
    y = np.empty_like(x)
    for c in range(x.shape[1]):
        d = x[:, c] - x[:, c].mean()
        s = np.abs(d).max() if p == math.inf else (np.abs(d) ** p).mean() ** (1 / p)
        y[:, c] = gamma[c] * d / np.sqrt(s**2 + eps) + beta[c]
    return y


@every_p
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("eps", [1e-5, 0.5])
def test_training_follows_the_definition(p, shape, eps):
    x, norm = 3 * normal(*shape) + 2, layer(p, eps=eps)
    expected = by_numpy(x.numpy(), p, norm.weight.detach().numpy(), norm.bias.detach().numpy(), eps)
    np.testing.assert_allclose(norm(x).detach().numpy(), expected, rtol=0, atol=1e-12)


@every_p
@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_running_statistics_take_in_the_mean_and_the_corrected_square_of_the_scale(p, momentum, shape):
    norm, means, squares = layer(p, momentum=momentum), np.zeros(4), np.ones(4)
    for step in range(3):
        x = (step + 1) * normal(*shape, seed=step) + step
        norm(x)
        columns = x.movedim(1, -1).reshape(-1, 4).numpy()
        d = np.abs(columns - columns.mean(0))
        s = {1: d.mean(0), 2: columns.std(0), math.inf: d.max(0)}[p]
        weight = 1 / (step + 1) if momentum is None else momentum
        m = len(columns)
        means += weight * (columns.mean(0) - means)
        squares += weight * (s**2 * m / (m - 1) - squares)
    np.testing.assert_allclose(norm.running_mean, means, rtol=1e-12)
    np.testing.assert_allclose(norm.running_var, squares, rtol=1e-12)
    norm.eval()
    x, shape = normal(*shape, seed=9), (1, 4, *[1] * (len(shape) - 2))
    scale = (norm.weight / torch.sqrt(norm.running_var + norm.eps)).view(shape)
    expected = (x - norm.running_mean.view(shape)) * scale + norm.bias.view(shape)
    torch.testing.assert_close(norm(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_p_2_is_batch_norm_in_training_evaluation_and_gradient(shape):
    ours, theirs = layer(2), layers.BatchNorm(4).double()
    theirs.load_state_dict(ours.state_dict())
    x, dy = normal(*shape), normal(*shape, seed=1)
    for mode in (True, False):
        results = []
        for norm in (ours.train(mode), theirs.train(mode)):
            leaf = x.clone().requires_grad_()
            y = norm(leaf)
            results.append([y, *torch.autograd.grad(y, [leaf, *norm.parameters()], dy)])
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-13)
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, rtol=0, atol=0)


@every_p
@pytest.mark.parametrize("shape", [(5, 4), (2, 4, 3)], ids=str)
@pytest.mark.parametrize("mode", [True, False], ids=["training", "evaluation"])
def test_first_and_second_derivatives_equal_finite_differences(p, shape, mode):
    norm = layer(p, eps=0.1).train(mode)
    names = [name for name, _ in norm.named_parameters()]

    def function(x, *parameters):
        return functional_call(norm, dict(zip(names, parameters, strict=True)), (x,))

    inputs = [normal(*shape), *(value.detach().clone() for value in norm.parameters())]
    inputs = tuple(value.requires_grad_() for value in inputs)
    assert gradcheck(function, inputs, rtol=1e-6, atol=1e-8)
    assert gradgradcheck(function, inputs, rtol=1e-6, atol=1e-8)


@every_p
@given(
    shift=st.floats(-100, 100),
    stretch=st.floats(0.01, 100),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=25, deadline=None)
def test_a_shift_and_a_stretch_of_the_inputs_change_nothing(p, shift, stretch, seed):
    norm, x = layer(p, eps=0), normal(6, 4, seed=seed)
    torch.testing.assert_close(norm(stretch * x + shift), norm(x), rtol=0, atol=1e-8)


@every_p
def test_the_gradient_has_no_part_along_a_shift_or_a_stretch(p):
    x, dy = normal(7, 4).requires_grad_(), normal(7, 4, seed=1)
    (dx,) = torch.autograd.grad(layer(p, eps=0)(x), x, dy)
    assert dx.abs().max() > 0.1
    torch.testing.assert_close(dx.sum(0), torch.zeros(4).double(), rtol=0, atol=1e-13)
    torch.testing.assert_close((dx * x).sum(0), torch.zeros(4).double(), rtol=0, atol=1e-13)


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=20))
@settings(max_examples=50, deadline=None)
def test_a_larger_p_never_gives_a_smaller_scale(values):
    centred = torch.tensor(values, dtype=torch.float64)
    centred = (centred - centred.mean())[:, None, None]
    one, two, largest = (lp_scale(centred, p).item() for p in PS)
    assert one <= two * (1 + 1e-12) + 1e-150  # a square below 1e-300 is 0
    assert two <= largest * (1 + 1e-12)


def test_the_largest_output_of_p_infinity_is_1():
    y = LpBatchNorm(4, math.inf, eps=0, affine=False).double()(normal(9, 4))
    torch.testing.assert_close(y.abs().amax(0), torch.ones(4).double(), rtol=0, atol=1e-14)


@every_p
def test_float32_with_mean_1e6_and_unit_spread_comes_out_right(p):
    x = (1e6 + normal(256, 4)).float()
    expected = by_numpy(x.double().numpy(), p, np.ones(4), np.zeros(4), 1e-5)
    norm = LpBatchNorm(4, p)
    np.testing.assert_allclose(norm(x).detach().numpy(), expected, rtol=0, atol=3e-6)
    np.testing.assert_allclose(norm.running_mean, 0.1 * x.double().mean(0), rtol=1e-7)


@every_p
def test_constant_input_gives_beta_and_a_finite_gradient(p):
    x, norm = torch.full((6, 4), 3.0, dtype=torch.float64, requires_grad=True), layer(p)
    y = norm(x)
    torch.testing.assert_close(y, norm.bias.expand(6, 4), rtol=0, atol=0)
    (dx,) = torch.autograd.grad((normal(6, 4) * y).sum(), x)
    assert torch.isfinite(dx).all()


@every_p
def test_statistics_carry_no_gradient_and_move_in_training_only(p):
    norm, x = layer(p), normal(6, 4).requires_grad_()
    norm(x)
    assert not norm.running_mean.requires_grad
    assert not norm.running_var.requires_grad
    before = copy.deepcopy(norm.state_dict())
    norm.eval()(x)
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())


@every_p
def test_without_running_statistics_evaluation_uses_the_batch(p):
    norm, x = layer(p, track_running_stats=False), normal(6, 4)
    torch.testing.assert_close(norm.eval()(x), norm.train()(x), rtol=0, atol=0)
    assert layer(p, affine=False).weight is None


@every_p
def test_it_works_under_vmap_with_gradients_and_running_statistics(p):
    members = [layer(p) for _ in range(3)]
    for k, norm in enumerate(members):
        nn.init.constant_(norm.weight, 1.0 + k)
    x, dy = normal(3, 6, 4), normal(3, 6, 4, seed=1)
    alone = []
    for k, norm in enumerate(members):
        leaf = x[k].clone().requires_grad_()
        own = copy.deepcopy(norm)
        alone.append((torch.autograd.grad(own(leaf), leaf, dy[k])[0], own.running_var))
    parameters, buffers = stack_module_state(members)

    def loss(x, parameters, buffers, dy):
        return (dy * functional_call(members[0], (parameters, buffers), (x,))).sum()

    dx = vmap(grad(loss))(x, parameters, buffers, dy)
    for k, (expected, running_var) in enumerate(alone):
        torch.testing.assert_close(dx[k], expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(buffers["running_var"][k], running_var, rtol=1e-12, atol=0)


def test_a_sweep_trains_each_p_as_fit_does():
    digits = data.digits()
    norms = [("lp", 1), ("lp", math.inf)]  # equal shapes: only what a layer prints keeps them apart
    runs = training.sweep(models.mlp, digits, steps=5, seeds=1, norm=norms, depth=2, width=8)
    for k, norm in enumerate(norms):
        torch.manual_seed(0)
        model = models.mlp((64,), 10, norm=norm, depth=2, width=8)
        history = training.fit(model, digits, steps=5, seed=0)
        np.testing.assert_allclose(runs.loss[k, 0], history.loss, rtol=1e-5)


def test_a_probe_knows_that_it_takes_statistics_of_the_batch():
    model = models.mlp((4,), 2, depth=1, width=4, norm=("lp", 1))
    with pytest.raises(ValueError, match="normalizes with the statistics of the batch"):
        probes.per_example_gradients(
            model, nn.functional.cross_entropy, torch.ones(3, 4), torch.zeros(3).long()
        )


def test_a_printed_layer_shows_its_p():
    assert repr(LpBatchNorm(4, math.inf)).endswith(", p=inf)")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LpBatchNorm(4, 3), r"p: got 3, allowed are 1, 2 and math.inf"),
        (lambda: LpBatchNorm(4, None), r"p: got None, allowed are"),
        (lambda: lp_scale(torch.ones(2, 4, 1), math.nan), r"p: got nan, allowed are"),
        (lambda: LpBatchNorm(0, 1), r"num_features: got 0, expected a whole number, 1 or more"),
        (lambda: LpBatchNorm(4, 1)(torch.ones(1, 4)), r"x: got 1 value per channel"),
        (lambda: LpBatchNorm(4, 1)(torch.ones(6, 4, 0)), r"x: got 0 values per channel"),
        (lambda: LpBatchNorm(4, math.inf)(torch.ones(6, 3)), r"x: got shape \(6, 3\), expected"),
        (lambda: LpBatchNorm(4, 1)(torch.full((6, 4), math.nan)), r"x: got NaN, infinity or values too"),
    ],
)
def test_bad_input_gets_a_message_that_names_it_and_what_is_allowed(call, message):
    with pytest.raises(ValueError, match="^" + message):
        call()
