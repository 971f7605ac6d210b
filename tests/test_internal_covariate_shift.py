"""The experiments of the chapter on internal covariate shift."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from bnbook import data, models, training
from bnbook.experiments import internal_covariate_shift as chapter


def small_network():
    torch.manual_seed(3)
    return models.mlp((6,), 3, depth=2, width=5), torch.randn(8, 6), torch.arange(8) % 3


def test_single_steps_are_steps_of_sgd_on_all_layers_and_on_each():
    model, x, y = small_network()
    before = F.cross_entropy(model(x), y).item()
    found = chapter.single_steps(model, x, y, [0.1, 0.7])
    for row, rate in zip(found, [0.1, 0.7], strict=True):
        for change, moving in zip(row, [(0, 2, 4), (0,), (2,), (4,)], strict=True):
            other, _, _ = small_network()
            optimizer = torch.optim.SGD([p for k in moving for p in other[k].parameters()], lr=rate)
            F.cross_entropy(other(x), y).backward()
            optimizer.step()
            assert change == pytest.approx(F.cross_entropy(other(x), y).item() / before - 1, abs=1e-6)


def test_single_steps_leave_the_network_as_it_was():
    model, x, y = small_network()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    chapter.single_steps(model, x, y, [1.0])
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("side", chapter.SIDES)
def test_a_layer_that_is_held_still_stays_while_the_others_learn(side):
    held = chapter.SIDES[side]
    runs = training.sweep(
        chapter.held_mlp,
        data.digits(),
        steps=3,
        seeds=[4],
        evaluate_every=3,
        record=lambda model, _: model.state_dict(),
        lr=0.1,
        held=held,
        **chapter.NETWORKS["ReLU"],
    )
    moved = {k for k in range(1, 6) if np.ptp(runs.series[f"{2 * k - 2}.weight"][0], axis=0).any()}
    assert moved == {1, 2, 3, 4, 5} - set(held)


def test_a_new_top_stands_on_the_layers_below():
    below = {"0.weight": np.full((50, 64), 0.5, np.float32)}
    model = chapter._on_learned((64,), 10, below=below, **chapter.NETWORKS["sigmoid"])
    assert (model[0].weight == 0.5).all()
    assert model[6].weight.unique().numel() > 2
