"""What batch normalization changes about training, over first weights, rates, budgets, depths and places."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from bnbook import models, training
from bnbook.experiments import by_name
from bnbook.experiments.saturation import band, images_of

__all__ = ["BUDGET", "LEVELS", "SCALES", "rates", "run", "starts"]

BUDGET = 1200
"""Steps of each network of :func:`starts`."""
LEVELS = (0.5, 0.7, 0.8, 0.85, 0.88)
"""Test accuracies that networks of :func:`starts` should reach."""

_OTHERS = (100, 101, 102)  # seeds: the chapter's verdicts use others
_RELU = {
    "map": "rates",
    "activation": "relu",
    "norm": ["none", "batch"],
    "placement": "before",
    "rate": (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0),
    "seed": _OTHERS,
}
_PLACED = {
    "map": "rates",
    "images": "digits",
    "norm": "batch",
    "rate": (0.03, 0.1, 0.3, 1.0, 3.0, 10.0),
    "steps": (200, 500),
    "seed": _OTHERS,
}
_STARTS = {
    "map": "starts",
    "images": "mnist",
    "level": LEVELS,
    "std": (0.1, 0.2, 0.4, 0.6, 1.0),
    "seed": _OTHERS,
}
_RATES = (0.3, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)  # plus two smaller ones, which suit small normalized weights

SCALES: dict[str, list[dict[str, Any]]] = {
    "medium": [
        {
            "map": "band",  # without the norm it is in the table of the chapter on saturation
            "norm": "batch",
            "activation": ["relu", "sigmoid"],
            "images": images,
            "depth": depth,
            "steps": (100, 300, 1000),
            "seed": _OTHERS,
        }
        for images, depth in (("digits", 3), ("digits", 6), ("fashion", 3))
    ]
    + [
        {**_STARTS, "norm": "none", "rate": _RATES},
        {**_STARTS, "norm": "batch", "rate": (0.03, 0.1, *_RATES)},
        {**_RELU, "images": "digits", "depth": 3, "steps": (100, 200, 500, 1000)},
        {**_RELU, "images": "digits", "depth": 10, "steps": (100, 200, 500, 1000)},
        {**_RELU, "images": "fashion", "depth": 10, "steps": (100, 200, 500)},
        {**_PLACED, "activation": "relu", "placement": "after", "depth": 3},
        {**_PLACED, "activation": "relu", "placement": "after", "depth": 10},
        {**_PLACED, "activation": "relu", "placement": ["before", "after"], "depth": 20},
        {**_PLACED, "activation": "sigmoid", "placement": ["before", "after"], "depth": [3, 10]},
    ]
}
"""Grids by the name of the scale."""


def starts(
    images: str,
    norm: str,
    level: Sequence[float],
    std: Sequence[float],
    rate: Sequence[float],
    seed: Sequence[int],
) -> list[dict[str, Any]]:
    """Steps of three layers of 50 sigmoids to each test accuracy, in twenties, by their first weights.

    ``BUDGET`` if they do not get there; NaN after a divergence.
    """
    runs = training.sweep(
        models.mlp,
        images_of(images),
        steps=BUDGET,
        batch_size=60,
        seeds=seed,
        evaluate_every=20,
        norm=norm,
        activation="sigmoid",
        depth=3,
        width=50,
        init=[("std", s) for s in std],
        lr=[*rate],
    )
    rows = []
    for accuracy in level:
        steps = np.minimum(runs.steps_to(accuracy), BUDGET)
        steps[np.isfinite(runs.diverged)] = np.nan
        rows += [
            {"level": accuracy, "std": std[i], "rate": rate[j], "seed": seed[k], "steps": float(count)}
            for (i, j, k), count in np.ndenumerate(steps)
        ]
    return rows


def rates(
    images: str,
    activation: str,
    norm: str,
    placement: str,
    depth: int,
    rate: Sequence[float],
    steps: Sequence[int],
    seed: Sequence[int],
) -> list[dict[str, Any]]:
    """Networks of 48 units from He's weights: test accuracy (%), test loss, and training loss.

    The training loss is the mean over the last 21 mini-batches. All are NaN after a divergence.
    """
    every = math.gcd(*steps)
    runs = training.sweep(
        models.mlp,
        images_of(images),
        steps=max(steps),
        seeds=seed,
        evaluate_every=every,
        norm=norm,
        activation=activation,
        placement=placement,
        depth=depth,
        width=48,
        lr=[*rate],
    )
    accuracy, loss = (runs.series[name] for name in ("test_accuracy", "test_loss"))
    return [
        {
            "rate": r,
            "steps": k,
            "seed": s,
            "accuracy": 100 * float(accuracy[i, j, k // every]),
            "test_loss": float(loss[i, j, k // every]),
            "training_loss": float(runs.loss[i, j, k - 21 : k].mean()),
        }
        for i, r in enumerate(rate)
        for j, s in enumerate(seed)
        for k in steps
    ]


run = by_name(band, starts, rates)
