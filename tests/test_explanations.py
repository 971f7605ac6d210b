"""The parts of batch norm that the page of six explanations takes one at a time."""

import pytest
import torch
from torch import nn

from bnbook import models
from bnbook.experiments.explanations import DirectedLinear, SparselyTrainedLinear, network


def made(side, activation="relu", seed=0):
    torch.manual_seed(seed)
    first = torch.rand(200, 12)
    return network((12,), 3, side=side, activation=activation, depth=3, first=first), first


def test_a_directed_layer_is_pytorchs_weight_norm():
    ours = DirectedLinear(5, 4)
    theirs = nn.utils.parametrizations.weight_norm(nn.Linear(5, 4))
    theirs.load_state_dict(
        {
            "bias": ours.bias,
            "parametrizations.weight.original0": ours.length[:, None],
            "parametrizations.weight.original1": ours.weight,
        }
    )
    x = torch.randn(7, 5)
    torch.testing.assert_close(ours(x), theirs(x))
    for layer in (ours, theirs):
        (layer(x) ** 3).sum().backward()
    torch.testing.assert_close(ours.weight.grad, theirs.parametrizations.weight.original1.grad)
    torch.testing.assert_close(ours.length.grad, theirs.parametrizations.weight.original0.grad[:, 0])


@pytest.mark.parametrize("side", ["first batch", "length apart"])
@pytest.mark.parametrize("activation", ["relu", "sigmoid"])
def test_the_first_batch_leaves_what_batch_norm_would_give_it(side, activation):
    model, first = made(side, activation)
    reference = models.mlp((12,), 3, depth=3, width=48, activation=activation, norm="batch").train()
    linear = [part for part in model if isinstance(part, nn.Linear)]
    theirs = [part for part in reference if isinstance(part, nn.Linear)]
    for mine, other in zip(linear, theirs, strict=True):
        other.load_state_dict({"weight": mine.weight, "bias": mine.bias}, strict=other.bias is not None)
    for layer in (part for part in reference if hasattr(part, "running_mean")):
        layer.eps = 0.0
    torch.testing.assert_close(model(first), reference(first), atol=1e-4, rtol=1e-4)


def test_what_is_frozen_stays_and_the_controls_learn_as_many_numbers():
    counts = {}
    for side in ("γ and β", "two weights"):
        model, first = made(side)
        before = {name: value.clone() for name, value in model.named_parameters()}
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            (model(first) ** 2).mean().backward()
            optimizer.step()
        moved = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
        assert moved == {name for name, value in model.named_parameters() if value.requires_grad}
        counts[side] = sum(before[name].numel() for name in moved)
    assert counts == {"γ and β": 3 * 2 * 48, "two weights": 3 * 2 * 48}


def test_two_different_weights_of_each_unit_learn_and_nothing_else_matters():
    layer = SparselyTrainedLinear(6, 50)
    assert (layer.index[:, 0] != layer.index[:, 1]).all()
    x = torch.randn(9, 6)
    torch.testing.assert_close(layer(x), x @ layer.weight.T)
    nn.init.ones_(layer.learning)
    changed = layer.weight.scatter(1, layer.index, layer.weight.gather(1, layer.index) + 1)
    torch.testing.assert_close(layer(x), x @ changed.T)


def test_an_unknown_side_is_refused():
    with pytest.raises(ValueError, match="side: got 'both', allowed are"):
        made("both")
