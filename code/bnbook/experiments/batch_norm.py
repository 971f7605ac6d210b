"""How far the verdicts of the chapter on the transform hold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from torch import nn

from bnbook import data, layers, models, training
from bnbook.experiments import by_name

__all__ = ["SCALES", "SIDES", "gamma", "run", "sigmoid_network"]

SIDES: dict[str, dict[str, Any]] = {
    "γ = 1": {"gamma": 1.0, "learn": False},
    "γ = 3": {"gamma": 3.0, "learn": False},
    "γ = 10": {"gamma": 10.0, "learn": False},
    "learned γ": {"gamma": 1.0, "learn": True},
}
"""Where γ starts in the networks that the map compares, and whether γ and β learn."""

SCALES: dict[str, list[dict[str, Any]]] = {
    "medium": [
        {
            "map": "gamma",
            "side": [*SIDES],
            "rate": (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0),
            "steps": (150, 600, 2400, 9600),
            "seed": (100, 101, 102, 103, 104),  # the chapter's verdicts use others
        }
    ]
}
"""Grids by the name of the scale."""


def sigmoid_network(
    in_shape: Sequence[int], classes: int, *, gamma: float, learn: bool, width: int = 32
) -> nn.Sequential:
    """One hidden layer of sigmoid units with batch norm, whose γ starts at `gamma` and may learn with β.

    >>> sigmoid_network((64,), 2, gamma=3, learn=False)[1].weight[:2]
    tensor([3., 3.])
    """
    model = models.mlp(in_shape, classes, depth=1, width=width, norm="batch", activation="sigmoid", init=1.0)
    norm = cast(layers.BatchNorm, model[1]).requires_grad_(learn)
    nn.init.constant_(norm.weight, gamma)
    return model


def gamma(
    side: str, rate: Sequence[float], steps: Sequence[int], seed: Sequence[int]
) -> list[dict[str, Any]]:
    """Is the digit odd? Test error (%) and training loss of :func:`sigmoid_network`, for all rates at once.

    The loss is the mean over the mini-batches of the last epoch, 21 steps. Both are NaN after a divergence.
    """
    digits = data.digits()
    odd = data.Data(digits.x_train, digits.y_train % 2, digits.x_test, digits.y_test % 2)
    runs = training.sweep(
        sigmoid_network,
        odd,
        steps=max(steps),
        seeds=seed,
        evaluate_every=math.gcd(*steps),
        lr=[*rate],
        **SIDES[side],
    )
    error = 100 * (1 - runs.series["test_accuracy"])
    epoch = len(odd.x_train) // 64
    return [
        {
            "rate": r,
            "steps": k,
            "seed": s,
            "error": float(error[i, j, np.flatnonzero(runs.steps == k)[0]]),
            "loss": float(runs.loss[i, j, k - epoch : k].mean()),
        }
        for i, r in enumerate(rate)
        for j, s in enumerate(seed)
        for k in steps
    ]


run = by_name(gamma)
