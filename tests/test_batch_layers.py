"""Batch norm's relatives (ghosts, renormalization, noise), and batch norm in a stack of networks."""

import copy
import math
import pickle
import warnings

import numpy as np
import pytest
import torch
from helpers import normal, outputs_and_gradients, randomize
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call, grad, stack_module_state, vmap

from bnbook import data, layers, models, training

f32, f64 = torch.float32, torch.float64
SHAPES = [(12, 3), (12, 3, 4), (12, 3, 3, 5)]
NN = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}
NOISE = {"mu": (-0.5, 0.5), "sigma": (1.0, 1.25)}

both_dtypes = pytest.mark.parametrize("dtype", [f32, f64], ids=str)
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
affine_or_not = pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
any_momentum = pytest.mark.parametrize("momentum", [0.1, None])


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def close(actual, expected):
    """To a few hundred rounding errors of the largest value."""
    atol = 300 * torch.finfo(actual.dtype).eps * max(1.0, float(expected.detach().abs().max()))
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


def all_close(actual, expected):
    for a, e in zip(actual, expected, strict=True):
        close(a, e)


def running(layer):
    return layer.running_mean, layer.running_var


# --------------------------------------------------------------------------- ghosts


@both_dtypes
@affine_or_not
@pytest.mark.parametrize("size", [2, 3, 4, 12])
@every_shape
def test_ghosts_are_chunks_each_normalized_by_pytorch(shape, size, affine, dtype):
    ours = randomize(layers.GhostBatchNorm(3, size, eps=1e-3, affine=affine)).to(dtype)
    one = NN[len(shape)](3, eps=1e-3, affine=affine, track_running_stats=False).to(dtype)
    one.load_state_dict(dict(ours.named_parameters()))
    for seed in range(3):
        x, dy = 2 + 3 * normal(*shape, dtype=dtype, seed=seed), normal(*shape, dtype=dtype, seed=9)
        actual = outputs_and_gradients(ours, x, dy)
        assert {a.dtype for a in actual} == {dtype}
        all_close(actual, outputs_and_gradients(Chunks(one, size), x, dy))


class Chunks(nn.Module):
    """The definition: norm of each chunk, one after another."""

    def __init__(self, norm, size):
        super().__init__()
        self.norm, self.size = norm, size

    def forward(self, x):
        return torch.cat([self.norm(chunk) for chunk in x.split(self.size)])


@any_momentum
@every_shape
def test_running_statistics_take_in_the_average_over_the_ghosts(shape, momentum):
    ours = layers.GhostBatchNorm(3, 4, momentum=momentum).double()
    mean, var = torch.zeros(3, dtype=f64), torch.ones(3, dtype=f64)
    for step in range(1, 6):
        x = step + step * normal(4 * step, *shape[1:], seed=step)  # the number of ghosts differs
        ours(x)
        chunks = [c.transpose(0, 1).flatten(1) for c in x.split(4)]
        weight = 1 / step if momentum is None else momentum
        mean = (1 - weight) * mean + weight * torch.stack([c.mean(1) for c in chunks]).mean(0)
        var = (1 - weight) * var + weight * torch.stack([c.var(1) for c in chunks]).mean(0)
        all_close(running(ours), (mean, var))
        assert ours.num_batches_tracked == step
    expected = (x - mean.view(1, 3, *[1] * (x.ndim - 2))) / (var + 1e-5).sqrt().view(
        1, 3, *[1] * (x.ndim - 2)
    )
    close(ours.eval()(x), expected)
    close(ours(x[:3]), expected[:3])  # in evaluation no ghosts, and any number of examples
    assert ours.num_batches_tracked == 5


def test_one_ghost_is_batch_norm_and_so_is_evaluation_without_statistics():
    x, dy = normal(12, 3), normal(12, 3, seed=1)
    ours = randomize(layers.GhostBatchNorm(3, 12)).double()
    plain = randomize(layers.BatchNorm(3)).double()
    all_close(outputs_and_gradients(ours, x, dy), outputs_and_gradients(plain, x, dy))
    all_close(running(ours), running(plain))
    ours = layers.GhostBatchNorm(3, 2, affine=False, track_running_stats=False).double()
    assert (ours(x).abs() <= 1).all()  # two values: the sign of their difference
    close(ours.eval()(x), layers.BatchNorm(3, affine=False).double()(x))


def test_ghosts_of_a_transposed_batch_are_the_same():
    x = normal(3, 12).t()
    assert not x.is_contiguous()
    layer = layers.GhostBatchNorm(3, 4).double()
    assert torch.equal(layer(x), layer(x.contiguous()))


# --------------------------------------------------------------------------- renormalization


def renorm(x, mean, var, r_max, d_max, gamma, beta, eps=1e-5):
    """Algorithm 1 of Ioffe (2017), for (N, C), term by term."""
    mu_b, sigma_b = x.mean(0), (x.var(0, correction=0) + eps).sqrt()
    sigma = (var + eps).sqrt()
    with torch.no_grad():
        r = torch.from_numpy(np.clip((sigma_b / sigma).numpy(), 1 / r_max, r_max))
        d = torch.from_numpy(np.clip(((mu_b - mean) / sigma).numpy(), -d_max, d_max))
    return ((x - mu_b) / sigma_b * r + d) * gamma + beta


@pytest.mark.parametrize(("r_max", "d_max"), [(1.0, 0.0), (1.2, 0.3), (3.0, 5.0), (math.inf, math.inf)])
@affine_or_not
@any_momentum
def test_renorm_follows_its_definition_over_several_steps(momentum, affine, r_max, d_max):
    ours = layers.BatchRenorm(3, r_max, d_max, 1e-3, momentum, affine).double()
    plain = layers.BatchNorm(3, 1e-3, momentum, affine).double()
    randomize(ours)
    clipped = set()
    for step in range(6):
        # Deviations and means below, within and above the limits
        x = (step - 2.5) / 3 + torch.tensor([0.4, 1.0, 2.5], dtype=f64) * normal(8, 3, seed=step)
        dy, before = normal(8, 3, seed=9), [s.clone() for s in running(ours)]
        actual = outputs_and_gradients(ours, x, dy)
        leaves = [
            x.clone().requires_grad_(),
            *(p.detach().clone().requires_grad_() for p in ours.parameters()),
        ]
        gamma, beta = leaves[1:] if affine else (1.0, 0.0)
        y = renorm(leaves[0], *before, r_max, d_max, gamma, beta, 1e-3)
        all_close(actual, (y, *torch.autograd.grad(y, leaves, dy)))
        ratio = ((x.var(0, correction=0) + 1e-3) / (before[1] + 1e-3)).sqrt()
        clipped |= {*((ratio > r_max).int() - (ratio < 1 / r_max).int()).tolist()}
        plain(x)
        all_close(running(ours), running(plain))
    if 1 < r_max < 2:
        assert clipped == {-1, 0, 1}  # the data did reach both limits


@both_dtypes
@every_shape
def test_renorm_without_correction_is_batch_norm_to_the_last_bit(shape, dtype):
    ours, plain = layers.BatchRenorm(3), layers.BatchNorm(3)
    randomize(ours).to(dtype)
    randomize(plain).to(dtype)
    for step in range(3):
        x, dy = 2 + step * normal(*shape, dtype=dtype, seed=step), normal(*shape, dtype=dtype, seed=9)
        for a, e in zip(outputs_and_gradients(ours, x, dy), outputs_and_gradients(plain, x, dy), strict=True):
            assert torch.equal(a, e)
    assert all(torch.equal(value, ours.state_dict()[key]) for key, value in plain.state_dict().items())
    assert torch.equal(ours.eval()(x), plain.eval()(x))


@both_dtypes
@every_shape
def test_unlimited_renorm_trains_with_the_output_of_evaluation(shape, dtype):
    layer = randomize(layers.BatchRenorm(3, math.inf, math.inf)).to(dtype)
    for step in range(4):
        x = 2 + 3 * normal(*shape, dtype=dtype, seed=step)
        expected = copy.deepcopy(layer).eval()(x)  # before the step: with the statistics that it uses
        close(layer(x), expected)


def test_a_schedule_may_set_the_limits():
    x, layer = 3 + normal(8, 3), layers.BatchRenorm(3).double()
    for layer.r_max, layer.d_max in [(1, 0), (2.0, 0.5), (math.inf, math.inf)]:
        state = copy.deepcopy(layer.state_dict())
        expected = renorm(x, *running(layer), layer.r_max, layer.d_max, 1.0, 0.0)
        close(layer(x), expected.detach())
        layer.load_state_dict(state)
    layer.r_max = 0.5
    with pytest.raises(ValueError, match=r"^r_max: got 0\.5, allowed are numbers from 1"):
        layer(x)
    assert layer.eval()(x).shape == x.shape  # in evaluation there is no limit


def test_renorm_with_frozen_or_without_statistics():
    x, layer = 3 + normal(8, 3), layers.BatchRenorm(3, math.inf, math.inf).double()
    layer.track_running_stats = False  # as in BatchNorm: used, no longer updated
    close(layer(x), x / math.sqrt(1 + 1e-5))
    assert layer.num_batches_tracked == 0
    layer.running_mean = layer.running_var = None
    assert torch.equal(layer(x), layers.BatchNorm(3).double()(x))


def test_renorm_of_float32_with_mean_1e6_comes_out_right():
    x = (1e6 + normal(512, 3)).float()
    layer = layers.BatchRenorm(3, math.inf, math.inf, momentum=1.0)
    layer(x)
    expected = copy.deepcopy(layer).double().eval()(x.double())
    error = (layer(x).double() - expected).abs().max()
    assert error < 2e-6


# --------------------------------------------------------------------------- noise


def test_noise_draws_a_mean_and_a_scale_a_channel_and_a_call_and_noise_a_value():
    """Recover the noise from two inputs: y = s x + m at x = 0 is m, and y(1) - y(0) is s."""
    zeros, channels = torch.zeros(100, 400, 6, dtype=f64), 400
    m = layers.add_noise(zeros, seeded(0))
    s = layers.add_noise(zeros + 1, seeded(0)) - m
    m, s = (t.transpose(0, 1).flatten(1) for t in (m, s))  # 400 channels of 600 values
    mu, sigma = m.mean(1), s.mean(1)

    # Each value. Standard errors: a mean of 600 of these has .0024 and .0041, and 5 of them are allowed.
    assert ((m - mu[:, None]).abs() <= 0.1 + 5 * 0.0024).all()
    within = 400 * 600
    assert (m - mu[:, None]).std() == pytest.approx(0.2 / math.sqrt(12), rel=5 / math.sqrt(2 * within))
    assert (s - sigma[:, None]).std() == pytest.approx(0.1, rel=5 / math.sqrt(2 * within))
    kurtosis = ((s - sigma[:, None]) / (s - sigma[:, None]).std()).pow(4).mean()
    assert kurtosis == pytest.approx(3, abs=5 * math.sqrt(24 / within))  # Gaussian; uniform has 1.8
    # Each channel. A uniform variable on [a, b] has mean (a + b) / 2 and deviation (b - a) / √12.
    for sample, (low, high), own in [(mu, NOISE["mu"], 0.0024), (sigma, NOISE["sigma"], 0.0041)]:
        std = (high - low) / math.sqrt(12)
        assert sample.mean() == pytest.approx((low + high) / 2, abs=5 * std / math.sqrt(channels))
        assert sample.std() == pytest.approx(std, rel=5 / math.sqrt(2 * channels))
        assert sample.min() >= low - 5 * own
        assert sample.max() <= high + 5 * own
    # Independent: between m and s, from example to example, from position to position
    for a, b in [(mu, sigma), (m - mu[:, None], s - sigma[:, None])]:
        assert abs(np.corrcoef(a.flatten(), b.flatten())[0, 1]) < 5 / math.sqrt(a.numel())
    for noise in (m - mu[:, None], s - sigma[:, None]):
        cube = noise.view(400, 100, 6)
        for a, b in [(cube[:, :50], cube[:, 50:]), (cube[..., :3], cube[..., 3:])]:
            assert abs(np.corrcoef(a.flatten(), b.flatten())[0, 1]) < 5 / math.sqrt(a.numel())
    # The next call has another mean and scale.
    generator = seeded(0)
    first, second = (layers.add_noise(zeros, generator).mean((0, 2)) for _ in range(2))
    assert abs(np.corrcoef(first, second)[0, 1]) < 5 / math.sqrt(channels)


@both_dtypes
@every_shape
def test_noisy_batch_norm_is_batch_norm_then_noise_and_only_in_training(shape, dtype):
    noisy = randomize(layers.NoisyBatchNorm(3, generator=seeded(5))).to(dtype)
    plain, alone = randomize(layers.BatchNorm(3)).to(dtype), layers.Noise(3, seeded(5))
    for step in range(3):
        x = 2 + 3 * normal(*shape, dtype=dtype, seed=step)
        y = noisy(x)
        assert y.dtype == dtype
        assert torch.equal(y, alone(plain(x)))
        assert not torch.equal(y, plain.eval()(x))
        plain.train()
    assert all(torch.equal(value, noisy.state_dict()[key]) for key, value in plain.state_dict().items())
    state = noisy.generator.get_state()
    assert torch.equal(noisy.eval()(x), plain.eval()(x))
    assert alone.eval()(x) is x
    assert torch.equal(noisy.generator.get_state(), state)


@pytest.mark.parametrize(
    "make",
    [lambda g: layers.Noise(3, g), lambda g: layers.NoisyBatchNorm(3, generator=g)],
    ids=["alone", "BN"],
)
def test_a_generator_makes_noise_reproducible_and_leaves_the_global_state_alone(make):
    x = normal(6, 3, dtype=f32)
    before = torch.get_rng_state()
    first, second = make(seeded(1)), make(seeded(1))
    assert torch.equal(first(x), second(x))
    assert not torch.equal(first(x), make(seeded(2))(x))
    assert torch.equal(torch.get_rng_state(), before)
    with torch.random.fork_rng():  # without one, the global state decides
        torch.manual_seed(0)
        y = make(None)(x)
        torch.manual_seed(0)
        assert torch.equal(make(None)(x), y)
        assert not torch.equal(make(None)(x), y)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"]
)
def test_a_copy_has_a_generator_of_its_own_in_the_same_state(copied):
    x, layer = normal(6, 3, dtype=f32), layers.NoisyBatchNorm(3, generator=seeded(1))
    layer(x)
    twin = copied(layer)
    for _ in range(2):
        assert torch.equal(twin(x), layer(x))


def test_noise_is_a_constant_to_the_gradient():
    x = normal(6, 3, 2).requires_grad_()
    s = layers.add_noise(torch.ones(6, 3, 2, dtype=f64), seeded(1)) - layers.add_noise(
        torch.zeros(6, 3, 2, dtype=f64), seeded(1)
    )
    dy = normal(6, 3, 2, seed=1)
    (dx,) = torch.autograd.grad(layers.add_noise(x, seeded(1)), x, dy)
    close(dx, s * dy)


# --------------------------------------------------------------------------- all of them

RELATIVES = {
    "ghost": lambda **kw: layers.GhostBatchNorm(3, 4, **kw),
    "renorm": lambda **kw: layers.BatchRenorm(3, 1.2, 0.3, **kw),
    "noisy": lambda **kw: layers.NoisyBatchNorm(3, generator=seeded(1), **kw),
}
each = pytest.mark.parametrize("name", RELATIVES)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("shape", [(8, 3), (4, 3, 2), (4, 3, 3, 3)], ids=str)
@pytest.mark.parametrize("name", ["ghost", "noisy"])
def test_first_and_second_derivatives_equal_finite_differences(name, shape, training):
    """Noise is frozen: every evaluation draws the same. (Renorm's r and d have no gradient by design.)"""
    layer = RELATIVES[name]().double().train(training)

    def function(x, weight, bias):
        if name == "noisy":
            layer.generator.manual_seed(1)
        return functional_call(layer, {"weight": weight, "bias": bias}, (x,))

    inputs = (normal(*shape), normal(3, seed=1), normal(3, seed=2))
    inputs = tuple(t.requires_grad_() for t in inputs)
    assert gradcheck(function, inputs, rtol=1e-6, atol=1e-8)
    assert gradgradcheck(function, inputs, rtol=1e-6, atol=1e-8)


def test_renorm_derivatives_equal_finite_differences_with_r_and_d_frozen():
    """At their limits r and d do not depend on x: finite differences then see what autograd sees."""
    layer = layers.BatchRenorm(3, 1.2, 0.3).double()
    layer.track_running_stats = False

    def function(x, weight, bias):
        return functional_call(layer, {"weight": weight, "bias": bias}, (x,))

    x = torch.tensor([3.0, -3.0, 3.0]) + torch.tensor([3.0, 3.0, 0.2]) * normal(8, 3)
    inputs = tuple(t.requires_grad_() for t in (x, normal(3, seed=1), normal(3, seed=2)))
    assert gradcheck(function, inputs, rtol=1e-6, atol=1e-8)
    assert gradgradcheck(function, inputs, rtol=1e-6, atol=1e-8)


@affine_or_not
@each
def test_state_dict_goes_to_pytorch_and_back(name, affine):
    ours, theirs = RELATIVES[name](affine=affine), nn.BatchNorm1d(3, affine=affine)
    randomize(ours)
    ours(3 + 2 * normal(8, 3, dtype=f32))
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict(), strict=True)
    x = normal(8, 3, dtype=f32, seed=1)
    close(ours.eval()(x), theirs.eval()(x))
    back = RELATIVES[name](affine=affine)
    back.load_state_dict(theirs.state_dict(), strict=True)
    assert torch.equal(back.eval()(x), ours(x))


@each
def test_evaluation_follows_pytorch_and_changes_nothing(name):
    ours, theirs = RELATIVES[name]().double().eval(), nn.BatchNorm2d(3).double().eval()
    state = {k: 0.5 + normal(*v.shape, seed=1).square() for k, v in ours.state_dict().items() if v.ndim}
    state["num_batches_tracked"] = torch.tensor(7)
    ours.load_state_dict(state)
    theirs.load_state_dict(state)
    x, dy = normal(5, 3, 2, 2), normal(5, 3, 2, 2, seed=1)  # 5: in evaluation ghosts need not fit
    all_close(outputs_and_gradients(ours, x, dy), outputs_and_gradients(theirs, x, dy))
    assert all(torch.equal(value, state[key]) for key, value in ours.state_dict().items())


@each
def test_statistics_are_updated_without_gradients_too_and_carry_none(name):
    recorded, not_recorded = RELATIVES[name]().double(), RELATIVES[name]().double()
    x = (3 + normal(8, 3)).requires_grad_()
    recorded(x)
    recorded(x).sum().backward()
    with torch.no_grad():
        for _ in range(2):
            not_recorded(x)
    for a, b in zip(recorded.buffers(), not_recorded.buffers(), strict=True):
        assert torch.equal(a, b)
        assert not a.requires_grad
    assert recorded.num_batches_tracked == 2


@each
def test_poison_raises_and_leaves_the_running_statistics_alone(name):
    layer, x = RELATIVES[name](), normal(8, 3, dtype=f32)
    x[2, 1] = math.nan
    with pytest.raises(ValueError, match=r"^x: got NaN, infinity or values too large"):
        layer(x)
    assert layer.running_mean.eq(0).all()
    assert layer.running_var.eq(1).all()
    assert layer.num_batches_tracked == 0


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (layers.GhostBatchNorm(4, 8), ", ghost_size=8)"),
        (layers.BatchRenorm(4, 3.0, math.inf), ", r_max=3.0, d_max=inf)"),
        (
            layers.NoisyBatchNorm(4, momentum=None),
            "NoisyBatchNorm(4, eps=1e-05, momentum=None, affine=True, ",
        ),
        (layers.Noise(4), "Noise(4)"),
    ],
    ids=lambda v: type(v).__name__,
)
def test_a_printed_layer_shows_its_settings(layer, text):
    assert text in repr(layer)


Ghost, Renorm, Noisy, Noise = layers.GhostBatchNorm, layers.BatchRenorm, layers.NoisyBatchNorm, layers.Noise
X = torch.zeros(6, 4)
EMPTY = X[..., None][..., :0]


@pytest.mark.parametrize(
    ("message", "call"),
    [
        (r"num_features: got 0, expected a whole number, 1 or more", lambda: Ghost(0, 4)),
        (r"num_features: got 0, expected a whole number, 1 or more", lambda: Renorm(0)),
        (r"num_features: got 0, expected a whole number, 1 or more", lambda: Noisy(0)),
        (r"num_features: got 0, expected a whole number, 1 or more", lambda: Noise(0)),
        (r"ghost_size: got 0, expected a whole number, 1 or more", lambda: Ghost(4, 0)),
        (r"x: got 6 examples \(shape \(6, 4\)\), allowed .* of ghost_size = 4", lambda: Ghost(4, 4)(X)),
        (r"x: got 6 examples \(shape \(6, 4\)\), allowed .* of ghost_size = 8", lambda: Ghost(4, 8)(X)),
        (r"x: got 0 examples \(shape \(0, 4\)\), allowed are multiples", lambda: Ghost(4, 2)(X[:0])),
        (r"x: got 1 value per channel of a ghost \(shape \(6, 4\)\), at le", lambda: Ghost(4, 1)(X)),
        (r"x: got 0 values per channel of a ghost \(", lambda: Ghost(4, 2)(EMPTY)),
        (r"x: got shape \(6, 4\), expected .* with C = 3", lambda: Ghost(3, 2)(X)),
        (r"r_max: got 0.9, allowed are numbers from 1 to infinity", lambda: Renorm(4, r_max=0.9)),
        (r"r_max: got nan, allowed are numbers from 1 to infinity", lambda: Renorm(4, r_max=math.nan)),
        (r"d_max: got -1, allowed are numbers from 0 to infinity", lambda: Renorm(4, d_max=-1)),
        (r"d_max: got nan, allowed are numbers from 0 to infinity", lambda: Renorm(4, d_max=math.nan)),
        (r"x: got 1 value per channel \(shape \(1, 4\)\), at least 2", lambda: Renorm(4)(X[:1])),
        (r"x: got 0 values per channel \(shape \(0, 4\)\), at least 2", lambda: Renorm(4)(X[:0])),
        (r"x: got 0 values per channel \(", lambda: Renorm(4)(EMPTY)),
        (r"x: got 1 value per channel \(shape \(1, 4\)\), at least 2", lambda: Noisy(4)(X[:1])),
        (r"x: got shape \(6, 4\), expected .* with C = 3", lambda: Noise(3)(X)),
        (r"x: got shape \(4,\), expected \(N, C\) or \(N, C, \*spatial\) with", lambda: Noise(4)(X[0])),
        (r"x: got shape \(4,\), expected \(N, C\) or \(N, C, \*spatial\)$", lambda: layers.add_noise(X[0])),
        (r"x: got dtype torch.int64, allowed are torch.float32", lambda: layers.add_noise(X.long())),
        *(
            (r"x: got dtype torch.complex64, allowed are torch.float32, ", lambda m=m: m(X.cfloat()))
            for m in (Ghost(4, 2), Renorm(4), Noisy(4), Noise(4))
        ),
    ],
)  # fmt: skip
def test_bad_input_gets_a_message_that_names_it_and_what_is_allowed(message, call):
    with pytest.raises(ValueError, match="^" + message):
        call()


# --------------------------------------------------------------------------- a stack of networks

STACKED = {
    "batch": lambda momentum: layers.BatchNorm(3, momentum=momentum),
    "ghost": lambda momentum: layers.GhostBatchNorm(3, 2, momentum=momentum),
    "renorm": lambda momentum: layers.BatchRenorm(3, 1.2, 0.3, momentum=momentum),
}


def members(make, momentum, dtype, count=4):
    """Layers with different parameters and one step of history each, as they stand in a sweep."""
    made = []
    for seed in range(count):
        layer = randomize(make(momentum), seed).to(dtype)
        layer(seed + (1 + seed) * normal(8, 3, dtype=dtype, seed=seed))
        made.append(layer)
    return made


@both_dtypes
@any_momentum
@pytest.mark.parametrize("positions", [(), (2,), (3, 3)], ids=str)
@pytest.mark.parametrize("name", STACKED)
def test_a_stack_computes_learns_and_keeps_statistics_as_its_members_do(name, positions, momentum, dtype):
    singles = members(STACKED[name], momentum, dtype)
    parameters, buffers = stack_module_state(singles)
    base = copy.deepcopy(singles[0])

    def loss(parameters, buffers, x, dy):
        y = functional_call(base, (parameters, buffers), (x,))
        return (y * dy).sum(), y

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # vmap warns where it runs the members one after another
        for step in range(3):
            x = step + normal(4, 8, 3, *positions, dtype=dtype, seed=step + 10)
            dy = normal(8, 3, *positions, dtype=dtype, seed=99)
            gradients, y = vmap(grad(loss, has_aux=True), (0, 0, 0, None))(parameters, buffers, x, dy)
            for i, layer in enumerate(singles):
                expected = outputs_and_gradients(layer, x[i], dy)
                close(y[i], expected[0])
                close(gradients["weight"][i], expected[2])
                close(gradients["bias"][i], expected[3])
                close(buffers["running_mean"][i], layer.running_mean)
                close(buffers["running_var"][i], layer.running_var)
                assert buffers["num_batches_tracked"][i] == layer.num_batches_tracked == step + 2
        base.eval()
        y = vmap(lambda p, b, x: functional_call(base, (p, b), (x,)), (0, 0, None))(parameters, buffers, x[0])
        for i, layer in enumerate(singles):
            close(y[i], layer.eval()(x[0]))
    if name == "renorm":
        assert base.num_batches_tracked == 1  # the stack, not the layer that lent its code


@any_momentum
@pytest.mark.parametrize("name", STACKED)
def test_a_member_that_diverges_does_not_stop_or_spoil_the_others(name, momentum):
    singles = members(STACKED[name], momentum, f64)
    parameters, buffers = stack_module_state(singles)
    x = normal(4, 8, 3)
    x[2, 5, 1] = math.nan
    x[3] = math.inf
    y = vmap(lambda p, b, x: functional_call(singles[0], (p, b), (x,)))(parameters, buffers, x)
    for i in (0, 1):
        close(y[i], singles[i](x[i]))
        close(buffers["running_mean"][i], singles[i].running_mean)
        close(buffers["running_var"][i], singles[i].running_var)
    assert buffers["running_mean"][2].isnan().tolist() == [False, True, False]
    assert buffers["running_var"][2].isnan().tolist() == [False, True, False]
    assert not buffers["running_var"][3].isfinite().any()
    assert buffers["num_batches_tracked"].tolist() == [2] * 4


def test_noise_differs_between_the_members_of_a_stack_and_can_be_repeated():
    layer, x = layers.NoisyBatchNorm(3), normal(6, 3, dtype=f32)
    parameters, buffers = stack_module_state([copy.deepcopy(layer) for _ in range(3)])
    runs = []
    for _ in range(2):
        layer.generator = seeded(4)

        def call(p, b):
            return functional_call(layer, (p, b), (x,))

        runs.append(vmap(call, randomness="different")(parameters, buffers))
    assert torch.equal(*runs)
    assert not torch.equal(runs[0][0], runs[0][1])


def test_values_diverge_where_it_is_allowed_and_nowhere_else():
    poison, healthy = torch.tensor([[1.0, math.nan], [3.0, 0.0]]), torch.tensor([[1.0], [3.0]])
    layer = layers.BatchNorm(2)
    with layers.let_values_diverge():
        layer(poison)
        assert layers.BatchNorm(1, eps=0)(torch.ones(4, 1)).isnan().all()
    close(layer.running_mean[:1], torch.tensor([0.2]))
    assert layer.running_mean.isnan().tolist() == layer.running_var.isnan().tolist() == [False, True]
    assert layer.num_batches_tracked == 1
    with pytest.raises(RuntimeError, match="ended early"), layers.let_values_diverge():
        raise RuntimeError("ended early")
    with pytest.raises(ValueError, match="NaN, infinity"):
        layer(poison)
    layers.BatchNorm(1, eps=0)(healthy)


def sweep_of_one(model, digits, steps):
    training.sweep(lambda *_: model, digits, steps=steps, seeds=1)


@pytest.mark.parametrize("train", [training.fit, sweep_of_one])
def test_a_layer_raises_at_poison_also_after_it_was_trained(train):
    digits = data.digits()
    model = models.mlp((64,), 10, norm="batch", depth=1, width=4)
    train(model, digits, steps=2)
    norm = next(part for part in model if isinstance(part, layers.BatchNorm))
    before = norm.running_mean.clone()
    with pytest.raises(ValueError, match="NaN, infinity"):
        model.train()(torch.full((4, 64), math.nan))
    assert torch.equal(norm.running_mean, before)


def test_a_training_that_diverges_is_recorded_and_does_not_raise():
    history = training.fit(models.mlp((64,), 10, norm="batch", depth=1), data.digits(), steps=9, lr=1e30)
    assert history.diverged is not None


@pytest.mark.parametrize("momentum", [0.1, 0.9, None, 1.0, 0.0])
def test_float64_statistics_are_averaged_in_float64(momentum):
    """1 / (number of batches) in PyTorch's default dtype would cost half the digits."""
    ours, theirs = (
        layers.BatchNorm(3, momentum=momentum).double(),
        nn.BatchNorm1d(3, momentum=momentum).double(),
    )
    for step in range(7):
        x = step + normal(8, 3, seed=step)
        ours(x)
        theirs(x)
    torch.testing.assert_close(ours.running_mean, theirs.running_mean, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(ours.running_var, theirs.running_var, rtol=1e-14, atol=1e-14)


# --------------------------------------------------------------------------- a whole training


def with_pytorchs_norms(model):
    """A copy of an ``nn.Sequential`` with PyTorch's batch norms in the places of ours."""
    twin = copy.deepcopy(model)
    for index, part in enumerate(twin):
        if isinstance(part, layers.BatchNorm):
            kind = nn.BatchNorm2d if isinstance(twin[index - 1], nn.Conv2d) else nn.BatchNorm1d
            twin[index] = kind(part.num_features).to(part.weight.dtype)
    twin.load_state_dict(model.state_dict())
    return twin


@pytest.mark.parametrize("seed", [0, 1])
def test_a_lenet_with_our_norms_trains_as_one_with_pytorchs(seed):
    """In float64, where a wrong formula would stand out from rounding: 1e-11 after 60 steps was the most."""
    torch.manual_seed(seed)
    ours = models.lenet((1, 14, 14), 10, norm="batch").double()
    theirs = with_pytorchs_norms(ours)
    for step in range(20):
        x, y = normal(16, 1, 14, 14, dtype=f64, seed=step), torch.arange(16) % 10
        for model in (ours, theirs):
            model.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter -= parameter.grad
    for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
        assert (a - b).abs().max() < 1e-9
