"""What is measured inside a network: per-example gradients against a loop of plain autograd, and statistics
of activations against known values. (test_probes_training.py has gradients, test_probes_curvature.py
Jacobians and Hessians, test_probes_state.py that the model is left alone.)
"""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import build
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from bnbook import layers, probes

f64 = torch.float64


def mlp():
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


def cnn():
    return nn.Sequential(
        nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), layers.BatchNorm(8), nn.Linear(8, 3)
    ).eval()


def tied():
    net = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))
    net[2].weight = net[0].weight
    return net


def frozen():
    net = mlp()
    net[0].weight.requires_grad_(False)
    return net


def examples(shape=(7, 6), classes=3):
    g = torch.Generator().manual_seed(1)
    return torch.randn(shape, generator=g, dtype=f64), torch.randint(classes, shape[:1], generator=g)


CASES = {
    "mlp": (mlp, (7, 6)),
    "one example": (mlp, (1, 6)),
    "convolution with batch norm in evaluation": (cnn, (4, 1, 3, 3)),
    "tied weights": (tied, (4, 6)),
    "a frozen weight": (frozen, (4, 6)),
}


@pytest.mark.parametrize("name", CASES)
def test_rows_are_the_gradients_of_a_loop_over_the_examples(name):
    make, shape = CASES[name]
    model, (x, y) = build(make), examples(shape)
    parameters = [p for p in model.parameters() if p.requires_grad]
    found = probes.per_example_gradients(model, F.cross_entropy, x, y)
    expected = torch.stack(
        [
            torch.cat(
                [
                    g.flatten()
                    for g in torch.autograd.grad(F.cross_entropy(model(a[None]), b[None]), parameters)
                ]
            )
            for a, b in zip(x, y, strict=True)
        ]
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_their_mean_is_the_gradient_of_the_mean_loss():
    model, (x, y) = build(mlp), examples()
    full = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))
    found = probes.per_example_gradients(model, F.cross_entropy, x, y).mean(0)
    torch.testing.assert_close(found, nn.utils.parameters_to_vector(full), rtol=0, atol=1e-12)


def test_targets_may_be_numbers_and_the_loss_any_function():
    model, (x, _) = build(lambda: nn.Linear(6, 1, bias=False)), examples()
    y = x.sum(1, keepdim=True)
    found = probes.per_example_gradients(model, lambda output, target: ((output - target) ** 2).sum(), x, y)
    torch.testing.assert_close(found, 2 * (model(x) - y).detach() * x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_and_the_random_state_are_left_as_they_were(training):
    def make():
        return nn.Sequential(nn.Linear(6, 5), nn.Dropout(0.5), nn.BatchNorm1d(5), nn.Linear(5, 3))

    model, (x, y) = build(make), examples()
    x.requires_grad_()
    model.train(training)
    model[2].eval()
    for p in model.parameters():
        p.grad = torch.full_like(p, 2.0)
    modes = [layer.training for layer in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    first = probes.per_example_gradients(model, F.cross_entropy, x, y)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(first, probes.per_example_gradients(model, F.cross_entropy, x, y))
    assert [layer.training for layer in model.modules()] == modes
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all((p.grad == 2).all() and p.requires_grad and p.is_leaf for p in model.parameters())
    assert x.grad is None
    assert not first.requires_grad


def test_each_example_has_its_own_dropout():
    model = build(lambda: nn.Sequential(nn.Dropout(0.5), nn.Linear(50, 1)))
    x = torch.ones(2, 50, dtype=f64)
    rows = probes.per_example_gradients(model, F.mse_loss, x, torch.full((2, 1), 9.0, dtype=f64))
    assert not torch.equal(rows[0] == 0, rows[1] == 0)


class OwnNorm(nn.Module):
    """Batch norm as a reader writes it."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(5))

    def forward(self, x):
        if not self.training:
            return x - self.mean
        self.mean = 0.9 * self.mean + 0.1 * x.mean(0).detach()
        return (x - x.mean(0)) / x.std(0)


class FromFirst(nn.Module):
    """The distance from the first example of the batch."""

    def forward(self, x):
        return x - x[:1]


@pytest.mark.parametrize("layer", [OwnNorm, FromFirst])
def test_a_model_whose_examples_depend_on_each_other_is_refused_whatever_the_layer(layer):
    model = build(lambda: nn.Sequential(nn.Linear(6, 5), layer(), nn.Linear(5, 3)))
    with pytest.raises(ValueError, match=r"^model: .* changes when others do, .*evaluation mode"):
        probes.per_example_gradients(model, F.cross_entropy, *examples())
    assert len(probes.jacobian_singular_values(model, examples()[0])) == 1  # the whole batch is one map


class Mean(nn.Module):
    """The mean over the batch."""

    def forward(self, x):
        return x.mean()


def test_a_model_with_one_output_for_the_whole_batch_is_one_map():
    x, y = examples()
    torch.testing.assert_close(
        probes.jacobian_singular_values(Mean(), x), torch.full((1, 1), 42**-0.5, dtype=f64)
    )
    with pytest.raises(ValueError, match="model: its output has no row for each example"):
        probes.per_example_gradients(build(lambda: nn.Sequential(nn.Linear(6, 5), Mean())), F.mse_loss, x, y)


@pytest.mark.parametrize("size", [1, 2, 7])
def test_a_model_whose_examples_are_independent_is_not_refused(size):
    model = build(lambda: nn.Sequential(nn.Linear(6, 5), nn.Dropout(0.5), OwnNorm(), nn.Linear(5, 3)))
    model[2].eval()
    x, y = examples((size, 6))
    assert len(probes.per_example_gradients(model, F.cross_entropy, x, y)) == size
    assert len(probes.jacobian_singular_values(model, x)) == size


def training_norm(norm):
    return nn.Sequential(nn.Linear(6, 3), norm)


BAD = {
    "no example": (mlp, 0, 0, "x, y: got 0 and 0 examples, expected the same number, at least one"),
    "another number": (mlp, 3, 2, "x, y: got 3 and 2 examples, expected the same number"),
    "nothing to learn": (nn.Identity, 3, 3, "model: got no parameter that requires a gradient"),
    "torch's batch norm": (
        lambda: training_norm(nn.BatchNorm1d(3)),
        3,
        3,
        "model: layer '1' normalizes with",
    ),
    "our batch norm": (lambda: training_norm(layers.BatchNorm(3)), 3, 3, "model: layer '1' normalizes with"),
    "no running statistics": (
        lambda: training_norm(nn.BatchNorm1d(3, track_running_stats=False)).eval(),
        3,
        3,
        "allowed is a model in evaluation mode",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_gets_a_message_that_names_the_argument_what_came_and_what_is_allowed(name):
    make, num_x, num_y, message = BAD[name]
    x, y = examples()
    with pytest.raises(ValueError, match=r"^(x, y|model): ") as error:
        probes.per_example_gradients(build(make), F.cross_entropy, x[:num_x], y[:num_y])
    assert message in str(error.value)


# --------------------------------------------------------------------------- activations


def test_layer_inputs_come_in_the_order_in_which_they_are_read():
    model, (x, _) = (
        build(lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.Tanh())),
        examples(),
    )
    first, second = probes.layer_inputs(model, x, nn.Linear)
    assert torch.equal(first, x)
    assert torch.equal(second, model[:2](x))
    assert [v.shape[1] for v in probes.layer_inputs(model, x, (nn.ReLU, nn.Tanh))] == [5, 4]
    assert not second.requires_grad


def test_an_activation_that_runs_twice_is_recorded_twice():
    relu = nn.ReLU()
    model, (x, _) = build(lambda: nn.Sequential(nn.Linear(6, 6), relu, nn.Linear(6, 6), relu)), examples()
    found = probes.layer_inputs(model, x, nn.ReLU)
    assert torch.equal(found[0], model[0](x))
    assert torch.equal(found[1], model[:3](x))
    assert len(found) == 2


def test_an_activation_that_works_in_place_does_not_overwrite_what_was_recorded():
    model, (x, _) = build(lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Linear(6, 3))), examples()
    before = x.clone()
    assert torch.equal(probes.layer_inputs(model, x, nn.ReLU)[0], before)
    assert torch.equal(x, before)


def test_the_model_itself_may_be_of_the_kind():
    x, _ = examples()
    assert torch.equal(probes.layer_inputs(nn.Sigmoid(), x, nn.Sigmoid)[0], x)


@pytest.mark.parametrize("shape", [(9,), (9, 4), (9, 4, 3), (9, 4, 3, 2)])
def test_percentiles_are_numpys_over_examples_and_positions(shape):
    values, _ = examples(shape)
    axes = (0, *range(2, len(shape)))
    expected = np.percentile(values.numpy(), [15, 50, 85, 0, 100, 2.5], axis=axes)
    found = probes.percentiles(values, [15, 50, 85, 0, 100, 2.5])
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-12)
    assert torch.equal(probes.percentiles(values), found[:3])


def test_drift_of_a_known_series():
    medians = torch.tensor([[0.0, 5.0], [2.0, 5.0], [4.0, 5.0], [-2.0, 5.0]], dtype=f64)
    spreads = torch.tensor([[4.0, 1.0], [1.0, 2.0], [1.0, 3.0], [2.0, 0.0]], dtype=f64)
    found = probes.drift(medians, spreads)
    assert found.wander.tolist() == [math.sqrt(5) / 2, 0]  # (0, 2, 4, -2): mean 1, variance (1+1+9+9)/4
    assert found.shift.tolist() == [0.5, 0]
    one = probes.drift(medians[:, 0], spreads[:, 0])
    assert (one.wander.item(), one.shift.item()) == (math.sqrt(5) / 2, 0.5)


@given(st.floats(0.01, 100), st.floats(-100, 100), st.sampled_from([-1, 1]))
def test_drift_does_not_depend_on_the_unit_of_measurement(scale, offset, sign):
    medians, spreads = examples((20, 3))[0], examples((20, 3))[0].abs() + 0.1
    a = probes.drift(medians, spreads)
    b = probes.drift(sign * scale * medians + offset, scale * spreads)
    torch.testing.assert_close(tuple(a), tuple(b), rtol=1e-8, atol=0)


def test_saturated_share_of_known_outputs():
    outputs = torch.tensor([[0.01, 0.06], [0.94, 0.96], [0.5, 0.04], [0.051, 0.949]], dtype=f64)
    assert probes.saturated_share(torch.logit(outputs)) == 3 / 8
    assert probes.saturated_share(torch.atanh(2 * outputs - 1), "tanh") == 3 / 8
    assert probes.saturated_share(torch.logit(outputs), low=0.02, high=1) == 1 / 8
    assert probes.saturated_share(torch.logit(outputs), low=0, high=0.95) == 1 / 8
    assert probes.saturated_share(torch.tensor([math.inf, -math.inf])) == 1


def test_a_unit_is_dead_when_no_example_and_no_position_passes_it():
    values = torch.tensor([[-1.0, 2.0, 0.0, -3.0], [-2.0, -1.0, 0.0, 1.0]])
    assert probes.dead_share(values) == 0.5
    assert probes.dead_share(torch.relu(values)) == 0.5
    assert probes.dead_share(values[:, 1]) == 0  # one unit
    maps = -torch.ones(2, 4, 3, 3)
    maps[1, 2, 0, 2] = 0.1  # one position of one example keeps the channel alive
    assert probes.dead_share(maps) == 0.75


one_nan = torch.tensor([[1.0, math.nan]])
m, s = torch.zeros(3, 2), torch.ones(3, 2)
BAD_VALUES = {
    "kind": (
        lambda: probes.layer_inputs(build(mlp), examples()[0], nn.ReLU),
        "what runs in the model is ['Linear'",
    ),
    "percentages": (lambda: probes.percentiles(m, (50, 101)), "q: got (50, 101), allowed"),
    "NaN in percentiles": (lambda: probes.percentiles(one_nan), "values: got NaN"),
    "NaN in the saturated share": (lambda: probes.saturated_share(one_nan), "values: got NaN"),
    "NaN in the dead share": (lambda: probes.dead_share(one_nan), "values: got NaN"),
    "nothing": (lambda: probes.dead_share(torch.empty(0, 3)), "values: got shape (0, 3)"),
    "no batch": (lambda: probes.percentiles(torch.tensor(1.0)), "values: got shape ()"),
    "whole numbers": (lambda: probes.percentiles(torch.ones(3, dtype=torch.long)), "of torch.int64"),
    "activation": (
        lambda: probes.saturated_share(m, "relu"),
        "activation: got 'relu', allowed are sigmoid, tanh",
    ),
    "thresholds": (lambda: probes.saturated_share(m, low=0.9, high=0.1), "low, high: got 0.9 and 0.1"),
    "shapes": (lambda: probes.drift(m, s[:2]), "medians, spreads: got shapes (3, 2) and (2, 2)"),
    "one time": (lambda: probes.drift(m[:1], s[:1]), "at least two times"),
    "no time": (lambda: probes.drift(m[0, 0], s[0, 0]), "at least two times"),
    "NaN over time": (lambda: probes.drift(m, s * math.nan), "medians, spreads: got NaN or infinity"),
    "negative spread": (lambda: probes.drift(m, s - 2), "spreads: expected none below 0"),
    "no first spread": (
        lambda: probes.drift(m, s * torch.tensor([[0.0], [1], [1]])),
        "the first of each unit above 0",
    ),
}


@pytest.mark.parametrize("name", BAD_VALUES)
def test_bad_values_get_a_message_that_names_the_argument(name):
    call, message = BAD_VALUES[name]
    with pytest.raises(
        ValueError, match=r"^(kind|q|values|activation|low, high|medians, spreads|spreads): "
    ) as error:
        call()
    assert message in str(error.value)
