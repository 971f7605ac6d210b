"""Weight standardization: its definition, what it cannot see, its gradient, and nn.Conv2d's interface."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional as F

from bnbook.layers import EPS, WSConv2d, WSLinear, standardized

SHAPES = [(5, 3), (4, 3, 5), (4, 3, 3, 2), (2, 3, 2, 1, 3), (1, 2)]


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def in_numpy(weight, eps):
    """The definition, filter by filter."""
    rows = weight.reshape(len(weight), -1)
    out = [(row - row.mean()) / np.sqrt(row.var() + eps) for row in rows]
    return np.stack(out).reshape(weight.shape)


def conv(eps=0.0, dtype=torch.float64, **kwargs):
    torch.manual_seed(0)
    return WSConv2d(3, 4, 3, eps=eps, dtype=dtype, **kwargs)


def linear(eps=0.0, dtype=torch.float64, **kwargs):
    torch.manual_seed(0)
    return WSLinear(5, 4, eps=eps, dtype=dtype, **kwargs)


LAYERS = [(conv, (2, 3, 6, 5), nn.Conv2d(3, 4, 3)), (linear, (7, 5), nn.Linear(5, 4))]


# --------------------------------------------------------------------------- definition


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("eps", [0.0, EPS, 0.3])
def test_each_filter_has_its_own_mean_taken_and_its_biased_deviation_divided(shape, eps):
    weight = 2 + 3 * draw(*shape)
    np.testing.assert_allclose(
        standardized(weight, eps), in_numpy(weight.numpy(), eps), rtol=1e-11, atol=1e-11
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_the_default_eps_is_1e_10(shape):
    weight = 1e-5 * draw(*shape)  # variance 1e-10: eps makes half of the root
    np.testing.assert_allclose(standardized(weight), in_numpy(weight.numpy(), 1e-10), rtol=1e-11, atol=1e-11)
    assert linear(eps=EPS).eps == WSLinear(5, 4).eps == WSConv2d(3, 4, 3).eps == 1e-10


def test_torch_layer_norm_of_the_rows_agrees():
    weight = draw(6, 4, 3, 3)
    expected = F.layer_norm(weight.reshape(6, -1), (36,), eps=0.1).view(weight.shape)
    torch.testing.assert_close(standardized(weight, 0.1), expected)


def test_a_filter_of_equal_weights_becomes_zero():
    assert not standardized(torch.full((2, 3, 3, 3), 0.7)).any()


def test_a_filter_far_from_zero_keeps_its_digits_in_float32():
    weight = 1e4 + draw(3, 50)
    single = standardized(weight.float(), 0.0).double()
    exact = in_numpy(weight.float().double().numpy(), 0.0)
    np.testing.assert_allclose(single, exact, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_dtype_stays(dtype):
    assert standardized(draw(2, 3, dtype=dtype)).dtype == dtype
    assert conv(dtype=dtype)(draw(1, 3, 4, 4, dtype=dtype)).dtype == dtype


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2, "padding": 1},
        {"dilation": 2, "bias": False},
        {"padding": 1, "padding_mode": "circular"},
        {"padding": 1, "padding_mode": "reflect", "stride": 2},
    ],
)
def test_a_convolution_is_torchs_with_the_standardized_filters(options):
    layer, x = conv(eps=0.2, **options), draw(2, 3, 7, 6)
    plain = nn.Conv2d(3, 4, 3, dtype=torch.float64, **options)
    state = {"weight": torch.from_numpy(in_numpy(layer.weight.detach().numpy(), 0.2))}
    plain.load_state_dict(layer.state_dict() | state)
    torch.testing.assert_close(layer(x), plain(x))


def test_a_grouped_convolution_standardizes_each_filter_over_its_own_inputs():
    layer = WSConv2d(4, 6, 3, groups=2, dtype=torch.float64, eps=0.0)
    filters = torch.from_numpy(in_numpy(layer.weight.detach().numpy(), 0.0))
    x = draw(2, 4, 5, 5)
    torch.testing.assert_close(layer(x), F.conv2d(x, filters, layer.bias, groups=2))


def test_a_linear_layer_is_torchs_with_the_standardized_rows():
    layer, x = linear(eps=0.2), draw(7, 5)
    rows = torch.from_numpy(in_numpy(layer.weight.detach().numpy(), 0.2))
    torch.testing.assert_close(layer(x), x @ rows.T + layer.bias)
    assert WSLinear(5, 4, bias=False).bias is None


# --------------------------------------------------------------------------- what it cannot see


@given(
    scale=st.lists(st.floats(0.01, 100), min_size=4, max_size=4),
    shift=st.lists(st.floats(-10, 10), min_size=4, max_size=4),
)
@pytest.mark.parametrize(("make", "shape", "_plain"), LAYERS)
def test_scaling_and_shifting_each_filter_changes_nothing(make, shape, _plain, scale, shift):
    layer, x = make(), draw(*shape)
    before = layer(x)
    a, b = (
        torch.tensor(v, dtype=torch.float64).view(4, *[1] * (layer.weight.ndim - 1)) for v in (scale, shift)
    )
    with torch.no_grad():
        layer.weight.mul_(a).add_(b)
    torch.testing.assert_close(layer(x), before, rtol=1e-8, atol=1e-8)


def test_a_negative_factor_turns_the_filter_around():
    weight = draw(4, 5)
    torch.testing.assert_close(standardized(-2 * weight, 0.0), -standardized(weight, 0.0))


def test_a_constant_image_leaves_only_the_bias():
    layer = conv()
    y = layer(torch.full((2, 3, 5, 5), 7.0, dtype=torch.float64))
    torch.testing.assert_close(y, layer.bias.view(1, 4, 1, 1).expand_as(y))


# --------------------------------------------------------------------------- gradient


@pytest.mark.parametrize("shape", SHAPES[:4])
@pytest.mark.parametrize("eps", [0.0, 0.3])
def test_the_gradient_is_that_of_the_definition(shape, eps):
    weight = draw(*shape).requires_grad_()
    assert torch.autograd.gradcheck(lambda w: standardized(w, eps), weight)
    assert torch.autograd.gradgradcheck(lambda w: standardized(w, eps), weight)


@pytest.mark.parametrize(("make", "shape", "_plain"), LAYERS)
def test_gradcheck_through_the_layers(make, shape, _plain):
    layer, x = make(eps=1e-3), draw(*shape).requires_grad_()
    weight, bias = (
        layer.weight.detach().clone().requires_grad_(),
        layer.bias.detach().clone().requires_grad_(),
    )

    def run(x, weight, bias):
        return functional_call(layer, {"weight": weight, "bias": bias}, (x,))

    assert torch.autograd.gradcheck(run, (x, weight, bias))


@pytest.mark.parametrize(("make", "shape", "_plain"), LAYERS)
def test_the_gradient_is_orthogonal_to_ones_and_to_the_filter(make, shape, _plain):
    layer = make()
    (layer(draw(*shape)) ** 3).sum().backward()
    gradient, weight = layer.weight.grad.flatten(1), layer.weight.detach().flatten(1)
    length = gradient.norm(dim=1)
    assert (length > 0).all()
    assert (gradient.sum(1).abs() < 1e-10 * length).all()
    assert ((gradient * weight).sum(1).abs() < 1e-10 * length).all()


def test_a_step_of_gradient_descent_never_shortens_a_filter():
    layer = linear()
    before = layer.weight.detach().norm(dim=1)
    layer(draw(7, 5)).square().sum().backward()
    after = (layer.weight - 0.1 * layer.weight.grad).detach().norm(dim=1)
    torch.testing.assert_close(after.square(), before.square() + 0.01 * layer.weight.grad.square().sum(1))


# --------------------------------------------------------------------------- interface


@pytest.mark.parametrize(("make", "shape", "plain"), LAYERS)
def test_state_dicts_go_both_ways_and_hold_the_raw_weight(make, shape, plain):
    plain = copy.deepcopy(plain).double()
    layer = make()
    layer.load_state_dict(plain.state_dict())
    torch.testing.assert_close(layer.weight, plain.weight, rtol=0, atol=0)
    layer(draw(*shape))
    plain.load_state_dict(layer.state_dict())
    assert list(layer.state_dict()) == ["weight", "bias"]
    torch.testing.assert_close(plain.weight, layer.weight, rtol=0, atol=0)
    assert isinstance(layer, type(plain))


@pytest.mark.parametrize(("make", "shape", "_plain"), LAYERS)
def test_a_stack_of_layers_under_vmap_is_each_layer(make, shape, _plain):
    stack = [make(), make()]
    with torch.no_grad():
        stack[1].weight.add_(draw(*stack[1].weight.shape, seed=1))
    params, buffers = stack_module_state(stack)
    x = draw(*shape)
    together = vmap(lambda p, b: functional_call(stack[0], (p, b), (x,)))(params, buffers)
    torch.testing.assert_close(together, torch.stack([layer(x) for layer in stack]))


def test_print_shows_eps():
    assert repr(conv(eps=0.5)) == "WSConv2d(3, 4, kernel_size=(3, 3), stride=(1, 1), eps=0.5)"
    assert repr(linear(eps=0.5)) == "WSLinear(in_features=5, out_features=4, bias=True, eps=0.5)"


@pytest.mark.parametrize("eps", [-1e-9, float("nan"), float("inf")])
def test_an_eps_out_of_range_is_named(eps):
    for build in (
        lambda: WSConv2d(3, 4, 3, eps=eps),
        lambda: WSLinear(5, 4, eps=eps),
        lambda: standardized(draw(2, 3), eps),
    ):
        with pytest.raises(ValueError, match=r"eps: got .*, expected a finite number, 0 or larger"):
            build()


def test_a_filter_of_one_weight_is_refused():
    for build in (
        lambda: WSConv2d(1, 4, 1),
        lambda: WSConv2d(4, 4, 1, groups=4),
        lambda: WSLinear(1, 4),
        lambda: standardized(draw(4, 1)),
    ):
        with pytest.raises(
            ValueError, match=r"weight: got 1 weight per filter \(shape .*\), at least 2 are needed"
        ):
            build()
    with pytest.raises(ValueError, match="got 0 weights per filter"):
        standardized(draw(4, 0))


def test_a_vector_is_no_set_of_filters():
    with pytest.raises(ValueError, match=r"weight: got shape \(3,\), expected \(C_out, C_in, \*kernel\)"):
        standardized(draw(3))
