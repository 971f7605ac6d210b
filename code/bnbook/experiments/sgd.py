"""How far the verdicts of the chapter on stochastic gradient descent hold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from bnbook import data, models, training
from bnbook.experiments import by_name

__all__ = ["BATCHES", "IMAGES", "SCALES", "epochs", "run", "training_set", "updates"]

IMAGES = ("digits", "fashion")
BATCHES = ("N = 4", "full batch")

_GRID: dict[str, Any] = {
    "images": [*IMAGES],
    "side": [*BATCHES],
    "rate": (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0),
    "seed": (100, 101, 102, 103, 104),  # the chapter's verdicts use others
}
SCALES: dict[str, list[dict[str, Any]]] = {
    "medium": [
        {"map": "updates", **_GRID, "spent": (10, 20, 50, 100, 200, 400)},
        {"map": "epochs", **_GRID, "spent": (1, 2, 5, 10, 20)},
    ]
}
"""Grids by the name of the scale."""


def training_set(images: str) -> data.Data:
    """Training images of `images`, which are the test images, too: what is asked is the training loss.

    The digits of :func:`bnbook.data.digits`, or the first 2,000 images of :func:`bnbook.data.fashion`, each
    square of 2 x 2 pixels averaged.

    >>> training_set("fashion").x_test.shape
    (2000, 196)
    """
    if images == "digits":
        x, y, *_ = data.digits()
    else:
        whole = data.fashion()
        x, y = whole.x_train[:2000].reshape(-1, 1, 28, 28), whole.y_train[:2000]
        x = F.avg_pool2d(torch.from_numpy(x), 2).flatten(1).numpy()
    return data.Data(x, y, x, y)


def updates(
    images: str, side: str, rate: Sequence[float], spent: Sequence[int], seed: Sequence[int]
) -> list[dict[str, Any]]:
    """Training loss of a network with 32 hidden ReLUs after so many updates, for all rates at once.

    It is NaN after a divergence.
    """
    return _losses(images, side, rate, spent, seed, by_epoch=False)


def epochs(
    images: str, side: str, rate: Sequence[float], spent: Sequence[int], seed: Sequence[int]
) -> list[dict[str, Any]]:
    """The same after so many epochs."""
    return _losses(images, side, rate, spent, seed, by_epoch=True)


def _losses(
    images: str, side: str, rate: Sequence[float], spent: Sequence[int], seed: Sequence[int], by_epoch: bool
) -> list[dict[str, Any]]:
    part = training_set(images)
    N = 4 if side == "N = 4" else len(part.x_train)
    unit = len(part.x_train) // N if by_epoch else 1  # in updates
    runs = training.sweep(
        models.mlp,
        part,
        steps=unit * max(spent),
        batch_size=N,
        seeds=seed,
        evaluate_every=unit * math.gcd(*spent),
        lr=[*rate],
        depth=1,
        width=32,
    )
    at, losses = runs.steps.tolist(), runs.series["test_loss"]
    return [
        {"rate": r, "spent": k, "seed": s, "loss": float(losses[i, j, at.index(unit * k)])}
        for i, r in enumerate(rate)
        for j, s in enumerate(seed)
        for k in spent
    ]


run = by_name(updates, epochs)
