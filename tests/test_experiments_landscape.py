"""The experiment on the loss along the gradient."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from bnbook import data, experiments, models, probes, training
from bnbook.experiments import landscape

TINY = {"norm": ["none", "batch"], "lr": 0.1, "batch_size": 16, "steps": 4, "every": 2}
MLP = {"network": "mlp", "depth": 2, **TINY}
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
    members = [m for m in experiments.members(landscape, scale, [3, 5]) if "map" not in m]
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
    model = models.mlp((64,), 10, norm="batch", depth=2, width=64)
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


def test_a_map_has_a_row_for_each_norm_rate_step_and_seed_with_what_measure_sees():
    settings = {"images": "digits", "depth": 2, "rate": (0.01, 0.1), "steps": (2, 6), "seed": (3, 4)}
    rows = experiments.collect(landscape, [{"map": "regimes", **settings, "side": ("none", "batch")}])
    assert len(rows) == len(rows.drop_duplicates(["side", "rate", "steps", "seed"])) == 2 * 2 * 2 * 2
    network = {"network": "mlp", "norm": "batch", "depth": 2, "batch_size": 64}
    (alone,) = (
        row for row in landscape.measure(**network, lr=0.1, steps=6, every=2, seeds=[4]) if row["step"] == 6
    )
    (row,) = rows.query("side == 'batch' and rate == 0.1 and steps == 6 and seed == 4").to_dict("records")
    for name in ("loss", "gradient", "range", "distance", "beta"):
        assert row[name] == pytest.approx(alone[name], rel=2e-3)


def test_the_sharpness_on_the_way_is_the_eigenvalue_of_the_hessian_of_all_the_data():
    rows = landscape.edge("none", rate=(0.01,), steps=(0, 2), seed=(3,))
    digits = data.digits()
    x, y = torch.from_numpy(digits.x_train[:256]), torch.from_numpy(digits.y_train[:256])
    torch.manual_seed(3)
    model = models.mlp((64,), 10, depth=6, width=64)

    def squares(output, y):
        return F.mse_loss(output, F.one_hot(y, 10).float(), reduction="sum") / 2 / len(y)

    for step in range(3):
        loss = squares(model(x), y)
        slopes = torch.autograd.grad(loss, list(model.parameters()))
        if step != 1:
            top = probes.top_eigenvalue(model, squares, x, y, tolerance=0.01)
            assert rows[step // 2]["sharpness"] == pytest.approx(top, rel=0.2)
            assert rows[step // 2]["loss"] == pytest.approx(loss.item())
        with torch.no_grad():
            for parameter, slope in zip(model.parameters(), slopes, strict=True):
                parameter -= 0.01 * slope


def test_a_network_that_diverges_has_no_sharpness():
    rows = landscape.edge("none", rate=(1e9,), steps=(0, 4), seed=(0,))
    assert math.isfinite(rows[0]["sharpness"])
    assert math.isnan(rows[1]["sharpness"])


def test_the_gradients_of_a_unit_are_those_of_finite_differences():
    unit = landscape.unit(1, m=5, eps=0.3)
    for at, loss, gradient in ((unit.x, unit.loss_of_x, unit.dx), (unit.y, unit.loss_of_y, unit.dy)):
        for i, e in enumerate(torch.eye(5).double() * 1e-5):
            assert float(loss(at + e) - loss(at - e)) / 2e-5 == pytest.approx(float(gradient[i]), rel=1e-5)
    assert float(unit.x_hat.square().sum()) == pytest.approx(5 * unit.sigma**2 / (unit.sigma**2 + 0.3))
