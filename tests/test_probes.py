"""What is measured inside a network: per-example gradients against a loop of plain autograd."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bnbook import layers, probes

f64 = torch.float64


def build(make):
    """Make a network, with its own seed and in float64, and leave the global generator alone."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make().to(f64)


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
        "allowed is a layer in evaluation mode with running statistics",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_gets_a_message_that_names_the_argument_what_came_and_what_is_allowed(name):
    make, num_x, num_y, message = BAD[name]
    x, y = examples()
    with pytest.raises(ValueError, match=r"^(x, y|model): ") as error:
        probes.per_example_gradients(build(make), F.cross_entropy, x[:num_x], y[:num_y])
    assert message in str(error.value)
