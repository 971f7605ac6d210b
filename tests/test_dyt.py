"""Dynamic tanh: its definition, its layout of parameters, what it ignores and what it does not."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import functional_call, stack_module_state, vmap

from bnbook import data, layers, models, training


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def trained(shape, alpha=0.7, **kwargs):
    """A layer whose parameters are not those of the start."""
    layer = layers.DyT(shape, **kwargs).double()
    with torch.no_grad():
        layer.alpha.fill_(alpha)
        layer.weight.copy_(1 + draw(*layer.weight.shape, seed=1))
        layer.bias.copy_(draw(*layer.bias.shape, seed=2))
    return layer


def test_it_is_gamma_tanh_alpha_x_plus_beta():
    layer, x = trained(5), draw(4, 3, 5)
    expected = layer.weight * torch.tanh(0.7 * x) + layer.bias
    torch.testing.assert_close(layer(x), expected)


def test_as_in_the_paper_alpha_is_one_number_from_one_half_and_gamma_and_beta_belong_to_channels():
    layer = layers.DyT(6)
    shapes = {name: tuple(value.shape) for name, value in layer.state_dict().items()}
    assert shapes == {"alpha": (1,), "weight": (6,), "bias": (6,)}
    assert layer.alpha.item() == 0.5
    assert (layer.weight == 1).all()
    assert not layer.bias.any()
    assert layers.DyT(6, alpha0=0.2).alpha.item() == pytest.approx(0.2)


@pytest.mark.parametrize("shape", [(7, 5), (7, 5, 4), (7, 5, 4, 2)])
def test_with_channels_first_gamma_and_beta_belong_to_axis_1(shape):
    layer, x = trained(5, channels_last=False), draw(*shape)
    for c in range(5):
        expected = layer.weight[c] * torch.tanh(0.7 * x[:, c]) + layer.bias[c]
        torch.testing.assert_close(layer(x)[:, c], expected)


def test_several_trailing_axes_have_a_gamma_for_each_element():
    layer, x = trained((3, 2)), draw(4, 3, 2)
    torch.testing.assert_close(layer(x), layer.weight * torch.tanh(0.7 * x) + layer.bias)


@pytest.mark.parametrize("channels_last", [True, False])
def test_gradients_of_inputs_and_parameters_match_finite_differences(channels_last):
    layer = trained(3, channels_last=channels_last)

    def output(x, *parameters):
        return functional_call(layer, dict(zip(layer.state_dict(), parameters, strict=True)), (x,))

    arguments = [draw(4, 3, 3), *layer.state_dict().values()]
    assert torch.autograd.gradcheck(output, [a.clone().requires_grad_() for a in arguments])


def test_an_example_sees_neither_its_batch_nor_its_own_other_elements():
    layer, x = trained(5), draw(4, 5)
    jacobian = torch.autograd.functional.jacobian(layer, x).reshape(20, 20)
    assert torch.equal(jacobian, torch.diag(jacobian.diagonal()))
    torch.testing.assert_close(layer(x[:1]), layer(x)[:1])


@given(st.floats(-1e6, 1e6))
def test_an_outlier_comes_out_between_beta_minus_and_plus_gamma(value):
    layer = layers.DyT(1)
    assert abs(layer(torch.tensor([[value]])).item()) <= 1


def test_it_depends_on_the_scale_of_its_inputs_only_through_alpha():
    x, twice = draw(4, 5), trained(5, alpha=1.4)
    assert not torch.allclose(trained(5)(2 * x), trained(5)(x))
    torch.testing.assert_close(trained(5)(2 * x), twice(x))


def test_stacked_layers_do_what_they_do_alone():
    members = [trained(5, alpha=a, channels_last=c) for a in (0.3, 2.0) for c in (False,)]
    parameters, buffers = stack_module_state(members)
    x = draw(2, 4, 5)

    def call(p, b, x):
        return functional_call(members[0], (p, b), (x,))

    out = vmap(call)(parameters, buffers, x)
    for k, member in enumerate(members):
        torch.testing.assert_close(out[k], member(x[k]))


def test_a_sweep_trains_it_as_fit_does():
    digits = data.digits()
    small = digits._replace(x_test=digits.x_test[:20], y_test=digits.y_test[:20])
    setting = {"steps": 4, "lr": 0.3, "batch_size": 16}
    runs = training.sweep(models.mlp, small, norm="dyt", width=8, seeds=[1, 2], jobs=1, **setting)
    torch.manual_seed(2)
    model = models.mlp((64,), 10, norm="dyt", width=8)
    alone = training.fit(model, small, seed=2, **setting)
    torch.testing.assert_close(torch.tensor(runs.loss[1]), torch.tensor(alone.loss), rtol=1e-5, atol=1e-6)
    assert model[1].alpha.item() != 0.5


def test_it_is_one_of_the_norms_of_a_model_keeps_the_bias_before_it_and_takes_a_first_alpha():
    model = models.mlp((4,), 2, norm="dyt", depth=1)
    assert isinstance(model[1], layers.DyT)
    assert model[0].bias is not None  # tanh subtracts no mean
    assert model[1].alpha.item() == 0.5
    assert models.mlp((4,), 2, norm=("dyt", 0.25), depth=1)[1].alpha.item() == 0.25
    assert models.mlp((4,), 2, norm=("group", 2), width=4, depth=1)[0].bias is None


def test_a_wrong_alpha_shape_or_input_is_refused_by_name():
    for bad in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=r"alpha0: got .*, expected a finite number above 0"):
            layers.DyT(3, alpha0=bad)
    with pytest.raises(ValueError, match="normalized_shape: got 0, expected one or more positive"):
        layers.DyT(0)
    with pytest.raises(ValueError, match=r"normalized_shape: got \(3, 2\), expected one number"):
        layers.DyT((3, 2), channels_last=False)
    with pytest.raises(ValueError, match=r"x: got shape \(2, 4\), expected one that ends in \(3,\)"):
        layers.DyT(3)(torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"x: got shape \(2, 4, 3\), expected \(N, C\) or .* C = 3"):
        layers.DyT(3, channels_last=False)(torch.zeros(2, 4, 3))
    with pytest.raises(ValueError, match=r"x: got dtype torch.int64"):
        layers.DyT(3)(torch.zeros(2, 3, dtype=torch.int64))


def test_printing_shows_the_settings():
    assert repr(layers.DyT(3, 0.2)) == "DyT((3,), alpha0=0.2, channels_last=True)"
