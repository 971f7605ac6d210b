"""Norm-free layers: scaled weight standardization, adaptive clipping, Fixup and NF blocks."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from bnbook import data, training
from bnbook.layers import (
    RELU_GAIN,
    ScaledWSLinear,
    clip_adaptively,
    scaled_standardized,
)
from bnbook.norm_free import ClippedLinear, FixupBlock, NormFreeBlock, he_linear

BLOCKS = {
    "fixup": lambda: FixupBlock(6, branches=4),
    "fixup of three layers": lambda: FixupBlock(6, branches=4, layers=3),
    "nf from zero": lambda: NormFreeBlock(6, 3, skip0=0.0),
}


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# --------------------------------------------------------------------------- scaled weight standardization


def test_the_relu_gain_is_one_over_the_deviation_of_a_rectified_gaussian():
    def density(z):
        return math.exp(-z * z / 2) / math.sqrt(2 * math.pi)

    first, _ = integrate.quad(lambda z: z * density(z), 0, np.inf)
    second, _ = integrate.quad(lambda z: z * z * density(z), 0, np.inf)
    assert pytest.approx(1 / math.sqrt(second - first**2), rel=1e-9) == RELU_GAIN


@pytest.mark.parametrize("shape", [(4, 9), (4, 3, 5), (4, 3, 3, 2)])
def test_each_filter_sums_to_zero_and_has_the_length_of_its_gain(shape):
    gains = torch.tensor([0.5, 1.0, 1.7, 3.0], dtype=torch.float64)
    rows = scaled_standardized(3 + 2 * draw(*shape), gains, eps=0.0).reshape(4, -1)
    torch.testing.assert_close(rows.sum(1), torch.zeros(4, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(rows.norm(dim=1), gains)


def test_one_gain_serves_all_filters_and_the_default_is_1():
    weight = draw(4, 9)
    torch.testing.assert_close(scaled_standardized(weight, 2.0), 2 * scaled_standardized(weight))
    torch.testing.assert_close(scaled_standardized(weight, eps=0.0).norm(dim=1), torch.ones(4).double())


def test_rectified_gaussians_come_out_with_mean_0_and_variance_1():
    torch.manual_seed(0)
    x = torch.randn(20_000, 400)
    u = ScaledWSLinear(400, 50)(torch.relu(x))
    # Over 20,000 draws the standard deviations of a mean and of a variance are 0.007 and 0.01.
    assert u.mean(0).abs().max() < 0.05
    assert (u.var(0) - 1).abs().max() < 0.06


@given(st.floats(0.1, 100), st.floats(-5, 5))
def test_an_affine_change_of_a_filter_changes_nothing(scale, shift):
    weight = draw(3, 8)
    torch.testing.assert_close(
        scaled_standardized(scale * weight + shift, 1.5, eps=0.0), scaled_standardized(weight, 1.5, eps=0.0)
    )


def test_a_layer_computes_with_its_scaled_weight_and_its_bias():
    layer = ScaledWSLinear(8, 4).double()
    with torch.no_grad():
        layer.bias.copy_(draw(4))
        layer.gain.copy_(1 + draw(4, seed=1).abs())
    x = draw(5, 8)
    expected = F.linear(x, scaled_standardized(layer.weight, layer.gain), layer.bias)
    torch.testing.assert_close(layer(x), expected)


def test_a_layer_starts_at_the_relu_gain_with_filters_of_length_about_1_and_no_bias():
    layer = ScaledWSLinear(400, 300)
    assert (layer.gain == torch.tensor(RELU_GAIN)).all()
    assert layer.weight.flatten(1).norm(dim=1).mean().item() == pytest.approx(1, rel=0.02)
    assert not layer.bias.any()
    assert ScaledWSLinear(4, 3, bias=False).bias is None
    assert ScaledWSLinear(4, 3, gain=1.0, eps=0.5).gain.tolist() == [1.0] * 3


@pytest.mark.parametrize("clipping", [None, 0.1])
def test_printing_a_layer_shows_clipping_and_eps(clipping):
    assert f"eps=1e-10, clipping={clipping}" in repr(ScaledWSLinear(4, 2, clipping=clipping))
    assert repr(ClippedLinear(4, 2, clipping=clipping)).endswith(f"bias=True, clipping={clipping})")


@pytest.mark.parametrize("clipping", [None, 1e9])
def test_gradients_match_finite_differences(clipping):
    torch.manual_seed(0)
    layer = ScaledWSLinear(5, 3, clipping=clipping).double()

    def output(x, *parameters):
        return functional_call(layer, dict(zip(layer.state_dict(), parameters, strict=True)), (x,))

    arguments = [draw(4, 5), *layer.state_dict().values()]
    assert torch.autograd.gradcheck(output, [a.clone().requires_grad_() for a in arguments])


def test_the_gradient_of_a_stack_grows_by_the_factor_of_batch_norm():
    torch.manual_seed(0)
    path = [torch.randn(128, 256).requires_grad_()]
    for _ in range(20):
        path.append(torch.relu(ScaledWSLinear(256, 256, bias=False)(path[-1])))
    lengths = [d.norm() for d in torch.autograd.grad((path[-1] * torch.randn(128, 256)).sum(), path)]
    factor = (lengths[4] / lengths[16]).item() ** (1 / 12)
    assert factor == pytest.approx(math.sqrt(math.pi / (math.pi - 1)), rel=0.02)


# --------------------------------------------------------------------------- adaptive clipping


def clipped_gradient(weight, gradient, clipping, eps=1e-3):
    return grad(lambda w: (clip_adaptively(w, clipping, eps) * gradient).sum())(weight)


def test_forward_it_is_the_identity():
    weight = draw(3, 4)
    assert torch.equal(clip_adaptively(weight, 0.1), weight)


def test_a_gradient_that_is_short_enough_passes_bit_by_bit():
    weight, gradient = draw(3, 4), 1e-3 * draw(3, 4, seed=1)
    assert torch.equal(clipped_gradient(weight, gradient, 0.1), gradient)


@pytest.mark.parametrize("shape", [(3, 4), (3, 2, 3, 3)])
def test_a_longer_one_keeps_its_direction_and_gets_the_allowed_length_unit_by_unit(shape):
    weight, gradient = draw(*shape), draw(*shape, seed=1)
    gradient[0] *= 1e-4
    out = clipped_gradient(weight, gradient, 0.1)
    assert torch.equal(out[0], gradient[0])
    for row, g, w in zip(out[1:], gradient[1:], weight[1:], strict=True):
        torch.testing.assert_close(row, 0.1 * w.norm() * g / g.norm())


def test_weights_of_zero_may_move_by_clipping_times_eps_and_a_gradient_of_zero_stays_zero():
    gradient = draw(2, 4)
    gradient[1] = 0
    out = clipped_gradient(torch.zeros(2, 4).double(), gradient, 0.1, eps=0.01)
    assert out[0].norm().item() == pytest.approx(0.001)
    assert not out[1].any()
    assert out.isfinite().all()


@given(st.floats(0.01, 10), st.floats(0.001, 100))
def test_a_step_moves_no_unit_further_than_rate_times_clipping_times_its_length(rate, size):
    torch.manual_seed(0)
    layer = he_linear(6, 5, clipping=0.05).double()
    before = layer.weight.detach().clone()
    (gradient,) = torch.autograd.grad(size * layer(draw(7, 6)).pow(2).sum(), layer.weight)
    moved = (rate * gradient).norm(dim=1) / before.norm(dim=1)
    assert moved.max() <= 0.05 * rate * (1 + 1e-9)


def test_a_layer_with_scaled_weights_clips_the_gradient_of_its_weight_and_no_other():
    x = draw(8, 6)
    clipped, free = ScaledWSLinear(6, 4, clipping=0.01).double(), ScaledWSLinear(6, 4).double()
    clipped.load_state_dict(free.state_dict())
    for layer in (clipped, free):
        layer(x).pow(3).sum().backward()
    weight, gradient = free.weight.detach(), free.weight.grad
    torch.testing.assert_close(clipped.weight.grad, clipped_gradient(weight, gradient, 0.01))
    assert clipped.weight.grad.norm() < free.weight.grad.norm() / 2
    for name in ("gain", "bias"):
        assert torch.equal(getattr(clipped, name).grad, getattr(free, name).grad)


def test_the_inputs_gradient_is_not_clipped():
    x = draw(7, 6).requires_grad_()
    torch.manual_seed(0)
    layers = he_linear(6, 5, clipping=1e-6).double(), he_linear(6, 5).double()
    layers[1].load_state_dict(layers[0].state_dict())
    a, b = (torch.autograd.grad(layer(x).pow(2).sum(), x)[0] for layer in layers)
    assert torch.equal(a, b)


def test_under_vmap_each_member_is_clipped_by_its_own_lengths():
    weights, gradients = draw(3, 4, 5), 10 ** draw(3, 1, 1, seed=2) * draw(3, 4, 5, seed=1)
    out = vmap(lambda w, g: clipped_gradient(w, g, 0.1))(weights, gradients)
    for k in range(3):
        torch.testing.assert_close(out[k], clipped_gradient(weights[k], gradients[k], 0.1))


def test_wrong_arguments_are_refused_by_name():
    for bad in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match=r"clipping: got .*, expected a finite number above 0"):
            clip_adaptively(draw(2, 2), bad)
        with pytest.raises(ValueError, match=r"eps: got .*, expected a finite number above 0"):
            clip_adaptively(draw(2, 2), 0.1, bad)
        with pytest.raises(ValueError, match=r"alpha: got .*, expected a finite number above 0"):
            NormFreeBlock(4, 0, alpha=bad)
    with pytest.raises(ValueError, match=r"weight: got shape \(3,\), expected \(C_out, \*rest\)"):
        clip_adaptively(draw(3), 0.1)
    with pytest.raises(ValueError, match="weight: got 1 weight per filter"):
        scaled_standardized(draw(3, 1))
    with pytest.raises(ValueError, match="index: got -1, expected a whole number, 0 or more"):
        NormFreeBlock(4, -1)
    with pytest.raises(ValueError, match="branches: got 0, expected a whole number, 1 or more"):
        FixupBlock(4, 0)
    with pytest.raises(ValueError, match="layers: got 1, expected a whole number, 2 or more"):
        FixupBlock(4, 2, layers=1)


# --------------------------------------------------------------------------- blocks


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_starts_as_the_identity_and_learns(name):
    torch.manual_seed(0)
    block, x = BLOCKS[name](), draw(8, 6, dtype=torch.float32)
    assert torch.equal(block(x), x)
    for _ in range(20):
        gradients = torch.autograd.grad((block(x) - 2 * x).square().mean(), list(block.parameters()))
        with torch.no_grad():
            for p, d in zip(block.parameters(), gradients, strict=True):
                p -= 0.1 * d
    assert (block(x) - x).abs().max() > 1e-3


@pytest.mark.parametrize(("layers", "branches", "factor"), [(2, 16, 1 / 4), (3, 16, 1 / 2), (4, 64, 1 / 2)])
def test_fixup_shrinks_all_but_the_last_layer_by_its_power_of_the_depth(layers, branches, factor):
    torch.manual_seed(0)
    block = FixupBlock(300, branches, layers, scale=1.5)
    for linear in block.linears[:-1]:
        assert linear.weight.std().item() == pytest.approx(1.5 * factor * math.sqrt(2 / 300), rel=0.02)
    assert len(block.linears) == layers
    assert not block.linears[-1].weight.any()
    assert block.multiplier.item() == 1
    assert not block.biases.any()


def test_fixup_has_a_scalar_bias_before_each_activation_and_each_layer_and_a_multiplier():
    torch.manual_seed(0)
    block, x = FixupBlock(6, 4), draw(8, 6, dtype=torch.float32)
    a, b, c, d = (0.3, -0.2, 0.5, 0.7)
    with torch.no_grad():
        block.biases.copy_(torch.tensor([a, b, c, d]))
        block.multiplier.fill_(1.5)
        block.linears[1].weight.normal_()
    first, second = (linear.weight.T for linear in block.linears)
    hidden = (torch.relu(x + a) + b) @ first
    expected = x + 1.5 * (torch.relu(hidden + c) + d) @ second
    torch.testing.assert_close(block(x), expected)


def test_the_first_step_of_fixup_changes_the_output_by_the_same_at_every_depth():
    """Exactly: L equal blocks change as much as one block; with He's weights they change L times as much."""

    def change(branches, copies):
        torch.manual_seed(0)
        block = FixupBlock(8, branches).double()
        blocks = nn.Sequential(*[block] + [FixupBlock(8, branches).double() for _ in range(copies - 1)])
        for other in blocks:
            other.load_state_dict(block.state_dict())
        x, target, lr = draw(5, 8), draw(5, 8, seed=1), 1e-7
        weights = [b.linears[-1].weight for b in blocks]
        gradients = torch.autograd.grad((blocks(x) * target).sum(), weights)
        with torch.no_grad():
            for w, d in zip(weights, gradients, strict=True):
                w -= lr * d
            return (blocks(x) - x).norm().item() / lr

    one = change(1, 1)
    assert change(4, 4) == pytest.approx(one, rel=1e-4)
    assert change(1, 4) == pytest.approx(4 * one, rel=1e-4)


def test_an_nf_block_divides_by_the_predicted_deviation_and_adds_a_fixed_share():
    torch.manual_seed(0)
    block, x = NormFreeBlock(6, 3, alpha=0.5, skip0=0.8).double(), draw(8, 6)
    beta = math.sqrt(1 + 3 * 0.25)
    torch.testing.assert_close(block(x), x + 0.5 * block.skip * block.branch(x / beta))
    assert block.skip.item() == pytest.approx(0.8)
    assert NormFreeBlock(6, 0).beta.item() == 1
    assert NormFreeBlock(6, 0).skip.item() == 1
    assert NormFreeBlock(6, 0).alpha == 0.2


def test_the_stream_of_nf_blocks_follows_the_prediction():
    torch.manual_seed(0)
    x = torch.randn(400, 400)
    for index in range(10):
        with torch.no_grad():
            x = NormFreeBlock(400, index, alpha=0.5)(x)
    assert x.square().mean().item() == pytest.approx(1 + 10 * 0.25, rel=0.05)


@pytest.mark.parametrize(
    "make",
    [
        lambda c: FixupBlock(6, 4, clipping=c),
        lambda c: NormFreeBlock(6, 2, clipping=c),
    ],
)
def test_every_linear_layer_of_a_block_takes_the_clipping(make):
    found = [m.clipping for m in make(0.2).modules() if isinstance(m, nn.Linear)]
    assert found == [0.2, 0.2]
    assert all(m.clipping is None for m in make(None).modules() if isinstance(m, nn.Linear))


def test_he_linear_has_he_weights_times_scale_and_zero_biases():
    torch.manual_seed(0)
    layer = he_linear(500, 400, scale=0.5)
    assert layer.weight.shape == (400, 500)
    assert layer.weight.std().item() == pytest.approx(0.5 * math.sqrt(2 / 500), rel=0.01)
    assert not layer.bias.any()
    assert he_linear(3, 2, bias=False).bias is None


@pytest.mark.parametrize("clipping", [None, 0.03])
def test_a_sweep_trains_blocks_of_every_kind_as_fit_does(clipping):
    digits = data.digits()
    small = digits._replace(x_test=digits.x_test[:20], y_test=digits.y_test[:20])

    def build(in_shape, classes):
        blocks = [
            FixupBlock(8, 2, clipping=clipping),
            NormFreeBlock(8, 1, clipping=clipping),
        ]
        return nn.Sequential(he_linear(64, 8, clipping=clipping), *blocks, he_linear(8, classes))

    setting = {"steps": 4, "lr": 0.5, "batch_size": 16}
    runs = training.sweep(build, small, seeds=[1, 2], jobs=1, **setting)
    for k, seed in enumerate((1, 2)):
        torch.manual_seed(seed)
        alone = training.fit(build((64,), 10), small, seed=seed, **setting)
        np.testing.assert_allclose(runs.loss[k], alone.loss, rtol=1e-5)
