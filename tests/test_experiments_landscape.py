"""The experiment on the loss along the gradient."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from bnbook import data, experiments, models, probes, training
from bnbook.experiments import landscape

TINY = {"norm": ["none", "batch"], "lr": 0.1, "batch_size": 16, "steps": 4, "every": 2}
MLP = {"network": "mlp", "depth": 2, "activation": "tanh", **TINY}
VGG = {"network": "vgg", "widths": (4, 0, 4), **TINY}


def linear(norm="none"):
    torch.manual_seed(0)
    model = models.mlp((6,), 3, depth=2, width=5, norm=norm, activation="tanh").double()
    return model, torch.randn(9, 6).double(), torch.arange(9) % 3


def test_it_is_found_by_its_name_and_offers_what_an_experiment_has():
    assert "landscape" in experiments.names()
    assert experiments.load("landscape").SCALES.keys() == {"small", "medium", "full"}


@pytest.mark.parametrize("scale", ["small", "medium", "full"])
def test_every_point_of_a_scale_has_every_seed_once_and_settings_that_are_known(scale):
    members = experiments.members(landscape, scale, [3, 5])
    assert {member["seed"] for member in members} == {3, 5}
    assert len({repr(sorted(member.items())) for member in members}) == len(members)
    assert all(member["norm"] in landscape.NORMS for member in members)
    assert not any(isinstance(value, list) for member in members for value in member.values())


def test_along_the_gradient_the_numbers_are_those_of_the_definition():
    model, x, y = linear()
    found = landscape.along_gradient(model, F.cross_entropy, x, y, 0.3, (0.5, 2.0))
    theta = list(model.parameters())

    def loss_and_gradient():
        value = F.cross_entropy(model(x), y)
        return value.item(), torch.cat([g.ravel() for g in torch.autograd.grad(value, theta)])

    value, g = loss_and_gradient()
    start = [p.detach().clone() for p in theta]
    losses, distances, betas = [], [], []
    for t in (0.15, 0.6):
        parts = torch.split(g, [p.numel() for p in theta])
        with torch.no_grad():
            for p, p0, part in zip(theta, start, parts, strict=True):
                p.copy_(p0 - t * part.view(p.shape))
        there, moved = loss_and_gradient()
        losses.append(there)
        distances.append((moved - g).norm().item())
        betas.append(distances[-1] / (t * g.norm().item()))
    expected = {
        "loss": value,
        "gradient": g.norm().item(),
        "range": max(losses) - min(losses),
        "distance": max(distances),
        "beta": max(betas),
    }
    assert found == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_looking_leaves_the_model_as_it_was(norm):
    model, x, y = linear(norm)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    landscape.along_gradient(model, F.cross_entropy, x, y, 0.3)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_mlp_is_that_of_fit_seen_in_training_mode():
    rows = landscape.measure(**MLP | {"norm": "batch"}, seeds=[0])
    digits = data.digits()
    torch.manual_seed(0)
    model = models.mlp((64,), 10, norm="batch", activation="tanh", depth=2, width=64)
    training.fit(model, digits, steps=2, seed=0, batch_size=16, lr=0.1)
    batch = np.random.default_rng(2).choice(len(digits.x_train), 16, replace=False)
    x, y = torch.from_numpy(digits.x_train[batch]), torch.from_numpy(digits.y_train[batch])
    expected = probes.landscape(model.train(), F.cross_entropy, x, y, [0.05, 0.1, 0.2, 0.4])
    assert [row["step"] for row in rows] == [0, 2, 4]
    assert rows[1]["beta"] == pytest.approx(expected.beta[-1].item(), rel=1e-3)
    assert rows[1]["distance"] == pytest.approx(expected.distance.max().item(), rel=1e-3)


@pytest.mark.parametrize("grid", [MLP, VGG], ids=["mlp", "vgg"])
def test_all_seeds_at_once_give_what_single_members_give(grid):
    together = landscape.table(grid, [1, 2])
    points = [grid | {"norm": norm, "seed": seed} for norm in grid["norm"] for seed in (1, 2)]
    alone = experiments.collect(landscape, points)
    assert len(alone) == len(together) == 4 * (3 if grid is MLP else 2)
    for name in ("seed", "step", "loss", "gradient", "range", "distance", "beta"):
        np.testing.assert_allclose(alone[name], together[name], rtol=2e-3)
    assert together.groupby(["norm", "seed"])["beta"].first().nunique() == 4


def test_a_vgg_that_diverges_ends_with_what_was_seen():
    rows = landscape.measure(**VGG | {"norm": "batch", "lr": 1e30, "steps": 6, "every": 1}, seeds=[0])
    assert 1 <= len(rows) < 6
    assert math.isfinite(rows[0]["loss"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: landscape.measure(**MLP | {"norm": "l3"}, seeds=[0]), "norm: got 'l3', allowed are none"),
        (
            lambda: landscape.measure(**VGG | {"network": "rnn", "norm": "l1"}, seeds=[0]),
            "network: got 'rnn', allowed are mlp, vgg",
        ),
    ],
)
def test_a_wrong_setting_is_named_with_what_is_allowed(call, message):
    with pytest.raises(ValueError, match=message):
        call()
