"""The NumPy norms: parity with PyTorch, derivatives, invariants, precision and messages."""

import copy
import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import assert_close
from helpers import normal_array as normal
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from bnbook import norms

f32, f64 = np.float32, np.float64


class Case(NamedTuple):
    """A norm on one shape of input, and PyTorch's function for the same thing."""

    name: str
    shape: tuple[int, ...]
    params: list[tuple[int, ...]]  # shapes of gamma and beta
    forward: Callable
    backward: Callable
    reference: Callable

    def arrays(self, dtype, seed=0):
        """Draw x, the parameters and dy."""
        rng = np.random.default_rng(seed)
        x = 3 + 2 * rng.standard_normal(self.shape)
        params = [1 + 0.5 * rng.standard_normal(shape) for shape in self.params]
        return [a.astype(dtype) for a in (x, *params, rng.standard_normal(self.shape))]

    def run(self, x, *params_and_dy, eps=1e-5):
        """Our (y, dx, dgamma[, dbeta])."""
        *params, dy = params_and_dy
        y, cache = self.forward(x, *params, eps)
        return y, *self.backward(dy, cache)

    def expected(self, x, *params_and_dy, eps=1e-5):
        """PyTorch's, in float64 from contiguous copies: the error that is left is ours."""
        x, *params, dy = (torch.from_numpy(np.array(a, f64, order="C")) for a in (x, *params_and_dy))
        inputs = [x.requires_grad_(), *(p.requires_grad_() for p in params)]
        y = self.reference(*inputs, eps)
        return [a.detach().numpy() for a in (y, *torch.autograd.grad(y, inputs, dy))]


def case(norm, *shape, k=1):
    """Build a case; k is the number of groups, or of axes that layer and RMS norm run over."""
    param = shape[-k:] if norm in ("layer", "rms") else shape[1:2]
    forward, backward = getattr(norms, f"{norm}_norm"), getattr(norms, f"{norm}_norm_backward")
    reference = {
        "batch": lambda x, gamma, beta, eps: F.batch_norm(x, None, None, gamma, beta, True, eps=eps),
        "instance": lambda x, gamma, beta, eps: F.instance_norm(x, weight=gamma, bias=beta, eps=eps),
        "group": lambda x, gamma, beta, eps: F.group_norm(x, k, gamma, beta, eps),
        "layer": lambda x, gamma, beta, eps: F.layer_norm(x, param, gamma, beta, eps),
        "rms": lambda x, gamma, eps: F.rms_norm(x, param, gamma, eps),
    }[norm]
    if norm == "group":
        forward = lambda x, gamma, beta, eps: norms.group_norm(x, k, gamma, beta, eps)  # noqa: E731
    params = [param] if norm == "rms" else [param, param]
    return Case(f"{norm}{shape} k={k}", shape, params, forward, backward, reference)


SHAPES = [(8, 4), (5, 4, 6), (3, 4, 3, 5), (2, 4, 2, 3, 4)]
CASES = [
    *(case("batch", *shape) for shape in SHAPES),
    *(case("instance", *shape) for shape in SHAPES[1:]),
    *(case("group", *shape, k=g) for shape in [(8, 12), *SHAPES[1:]] for g in (1, 2, 4)),
    *(case(norm, *shape, k=k) for norm in ("layer", "rms") for shape in SHAPES for k in {1, len(shape) - 1}),
    *(case(norm, 4, 6, k=2) for norm in ("layer", "rms")),  # nothing left that gamma is shared along
]
SMALL = [case(norm, 5, 4, 6, k=2) for norm in ("batch", "instance", "group", "layer", "rms")]
every_case = pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
every_norm = pytest.mark.parametrize("case", SMALL, ids=lambda c: c.name)
both_dtypes = pytest.mark.parametrize("dtype", [f32, f64], ids=["float32", "float64"])


# --------------------------------------------------------------------------- values and derivatives


@both_dtypes
@every_case
def test_forward_and_backward_equal_those_of_pytorch(case, dtype):
    inputs = case.arrays(dtype)
    for actual, expected in zip(case.run(*inputs), case.expected(*inputs), strict=True):
        assert actual.dtype == dtype
        assert_close(actual, expected, ulps=32)


@pytest.mark.parametrize("eps", [1e-5, 0.5])  # .5: a wrong place for eps shows in the first digit
@every_case
def test_gradients_equal_finite_differences_to_1e_9(case, eps):
    *inputs, dy = case.arrays(f64, seed=1)
    _, *gradients = case.run(*inputs, dy, eps=eps)

    def loss(which, index, step):
        moved = [a.copy() for a in inputs]
        moved[which][index] += step
        return np.vdot(dy, case.forward(*moved, eps)[0])

    for which, gradient in enumerate(gradients):
        for index in list(np.ndindex(gradient.shape))[:: 5 if which == 0 else 1]:
            # Central differences, extrapolated to step 0 (Richardson): truncation h^10, rounding eps / h.
            row = [
                (loss(which, index, h) - loss(which, index, -h)) / (2 * h) for h in 0.1 / 2.0 ** np.arange(5)
            ]
            for k in range(1, 5):
                row = [b + (b - a) / (4**k - 1) for a, b in itertools.pairwise(row)]
            assert abs(row[0] - gradient[index]) <= 1e-9 * np.abs(gradient).max()


def test_cache_holds_x_hat_by_group_and_one_inv_std_for_each():
    x = normal(3, 4, 5)
    _, cache = norms.group_norm(x, 2, np.full(4, 7.0), np.ones(4), eps=0.25)
    rows = x.reshape(3, 2, 2, 5)
    var = np.array([[np.var(g) for g in example] for example in rows])
    assert_close(cache.inv_std, (1 / np.sqrt(var + 0.25)).reshape(3, 2, 1, 1))
    assert_close(cache.x_hat.mean((2, 3)) + 1, np.ones((3, 2)))
    assert_close((cache.x_hat**2).mean((2, 3)), var / (var + 0.25))


def test_moments_are_the_mean_the_biased_variance_and_what_is_left():
    x = normal(4, 3, 2)
    mean, var, centred = norms.moments(x, (0, 2))
    by_channel = x.transpose(1, 0, 2).reshape(3, 8)
    assert_close(mean, np.array([sum(row) / 8 for row in by_channel]).reshape(1, 3, 1))
    assert_close(var, np.array([np.var(row, ddof=0) for row in by_channel]).reshape(1, 3, 1))
    assert_close(centred, x - by_channel.mean(1).reshape(1, 3, 1))


# --------------------------------------------------------------------------- precision and extremes

LONG = [case("batch", 512, 4), case("batch", 8, 4, 16, 16), case("instance", 2, 4, 32, 32)]
LONG += [case("group", 2, 8, 16, 16, k=2), case("layer", 4, 2048), case("rms", 4, 2048)]


@pytest.mark.parametrize("case", LONG, ids=lambda c: c.name)
def test_float32_with_mean_1e6_and_unit_spread_comes_out_right(case):
    _, *params, dy = case.arrays(f32)
    x = (1e6 + normal(*case.shape)).astype(f32)
    for actual, expected in zip(case.run(x, *params, dy), case.expected(x, *params, dy), strict=True):
        # The sums of backward run over up to 2048 products: hence the 64, not because of the mean.
        assert_close(actual, expected, ulps=64)
    one_pass = np.mean(x * x) - np.mean(x) ** 2
    assert abs(one_pass - 1) > 0.5  # this input does break the textbook formula


def test_float32_keeps_its_digits_in_a_long_batch():
    """Summed row after row in float32, 100,000 examples cost three digits."""
    long = case("batch", 100_000, 2)
    x, gamma, beta, dy = long.arrays(f32)
    inputs = x, gamma, beta, dy + 1 + np.sign(x - 3)  # no sum over the batch is near zero
    for actual, expected in zip(long.run(*inputs), long.expected(*inputs), strict=True):
        assert_close(actual, expected, ulps=32)


def test_float64_mean_of_a_long_batch_is_right_to_the_last_digit():
    """The second subtraction serves float64 as well."""
    x = 1e6 + normal(100_000, 2)
    mean, _, _ = norms.moments(x, (0,))
    assert_close(mean, np.array([[math.fsum(column) / len(x) for column in x.T]]), ulps=1)


@pytest.mark.parametrize("scale", [1e15, 1e-20])
@every_norm
def test_large_and_tiny_float32_inputs_come_out_right(case, scale):
    x, *rest = case.arrays(f32)
    x = x * f32(scale)
    for actual, expected in zip(case.run(x, *rest), case.expected(x, *rest), strict=True):
        assert_close(actual, expected, ulps=32)


@both_dtypes
@pytest.mark.parametrize("value", [3.7, 0.0, -1e6])
@pytest.mark.parametrize("case", SMALL[:-1], ids=lambda c: c.name)
def test_constant_input_gives_exactly_beta_and_a_finite_gradient(case, value, dtype):
    x, gamma, beta, dy = case.arrays(dtype)
    y, *gradients = case.run(np.full_like(x, value), gamma, beta, dy)
    shared = beta if "layer" in case.name else beta.reshape(1, -1, *[1] * (x.ndim - 2))
    np.testing.assert_array_equal(y, np.broadcast_to(shared, y.shape))
    assert all(np.isfinite(g).all() for g in gradients)


LAYOUTS = {
    "transposed": lambda x: np.asfortranarray(x),
    "channels last": lambda x: np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1),
    "strided": lambda x: np.repeat(x, 2, -1)[..., ::2],
    "negative strides": lambda x: x[::-1, ::-1].copy()[::-1, ::-1],
    "broadcast, read-only": lambda x: np.broadcast_to(x[:1, :1], x.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@every_norm
def test_memory_layout_does_not_matter(case, layout):
    x, *params, dy = case.arrays(f64)
    x[0, 0] += np.arange(6.0)  # some spread for the broadcast row
    x, dy = layout(x), layout(dy)
    assert not x.flags.c_contiguous
    for actual, expected in zip(case.run(x, *params, dy), case.expected(x, *params, dy), strict=True):
        assert_close(actual, expected, ulps=64)


@every_norm
def test_inputs_are_neither_modified_nor_returned(case):
    inputs = case.arrays(f64)
    for a in inputs:
        a.flags.writeable = False  # an attempt to write would raise
    outputs = case.run(*inputs)
    assert all(a.flags.writeable for a in outputs)
    assert not any(np.shares_memory(a, b) for a in inputs for b in outputs)


@pytest.mark.parametrize(("make", "axis"), [(nn.ConvTranspose1d, 1), (nn.ConvTranspose2d, 1), (nn.Conv2d, 0)])
@pytest.mark.parametrize("channels", [(4, 4), (3, 4)], ids=str)
def test_folding_takes_the_output_channels_from_the_axis_that_is_named(make, axis, channels):
    conv, seeds = make(*channels, 3).double(), iter(range(4))
    mean, gamma, beta = (normal(4, seed=next(seeds)) for _ in range(3))
    state = {"mean": mean, "var": normal(4, seed=next(seeds)) ** 2, "gamma": gamma, "beta": beta}
    weight, bias = (p.detach().numpy() for p in (conv.weight, conv.bias))
    folded = copy.deepcopy(conv)
    for p, value in zip(
        folded.parameters(), norms.fold_batch_norm(weight, bias, **state, out_axis=axis), strict=True
    ):
        p.data = torch.from_numpy(value)
    x = torch.from_numpy(normal(2, channels[0], *[6] * (weight.ndim - 2), seed=9))
    expected = norms.batch_norm_inference(conv(x).detach().numpy(), **state)
    np.testing.assert_allclose(folded(x).detach(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("axis", [None, 2, -1])
def test_folding_asks_for_the_axis_where_a_kernel_does_not_show_it(axis):
    with pytest.raises(
        ValueError, match=rf"out_axis: got {axis} for a weight of shape \(4, 4, 1\), expected 0 for"
    ):
        norms.fold_batch_norm(np.ones((4, 4, 1)), None, *np.ones((4, 4)), out_axis=axis)
    norms.fold_batch_norm(np.ones((4, 4)), None, *np.ones((4, 4)))  # a linear layer is never transposed


def test_statistics_inference_and_folding_do_not_modify_their_inputs():
    x, state = normal(6, 4), [*normal(3, 4), np.ones(4)]
    weight, bias = normal(4, 3), np.ones(4)
    for a in (x, *state, weight, bias):
        a.flags.writeable = False
    norms.RunningStats(4).update(x)
    mean, gamma, beta, var = state
    outputs = [
        *norms.population_stats([x]),
        norms.batch_norm_inference(x, mean, var, gamma, beta),
        *norms.fold_batch_norm(weight, bias, mean, var, gamma, beta),
        *norms.fold_batch_norm(weight, None, mean, var, gamma, beta),
    ]
    assert not any(np.shares_memory(a, b) for a in (x, *state, weight, bias) for b in outputs)


@every_norm
def test_float32_stays_float32_even_with_float64_parameters(case):
    x, *params, dy = case.arrays(f32)
    assert {a.dtype.type for a in case.run(x, *(p.astype(f64) for p in params), dy)} == {f32}
    p, weight = np.ones(4), np.ones((4, 3), f32)
    outputs = *norms.population_stats([x]), norms.batch_norm_inference(x, p, p, p, p)
    assert {a.dtype.type for a in (*outputs, *norms.fold_batch_norm(weight, p, p, p, p, p))} == {f32}


@pytest.mark.parametrize(("kept", "given"), [(f32, f64), (f64, f32)])
def test_running_stats_keep_their_own_dtype_whatever_comes(kept, given):
    stats = norms.RunningStats(4, dtype=kept)
    stats.update(normal(6, 4).astype(given))
    assert stats.mean.dtype == stats.var.dtype == kept


@pytest.mark.parametrize(
    "case", [case(norm, 0, 4, 6, k=2) for norm in ("instance", "group", "layer", "rms")], ids=lambda c: c.name
)
def test_norms_of_single_examples_map_no_example_to_no_example(case):
    *inputs, dy = case.arrays(f32)
    y, dx, *dparams = case.run(*inputs, dy)
    assert y.shape == dx.shape == case.shape
    assert all((g == 0).all() for g in dparams)


# --------------------------------------------------------------------------- invariants


seeds = st.integers(0, 999)


@given(st.sampled_from(SMALL), seeds, st.floats(-100, 100), st.floats(1e-3, 1e3), st.booleans())
def test_shift_and_scale_of_the_input_leave_the_output_alone(case, seed, shift, scale, eps_is_zero):
    x, *params, dy = case.arrays(f64, seed)
    shift, eps = shift * ("rms" not in case.name), 0.0 if eps_is_zero else 0.1
    y, dx, *_ = case.run(x, *params, dy, eps=eps)
    y_moved, dx_moved, *_ = case.run(scale * x + shift, *params, dy, eps=scale**2 * eps)
    inv_std = case.forward(x, *params, 0.0)[1].inv_std.max()
    condition = (np.abs(x).max() + abs(shift) / scale) * inv_std  # scale * x + shift is itself rounded
    rounding = 32 * np.finfo(f64).eps * condition
    np.testing.assert_allclose(y_moved, y, rtol=0, atol=rounding * np.abs(params[0]).max())
    np.testing.assert_allclose(scale * dx_moved, dx, rtol=0, atol=8 * rounding * inv_std * np.abs(dy).max())


@given(st.sampled_from(SMALL), seeds, st.booleans())
def test_gradient_is_orthogonal_to_one_and_at_eps_0_to_x_hat(case, seed, eps_is_zero):
    *inputs, dy = case.arrays(f64, seed)
    _, cache = case.forward(*inputs, 0.0 if eps_is_zero else 0.1)
    dx = case.backward(dy, cache)[0].reshape(cache.x_hat.shape)
    rounding = 64 * np.finfo(f64).eps * cache.x_hat.size * np.abs(dx).max()
    if "rms" not in case.name:
        assert np.abs(dx.sum(cache.axes)).max() <= rounding
    along_x_hat = np.abs((dx * cache.x_hat).sum(cache.axes)).max()
    assert along_x_hat <= rounding if eps_is_zero else along_x_hat > rounding


@given(st.integers(2, 6), st.randoms(use_true_random=False), seeds)
def test_permuting_the_batch_permutes_the_output_and_the_gradient(n, random, seed):
    order = random.sample(range(n), n)
    x, dy = normal(2, n, 3, 4, seed=seed)
    gamma, beta = normal(2, 3, seed=seed)
    y, cache = norms.batch_norm(x, gamma, beta)
    dx, *sums = norms.batch_norm_backward(dy, cache)
    y_p, cache_p = norms.batch_norm(x[order], gamma, beta)
    dx_p, *sums_p = norms.batch_norm_backward(dy[order], cache_p)
    for actual, expected in zip((y_p, dx_p, *sums_p), (y[order], dx[order], *sums), strict=True):
        assert_close(actual, expected, ulps=256)


@given(array_shapes(min_dims=3, max_dims=4, min_side=2, max_side=4), seeds)
def test_one_group_is_layer_norm_and_as_many_as_channels_is_instance_norm(shape, seed):
    x, dy = normal(2, *shape, seed=seed)
    gamma, beta = normal(2, shape[1], seed=seed)

    def everywhere(p):
        return np.broadcast_to(p.reshape(-1, *[1] * (len(shape) - 2)), shape[1:])

    for groups, (y_other, other) in {
        1: norms.layer_norm(x, everywhere(gamma), everywhere(beta)),
        shape[1]: norms.instance_norm(x, gamma, beta),
    }.items():
        y, cache = norms.group_norm(x, groups, gamma, beta)
        assert_close(y, y_other)
        dx = norms.group_norm_backward(dy, cache)[0]
        assert_close(dx, norms.layer_norm_backward(dy, other)[0], ulps=64 * max(1, cache.inv_std.max()))


@given(st.integers(1, 4), st.integers(2, 6), seeds)
def test_rms_norm_is_layer_norm_on_rows_of_mean_zero(rows, length, seed):
    x, gamma = normal(rows, 2 * length, seed=seed), normal(2 * length, seed=seed)
    x[:, length:] = -x[:, :length]  # each row sums to exactly zero
    assert_close(norms.rms_norm(x, gamma)[0], norms.layer_norm(x, gamma, 0 * gamma)[0])


# --------------------------------------------------------------------------- statistics, inference, folding


@both_dtypes
@pytest.mark.parametrize("momentum", [0.1, 0.9, None, 1.0, 0.0])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_running_stats_follow_those_of_pytorch_over_several_steps(shape, momentum, dtype):
    torch_class = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[len(shape)]
    reference = torch_class(4, momentum=momentum).double()
    stats = norms.RunningStats(4, momentum, dtype=dtype)
    for step in range(4):
        x = (step + (step + 1) * normal(step + 2, *shape[1:], seed=step)).astype(dtype)  # sizes differ
        stats.update(x)
        reference(torch.from_numpy(x.astype(f64)))
        assert stats.num_batches == step + 1
        assert stats.mean.dtype == stats.var.dtype == dtype
        assert_close(stats.mean, reference.running_mean.numpy())
        assert_close(stats.var, reference.running_var.numpy())


def test_a_later_update_weighs_more():
    stats, batches = norms.RunningStats(2, momentum=0.25), normal(3, 6, 2)
    for x in batches:
        stats.update(x)
    first, second, third = batches.mean(1)
    assert_close(stats.mean, 0.25 * (0.75**2 * first + 0.75 * second + third))
    first, second, third = batches.var(1, ddof=1)
    assert_close(stats.var, 0.75**3 * 1.0 + 0.25 * (0.75**2 * first + 0.75 * second + third))


@given(array_shapes(min_dims=4, max_dims=4, min_side=1, max_side=5), seeds)
def test_equal_batches_give_the_population_mean_and_split_its_variance(shape, seed):
    count, n, channels, positions = shape
    batches = 3 + normal(count, 2 * n, channels, positions, seed=seed)
    m = 2 * n * positions
    mean, var = norms.population_stats(iter(batches))
    everything = np.moveaxis(batches, 2, 0).reshape(channels, -1)
    between = batches.mean((1, 3)).var(0)
    assert_close(mean, everything.mean(1))
    rounding = 16 * np.finfo(f64).eps * np.square(everything).max()
    total = (m - 1) / m * var + between  # law of total variance
    np.testing.assert_allclose(total, everything.var(1), rtol=0, atol=rounding)


def test_population_variance_is_unbiased():
    """All samples of three with replacement: their mean is the expectation, exactly."""
    values = [0.0, 1.0, 5.0, 7.0]
    batches = [np.array(sample)[:, None] for sample in itertools.product(values, repeat=3)]
    mean, var = norms.population_stats(batches)
    assert_close(mean, np.array([np.mean(values)]))
    assert_close(var, np.array([np.var(values)]))


def test_population_stats_weigh_each_batch_alike_as_momentum_none_does():
    batches = [normal(n, 3, 2, seed=n) for n in (2, 3, 11)]
    reference = nn.BatchNorm1d(3, momentum=None).double()
    for x in batches:
        reference(torch.from_numpy(x))
    mean, var = norms.population_stats(batches)
    assert_close(mean, reference.running_mean.numpy())
    assert_close(var, reference.running_var.numpy())


@both_dtypes
@pytest.mark.parametrize("shape", [*SHAPES, (1, 4), (1, 4, 1), (0, 4, 2), (2, 4, 0)], ids=str)
def test_inference_equals_pytorch_for_any_batch_size(shape, dtype):
    x = normal(*shape).astype(dtype)
    mean, gamma, beta = normal(3, 4, seed=1).astype(dtype)
    var = np.array([0, 1e-3, 1, 100], dtype)
    y = norms.batch_norm_inference(x, mean, var, gamma, beta, 1e-3)
    x, *state = (torch.from_numpy(a.astype(f64)) for a in (x, mean, var, gamma, beta))
    assert y.dtype == dtype
    assert_close(y, F.batch_norm(x, *state, training=False, eps=1e-3).numpy())


def test_at_inference_an_example_does_not_depend_on_its_neighbours():
    x, mean, gamma = normal(6, 4, 3), normal(4), normal(4)
    together = norms.batch_norm_inference(x, mean, gamma**2, gamma, mean)
    for i in range(6):
        alone = norms.batch_norm_inference(x[i : i + 1], mean, gamma**2, gamma, mean)
        np.testing.assert_array_equal(alone[0], together[i])


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize(
    ("make", "fuse", "shape"),
    [
        (lambda b: (nn.Linear(5, 3, b), nn.BatchNorm1d(3)), fuse_linear_bn_eval, (4, 5)),
        (lambda b: (nn.Conv1d(5, 3, 2, bias=b), nn.BatchNorm1d(3)), fuse_conv_bn_eval, (4, 5, 6)),
        (lambda b: (nn.Conv2d(5, 3, 3, bias=b), nn.BatchNorm2d(3)), fuse_conv_bn_eval, (4, 5, 6, 7)),
    ],
    ids=["linear", "conv1d", "conv2d"],
)
@given(seeds)
def test_one_folded_layer_computes_what_the_two_did(make, fuse, shape, with_bias, seed):
    torch.manual_seed(seed)
    first, second = (module.double().eval() for module in make(with_bias))
    for tensor in (second.weight, second.bias, second.running_mean):
        nn.init.normal_(tensor)
    nn.init.uniform_(second.running_var, 0.1, 2)
    second.running_var[0], second.eps = 0, 0.1  # a dead unit, and an eps that counts
    x = torch.from_numpy(normal(*shape, seed=seed))
    state = [
        t.detach().numpy() for t in (second.running_mean, second.running_var, second.weight, second.bias)
    ]
    bias = first.bias.detach().numpy() if with_bias else None
    weight, bias = norms.fold_batch_norm(first.weight.detach().numpy(), bias, *state, second.eps)
    with torch.no_grad():
        fused, two = fuse(first, second), second(first(x))
        assert_close(weight, fused.weight.numpy())
        assert_close(bias, fused.bias.numpy())
        first.weight.copy_(torch.from_numpy(weight))
        first.bias = nn.Parameter(torch.from_numpy(bias))
        np.testing.assert_allclose(first(x).numpy(), two.numpy(), rtol=0, atol=1e-12)


# --------------------------------------------------------------------------- bad input

ONE, P, X = np.ones(1), np.ones(4), np.ones((6, 4))
NOT_FINITE = (np.nan, np.inf, -np.inf)
LARGEST = np.array(
    [[1.0], [1.0], [-1.0]]
)  # times the largest number: its spread overflows before it is squared
V, HUGE = np.arange(64.0).reshape(4, 4, 4), np.array([[1e30], [-1e30]], f32)
STATE = dict(mean=P, var=P, gamma=P, beta=P)
FORWARD = {
    "batch_norm": lambda x, eps=1e-5: norms.batch_norm(x, P, P, eps),
    "layer_norm": lambda x, eps=1e-5: norms.layer_norm(x, P, P, eps),
    "instance_norm": lambda x, eps=1e-5: norms.instance_norm(x, P, P, eps),
    "group_norm": lambda x, eps=1e-5: norms.group_norm(x, 2, P, P, eps),
    "rms_norm": lambda x, eps=1e-5: norms.rms_norm(x, P, eps),
    "batch_norm_inference": lambda x, eps=1e-5: norms.batch_norm_inference(x, **STATE, eps=eps),
    "fold_batch_norm": lambda x, eps=1e-5: norms.fold_batch_norm(x, None, **STATE, eps=eps),
    "population_stats": lambda x, eps=None: norms.population_stats([x]),
    "RunningStats": lambda x, eps=None: norms.RunningStats(4).update(x),
}


@pytest.mark.parametrize("name", FORWARD)
@pytest.mark.parametrize(
    ("bad", "message"),
    [
        *((np.where(V == 27, v, V), "got NaN or infinity in 1 of 64 values, all") for v in NOT_FINITE),
        *((V.astype(d), f"got dtype {d}, allowed are float32 and f") for d in ("int64", "float16", "bool")),
        (np.array(1.0), r"got shape \(\), expected \("),
    ],
    ids=["NaN", "inf", "-inf", "int64", "float16", "bool", "0-d"],
)  # fmt: skip
def test_every_function_rejects_what_it_cannot_normalize(name, bad, message):
    argument = "weight" if name == "fold_batch_norm" else "x"
    with pytest.raises(ValueError, match=f"^{argument}: {message}"):
        FORWARD[name](bad)


@pytest.mark.parametrize("name", list(FORWARD)[:7])
@pytest.mark.parametrize("eps", [-1e-5, np.nan, np.inf])
def test_every_function_rejects_an_eps_that_is_no_variance(name, eps):
    with pytest.raises(ValueError, match=f"^eps: got {eps}, expected a finite number, 0 or larger"):
        FORWARD[name](V, eps)


def backward(dy):
    return norms.batch_norm_backward(dy, norms.batch_norm(X, P, P)[1])


@pytest.mark.parametrize(
    ("message", "call"),
    [
        (r"x: got shape \(4,\), expected \(N, C\) or", lambda: norms.batch_norm(P, P, P)),
        (r"x: got shape \(6, 4\), expected \(N, C, \*spatial\)", lambda: norms.instance_norm(X, P, P)),
        (r"x: got shape \(4,\), expected \(N, C\) or", lambda: norms.group_norm(P, 1, P, P)),
        (r"x: got shape \(4,\), expected \(\*leading, \*norm", lambda: norms.layer_norm(P, X, X)),
        (r"weight: got shape \(4,\), expected \(C_out, C", lambda: norms.fold_batch_norm(P, None, **STATE)),
        (r"x: got 1 value per channel \(shape \(1, 4\)\), at least 2", lambda: norms.batch_norm(X[:1], P, P)),
        (r"x: got 0 values per channel \(shape \(0, 4\)\)", lambda: norms.batch_norm(X[:0], P, P)),
        (r"x: got 1 value per channel \(", lambda: norms.RunningStats(4).update(X[:1])),
        (r"x: got 1 value per channel of an ex", lambda: norms.instance_norm(np.ones((6, 4, 1, 1)), P, P)),
        (r"x: got 0 values per channel of an ex", lambda: norms.instance_norm(np.ones((6, 4, 0)), P, P)),
        (r"x: got 1 value per group of an example", lambda: norms.group_norm(X, 4, P, P)),
        (r"x: got 1 value per example \(shape \(6, 1\)", lambda: norms.layer_norm(X[:, :1], ONE, ONE)),
        (r"(x|gamma): got .*0", lambda: norms.rms_norm(np.ones((6, 0)), np.ones(0))),
        (r"num_groups: got 3, allowed are the divisors of 4 channels", lambda: norms.group_norm(X, 3, P, P)),
        (r"num_groups: got 0, allowed are the divisors of 4", lambda: norms.group_norm(X, 0, P, P)),
        (r"gamma: got a single number, expected an array", lambda: norms.layer_norm(X, f64(1), P)),
        (r"beta: got shape \(1,\), expected \(4,\)", lambda: norms.group_norm(X, 2, P, ONE)),
        (r"beta: got shape \(4, 1\), expected \(4,\)", lambda: norms.batch_norm(X, P, P[:, None])),
        (r"gamma: got shape \(1,\), expected \(4,\)", lambda: norms.layer_norm(X, ONE, P)),
        (r"beta: got shape \(1,\), expected \(4,\)", lambda: norms.layer_norm(X, P, ONE)),
        (r"gamma: got shape \(1,\), expected \(4,\)", lambda: norms.rms_norm(X, ONE)),
        (r"gamma: got NaN or infinity, all values must be", lambda: norms.batch_norm(X, P * np.nan, P)),
        (r"beta: got NaN or infinity, all values must be", lambda: norms.layer_norm(X, P, P * np.inf)),
        *(
            (rf"{name}: got shape \(1,\), expected \(4,\)", partial(call, **{**STATE, name: ONE}))
            for name in STATE
            for call in (partial(norms.batch_norm_inference, X), partial(norms.fold_batch_norm, X.T, None))
        ),
        (r"bias: got shape \(1,\), expected \(4,\)", lambda: norms.fold_batch_norm(X.T, ONE, **STATE)),
        (r"var: got -1, a variance is 0", lambda: norms.batch_norm_inference(X, **{**STATE, "var": -P})),
        (r"var: got -1, a variance is 0", lambda: norms.fold_batch_norm(X.T, P, **{**STATE, "var": -P})),
        (r"dy: got shape \(4, 6\), expected that of the output, \(6, 4\)", lambda: backward(X.T)),
        (r"dy: got dtype float32, expected that of the output, float64", lambda: backward(X.astype(f32))),
        *(
            (r"eps: got 0 where 4 of 4 variances are 0 too; allowed is eps > 0", call)
            for call in (
                lambda: norms.batch_norm(0 * X + 3, P, P, eps=0),
                lambda: norms.batch_norm_inference(X, **{**STATE, "var": 0 * P}, eps=0),
                lambda: norms.fold_batch_norm(X.T, None, **{**STATE, "var": 0 * P}, eps=0),
            )
        ),
        (r"eps: got 0 where 6 of 6 variances are 0 too", lambda: norms.rms_norm(0 * X, P, eps=0)),
        (r"batches: got none, at least one batch is needed", lambda: norms.population_stats([])),
        (r"x: got 3 channels \(shape \(6, 3\)\), expected 4", lambda: norms.population_stats([X, X[:, :3]])),
        (r"x: got 3 channels \(shape \(6, 3\)\), expected 4", lambda: norms.RunningStats(4).update(X[:, :3])),
        (r"num_features: got 0, expected a whole number, 1 or more", lambda: norms.RunningStats(0)),
        (r"momentum: got 1.1, allowed are None and numbers from 0 to 1", lambda: norms.RunningStats(4, 1.1)),
        (r"momentum: got -0.1, allowed are None and", lambda: norms.RunningStats(4, -0.1)),
        (r"momentum: got nan, allowed are None and", lambda: norms.RunningStats(4, np.nan)),
        (r"dtype: got .*int.*float32.*float64", lambda: norms.RunningStats(4, dtype=np.int64)),
        (r"x: its variance .* \(largest magnitude 1e\+30\); s", lambda: norms.batch_norm(HUGE, ONE, ONE)),
        (r"x: its variance overflows float32", lambda: norms.layer_norm(HUGE.T, [1, 1], [1, 1])),
        (r"x: its mean square overflows float32", lambda: norms.rms_norm(HUGE, ONE)),
        (r"x: its variance overflows float32", lambda: norms.RunningStats(1).update(HUGE)),
        (r"x: its variance overflows float32", lambda: norms.population_stats([HUGE])),
        (r"x: its variance over.* float32", lambda: norms.batch_norm((3e38 * LARGEST).astype(f32), ONE, ONE)),
        (r"x: its variance overflows float64", lambda: norms.batch_norm(1.7e308 * LARGEST, ONE, ONE)),
        (r"x: its mean square overflows float64", lambda: norms.rms_norm(1.7e308 * LARGEST, ONE)),
        (r"x: its .*variance .* float32", lambda: norms.RunningStats(1, dtype=f32).update(1.5e-11 * HUGE)),
        (r"x: its .*variance .* float32", lambda: norms.RunningStats(1, dtype=f32).update(f64(1) * HUGE)),
    ],
)  # fmt: skip
def test_bad_input_gets_a_message_that_names_it_and_what_is_allowed(message, call):
    with pytest.raises(ValueError, match="^" + message):
        call()


@pytest.mark.parametrize(
    "bad", [X[:, :3], X[:1], np.where(V == 27, np.nan, V), HUGE.repeat(4, 1)], ids=range(4)
)
def test_a_rejected_batch_leaves_the_running_stats_as_they_were(bad):
    stats = norms.RunningStats(4, momentum=None)
    stats.update(normal(6, 4))
    mean, var = stats.mean.copy(), stats.var.copy()
    with pytest.raises(ValueError, match=r"^x: "):
        stats.update(bad)
    assert stats.num_batches == 1
    np.testing.assert_array_equal([stats.mean, stats.var], [mean, var])
