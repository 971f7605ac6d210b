"""How far the verdicts of the chapter on internal covariate shift hold."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from bnbook import data, models, training
from bnbook.experiments import by_name

__all__ = [
    "NETWORKS",
    "SCALES",
    "SIDES",
    "held",
    "held_mlp",
    "new_top",
    "run",
    "single_steps",
    "together",
]

DEPTH, WIDTH = 4, 50
NETWORKS: dict[str, dict[str, Any]] = {
    "sigmoid": {"activation": "sigmoid", "init": 3.0, "depth": DEPTH, "width": WIDTH},
    "ReLU": {"activation": "relu", "init": "he", "depth": DEPTH, "width": WIDTH},
}
"""The chapter's two networks, as :func:`bnbook.models.mlp` builds them."""
RATE = {"sigmoid": 0.3, "ReLU": 0.1}
SIDES = {"all learn": (), "1 to 3 held still": (1, 2, 3), "4 held still": (4,)}
"""Which layers the maps hold still, counted from 1."""

_SEEDS = (100, 101, 102, 103, 104)  # the chapter's verdicts use others
_RATES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
SCALES: dict[str, list[dict[str, Any]]] = {
    "medium": [
        {
            "map": "held",
            "network": [*NETWORKS],
            "side": [*SIDES],
            "rate": _RATES,
            "steps": (100, 400, 1600),
            "seed": _SEEDS,
        },
        {
            "map": "together",
            "network": [*NETWORKS],
            "side": ["together", "alone"],
            "steps": (0, 25, 100, 400),
            "rate": (0.01, 0.03, 0.1, 0.3, 1.0),
            "seed": _SEEDS,
        },
    ]
}
"""Grids by the name of the scale."""

Row = dict[str, Any]


def held_mlp(
    in_shape: Sequence[int], classes: int, *, held: Iterable[int] = (), **settings: Any
) -> nn.Sequential:
    """:func:`bnbook.models.mlp` whose linear layers in `held`, counted from 1, do not learn.

    >>> model = held_mlp((64,), 10, held=(1,), depth=1)
    >>> [layer.weight.requires_grad for layer in model[::2]]
    [False, True]
    """
    model = models.mlp(in_shape, classes, **settings)
    for k in held:
        model[2 * k - 2].requires_grad_(False)
    return model


def single_steps(model: nn.Sequential, x: Tensor, y: Tensor, rates: Sequence[float]) -> NDArray[np.float64]:
    """Change of the loss by one gradient step: of all layers together, then of each alone.

    Parameters
    ----------
    model : nn.Sequential
        A network of :func:`bnbook.models.mlp`, which stays as it is.
    x, y : Tensor of shape (N, ...) and (N,)
        The mini-batch whose cross-entropy gives the gradient and is measured after the step.
    rates : sequence of float

    Returns
    -------
    ndarray of shape (rates, 1 + layers)
        Shares of the loss before the step; below 0 the step lowered it.
    """
    parameters = dict(model.named_parameters())
    loss = F.cross_entropy(model(x), y)
    gradient = dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))
    layers = list(dict.fromkeys(name.split(".")[0] for name in parameters))

    @torch.no_grad()
    def change(moving: Sequence[str], rate: float) -> float:
        after = {
            name: p - rate * gradient[name] if name.split(".")[0] in moving else p
            for name, p in parameters.items()
        }
        return F.cross_entropy(torch.func.functional_call(model, after, (x,)), y).item() / loss.item() - 1

    return np.array([[change(moving, rate) for moving in (layers, *([k] for k in layers))] for rate in rates])


def held(
    network: str, side: str, rate: Sequence[float], steps: Sequence[int], seed: Sequence[int]
) -> list[Row]:
    """Test error (%) with some layers held still at their first weights; NaN after a divergence."""
    runs = training.sweep(
        held_mlp,
        data.digits(),
        steps=max(steps),
        seeds=seed,
        batch_size=60,
        evaluate_every=math.gcd(*steps),
        lr=[*rate],
        held=SIDES[side],
        **NETWORKS[network],
    )
    return _errors(runs, rate, steps, seed)


def new_top(
    network: str,
    side: str,
    below: dict[str, NDArray[np.float64]],
    rate: Sequence[float],
    steps: Sequence[int],
    seed: int,
) -> training.Runs:
    """Train a fresh network whose layers 1 to 3 have the weights in `below`, a state of the whole network."""
    return training.sweep(
        _on_learned,
        data.digits(),
        steps=max(steps),
        seeds=[seed + 500],  # other weights on top than those that the layers below learned with
        batch_size=60,
        evaluate_every=math.gcd(*steps),
        lr=[*rate],
        below={name: v for name, v in below.items() if int(name.split(".")[0]) < 2 * DEPTH - 2},
        held=SIDES[side],
        **NETWORKS[network],
    )


def together(
    network: str, side: str, steps: Sequence[int], rate: Sequence[float], seed: Sequence[int]
) -> list[Row]:
    """Change of a mini-batch's loss (share) by one step: of all layers together, or the sum over each alone.

    The step has the rates of `rate`; the network trained before for `steps` at the chapter's rate.
    """
    digits, rows = data.digits(), []
    runs = training.sweep(
        models.mlp,
        digits,
        steps=max(*steps, 1),
        seeds=seed,
        batch_size=60,
        evaluate_every=math.gcd(*steps) or 1,
        record=lambda model, _: model.state_dict(),
        lr=RATE[network],
        **NETWORKS[network],
    )
    model = models.mlp((64,), 10, **NETWORKS[network])
    for i, s in enumerate(seed):
        batch = np.random.default_rng(s).choice(len(digits.x_train), 60, replace=False)
        x, y = torch.from_numpy(digits.x_train[batch]), torch.from_numpy(digits.y_train[batch])
        for k in steps:
            at = np.flatnonzero(runs.steps == k)[0]
            model.load_state_dict({n: torch.from_numpy(runs.series[n][i, at]) for n in model.state_dict()})
            found = single_steps(model, x, y, rate)
            change = found[:, 0] if side == "together" else found[:, 1:].sum(1)
            rows += [
                {"steps": k, "rate": r, "seed": s, "change": float(c)}
                for r, c in zip(rate, change, strict=True)
            ]
    return rows


def _on_learned(in_shape: Sequence[int], classes: int, *, below: Row, **settings: Any) -> nn.Sequential:
    model = held_mlp(in_shape, classes, **settings)
    model.load_state_dict({name: torch.from_numpy(v) for name, v in below.items()}, strict=False)
    return model


def _errors(
    runs: training.Runs, rate: Sequence[float], steps: Sequence[int], seed: Sequence[int]
) -> list[Row]:
    error = 100 * (1 - runs.series["test_accuracy"])  # of (rates, seeds, times), NaN after a divergence
    return [
        {"rate": r, "steps": k, "seed": s, "error": float(error[i, j, np.flatnonzero(runs.steps == k)[0]])}
        for i, r in enumerate(rate)
        for j, s in enumerate(seed)
        for k in steps
    ]


run = by_name(held, together)
