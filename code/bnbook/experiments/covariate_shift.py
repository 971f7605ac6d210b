"""How far the verdict of the chapter on covariate shift holds: what darkness costs, by the norm."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from bnbook import data, models, shifts, training
from bnbook.experiments import by_name

__all__ = ["NETWORKS", "SCALES", "dark", "dense", "lenet", "run"]


def dense(in_shape: Sequence[int], classes: int, norm: str) -> nn.Module:
    """One hidden layer of 64 ReLUs, as in the chapter."""
    return models.mlp(in_shape, classes, depth=1, width=64, norm=norm)


def lenet(in_shape: Sequence[int], classes: int, norm: str) -> nn.Module:
    """LeNet with ReLUs."""
    return models.lenet(in_shape, classes, norm=norm, activation="relu", init="he")


NETWORKS: dict[str, tuple[Callable[..., nn.Module], Callable[[], data.Data]]] = {
    "dense, MNIST": (dense, data.mnist5k),
    "dense, Fashion": (dense, data.fashion),
    "LeNet, MNIST": (lenet, data.mnist5k),
    "LeNet, Fashion": (lenet, data.fashion),
}
"""The networks of the map and what they read, 4,000 training and 1,000 test images."""

SCALES: dict[str, list[dict[str, Any]]] = {
    "medium": [
        {
            "map": "dark",
            "side": ["batch", "group"],
            "network": [*NETWORKS],
            "rate": (0.01, 0.03, 0.1, 0.3, 1.0),
            "steps": (80,),
            "seed": (100, 101, 102, 103, 104),  # the chapter's verdicts use others
        }
    ]
}
"""Grids by the name of the scale."""


def dark(
    side: str, network: str, rate: Sequence[float], steps: Sequence[int], seed: Sequence[int]
) -> list[dict[str, Any]]:
    """Test accuracy (%) by day, and the points lost where pixels are 0.3 times as bright, in evaluation mode.

    Steps are of 32 images. Both numbers are NaN after a divergence.
    """
    build, images = NETWORKS[network]
    x_train, y_train, x_test, y_test = images()
    x_train, x_test = (x[:n].reshape(-1, 1, 28, 28) for x, n in ((x_train, 4000), (x_test, 1000)))
    night, labels = torch.from_numpy(shifts.affine(x_test, 0.3)), torch.from_numpy(y_test[:1000])

    @torch.no_grad()
    def at_night(model: nn.Module, _: int) -> dict[str, Any]:
        return {"night": (model(night).argmax(1) == labels).double().mean()}

    runs = training.sweep(
        build,
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
        {"rate": r, "steps": k, "seed": s, "accuracy": float(day[at]), "lost": float(day[at] - by_night[at])}
        for i, r in enumerate(rate)
        for j, s in enumerate(seed)
        for k in steps
        for at in [(i, j, runs.steps.tolist().index(k))]
    ]


run = by_name(dark)
