"""How far the verdicts of the chapter on stochastic gradient descent hold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from bnbook import data, models, training
from bnbook.experiments import by_name

__all__ = ["BATCHES", "IMAGES", "SCALES", "budget", "run", "training_set"]

IMAGES = ("digits", "fashion")
BATCHES = ("N = 4", "full batch")

SCALES: dict[str, list[dict[str, Any]]] = {
    "medium": [
        {
            "map": "budget",
            "unit": "updates",
            "images": [*IMAGES],
            "side": [*BATCHES],
            "rate": (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0),
            "spent": (10, 20, 50, 100, 200, 400),
            "seed": (100, 101, 102, 103, 104),  # the chapter's verdicts use others
        },
        {
            "map": "budget",
            "unit": "epochs",
            "images": [*IMAGES],
            "side": [*BATCHES],
            "rate": (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0),
            "spent": (1, 2, 5, 10, 20),
            "seed": (100, 101, 102, 103, 104),
        },
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


def budget(
    unit: str, images: str, side: str, rate: Sequence[float], spent: Sequence[int], seed: Sequence[int]
) -> list[dict[str, Any]]:
    """Training loss of a network with 32 hidden ReLUs after so many updates or epochs, for all rates at once.

    It is NaN after a divergence.
    """
    part = training_set(images)
    N = 4 if side == "N = 4" else len(part.x_train)
    updates = 1 if unit == "updates" else len(part.x_train) // N
    runs = training.sweep(
        models.mlp,
        part,
        steps=updates * max(spent),
        batch_size=N,
        seeds=seed,
        evaluate_every=updates * math.gcd(*spent),
        lr=[*rate],
        depth=1,
        width=32,
    )
    at = runs.steps.tolist()
    return [
        {
            "rate": r,
            "spent": k,
            "seed": s,
            "loss": float(runs.series["test_loss"][i, j, at.index(updates * k)]),
        }
        for i, r in enumerate(rate)
        for j, s in enumerate(seed)
        for k in spent
    ]


run = by_name(budget)
