"""The PyTorch layers: parity with torch.nn and with bnbook.norms, derivatives, statistics and modes."""

import copy
import itertools
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import assert_close, normal, outputs_and_gradients, randomize
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call, grad, vmap

from bnbook import layers, norms

f32, f64 = torch.float32, torch.float64
SHAPES = [(8, 4), (5, 4, 6), (3, 4, 3, 5), (2, 4, 2, 3, 4)]  # below and above 8 positions: two code paths
NN_BATCH = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
NN_INSTANCE = {3: nn.InstanceNorm1d, 4: nn.InstanceNorm2d, 5: nn.InstanceNorm3d}

both_dtypes = pytest.mark.parametrize("dtype", [f32, f64], ids=str)
affine_or_not = pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])

# name: (our layer, PyTorch's, NumPy's), each for inputs of shape (N, 4, L)
TRIOS = {
    "batch": (layers.BatchNorm(4), nn.BatchNorm1d(4), norms.batch_norm),
    "group": (layers.GroupNorm(2, 4), nn.GroupNorm(2, 4), lambda x, g, b: norms.group_norm(x, 2, g, b)),
    "instance": (layers.InstanceNorm(4, affine=True), nn.InstanceNorm1d(4, affine=True), norms.instance_norm),
    "layer": (layers.LayerNorm((4, 9)), nn.LayerNorm((4, 9)), norms.layer_norm),
    "rms": (layers.RMSNorm((4, 9)), nn.RMSNorm((4, 9), eps=1e-5), norms.rms_norm),
}
every_trio = pytest.mark.parametrize("name", TRIOS)


def trio(name, dtype=f64):
    """Copies of our layer and of PyTorch's, with the same random parameters, and NumPy's norm."""
    ours, theirs, numpy_norm = copy.deepcopy(TRIOS[name])
    randomize(ours)
    theirs.load_state_dict(ours.state_dict())
    return ours.to(dtype), theirs.to(dtype), numpy_norm


# --------------------------------------------------------------------------- parity with PyTorch


@both_dtypes
@pytest.mark.parametrize("momentum", [0.1, 0.9, None, 1.0, 0.0])
@pytest.mark.parametrize("track", [True, False], ids=["tracking", "not tracking"])
@affine_or_not
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_batch_norm_follows_pytorch_through_training_and_evaluation(shape, affine, track, momentum, dtype):
    """PyTorch computes in float64 from the same numbers, so that the error that is left is ours."""
    ours = layers.BatchNorm(4, 1e-3, momentum, affine, track)
    theirs = NN_BATCH[len(shape)](4, 1e-3, momentum, affine, track)
    randomize(ours)
    theirs.load_state_dict(ours.state_dict())
    ours, theirs = ours.to(dtype), theirs.double()
    for step, training in enumerate([True, True, True, False, True, False]):
        ours.train(training)
        theirs.train(training)
        x = (step + (step + 1) * normal(step + 4, *shape[1:], seed=step)).to(dtype)  # batch sizes differ
        dy = normal(*x.shape, dtype=dtype, seed=99)
        actual = outputs_and_gradients(ours, x, dy)
        assert {a.dtype for a in actual} == {dtype}
        for a, expected in zip(actual, outputs_and_gradients(theirs, x.double(), dy.double()), strict=True):
            assert_close(a, expected, ulps=64)
        for key, buffer in theirs.named_buffers():
            assert_close(ours.get_buffer(key), buffer)


PAIRS = [
    *((shape, layers.GroupNorm(g, 4), nn.GroupNorm(g, 4)) for shape in SHAPES[1:] for g in (1, 2, 4)),
    ((8, 12), layers.GroupNorm(3, 12, 0.1, False), nn.GroupNorm(3, 12, 0.1, False)),
    *(
        (shape, layers.InstanceNorm(4, 1e-3, affine=affine), NN_INSTANCE[len(shape)](4, 1e-3, affine=affine))
        for shape in SHAPES[1:]
        for affine in (True, False)
    ),
    *(
        (shape, ours(normalized, 1e-3, affine), theirs(normalized, 1e-3, affine))
        for ours, theirs in ((layers.LayerNorm, nn.LayerNorm), (layers.RMSNorm, nn.RMSNorm))
        for shape in SHAPES
        for normalized in (shape[-1], shape[1:])
        for affine in (True, False)
    ),
]


@both_dtypes
@pytest.mark.parametrize(("shape", "ours", "theirs"), PAIRS, ids=lambda v: str(v))
def test_norms_of_single_examples_equal_those_of_pytorch(shape, ours, theirs, dtype):
    ours, theirs = copy.deepcopy(ours), copy.deepcopy(theirs)
    randomize(ours)
    theirs.load_state_dict(ours.state_dict())
    ours, theirs = ours.to(dtype), theirs.double()
    x, dy = (3 + 2 * normal(*shape)).to(dtype), normal(*shape, dtype=dtype, seed=1)
    actual = outputs_and_gradients(ours, x, dy)
    assert {a.dtype for a in actual} == {dtype}
    for a, expected in zip(actual, outputs_and_gradients(theirs, x.double(), dy.double()), strict=True):
        assert_close(a, expected, ulps=256)  # a row of 4 values may have a small spread: 1 / std magnifies


@every_trio
def test_state_dict_goes_to_pytorch_and_back(name):
    ours, theirs, _ = trio(name)
    x = normal(5, 4, 9)
    for _ in range(2):
        theirs(3 * x + 1)  # PyTorch's has seen data, ours has not
    nn.init.normal_(theirs.weight)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict(), strict=True)
    back = copy.deepcopy(TRIOS[name][1]).double()
    back.load_state_dict(ours.state_dict(), strict=True)
    for training in (False, True):
        expected = theirs.train(training)(x)
        assert_close(ours.train(training)(x), expected)
        assert_close(back.train(training)(x), expected)


@every_trio
def test_layers_agree_with_the_numpy_norms(name):
    ours, _, numpy_norm = trio(name)
    x, dy = 3 + 2 * normal(5, 4, 9), normal(5, 4, 9, seed=1)
    y, cache = numpy_norm(x.numpy(), *(p.detach().numpy() for p in ours.parameters()))
    expected = [y, *getattr(norms, f"{name}_norm_backward")(dy.numpy(), cache)]
    for actual, e in zip(outputs_and_gradients(ours, x, dy), expected, strict=True):
        assert_close(actual, torch.from_numpy(e), ulps=64)


# --------------------------------------------------------------------------- derivatives

DIFFERENTIATED = {
    "batch, 2d": (layers.BatchNorm(3), (5, 3)),
    "batch, few positions": (layers.BatchNorm(3), (3, 3, 2)),
    "batch, many positions": (layers.BatchNorm(2), (2, 2, 3, 3)),
    "batch, evaluation": (layers.BatchNorm(3).eval(), (4, 3)),
    "group": (layers.GroupNorm(2, 4), (2, 4, 3)),
    "instance": (layers.InstanceNorm(2, affine=True), (2, 2, 5)),
    "layer": (layers.LayerNorm((2, 5)), (3, 2, 5)),
    "rms": (layers.RMSNorm((2, 3)), (2, 2, 3)),
}


@pytest.mark.parametrize("name", DIFFERENTIATED)
def test_first_and_second_derivatives_equal_finite_differences(name):
    layer, shape = copy.deepcopy(DIFFERENTIATED[name])
    layer.double()
    names = [name for name, _ in layer.named_parameters()]

    def function(x, *parameters):
        return functional_call(layer, dict(zip(names, parameters, strict=True)), (x,))

    randomize(layer)
    inputs = (normal(*shape), *(p.detach().clone() for p in layer.parameters()))
    inputs = tuple(t.requires_grad_() for t in inputs)
    assert gradcheck(function, inputs, rtol=1e-6, atol=1e-8)
    assert gradgradcheck(function, inputs, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("eps", [1e-5, 0.5])  # .5: a wrong place for eps shows in the first digit
@pytest.mark.parametrize("shape", [(6, 3, 1), (2, 3, 9)], ids=str)
def test_normalize_gradients_equal_finite_differences_to_1e_9(shape, eps):
    inputs = [2 * normal(*shape), normal(3, seed=1), normal(3, seed=2)]
    dy = normal(*shape, seed=3)
    leaves = [t.clone().requires_grad_() for t in inputs]
    gradients = torch.autograd.grad(layers.normalize(*leaves, eps)[0], leaves, dy)

    def loss(which, index, step):
        moved = [t.clone() for t in inputs]
        moved[which][index] += step
        return (dy * layers.normalize(*moved, eps)[0]).sum().item()

    for which, gradient in enumerate(gradients):
        for index in np.ndindex(*gradient.shape):
            # Central differences, extrapolated to step 0 (Richardson): truncation h^10, rounding eps / h.
            row = [
                (loss(which, index, h) - loss(which, index, -h)) / (2 * h) for h in 0.1 / 2.0 ** np.arange(5)
            ]
            for k in range(1, 5):
                row = [b + (b - a) / (4**k - 1) for a, b in itertools.pairwise(row)]
            assert abs(row[0] - gradient[index]) <= 1e-9 * gradient.abs().max()


def vanilla(x, gamma, beta):
    """The same as normalize, by PyTorch."""
    return F.batch_norm(x, None, None, gamma, beta, training=True, eps=1e-5)


any_speed = pytest.mark.filterwarnings("ignore:There is a performance drop")


@any_speed
@pytest.mark.parametrize("positions", [1, 9])
def test_normalize_works_under_vmap_and_so_do_its_gradients(positions):
    x, dy = normal(2, 5, 4, 3, positions)
    gamma, beta = normal(2, 5, 3, seed=1)

    def loss(norm, x, gamma, beta, dy):
        return (norm(x, gamma, beta) * dy).sum()

    def ours(x, gamma, beta):
        return layers.normalize(x, gamma, beta, 1e-5)[0]

    def ours_and_gradients(*args):
        return ours(*args[:3]), *grad(loss, argnums=(1, 2, 3))(ours, *args)

    def expected(*args):
        leaves = [t.clone().requires_grad_() for t in args[:3]]
        return vanilla(*args[:3]), *torch.autograd.grad(loss(vanilla, *leaves, args[3]), leaves)

    args = (x, gamma, beta, dy)
    for in_dims in [(0, 0, 0, 0), (0, None, None, None), (None, 0, 0, None), (None, None, None, 0)]:
        shared = [a if d == 0 else a[0] for a, d in zip(args, in_dims, strict=True)]
        actual = vmap(ours_and_gradients, in_dims)(*shared)
        for i in range(5):
            one = [a[i] if d == 0 else a for a, d in zip(shared, in_dims, strict=True)]
            for a, e in zip(actual, expected(*one), strict=True):
                assert_close(a[i], e, ulps=64)


@any_speed
def test_vmap_follows_autograd_that_was_recorded_outside():
    x, gamma, beta = normal(5, 4, 3, 2), normal(5, 3, seed=1), normal(5, 3, seed=2)
    gradients = []
    for norm in (lambda *a: layers.normalize(*a, 1e-5)[0], vanilla):
        leaves = [t.clone().requires_grad_() for t in (x, gamma, beta)]
        y = vmap(norm)(*leaves) if norm is not vanilla else torch.stack([*map(vanilla, *leaves)])
        gradients.append(torch.autograd.grad(y.square().sum() + y.pow(3).sum(), leaves))
    for actual, expected in zip(*gradients, strict=True):
        assert_close(actual, expected, ulps=64)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("positions", [1, 9])
def test_vmap_runs_no_part_of_normalize_one_after_another(positions):
    """PyTorch warns where it has no batching rule; the loop that it then runs is what vmap was to avoid."""
    x, gamma = normal(5, 4, 3, positions).requires_grad_(), normal(5, 3, seed=1)
    vmap(lambda x, g: layers.normalize(x, g, g, 1e-5)[0])(x, gamma).square().sum().backward()
    vmap(grad(lambda x, g: layers.normalize(x, g, g, 1e-5)[0].square().sum()))(x, gamma)


def test_layers_without_statistics_work_under_vmap_over_their_parameters():
    x, weight, bias = normal(6, 3, 2), normal(5, 3, seed=1), normal(5, 3, seed=2)
    layer = layers.BatchNorm(3, track_running_stats=False).double()
    y = vmap(lambda w, b: functional_call(layer, {"weight": w, "bias": b}, (x,)))(weight, bias)
    for i in range(5):
        assert_close(y[i], vanilla(x, weight[i], bias[i]))


# --------------------------------------------------------------------------- precision, extremes, layouts


@pytest.mark.parametrize(
    ("layer", "reference", "shape"),
    [
        (layers.BatchNorm(4), nn.BatchNorm1d(4), (512, 4)),
        (layers.BatchNorm(4), nn.BatchNorm2d(4), (8, 4, 16, 16)),
        (layers.InstanceNorm(4, affine=True), nn.InstanceNorm2d(4, affine=True), (2, 4, 32, 32)),
        (layers.GroupNorm(2, 8), nn.GroupNorm(2, 8), (2, 8, 16, 16)),
        (layers.LayerNorm(2048), nn.LayerNorm(2048), (4, 2048)),
        (layers.RMSNorm(2048), nn.RMSNorm(2048, eps=1e-5), (4, 2048)),
    ],
    ids=str,
)
def test_float32_with_mean_1e6_and_unit_spread_comes_out_right(layer, reference, shape):
    layer, reference = copy.deepcopy(layer), copy.deepcopy(reference).double()
    x, dy = (1e6 + normal(*shape)).float(), normal(*shape, dtype=f32, seed=1)
    expected = outputs_and_gradients(reference, x.double(), dy.double())
    for actual, e in zip(outputs_and_gradients(layer, x, dy), expected, strict=True):
        assert_close(actual, e, ulps=64)
    if isinstance(layer, layers.BatchNorm):
        assert_close(layer.running_mean, reference.running_mean)
        assert_close(layer.running_var, reference.running_var)


@every_trio
@pytest.mark.parametrize("scale", [1e15, 1e-20])
def test_large_and_tiny_float32_inputs_come_out_right(name, scale):
    ours, theirs, _ = trio(name, f32)
    x, dy = scale * normal(5, 4, 9, dtype=f32), normal(5, 4, 9, dtype=f32, seed=1)
    expected = outputs_and_gradients(theirs.double(), x.double(), dy.double())
    for actual, e in zip(outputs_and_gradients(ours, x, dy), expected, strict=True):
        assert_close(actual, e, ulps=64)


@both_dtypes
@pytest.mark.parametrize("name", list(TRIOS)[:4])
def test_constant_input_gives_exactly_beta_and_a_finite_gradient(name, dtype):
    ours, _, _ = trio(name, dtype)
    y, *gradients = outputs_and_gradients(
        ours, torch.full((5, 4, 9), 3.7, dtype=dtype), normal(5, 4, 9).to(dtype)
    )
    beta = ours.bias.detach() if name == "layer" else ours.bias.detach()[:, None]
    assert torch.equal(y.detach(), beta.expand_as(y))
    assert all(g.isfinite().all() for g in gradients)


def test_rounding_makes_no_variance_negative():
    """sum(d * d) / m - rest * rest may come out below zero; the root of that would be NaN."""
    for value in np.random.default_rng(0).uniform(1e9, 1e10, 40):
        x = torch.full((1, 1, 999_983), value, dtype=f32)
        y, mean, var = layers.normalize(x, torch.ones(1), torch.zeros(1), 1e-5)
        assert var >= 0
        assert y.isfinite().all()
        assert_close(mean[0], x[0, 0, :1], ulps=2)


LAYOUTS = {
    "transposed": lambda t: t.transpose(0, 2).contiguous().transpose(0, 2),
    "channels last": lambda t: t.transpose(1, 2).contiguous().transpose(1, 2),
    "strided": lambda t: t.repeat_interleave(2, -1)[..., ::2],
    "expanded": lambda t: t[:1, :1].expand_as(t),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@every_trio
def test_memory_layout_does_not_matter(name, layout):
    ours, theirs, _ = trio(name)
    x, dy = layout(normal(5, 4, 9)), layout(normal(5, 4, 9, seed=1))
    assert not x.is_contiguous()
    expected = outputs_and_gradients(theirs, x.contiguous(), dy.contiguous())
    for actual, e in zip(outputs_and_gradients(ours, x, dy), expected, strict=True):
        assert_close(actual, e, ulps=64)


def test_channels_last_images_work():
    x = normal(3, 4, 5, 6).to(memory_format=torch.channels_last)
    for ours, theirs in [
        (layers.BatchNorm(4), nn.BatchNorm2d(4)),
        (layers.GroupNorm(2, 4), nn.GroupNorm(2, 4)),
        (layers.InstanceNorm(4), nn.InstanceNorm2d(4)),
    ]:
        expected = outputs_and_gradients(theirs.double(), x.contiguous(), x.contiguous() ** 2)
        for actual, e in zip(outputs_and_gradients(ours.double(), x, x**2), expected, strict=True):
            assert_close(actual, e, ulps=64)


@every_trio
def test_inputs_and_parameters_are_neither_modified_nor_returned(name):
    ours, _, _ = trio(name)
    x, dy = normal(5, 4, 9), normal(5, 4, 9, seed=1)
    tensors = [x, dy, *ours.parameters()]
    versions = [t._version for t in tensors]
    outputs = outputs_and_gradients(ours, x, dy)
    assert [t._version for t in tensors] == versions
    assert not {t.data_ptr() for t in tensors} & {t.data_ptr() for t in outputs}


@every_trio
def test_an_in_place_activation_may_follow(name):
    ours, theirs, _ = trio(name)
    x = normal(5, 4, 9)

    ours_then, theirs_then = nn.Sequential(ours, nn.ReLU(inplace=True)), nn.Sequential(theirs, nn.ReLU())
    expected = outputs_and_gradients(theirs_then, x, x)
    for actual, e in zip(outputs_and_gradients(ours_then, x, x), expected, strict=True):
        assert_close(actual, e, ulps=64)


@pytest.mark.parametrize("name", ["group", "instance", "layer", "rms"])
def test_norms_of_single_examples_map_no_example_to_no_example(name):
    ours, _, _ = trio(name)
    y, dx, *dparams = outputs_and_gradients(ours, normal(0, 4, 9), normal(0, 4, 9))
    assert y.shape == dx.shape == (0, 4, 9)
    assert all((g == 0).all() for g in dparams)


def test_no_example_of_many_positions_is_no_example():
    """PyTorch's sums over positions, which serve from 64 on, divide by the number of rows."""
    layer = layers.GroupNorm(2, 4).double()
    _, dx, *dparams = outputs_and_gradients(layer, normal(0, 4, 100), normal(0, 4, 100))
    assert dx.shape == (0, 4, 100)
    assert all((g == 0).all() for g in dparams)


@pytest.mark.parametrize("layout", ["contiguous", "channels last", "expanded"])
def test_many_positions_have_the_gradients_of_few(layout):
    x, dy = normal(3, 4, 64), normal(3, 4, 64, seed=1)
    if layout == "channels last":
        x, dy = (t.transpose(1, 2).contiguous().transpose(1, 2) for t in (x, dy))
    if layout == "expanded":
        dy = dy[:, :, :1].expand_as(dy)
    for ours, theirs in [
        (layers.BatchNorm(4), nn.BatchNorm1d(4)),
        (layers.GroupNorm(2, 4), nn.GroupNorm(2, 4)),
    ]:
        expected = outputs_and_gradients(theirs.double(), x, dy)
        for actual, e in zip(outputs_and_gradients(ours.double(), x, dy), expected, strict=True):
            assert_close(actual, e, ulps=256)


@pytest.mark.parametrize(
    ("layer", "shape", "axis"),
    [
        (layers.BatchNorm(4), (2, 4), 0),
        (layers.InstanceNorm(4), (3, 4, 2), 2),
        (layers.GroupNorm(4, 4), (3, 4, 2), 2),
        (layers.LayerNorm(2), (3, 4, 2), 2),
    ],
    ids=lambda v: type(v).__name__,
)
def test_two_values_are_enough(layer, shape, axis):
    x = normal(*shape)
    half = (x - x.flip(axis)) / 2
    assert_close(copy.deepcopy(layer).double()(x), half / (half.square() + 1e-5).sqrt(), ulps=256)


def test_batch_norm_in_evaluation_takes_a_batch_of_one_and_of_none():
    layer, reference = layers.BatchNorm(4).eval(), nn.BatchNorm1d(4).eval()
    for shape in [(1, 4), (0, 4), (1, 4, 1)]:
        x = normal(*shape, dtype=f32)
        assert_close(layer(x), reference.double()(x.double()))
    assert layer(normal(3, 4, 0, dtype=f32)).shape == (3, 4, 0)


# --------------------------------------------------------------------------- mode and statistics


def test_training_mode_uses_and_updates_batch_statistics_also_without_gradients():
    """Switching on torch.is_grad_enabled() instead of the mode is a classic bug."""
    x = 5 + 3 * normal(6, 4)
    for context in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        ours, theirs = layers.BatchNorm(4).double(), nn.BatchNorm1d(4).double()
        with context():
            y = ours(x)
        assert_close(y, theirs(x))
        assert_close(ours.running_mean, 0.1 * x.mean(0))
        assert_close(ours.running_var, 0.9 + 0.1 * x.var(0, correction=1))
        assert ours.num_batches_tracked == 1


def test_evaluation_mode_uses_running_statistics_and_leaves_them_also_with_gradients():
    x = 5 + 3 * normal(6, 4)
    ours = layers.BatchNorm(4, eps=0.25).double().eval()
    before = copy.deepcopy(ours.state_dict())
    y, dx, *_ = outputs_and_gradients(ours, x, torch.ones_like(x))
    assert_close(y, x / 1.25**0.5)
    assert_close(dx, torch.full_like(x, 1 / 1.25**0.5))
    assert all(torch.equal(value, before[key]) for key, value in ours.state_dict().items())


def test_the_batch_is_normalized_with_its_own_statistics_whatever_ran_before():
    x = normal(6, 4)
    ours = layers.BatchNorm(4).double()
    ours(100 + 50 * x)
    assert_close(ours(x), (x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt())


def test_frozen_statistics_are_used_in_evaluation_and_not_updated_in_training():
    """As in PyTorch, track_running_stats can be turned off after construction."""
    x, ours, theirs = normal(6, 4), layers.BatchNorm(4).double(), nn.BatchNorm1d(4).double()
    for layer in (ours, theirs):
        layer(3 + 2 * x)
        layer.track_running_stats = False
    assert_close(ours(x), theirs(x))
    assert_close(ours.running_mean, theirs.running_mean)
    assert ours.num_batches_tracked == 1
    assert_close(ours.eval()(x), theirs.eval()(x))


def test_evaluation_without_buffers_uses_the_batch():
    x, ours, theirs = normal(6, 4), layers.BatchNorm(4).double().eval(), nn.BatchNorm1d(4).double().eval()
    for layer in (ours, theirs):
        layer.running_mean = layer.running_var = None
    assert_close(ours(x), theirs(x))


def test_statistics_are_those_of_the_batch_and_carry_no_gradient():
    x = normal(5, 3, 9).requires_grad_()
    y, mean, var = layers.normalize(x, torch.ones(3, dtype=f64), torch.zeros(3, dtype=f64), 1e-5)
    assert_close(mean[0], x.mean((0, 2)))
    assert_close(var[0], x.var((0, 2), correction=0))
    assert y.requires_grad
    assert not mean.requires_grad
    assert not var.requires_grad
    layer = layers.BatchNorm(3).double()
    layer(x)
    layer(x).sum().backward()  # would walk through the first batch, too, if the statistics had a graph
    for buffer in layer.buffers():
        assert not buffer.requires_grad
        assert buffer.grad_fn is None


def test_poison_raises_and_leaves_the_running_statistics_alone():
    """One NaN in one batch would otherwise break the layer in evaluation for ever."""
    layer = layers.BatchNorm(4)
    layer(normal(6, 4, dtype=f32))
    before = copy.deepcopy(layer.state_dict())
    for bad in (np.nan, np.inf, -np.inf, 1e30):
        x = normal(6, 4, dtype=f32)
        x[2, 3] = bad
        with pytest.raises(ValueError, match=r"^x: got NaN, infinity or values too large"):
            layer(x)
        assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())


def test_a_variance_that_the_buffers_cannot_hold_does_not_poison_them():
    layer = layers.BatchNorm(1, affine=False)  # float32 buffers
    with pytest.raises(ValueError, match=r"^x: "):
        layer(torch.tensor([[1e30], [-1e30]], dtype=f64))
    with pytest.raises(ValueError, match=r"^x: "):
        layer(torch.tensor([[1.5e19], [-1.5e19]]))  # the biased variance fits, the unbiased one does not
    assert layer.running_var.item() == 1
    assert layer.num_batches_tracked == 0


# --------------------------------------------------------------------------- copies, moves, messages


def round_trip(layer):
    return pickle.loads(pickle.dumps(layer))


@pytest.mark.parametrize("copied", [copy.deepcopy, round_trip], ids=["deepcopy", "pickle"])
@every_trio
def test_a_copy_computes_the_same_and_shares_nothing(name, copied):
    ours, _, _ = trio(name)
    x = normal(5, 4, 9)
    ours(3 + x)
    twin = copied(ours.eval())
    assert not twin.training
    assert torch.equal(twin(x), ours(x))
    expected = ours(x)
    twin.train()(7 * x)
    with torch.no_grad():
        twin.weight.zero_()
    assert torch.equal(ours(x), expected)


@every_trio
def test_a_layer_moves_between_dtypes_with_its_statistics(name):
    ours, theirs, _ = trio(name, f32)
    for move in (lambda m: m.double(), lambda m: m.to(f32), lambda m: m.to("cpu", f64)):
        ours, theirs = move(ours), move(theirs)
        tensors = [t for t in ours.state_dict().values() if t.is_floating_point()]
        x = normal(5, 4, 9, dtype=tensors[0].dtype)
        assert {t.dtype for t in tensors} == {ours(x).dtype} == {x.dtype}
        theirs(x)
    assert_close(ours.eval()(normal(5, 4, 9)), theirs.eval()(normal(5, 4, 9)), ulps=2**30)  # float32 history


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (
            layers.BatchNorm(4, momentum=None),
            "BatchNorm(4, eps=1e-05, momentum=None, affine=True, bias=True, track_running_stats=True)",
        ),
        (layers.GroupNorm(2, 4, affine=False), "GroupNorm(2, 4, eps=1e-05, affine=False, bias=False)"),
        (layers.LayerNorm(4), "LayerNorm((4,), eps=1e-05, elementwise_affine=True, bias=True)"),
        (layers.RMSNorm((4, 9)), "RMSNorm((4, 9), eps=1e-05, elementwise_affine=True)"),
    ],
    ids=lambda v: type(v).__name__,
)
def test_a_printed_layer_shows_its_settings(layer, text):
    assert repr(layer) == text


X = torch.zeros(6, 4)
EMPTY, POINT = X[..., None][..., :0], X[..., None, None]


@pytest.mark.parametrize(
    ("message", "call"),
    [
        (r"num_features: got 0, expected a whole number, 1 or more", lambda: layers.BatchNorm(0)),
        (r"momentum: got 1.1, allowed are None and", lambda: layers.BatchNorm(4, momentum=1.1)),
        (r"eps: got -1, expected a finite number, 0 or larger", lambda: layers.BatchNorm(4, eps=-1)),
        (r"eps: got nan, expected a finite", lambda: layers.GroupNorm(2, 4, eps=float("nan"))),
        (r"eps: got inf, expected a finite", lambda: layers.LayerNorm(4, eps=float("inf"))),
        (r"eps: got -1, expected a finite", lambda: layers.InstanceNorm(4, eps=-1)),
        (r"eps: got -1, expected a finite", lambda: layers.RMSNorm(4, eps=-1)),
        (r"num_features: got -1, expected a whole number, 1 or more", lambda: layers.InstanceNorm(-1)),
        (r"num_channels: got 0, expected a whole number, 1 or more", lambda: layers.GroupNorm(1, 0)),
        (r"num_groups: got 3, allowed are the divisors of 4 channels", lambda: layers.GroupNorm(3, 4)),
        (r"num_groups: got 0, allowed are the divisors of 4 channels", lambda: layers.GroupNorm(0, 4)),
        (r"normalized_shape: got 0, expected one or more positive", lambda: layers.LayerNorm(0)),
        (r"normalized_shape: got \(\), expected one or more positive", lambda: layers.RMSNorm(())),
        (r"normalized_shape: got \(3, 0\), expected one or more", lambda: layers.LayerNorm((3, 0))),
        *(
            (rf"x: got dtype torch.{dtype}, allowed are torch.float32, torch.fl", lambda m=m, x=x: m(x))
            for m in (layers.BatchNorm(4), layers.GroupNorm(2, 4), layers.LayerNorm(4), layers.RMSNorm(4))
            for dtype, x in {"int64": X.long(), "complex64": X.cfloat()}.items()
        ),
        (r"x: got dtype torch.int64", lambda: layers.InstanceNorm(4)(POINT.long())),
        (r"momentum: got True, allowed are", lambda: layers.InstanceNorm(4, 1e-5, True)),
        (r"track_running_stats: got True", lambda: layers.InstanceNorm(4, track_running_stats=True)),
        (r"x: got shape \(4,\), expected \(N, C\) or \(N, C, \*spat", lambda: layers.BatchNorm(4)(X[0])),
        (r"x: got shape \(6, 4\), expected \(N, C\) or .* with C = 3", lambda: layers.BatchNorm(3)(X)),
        (r"x: got shape \(\), expected \(N, C\) or", lambda: layers.GroupNorm(2, 4)(X[0, 0])),
        (r"x: got shape \(6, 4\), expected \(N, C\) or .* with C = 6", lambda: layers.GroupNorm(2, 6)(X)),
        (r"x: got shape \(6, 4\), expected \(N, C, \*spatial\) with", lambda: layers.InstanceNorm(4)(X)),
        (r"x: got shape \(6, 4, 1, 1\), expected .* with C = 6", lambda: layers.InstanceNorm(6)(POINT)),
        (r"x: got shape \(6, 4\), expected one that ends in \(6,\)", lambda: layers.LayerNorm(6)(X)),
        (r"x: got shape \(4,\), expected one that ends in \(6, 4\)", lambda: layers.RMSNorm((6, 4))(X[0])),
        (r"x: got 1 value per channel \(shape \(1, 4\)\), at least 2", lambda: layers.BatchNorm(4)(X[:1])),
        (r"x: got 0 values per channel \(shape \(0, 4\)\), at least 2", lambda: layers.BatchNorm(4)(X[:0])),
        (r"x: got 0 values per channel \(", lambda: layers.BatchNorm(4)(EMPTY)),
        (r"x: got 1 value per channel \(", lambda: layers.BatchNorm(4, track_running_stats=False)(X[:1])),
        (r"x: got 1 value per group of an example \(", lambda: layers.GroupNorm(4, 4)(X)),
        (r"x: got 0 values per group of an example \(", lambda: layers.GroupNorm(4, 4)(EMPTY)),
        (r"x: got 1 value per channel of an example \(", lambda: layers.InstanceNorm(4)(POINT)),
        (r"x: got 0 values per channel of an example \(", lambda: layers.InstanceNorm(4)(EMPTY)),
        (r"x: got 1 value per example \(shape \(6, 1\)\)", lambda: layers.LayerNorm(1)(X[:, :1])),
    ],
)  # fmt: skip
def test_bad_input_gets_a_message_that_names_it_and_what_is_allowed(message, call):
    with pytest.raises(ValueError, match="^" + message):
        call()
