"""How far the verdict of the chapter on covariate shift holds: what darkness costs, by the norm."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from bnbook import data, models, shifts, training
from bnbook.experiments import by_name

__all__ = ["IMAGES", "NETWORKS", "SCALES", "dark", "run"]

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "mlp": lambda in_shape, classes, norm: models.mlp(in_shape, classes, depth=1, width=64, norm=norm),
    "lenet": lambda in_shape, classes, norm: models.lenet(
        in_shape, classes, norm=norm, activation="relu", init="he"
    ),
}
"""Networks that the map compares, each with a norm before every activation."""

IMAGES: dict[str, Callable[[], data.Data]] = {"mnist": data.mnist5k, "fashion": data.fashion}
"""What they read: the first 4,000 training and 1,000 test images of each."""

SCALES: dict[str, list[dict[str, Any]]] = {
    "medium": [
        {
            "map": "dark",
            "side": ["none", "batch", "group"],
            "network": network,
            "images": images,
            "rate": (0.01, 0.03, 0.1, 0.3, 1.0),
            "steps": (80, 320),
            "seed": (100, 101, 102, 103, 104),  # the chapter's verdicts use others
        }
        for network, images in (("mlp", "mnist"), ("lenet", "mnist"), ("lenet", "fashion"))
    ]
}
"""Grids by the name of the scale."""


def dark(
    side: str, network: str, images: str, rate: Sequence[float], steps: Sequence[int], seed: Sequence[int]
) -> list[dict[str, Any]]:
    """Test accuracy (%) by day, and the points lost when all pixels are multiplied by 0.3, in evaluation mode.

    Both are NaN after a divergence.
    """
    x_train, y_train, x_test, y_test = IMAGES[images]()
    x_train, x_test = (x[:n].reshape(-1, 1, 28, 28) for x, n in ((x_train, 4000), (x_test, 1000)))
    night = torch.from_numpy(shifts.affine(x_test, 0.3))
    labels = torch.from_numpy(y_test[:1000])

    @torch.no_grad()
    def at_night(model: nn.Module, _: int) -> dict[str, Any]:
        return {"night": (model(night).argmax(1) == labels).double().mean()}

    runs = training.sweep(
        NETWORKS[network],
        data.Data(x_train, y_train[:4000], x_test, y_test[:1000]),
        steps=max(steps),
        batch_size=32,
        seeds=seed,
        evaluate_every=math.gcd(*steps),
        record=at_night,
        lr=[*rate],
        norm=side,
    )
    day, by_night = 100 * runs.series["test_accuracy"], 100 * runs.series["night"]
    return [
        {
            "rate": r,
            "steps": k,
            "seed": s,
            "accuracy": float(day[i, j, at]),
            "lost": float(day[i, j, at] - by_night[i, j, at]),
        }
        for i, r in enumerate(rate)
        for j, s in enumerate(seed)
        for k in steps
        for at in [runs.steps.tolist().index(k)]
    ]


run = by_name(dark)
